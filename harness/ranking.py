"""Who is better than whom: paired comparisons of results on the same test samples and concepts, and ranks that admit ties.

A rank is an interval: a method can stand no higher than the number of methods that beat it allows, and no lower than the number
it beats. Beating is a paired difference (`statistics.difference`) whose p, Holm-corrected over all pairs of the table, is at most 0.05.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from harness.errors import HarnessError
from harness.recompute import Evidence, replicates
from harness.statistics import ALPHA, Difference, Floats, difference, holm, sample_weights

REPLICATES, SEED = 1000, 0


class Compared(NamedTuple):
    """A minus B: over all concepts, and each concept's own (samples alone; NaN where either has no value)."""

    overall: Difference
    concepts: dict[str, Difference]


class Standing(NamedTuple):
    """The ranks a method may have, 1 = best."""

    best: int
    worst: int


class Pair(NamedTuple):
    """Results a minus b, by their places among those ranked, and p corrected for all pairs."""

    a: int
    b: int
    difference: Difference
    p: float


class Ranking(NamedTuple):
    """A standing per result, and the median over pairs of the smallest true difference that would be found 8 times in 10."""

    standings: list[Standing]
    detectable: float
    pairs: list[Pair]


class _Scored(NamedTuple):
    """A metric of one result: values [C], and replicates [B, C] under weightings that all results share."""

    values: Floats
    again: Floats


class _Shared:
    """The weightings of the test samples and concepts that results have in common."""

    def __init__(self, first: Evidence, average: str, seed: int = SEED) -> None:
        self.first, self.ids = first, sorted(first.ids)
        self.weights = sample_weights(len(first.ids), REPLICATES, seed)  # of the samples in the order of their ids
        place = {name: i for i, name in enumerate(first.ids)}
        self.labels = first.labels[[place[name] for name in self.ids]]
        self.positives = self.labels.sum(0) if average == "weighted" else None
        self.drawn = self.weights @ self.labels if average == "weighted" else None

    def scored(self, result: Evidence, metric: str) -> _Scored:
        """Raises where the result is of other samples, concepts or labels, or its files do not give the metric."""
        order = self._order(result)
        weights = np.empty_like(self.weights)
        weights[:, order] = self.weights
        found = [replicates(result, metric, "chosen", w) for w in (np.ones((1, len(order))), weights)]
        if found[0] is None or found[1] is None:
            raise HarnessError(f"the files of {result.folder} do not give metric {metric!r} per sample; compare another metric")
        return _Scored(found[0][0], found[1])

    def _order(self, result: Evidence) -> list[int]:
        """Where the samples, by id, stand in a result."""
        place = {name: i for i, name in enumerate(result.ids)}
        same = result.concepts == self.first.concepts and place.keys() == set(self.ids)
        order = [place[name] for name in self.ids] if same else []
        if not same or not np.array_equal(result.labels[order], self.labels):
            raise HarnessError(
                f"{result.folder} and {self.first.folder} are not of the same test samples, concepts and labels; "
                "differences are paired: run both on the same task, with the same --limit"
            )
        return order

    def difference(self, a: _Scored, b: _Scored) -> Difference:
        """Over all concepts."""
        return difference(a.values - b.values, a.again - b.again, self.positives, self.drawn, len(self.first.ids))


def compare(a: Evidence, b: Evidence, metric: str, average: str) -> Compared:
    """A minus B of a metric, averaged `macro` or `weighted` by positives."""
    shared = _Shared(a, average)
    one, other = shared.scored(a, metric), shared.scored(b, metric)
    alone = {
        concept: difference(
            one.values[c, None] - other.values[c, None], (one.again - other.again)[:, [c]], None, None, len(a.ids)
        )
        for c, concept in enumerate(a.concepts)
    }
    return Compared(shared.difference(one, other), alone)


def rank(results: Sequence[Evidence], metric: str, average: str, higher_is_better: bool) -> Ranking:
    """The standings of results that may be compared, in their order."""
    shared = _Shared(results[0], average)
    scored = [shared.scored(result, metric) for result in results]
    pairs = list(combinations(range(len(results)), 2))
    found = [shared.difference(scored[i], scored[j]) for i, j in pairs]
    sign = 1 if higher_is_better else -1
    beats = np.zeros((len(results), len(results)), dtype=bool)
    corrected = holm(np.array([one.p for one in found])).tolist()
    compared = [Pair(i, j, one, p) for (i, j), one, p in zip(pairs, found, corrected, strict=True)]
    for pair in compared:
        if pair.p <= ALPHA:
            beats[(pair.a, pair.b) if sign * pair.difference.value > 0 else (pair.b, pair.a)] = True
    standings = [Standing(1 + int(beats[:, i].sum()), len(results) - int(beats[i].sum())) for i in range(len(results))]
    sizes = [one.detectable for one in found if np.isfinite(one.detectable)]
    return Ranking(standings, float(np.median(sizes)) if sizes else float("nan"), compared)
