"""Fitted directions: activations of all units at all layers are one batched matmul. No bias: calibration takes it up."""

from __future__ import annotations

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
        dot = torch.matmul(block.values, self.vectors.transpose(1, 2))
        if not self.cosine:
            return dot
        norms = block.values.norm(dim=-1, keepdim=True) * self.vectors.norm(dim=-1)[:, None]
        return dot / norms.clamp(min=TINY)
