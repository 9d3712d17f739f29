"""A text as pieces to show in order: each what one token adds to it, or what no token covers.

Tokens may share characters (the bytes of an emoji) or leave some out (spaces, a text longer than the model reads). Every character is
shown once: by the first token that covers it. A token with no character of its own joins the piece before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness_pictures.marks import visible

LONGEST = 400
"""Characters of a piece that are shown; more lose their middle."""


@dataclass(frozen=True)
class Piece:
    """text: harmless to print. tokens: places in the sample, empty where no token covers the text."""

    text: str
    tokens: tuple[int, ...] = ()


def of_text(text: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    """The pieces of a text, [start, end) in characters; spaces around a token's text belong to no token."""
    found: list[Piece] = []
    at = 0
    for token, (start, end) in sorted(enumerate(spans), key=lambda item: item[1][0]):
        start, end = max(min(start, len(text)), at), min(end, len(text))
        own = text[start:end]
        if not own:
            _join(found, token)
            continue
        words = own.strip()
        lead = len(own) - len(own.lstrip()) if words else 0
        found += _gap(text[at : start + lead])
        found.append(Piece(_shown(words), (token,)) if words else Piece(_blank(own), (token,)))
        at = start + lead + len(words) if words else end
    return found + _gap(text[at:])


def of_places(n: int) -> list[Piece]:
    """The pieces of a sample without text: the number of every token."""
    pieces = [Piece(" ")] * max(2 * n - 1, 0)
    pieces[::2] = [Piece(str(token), (token,)) for token in range(n)]
    return pieces


def _join(found: list[Piece], token: int) -> None:
    """Adds the token to the last piece that has one; where there is none yet, it is a piece of its own."""
    for i in range(len(found) - 1, -1, -1):
        if found[i].tokens:
            found[i] = Piece(found[i].text, (*found[i].tokens, token))
            return
    found.append(Piece("∅", (token,)))


def _gap(text: str) -> list[Piece]:
    return [Piece(_shown(text))] if text else []


def _shown(text: str) -> str:
    if len(text) > LONGEST:
        left_out = len(text) - LONGEST * 3 // 4
        text = f"{text[: LONGEST // 2]} … [{left_out:,} characters] … {text[-(LONGEST // 4) :]}"
    return visible(text)


def _blank(text: str) -> str:
    """A token of nothing but space, as signs; a line still ends where it ends."""
    signs = "".join({"\n": "↵", "\t": "⇥"}.get(character, "␣") for character in visible(text))
    return _shown(signs) + "\n" * min(text.count("\n"), 2)
