"""Saliency, input x gradient and integrated gradients, by captum: gradients of f_c by the model's input, summed over each token's part.

The input is the leaf that the backbone opens: normalised pixels, or the embeddings of a text's tokens. One backward pass per concept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import captum.attr
import torch
from torch import Tensor

from harness.api import Probe

from .explaining import Explaining

BACKWARD = 3
"""What a forward and a backward pass cost, in forward passes."""


@dataclass(frozen=True)
class Gradient(Explaining):
    """An explainer by gradients: one map of the leaf per concept, summed over tokens."""

    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "gradients"})

    def forwards(self, tokens: int, concepts: int) -> int:
        """One forward and one backward pass per concept."""
        return BACKWARD * concepts


def maps(probe: Probe, concepts: Sequence[int], attribute: Callable[[Tensor, int], Tensor]) -> Tensor:
    """[T, k] float32: what `attribute` gives for the leaf [1, ...] and each concept, summed over each token's part."""
    found = [attribute(probe.leaf.detach().clone()[None].requires_grad_(), concept) for concept in concepts]
    return probe.per_token(torch.cat(found).detach()).T.float().cpu()


@dataclass(frozen=True)
class Saliency(Gradient):
    """The sum of the absolute gradients of a token's part."""

    name: ClassVar[str] = "saliency"

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        method = captum.attr.Saliency(probe.f)
        return maps(probe, concepts, lambda leaf, concept: method.attribute(leaf, target=concept))


@dataclass(frozen=True)
class InputXGradient(Gradient):
    """The sum of input x gradient over a token's part, with its sign; the baseline plays no part."""

    name: ClassVar[str] = "input-x-gradient"

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        method = captum.attr.InputXGradient(probe.f)
        return maps(probe, concepts, lambda leaf, concept: method.attribute(leaf, target=concept))


@dataclass(frozen=True)
class IntegratedGradients(Gradient):
    """The line integral of the gradient from the sample without tokens to the whole, times the difference; adds up to that of f_c.

    steps: of Gauss-Legendre quadrature; the authors use 64 of the trapezoid rule (section 7.4), whose weights add up to 1 - 1/64 in captum.
    Their baseline is the image's mean patch, here it is the backbone's (the mean colour, or the mask token).
    """

    steps: int = 64

    name: ClassVar[str] = "integrated-gradients"
    at_least: ClassVar[dict[str, float]] = {"steps": 2}

    def forwards(self, tokens: int, concepts: int) -> int:
        """A forward and a backward pass per step and concept."""
        return BACKWARD * self.steps * concepts

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        method = captum.attr.IntegratedGradients(probe.f)
        empty = probe.mask(torch.zeros(1, probe.tokens))

        def attribute(leaf: Tensor, concept: int) -> Tensor:
            options = {"n_steps": self.steps, "method": "gausslegendre"}
            return method.attribute(leaf, empty, target=concept, internal_batch_size=probe.batch_size, **options)

        return maps(probe, concepts, attribute)
