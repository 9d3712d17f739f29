"""Units without names -> concepts: every (concept, unit, level) is tried on cal, and cal F1 decides. Method section 3, matching.

The authors match clusters and sparse-autoencoder units on test (section 11.B2); nothing here sees a test value. All pairs are exact:
one sort per unit serves every concept and level. Units go through in slices, so that a full T x K never exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.calibration import scored
from harness.embed import SplitBlocks
from harness.numerics import counts_of, f1_score, first_best, ranked, tail_cutoffs
from harness.types import Detector, TokenEmbeddings, Units

SLICE_BYTES = 600_000_000
"""Room for one slice of units: its in-concept cal activations, and its activations of one block."""


class Match(NamedTuple):
    """Per layer and concept: the unit (index, -1 = none) and its best cal F1 [L, C]; `names` are those of all K units."""

    unit: Tensor
    f1: Tensor
    names: Sequence[str]

    def name(self, layer: int, concept: int) -> str | None:
        """The matched unit's name."""
        unit = int(self.unit[layer, concept])
        return None if unit < 0 else self.names[unit]


@dataclass(frozen=True)
class Blind:
    """A split without labels and truth, as often as it is asked for."""

    split: SplitBlocks

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        return self.split.blind()


def select(units: Units, cal: SplitBlocks) -> Units:
    """The units that are left after their own pruning on cal; all, where they have none."""
    prune = getattr(units, "select", None)
    kept: Units = units if prune is None else prune(Blind(cal), (cal.truth == 1).sum(0))
    return kept


def match(units: Units, cal: SplitBlocks, detector: Detector, levels: tuple[float, ...], how: str) -> Match:
    """The unit of every concept at every layer: the one with the best cal F1, or the best assignment of each unit to one concept."""
    parts = [pair_f1(units, part, cal, detector, levels) for part in slices(units, cal)]
    f1 = torch.cat(parts, 2) if parts else torch.full((len(cal.sites), len(cal.concepts), 0), torch.nan)
    unit = torch.stack([(best if how == "best" else one_to_one)(layer) for layer in f1])
    found = f1.gather(2, unit.clamp(min=0)[..., None])[..., 0] if f1.shape[2] else unit.double()
    return Match(unit, found.masked_fill(unit < 0, torch.nan), units.units)


def slices(units: Units, cal: SplitBlocks) -> list[slice]:
    """The units in parts whose activations fit `SLICE_BYTES`."""
    inside = int((cal.truth == 1).sum())
    step = max(1, SLICE_BYTES // (4 * max(len(cal.sites) * (inside + cal.widest), 1)))
    return [slice(start, min(start + step, len(units.units))) for start in range(0, len(units.units), step)]


def pair_f1(units: Units, part: slice, cal: SplitBlocks, detector: Detector, levels: tuple[float, ...]) -> Tensor:
    """[L, C, k] float64: the best cal F1 over levels of every (concept, unit) pair, each calibrated as the detector says."""
    sparse, on_tokens = getattr(units, "sparse", False), detector.calibrate_on == "tokens"
    inside: list[list[Tensor]] = [[] for _ in cal.concepts]
    pooled, start = [], 0
    for block in cal.blind():
        activations = units.activate(block, part)
        pooled.append(detector.pool(activations, block))
        truth = cal.truth[start : start + activations.shape[1]]
        for c in range(len(inside) if on_tokens else 0):
            inside[c].append(activations[:, truth[:, c] == 1])
        start += activations.shape[1]
    scores = torch.cat(pooled, 1)
    layers, samples, k = scores.shape
    order = ranked(scores.permute(1, 0, 2).reshape(samples, layers * k))
    columns = []
    for c in range(len(inside)):
        own = torch.cat(inside[c], 1) if on_tokens else scores[:, cal.labels[:, c]]
        inside[c] = []
        cutoffs = tail_cutoffs(scored(own.permute(1, 0, 2).reshape(-1, layers * k), sparse), levels)
        truth = cal.labels[:, c, None].to(torch.int8).expand(-1, layers * k)
        f1 = f1_score(counts_of(order, truth, cutoffs)).masked_fill(cutoffs.isnan(), torch.nan)
        columns.append(f1.gather(0, first_best(f1)[None])[0].reshape(layers, k))
    return torch.stack(columns, 1)


def best(f1: Tensor) -> Tensor:
    """[C]: each concept's best unit of [C, K], ties the first; two concepts may share one (the paper's rule). -1 without any F1."""
    unit = first_best(f1.T) if f1.shape[1] else torch.zeros(len(f1), dtype=torch.int64)
    return unit.masked_fill(f1.isnan().all(1).to(unit.device), -1)


def one_to_one(f1: Tensor) -> Tensor:
    """[C]: the assignment of [C, K] with the largest sum, no unit twice (Hungarian algorithm, scipy); -1 where no unit is left."""
    from scipy.optimize import linear_sum_assignment

    unit = torch.full((len(f1),), -1, dtype=torch.int64)
    rows, columns = linear_sum_assignment(f1.nan_to_num(nan=-1.0).cpu().numpy(), maximize=True)
    unit[torch.from_numpy(rows)] = torch.from_numpy(columns)
    known = (
        ~f1.cpu().gather(1, unit.clamp(min=0)[:, None])[:, 0].isnan() if f1.shape[1] else torch.zeros(len(f1), dtype=torch.bool)
    )
    return torch.where(known, unit, -1).to(f1.device)
