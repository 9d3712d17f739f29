"""Noisy-or: a sample is in the concept with probability 1 - prod_t (1 - p_t), p_t being that of one token.

The pooling of multiple-instance learning (Zhang, Platt and Viola 2005; Pearl's noisy-or gate). p_t = sigmoid(a s_t + b), a and b per
layer and concept from the truth of train tokens (Platt 1999, his smoothed targets, by Newton's method as in Lin, Lin and Weng 2007).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from harness.api import Blocks, Concepts, HarnessError, TokenEmbeddings, Units, segment_sum

BINS = 2048
"""Train activations are counted in so many equal bins between their extremes: neither memory nor a step grows with the tokens."""

STEPS, HALVINGS, RIDGE, CONVERGED = 100, 40, 1e-10, 1e-9
INSTEAD = "choose supervised concepts, or a detector that fits nothing (topk-mean, softmax)"


@dataclass(frozen=True)
class NoisyOr:
    """The score is -sum_t log(1 - p_t): it rises with the probability, and is still exact where that rounds to 1.

    slope, offset [L, C] float64: a and b; NaN where train has no token inside the concept, or none outside. The slope is negative
    where tokens inside have the lower activations.
    """

    slope: Tensor | None = None
    offset: Tensor | None = None

    calibrate_on = "samples"
    needs_truth = True

    def fit(self, train: Blocks, concepts: Concepts | Units) -> NoisyOr:
        """With slope and offset, from two passes over train: the extremes of the activations, then how often each bin is met."""
        if isinstance(concepts, Units):
            raise HarnessError(
                f"detector 'noisy-or' is fitted per concept; the {len(concepts.units)} units of this concept method have no names "
                f"before they are matched; {INSTEAD}"
            )
        low, width = extent(train, concepts)
        slope, offset = platt(histogram(train, concepts, low, width))
        return replace(self, slope=slope / width, offset=offset - slope * low / width)

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K] float32, 0 or more; -inf without tokens."""
        shape = (activations.shape[0], activations.shape[2])
        if self.slope is None or self.offset is None or self.slope.shape != shape:
            fitted = "nothing" if self.slope is None else " x ".join(map(str, self.slope.shape))
            raise HarnessError(
                f"detector 'noisy-or' is fitted per layer and concept; it was given {shape[0]} x {shape[1]} and fitted on {fitted}; {INSTEAD}"
            )
        doubt = softplus(activations * self.slope[:, None].float() + self.offset[:, None].float())
        pooled = segment_sum(doubt, block.offsets).float()
        return pooled.masked_fill((block.offsets.diff() == 0)[None, :, None], -torch.inf)


def extent(train: Blocks, concepts: Concepts) -> tuple[Tensor, Tensor]:
    """(smallest train activation, largest minus smallest), each [L, C] float64; NaN is in neither, and a width of 0 is given as 1."""
    shape = (len(train.sites), len(train.concepts))
    low = torch.full(shape, torch.inf, dtype=torch.float64, device=train.truth.device)
    high = -low
    for block in train:
        activations = concepts.activate(block)
        if activations.shape[1]:
            low = torch.minimum(low, activations.nan_to_num(nan=torch.inf).amin(1).double())
            high = torch.maximum(high, activations.nan_to_num(nan=-torch.inf).amax(1).double())
    return low, torch.where(high > low, high - low, 1.0)


def histogram(train: Blocks, concepts: Concepts, low: Tensor, width: Tensor) -> Tensor:
    """[2, L, C, BINS] float64: how many train tokens outside (0) and inside (1) each concept fall in each bin; unknown ones in none."""
    layers, units = low.shape
    counts = torch.zeros(layers, 2 * units * BINS, dtype=torch.int64, device=low.device)
    column = torch.arange(units, device=low.device)
    for block in train:
        assert block.truth is not None  # noqa: S101 - train blocks carry their truth
        for layer, row in enumerate(concepts.activate(block)):
            known = (block.truth >= 0) & row.isfinite()
            at = ((row - low[layer]) / width[layer] * BINS).nan_to_num(nan=0.0).long().clamp(0, BINS - 1)
            place = (block.truth.long() * units + column) * BINS + at
            counts[layer] += torch.bincount(place[known], minlength=2 * units * BINS)
    return counts.reshape(layers, 2, units, BINS).transpose(0, 1).double()


def platt(counts: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), each [...]: the least cross-entropy of sigmoid(a x + b), x in (0, 1) the middle of each bin of counts [2, ..., BINS].

    Targets are Platt's, (n1 + 1) / (n1 + 2) inside and 1 / (n0 + 2) outside, so that separable tokens have a finite slope. Newton's
    method with halved steps; NaN where one class is empty.
    """
    x = (torch.arange(counts.shape[-1], dtype=torch.float64, device=counts.device) + 0.5) / counts.shape[-1]
    outside, inside = counts.sum(-1)
    n, total = counts.sum(0), outside + inside
    hits = counts[1] * ((inside + 1) / (inside + 2))[..., None] + counts[0] * (1 / (outside + 2))[..., None]

    def loss(a: Tensor, b: Tensor) -> Tensor:
        z = a[..., None] * x + b[..., None]
        return (n * softplus(z) - hits * z).sum(-1)

    a, b = torch.zeros_like(total), torch.logit((hits.sum(-1) / total).nan_to_num(nan=0.5))
    for _ in range(STEPS):
        p = torch.sigmoid(a[..., None] * x + b[..., None])
        error, curve = n * p - hits, n * p * (1 - p)
        along, across = (error * x).sum(-1), error.sum(-1)
        if bool((torch.maximum(along.abs(), across.abs()) <= CONVERGED * total).all()):
            break
        xx, xy, yy = (
            (curve * power).sum(-1) + RIDGE * same for power, same in ((x * x, total), (x, 0), (torch.ones_like(x), total))
        )
        det = (xx * yy - xy * xy).clamp(min=torch.finfo(torch.float64).tiny)
        to_a, to_b = (yy * along - xy * across) / det, (xx * across - xy * along) / det
        a, b = _descend(loss, (a, b), (to_a, to_b), along * to_a + across * to_b)
    missing = (outside == 0) | (inside == 0)
    return a.masked_fill(missing, torch.nan), b.masked_fill(missing, torch.nan)


def _descend(
    loss: Callable[[Tensor, Tensor], Tensor], at: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor], fall: Tensor
) -> tuple[Tensor, Tensor]:
    """The point after the step, halved where the loss falls by less than 1e-4 of what its slope promises."""
    share, before = torch.ones_like(fall), loss(*at)
    for _ in range(HALVINGS):
        there = at[0] - share * step[0], at[1] - share * step[1]
        short = ~(loss(*there) <= before - 1e-4 * share * fall)
        if not bool(short.any()):
            break
        share = torch.where(short, share / 2, share)
    return torch.where(short, at[0], there[0]), torch.where(short, at[1], there[1])
