"""One HTML file: pictures of tokens that answer to the pointer and to the keyboard. It asks the network for nothing.

Everything from the data is escaped by the template. The content-security policy allows the page's own style and script, by hash, and
images inside the file.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import PIL.Image
from jinja2 import Environment, PackageLoader

from harness_pictures.logged import Panel
from harness_pictures.marks import DOTTED, HEAT, NIGHT, OUTLINED, PAPER, TRUTH, ink, line, number, step
from harness_pictures.seen import VEIL, Seen, outline


def page(title: str, panels: Sequence[Panel]) -> str:
    """The whole file: the same text for the same panels."""
    environment = Environment(
        loader=PackageLoader("harness_pictures", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (files("harness_pictures").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    style += "".join(_rules())
    image = panels[0].view is not None
    known = any((panel.truth >= 0).any() for panel in panels)
    return environment.get_template("page.html").render(
        allowed=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        style=style,
        script=script,
        title=line(title),
        image=image,
        panels=[_image(panel) if image else _text(panel) for panel in panels],
        steps=len(HEAT),
        zeros=" or ".join(sorted({panel.zero_is for panel in panels}, reverse=True)),
        outlined=OUTLINED,
        dotted=DOTTED if known else "in the concept: not known here",
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rules() -> Iterator[str]:
    """A rule for every colour: patches by day and night the same, words not."""
    for i, (heat, paper, night) in enumerate(zip(HEAT, PAPER, NIGHT, strict=True)):
        yield f".h{i}{{fill:{heat};background:{heat}}}.c{i}{{background:{paper};color:{ink(paper)}}}\n"
        yield f"@media (prefers-color-scheme:dark){{.c{i}{{background:{night};color:{ink(night)}}}}}\n"
    yield f".heat rect{{fill-opacity:{VEIL}}}\n"


def _image(panel: Panel) -> dict[str, Any]:
    """What the template draws of an image: patches as rectangles, in thousandths of the picture's width."""
    seen = Seen.of(panel)
    stored = io.BytesIO()
    PIL.Image.fromarray(seen.pixels).save(stored, format="png", optimize=True)
    scale = 1000 / seen.width
    boxes = np.round(seen.boxes * scale, 2)
    names = _cells(panel)
    tokens = [{**token, "box": box} for token, box in zip(_tokens(panel, names), boxes.tolist(), strict=True)]
    inside = boxes[panel.truth == 1]
    width = float((inside[:, 2:] - inside[:, :2]).min()) if len(inside) else 0.0
    return {
        **_said(panel, tokens),
        "pixels": base64.b64encode(stored.getvalue()).decode(),
        "height": round(seen.height * scale, 2),
        "tokens": tokens,
        "edges": " ".join(f"M{a:g} {b:g}L{c:g} {d:g}" for (a, b), (c, d) in outline(boxes[panel.super_activators])),
        "dots": ((inside[:, :2] + inside[:, 2:]) / 2).round(2).tolist(),
        "dot": round(min(max(0.12 * width, 2.0), 9.0), 2),
    }


def _cells(panel: Panel) -> list[str]:
    """The row and column of every patch, from 1."""
    rows, columns = (np.unique(panel.regions[:, side], return_inverse=True)[1] + 1 for side in (0, 1))
    return [f"row {row}, column {column}" for row, column in zip(rows, columns, strict=True)]


def _text(panel: Panel) -> dict[str, Any]:
    """What the template draws of a text: pieces in order, each with the class of its colour and marks, and what is known of its tokens."""
    pieces, names = panel.pieces, [""] * len(panel.activations)
    for piece in pieces:
        for token in piece.tokens:
            names[token] = f"“{line(piece.text, 40)}”" if panel.sample.text is not None else f"token {token}"
    tokens = list(_tokens(panel, names))
    shown = [
        {
            "text": piece.text,
            "tokens": [tokens[k] for k in piece.tokens],
            "step": max((tokens[k]["step"] for k in piece.tokens), default=0),
        }
        for piece in pieces
    ]
    return {**_said(panel, tokens), "pieces": shown}


def _tokens(panel: Panel, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for token, name in enumerate(names):
        yield {
            "name": name,
            "words": f"{name}: {panel.words(token)}",
            "step": step(float(panel.shares[token])),
            "above": bool(panel.super_activators[token]),
            "inside": bool(panel.truth[token] == 1),
            "activation": number(panel.activations[token]),
            "share": f"{panel.shares[token] + 0.0:.2f}",
            "truth": TRUTH[int(panel.truth[token])],
        }


def _said(panel: Panel, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The words above and below a picture; start: the token that the tabulator key reaches first."""
    first = next((i for i, token in enumerate(tokens) if token["above"]), 0)
    return {"name": panel.name, "heading": panel.heading, "counts": panel.counts, "tokens": tokens, "start": first}
