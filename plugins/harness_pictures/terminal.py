"""A text in the terminal: tokens shaded by activation, super-activators bold and underlined, tokens in the concept between ‹ ›.

Where there is no colour (a pipe, a file), super-activators stand between [ ].
"""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.style import Style
from rich.text import Text

from harness_pictures.logged import Panel
from harness_pictures.pieces import Piece


def show(panels: Sequence[Panel]) -> None:
    """Prints every panel, and once what the marks mean."""
    console = Console(highlight=False)
    plain = console.color_system is None
    for panel in panels:
        click.echo(f"{panel.name} · {panel.heading}\n{panel.counts}")
        console.print(shaded(panel, plain), soft_wrap=plain)
        click.echo()
    signs = "[ ]" if plain else "grey to orange: from the zero of the scale to the cutoff; bold and underlined"
    click.echo(f"{signs}: super-activators, at or above the cutoff; ‹ ›: in the concept (ground truth)")


def shaded(panel: Panel, plain: bool) -> Text:
    """The sample as styled text; plain = without any style, brackets in their place."""
    shown = Text()
    pieces = [piece for piece in panel.pieces if piece.text]
    inside = _inside(panel, pieces)
    for i, piece in enumerate(pieces):
        above = any(panel.super_activators[token] for token in piece.tokens)
        share = max((float(panel.shares[token]) for token in piece.tokens), default=0.0)
        if inside[i] and not (i and inside[i - 1]):
            shown.append("‹")
        shown.append(f"[{piece.text}]" if plain and above else piece.text, _style(share, above) if piece.tokens else "dim")
        if inside[i] and not inside[i + 1]:
            shown.append("›")
    return shown


def _inside(panel: Panel, pieces: Sequence[Piece]) -> list[bool]:
    """Whether each piece, and the space between two of them, is in the concept; one False more at the end."""
    own = [any(panel.truth[token] == 1 for token in piece.tokens) for piece in pieces]
    between = [not piece.tokens and 0 < i < len(own) - 1 and own[i - 1] and own[i + 1] for i, piece in enumerate(pieces)]
    return [a or b for a, b in zip(own, between, strict=True)] + [False]


def _style(share: float, above: bool) -> Style:
    """Grey to orange from the zero of the scale to the cutoff."""
    part = min(max(share, 0.0), 1.0)
    red, green, blue = (round(low + part * (high - low)) for low, high in ((128, 255), (128, 140), (128, 0)))
    return Style(color=f"rgb({red},{green},{blue})", bold=above or None, underline=above or None)
