"""The words of a question, and what counts as an answer. No model here.

The wording is the paper's in structure (method section 6.1; its code is paraphrased there, not quoted). We put the sample first and the
concept last, so that all concepts of a sample share everything up to the concept's name; `order=paper` puts the instruction before
a passage, as the paper does. Only what a model generated is ever parsed, never the prompt: a sample is data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

VERSION = 1
"""Part of the key of every stored answer's file: raise it where a stored answer would mean something else."""
SCALE = 1000
MARK = re.compile(r"final\s+answer\**\s*(?:is\b)?\s*[:\-–]*", re.IGNORECASE)
CHOOSE = "If unsure of the answer, try to choose the best option."


def yes_no_question(passage: str | None, concept: str, concepts: Sequence[str], generate: bool, paper_order: bool) -> str:
    """The user's text; passage None = an image, which goes before it."""
    what = "image" if passage is None else "passage"
    if generate:
        among = f"may contain concepts from the list [{', '.join(concepts)}]"
        rule = f"Examine it and then output just the word 'Yes' if the {what} contains {concept}, otherwise 'No' after 'FINAL ANSWER:'."
        kind = "an image" if passage is None else "a text passage"
        place = "" if passage is None else "following " if paper_order else "above "
        order = f"The {place}input is {kind} which {among}."
        return _with(passage, f"{order} {rule} {CHOOSE}", paper_order)
    return _with(passage, f"Answer with one word, Yes or No. Does the {what} contain the concept {concept}?", paper_order)


def where_question(passage: str | None, concept: str, paper_order: bool) -> str:
    """The user's text that asks for one box in an image, or for exact words of a passage."""
    if passage is None:
        corners = f"in whole numbers from 0 to {SCALE}: (0, 0) is the top left corner of the image, ({SCALE}, {SCALE}) the bottom right"
        asked = f"Output one bounding box [x1, y1, x2, y2] {corners}, after 'FINAL ANSWER:', or None. Put it around {concept}."
        return asked
    asked = "Output a comma-separated list of exact words of the passage, after 'FINAL ANSWER:', or None."
    return _with(passage, f"{asked} List the words that express {concept}.", paper_order)


def _with(passage: str | None, instruction: str, paper_order: bool) -> str:
    if passage is None:
        return instruction
    parts = (instruction, f"Passage:\n{passage}") if paper_order else (f"Passage:\n{passage}", instruction)
    return "\n\n".join(parts)


def answered(generated: str) -> str:
    """What follows the last "final answer", or everything where there is none."""
    return MARK.split(generated)[-1]


def yes_or_no(generated: str) -> bool | None:
    """True or False for exactly one of the whole words yes and no, in any case; None for both or neither."""
    words = {word.lower() for word in re.findall(r"\b(?:yes|no)\b", answered(generated), re.IGNORECASE)}
    return "yes" in words if len(words) == 1 else None


def paper_yes(generated: str) -> bool:
    """The paper's rule: whether "Yes" is somewhere in the answer; anything else is a no."""
    return "Yes" in answered(generated)


class Box(NamedTuple):
    """Corners in pixels of the image, x2 and y2 exclusive."""

    x1: int
    y1: int
    x2: int
    y2: int


def none(generated: str) -> bool:
    """Whether the answer is the word None and nothing else."""
    return answered(generated).strip(" \t\r\n.*\"'`[]()").lower() == "none"


def box(generated: str, width: int, height: int) -> Box | None:
    """The one box of an answer, from 0..1000 to pixels; None where there is not exactly one, or it is empty or outside."""
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    found = re.findall(rf"\[{','.join([number] * 4)}\]", answered(generated))
    if len(found) != 1:
        return None
    x1, y1, x2, y2 = map(float, found[0])
    if not (x1 < x2 <= SCALE and y1 < y2 <= SCALE):
        return None
    left, top = int(x1 * width / SCALE), int(y1 * height / SCALE)
    right, bottom = -int(-x2 * width // SCALE), -int(-y2 * height // SCALE)
    return Box(left, top, right, bottom)


class Words(NamedTuple):
    """Character ranges of the words that are in the passage, every place of each; and the words that are not in it."""

    spans: tuple[tuple[int, int], ...]
    strange: tuple[str, ...]


def words(generated: str, passage: str) -> Words | None:
    """The answer's comma-separated words as they stand in the passage, whole words, case as written; None where none does."""
    named = [word.strip(" \t\r\n.*\"'`[]()“”‘’") for word in answered(generated).split(",")]
    found: dict[tuple[int, int], None] = {}
    strange = []
    for word in (word for word in named if word):
        places = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", passage)]
        found.update(dict.fromkeys(places))
        strange += [] if places else [word]
    return Words(tuple(sorted(found)), tuple(strange)) if found else None
