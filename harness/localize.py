"""From a detection to token masks: a localizer's map, its own level chosen on cal, then test. Method section 7.

Samples that are not detected predict every token negative, so their in-concept tokens are missed. Unknown tokens (truth -1) are
in no count. The authors set the second cutoff on test tokens and drop image 0 (section 11.B5); here it comes from cal alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.calibration import at_layer
from harness.embed import SplitBlocks, Tokens
from harness.numerics import counts_at, f1_score, first_best, segment_ids, tail_cutoffs
from harness.types import Concepts, Localizer, TokenEmbeddings


@dataclass(frozen=True)
class Explanation:
    """What a localizer sees of a detection (`types.Explained`)."""

    concepts: Concepts
    layers: Tensor
    cutoffs: Tensor

    @property
    def vectors(self) -> Tensor | None:
        """[C, d]: each concept's vector at its layer, or None where units are no directions."""
        every = self.concepts.vectors
        return None if every is None else every[self.layers, torch.arange(len(self.layers), device=every.device)]

    def activations(self, block: TokenEmbeddings) -> Tensor:
        """[T, C] at each concept's layer."""
        return at_layer(self.concepts.activate(block), self.layers)

    def embeddings(self, block: TokenEmbeddings, concept: int) -> Tensor:
        """[T, d] at that concept's layer."""
        return block.values[int(self.layers[concept])]


class Located(NamedTuple):
    """map [T, C] of the test tokens, decisions [T, C]; level (index) [C], cutoff [C] float64 and cal token F1 [C]; activations [T, C]."""

    map: Tensor
    decisions: Tensor
    level: Tensor
    cutoff: Tensor
    cal_f1: Tensor
    activations: Tensor


def score_tokens(split: SplitBlocks, localizer: Localizer, explained: Explanation) -> tuple[Tensor, Tensor]:
    """(map, activations), each [T, C] float32, of a split whose labels the localizer does not see."""
    maps, activations = [], []
    for block in split.blind():
        maps.append(localizer.score(block, explained))
        activations.append(explained.activations(block))
    return torch.cat(maps), torch.cat(activations)


def locate(
    tokens: Tokens,
    localizer: Localizer,
    explained: Explanation,
    detected: tuple[Tensor, Tensor],
    levels: tuple[float, ...],
    at_least: Tensor | None,
) -> Located:
    """Fits the localizer on train, chooses its level on cal, decides on test.

    detected: [S, C] bool of cal and of test. at_least [C]: index of the detection level, below which a map calibrated on the same
    tokens with the same scores is not cut (rho >= delta, section 7.1); None where the detector has no token level.
    """
    fit = getattr(localizer, "fit", None)
    fitted: Localizer = localizer if fit is None else fit(tokens.train, explained)
    in_cal, in_test = (
        found[segment_ids(split.offsets)] for found, split in zip(detected, (tokens.cal, tokens.test), strict=True)
    )
    scores, _ = score_tokens(tokens.cal, fitted, explained)
    usable = (tokens.cal.truth == 1) & (in_cal if fitted.calibrate_on == "detected" else torch.ones_like(in_cal))
    cutoffs = torch.stack([tail_cutoffs(scores[usable[:, c], c][:, None], levels)[:, 0] for c in range(scores.shape[1])], -1)
    f1 = f1_score(counts_at(scores.masked_fill(~in_cal, -torch.inf), tokens.cal.truth, cutoffs))
    f1 = f1.masked_fill(cutoffs.isnan(), torch.nan)
    if at_least is not None and fitted.calibrate_on == "tokens":
        f1 = f1.masked_fill(torch.arange(len(levels), device=f1.device)[:, None] < at_least, torch.nan)
    level = first_best(f1)
    cutoff = cutoffs.gather(0, level[None])[0]
    tested, activations = score_tokens(tokens.test, fitted, explained)
    decisions = (tested.double() >= cutoff) & in_test
    return Located(tested, decisions, level, cutoff, f1.gather(0, level[None])[0], activations)


def merge(parts: list[tuple[Tensor, Located]]) -> Located:
    """One `Located` from those of several layer groups; each comes with the concepts [C] bool whose layer is in its group."""
    mine, merged = parts[0]
    for mine, part in parts[1:]:
        merged = Located(*(torch.where(mine, new, old) for new, old in zip(part, merged, strict=True)))
    return merged
