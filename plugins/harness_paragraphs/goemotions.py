"""GoEmotions (Demszky et al. 2020) as paragraphs: one comment with an emotion among neutral ones, as the paper's augmented set.

The official train/dev/test.tsv feed train/cal/test. Labelled comments are drawn evenly from those with an emotion of the set; neutral
comments (label `neutral` alone) fill. No normalised text stands in two splits.
"""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict

from harness.api import SPLITS, HarnessError, unknown
from harness_paragraphs.authors import read_authors
from harness_paragraphs.compose import Comment, Fillers, Paragraph, once, paragraph_of, shuffled, table
from harness_paragraphs.folders import lines, root_of

FILES = dict(zip(SPLITS, ("train.tsv", "dev.tsv", "test.tsv"), strict=True))
SIZES = dict(zip(SPLITS, (3271, 1082, 1074), strict=True))
"""Paragraphs per split, as in the paper."""
NINETEEN = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "disappointment", "disapproval",
    "disgust", "excitement", "gratitude", "joy", "love", "optimism", "realization", "sadness", "surprise",
)  # fmt: skip
"""The emotions of the paper's augmented set; it evaluates 14 of them."""
WANT = "train.tsv, dev.tsv, test.tsv and emotions.txt of GoEmotions (github.com/google-research/google-research/tree/master/goemotions)"


def load(folder: str | None = None, emotions: int = 19, seed: int = 0, authors: str | None = None) -> DatasetDict:
    """GoEmotions paragraphs with splits train, cal and test.

    folder: the official files; default `$HARNESS_DATA/goemotions`. emotions: 19 (the paper's set) or 27 (all but neutral).
    authors: the authors' published folder instead (paragraph files and word-level labels).
    """
    if authors is not None:
        return read_authors(Path(authors), "emotion")
    if emotions not in (19, 27):
        raise unknown("number of emotions", str(emotions), ("19", "27"), where="data set goemotions")
    root = root_of(folder, "goemotions", WANT)
    names = [row[0].strip() for _, row in lines(root / "emotions.txt", WANT) if row]
    missing = [name for name in (*NINETEEN, "neutral") if name not in names]
    if missing:
        raise HarnessError(f"{root / 'emotions.txt'} lacks {missing[0]!r}; it is {WANT}")
    kept, left = once({split: read(root / FILES[split], names) for split in SPLITS})
    wanted = set(NINETEEN) if emotions == 19 else set(names) - {"neutral"}
    about = f"{left} comments left out whose text stands elsewhere too"
    return DatasetDict({split: table(paragraphs(kept[split], wanted, split, seed), about) for split in SPLITS})


def read(path: Path, names: list[str]) -> list[Comment]:
    """The comments of one file, with the names of their labels."""
    found = []
    for number, row in lines(path, WANT, quoted=False, separator="\t"):
        try:
            text, labels, name = row
            concepts = tuple(names[int(label)] for label in labels.split(","))
        except (ValueError, IndexError) as error:
            raise HarnessError(
                f"line {number} of {path} is not text, label numbers below {len(names)}, id, separated by tabs; it is {WANT}"
            ) from error
        found.append(Comment(name, text.strip(), concepts))
    return found


def paragraphs(comments: list[Comment], wanted: set[str], split: str, seed: int) -> list[Paragraph]:
    """As many as the paper has, each around one labelled comment."""
    labelled = [
        Comment(c.id, c.text, tuple(x for x in c.concepts if x in wanted)) for c in comments if wanted.intersection(c.concepts)
    ]
    if len(labelled) < SIZES[split]:
        raise HarnessError(
            f"{len(labelled)} labelled comments in {split} of data set goemotions; it needs {SIZES[split]}; are the files whole?"
        )
    fillers = Fillers([c for c in comments if c.concepts == ("neutral",)], seed, f"{split} of data set goemotions")
    chosen = shuffled(labelled, seed, "labelled")[: SIZES[split]]
    return [paragraph_of(comment, fillers, seed) for comment in chosen]
