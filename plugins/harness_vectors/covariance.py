"""The covariance of all train tokens, one matrix per layer, streamed: what principal components and Fisher's directions need."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Blocks, HarnessError, TokenEmbeddings


class Covariance:
    """Sums of tokens and of their products in float64; every block's own products are float32."""

    def __init__(self, train: Blocks) -> None:
        layers, width, self.n = len(train.sites), train.width, len(train.truth)
        self._products = torch.zeros(layers, width, width, dtype=torch.float64, device=train.truth.device)
        self._total = torch.zeros(layers, width, dtype=torch.float64, device=train.truth.device)

    def add(self, block: TokenEmbeddings) -> None:
        """Adds a block."""
        self._products += torch.matmul(block.values.transpose(1, 2), block.values)
        self._total += block.values.sum(1, dtype=torch.float64)

    def mean(self) -> Tensor:
        """[L, d] float64; 0 without tokens."""
        return self._total / max(self.n, 1)

    def matrix(self) -> Tensor:
        """[L, d, d] float64, divided by n."""
        mean = self.mean()
        return self._products / max(self.n, 1) - mean[:, :, None] * mean[:, None, :]


def fisher(covariance: Tensor, gap: Tensor, shrinkage: float) -> Tensor:
    """[L, K, d]: (S + shrinkage * tr(S)/d * I)^-1 gap, for S [L, d, d] and the gaps between two class means [L, K, d].

    With the total covariance the direction is Fisher's: it differs from the within-class one by a factor (Sherman-Morrison), so
    one matrix serves every unit. By Cholesky: the matrix is positive definite, and LU of several matrices at once fails in oneMKL with
    some numbers of threads (torch 2.13 on a CPU: "Pivots given to lu_solve").
    """
    ridge = shrinkage * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12)
    eye = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge[:, None, None] * eye)
    if (gap[failed > 0].isfinite().all(2)).any():  # without a gap there is nothing to solve
        raise HarnessError(
            f"the covariance of the train tokens is singular with shrinkage={shrinkage:g}; concept method with linear separators; "
            "give a larger one, such as shrinkage=0.01"
        )
    return torch.cholesky_solve(gap.transpose(1, 2), factor).transpose(1, 2)
