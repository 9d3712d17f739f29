"""The data set `sarcasm`: synthetic paragraphs from a seeded grammar, or the authors' published folder.

The paper's Sarcasm set (1,446 paragraphs) is on its authors' drive. With no data at all the synthetic set runs; it is called
synthetic wherever it is named, and says nothing about sarcasm that people wrote.
"""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict

from harness.api import SPLITS, HarnessError
from harness_paragraphs.authors import read_authors
from harness_paragraphs.compose import Fillers, Paragraph, normalised, table
from harness_paragraphs.grammar import neutral, paragraph, sentences

SHARES = dict(zip(SPLITS, (0.6, 0.2, 0.2), strict=True))


def load(authors: str | None = None, paragraphs: int = 400, seed: int = 0) -> DatasetDict:
    """Paragraphs with the concept `sarcasm` and splits train, cal and test.

    authors: the authors' published folder (paragraph files and word-level labels). Without it: `paragraphs` synthetic ones, 60/20/20;
    no remark, event or neutral sentence stands in two splits.
    """
    if authors is not None:
        return read_authors(Path(authors), "sarcasm")
    if not isinstance(paragraphs, int) or not 20 <= paragraphs <= 500:
        raise HarnessError(f"paragraphs is {paragraphs!r} in data set sarcasm; a whole number from 20 to 500 is allowed")
    seen: set[str] = set()
    made: dict[str, list[Paragraph]] = {}
    for split in SPLITS:
        spare = [c for c in neutral(split, seed) if normalised(c.text) not in seen]
        seen |= {normalised(c.text) for c in spare}
        made[split] = _compose(
            split, round(paragraphs * SHARES[split]), Fillers(spare, seed, f"{split} of data set sarcasm"), seed, seen
        )
    return DatasetDict({split: table(rows, "synthetic, from a grammar") for split, rows in made.items()})


def _compose(split: str, count: int, fillers: Fillers, seed: int, seen: set[str]) -> list[Paragraph]:
    """The first `count` draws whose own two sentences are new in every split."""
    found: list[Paragraph] = []
    attempt = 0
    while len(found) < count:
        happened, said = sentences(f"{split}-{attempt:04d}", len(found), seed)
        attempt += 1
        own = {normalised(happened), normalised(said.text)}
        if not own & seen:
            seen |= own
            found.append(paragraph(happened, said, fillers, seed))
    return found
