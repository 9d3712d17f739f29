"""A text in the terminal: each token shaded by activation, super-activators underlined. Stored embeddings show places for words."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from harness_pictures.logged import Logged


def print_tokens(logged: Logged, name: str, c: int) -> None:
    """Prints one sample for one concept."""
    spans = logged.tensors["regions"][logged.rows(name)].tolist()
    words = logged.sample(name).text
    shown, at = Text(), 0
    for (start, end), share in zip(spans, logged.shares(name, c), strict=True):
        word = f"[{start}]" if words is None else words[start:end]
        shown.append("" if words is None else words[at:start])
        shown.append(word, style=_style(share))
        at = end
    shown.append("" if words is None else words[at:])
    click.echo(f"{name} · {logged.concepts[c]} · layer {logged.about['layers'][c]}; underlined: super-activators")
    Console().print(shown)


def _style(share: float) -> str:
    """Grey to orange from the median token to the cutoff; underlined and bold from the cutoff on."""
    part = min(max(share, 0.0), 1.0)
    red, green, blue = (round(low + part * (high - low)) for low, high in ((120, 255), (120, 140), (120, 0)))
    return f"rgb({red},{green},{blue})" + (" bold underline" if share >= 1 else "")
