"""The data of a result's page: per concept the scores of test with the cutoff, F1 by level and by layer, counts, and its samples.

Everything follows from the result's files (`harness.recompute`), not from `result.json` alone; what does not follow is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.api import Evidence, HarnessError, replicates, scores_of
from harness_site.tokens import Lit, Raw, lit, pieces
from harness_site.words import line, number

BINS = 24
SHOWN = 3
"""Samples per concept and outcome."""
OUTCOMES = ("tp", "fp", "fn")


class Wanted(NamedTuple):
    """A sample to show for a concept: its place in the list `top` of the outcome."""

    concept: int
    outcome: str
    place: int
    sample: int


@dataclass
class Evident:
    """A result's page as data. `concepts`: one mapping each. `samples`: id -> what is shown of it. `spoken`: sentences on what is not there."""

    result: Evidence
    concepts: list[dict[str, Any]]
    samples: dict[str, dict[str, Any]]
    shapes: list[dict[str, Any]]
    spoken: list[str]

    @property
    def data(self) -> dict[str, Any]:
        """For the page's script."""
        return {"concepts": self.concepts, "samples": self.samples, "shapes": self.shapes}


def evident(result: Evidence, shown: int = SHOWN) -> Evident:
    """The page without tokens, texts and pictures, which `Filler` adds; where files are missing, what `result.json` says."""
    try:
        concepts, spoken = list(_concepts(result, shown)), []
    except HarnessError as error:
        concepts, spoken = [], [f"The files of this result do not give more: {line(_harmless(result, error), 200)}."]
    samples = {row[0]: {"id": line(row[0])} for concept in concepts for outcome in OUTCOMES for row in concept["top"][outcome]}
    keys = {name: str(i) for i, name in enumerate(samples)}
    for concept in concepts:
        concept["top"] = {
            kind: [[keys[name], *rest] for name, *rest in concept["top"][kind]] for kind in OUTCOMES if concept["top"][kind]
        }
    return Evident(result, concepts, {keys[name]: {**about, "name": name} for name, about in samples.items()}, [], spoken)


def _harmless(result: Evidence, error: HarnessError) -> str:
    """The error without the folder that the results are in on this machine."""
    return str(error).replace(f"{result.folder}/", "").replace(str(result.folder), "the result")


def _concepts(result: Evidence, shown: int) -> Iterator[dict[str, Any]]:
    labels, (scores, decisions, calibrated) = result.labels, result.at("chosen")
    swept, layers, chosen = result.calibration, result.layers, result.layer
    ones = np.ones((1, len(result.ids)))
    by_layer = np.stack([_needed(replicates(result, "f1", label, ones))[0] for label in layers])
    own = {s.concept: s for s in scores_of(result.read) if s.metric == "f1" and s.layer in ("chosen", None)}
    best = np.where(np.isnan(swept.f1), -1.0, swept.f1)
    for c, name in enumerate(result.concepts):
        place, row, label, found = int(chosen[c]), own.get(name), labels[:, c], decisions[:, c]
        cutoff = result.cutoffs[place, c]
        tp, fp, fn, tn = (int(cell.sum()) for cell in (found & label, found & ~label, ~found & label, ~found & ~label))
        yield {
            "name": line(name),
            "n": int(label.sum()),
            "f1": [number(x) for x in (row.value, row.ci_low, row.ci_high)] if row else [None] * 3,
            "layer": layers[place],
            "level": None if not calibrated[c] else swept.levels[int(best[:, place, c].argmax())],
            "cutoff": number(cutoff),
            "counts": [tp, fp, fn, tn],
            "scores": _histogram(scores[:, c], label, cutoff),
            "levels": [[level, number(swept.f1[p, place, c])] for p, level in enumerate(swept.levels)],
            "layers": [
                [layer, number(best[:, at, c].max()), number(by_layer[at, c])]
                for at, layer in enumerate(layers)
                if layer is not None
            ],
            "top": _top(result.ids, scores[:, c], label, found, shown),
        }


def _needed(found: Any) -> Any:
    assert found is not None  # noqa: S101 - F1 is one of the core's own
    return found


