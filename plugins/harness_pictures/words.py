"""A text in the terminal: each token shaded by activation, super-activators underlined. Stored embeddings show places for words."""

from __future__ import annotations

import click
from rich.console import Console
from rich.text import Text

from harness_pictures.logged import Logged


def print_tokens(logged: Logged, name: str, c: int) -> None:
    """Prints one sample for one concept."""
    scores = logged.tensors["activations"][logged.rows(name), c].tolist()
    spans = logged.tensors["regions"][logged.rows(name)].tolist()
    words, cutoff = logged.sample(name).text, logged.cutoff(c)
    shown, at = Text(), 0
    for (start, end), score in zip(spans, scores, strict=True):
        word = f"[{start}]" if words is None else words[start:end]
        shown.append("" if words is None else words[at:start])
        shown.append(word, style=_style(score, cutoff))
        at = end
    click.echo(
        f"{name} · {logged.concepts[c]} · layer {logged.about['layers'][c]} · cutoff {cutoff:.3g}; underlined: super-activators"
    )
    Console().print(shown)


def _style(score: float, cutoff: float) -> str:
    """Grey to orange with score / cutoff; underlined and bold from the cutoff on."""
    share = min(max(score / cutoff, 0.0), 1.0) if cutoff > 0 else float(score >= cutoff)
    red, green, blue = (round(low + share * (high - low)) for low, high in ((120, 255), (120, 140), (120, 0)))
    return f"rgb({red},{green},{blue})" + (" bold underline" if score >= cutoff else "")
