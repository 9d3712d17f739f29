"""Clusters of train tokens as units without names: Euclidean k-means (method section 3), and a separator per cluster.

Lloyd's algorithm from a greedy k-means++ start, layer by layer, exact in float32 products and float64 sums. The authors let faiss run
300 iterations from a random start on at most 256 tokens per centre (256,000 for their 1,000); here as many tokens are taken at most,
and the fit stops once an iteration gains less than a share `tol` of the squared error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from harness.api import Blocks, HarnessError
from harness_vectors.covariance import Covariance, fisher
from harness_vectors.directions import DirectionUnits
from harness_vectors.sampling import at_least, drawn, layers_of

START_ROWS = 10
"""Tokens per centre among which k-means++ looks for a start."""

ROWS = 8192
"""Tokens widened to float64 at once."""

SCORES = 1 << 21
"""Scores [n, K] made at once: they stay in the processor's cache."""

TOKENS_PER_UNIT = 4
"""A cluster is the mean of so many train tokens at least, on average: fewer tokens give fewer units."""


@dataclass(frozen=True)
class KMeans:
    """A unit per cluster; activation = cosine to its centre.

    k: clusters, or one per 4 train tokens where that is fewer. iterations: at most so many. tol: stop once an iteration lowers the
    squared error by no more than this share. max_rows: tokens that are clustered at most, a seeded sample, the same at every layer.
    """

    name: ClassVar[str] = "kmeans"
    needs_truth: ClassVar[bool] = False
    k: int = 1000
    iterations: int = 100
    tol: float = 1e-3
    max_rows: int = 256_000

    def __post_init__(self) -> None:
        at_least(1, self.name, k=self.k, iterations=self.iterations, max_rows=self.max_rows)
        if not 0 <= self.tol < 1:
            raise HarnessError(
                f"bad value {self.tol} for option 'tol' of concept method {self.name!r}; allowed: a share from 0 to below 1"
            )

    def fit(self, train: Blocks) -> DirectionUnits:
        """The centres of every layer; NaN for a cluster that no token is in, as there are fewer different tokens than clusters."""
        centres = self._centres(train)
        return DirectionUnits(centres, True, _names(centres), self._note(train, centres))

    def _centres(self, train: Blocks) -> Tensor:
        """[L, K, d] float32."""
        places = drawn(train, self.max_rows)
        k = max(1, min(self.k, len(places) // TOKENS_PER_UNIT))
        if not len(places):
            return torch.full((len(train.sites), k, train.width), torch.nan, device=places.device)
        return torch.stack([clusters(tokens, k, train.seed, self) for tokens in layers_of(train, places)])

    def _note(self, train: Blocks, centres: Tensor) -> str:
        used, n, k = min(len(train.truth), self.max_rows), len(train.truth), centres.shape[1]
        said = [f"clustered {used} of {n} train tokens"] if used < n else []
        said += [f"k={k} and not {self.k}: {TOKENS_PER_UNIT} train tokens per unit"] if k < self.k else []
        empty = int(centres.isnan().any(2).sum())
        said += [f"{empty} empty clusters over all layers"] if empty else []
        return "; ".join(said)


@dataclass(frozen=True)
class KMeansLinear(KMeans):
    """A linear separator per cluster, of the train tokens nearest to its centre from all others; activation = dot product.

    The closed form of `linear`, where the authors train one Adam separator per cluster. shrinkage: as in `linear`.
    """

    name: ClassVar[str] = "kmeans-linear"
    shrinkage: float = 1e-2

    def fit(self, train: Blocks) -> DirectionUnits:
        """[L, K, d] from one more pass; NaN for a cluster without tokens, or with all of them."""
        centres = self._centres(train)
        every, inside = Covariance(train), torch.zeros_like(centres, dtype=torch.float64)
        sizes = torch.zeros(centres.shape[:2], dtype=torch.float64, device=centres.device)
        for block in train:
            every.add(block)
            for layer, tokens in enumerate(block.values):
                own = nearest(tokens, centres[layer]).index
                inside[layer].index_add_(0, own, tokens.double())
                sizes[layer] += torch.bincount(own, minlength=centres.shape[1])
        size = sizes[..., None]
        # mean inside - mean outside, from the mean of all
        gap = (inside / size - every.mean()[:, None]) * (every.n / (every.n - size))
        vectors = fisher(every.matrix(), gap, self.shrinkage).float()
        return DirectionUnits(vectors, False, _names(centres), self._note(train, centres))


def _names(centres: Tensor) -> tuple[str, ...]:
    return tuple(str(unit) for unit in range(centres.shape[1]))


def clusters(tokens: Tensor, k: int, seed: int, options: KMeans) -> Tensor:
    """[k, d] float32: the centres of tokens [N, d], which lose their mean on the way: distances stay, and rounding is less."""
    mean = tokens.mean(0, dtype=torch.float64).float()
    tokens -= mean
    return lloyd(tokens, start(tokens, k, seed), options) + mean


def start(tokens: Tensor, k: int, seed: int) -> Tensor:
    """[k, d]: tokens drawn one after another with odds |distance to the nearest so far|^2, the best of 2 + ln k draws each time.

    Greedy k-means++ (Arthur and Vassilvitskii 2007) on `START_ROWS` * k seeded tokens: as on all, at a fraction of the cost.
    """
    generator = torch.Generator().manual_seed(seed)
    few = tokens[torch.randperm(len(tokens), generator=generator)[: START_ROWS * k].to(tokens.device)]
    odds = torch.rand(k, 2 + int(math.log(k)), generator=generator, dtype=torch.float64).to(tokens.device)
    square = few.square().sum(1)
    chosen = torch.zeros(k, dtype=torch.int64, device=tokens.device)
    near = (few - few[0]).square().sum(1)
    for place in range(1, k):
        mass = near.cumsum(0, dtype=torch.float64)
        draws = torch.searchsorted(mass, odds[place] * mass[-1], right=True).clamp(max=len(few) - 1)
        far = torch.addmm(square, few[draws], few.T, alpha=-2).add_(square[draws, None]).clamp_(min=0)
        closer = torch.minimum(far, near)
        best = closer.sum(1).argmin()
        near, chosen[place] = closer[best], draws[best]
    return few[chosen]


def lloyd(tokens: Tensor, centres: Tensor, options: KMeans) -> Tensor:
    """[K, d] float32: each centre the mean of the tokens nearest to it, ties to the first; NaN for one that stays empty.

    Sums are float64, and only tokens that changed their cluster are moved from one to the other.
    """
    k, square = len(centres), tokens.square().sum(1)
    sums = torch.zeros(k + 1, tokens.shape[1], dtype=torch.float64, device=tokens.device)
    own = torch.full((len(tokens),), k, device=tokens.device)  # at first, none
    before = torch.inf
    for _ in range(options.iterations):
        found = nearest(tokens, centres)
        distance = (square - 2 * found.score).clamp_(min=0)
        sizes = refill(found.index, distance, square, k)
        for part in (own != found.index).nonzero()[:, 0].split(ROWS):
            moved = tokens[part].double()
            sums.index_add_(0, own[part], moved, alpha=-1).index_add_(0, found.index[part], moved)
        own = found.index
        centres = torch.where((sizes > 0)[:, None], sums[:k] / sizes[:, None], centres.double()).float()
        error = float(distance.sum(dtype=torch.float64))
        if error >= before * (1 - options.tol):
            break
        before = error
    return centres.masked_fill((sizes == 0)[:, None], torch.nan)


def refill(own: Tensor, distance: Tensor, square: Tensor, k: int) -> Tensor:
    """[k]: the sizes of clusters, after each empty one was given (in `own`) the token farthest from its centre, the first of equals.

    A token alone in its cluster stays, and so does one that is its centre, up to rounding.
    """
    sizes = torch.bincount(own, minlength=k)
    empty = (sizes == 0).nonzero()[:, 0]
    if not len(empty):
        return sizes
    far = torch.where((sizes[own] > 1) & (distance > 1e-6 * square), distance, 0)
    order = far.sort(descending=True, stable=True).indices[: len(empty)]
    order = order[far[order] > 0]
    own[order] = empty[: len(order)]
    return torch.bincount(own, minlength=k)


class Nearest(NamedTuple):
    """Of every token: index [N] int64, its centre, the first among equals; score [N] float32, x.c - |c|^2/2 of that centre."""

    score: Tensor
    index: Tensor


def nearest(tokens: Tensor, centres: Tensor) -> Nearest:
    """The centre of the smallest |x - c|^2 = |x|^2 - 2 (x.c - |c|^2/2) for tokens [N, d]; one that is NaN is never it."""
    there = ~centres.isnan().any(1)
    flat = centres.nan_to_num(0.0).T
    offset = torch.where(there, -flat.square().sum(0) / 2, -torch.inf)
    index = torch.empty(len(tokens), dtype=torch.int64, device=tokens.device)
    found = Nearest(tokens.new_empty(len(tokens)), index)
    step = max(1, SCORES // len(centres))
    for first in range(0, len(tokens), step):
        part = slice(first, first + step)
        torch.max(torch.addmm(offset, tokens[part], flat), 1, out=(found.score[part], found.index[part]))
    return found
