"""From a detection to token masks: a localizer's map, its own level chosen on cal, then test. Method section 7.

Samples that are not detected predict every token negative, so their in-concept tokens are missed. Unknown tokens (truth -1) are
in no count. The authors set the second cutoff on test tokens and drop image 0 (section 11.B5); here it comes from cal alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.calibration import at_layer, scored
from harness.embed import SplitBlocks
from harness.numerics import counts_at, f1_score, first_best, segment_ids, tail_cutoffs
from harness.types import Concepts, Detector, TokenEmbeddings


class Activations:
    """The activations of the block in hand, computed once for all the methods that share their concepts."""

    def __init__(self) -> None:
        self._block: TokenEmbeddings | None = None
        self._found: dict[int, Tensor] = {}

    def of(self, concepts: Concepts, block: TokenEmbeddings) -> Tensor:
        """[L, T, C]."""
        if self._block is not block:
            self._block, self._found = block, {}
        if id(concepts) not in self._found:
            self._found[id(concepts)] = concepts.activate(block)
        return self._found[id(concepts)]


@dataclass(frozen=True)
class Explanation:
    """What a localizer sees of a detection (`types.Explained`)."""

    concepts: Concepts
    layers: Tensor
    cutoffs: Tensor
    shared: Activations = field(default_factory=Activations)

    @property
    def vectors(self) -> Tensor | None:
        """[C, d]: each concept's vector at its layer, or None where units are no directions."""
        every = self.concepts.vectors
        return None if every is None else every[self.layers, torch.arange(len(self.layers), device=every.device)]

    def activations(self, block: TokenEmbeddings) -> Tensor:
        """[T, C] at each concept's layer."""
        return at_layer(self.shared.of(self.concepts, block), self.layers)

    def embeddings(self, block: TokenEmbeddings, concept: int) -> Tensor:
        """[T, d] at that concept's layer."""
        return block.values[int(self.layers[concept])]


@dataclass(frozen=True)
class Job:
    """One method's localization in one layer group.

    localizer: fitted; an explainer has `needs`. detected: [S, C] bool of cal and of test. at_least [C]: index of the detection level,
    below which a map calibrated on the same tokens with the same scores is not cut (rho >= delta, section 7.1), or None. pairs:
    [S, C] bool of cal and of test, the only (sample, concept) pairs that are localized; None = all.
    """

    name: str
    localizer: Any
    explained: Explanation
    detector: Detector
    detected: tuple[Tensor, Tensor]
    at_least: Tensor | None
    pairs: tuple[Tensor, Tensor] | None

    @property
    def explains(self) -> bool:
        """Whether the localizer needs the model, one sample at a time."""
        return bool(getattr(self.localizer, "needs", ()))

    def truth(self, split: SplitBlocks, which: int) -> Tensor:
        """[T, C] int8: the split's truth, unknown outside the pairs; which = 0 for cal, 1 for test."""
        if self.pairs is None:
            return split.truth
        there = self.pairs[which].to(split.truth.device)[segment_ids(split.offsets)]
        return split.truth.masked_fill(~there, -1)


class Located(NamedTuple):
    """map [T, C] of the test tokens, decisions [T, C], truth [T, C] as it is counted; level (index; -1 = none), cutoff, cal token F1, each [C].

    cutoffs [P, C] of all levels, with their counts [3, P, C] (TP, FP, FN) and F1 [P, C] on cal (NaN = not allowed).

    curves: name -> [S, C] float64, the area under each explained test sample's curve of f_c, NaN elsewhere; empty where none was drawn.
    activations [T, C]: the concepts' own, where tokens are logged.
    """

    map: Tensor
    decisions: Tensor
    truth: Tensor
    level: Tensor
    cutoff: Tensor
    cal_f1: Tensor
    cutoffs: Tensor
    counts: Tensor
    f1: Tensor
    activations: Tensor | None = None
    curves: Mapping[str, Tensor] = {}


def score_tokens(split: SplitBlocks, jobs: Sequence[Job]) -> dict[str, Tensor]:
    """Method -> its map [T, C] float32 of a split whose labels no localizer sees, from one pass for all of them."""
    maps: dict[str, list[Tensor]] = {job.name: [] for job in jobs}
    for block in split.blind() if jobs else ():
        for job in jobs:
            maps[job.name].append(job.localizer.score(block, job.explained))
    return {name: torch.cat(parts) for name, parts in maps.items()}


def locate(
    job: Job, maps: tuple[Tensor, Tensor], splits: tuple[SplitBlocks, SplitBlocks], levels: tuple[float, ...]
) -> Located:
    """The level chosen on cal, and the decisions on test, from the maps of both."""
    (scores, tested), (cal, test) = maps, splits
    in_cal, in_test = (found[segment_ids(split.offsets)] for found, split in zip(job.detected, splits, strict=True))
    truth = job.truth(cal, 0)
    on_tokens = job.localizer.calibrate_on == "tokens"
    usable = (truth == 1) & (torch.ones_like(in_cal) if on_tokens else in_cal)
    sparse = on_tokens and getattr(job.explained.concepts, "sparse", False)
    own = [scored(scores[usable[:, c], c][:, None], sparse) for c in range(scores.shape[1])]
    cutoffs = torch.cat([tail_cutoffs(column, levels) for column in own], -1)
    counts = counts_at(scores.masked_fill(~in_cal | (truth < 0), -torch.inf), truth, cutoffs)  # a NaN has no rank
    f1 = f1_score(counts).masked_fill(cutoffs.isnan(), torch.nan)
    if job.at_least is not None and on_tokens:
        f1 = f1.masked_fill(torch.arange(len(levels), device=f1.device)[:, None] < job.at_least, torch.nan)
    level = first_best(f1)
    cutoff = cutoffs.gather(0, level[None])[0]
    decisions = (tested.double() >= cutoff) & in_test
    cal_f1, three = f1.gather(0, level[None])[0], torch.stack([counts.tp, counts.fp, counts.fn])
    return Located(tested, decisions, job.truth(test, 1), level, cutoff, cal_f1, cutoffs, three, f1)


def merge(parts: list[tuple[Tensor, Located]]) -> Located:
    """One `Located` from those of several layer groups; each comes with the concepts [C] bool whose layer is in its group."""
    mine, merged = parts[0]
    for mine, part in parts[1:]:
        fields = {
            name: _where(mine, getattr(part, name), getattr(merged, name)) for name in Located._fields if name != "curves"
        }
        drawn = {name: torch.where(mine.cpu(), curve, merged.curves[name]) for name, curve in part.curves.items()}
        merged = Located(**fields, curves=drawn)
    return merged


def _where(mine: Tensor, new: Tensor | None, old: Tensor | None) -> Any:
    return old if new is None or old is None else torch.where(mine, new, old)
