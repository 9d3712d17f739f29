"""Drawing: five kinds of figures at the width of a column or a page, for papers (SVG, PDF) and slides (PNG). Knows no analysis.

Okabe and Ito's colours, told apart by marker and line style as well; fonts of 8 points; legends outside the data. The
same figures give the same bytes: no date, a fixed salt. matplotlib is imported inside functions: the plugin loads without it.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
COLUMN, PAGE = 3.4, 7.0
"""Inches: the width of one column and of two."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GREY = "#999999"
ROW = 0.165
"""Inches: the height of a row of 8-point text."""


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its files, and what it does not show."""

    name: str
    figure: Figure
    note: str | None = None


@dataclass(frozen=True)
class Line:
    """A curve: y over the places 0..n-1 (NaN = a gap), its interval, and one value apart (y, low, high)."""

    label: str
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    apart: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """The words of a curve's axes: tick labels of the places, what the value apart is called, and the range of y."""

    x: str
    y: str
    ticks: Sequence[str]
    apart: str | None = None
    limits: tuple[float, float] | None = None


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings while figures are made and saved."""
    import matplotlib

    size = dict.fromkeys(
        (
            "font.size",
            "axes.titlesize",
            "axes.labelsize",
            "xtick.labelsize",
            "ytick.labelsize",
            "legend.fontsize",
            "figure.titlesize",
            "figure.labelsize",
        ),
        8,
    )
    with matplotlib.rc_context(
        {
            **matplotlib.rcParamsDefault,
            **size,
            "backend": "agg",
            "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.2,
            "lines.markersize": 3.5,
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "svg.hashsalt": "harness",
            "savefig.dpi": 300,
        }
    ):
        yield


def saved(figure: Figure, form: str) -> bytes:
    """The bytes of a file: svg, pdf or png; the same every time."""
    dates: dict[str, Mapping[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    picture = io.BytesIO()
    figure.savefig(picture, format=form, metadata=dates[form])
    return picture.getvalue()


def words(text: str, width: int = 100) -> str:
    """A name as it is drawn: no mathematics, no control characters, in lines of at most `width` letters."""
    clean = "".join(c if c.isprintable() else "�" for c in text).replace("$", r"\$")
    parts = textwrap.wrap(clean, width) or [""]
    return "\n".join(parts)


def blank(width: float, height: float) -> Figure:
    """An empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float, where: str = "lower") -> None:
    """A legend below the axes, or above them (upper), in as many columns as fit."""
    longest = max(len(label) for label in labels) * 0.06 + 0.52  # inches of a label, its handle and the space between
    columns = max(1, min(len(labels), int(width / longest)))
    figure.legend(handles, labels, loc=f"outside {where} center", ncols=columns, handlelength=3.2, columnspacing=1.2)
    figure.set_figheight(figure.get_figheight() + ROW * math.ceil(len(labels) / columns))


def curves(lines: Sequence[Line], axis: Axis) -> Figure:
    """Up to seven curves in one pair of axes; more, each in its own, with the others in grey behind it."""
    return _together(lines, axis) if len(lines) <= len(COLORS) else _apart(lines, axis)


def _together(lines: Sequence[Line], axis: Axis) -> Figure:
    figure = blank(COLUMN, 2.3)
    axes = figure.subplots()
    handles = []
    for i, line in enumerate(lines):
        look = {"color": COLORS[i], "marker": MARKERS[i], "linestyle": DASHES[i]}
        (handle,) = axes.plot(range(len(line.y)), line.y, **look)
        handles.append(handle)
        if line.low is not None and line.high is not None:
            axes.fill_between(range(len(line.y)), line.low, line.high, color=COLORS[i], alpha=0.13, linewidth=0)
        _value_apart(axes, line, axis, COLORS[i], MARKERS[i], (i - (len(lines) - 1) / 2) * 0.09)
    _dress(axes, axis, 2.7)
    axes.set_xlabel(axis.x)
    axes.set_ylabel(words(axis.y, 28))
    if len(lines) > 1:
        legend(figure, handles, [words(line.label) for line in lines], COLUMN)
    else:
        axes.set_title(words(lines[0].label, 44), loc="left")
    return figure


