"""The encoder of a sparse autoencoder: from the model's own values to activations >= 0, for the units that are asked for.

ReLU, gated (Rajamanoharan et al. 2024a), JumpReLU (2024b) and TopK (Gao et al. 2024), as sae-lens 6 computes them. A finetuning scaling
factor acts on the reconstruction alone, so it is no part of this. Decoders are not needed and not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["standard", "gated", "jumprelu", "topk"]
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
TINY = 1e-5


@dataclass(frozen=True)
class Input:
    """What happens to the model's values x before the encoder: centred, scaled, normalised, minus `before` [d], in this order.

    centred: minus the token's mean over the width, for encoders of a model whose writing weights were centred. normalize: layer_norm
    divides by the token's standard deviation too, constant_norm_rescale makes its norm sqrt(d).
    """

    before: Tensor
    centred: bool = False
    scale: float = 1.0
    normalize: str = "none"

    def __call__(self, x: Tensor) -> Tensor:
        """[t, d]."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if self.scale != 1:
            x = x * self.scale
        if self.normalize == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
            x = x / (x.std(-1, keepdim=True) + TINY)
        if self.normalize == "constant_norm_rescale":
            x = x * (x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True).clamp(min=TINY))
        return x - self.before


class Strongest(NamedTuple):
    """The k strongest units of every token: values [t, k], 0 for one that is not positive, and units [t, k] int64."""

    values: Tensor
    units: Tensor


@dataclass(frozen=True)
class Encoder:
    """weight [d, K] and bias [K] float32. threshold [K] of jumprelu; k of topk; gain, lift [K]: slope and bias of gated magnitudes."""

    kind: Kind
    input: Input
    weight: Tensor
    bias: Tensor
    threshold: Tensor | None = None
    gain: Tensor | None = None
    lift: Tensor | None = None
    k: int = 0

    @property
    def size(self) -> int:
        """K."""
        return self.weight.shape[1]

    def to(self, device: torch.device) -> Encoder:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value.to(device) for name, value in moved.items() if isinstance(value, Tensor)}
        return replace(self, input=replace(self.input, before=self.input.before.to(device)), **tensors)

    def __call__(self, x: Tensor, columns: slice | Tensor) -> Tensor:
        """[t, n]: activations of the units `columns` (indices [n], each once) on the model's values x [t, d]; differentiable."""
        if self.kind == "topk":
            return self._among_strongest(x, columns)
        x, weight, bias = self.input(x), self.weight[:, columns], self.bias[columns]
        if self.kind == "gated":
            assert self.gain is not None and self.lift is not None  # noqa: S101 - the reader sets what the kind has
            shared = x @ weight
            return (shared * self.gain[columns] + self.lift[columns]).relu() * (shared + bias > 0)
        found = torch.addmm(bias, x, weight)
        return found.relu() if self.threshold is None else found.relu() * (found > self.threshold[columns])

    def fired(self, x: Tensor) -> Tensor:
        """[K] int64: on how many of the tokens x [t, d] every unit is active (> 0)."""
        if self.kind != "topk":
            return (self(x, slice(None)) > 0).sum(0)
        values, units = self._strongest(x)
        return torch.bincount(units[values > 0], minlength=self.size)

    def _strongest(self, x: Tensor) -> Strongest:
        found = torch.addmm(self.bias, self.input(x), self.weight).topk(min(self.k, self.size), dim=1)
        return Strongest(found.values.relu(), found.indices)

    def _among_strongest(self, x: Tensor, columns: slice | Tensor) -> Tensor:
        """TopK needs every unit of a token; only the columns asked for are written out, never a [t, K] of activations."""
        values, units = self._strongest(x)
        wanted = torch.arange(self.size, device=x.device)[columns]
        place = torch.full((self.size,), len(wanted), device=x.device)  # the units not asked for go to one column more
        place[wanted] = torch.arange(len(wanted), device=x.device)
        return values.new_zeros(len(x), len(wanted) + 1).scatter(1, place[units], values)[:, :-1]
