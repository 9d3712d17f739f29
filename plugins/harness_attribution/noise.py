"""`noise`: a random map, the floor of every measure of localization."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from harness.api import Blocks, Explained, TokenEmbeddings


@dataclass(frozen=True)
class Noise:
    """A uniform number in [0, 1) per token and concept, drawn by the run's seed and the sample's id alone."""

    seed: int = 0

    calibrate_on = "detected"

    def fit(self, train: Blocks, explained: Explained) -> Noise:
        """With the run's seed."""
        return replace(self, seed=train.seed)

    def score(self, block: TokenEmbeddings, explained: Explained) -> Tensor:
        """[T, C]."""
        lengths, concepts = block.offsets.diff().tolist(), len(explained.layers)
        drawn = [self._draw(name, n, concepts) for name, n in zip(block.ids, lengths, strict=True)]
        return torch.from_numpy(np.concatenate(drawn)).float().to(block.values.device)

    def _draw(self, sample_id: str, tokens: int, concepts: int) -> np.ndarray:
        digest = hashlib.sha256(f"{self.seed}:{sample_id}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big")).random((tokens, concepts))