def _apart(lines: Sequence[Line], axis: Axis) -> Figure:
    columns = 4
    rows = math.ceil(len(lines) / columns)
    figure = blank(PAGE, 1.25 * rows + 0.4)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k >= len(lines):
            axes.set_axis_off()
            continue
        for other in lines:
            axes.plot(range(len(other.y)), other.y, color=GREY, linewidth=0.4, alpha=0.6)
        line = lines[k]
        axes.plot(range(len(line.y)), line.y, color=COLORS[0], marker="o", markersize=2.2)
        if line.low is not None and line.high is not None:
            axes.fill_between(range(len(line.y)), line.low, line.high, color=COLORS[0], alpha=0.25, linewidth=0)
        _value_apart(axes, line, axis, COLORS[1], "s", 0.0)
        axes.set_title(words(line.label, 24), loc="left", y=1.0)
        _dress(axes, axis, 1.3)
        if k + columns >= len(lines):
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(axis.x)
    figure.supylabel(axis.y)
    return figure


def _value_apart(axes: Any, line: Line, axis: Axis, color: str, marker: str, shift: float) -> None:
    if line.apart is None or axis.apart is None:
        return
    value, low, high = line.apart
    place = _apart_place(axis) + shift * _apart_gap(axis)
    error = None if math.isnan(low) else [[max(value - low, 0)], [max(high - value, 0)]]
    axes.errorbar([place], [value], error, color=color, marker=marker, linestyle="none", elinewidth=0.9)


def _apart_gap(axis: Axis) -> float:
    return max(1.0, 0.18 * len(axis.ticks))


def _apart_place(axis: Axis) -> float:
    return len(axis.ticks) - 1 + _apart_gap(axis)


def _dress(axes: Any, axis: Axis, width: float) -> None:
    """Ticks that do not touch in axes of so many inches, the one apart among them; a faint grid."""
    n = len(axis.ticks)
    room = width / (n + (_apart_gap(axis) if axis.apart else 0))
    step = math.ceil((0.07 * max(len(tick) for tick in axis.ticks) + 0.04) / room)
    places: list[float] = list(range(0, n, step))
    labels = [axis.ticks[i] for i in range(0, n, step)]
    if axis.apart is not None:
        axes.axvline(n - 1 + _apart_gap(axis) / 2, color=GREY, linewidth=0.5, linestyle=":")
        places, labels = [*places, _apart_place(axis)], [*labels, axis.apart]
    axes.set_xticks(places, labels)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.5)
    if axis.limits is not None:
        axes.set_ylim(*axis.limits)


@dataclass(frozen=True)
class Cells:
    """A table as colours: values [rows, columns] (NaN = none), their words, and the (row, column) places to outline."""

    values: Any
    rows: Sequence[str]
    columns: Sequence[str]
    x: str
    y: str
    bar: str
    form: str = "{:.2f}"
    top: float = 1.0
    outlined: Sequence[tuple[int, int]] = ()
    outline: str | None = None
    title: str | None = None


