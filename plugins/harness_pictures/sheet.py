"""A sheet to draw on in points, y downwards: texts of known width, boxes, the legend. Needs matplotlib.

Text is never read as mathematics. Characters that the base font lacks are looked for in the machine's other fonts; what is in none is drawn as
a box and counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.textpath import text_to_path

from harness_pictures.logged import Panel
from harness_pictures.marks import DOTTED, HEAT, OUTLINED

BASE = "DejaVu Sans"
MARGIN = 12.0
SOFT, DARK, BLUE = "#5a5d66", "#000000", "#0072b2"
INVISIBLE = frozenset("\u200b\u200c\u200d\u200e\u200f\u2060\ufe0e\ufe0f\n\t")
DOTS = (0, (0.01, 2.2))


class Font:
    """The base font with what else a text needs; `missing` are the characters that no font has."""

    def __init__(self, text: str) -> None:
        families = [BASE]
        self.missing = {c for c in set(text) - INVISIBLE if not get_font(fontManager.findfont(BASE)).get_char_index(ord(c))}
        for entry in sorted(fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)) if self.missing else ():
            found = self.missing & _covered(entry, self.missing)
            if found:
                families.append(entry.name)
                self.missing -= found
        bold = "bold" if families == [BASE] else "normal"  # another font may have no bold of its own
        self._properties = {
            name: FontProperties(family=families, weight=own) for name, own in (("normal", "normal"), ("bold", bold))
        }
        self._widths: dict[tuple[str, str], float] = {}

    def properties(self, size: float, weight: str = "normal") -> FontProperties:
        """The font at a size in points."""
        made = self._properties[weight].copy()
        made.set_size(size)
        return made

    def width(self, text: str, size: float, weight: str = "normal") -> float:
        """How far a text moves the pen, in points."""
        key = (text, weight)
        if key not in self._widths:
            self._widths[key] = self._bbox(f"x{text}x", weight) - self._bbox("xx", weight)
        return self._widths[key] * size

    def fit(self, text: str, size: float, width: float, weight: str = "normal") -> str:
        """The text, its middle left out until it is no wider than `width`."""
        shown, keep = text, len(text)
        while keep > 4 and self.width(shown, size, weight) > width:
            keep -= max(keep // 20, 1)
            shown = f"{text[: keep * 2 // 3]}…{text[len(text) - keep // 3 :]}"
        return shown

    def _bbox(self, text: str, weight: str) -> float:
        with quiet():
            return float(text_to_path.get_text_width_height_descent(text, self.properties(100, weight), False)[0]) / 100


@contextmanager
def quiet() -> Iterator[None]:
    """Without matplotlib's warning for every character that no font has: they are counted once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _covered(entry: Any, wanted: set[str]) -> set[str]:
    """Which of the characters a font that can be drawn from has."""
    if (
        entry.name.startswith("Last Resort")
        or entry.style != "normal"
        or str(entry.weight) not in ("400", "normal", "regular", "book")
    ):
        return set()
    try:
        font = get_font(entry.fname)
        return {c for c in wanted if font.get_char_index(ord(c))} if font.scalable else set()
    except (OSError, RuntimeError, ValueError):
        return set()


class Sheet:
    """A figure of a width in points; `close` gives it its height."""

    def __init__(self, width: float, font: Font) -> None:
        self.figure, self.width, self.font = Figure(), width, font
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))

    def text(self, x: float, y: float, words: str, size: float, colour: str = DARK, weight: str = "normal") -> None:
        """Words from x on, their baseline at y."""
        font = self.font.properties(size, weight)
        self.axes.text(x, y, words, fontproperties=font, color=colour, va="baseline", ha="left", parse_math=False)

    def boxes(self, boxes: Sequence[tuple[float, float, float, float]], **how: Any) -> None:
        """Rectangles (left, top, right, bottom)."""
        corners = [[(a, b), (c, b), (c, d), (a, d)] for a, b, c, d in boxes]
        self.axes.add_collection(PolyCollection(corners, **{"edgecolors": "none", "facecolors": "none", **how}))

    def lines(self, lines: Sequence[Any], **how: Any) -> None:
        """Lines, each of points (x, y)."""
        self.axes.add_collection(LineCollection(list(lines), **how))

    def head(self, panel: Panel, x: float, y: float, width: float) -> float:
        """The panel's two lines of words; where they end."""
        self.text(x, y + 8, self.font.fit(panel.name, 8, width, "bold"), 8, weight="bold")
        self.text(x, y + 18, self.font.fit(panel.heading, 7, width), 7, SOFT)
        return y + 23

    def bar(self, panels: Sequence[Panel], x: float, y: float, colours: Sequence[str] = HEAT) -> None:
        """The colours and what they say: 200 points wide, 32 high."""
        cell = 11.0
        boxes = [(x + cell * i, y, x + cell * (i + 1), y + 8) for i in range(len(colours))]
        self.boxes(boxes, facecolors=list(colours))
        self.boxes([(x, y, x + cell * len(colours), y + 8)], edgecolors=SOFT, linewidths=0.5)
        for share in (0.0, 0.5, 1.0, 1.5):
            at = x + cell * 10 * share
            self.lines([[(at, y + 8), (at, y + 10.5)]], colors=SOFT, linewidths=0.6)
            words = "≥ 1.5" if share == 1.5 else f"{share:g}"
            self.text(at - self.font.width(words, 6.5) / 2, y + 17.5, words, 6.5, SOFT)
        zeros = " or ".join(sorted({panel.zero_is for panel in panels}, reverse=True))
        self.text(x, y + 27.5, f"activation: 0 = {zeros}, 1 = cutoff", 7)

    def key(self, x: float, y: float, dotted: bool) -> tuple[float, float]:
        """Words of the two marks beside their signs, the signs' boxes 10 points wide at (x, y) and (x, y + 14); where signs stand."""
        self.text(x + 16, y + 7.5, OUTLINED, 7)
        self.text(x + 16, y + 21.5, DOTTED if dotted else "in the concept: not known here", 7)
        return y, y + 14

    def close(self, height: float) -> Sheet:
        """The sheet at its height."""
        self.figure.set_size_inches(self.width / 72, height / 72)
        self.axes.set(xlim=(0, self.width), ylim=(height, 0))
        self.axes.set_axis_off()
        return self
