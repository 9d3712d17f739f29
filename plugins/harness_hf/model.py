"""A frozen transformers model and the modules whose outputs are its sites.

Sites are found by structure, not by a list of model classes: the blocks are the one list of `num_hidden_layers` modules, and
the attention and MLP of a block are found by the names transformers gives them. A stream is what its module puts out, before
any layer scale, post-norm or residual sum. What cannot be found is refused, never guessed. Of a model with several towers only
the weights of one are read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
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


class _EndedError(Exception):
    """Ends a forward pass where what is wanted of it is there."""


class FrozenModel:
    """The model in eval mode, its number of blocks and its width, and one forward pass to any sites.

    depths: the lengths of the lists of blocks, one after the other (most models have one) · layers: the layers that can be asked
    for, n being after the final norm. Blocks that need an image in a model that is given text are skipped by it, and are no layers;
    the others keep their own number. device_map: as in transformers, for a model larger than one device.
    """

    def __init__(
        self,
        source: Source,
        config: Any,
        setup: Setup,
        depths: Sequence[int] | None = None,
        device_map: str | None = None,
    ) -> None:
        self.name = source.name
        self.model = _load(source, config, setup, device_map)
        depths = depths or [config.num_hidden_layers]
        self.n_layers: int = sum(depths)
        self.width: int = config.hidden_size
        self.blocks = _blocks(self.model, depths, source.name)
        skipped = getattr(config, "cross_attention_layers", None) or ()
        self.layers = [layer for layer in range(self.n_layers + 1) if layer not in skipped]
        self.device = _entry(self.model, setup.device)

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
        """One [B, N, d] tensor per site, from one forward pass, which ends behind the last block that is asked for."""
        final, last = Site(self.n_layers), Site(self.n_layers - 1)
        wanted = {last if site == final else site for site in sites}
        with self.captured(wanted) as seen, self._until(max(site.layer for site in wanted)):
            output = self.model(**tensors).last_hidden_state
        if final in sites:
            seen[final] = self._normed(output, seen[last])
        for site, state in seen.items():
            if state.ndim != 3 or state.shape[2] != self.width:
                what = f"{self.name} declares tokens of width {self.width}, and site {site.label} gives {tuple(state.shape)}"
                raise HarnessError(f"{what} for [samples, tokens, width]; it needs a plugin")
        return [seen[site].to(self.device) for site in sites]

    def captured(self, sites: Iterable[Site]) -> contextlib.AbstractContextManager[dict[Site, Tensor]]:
        """What the modules of the sites put out in a forward pass inside the block."""
        return capture({site: self._module(site) for site in sites})

    @contextlib.contextmanager
    def _until(self, layer: int) -> Iterator[None]:
        """Ends a forward pass inside the block of code when a block of the model is done, unless it is the last."""
        if layer >= self.n_layers - 1:
            yield
            return

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            raise _EndedError

        handle = self.blocks[layer].register_forward_hook(stop)  # behind the hook that keeps the block's output
        try:
            with contextlib.suppress(_EndedError):
                yield
        finally:
            handle.remove()

    def _module(self, site: Site) -> nn.Module:
        if not 0 <= site.layer < self.n_layers or site.layer not in self.layers:
            where = f"0..{self.n_layers - 1}, and {self.n_layers} = after the final norm (residual only)"
            skipped = sorted(set(range(self.n_layers)) - set(self.layers))
            less = f", without {', '.join(map(str, skipped))}, which need an image" if skipped else ""
            raise HarnessError(f"{self.name} has no site {site.label}; its layers are {where}{less}")
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


def _load(source: Source, config: Any, setup: Setup, device_map: str | None) -> nn.Module:
    if setup.dtype == "float16" and config.model_type.startswith("gemma"):
        raise HarnessError(f"{source.name} overflows in float16; --dtype float16; use bfloat16 or float32")
    if device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise HarnessError(
            f"device_map of {source.name} needs the package accelerate, which is not installed; run: "
            "pip install 'concept-harness[large]'"
        )
    # sdpa ignored soft-capping in some versions of transformers
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model_class, keys = tower(source, config)
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                source.folder,
                config=config,
                dtype=getattr(torch, setup.dtype),
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                key_mapping=keys,
                device_map=device_map,
            )
            if device_map is None:
                model = model.to(setup.device)
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            f"the weights of {source.name} do not fit {setup.device} in {setup.dtype}; use --dtype bfloat16, or spread them "
            "with the option device_map=auto"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not any(part in UNUSED for part in key.split(".")))
    if missing:
        raise HarnessError(
            f"the weights of {source.name} lack {len(missing)} parameters of {type(model).__name__}, the first {missing[0]}; "
            f"looked in {source.folder}; it is not a checkpoint of this model class"
        )
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False
    return model.eval().requires_grad_(False)


def tower(source: Source, config: Any) -> tuple[Any, dict[str, str] | None]:
    """(the class to load, how the checkpoint's names become its own): AutoModel, or one tower of a model with several.

    A tower's class and place are read off the whole model, built without weights; a checkpoint names it with or without the
    prefixes that versions of transformers have put before it.
    """
    whole = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    if type(whole) is type(config):
        return AutoModel, None
    with torch.device("meta"), quiet():
        model = AutoModel.from_config(whole)
    towers = [
        (path, type(module))
        for path, module in model.named_modules()
        if path and isinstance(module, PreTrainedModel) and type(module.config) is type(config)
    ]
    if not towers:
        raise HarnessError(f"{type(model).__name__} of {source.name} holds no {type(config).__name__} tower; it needs a plugin")
    path, model_class = towers[0]
    return model_class, {rf"^(model\.)?{re.escape(path)}\.(model\.)?": ""}


def _entry(model: nn.Module, device: str) -> torch.device:
    """Where inputs go: the device of the first part of a model that is spread, else the run's."""
    places = getattr(model, "hf_device_map", {})
    found = [place for place in places.values() if place not in ("cpu", "disk")]
    return torch.device(found[0] if found else "cpu") if places else torch.device(device)


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


def _blocks(model: nn.Module, depths: Sequence[int], name: str) -> list[nn.Module]:
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) in depths]
    outermost = [(path, m) for path, m in found if not any(path.startswith(f"{other}.") for other, _ in found)]
    if [len(m) for _, m in outermost] != list(depths):
        what = " and ".join(path for path, _ in outermost) or "none"
        lists = "one list of its" if len(depths) == 1 else f"{len(depths)} lists of its"
        raise HarnessError(
            f"{name}: {type(model).__name__} should hold {lists} {sum(depths)} blocks; found {what}; it needs a plugin"
        )
    return [block for _, blocks in outermost for block in blocks]


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
