"""Localizers: the concept's own activations, and the cosine to the vector of its super-activators (method sections 7.1 and 7.3).

S_c = train tokens with s_c >= tau_c(delta*_c), whatever their truth; the authors pool all splits, test and padding included
(section 11.B5). What a map's cutoff is, and that undetected samples have no positive token, is the core's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.api import Blocks, Explained, TokenEmbeddings, segment_sum, super_activator_vectors, unknown

VECTORS = ("global-softmax", "global-mean", "sample-mean")
TINY = 1e-8


class Direct:
    """The map is the activation itself; its level is at least the detection level (rho >= delta)."""

    calibrate_on = "tokens"

    def score(self, block: TokenEmbeddings, explained: Explained) -> Tensor:
        """[T, C]."""
        return explained.activations(block)


@dataclass(frozen=True)
class SuperActivatorMap:
    """The map is cos(e, u_c), with u_c from super-activators only.

    vector: global-softmax = sum over S_c of softmax(s_c) e, temperature 1; global-mean = their plain mean; sample-mean = the mean of
    the sample's own super-activators. Where there is none, the concept's own vector stands in.
    """

    vector: str = "global-softmax"
    directions: Tensor | None = None

    calibrate_on = "detected"

    def __post_init__(self) -> None:
        if self.vector not in VECTORS:
            raise unknown("vector", self.vector, VECTORS, "localizer 'superactivator'")

    def fit(self, train: Blocks, explained: Explained) -> SuperActivatorMap:
        """With u_c [C, d] float64 from one pass over train; for sample-mean that is the fallback alone."""
        if self.vector == "sample-mean" and explained.vectors is not None:
            return replace(self, directions=explained.vectors.double())
        how = "softmax" if self.vector == "global-softmax" else "mean"
        return replace(self, directions=super_activator_vectors(train, explained, how))

    def score(self, block: TokenEmbeddings, explained: Explained) -> Tensor:
        """[T, C]: cosine of every token to u_c, or to its sample's own u_c."""
        assert self.directions is not None  # noqa: S101 - the core fits before it scores
        columns = []
        for c, direction in enumerate(self.directions):
            tokens = explained.embeddings(block, c).double()
            target = (
                self._own(tokens, block, explained, c) if self.vector == "sample-mean" else direction.expand(len(tokens), -1)
            )
            norms = tokens.norm(dim=1) * target.norm(dim=1)
            columns.append((tokens * target).sum(1) / norms.clamp(min=TINY))
        return torch.stack(columns, 1).float()

    def _own(self, tokens: Tensor, block: TokenEmbeddings, explained: Explained, c: int) -> Tensor:
        """[T, d]: for each token the mean of its sample's super-activators."""
        assert self.directions is not None  # noqa: S101 - as in `score`
        strong = (explained.activations(block)[:, c].double() >= explained.cutoffs[c]).double()
        sums = segment_sum((tokens * strong[:, None])[None], block.offsets)[0]
        count = segment_sum(strong[None, :, None], block.offsets)[0]
        mean = torch.where(count > 0, sums / count.clamp(min=1), self.directions[c])
        return mean.repeat_interleave(block.offsets.diff(), dim=0)
