"""The two-level bootstrap, and what may be said of the difference between two methods on the same samples. Nothing here knows a metric.

A metric is evaluated once under B weightings of the samples; every interval is a percentile of those values. 95 % everywhere.
The authors resample concepts and then each concept's confusion counts on its own (method section 6.2); drawing samples jointly
keeps the dependence between concepts that share an image. numpy only: a published interval is recomputed without torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TAILS = (0.025, 0.975)
ALPHA, POWER = 0.05, 0.8


class Interval(NamedTuple):
    """The ends of a 95 % interval; NaN where no replicate is defined."""

    low: float
    high: float


def draws(bound: int, shape: tuple[int, ...], seed: int) -> NDArray[np.int64]:
    """Uniform integers below `bound`: outputs of MT19937 seeded with the low 32 bits of `seed`, modulo `bound` (as `torch.randint`)."""
    stream = np.random.MT19937()
    stream._legacy_seeding(seed & 0xFFFFFFFF)
    return (stream.random_raw(int(np.prod(shape))) % np.uint64(bound)).astype(np.int64).reshape(shape)


def sample_weights(samples: int, replicates: int, seed: int) -> Floats:
    """[B, S]: how often each sample is drawn, S draws with replacement per replicate."""
    place = draws(samples, (replicates, samples), seed) + np.arange(replicates)[:, None] * samples
    return np.bincount(place.ravel(), minlength=replicates * samples).astype(np.float64).reshape(replicates, samples)


def average(values: Floats, weights: NDArray[np.number] | None = None) -> Floats:
    """[...]: the mean of [..., C] over concepts with a value (equal weights, or the given ones); NaN where there is none."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    shares = known.astype(np.float64) if weights is None else np.asarray(weights, np.float64) * known
    total = shares.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, (np.where(known, values, 0.0) * shares).sum(-1) / total, np.nan)


def interval(replicates: Floats) -> Interval:
    """The 2.5 % and 97.5 % percentiles of [B], over replicates with a value."""
    known = np.asarray(replicates, np.float64)
    known = known[np.isfinite(known)]
    if len(known) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, TAILS).tolist()
    return Interval(low, high)


class AverageIntervals(NamedTuple):
    """The interval of an average: from samples and concepts, and from samples alone."""

    both: Interval
    samples: Interval


def average_intervals(replicates: Floats, weights: Floats | None, seed: int) -> AverageIntervals:
    """Intervals of the average of [B, C] replicates; `weights` [B, C] or None. With one concept, both are from samples alone."""
    alone = interval(average(replicates, weights))
    if replicates.shape[1] == 1:
        return AverageIntervals(alone, alone)
    return AverageIntervals(interval(averages(replicates, weights, seed)), alone)


def averages(replicates: Floats, weights: Floats | None, seed: int) -> Floats:
    """[B]: the averages of [B, C] replicates with concepts drawn too (the same for every method); with one concept, it alone."""
    count, concepts = replicates.shape
    if concepts == 1:
        return average(replicates, weights)
    draw = draws(concepts, (count, concepts), seed + 1)
    drawn = None if weights is None else np.take_along_axis(weights, draw, 1)
    return average(np.take_along_axis(replicates, draw, 1), drawn)


class Difference(NamedTuple):
    """One method's average minus another's on the same samples and concepts, its 95 % interval, the two-sided p of no difference,
    and the smallest true difference that such a comparison finds 8 times in 10."""

    value: float
    low: float
    high: float
    p: float
    detectable: float


NO_DIFFERENCE = Difference(float("nan"), float("nan"), float("nan"), 1.0, float("nan"))
"""Where nothing can be compared."""


def difference(values: Floats, replicates: Floats, weights: Floats | None, drawn: Floats | None, samples: int) -> Difference:
    """Of paired differences per concept [C] and their replicates [B, C] under weightings of the samples.

    weights [C], drawn [B, C]: the concepts' weights, and those of each replicate; None = equal. Samples and concepts are both drawn
    from something larger: the variance is that of the two-level bootstrap, over samples plus between concepts, and p and the
    interval (which holds 0 exactly when p > 0.05) are Student's t with Satterthwaite's degrees of freedom, as percentiles of a
    bootstrap are too narrow with few concepts. That counts the samples' noise twice, so fewer than 5 % of equal methods differ.
    `detectable` takes the noise off once, as clustering two ways does (Cameron, Gelbach and Miller 2011).
    """
    from scipy.special import ndtri, stdtr, stdtrit

    values = np.where(np.isfinite(replicates).sum(0) > 1, values, np.nan)
    known, mean = np.isfinite(values), float(average(values, weights))
    over = average(np.where(known, replicates, np.nan), drawn)
    over = over[np.isfinite(over)]
    if not np.isfinite(mean) or len(over) < 2 or samples < 2:
        return NO_DIFFERENCE
    count = int(known.sum())
    raw = np.ones(count) if weights is None else weights[known].astype(np.float64)
    shares, whole = (raw / raw.sum()) ** 2, samples / (samples - 1)
    of_samples = float(over.var(ddof=1)) * whole
    of_concepts = float((shares * (values[known] - mean) ** 2).sum()) * count / (count - 1) if count > 1 else 0.0
    variance = of_samples + of_concepts
    if variance == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, 0.0)
    degrees = variance**2 / (of_samples**2 / (samples - 1) + of_concepts**2 / max(count - 1, 1))
    room = variance**0.5 * float(stdtrit(degrees, 1 - ALPHA / 2))
    noise = float((shares * np.nanvar(replicates[:, known], 0, ddof=1)).sum()) * whole
    once = max(of_samples, variance - noise)
    p = 2 * float(stdtr(degrees, -abs(mean) / variance**0.5))
    return Difference(mean, mean - room, mean + room, p, room + float(ndtri(POWER)) * once**0.5)


def holm(p: Floats) -> Floats:
    """Holm's adjusted p values (1979): at most 5 % of families have any false one at or below 0.05, whatever the dependence."""
    flat = np.asarray(p, np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    steps = flat[order] * (len(flat) - np.arange(len(flat)))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(flat) else steps
    return adjusted.reshape(np.shape(p))
