"""Images: each beside its heat map, a dot in every patch in the concept.

Super-activators are outlined as one shape, with thin lines between its patches: a hole in it has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness_pictures.logged import Panel
from harness_pictures.marks import HEAT, step
from harness_pictures.seen import VEIL, Seen, outline
from harness_pictures.sheet import MARGIN, Font, Sheet

COLUMNS = 3
SIDE = 150.0
GAP = 6.0


def draw(panels: Sequence[Panel]) -> Sheet:
    """A pair of pictures for every panel, up to three pairs in a row, and the legend."""
    columns = min(COLUMNS, len(panels))
    pair = 2 * SIDE + GAP
    sheet = Sheet(2 * MARGIN + columns * pair + (columns - 1) * 2 * GAP, Font("".join(p.name + p.heading for p in panels)))
    y = MARGIN
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        seen = [Seen.of(panel) for panel in row]
        for k, (panel, image) in enumerate(zip(row, seen, strict=True)):
            x = MARGIN + k * (pair + 2 * GAP)
            top = sheet.head(panel, x, y, pair)
            _pair(sheet, panel, image, x, top)
        y += 23 + max(SIDE * image.height / image.width for image in seen) + 1.5 * GAP
    return _legend(sheet, panels, y + 2)


def _legend(sheet: Sheet, panels: Sequence[Panel], y: float) -> Sheet:
    """The colours, then the marks: beside them where there is room, else below."""
    sheet.bar(panels, MARGIN, y)
    beside = sheet.width > 480
    x, y = (MARGIN + 230, y - 1) if beside else (MARGIN, y + 36)
    outlined, dotted = sheet.key(x, y, any((panel.truth >= 0).any() for panel in panels))
    box = (x, outlined, x + 10, outlined + 10)
    sheet.boxes([box, (x, dotted, x + 10, dotted + 10)], facecolors=[HEAT[12], HEAT[7]])
    _outline(sheet, outline(np.array([box])))
    _dots(sheet, np.array([[x + 5, dotted + 5]]), 2.4)
    return sheet.close(y + 24 + MARGIN)


def _pair(sheet: Sheet, panel: Panel, image: Seen, x: float, y: float) -> None:
    """The image, and the image under its heat map."""
    scale = SIDE / image.width
    for left in (x, x + SIDE + GAP):
        _show(sheet, image.pixels, left, y, image.height * scale)
    left = x + SIDE + GAP
    _show(sheet, heat(panel, image), left, y, image.height * scale)
    boxes = image.boxes * scale + np.array([left, y, left, y])
    above = boxes[panel.super_activators]
    sheet.boxes(above.tolist(), edgecolors=(1.0, 1.0, 1.0, 0.55), linewidths=0.4)  # so that a hole is not taken for an island
    _outline(sheet, outline(above))
    inside = boxes[panel.truth == 1]
    if len(inside):
        width = float((inside[:, 2:] - inside[:, :2]).min())
        _dots(sheet, (inside[:, :2] + inside[:, 2:]) / 2, min(max(0.26 * width, 0.8), 2.4))


def _show(sheet: Sheet, pixels: NDArray[np.uint8], x: float, y: float, height: float) -> None:
    sheet.axes.imshow(pixels, extent=(x, x + SIDE, y + height, y), aspect="auto", interpolation="nearest")


def heat(panel: Panel, image: Seen) -> NDArray[np.uint8]:
    """[height, width, 4] of the model's window: the strongest token's colour at every pixel; clear where there is no token."""
    strongest = np.full(image.pixels.shape[:2], -1)
    for (top, left, bottom, right), share in zip(panel.regions, panel.shares, strict=True):
        part = strongest[max(top, 0) : bottom, max(left, 0) : right]
        np.maximum(part, step(share), out=part)
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] + [round(255 * VEIL)] for colour in HEAT], np.uint8)
    return np.where((strongest >= 0)[..., None], colours[strongest], np.uint8(0))


def _outline(sheet: Sheet, edges: Sequence[Any]) -> None:
    """White on black, so that it stands out on any image."""
    sheet.lines(edges, colors="black", linewidths=2.6, capstyle="projecting")
    sheet.lines(edges, colors="white", linewidths=1.2, capstyle="projecting")


def _dots(sheet: Sheet, centres: NDArray[np.float64], width: float) -> None:
    sheet.axes.scatter(
        centres[:, 0],
        centres[:, 1],
        s=width**2,
        c="white",
        edgecolors="black",
        linewidths=0.35 * math.sqrt(width / 2.4),
        zorder=3,
    )
