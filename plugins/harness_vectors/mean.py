"""Mean vectors: v_c = mean of the normalised train embeddings that are in the concept (method section 3, avg). Not re-normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Blocks
from harness_vectors.directions import Directions


def class_means(train: Blocks, value: int) -> Tensor:
    """[L, C, d] float64: the mean of the tokens whose truth is `value`, accumulated in float64; NaN without such a token."""
    total = torch.zeros(len(train.sites), len(train.concepts), train.width, dtype=torch.float64, device=train.truth.device)
    for block in train:
        assert block.truth is not None  # noqa: S101 - train blocks carry their truth
        member = (block.truth == value).double().T
        for layer, tokens in enumerate(block.values):
            total[layer] += member @ tokens.double()
    return total / (train.truth == value).sum(0)[None, :, None]


class Mean:
    """The mean of positive tokens, compared by cosine. As e is centred by the train mean this is a centred cosine."""

    def fit(self, train: Blocks) -> Directions:
        """One pass over train."""
        return Directions(class_means(train, 1).float(), cosine=True)
