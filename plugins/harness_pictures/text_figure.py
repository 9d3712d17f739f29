"""Texts: words in lines as a page has them, each token on its colour, super-activators boxed, tokens in the concept on a dotted line.

Of stored embeddings the tokens' places stand for words. Lines of a right-to-left text run from the right, foreign words inside them in
their own order; the letters of one token are shaped by matplotlib (from 3.11 on), never across tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from harness_pictures.logged import Panel
from harness_pictures.marks import PAPER, ink, step
from harness_pictures.pieces import Piece
from harness_pictures.sheet import BLUE, DARK, DOTS, MARGIN, SOFT, Font, Sheet

WIDTH = 468.0
SIZE = 9.0
LINE = 17.0


class Atom(NamedTuple):
    """What stands on one line in one go: a part of a piece. piece: its number where tokens cover it, else None."""

    text: str
    width: float
    piece: int | None

    @property
    def blank(self) -> bool:
        """Whether a line may end here."""
        return self.piece is None and self.text == " "


def draw(panels: Sequence[Panel]) -> Sheet:
    """The panels one below the other, and the legend."""
    pieces = [panel.pieces for panel in panels]
    words = "".join(p.name + p.heading for p in panels) + "".join(piece.text for own in pieces for piece in own)
    sheet, y = Sheet(WIDTH, Font(words)), MARGIN
    for panel, own in zip(panels, pieces, strict=True):
        top = sheet.head(panel, MARGIN, y, WIDTH - 2 * MARGIN)
        sheet.text(MARGIN, top + 5, sheet.font.fit(panel.counts, 7, WIDTH - 2 * MARGIN), 7, SOFT)
        y = _body(sheet, panel, own, top + 10) + 12
    return _legend(sheet, panels, y)


def _legend(sheet: Sheet, panels: Sequence[Panel], y: float) -> Sheet:
    sheet.lines([[(MARGIN, y), (WIDTH - MARGIN, y)]], colors="#c8cad0", linewidths=0.6)
    y += 10
    sheet.bar(panels, MARGIN, y, PAPER)
    x = MARGIN + 216
    boxed, dotted = sheet.key(x, y - 1, any((panel.truth >= 0).any() for panel in panels))
    sheet.boxes([(x, boxed, x + 10, boxed + 10)], facecolors=PAPER[11], edgecolors=DARK, linewidths=1.1)
    sheet.boxes([(x, dotted, x + 10, dotted + 9)], facecolors=PAPER[4])
    _dotted(sheet, [(x, dotted + 10.5, x + 10)])
    return sheet.close(y + 28 + MARGIN)


def _body(sheet: Sheet, panel: Panel, pieces: Sequence[Piece], y: float) -> float:
    """Draws the tokens; where they end."""
    width = WIDTH - 2 * MARGIN
    right = direction("".join(piece.text for piece in pieces if piece.text)) == "R"
    grounds, colours, boxed, dotted = [], [], [], []
    for atoms in lines(_atoms(sheet.font, pieces, width), width):
        y += LINE
        x = MARGIN + (width - sum(atom.width for atom in atoms) if right else 0)
        placed = ordered(atoms, right)
        for k, atom in enumerate(placed):
            if atom.piece is None:
                sheet.text(x, y, atom.text, SIZE, SOFT)
            else:
                tokens = list(pieces[atom.piece].tokens)
                colour = PAPER[max(step(float(panel.shares[token])) for token in tokens)]
                before, after = (_room(placed[j] if 0 <= j < len(placed) else None) for j in (k - 1, k + 1))
                box = (x - before, y - 9.5, x + atom.width + after, y + 3)
                grounds.append(box)
                colours.append(colour)
                boxed += [box] if panel.super_activators[tokens].any() else []
                dotted += [(x + 0.8, y + 4.6, x + atom.width - 0.8)] if (panel.truth[tokens] == 1).any() else []
                sheet.text(x, y, atom.text, SIZE, ink(colour))
            x += atom.width
    sheet.boxes(grounds, facecolors=colours, edgecolors="#d9dae0", linewidths=0.3)
    sheet.boxes(boxed, edgecolors=DARK, linewidths=1.1, zorder=2.5)
    _dotted(sheet, dotted)
    return y if pieces else _nothing(sheet, y)


def _room(neighbour: Atom | None) -> float:
    """How far a token's box reaches beyond its word, in points: not as far as the next token's."""
    return 0.6 if neighbour is None or neighbour.blank else -0.3


def _nothing(sheet: Sheet, y: float) -> float:
    sheet.text(MARGIN, y + LINE, "no tokens", SIZE, SOFT)
    return y + LINE


def _dotted(sheet: Sheet, parts: Sequence[tuple[float, float, float]]) -> None:
    lines = [[(left, y), (right, y)] for left, y, right in parts]
    sheet.lines(lines, colors=BLUE, linewidths=1.5, linestyles=[DOTS], capstyle="round", zorder=2.6)


def _atoms(font: Font, pieces: Sequence[Piece], width: float) -> Iterator[Atom]:
    """The pieces cut at spaces and line ends, and where one alone is wider than a line."""
    for i, piece in enumerate(pieces):
        for part in re.findall(r"\n|[^\S\n]+|\S+", piece.text) if not piece.tokens else re.findall(r"\n|[^\n]+", piece.text):
            if part == "\n":
                yield Atom(part, 0.0, None)
            elif not piece.tokens and part.isspace():
                yield Atom(" ", font.width(" ", SIZE), None)
            else:
                yield from (Atom(cut, font.width(cut, SIZE), i if piece.tokens else None) for cut in _cut(font, part, width))


def _cut(font: Font, text: str, width: float) -> Iterator[str]:
    while font.width(text, SIZE) > width:
        n = len(text)
        while n > 1 and font.width(text[:n], SIZE) > width:
            n -= max(n // 10, 1)
        yield text[:n]
        text = text[n:]
    if text:
        yield text


def lines(atoms: Iterator[Atom], width: float) -> Iterator[list[Atom]]:
    """Lines no wider than `width`: what is not parted by a space stays together where it can."""
    now: list[Atom] = []
    filled = 0.0
    for (blank, end), group in groupby(atoms, key=lambda atom: (atom.blank, atom.text == "\n" and atom.piece is None)):
        word = list(group)
        long = sum(atom.width for atom in word)
        if end:
            yield from [now, []][: len(word)]
            now, filled = [], 0.0
            continue
        if blank and not now:
            continue
        if filled + long > width and now:
            yield now
            now, filled = [], 0.0
            if blank:
                continue
        for atom in word:
            if filled + atom.width > width and now:
                yield now
                now, filled = [], 0.0
            now.append(atom)
            filled += atom.width
    if now:
        yield now


def direction(text: str) -> str | None:
    """L or R: which way the first letter runs that runs any way."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    return next(({"AL": "R"}.get(kind, kind) for kind in kinds if kind in ("L", "R", "AL")), None)


