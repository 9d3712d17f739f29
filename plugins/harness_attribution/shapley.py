"""SHAP-IQ: Shapley interactions from shapiq's KernelSHAP-IQ approximator, of order 1, which are Shapley values (section 7.4).

shapiq draws the coalitions and solves the regression; the scores come from the probe, so that all concepts share them: with one seed it
draws the same coalitions for each. It imports numba and more, and takes some seconds to load.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from shapiq.approximator import KernelSHAPIQ
from torch import Tensor

from harness.api import Probe

from .explaining import Explaining


@dataclass(frozen=True)
class ShapIq(Explaining):
    """Shapley values by paired sampling; they add up to f(whole) - f(empty).

    budget: coalitions scored, the whole and the empty sample among them; where a sample has no more of them, all are.
    """

    budget: int = 512

    name: ClassVar[str] = "shap-iq"
    at_least: ClassVar[dict[str, float]] = {"budget": 4}

    def forwards(self, tokens: int, concepts: int) -> int:
        """One per coalition."""
        return min(self.budget, 2**tokens) if tokens < 60 else self.budget

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        if probe.tokens == 1:
            ends = probe.masked(torch.tensor([[False], [True]]))[:, list(concepts)]
            return (ends[1:] - ends[:1]).float()
        seed = int(torch.randint(2**31, (), generator=probe.generator))
        return torch.stack([self._values(probe, concept, seed) for concept in concepts], 1).float()

    def _values(self, probe: Probe, concept: int, seed: int) -> Tensor:
        """[T] of one concept."""

        def game(coalitions: Any) -> Any:
            return probe.masked(torch.from_numpy(coalitions.astype(bool)))[:, concept].numpy()

        approximator = KernelSHAPIQ(probe.tokens, max_order=1, index="SII", pairing_trick=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not all budget is required")
            found = approximator.approximate(self.budget, game)
        return torch.from_numpy(found.get_n_order_values(1).copy())
