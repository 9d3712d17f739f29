"""Scorers that never look at a sample. Their cutoff is fixed at 0.5: there is nothing to calibrate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.api import Sample


@dataclass(frozen=True)
class Coin:
    """Uniform in [0, 1) from sha256(seed, sample id, concept): order and batches change nothing."""

    seed: int = 0

    calibrate_on = "fixed"

    def fit(self, samples: Sequence[Sample], labels: Any, seed: int) -> Coin:
        """With the run's seed."""
        return replace(self, seed=seed)

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray[Any, Any]:
        """[S, C] float64."""
        return np.array([[self._draw(sample.id, concept) for concept in concepts] for sample in samples])

    def _draw(self, sample_id: str, concept: str) -> float:
        digest = hashlib.sha256(f"{self.seed}:{sample_id}:{concept}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48


class AlwaysYes:
    """1 for everything: its F1 is 2p / (1 + p) at prevalence p."""

    calibrate_on = "fixed"

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray[Any, Any]:
        """[S, C] float64."""
        return np.ones((len(samples), len(concepts)))


class AlwaysNo:
    """0 for everything: its F1 is 0, and what accuracy it has is the prevalence of the negatives."""

    calibrate_on = "fixed"

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray[Any, Any]:
        """[S, C] float64."""
        return np.zeros((len(samples), len(concepts)))
