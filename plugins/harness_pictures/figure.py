"""A figure for papers and slides, as bytes: PNG, SVG or PDF by matplotlib, with the same bytes for the same panels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from harness.api import HarnessError
from harness_pictures.logged import Panel

DPI = 200
TALLEST = 65_000
"""Pixels of a PNG's side; matplotlib draws no more than 2^16."""


class Drawn(NamedTuple):
    """The file, and a line on what could not be drawn as it is."""

    data: bytes
    note: str


def picture(panels: Sequence[Panel], kind: str) -> Drawn:
    """The panels as one figure; kind is png, svg or pdf."""
    try:
        import matplotlib.style
    except ModuleNotFoundError as error:
        raise HarnessError(
            "a .png, .svg or .pdf needs matplotlib, which is not installed; run: pip install 'concept-harness[pictures]', "
            "or give --output tokens.html, which needs nothing"
        ) from error
    own = {"svg.hashsalt": "harness", "pdf.fonttype": 42, "image.composite_image": False, "axes.unicode_minus": False}
    with matplotlib.style.context(["default", own]):
        from harness_pictures.sheet import quiet

        if panels[0].view is not None:
            from harness_pictures.image_figure import draw
        else:
            from harness_pictures.text_figure import draw
        sheet = draw(panels)
        figure = sheet.figure
        if kind == "png" and max(figure.get_size_inches()) * DPI > TALLEST:
            raise HarnessError(
                f"{len(panels)} pictures of {sum(len(p.activations) for p in panels):,} tokens are too tall for one PNG; "
                "name fewer with --sample and --concept, or give --output tokens.html"
            )
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[kind]
        drawn = io.BytesIO()
        with quiet():
            figure.savefig(drawn, format=kind, dpi=DPI, metadata=dates)
    lost = sheet.font.missing
    note = f"{len(lost)} characters are in no font of this machine and drawn as boxes; .html shows them" if lost else ""
    return Drawn(drawn.getvalue(), note)
