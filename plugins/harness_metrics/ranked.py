"""Metrics of a ranking: average precision and AUROC, exact, ties as in scikit-learn (equal scores form one step).

Under many weightings of many tokens the ranking is binned into at most 2,048 quantile bins per concept, which moves the ends of an
interval by less than 1/2048 of the ranks; the value itself is always exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.api import Evaluation

BINS = 2048
EXACT = 20_000_000
"""Weightings x items up to which every score is its own step."""


class Steps(NamedTuple):
    """The groups of equal scores that hold a positive, from the highest score down, under B weightings; float64.

    gained, passed [B, G]: the weight of positives, of negatives, in the group; found, other [B, G]: at or above it; positives, negatives
    [B]: of all.
    """

    gained: Tensor
    passed: Tensor
    found: Tensor
    other: Tensor
    positives: Tensor
    negatives: Tensor


def steps(evaluation: Evaluation, weights: Tensor, c: int) -> Steps:
    """The steps of a concept's ranking of known items."""
    known = evaluation.truth[:, c] >= 0
    scores, positive = evaluation.scores[known, c].nan_to_num(nan=-torch.inf), evaluation.truth[known, c] == 1
    lengths = evaluation.offsets.diff()
    sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[known]
    if not len(scores):
        empty = weights.new_zeros(len(weights), 1).double()
        return Steps(empty, empty, empty, empty, empty[:, 0], empty[:, 0])
    order = scores.argsort(descending=True, stable=True)
    ends = torch.cat([scores[order].diff() != 0, torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    if len(weights) == 1 or len(weights) * len(ends) <= EXACT:
        mass = weights.double().index_select(1, sample[order])
        every = mass.cumsum(1)
        return _steps(mass.mul_(positive[order]).cumsum(1), every, ends, positive[order])
    group = torch.empty_like(order)
    group[order] = torch.repeat_interleave(ends, ends.diff(prepend=ends.new_tensor([-1]))) * BINS // len(order)
    cells = torch.zeros(2, len(lengths) * BINS).index_put_(
        (positive.long(), sample * BINS + group), torch.ones(len(group)), accumulate=True
    )
    other, found = ((weights.float() @ mass.reshape(len(lengths), BINS)).double().cumsum(1) for mass in cells)
    there = torch.zeros(BINS, dtype=torch.bool).index_put_((group[positive],), torch.tensor(True))
    return _steps(found, found + other, torch.arange(BINS), there)


def _steps(found: Tensor, every: Tensor, ends: Tensor, positive: Tensor) -> Steps:
    """From cumulative weights [B, N] of positives and of all: where each group ends, and which places hold a positive [N]."""
    group = torch.unique(torch.bucketize(positive.nonzero()[:, 0], ends))
    last, before = ends[group], torch.cat([ends.new_tensor([-1]), ends])[group]
    at = [(side.index_select(1, last), _up_to(side, before)) for side in (found, every)]
    (mine, earlier), (seen, passed) = at
    other = seen - mine
    return Steps(mine - earlier, other - (passed - earlier), mine, other, found[:, -1], every[:, -1] - found[:, -1])


def _up_to(side: Tensor, places: Tensor) -> Tensor:
    """Cumulative weights at the places; 0 at -1."""
    return side.index_select(1, places.clamp(min=0)).masked_fill_(places < 0, 0.0)


class AveragePrecision:
    """Sum over steps of (recall gained) x (precision at the step); undefined without positives."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "p", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        columns = []
        for c in range(evaluation.truth.shape[1]):
            at = steps(evaluation, weights, c)
            seen = at.found + at.other
            gained = torch.where(seen > 0, at.gained * at.found / seen, 0.0).sum(1)
            columns.append(gained / at.positives)
        return torch.stack(columns, 1)


class TokenAveragePrecision(AveragePrecision):
    """The same over the annotated tokens of all samples, by map score alone: detection and cutoffs play no part."""

    kind = "localization"


class Auroc:
    """The share of (positive, negative) pairs in the right order, ties counting half; undefined without both classes."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "0.5", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        columns = []
        for c in range(evaluation.truth.shape[1]):
            at = steps(evaluation, weights, c)
            right = (at.gained * (at.negatives[:, None] - at.other + 0.5 * at.passed)).sum(1)
            columns.append(right / (at.positives * at.negatives))
        return torch.stack(columns, 1)
