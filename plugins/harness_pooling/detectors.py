"""How the baselines pool a sample's tokens into one score. Everything after that is the core's, and the same for all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.api import Blocks, Concepts, TokenEmbeddings, segment_last, segment_max, segment_mean, segment_pick


class Max:
    """The strongest token."""

    calibrate_on = "samples"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K]."""
        return segment_max(activations, block.offsets)


class Mean:
    """The mean over tokens, in float64."""

    calibrate_on = "samples"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K]."""
        return segment_mean(activations, block.offsets)


class Last:
    """The last content token: the bottom-right patch, the last piece of a text."""

    calibrate_on = "samples"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K]."""
        return segment_last(activations, block.offsets)


@dataclass(frozen=True)
class Random:
    """Token number sha256(seed, sample id) mod n: the same at every layer, in every block and for every backbone with as many tokens."""

    seed: int = 0

    calibrate_on = "samples"

    def fit(self, train: Blocks, concepts: Concepts) -> Random:
        """With the run's seed."""
        return replace(self, seed=train.seed)

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K]."""
        lengths = block.offsets.diff().tolist()
        places = [self._place(name) % max(n, 1) for name, n in zip(block.ids, lengths, strict=True)]
        return segment_pick(activations, block.offsets, torch.tensor(places, device=block.offsets.device))

    def _place(self, sample_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{sample_id}".encode()).digest()[:7], "big")
