"""The two-level bootstrap: samples are resampled jointly for all concepts, then concepts. Nothing here knows a metric.

A metric is evaluated once under B weightings of the samples; every interval is a percentile of those values. 95 % everywhere.
The authors resample concepts and then each concept's confusion counts on its own (method section 6.2); drawing samples jointly
keeps the dependence between concepts that share an image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TAILS = (0.025, 0.975)


class Interval(NamedTuple):
    """The ends of a 95 % interval; NaN where no replicate is defined."""

    low: float
    high: float


def sample_weights(samples: int, replicates: int, seed: int) -> Tensor:
    """[B, S] float32: how often each sample is drawn, S draws with replacement per replicate."""
    draws = torch.randint(samples, (replicates, samples), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(replicates, samples).scatter_add_(1, draws, torch.ones(1, 1).expand(replicates, samples))


def average(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """[...]: the mean of [..., C] over concepts with a value (equal weights, or the given ones); NaN where there is none."""
    known = values.isfinite()
    weights = known.double() if weights is None else weights.double() * known
    total = weights.sum(-1)
    mean = (values.nan_to_num(nan=0.0) * weights).sum(-1) / total
    return torch.where(total > 0, mean, torch.nan)


def interval(replicates: Tensor) -> Interval:
    """The 2.5 % and 97.5 % percentiles of [B], over replicates with a value."""
    known = replicates[replicates.isfinite()]
    if len(known) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = torch.quantile(known.double(), torch.tensor(TAILS, dtype=torch.float64)).tolist()
    return Interval(low, high)


class AverageIntervals(NamedTuple):
    """The interval of an average: from samples and concepts, and from samples alone."""

    both: Interval
    samples: Interval


def average_intervals(replicates: Tensor, weights: Tensor | None, seed: int) -> AverageIntervals:
    """Intervals of the average of [B, C] replicates; `weights` [B, C] or None. With one concept, both are from samples alone."""
    alone = interval(average(replicates, weights))
    count, concepts = replicates.shape
    if concepts == 1:
        return AverageIntervals(alone, alone)
    draw = torch.randint(concepts, (count, concepts), generator=torch.Generator().manual_seed(seed + 1))
    drawn = None if weights is None else weights.gather(1, draw)
    return AverageIntervals(interval(average(replicates.gather(1, draw), drawn)), alone)
