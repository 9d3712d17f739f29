"""Grad-CAM and FullGrad: explanations that look inside the model, at the inputs or outputs of its blocks' modules.

captum's LayerGradCam takes dimension 1 for channels and averages over the others; the tokens of a transformer are [1, N, d]. The hooks
here read, and return nothing. One forward pass serves all concepts, and one backward pass each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.api import Probe, unknown

from .explaining import Explaining

BIASES = ("constant", "tokens", "none")


@contextmanager
def watched(modules: Mapping[Any, nn.Module], inputs: bool) -> Iterator[dict[Any, Tensor]]:
    """A dict that holds, after a forward pass inside the block, the tensor that entered (or left) each module."""
    seen: dict[Any, Tensor] = {}

    def reader(key: Any) -> Any:
        def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[key] = args[0] if args else kwargs["hidden_states"]

        def leaves(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[key] = output[0] if isinstance(output, tuple) else output

        return enters if inputs else leaves

    handles = [
        module.register_forward_pre_hook(reader(key), with_kwargs=True) if inputs else module.register_forward_hook(reader(key))
        for key, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class GradCam(Explaining):
    """ReLU of the sum of channels, each weighted by its gradient's mean over tokens, at a block below the concept's layer.

    offset: how many blocks below its layer; 1 = the output of the block before it. Below the first block it is what enters that one;
    after the final norm counts as the last block. The authors take the last layer's second norm (section 7.4).
    """

    offset: int = 1

    name: ClassVar[str] = "grad-cam"
    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "gradients"})
    at_least: ClassVar[dict[str, float]] = {"offset": 1}

    def forwards(self, tokens: int, concepts: int) -> int:
        """One forward pass, and one backward pass per concept."""
        return 1 + 2 * concepts

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        blocks = probe.opened.blocks
        above = [max(min(probe.layer(c), len(blocks) - 1) - self.offset + 1, 0) for c in concepts]
        content = probe.opened.inputs.positions[0]
        with watched({i: blocks[i] for i in set(above)}, inputs=True) as entered:
            scores = probe.f(probe.leaf.detach().clone()[None].requires_grad_())[0]
        columns = []
        for c, block in zip(concepts, above, strict=True):
            tokens = entered[block]
            (gradient,) = torch.autograd.grad(scores[c], tokens, retain_graph=True)
            at = content.to(tokens.device)
            weights = gradient[0, at].float().mean(0)
            columns.append((tokens.detach()[0, at].float() @ weights).relu())
        return torch.stack(columns, 1).cpu()


@dataclass(frozen=True)
class FullGrad(Explaining):
    """|x * gradient| summed over a token's part, and the bias gradients |b * df_c/db| of the blocks' linear layers and norms.

    bias: constant = their sum, spread evenly over the tokens as in the authors' code (section 7.4): it changes no ranking inside a sample,
    but moves samples against each other; tokens = every token gets those at its own position, as in Srinivas and Fleuret's maps; none.
    Biases outside the blocks (patch and position embeddings) are left out.
    """

    bias: str = "constant"

    name: ClassVar[str] = "fullgrad"
    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "gradients"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias not in BIASES:
            raise unknown("bias", self.bias, BIASES, "localizer 'fullgrad'")

    def forwards(self, tokens: int, concepts: int) -> int:
        """One forward pass, and one backward pass per concept."""
        return 1 + 2 * concepts

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, k]."""
        leaf = probe.leaf.detach().clone()[None].requires_grad_()
        modules = {} if self.bias == "none" else biased(probe.opened.blocks)
        with watched(modules, inputs=False) as left:
            scores = probe.f(leaf)[0]
        outputs = [output for module, output in left.items() if output.requires_grad]
        biases = [module.bias.detach() for module, output in left.items() if output.requires_grad]
        columns = []
        for c in concepts:
            own, *rest = torch.autograd.grad(scores[c], [leaf, *outputs], retain_graph=True, allow_unused=True)
            at_input = probe.per_token((leaf * own).abs().detach())[0]
            columns.append(at_input.float().cpu() + self._biases(probe, biases, rest))
        return torch.stack(columns, 1)

    def _biases(self, probe: Probe, biases: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
        """[T]: the bias terms of every token."""
        content, total = probe.opened.inputs.positions[0].cpu(), torch.zeros(probe.tokens)
        for bias, gradient in zip(biases, gradients, strict=True):
            if gradient is None:
                continue
            terms = (bias * gradient[0]).float().cpu()  # [N, d]
            total += terms.sum(0).abs().sum() / probe.tokens if self.bias == "constant" else terms[content].abs().sum(1)
        return total


def biased(blocks: Sequence[nn.Module]) -> dict[nn.Module, nn.Module]:
    """The modules in the blocks that add a vector to every position: linear layers and norms with a bias."""
    every = (module for block in blocks for module in block.modules())
    return {module: module for module in every if getattr(module, "bias", None) is not None and module.bias.ndim == 1}
