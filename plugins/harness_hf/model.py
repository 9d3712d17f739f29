"""A frozen transformers model and the modules whose outputs are its sites.

Sites are found by structure, not by a list of model classes: the blocks are the one list of `num_hidden_layers` modules, and
the attention and MLP of a block are found by the names transformers gives them. A stream is what its module puts out, before
any layer scale, post-norm or residual sum. What cannot be found is refused, never guessed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging

from harness.api import HarnessError, Setup, Site, capture

from .weights import Source

SUBMODULES = {
    "attention": ("self_attn", "attn", "attention.output.dense", "attention.attn", "attention", "self_attention"),
    "mlp": ("mlp", "output.dense", "ffn", "feed_forward", "fc2", "block_sparse_moe"),
}
"""Where a block keeps a stream's module, the most specific path first: `attention` and `output` of BERT add the residual."""

UNUSED = ("pooler", "head", "mask_token")
"""Parameters that no token embedding depends on, and that a checkpoint may therefore lack."""


class FrozenModel:
    """The model in eval mode, its number of blocks and its width, and one forward pass to any sites."""

    def __init__(self, source: Source, config: Any, setup: Setup) -> None:
        self.name = source.name
        self.model = _load(source, config, setup)
        self.n_layers: int = config.num_hidden_layers
        self.width: int = config.hidden_size
        self.blocks = _blocks(self.model, self.n_layers, source.name)

    @property
    def identity(self) -> dict[str, Any]:
        """What of the loaded model changes a value."""
        attention = self.model.config._attn_implementation
        return {
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": attention,
        }

    def states(self, tensors: Mapping[str, Tensor], sites: Sequence[Site]) -> list[Tensor]:
        """One [B, N, d] tensor per site, from one forward pass."""
        final, last = Site(self.n_layers), Site(self.n_layers - 1)
        wanted = {last if site == final else site for site in sites}
        with capture({site: self._module(site) for site in wanted}) as seen:
            output = self.model(**tensors).last_hidden_state
        if final in sites:
            seen[final] = self._normed(output, seen[last])
        for site, state in seen.items():
            if state.ndim != 3 or state.shape[2] != self.width:
                what = f"{self.name} declares tokens of width {self.width}, and site {site.label} gives {tuple(state.shape)}"
                raise HarnessError(f"{what} for [samples, tokens, width]; it needs a plugin")
        return [seen[site] for site in sites]

    def _module(self, site: Site) -> nn.Module:
        if not 0 <= site.layer < self.n_layers:
            where = f"0..{self.n_layers - 1}, and {self.n_layers} = after the final norm (residual only)"
            raise HarnessError(f"{self.name} has no site {site.label}; its layers are {where}")
        block = self.blocks[site.layer]
        if site.stream == "residual":
            return block
        for path in SUBMODULES.get(site.stream, ()):
            with contextlib.suppress(AttributeError):
                return block.get_submodule(path)
        children = ", ".join(name for name, _ in block.named_children())
        raise HarnessError(
            f"stream {site.stream!r} cannot be captured in {self.name}: its {type(block).__name__} has {children}; use residual"
        )

    def _normed(self, output: Tensor, last: Tensor) -> Tensor:
        """The model's last hidden state; CLIP norms only its CLS token there, so its norm is applied to all tokens here."""
        norm = getattr(self.model, "post_layernorm", None)
        return norm(last) if output is last and norm is not None else output


def _load(source: Source, config: Any, setup: Setup) -> nn.Module:
    # sdpa ignored soft-capping in some versions of transformers
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    with quiet():
        model, report = AutoModel.from_pretrained(
            source.folder,
            config=config,
            dtype=getattr(torch, setup.dtype),
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    missing = sorted(key for key in report["missing_keys"] if not any(part in UNUSED for part in key.split(".")))
    if missing:
        raise HarnessError(
            f"the weights of {source.name} lack {len(missing)} parameters of {type(model).__name__}, the first {missing[0]}; "
            f"looked in {source.folder}; it is not a checkpoint of this model class"
        )
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False
    return model.to(setup.device).eval().requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the loading report and bar of transformers: what matters of them is checked here."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _blocks(model: nn.Module, n_layers: int, name: str) -> nn.ModuleList:
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    outermost = [(path, m) for path, m in found if not any(path.startswith(f"{other}.") for other, _ in found)]
    if len(outermost) != 1:
        what = " and ".join(path for path, _ in outermost) or "none"
        raise HarnessError(
            f"{name}: {type(model).__name__} should hold one list of its {n_layers} blocks; found {what}; it needs a plugin"
        )
    return outermost[0][1]


def pack(states: Sequence[Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
    """values [L, T, d] float32 of the content positions [B, N], in sample order, and offsets [B+1] int64 on the CPU."""
    index = positions.flatten().nonzero().squeeze(1).to(states[0].device)
    values = torch.stack([state.flatten(0, 1)[index].float() for state in states])
    return values, torch.nn.functional.pad(positions.sum(1).cumsum(0), (1, 0)).cpu()


def mean_token(states: Sequence[Tensor], positions: Tensor) -> Tensor:
    """[L, B, d] float32: the mean over each sample's content tokens; zeros where a sample has none."""
    mask = positions.to(states[0].device).unsqueeze(-1)
    count = mask.sum(1).clamp(min=1)
    return torch.stack([torch.where(mask, state.float(), 0).sum(1) / count for state in states])
