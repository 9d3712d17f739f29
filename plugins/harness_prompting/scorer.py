"""The scorer `prompt`: a question per (sample, concept), its answer from disk or from the model, and where the concept is.

answers=logit: P(yes) - P(no) of the first token of the answer, which gives a score, a curve, and a cutoff calibrated on cal.
answers=generate: the paper's way; greedy, and the generated text is parsed. An answer that is neither yes nor no is no answer (NaN).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Literal

import numpy as np

from harness.api import HarnessError, Price, Sample, Setup, unknown

from . import wording
from .answers import Answer, Answers, Asked, Kind, Question, image_hash, key_of

SMALLEST = 28
"""Pixels of an image's shorter side, at least, as in the paper's code: some processors take nothing smaller."""
CHOICES = {"answers": ("logit", "generate"), "parse": ("strict", "paper"), "order": ("sample", "paper")}


class Prompt:
    """Asks a model; `prompt:<model>`, model = smollm2, hf:<id or folder>, ... (see `harness list models`).

    answers: logit or generate · parse: strict, or paper ("Yes" is a yes, all else a no) · order: sample (the sample first) or paper ·
    locate: ask where, too · max_tokens: of a generated answer · batch_size: questions per forward pass · server: base URL of an
    OpenAI-compatible server, the argument then being the model's name there · parallel, timeout (seconds), retries: of its requests.
    """

    def __init__(
        self,
        argument: str | None = None,
        *,
        answers: str = "logit",
        parse: str = "strict",
        order: str = "sample",
        locate: bool = False,
        max_tokens: int = 128,
        batch_size: int = 16,
        server: str = "",
        parallel: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        for name, value in (("answers", answers), ("parse", parse), ("order", order)):
            if value not in CHOICES[name]:
                raise unknown(f"value of {name}", str(value), CHOICES[name], "scorer 'prompt'")
        for name, number in (("max_tokens", max_tokens), ("batch_size", batch_size), ("parallel", parallel)):
            if number < 1:
                raise HarnessError(f"bad value {number} for option {name!r} of scorer 'prompt'; allowed: at least 1")
        self.argument, self.server = argument, server
        self.answers, self.parse, self.order = answers, parse, order
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.parallel, self.timeout, self.retries = parallel, timeout, retries
        self.locate: Callable[..., list[list[dict[str, Any]]]] | None = self._locate if locate else None
        self._locates = locate
        self._asked: Asked | None = None
        self._kept: Answers | None = None
        self._silent: dict[tuple[str, str], bool] = {}
        self._where: dict[tuple[str, str], str] = {}
        self._strange = 0

    @property
    def calibrate_on(self) -> Literal["samples", "fixed"]:
        """A number is calibrated; a yes or no is not."""
        return "samples" if self.answers == "logit" else "fixed"

    @property
    def only_test(self) -> bool:
        """Yes and no need no cal."""
        return self.answers == "generate"

    def open(self, setup: Setup, modality: str) -> Prompt:
        """With its model found, not loaded: that happens at the first question that was never answered."""
        if self.argument is None:
            raise HarnessError(
                "prompt asks a model, and none is named; write prompt:smollm2, prompt:hf:<model id or folder>, or "
                "prompt:<name>:server=http://host:port/v1; see `harness list models`"
            )
        if modality == "tokens":
            raise HarnessError(
                "prompt shows a model the samples themselves; this task has stored embeddings alone; leave it out"
            )
        opened = copy(self)
        opened.locate = opened._locate if self._locates else None
        opened._silent, opened._where = {}, {}
        opened._asked = self._model(setup, modality)
        opened._kept = Answers(setup.cache_dir.expanduser(), opened._asked.identity)
        return opened

    def _model(self, setup: Setup, modality: str) -> Asked:
        if self.server:
            from .server import Server

            return Server(self.server, str(self.argument), self.max_tokens, self.parallel, self.timeout, self.retries)
        from .local import Local

        if setup.weights is None:
            raise HarnessError("prompt finds its model within a run; use it in `harness run`")
        return Local(setup.weights(str(self.argument)), setup, modality, self.max_tokens, self.batch_size)

    def price(self, samples: Iterable[Sample], concepts: Sequence[str]) -> Price:
        """Questions, and how many of them an earlier run has answered."""
        kept, count, answered = self._opened()[1], 0, 0
        for sample in samples:
            keys = [question.key for question in self._questions(sample, concepts)]
            count += len(keys)
            answered += sum(key in kept for key in keys)
        return Price(count, answered, count if self._locates else 0)

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray[Any, Any]:
        """[S, C] float64: P(yes) - P(no) in [-1, 1]; or 1, 0, and NaN for no answer."""
        questions = [question for sample in samples for question in self._questions(sample, concepts)]
        answers = self._ask(questions)
        names = [(sample.id, concept) for sample in samples for concept in concepts]
        read = [self._read(name, answer) for name, answer in zip(names, answers, strict=True)]
        return np.array(read, dtype=np.float64).reshape(len(samples), len(concepts))

    def _read(self, name: tuple[str, str], answer: Answer) -> float:
        if self.answers == "logit":
            return float(answer["yes"]) - float(answer["no"])
        found = wording.paper_yes(answer["text"]) if self.parse == "paper" else wording.yes_or_no(answer["text"])
        if found is None:
            self._silent[name] = bool(answer.get("cut"))
            return float("nan")
        return float(found)

    def _locate(
        self, samples: Sequence[Sample], detected: np.ndarray[Any, Any], concepts: Sequence[str]
    ) -> list[list[dict[str, Any]]]:
        """Per sample, the regions of its detected concepts in the data set's own format; an unparsable answer marks nothing."""
        wanted = [(s, concept) for s in range(len(samples)) for c, concept in enumerate(concepts) if detected[s, c]]
        paper = self.order == "paper"
        hashes = {s: image_hash(_shown(samples[s])) for s in {s for s, _ in wanted}}
        questions = [
            self._question("generate", wording.where_question(samples[s].text, concept, paper), samples[s], hashes[s])
            for s, concept in wanted
        ]
        regions: list[list[dict[str, Any]]] = [[] for _ in samples]
        for (s, concept), answer in zip(wanted, self._ask(questions), strict=True):
            regions[s] += self._marks(samples[s], concept, answer["text"])
        return regions

    def _marks(self, sample: Sample, concept: str, generated: str) -> list[dict[str, Any]]:
        name = (sample.id, concept)
        if wording.none(generated):
            self._where[name] = "answered None"
            return []
        if sample.text is not None:
            found = wording.words(generated, sample.text)
            self._where[name] = "unparsable" if found is None else "located"
            if found is None:
                return []
            self._strange += len(found.strange)
            return [{"concept": concept, "start": start, "end": end} for start, end in found.spans]
        assert sample.image is not None  # noqa: S101 - a sample is a text or an image
        box = wording.box(generated, *sample.image.size)
        self._where[name] = "unparsable" if box is None else "located"
        return [] if box is None else [{"concept": concept, "rle": _box_mask(box, *sample.image.size)}]

    @property
    def notes(self) -> Mapping[str, Any]:
        """What was asked of whom, and what was no answer."""
        asked, _ = self._opened()
        said: dict[str, Any] = {**asked.identity, "answers": self.answers, "order": self.order, "wording": wording.VERSION}
        if self.answers == "generate":
            per_concept = Counter(concept for _, concept in self._silent)
            said.update(parse=self.parse, max_tokens=self.max_tokens, unparsable=dict(per_concept))
            said["unparsable, cut at max_tokens"] = sum(self._silent.values())
        if self._locates:
            said["localization"] = {**Counter(self._where.values()), "words not in the passage": self._strange}
        return {"prompt": {**said, **getattr(asked, "notes", {})}}

    def _opened(self) -> tuple[Asked, Answers]:
        if self._asked is None or self._kept is None:
            raise HarnessError("prompt is not opened; it is used in `harness run`")
        return self._asked, self._kept

    def _questions(self, sample: Sample, concepts: Sequence[str]) -> list[Question]:
        kind: Kind = "generate" if self.answers == "generate" else "logit"
        shown = image_hash(_shown(sample))
        asked = (sample.text, tuple(concepts), kind == "generate", self.order == "paper")
        return [
            self._question(kind, wording.yes_no_question(asked[0], concept, *asked[1:]), sample, shown) for concept in concepts
        ]

    def _question(self, kind: Kind, text: str, sample: Sample, shown: str | None) -> Question:
        options = {"max_tokens": self.max_tokens} if kind == "generate" else {}
        return Question(key_of(kind, text, shown, options), sample.id, kind, text, _shown(sample))

    def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        asked, kept = self._opened()
        missing = list({question.key: question for question in questions if question.key not in kept}.values())
        if missing:
            for answers in asked.answer(missing):
                kept.add(answers)
        return [kept[question.key] for question in questions]


def _shown(sample: Sample) -> Any:
    """The image as the model gets it: enlarged where its shorter side is below 28 pixels."""
    image = sample.image
    if image is None or min(image.size) >= SMALLEST:
        return image
    factor = SMALLEST / min(image.size)
    return image.resize((max(SMALLEST, round(image.width * factor)), max(SMALLEST, round(image.height * factor))))


def _box_mask(box: wording.Box, width: int, height: int) -> dict[str, Any]:
    """The box as COCO run lengths: the mask of a data set."""
    from pycocotools import mask

    pixels = np.zeros((height, width), np.uint8, order="F")
    pixels[box.y1 : box.y2, box.x1 : box.x2] = 1
    made = mask.encode(pixels)
    return {"size": list(made["size"]), "counts": made["counts"].decode("ascii")}
