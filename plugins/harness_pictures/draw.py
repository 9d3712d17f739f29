"""A figure of image samples: the image, and its patches coloured by activation with super-activators outlined; for papers and slides."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import HarnessError, apply_view, write_atomic
from harness_pictures.logged import Logged

COLUMNS = 3
OUTLINE = "#ffd400"


def draw(logged: Logged, panels: Sequence[tuple[str, int]], output: Path) -> None:
    """Writes one file with a pair of pictures for every (sample, concept)."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise HarnessError(
            "pictures need matplotlib, which is not installed; run: pip install 'concept-harness[pictures]'"
        ) from error
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.6 * columns, 1.95 * rows + 0.1), dpi=200, layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shown: Any = None
    for k, (name, c) in enumerate(panels):
        row, column = divmod(k, columns)
        shown = _pair(axes[row, 2 * column], axes[row, 2 * column + 1], logged, name, c)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_label("activation: 0 = median token, 1 = cutoff", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format=output.suffix[1:], metadata={"Date": None} if output.suffix != ".png" else None)
    write_atomic(output, picture.getvalue())


def _pair(left: Any, right: Any, logged: Logged, name: str, c: int) -> Any:
    """The image, and the image under its heat map: 1 is the cutoff, super-activators lie above it."""
    from matplotlib.patches import Rectangle

    image, view = logged.sample(name).image, logged.view(name)
    assert image is not None  # noqa: S101 - the modality is image
    pixels = apply_view(np.asarray(image), view)
    height = image.height / view.height * view.window_height
    width = image.width / view.width * view.window_width
    shares = logged.shares(name, c)
    boxes = logged.tensors["regions"][logged.rows(name)].numpy()
    scale = np.array([height / view.window_height, width / view.window_width] * 2)
    for axis in (left, right):
        axis.imshow(pixels, extent=(0, width, height, 0), interpolation="bilinear")
    shown = right.imshow(_heat(shares, boxes), extent=(0, width, height, 0), cmap="magma", vmin=0, vmax=1.5, alpha=0.72)
    for top, bottom_left, bottom, right_edge in (boxes * scale)[shares >= 1]:
        edge = Rectangle(
            (bottom_left, top), right_edge - bottom_left, bottom - top, fill=False, edgecolor=OUTLINE, linewidth=1.1
        )
        right.add_patch(edge)
    layer = logged.about["layers"][c]
    detected = "detected" if logged.tensors["detected"][logged.place[name], c] else "not detected"
    left.set_title(f"{name}", fontsize=7, loc="left")
    right.set_title(f"{logged.concepts[c]}, layer {layer}, {detected}", fontsize=7, loc="left")
    return shown


def _heat(shares: Any, boxes: Any) -> Any:
    """The patches as a grid; where there is none, nothing is drawn."""
    tops, lefts = np.unique(boxes[:, 0]), np.unique(boxes[:, 1])
    grid = np.full((len(tops), len(lefts)), np.nan)
    grid[np.searchsorted(tops, boxes[:, 0]), np.searchsorted(lefts, boxes[:, 1])] = shares
    return np.ma.masked_invalid(grid)
