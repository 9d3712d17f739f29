"""MFABA, sharp: the gradients along an adversarial path away from the concept (Zhu et al., AAAI 2024), with the authors' defaults.

The path is FGSM's: x_{i+1} = x_i - alpha * sign(g_i), g_i the gradient of softmax(f)_c over the task's concepts at x_i. The map is
the sum of -(x_{i+1} - x_i) g_i = alpha |g_i|, absolute, summed over each token's part (the original averages patches: the same ranking).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.api import Probe

from .explaining import Explaining


@dataclass(frozen=True)
class Mfaba(Explaining):
    """Sharp MFABA. steps: of the path (50). alpha: a step's length in the leaf's units (0.001). No step is clipped to a range.

    Concepts without a vector are in no softmax; with one concept alone the softmax is constant, and its score itself is followed.
    """

    steps: int = 50
    alpha: float = 1e-3

    name: ClassVar[str] = "mfaba"
    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "gradients"})
    at_least: ClassVar[dict[str, float]] = {"steps": 1, "alpha": 1e-12}

    def forwards(self, tokens: int, concepts: int) -> int:
        """A forward and a backward pass per step and concept."""
        return 3 * self.steps * concepts

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]: the paths of all concepts side by side."""
        index = torch.tensor(list(concepts))
        leaves = probe.leaf.detach().expand(len(index), *probe.leaf.shape).clone()
        total = torch.zeros_like(leaves)
        for _ in range(self.steps):
            leaves.requires_grad_()
            followed = probability(probe.f(leaves))[torch.arange(len(index)), index]
            (gradient,) = torch.autograd.grad(followed.sum(), leaves)
            step = -self.alpha * gradient.sign()
            total -= step * gradient
            leaves = (leaves + step).detach()
        return probe.per_token(total.abs()).T.float().cpu()


def probability(scores: Tensor) -> Tensor:
    """softmax [n, C] over the concepts that have a score, NaN for the others; the score itself where there is only one."""
    known = scores.isfinite().all(0)
    if int(known.sum()) < 2:
        return scores
    return scores.masked_fill(~known, -torch.inf).softmax(1).masked_fill(~known, torch.nan)
