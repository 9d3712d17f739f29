"""Poolings between the maximum and the mean: the mean of the strongest few tokens, and the soft maximum. Nothing is fitted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from harness.api import HarnessError, TokenEmbeddings, segment_logsumexp, segment_top_mean


@dataclass(frozen=True)
class TopMean:
    """The mean of the k strongest tokens, of all tokens where a sample has fewer; k=1 is the maximum."""

    k: int = 3

    calibrate_on = "samples"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise HarnessError(f"bad value {self.k} for option 'k' of detector 'topk-mean'; allowed: whole numbers from 1")

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K], in the units of the activations."""
        return segment_top_mean(activations, block.offsets, self.k)


@dataclass(frozen=True)
class Softmax:
    """t * log sum_n exp(s_n / t) over a sample's n tokens: the maximum as t -> 0.

    It is a sum: 256 equal tokens score t log 256 more than one. normalize=true subtracts t log n and so makes it a mean (the mean of
    the activations as t -> infinity); where all samples have as many tokens that changes no decision.
    """

    t: float = 1.0
    normalize: bool = False

    calibrate_on = "samples"

    def __post_init__(self) -> None:
        if not self.t > 0:
            raise HarnessError(f"bad value {self.t} for option 't' of detector 'softmax'; allowed: numbers above 0")

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K], in the units of the activations."""
        pooled = self.t * segment_logsumexp(activations / self.t, block.offsets)
        if not self.normalize:
            return pooled
        return pooled - self.t * block.offsets.diff().clamp(min=1).to(pooled.dtype).log()[:, None]
