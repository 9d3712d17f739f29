"""An image as the model saw it, with its patches where they lie on the image."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.api import apply_view
from harness_pictures.logged import Panel

VEIL = 0.72
"""How much of the image its heat map covers."""


class Seen(NamedTuple):
    """pixels [h, w, 3] uint8: the model's window. width, height: the window's in the image's own pixels, so that nothing looks squashed.

    boxes [T, 4] float64: left, top, right, bottom of every token, in the image's own pixels from the window's corner.
    """

    pixels: NDArray[np.uint8]
    width: float
    height: float
    boxes: NDArray[Any]

    @classmethod
    def of(cls, panel: Panel) -> Seen:
        """The image of a panel."""
        image, view = panel.sample.image, panel.view
        assert image is not None  # noqa: S101 - the modality is image
        assert view is not None  # noqa: S101
        down, across = image.height / view.height, image.width / view.width
        boxes = panel.regions[:, [1, 0, 3, 2]] * np.array([across, down, across, down])
        pixels = apply_view(np.asarray(image.convert("RGB")), view)
        return cls(pixels, view.window_width * across, view.window_height * down, boxes)


def outline(boxes: NDArray[Any]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The edges of the boxes [N, 4] (left, top, right, bottom) that no other box shares, in order."""
    edges: Counter[tuple[tuple[float, float], tuple[float, float]]] = Counter()
    for left, top, right, bottom in np.round(boxes, 3).tolist():
        corners = ((left, top), (right, top), (left, bottom), (right, bottom))
        edges.update((corners[i], corners[k]) for i, k in ((0, 1), (2, 3), (0, 2), (1, 3)))
    return sorted(edge for edge, n in edges.items() if n == 1)
