"""Metrics of maps that explain a score: the pointing game, and the areas under insertion and deletion curves.

Insertion and deletion ask whether a map is faithful to f_c, whatever the truth: tokens are inserted into, or deleted from, a sample
strongest first, and the curve of f_c is the core's (after Petsiuk et al. 2018; ours, not a reproduction: the authors have no such measure).
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Evaluation, segment_ids, segment_max


class PointingGame:
    """The share of samples in the concept whose strongest token is in the concept (Zhang et al. 2016), by map score alone.

    Among annotated tokens only, the first among equals. A sample without a token in the concept leaves.
    """

    kind, unit, range, chance, higher_is_better, version = "localization", "share", (0.0, 1.0), "share of tokens", True, 1
    mean_of_samples = True

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        known, inside = evaluation.truth >= 0, evaluation.truth == 1
        scores = evaluation.scores.nan_to_num(nan=-torch.inf).masked_fill(~known, -torch.inf)
        sample = segment_ids(evaluation.offsets)
        strongest = segment_max(scores[None], evaluation.offsets)[0][sample]
        items = len(scores)
        place = torch.arange(items)[:, None].expand_as(scores).masked_fill(~known | (scores < strongest), items)
        first = torch.full((len(evaluation.offsets) - 1, scores.shape[1]), items)
        first = first.scatter_reduce(0, sample[:, None].expand_as(place), place, "amin")
        padded = torch.cat([inside, inside.new_zeros(1, inside.shape[1])])
        hit = padded.gather(0, first).double()
        there = (segment_max(inside.double()[None], evaluation.offsets)[0] > 0).double()
        return weights.double() @ hit / (weights.double() @ there)


class InsertionAuc:
    """The mean area under the insertion curve, over the explained samples; undefined where f_c does not rise from empty to whole."""

    kind, unit, range, chance, higher_is_better, version = "insertion", "share", (0.0, 1.0), "that of random maps", True, 1
    mean_of_samples = True

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        there = evaluation.truth == 1
        areas = evaluation.scores.masked_fill(~there, 0.0)
        return weights.double() @ areas.double() / (weights.double() @ there.double())


class DeletionAuc(InsertionAuc):
    """The same under the deletion curve: the sooner f_c falls as its tokens go, the better."""

    kind = "deletion"
    higher_is_better = False
