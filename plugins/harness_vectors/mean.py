"""Mean vectors: v_c = mean of the normalised train embeddings that are in the concept (method section 3, avg). Not re-normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Blocks, TokenEmbeddings
from harness_vectors.directions import Directions


class ClassSums:
    """The sum, per layer and concept, of the train tokens whose truth is `value`, in float64, block by block."""

    def __init__(self, train: Blocks, value: int) -> None:
        shape = (len(train.sites), len(train.concepts), train.width)
        self._total = torch.zeros(shape, dtype=torch.float64, device=train.truth.device)
        self._value, self._count = value, (train.truth == value).sum(0)

    def add(self, block: TokenEmbeddings) -> None:
        """Adds a block; only tokens of some concept are widened to float64 where they are few."""
        assert block.truth is not None  # noqa: S101 - train blocks carry their truth
        member = block.truth == self._value
        some = member.any(1)
        for layer, tokens in enumerate(block.values):
            self._total[layer] += member[some].double().T @ tokens[some].double()

    def mean(self) -> Tensor:
        """[L, C, d] float64; NaN without such a token."""
        return self._total / self._count[None, :, None]


class Mean:
    """The mean of positive tokens, compared by cosine. As e is centred by the train mean this is a centred cosine."""

    def fit(self, train: Blocks) -> Directions:
        """One pass over train."""
        sums = ClassSums(train, 1)
        for block in train:
            sums.add(block)
        return Directions(sums.mean().float(), cosine=True)