def heat(cells: Cells) -> Figure:
    """One coloured, numbered cell per value; from blue to yellow, which everyone sees as dark to light."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(cells.values, float)
    rows, columns = values.shape
    names = [words(name, 32) for name in cells.rows]
    height = sum(name.count("\n") + 1 for name in names) * ROW
    left = max(len(part) for name in names for part in name.split("\n")) * 0.075
    tall = max(height + 0.75, 0.075 * len(cells.bar) + 0.1)  # the words along the colour bar
    figure = blank(max(COLUMN, min(PAGE, left + 0.42 * columns + 1.3)), tall + (0.2 if cells.title else 0))
    axes = figure.subplots()
    counts = cells.form == "{:g}"  # of which a zero is left blank
    shown = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=cells.top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value) and (value or not counts):
            dark = value / cells.top < 0.55
            text = cells.form.format(value) if counts else cells.form.format(value).removeprefix("0")
            axes.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    for i, j in cells.outlined:
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=COLORS[1], linewidth=1.6, clip_on=False))
    axes.set_xticks(range(columns), [words(name) for name in cells.columns])
    axes.set_yticks(range(rows), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(cells.x)
    axes.set_ylabel(cells.y)
    if cells.title:
        axes.set_title(words(cells.title, 60), loc="left")
    bar = figure.colorbar(
        shown, ax=axes, shrink=min(1.0, 1.6 / height) if height > 1.6 else 1.0, pad=0.02, aspect=14, anchor=(0, 1)
    )
    bar.set_label(cells.bar)
    bar.locator = MaxNLocator(4, integer=counts)
    bar.outline.set_visible(False)
    if cells.outline:
        legend(figure, [Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLORS[1], linewidth=1.6)], [cells.outline], COLUMN)
    return figure


@dataclass(frozen=True)
class Dots:
    """One of the values of every row, with its interval: (value, low, high), NaN = none."""

    label: str
    values: Sequence[tuple[float, float, float]]


def dots(names: Sequence[str], series: Sequence[Dots], x: str, title: str, line: tuple[str, float] | None = None) -> Figure:
    """A row per name with a dot and an interval for each series; above forty names, in two blocks side by side."""
    blocks = 1 if len(names) <= 40 else 2
    per_block = math.ceil(len(names) / blocks)
    figure = blank(COLUMN if blocks == 1 else PAGE, ROW * (per_block + words(x, 28).count("\n")) + 0.75)
    grid = figure.subplots(1, blocks, sharex=True, squeeze=False)[0]
    handles: list[Any] = []
    for b, axes in enumerate(grid):
        part = range(b * per_block, min((b + 1) * per_block, len(names)))
        handles = [_row_of_dots(axes, [one.values[i] for i in part], k, len(series)) for k, one in enumerate(series)]
        axes.set_yticks(range(len(part)), [words(names[i], 32).replace("\n", " ") for i in part])
        axes.set_ylim(per_block - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="x", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(words(x, 28))
        if line is not None:
            handles.append(axes.axvline(line[1], color=GREY, linewidth=1.0, linestyle="--"))
    figure.suptitle(words(title, 48 * blocks), x=0.01, ha="left")
    legend(figure, handles, [one.label for one in series] + ([line[0]] if line else []), COLUMN * blocks)
    return figure


def _row_of_dots(axes: Any, values: Sequence[tuple[float, float, float]], k: int, count: int) -> Any:
    array = np.asarray(values, float).reshape(-1, 3)
    value, low, high = array.T
    error = np.clip([value - low, high - value], 0, None)
    place = np.arange(len(array)) + (k - (count - 1) / 2) * 0.3
    return axes.errorbar(
        value,
        place,
        xerr=error,
        color=COLORS[k],
        marker=MARKERS[k],
        linestyle="none",
        elinewidth=0.9,
        markerfacecolor=COLORS[k] if k == 0 else "white",
    )


@dataclass(frozen=True)
class Shape:
    """Two histograms over the same edges [B+1], as shares [B]; and a line at the cutoff."""

    label: str
    edges: Sequence[float]
    share_in: Sequence[float]
    share_out: Sequence[float]
    cutoff: float | None


def histograms(shapes: Sequence[Shape], x: str, y: str, labels: tuple[str, str, str]) -> Figure:
    """Small multiples, four in a row: background filled, in-concept as a line, the cutoff dashed."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    columns = min(4, len(shapes))
    rows = math.ceil(len(shapes) / columns)
    width = COLUMN if columns <= 2 else PAGE
    figure = blank(width, 1.2 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k >= len(shapes):
            axes.set_axis_off()
            continue
        shape = shapes[k]
        axes.stairs(shape.share_out, shape.edges, fill=True, color=GREY, alpha=0.55)
        axes.stairs(shape.share_in, shape.edges, color=COLORS[0], linewidth=1.2)
        if shape.cutoff is not None:
            axes.axvline(shape.cutoff, color=COLORS[1], linestyle="--", linewidth=1.0)
        axes.set_title(words(shape.label, 20), loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.set_ylim(bottom=0)
    figure.supxlabel(x)
    figure.supylabel(y)
    handles = [
        Line2D([], [], color=COLORS[0], linewidth=1.2),
        Patch(color=GREY, alpha=0.55, linewidth=0),
        Line2D([], [], color=COLORS[1], linestyle="--", linewidth=1.0),
    ]
    legend(figure, handles, labels, width, "upper")  # below, it would lie on the label of x
    return figure


def bars(panels: Mapping[str, Sequence[float]], ticks: Sequence[str], x: str, y: str) -> Figure:
    """Small multiples of bars with their numbers, two in a row."""
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = blank(COLUMN if columns == 1 else PAGE, 1.45 * rows + 0.35)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    names = list(panels)
    for k, axes in enumerate(grid.flat):
        if k >= len(names):
            axes.set_axis_off()
            continue
        drawn = axes.bar(range(len(ticks)), panels[names[k]], color=COLORS[0], width=0.8)
        axes.bar_label(drawn, labels=[f"{value:g}" if value else "" for value in panels[names[k]]], padding=1)
        axes.set_title(words(names[k], 44), loc="left")
        axes.set_xticks(range(len(ticks)), ticks)
        axes.margins(y=0.18)
        if k + columns >= len(names):
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(x)
    figure.supylabel(y)
    return figure
