"""Fitted directions: activations of all units at all layers are one batched matmul. No bias: calibration takes it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api import TokenEmbeddings

TINY = 1e-8


@dataclass(frozen=True)
class Directions:
    """vectors [L, K, d] float32; a unit that could not be fitted is NaN, and so are its activations. cosine: divide by both norms."""

    vectors: Tensor
    cosine: bool

    def activate(self, block: TokenEmbeddings) -> Tensor:
        """[L, T, K]: e.w, or for cosine e.v / max(|e| |v|, 1e-8) (method section 4); never a [T, K, d] temporary."""
        if block.values.requires_grad:  # one NaN vector would make the gradient of every unit NaN
            known = Directions(self.vectors.nan_to_num(), self.cosine)._activate(block.values)
            return known.masked_fill(self.vectors.isnan().any(-1)[:, None], torch.nan)
        return self._activate(block.values)

    def _activate(self, values: Tensor) -> Tensor:
        dot = torch.matmul(values, self.vectors.transpose(1, 2))
        if not self.cosine:
            return dot
        norms = values.norm(dim=-1, keepdim=True) * self.vectors.norm(dim=-1)[:, None]
        return dot / norms.clamp(min=TINY)


@dataclass(frozen=True)
class DirectionUnits:
    """Directions that have no names yet: vectors [L, K, d] float32 as in `Directions`, unit k called units[k] at every layer.

    note: what the fit left out or did not reach, for the result; empty where there is nothing to say.
    """

    vectors: Tensor
    cosine: bool
    units: Sequence[str]
    note: str = ""

    def activate(self, block: TokenEmbeddings, units: slice) -> Tensor:
        """[L, T, k], as in `Directions`."""
        return Directions(self.vectors[:, units], self.cosine).activate(block)

    def pick(self, index: Tensor) -> Directions:
        """The units index [L, C] int64, one set per layer; NaN for -1."""
        index = index.to(self.vectors.device)[..., None]
        picked = self.vectors.gather(1, index.clamp(min=0).expand(-1, -1, self.vectors.shape[2]))
        return Directions(picked.masked_fill(index < 0, torch.nan), self.cosine)
