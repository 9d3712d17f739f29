"""Which units are worth matching, by their activations on cal alone (method section 8, on tokens).

Dropped are units active on too few cal tokens next to the rarest concept, then on too many next to the most frequent one, then those
whose p99 is low among the rest. Only how frequent the concepts are is used of the labels, and not where they are: still no fully
unsupervised choice. Rules and order are the authors' (postprocess_sae_activations.py); they round a share of tokens down, and so do we.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api import HarnessError

TOP = 0.01
STRENGTHS = ((1, 50.0), (9, 60.0), (29, 70.0))
"""Up to so many concepts, units below this percentile of the p99 are dropped; above, those below the 80th."""


@dataclass(frozen=True)
class Rules:
    """The thresholds; None = the authors' for this kind of encoder.

    min_share: of the rarest concept's in-concept cal tokens, as many as a unit must be active on (0.75 for TopK, else 0.01), and at
    least min_tokens (1 for TopK, else 10). max_share: of the most frequent concept's. strength: a percentile.
    """

    min_share: float | None = None
    min_tokens: int | None = None
    max_share: float = 1.25
    strength: float | None = None

    def __post_init__(self) -> None:
        allowed = {"min_share": torch.inf, "min_tokens": torch.inf, "max_share": torch.inf, "strength": 100}
        for name, high in allowed.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= high):
                what = "a number from 0 to 100" if name == "strength" else "a number from 0"
                raise HarnessError(f"bad value {value!r} for option {name!r} of concept method 'sae'; allowed: {what}")

    def limits(self, positives: Tensor, topk: bool) -> Limits:
        """The thresholds as numbers, from the in-concept cal tokens of each concept [C]; concepts without any have no say."""
        counts = positives[positives > 0]
        rarest, most = (int(counts.min()), self.max_share * int(counts.max())) if len(counts) else (0, torch.inf)
        share = self.min_share if self.min_share is not None else 0.75 if topk else 0.01
        floor = self.min_tokens if self.min_tokens is not None else 1 if topk else 10
        strength = self.strength
        if strength is None:
            strength = next((percentile for concepts, percentile in STRENGTHS if len(positives) <= concepts), 80.0)
        return Limits(max(1, floor, int(share * rarest)), most, strength)


@dataclass(frozen=True)
class Limits:
    """A unit stays where it is active on fewest to most cal tokens, and its p99 is at or above the percentile `strength`."""

    fewest: float
    most: float
    strength: float

    def frequent(self, counts: Tensor, name: str) -> Tensor:
        """[n] int64: the units that stay by their counts [K]; an error that says which option to change where none does."""
        enough = counts >= self.fewest
        stays = enough & (counts <= self.most)
        if stays.any():
            return stays.nonzero()[:, 0]
        active = int((counts > 0).sum())
        why = f"all {int(enough.sum())} that are frequent enough are active on more than {self.most:g} cal tokens; raise max_share"
        if not enough.any():
            why = f"none of the {active} active ones is active on {self.fewest:g} cal tokens or more; lower min_share or min_tokens"
        if not active:
            why = "none is active on any cal token; is this the model and the site it was trained on?"
        raise HarnessError(f"no unit of {name} is left after pruning on cal; {why}")

    def strong(self, peaks: Tensor) -> Tensor:
        """[n] bool: the units whose p99 [n] is at or above the percentile (interpolated) of all."""
        return peaks >= torch.quantile(peaks.double(), self.strength / 100).to(peaks.dtype)


def peaks(active: Iterable[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """[n] float32: p99 of the activations above 0 of n units; 0 for one without.

    active: (units [m] int64, values [m]) of any number of tokens. The p99 of m values is the one at place int(m / 100) in descending
    order, as in the authors' code, which keeps the strongest 1,000 to 2,000 values of a unit; here all count.
    """
    parts = list(active)
    units, values = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    order = values.argsort(descending=True)
    order = order[units[order].argsort(stable=True)]
    counts = torch.bincount(units, minlength=n)
    place = counts.cumsum(0) - counts + (counts * TOP).long()
    found = values.new_zeros(n)
    there = counts > 0
    found[there] = values[order[place[there]]]
    return found
