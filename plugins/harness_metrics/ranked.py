"""Metrics of a ranking: average precision and AUROC, exact, ties as in scikit-learn (equal scores form one step).

Under many weightings of many tokens the ranking is binned into at most 2,048 quantile bins per concept, which moves the ends of an
interval by less than 1/2048 of the ranks; the value itself is always exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Evaluation

BINS = 2048
EXACT = 20_000_000
"""Weightings x items up to which every score is its own step."""


def steps(evaluation: Evaluation, weights: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """(positive, negative) weight [B, G] of each group of equal scores, from the highest score down."""
    known = evaluation.truth[:, c] >= 0
    scores, positive = evaluation.scores[known, c], evaluation.truth[known, c] == 1
    lengths = evaluation.offsets.diff()
    sample = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[known]
    _, group = torch.unique(-scores.nan_to_num(nan=-torch.inf), return_inverse=True)
    if len(weights) == 1 or len(weights) * len(group) <= EXACT:
        groups = int(group.max()) + 1 if len(group) else 1
        per_item = weights.double()[:, sample]
        both = (per_item * positive, per_item * ~positive)
        found, other = (torch.zeros(len(weights), groups, dtype=torch.float64).index_add_(1, group, mass) for mass in both)
        return found, other
    group = ((torch.bincount(group).cumsum(0) - 1) * BINS // len(group))[group]
    cells = torch.zeros(2, len(lengths) * BINS).index_put_(
        (positive.long(), sample * BINS + group), torch.ones(len(group)), accumulate=True
    )
    other, found = (weights.float() @ mass.reshape(len(lengths), BINS) for mass in cells)
    return found.double(), other.double()


class AveragePrecision:
    """Sum over steps of (recall gained) x (precision at the step); undefined without positives."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "p", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        columns = []
        for c in range(evaluation.truth.shape[1]):
            positive, negative = steps(evaluation, weights, c)
            found = positive.cumsum(1)
            seen = (positive + negative).cumsum(1)
            gained = torch.where(seen > 0, positive * found / seen, 0.0).sum(1)
            columns.append(gained / positive.sum(1))
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
            positive, negative = steps(evaluation, weights, c)
            below = negative.sum(1, keepdim=True) - negative.cumsum(1)
            right = (positive * (below + 0.5 * negative)).sum(1)
            columns.append(right / (positive.sum(1) * negative.sum(1)))
        return torch.stack(columns, 1)
