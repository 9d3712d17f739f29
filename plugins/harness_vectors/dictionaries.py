"""Dictionaries of train tokens as units without names, each a direction per unit: principal and independent components, and NMF.

Activation is a dot product throughout. For NMF this is not its code: the exact non-negative code of a token depends on all atoms at
once, so it would be solved anew for every slice of units, and has no vector that a localizer could use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from sklearn.decomposition import NMF, FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from harness.api import Blocks
from harness_vectors.covariance import Covariance
from harness_vectors.directions import DirectionUnits
from harness_vectors.sampling import at_least, drawn, layers_of

RANK = 1e-6
"""A component of less than this share of the largest variance is rounding, and no unit."""


@dataclass(frozen=True)
class Pca:
    """The k directions of the largest variance of all train tokens, k at most the width; two units each, `0+` and `0-`.

    A concept may lie at either end of a component, whose sign is arbitrary: here its largest entry is positive, in `+`.
    """

    needs_truth: ClassVar[bool] = False
    k: int = 100

    def __post_init__(self) -> None:
        at_least(1, "pca", k=self.k)

    def fit(self, train: Blocks) -> DirectionUnits:
        """[L, 2k, d] from one pass over train; NaN beyond the rank of the tokens."""
        spread = Covariance(train)
        for block in train:
            spread.add(block)
        variance, axes = torch.linalg.eigh(spread.matrix())
        variance, axes = variance.flip(1)[:, : self.k], axes.flip(2)[:, :, : self.k].transpose(1, 2)
        lost = variance <= (RANK * variance[:, :1]).clamp(min=1e-12)
        return both_ends(axes.masked_fill(lost[..., None], torch.nan), "")


@dataclass(frozen=True)
class Ica:
    """k independent components (scikit-learn's FastICA, logcosh) of a seeded sample, whitened to its first k principal components.

    Two units each, `0+` and `0-`, as for `pca`. k: at most the width. iterations: at most so many. max_rows: tokens of the
    sample, the same at every layer.
    """

    needs_truth: ClassVar[bool] = False
    k: int = 100
    iterations: int = 200
    max_rows: int = 20_000

    def __post_init__(self) -> None:
        at_least(1, "ica", k=self.k, iterations=self.iterations, max_rows=self.max_rows)

    def fit(self, train: Blocks) -> DirectionUnits:
        """[L, 2k, d]: the rows that unmix the tokens; NaN beyond the rank of the sample."""
        found = by_layer(train, min(self.k, train.width), self.max_rows, self._components)
        return both_ends(found.vectors, found.note(self.iterations))

    def _components(self, tokens: Tensor, k: int, seed: int) -> Fitted:
        white = whitening(tokens)[:, :k]
        if white.shape[1] == 0:
            return Fitted(tokens[:0], 0)
        model = FastICA(whiten=False, max_iter=self.iterations, random_state=seed)
        found = _fit(model, (tokens - tokens.mean(0)) @ white)
        return Fitted(found.vectors @ white.T, found.steps)


@dataclass(frozen=True)
class Nmf:
    """k atoms of a non-negative factorisation (scikit-learn's NMF) of a seeded sample, each token e as [max(e, 0), max(-e, 0)].

    The unit's direction is the first half of its atom minus the second. k: at most the width. iterations: at most so many.
    max_rows: tokens of the sample, the same at every layer.
    """

    needs_truth: ClassVar[bool] = False
    k: int = 100
    iterations: int = 50
    max_rows: int = 10_000

    def __post_init__(self) -> None:
        at_least(1, "nmf", k=self.k, iterations=self.iterations, max_rows=self.max_rows)

    def fit(self, train: Blocks) -> DirectionUnits:
        """[L, k, d]; NaN for an atom that is zero, and for more atoms than tokens."""
        found = by_layer(train, min(self.k, train.width), self.max_rows, self._atoms)
        names = tuple(str(unit) for unit in range(found.vectors.shape[1]))
        return DirectionUnits(found.vectors, False, names, found.note(self.iterations))

    def _atoms(self, tokens: Tensor, k: int, seed: int) -> Fitted:
        k, parts = min(k, len(tokens)), torch.cat([tokens.clamp(min=0), tokens.clamp(max=0).neg()], 1)
        if k == 0 or not parts.any():
            return Fitted(tokens[:0], 0)
        atoms, steps = _fit(NMF(k, init="nndsvda", max_iter=self.iterations, random_state=seed), parts)
        plus, minus = atoms.chunk(2, 1)
        return Fitted((plus - minus).masked_fill((atoms == 0).all(1, keepdim=True), torch.nan), steps)


class Fitted(NamedTuple):
    """vectors [K, d] of one layer, and the iterations they took."""

    vectors: Tensor
    steps: int


@dataclass(frozen=True)
class Layers:
    """vectors [L, K, d] float32, NaN where a layer gave fewer, and every layer's iterations; tokens: used, of how many."""

    vectors: Tensor
    steps: tuple[int, ...]
    tokens: tuple[int, int]

    def note(self, limit: int) -> str:
        """How much of train was used, and how many layers were stopped; empty where all was used and every layer converged."""
        used, n = self.tokens
        said = [f"fitted on {used} of {n} train tokens"] if used < n else []
        stopped = sum(steps >= limit for steps in self.steps)
        said += [f"{stopped} of {len(self.steps)} layers stopped at {limit} iterations"] if stopped else []
        return "; ".join(said)


def by_layer(train: Blocks, k: int, max_rows: int, fit: Callable[[Tensor, int, int], Fitted]) -> Layers:
    """What `fit(tokens [N, d], k, seed)` gives at every layer, on the same seeded sample."""
    places = drawn(train, max_rows)
    vectors = torch.full((len(train.sites), k, train.width), torch.nan, device=places.device)
    steps = []
    for layer, tokens in enumerate(layers_of(train, places)):
        found = fit(tokens, k, train.seed)
        vectors[layer, : len(found.vectors)] = found.vectors
        steps.append(found.steps)
    return Layers(vectors, tuple(steps), (len(places), len(train.truth)))


def _fit(model: FastICA | NMF, tokens: Tensor) -> Fitted:
    """scikit-learn's components; that it stopped before it converged is counted and not warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(tokens.cpu().numpy())
    return Fitted(torch.from_numpy(model.components_).to(tokens), int(model.n_iter_))


def whitening(tokens: Tensor) -> Tensor:
    """[d, r] float32: the projection of centred tokens [N, d] to unit covariance, along the r components that are not rounding."""
    wide = tokens.double()
    wide -= wide.mean(0)
    variance, axes = torch.linalg.eigh(wide.T @ wide / max(len(wide), 1))
    kept = variance > max(RANK * float(variance[-1]), 1e-12)
    return (axes[:, kept] / variance[kept].sqrt()).flip(1).float()


def both_ends(axes: Tensor, note: str) -> DirectionUnits:
    """Two units per axis of [L, k, d], +v and -v; the entry of +v that is largest in size is positive."""
    sign = axes.gather(2, axes.abs().nan_to_num(0.0).argmax(2, keepdim=True)).sign()
    plus = (axes * sign).float()
    names = tuple(f"{unit}{end}" for unit in range(axes.shape[1]) for end in "+-")
    return DirectionUnits(torch.stack([plus, -plus], 2).flatten(1, 2), False, names, note)