def ordered(atoms: Sequence[Atom], right: bool) -> list[Atom]:
    """A line's atoms from left to right: right-to-left runs turned round, but for the parts of a number; spaces go with their run."""
    base = "R" if right else "L"
    own = [direction(atom.text) for atom in atoms]
    resolved = [way or _between(own, i, base) for i, way in enumerate(own)]
    runs = [[atoms[i] for i in group] for _, group in groupby(range(len(atoms)), key=resolved.__getitem__)]
    ways = [way for way, _ in groupby(resolved)]
    turned = [_turned(run) if way == "R" else run for way, run in zip(ways, runs, strict=True)]
    return [atom for run in (turned[::-1] if right else turned) for atom in run]


def _turned(run: Sequence[Atom]) -> list[Atom]:
    """The run from right to left; what stands together as a number stays in order."""
    groups = [list(group) for _, group in groupby(enumerate(run), key=lambda item: -1 if _number(item[1]) else item[0])]
    return [atom for group in reversed(groups) for _, atom in group]


def _number(atom: Atom) -> bool:
    return any(unicodedata.bidirectional(character) in ("EN", "AN") for character in atom.text) and not direction(atom.text)


def _between(own: Sequence[str | None], i: int, base: str) -> str:
    """The direction of what has none: that of both sides where they agree."""
    before = next((way for way in reversed(own[:i]) if way), base)
    after = next((way for way in own[i + 1 :] if way), base)
    return before if before == after else base
