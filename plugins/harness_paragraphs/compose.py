"""Paragraphs from comments: one labelled comment at a drawn place among fillers; its characters are the span of its concepts.

Every draw is a hash of the seed and an id, so that it depends on no library's generator and on no other paragraph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset, Features, List, Value

from harness.api import HarnessError

FEATURES = Features(
    {
        "id": Value("string"),
        "text": Value("string"),
        "concepts": List(Value("string")),
        "regions": List({"concept": Value("string"), "start": Value("int32"), "end": Value("int32")}),
    }
)
SHORTEST, LONGEST = 3, 6
"""Comments of a paragraph, the labelled one among them."""


@dataclass(frozen=True)
class Comment:
    """A text with the concepts it carries."""

    id: str
    text: str
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paragraph:
    """A composed text; spans: (concept, start, end) characters, None where nothing is known of them."""

    id: str
    text: str
    concepts: tuple[str, ...]
    spans: tuple[tuple[str, int, int], ...] | None


def draw(seed: int, *words: str) -> int:
    """A number of 56 bits that depends on the seed and the words alone."""
    return int.from_bytes(hashlib.sha256(":".join([str(seed), *words]).encode()).digest()[:7], "big")


def shuffled(comments: Iterable[Comment], seed: int, what: str) -> list[Comment]:
    """The comments in an order of their own for every seed and use."""
    return sorted(comments, key=lambda comment: (draw(seed, what, comment.id), comment.id))


def normalised(text: str) -> str:
    """What two texts share that differ in case or space alone."""
    return " ".join(text.casefold().split())


class Fillers:
    """The fillers of a split, dealt round and round in a seeded order: each is used as often as any other, up to one."""

    def __init__(self, comments: Sequence[Comment], seed: int, where: str) -> None:
        if len(comments) < LONGEST:
            raise HarnessError(
                f"{len(comments)} filler comments in {where}; a paragraph needs {LONGEST - 1} others; give it more data"
            )
        self._comments, self._next = shuffled(comments, seed, "fillers"), 0

    def deal(self, count: int) -> list[Comment]:
        """The next `count` fillers, all different."""
        places = range(self._next, self._next + count)
        self._next += count
        return [self._comments[place % len(self._comments)] for place in places]


def compose(target: Comment, fillers: Sequence[Comment], place: int) -> Paragraph:
    """The target at `place` among the fillers, joined by spaces; its spans are its own characters."""
    texts = [filler.text for filler in fillers]
    texts.insert(place, target.text)
    start = sum(len(text) + 1 for text in texts[:place])
    spans = tuple((concept, start, start + len(target.text)) for concept in target.concepts)
    return Paragraph(target.id, " ".join(texts), target.concepts, spans)


def paragraph_of(target: Comment, fillers: Fillers, seed: int) -> Paragraph:
    """The target among 2 to 5 of the fillers, at a drawn place."""
    count = SHORTEST - 1 + draw(seed, "length", target.id) % (LONGEST - SHORTEST + 1)
    return compose(target, fillers.deal(count), draw(seed, "place", target.id) % (count + 1))


def once(splits: Mapping[str, Sequence[Comment]]) -> tuple[dict[str, list[Comment]], int]:
    """(each normalised text once, in the last split that has it: test before cal before train; how many comments were left out)."""
    seen: set[str] = set()
    kept: dict[str, list[Comment]] = {}
    for name in reversed(list(splits)):
        kept[name] = []
        for comment in splits[name]:
            key = normalised(comment.text)
            if key and key not in seen:
                seen.add(key)
                kept[name].append(comment)
    left = sum(len(comments) for comments in splits.values()) - sum(len(comments) for comments in kept.values())
    return {name: kept[name] for name in splits}, left


def table(paragraphs: Sequence[Paragraph], about: str) -> Dataset:
    """The paragraphs as the harness reads them; `about` says what was left out."""
    rows = {
        "id": [p.id for p in paragraphs],
        "text": [p.text for p in paragraphs],
        "concepts": [list(p.concepts) for p in paragraphs],
        "regions": [
            None if p.spans is None else [{"concept": c, "start": start, "end": end} for c, start, end in p.spans]
            for p in paragraphs
        ],
    }
    made = Dataset.from_dict(rows, features=FEATURES)
    made.info.description = about
    return made
