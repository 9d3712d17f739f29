"""Answers on disk, by content: one line of JSON each, appended and flushed a batch at a time.

A killed run leaves at most one torn line, at the end: what is no answer is ignored, and its question is asked again. The key is a hash of
everything that makes an answer: model, revision, dtype, question, image, and the options of generation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .wording import VERSION

if TYPE_CHECKING:
    import PIL.Image

Kind = Literal["logit", "generate"]
Answer = Mapping[str, Any]
"""{"yes": P, "no": P} of a logit question; {"text": what was generated, "cut": whether it was cut at max_tokens} of the other."""


MOST = 1.01
"""The largest probability that rounding may give."""


@dataclass(frozen=True)
class Question:
    """One question about one sample; questions with the same `sample` share its passage or image."""

    key: str
    sample: str
    kind: Kind
    text: str
    image: PIL.Image.Image | None = None


class Asked(Protocol):
    """A model that answers, on this machine or served."""

    identity: Mapping[str, Any]

    def answer(self, questions: list[Question]) -> Iterator[Mapping[str, Answer]]:
        """Key -> answer, a few at a time: what is given is kept, whatever happens next."""
        ...


def key_of(kind: Kind, text: str, image: str | None, options: Mapping[str, Any]) -> str:
    """sha256 of the question and the options; the model is in the file's name."""
    return hashlib.sha256(json.dumps([kind, text, image, options], sort_keys=True).encode()).hexdigest()


def image_hash(image: PIL.Image.Image | None) -> str | None:
    """sha256 of the decoded pixels."""
    if image is None:
        return None
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()


def _sound(answer: Any) -> bool:
    """Whether it is an answer of either kind, with probabilities that are some."""
    if not isinstance(answer, dict):
        return False
    if answer.keys() == {"yes", "no"}:
        return all(isinstance(p, (int, float)) and math.isfinite(p) and 0 <= p <= MOST for p in answer.values())
    return answer.keys() == {"text", "cut"} and isinstance(answer["text"], str) and isinstance(answer["cut"], bool)


class Answers:
    """The answers of one model in one file, all of them in memory."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.about = {"answers": VERSION, **identity}
        name = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / "answers" / f"{name}.jsonl"
        self._known = dict(self._read())

    def _read(self) -> Iterator[tuple[str, Answer]]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    read = json.loads(line)
                except (ValueError, RecursionError):  # torn by a kill; asked again
                    continue
                if isinstance(read, dict) and isinstance(read.get("key"), str) and _sound(read.get("answer")):
                    yield read["key"], read["answer"]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Answer:
        return self._known[key]

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Appends in one write, and waits until the disk has it."""
        lines = "".join(json.dumps({"key": key, "answer": answer}, allow_nan=False) + "\n" for key, answer in answers.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() == 0:
                lines = json.dumps({"about": self.about}) + "\n" + lines
            else:
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else "\n" + lines
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self._known.update(answers)
