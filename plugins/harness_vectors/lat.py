"""LAT, linear artificial tomography: the first principal component of differences between pairs of tokens (Zou et al. 2023, RepE).

Pairs are a token inside and one outside the concept, drawn at random. RepE shuffles which of the two comes first, so that the mean
difference is about 0, and centres: what remains is the uncentred second moment of the differences, in which the order drops out. That
is what is taken here, with no order to draw. Activation = dot product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from harness.api import Blocks, HarnessError
from harness_vectors.directions import Directions
from harness_vectors.linear import balanced, gathered

HELD_BYTES = 1_500_000_000
"""Room for the tokens of the concepts that are held at once, at all layers; one concept at least."""


@dataclass(frozen=True)
class Lat:
    """pairs: at most so many per concept, each token in one pair only; a concept with fewer tokens inside (or outside) has fewer."""

    pairs: int = 2000

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise HarnessError(
                f"bad value {self.pairs} for option 'pairs' of concept method 'lat'; allowed: whole numbers from 1"
            )

    def fit(self, train: Blocks) -> Directions:
        """[L, C, d] of length 1, their sign such that the mean drawn pair has the token inside higher; NaN without a pair."""
        drawn = balanced(train, 2 * self.pairs * len(train.concepts))
        step = max(1, HELD_BYTES // (8 * self.pairs * train.width * len(train.sites)))
        parts = (drawn[first : first + step] for first in range(0, len(drawn), step))
        fitted = [first_component(_differences(tokens)) for part in parts for tokens, _ in gathered(train, part)]
        return Directions(torch.stack(fitted, 1).float(), cosine=False)


def _differences(tokens: Tensor) -> Tensor:
    """[L, N, d] float64 of tokens [L, 2N, d]: the first half, inside, minus the second, outside."""
    inside, outside = tokens.double().chunk(2, 1)
    return inside - outside


def first_component(differences: Tensor) -> Tensor:
    """[L, d]: the unit vector v with the largest sum of (difference . v)^2, turned towards their mean; NaN without a difference."""
    return torch.stack([_first(layer) for layer in differences])


def _first(differences: Tensor) -> Tensor:
    """By Lanczos' method, to machine precision, from a fixed start: an eigendecomposition takes 10 times as long."""
    width = differences.shape[1]
    moment = (differences.T @ differences).cpu().numpy()
    if not moment.any():
        return differences.new_full((width,), torch.nan)
    _, found = eigsh(moment, k=1, v0=np.random.default_rng(0).standard_normal(width))
    direction = torch.from_numpy(found[:, 0]).to(differences.device)
    return direction if differences.mean(0) @ direction >= 0 else -direction
