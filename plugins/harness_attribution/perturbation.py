"""LIME, KernelSHAP, occlusion and RISE: explanations from the scores of the sample with some of its tokens removed.

A removed token is replaced with the backbone's baseline. A score does not depend on the concept that is asked about: one set of masks
serves all concepts and both kinds of vectors, and LIME and RISE draw the same ones. The fits are least squares on scores that are
there already: scikit-learn's Ridge for LIME (17 ms for 1,000 masks of 256 tokens and three concepts; captum's Lime takes 970 ms for
the same coefficients, one concept and one mask at a time, and moves torch's global random generator), and for KernelSHAP an exact
constraint in place of captum's two rows of weight 1e6, whose masks also come from the global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from harness.api import Probe

from .explaining import Explaining


@dataclass(frozen=True)
class Lime(Explaining):
    """The coefficients of a ridge regression of f_c on which tokens are there, near the whole sample more than far from it.

    masks: how many, each token kept with probability 0.5. ridge: the L2 penalty (the authors' 1). A mask weighs
    exp(-d^2 / (2 kernel_width^2)), d its cosine distance to the whole sample, as in lime's image explainer; the authors multiply
    features by such a weight instead (section 7.4). kernel_width: lime's 0.25.
    """

    masks: int = 1000
    ridge: float = 1.0
    kernel_width: float = 0.25

    name: ClassVar[str] = "lime"
    at_least: ClassVar[dict[str, float]] = {"masks": 1, "ridge": 0, "kernel_width": 1e-3}

    def forwards(self, tokens: int, concepts: int) -> int:
        """One per mask."""
        return self.masks

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        keep = probe.random_masks(self.masks)
        distance = 1 - keep.double().mean(1).sqrt()
        weights = torch.exp(-0.5 * (distance / self.kernel_width).square()).numpy()
        scores = probe.masked(keep)[:, list(concepts)]
        fitted = Ridge(self.ridge).fit(keep.double().numpy(), scores.numpy(), sample_weight=weights)
        return torch.from_numpy(fitted.coef_.reshape(len(concepts), -1).T).float()


@dataclass(frozen=True)
class KernelShap(Explaining):
    """Shapley values: the least squares fit of f_c under the Shapley kernel that adds up to f(whole) - f(empty), exactly.

    masks: coalitions drawn by the kernel, each with its complement; where a sample has no more of them, all are taken and the values
    are the Shapley values themselves. With fewer masks than tokens the smallest of the fits that agree with all of them is given.
    """

    masks: int = 500

    name: ClassVar[str] = "kernel-shap"
    at_least: ClassVar[dict[str, float]] = {"masks": 2}

    def forwards(self, tokens: int, concepts: int) -> int:
        """One per mask, the whole and the empty sample."""
        return 2 + (2**tokens - 2 if tokens < 60 and 2**tokens - 2 <= self.masks else self.masks)

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        tokens = probe.tokens
        keep, weights = coalitions(tokens, self.masks, probe.generator)
        ends = torch.tensor([[False], [True]]).expand(2, tokens)
        scores = probe.masked(torch.cat([ends, keep]))[:, list(concepts)]
        size = keep.double().mean(1, keepdim=True)
        root = weights.sqrt()[:, None]
        empty, total = scores[0], scores[1] - scores[0]
        rest = scores[2:] - empty - size * total  # what a constant map, which adds up, leaves to be explained
        design = keep.double() - size  # rows add up to 0, and so does the smallest solution
        found = np.linalg.lstsq((root * design).numpy(), (root * rest).numpy(), rcond=None)[0]
        return (torch.from_numpy(found) + total / tokens).float()


class Coalitions(NamedTuple):
    """keep [n, T] bool and their weights [n] float64; neither the empty nor the whole sample is among them."""

    keep: Tensor
    weights: Tensor


def coalitions(tokens: int, n: int, generator: torch.Generator) -> Coalitions:
    """All of them with the Shapley kernel's weights where they are at most n; else n of weight 1, drawn by the kernel in pairs."""
    if tokens < 60 and 2**tokens - 2 <= n:
        every = torch.arange(1, 2**tokens - 1)[:, None] >> torch.arange(tokens) & 1
        sizes = every.sum(1).tolist()
        kernel = [(tokens - 1) / (comb(tokens, size) * size * (tokens - size)) for size in sizes]
        return Coalitions(every.bool(), torch.tensor(kernel, dtype=torch.float64))
    sizes = torch.arange(1, tokens, dtype=torch.float64)
    drawn = 1 + torch.multinomial(1 / (sizes * (tokens - sizes)), (n + 1) // 2, replacement=True, generator=generator)
    rank = torch.rand(len(drawn), tokens, generator=generator).argsort(1).argsort(1)
    half = rank < drawn[:, None]
    keep = torch.stack([half, ~half], 1).flatten(0, 1)[:n]
    return Coalitions(keep, torch.ones(n, dtype=torch.float64))


@dataclass(frozen=True)
class Occlusion(Explaining):
    """The score that is lost when a token is removed: f(whole) - f(without it).

    window: 1 = a token alone; 3 = the 3 x 3 patches, or 3 tokens of a text, around every token in turn; and so on with odd numbers. A
    token's value is the mean over the windows that hide it.
    """

    window: int = 1

    name: ClassVar[str] = "occlusion"
    at_least: ClassVar[dict[str, float]] = {"window": 1}

    def forwards(self, tokens: int, concepts: int) -> int:
        """One per token, and the whole sample."""
        return tokens + 1

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        hidden = windows(probe.opened.inputs.regions.cpu(), self.window)
        scores = probe.masked(torch.cat([torch.ones(1, probe.tokens, dtype=torch.bool), ~hidden]))[:, list(concepts)]
        lost = hidden.double().T @ (scores[:1] - scores[1:])
        return (lost / hidden.sum(0)[:, None]).float()


def windows(regions: Tensor, size: int) -> Tensor:
    """[T, T] bool: the tokens at most size // 2 places (for patches: rows and columns) from each token."""
    place = torch.arange(len(regions))[:, None]
    if regions.shape[1] == 4:
        place = regions[:, :2] // (regions[0, 2:] - regions[0, :2])
    return ((place[:, None] - place[None]).abs() <= size // 2).all(-1)


@dataclass(frozen=True)
class Rise(Explaining):
    """The mean score of the random masks that keep a token: score-weighted masks over how often each token is kept.

    masks: how many, each token kept with probability 0.5; a mask of its own for every token, with no upsampling, as in the authors'
    code (section 7.4). A token that no mask keeps gets the mean score.
    """

    masks: int = 1000

    name: ClassVar[str] = "rise"
    at_least: ClassVar[dict[str, float]] = {"masks": 1}

    def forwards(self, tokens: int, concepts: int) -> int:
        """One per mask."""
        return self.masks

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        keep = probe.random_masks(self.masks)
        scores, counts = probe.masked(keep)[:, list(concepts)], keep.double().sum(0)[:, None]
        means = (keep.double().T @ scores) / counts.clamp(min=1)
        return torch.where(counts > 0, means, scores.mean(0)).float()