def _histogram(scores: NDArray[np.float64], label: NDArray[np.bool_], cutoff: float) -> dict[str, Any]:
    """Counts of positives and negatives in equal steps from the lowest to the highest score or cutoff; `none`: without a score."""
    known = np.isfinite(scores)
    ends = [*scores[known].tolist(), *([cutoff] if np.isfinite(cutoff) else [])]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    high = high if high > low else low + 1.0
    sides = [np.histogram(scores[known & side], BINS, (low, high))[0].tolist() for side in (label, ~label)]
    return {"low": number(low), "high": number(high), "positive": sides[0], "negative": sides[1], "none": int((~known).sum())}


def _top(
    ids: Sequence[str], scores: NDArray[np.float64], label: NDArray[np.bool_], found: NDArray[np.bool_], shown: int
) -> dict[str, list[list[Any]]]:
    """Outcome -> [[id, score], ...]: the highest-scored detected ones, and the lowest-scored positives that were missed."""
    ranks = np.where(np.isfinite(scores), scores, -np.inf)
    made = {}
    for outcome, where, sign in (("tp", found & label, -1), ("fp", found & ~label, -1), ("fn", ~found & label, 1)):
        places = np.flatnonzero(where)
        order = places[np.argsort(sign * ranks[places], kind="stable")][:shown]
        made[outcome] = [[ids[i], number(scores[i])] for i in order]
    return made


class Filler:
    """Adds tokens, texts and pictures to pages until `room` bytes are used; counts what did not fit."""

    def __init__(self, raw: Raw, room: int) -> None:
        self.raw, self.room, self.left_out = raw, room, 0

    def fill(self, page: Evident) -> None:
        """The first sample of every concept and outcome before the second of any."""
        logged = lit(page.result) if page.concepts else None
        page.spoken += [] if logged or not page.concepts else ["The tokens of this result were not logged (--log-tokens)."]
        wanted = [
            (k, c, outcome)
            for c, concept in enumerate(page.concepts)
            for outcome, rows in concept["top"].items()
            for k in range(len(rows))
        ]
        drawn: dict[tuple[int, str], int] = {}
        for k, c, outcome in sorted(wanted, key=lambda one: (one[0], one[1], OUTCOMES.index(one[2]))):
            row = page.concepts[c]["top"][outcome][k]
            picture = drawn.get((c, outcome), 0) < self.raw.pictures
            self.add(page.samples[row[0]], page.shapes, logged, picture)
            drawn[c, outcome] = drawn.get((c, outcome), 0) + 1
            if logged:
                row.append(self.took(logged.bytes(page.samples[row[0]]["name"], c)))
        if page.concepts and self.raw.why:
            page.spoken.append(self.raw.why)
        if self.left_out:
            page.spoken.append(
                f"To keep the pages small, {self.left_out} texts, pictures and token maps of samples are left out."
            )
        for sample in page.samples.values():
            sample.pop("name")

    def took(self, found: Any) -> Any:
        """What was found, if there is room for it."""
        if found is None:
            return None
        size = len(found) if isinstance(found, str) else len(str(found).encode())
        if size > self.room:
            self.left_out += 1
            return None
        self.room -= size
        return found

    def add(self, sample: dict[str, Any], shapes: list[dict[str, Any]], logged: Lit | None, picture: bool) -> None:
        """Text or picture of a sample, and where its tokens lie."""
        name, known = sample["name"], logged is not None and sample["name"] in logged.place
        if logged is not None and known and "shape" not in sample and "pieces" not in sample:
            self._lay(sample, shapes, logged)
        elif "pieces" not in sample and (found := self.raw.text(name)) is not None:
            self._say(sample, found, [])
        if picture and "picture" not in sample:
            drawn = self.took(self.raw.picture(name, logged.view(name) if logged is not None and known else None))
            sample.update({} if drawn is None else {"picture": drawn})

    def _lay(self, sample: dict[str, Any], shapes: list[dict[str, Any]], logged: Lit) -> None:
        shape = logged.geometry(sample["name"])
        spans = shape.pop("spans", None)
        found = self.raw.text(sample["name"])
        if spans is not None and found is not None:
            self._say(sample, found, spans)
            return
        if shape in shapes:
            sample["shape"] = shapes.index(shape)
        elif self.took(shape) is not None:
            shapes.append(shape)
            sample["shape"] = len(shapes) - 1

    def _say(self, sample: dict[str, Any], found: dict[str, Any], spans: list[list[int]]) -> None:
        said = self.took(pieces(found["text"], spans))
        sample.update({} if said is None else {"pieces": said, "more": found["more"]})
