"""Cutoffs at every level, and the choice of level and layer per concept: all of it on cal, for every detector alike.

Method sections 5 and 6.2. In-sample by design, as in the paper: cutoffs and the F1 that picks the level come from the same cal
samples. The authors match clusters and pick heat-map layers on test (section 11.B); nothing here ever sees a test value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.numerics import Counts, counts_at, f1_score, first_best, tail_cutoffs


class Calibrated(NamedTuple):
    """Everything calibration knows: cutoffs [P, L, C] float64 (NaN = no positives), cal counts and F1 [P, L, C]."""

    cutoffs: Tensor
    counts: Counts
    f1: Tensor


class Chosen(NamedTuple):
    """Indices: level [L, C] per layer and concept, layer [C] per concept; best_f1 [L, C] is the cal F1 at that level."""

    level: Tensor
    layer: Tensor
    best_f1: Tensor


def scored(scores: Tensor, sparse: bool = False) -> Tensor:
    """The scores that may set a cutoff, NaN in place of the others: -inf (no tokens), and for sparse units 0 (off; section 8)."""
    return scores.masked_fill(~scores.isfinite() | ((scores <= 0) & sparse), torch.nan)


def in_concept(activations: Tensor, truth: Tensor) -> list[Tensor]:
    """C tensors [n_c, L]: the activations [L, T, C] of the tokens that are truly in each concept."""
    return [activations[:, truth[:, c] == 1, c].T for c in range(truth.shape[1])]


def token_cutoffs(activations: Sequence[Tensor], levels: tuple[float, ...], sparse: bool = False) -> Tensor:
    """[P, L, C]: tau_c(delta) = Q_{1-delta} of the in-concept cal tokens' activations (section 5). Padding is never among them."""
    return torch.stack([tail_cutoffs(scored(scores, sparse), levels) for scores in activations], -1)


def sample_cutoffs(scores: Tensor, labels: Tensor, levels: tuple[float, ...], sparse: bool = False) -> Tensor:
    """[P, L, C]: Q_{1-delta} of the pooled scores [L, S, C] of the positive cal samples.

    Positive = the sample's label; the authors take samples with a positive token (section 5). A sample without tokens is left out.
    """
    columns = [scored(scores[:, labels[:, c], c].T, sparse) for c in range(labels.shape[1])]
    return torch.stack([tail_cutoffs(column, levels) for column in columns], -1)


def best_cutoffs(scores: Tensor, labels: Tensor) -> Tensor:
    """[1, L, C]: the score among [L, S, C] with the best F1 as a cutoff, the highest among equals; NaN without positives.

    For a ceiling on the very samples that are scored: the one thing here that may be given test scores, by a method that says so.
    """
    best: list[Tensor] = []
    for column in scores.unbind(2):
        flat, c = column.T, len(best)
        cutoffs = flat.double().sort(dim=0, descending=True).values
        counts = counts_at(flat, labels[:, c, None].to(torch.int8).expand_as(flat), cutoffs)
        place = first_best(f1_score(counts).masked_fill(~cutoffs.isfinite(), torch.nan))
        best.append(cutoffs.gather(0, place[None])[0])
    found = torch.stack(best, -1)[None]
    return found.masked_fill(~labels.any(0) | ~found.isfinite(), torch.nan)


def calibrate(scores: Tensor, labels: Tensor, cutoffs: Tensor) -> Calibrated:
    """The cal F1 of every level, layer and concept, from pooled cal scores [L, S, C]."""
    layers, samples, concepts = scores.shape
    flat = scores.permute(1, 0, 2).reshape(samples, layers * concepts)
    truth = labels.to(torch.int8).repeat(1, layers)
    counts = counts_at(flat, truth, cutoffs.reshape(len(cutoffs), -1))
    shaped = Counts(*(count.reshape(len(cutoffs), layers, concepts) for count in counts))
    return Calibrated(cutoffs, shaped, f1_score(shaped).masked_fill(cutoffs.isnan(), torch.nan))


def choose(calibrated: Calibrated) -> Chosen:
    """The level with the best cal F1 at every layer (ties: the smallest level), then the layer (ties: the earliest)."""
    level = first_best(calibrated.f1)
    best = calibrated.f1.gather(0, level[None])[0]
    return Chosen(level, first_best(best), best)


def at_level(cutoffs: Tensor, level: Tensor) -> Tensor:
    """[L, C]: the cutoffs [P, L, C] at the chosen level [L, C]."""
    return cutoffs.gather(0, level[None])[0]


def at_layer(values: Tensor, layer: Tensor) -> Tensor:
    """[..., C]: values [L, ..., C] at each concept's chosen layer [C]."""
    shape = (1, *(1,) * (values.ndim - 2), values.shape[-1])
    index = layer.reshape(shape).expand(1, *values.shape[1:])
    return values.gather(0, index)[0]
