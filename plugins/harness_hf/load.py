"""A backbone from a model's name: its configuration says whether it reads images or text, and which towers it has.

The paper's models have names of their own here. No code of a model repository is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from harness.api import Backbone, HarnessError, Setup, unknown

from .weights import Source, locate

LLAMA = "meta-llama/Llama-3.2-11B-Vision-Instruct"
TOWERS = {"vision": "vision_config", "text": "text_config"}
"""Where a model with several towers keeps the configuration of each."""
OF_ITS_OWN = {
    "MllamaVisionConfig": "harness_hf.tiled:TiledBackbone",
    "Qwen2_5_VLVisionConfig": "harness_hf.windowed:WindowedBackbone",
}
"""Vision models whose inputs are not one image per sample, and what reads them."""


def clip_vit_l14(
    setup: Setup,
    argument: str | None = None,
    geometry: str | None = None,
    model: str = "openai/clip-vit-large-patch14",
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """The vision tower of openai/clip-vit-large-patch14."""
    return _named("clip-vit-l14", setup, argument, model, revision, geometry=geometry, device_map=device_map)


def siglip(
    setup: Setup,
    argument: str | None = None,
    geometry: str | None = None,
    model: str = "google/siglip-base-patch16-224",
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """The vision tower of google/siglip-base-patch16-224."""
    return _named("siglip", setup, argument, model, revision, geometry=geometry, device_map=device_map)


def dinov2_b(
    setup: Setup,
    argument: str | None = None,
    geometry: str | None = None,
    model: str = "facebook/dinov2-base",
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """The official DINOv2 ViT-B/14."""
    return _named("dinov2-b", setup, argument, model, revision, geometry=geometry, device_map=device_map)


def dinov2_l(
    setup: Setup,
    argument: str | None = None,
    geometry: str | None = None,
    model: str = "facebook/dinov2-large",
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """The official DINOv2 ViT-L/14."""
    return _named("dinov2-l", setup, argument, model, revision, geometry=geometry, device_map=device_map)


def llama_vision(
    setup: Setup,
    argument: str | None = None,
    geometry: str | None = None,
    model: str = LLAMA,
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """The vision tower of Llama-3.2-11B-Vision: one tile, the longest edge resized, as in the paper."""
    return _named("llama-3.2-11b-vision", setup, argument, model, revision, geometry=geometry, device_map=device_map)


def llama_text(
    setup: Setup,
    argument: str | None = None,
    max_length: int | None = None,
    model: str = LLAMA,
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """The language tower of Llama-3.2-11B-Vision, given no image."""
    options = {"max_length": max_length, "device_map": device_map, "tower": "text"}
    return _named("llama-3.2-11b-text", setup, argument, model, revision, **options)


def gemma2(
    setup: Setup,
    argument: str | None = None,
    max_length: int | None = None,
    model: str = "google/gemma-2-9b",
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """google/gemma-2-9b."""
    return _named("gemma-2-9b", setup, argument, model, revision, max_length=max_length, device_map=device_map)


def qwen3_embedding(
    setup: Setup,
    argument: str | None = None,
    max_length: int | None = None,
    model: str = "Qwen/Qwen3-Embedding-4B",
    revision: str = "main",
    device_map: str | None = None,
) -> Backbone:
    """Qwen/Qwen3-Embedding-4B."""
    return _named("qwen3-embedding-4b", setup, argument, model, revision, max_length=max_length, device_map=device_map)


def load(
    setup: Setup,
    argument: str | None = None,
    revision: str = "main",
    geometry: str | None = None,
    max_length: int | None = None,
    tower: str | None = None,
    device_map: str | None = None,
) -> Backbone:
    """The vision or text encoder of a Hub id or local folder; of a model with both, the vision tower unless `tower=text`.

    geometry: squash, crop or pad, for images · max_length: tokens, for text · revision: branch, tag or commit on the Hub ·
    device_map: `auto` spreads a model over all GPUs and the CPU.
    """
    if not argument:
        raise HarnessError("hf needs a model: hf:<model id or local folder>, such as hf:openai-community/gpt2")
    asked = {"geometry": geometry, "max_length": max_length, "device_map": device_map}
    options = {name: value for name, value in asked.items() if value is not None}
    return _build(locate(str(argument), str(revision)), setup, options, tower)


def _named(
    name: str, setup: Setup, argument: str | None, model: str, revision: str, tower: str | None = None, **asked: Any
) -> Backbone:
    """A model by the name it has here; option `model` says where else its weights are: a folder, or another Hub id."""
    if argument is not None:
        raise HarnessError(f"{name} takes no argument, got {argument!r}; for another model use hf:<model id or folder>")
    options = {option: value for option, value in asked.items() if value is not None}
    return _build(replace(locate(str(model), str(revision)), name=name), setup, options, tower)


def _build(source: Source, setup: Setup, options: Mapping[str, Any], tower: str | None = None) -> Backbone:
    config, modality = _config(source, tower)
    allowed = ("geometry" if modality == "image" else "max_length", "device_map")
    for option in options:
        if option not in allowed:
            raise HarnessError(
                f"option {option!r} is not one of {source.name}, which reads {modality}; it has {' and '.join(allowed)}"
            )
    if modality == "text":
        from .text import TextBackbone

        return TextBackbone(source, config, setup, **options)
    from .vision import VisionBackbone

    special = OF_ITS_OWN.get(type(config).__name__)
    if special is None:
        return VisionBackbone(source, config, setup, **options)
    module, _, kind = special.partition(":")
    built: Backbone = getattr(import_module(module), kind)(source, config, setup, **options)
    return built


def _config(source: Source, tower: str | None) -> tuple[Any, str]:
    """The configuration of the encoder to load, and what it reads: of a model with towers the vision tower's, or the one asked for."""
    from transformers import AutoConfig

    if tower not in (None, *TOWERS):
        raise unknown("tower", str(tower), TOWERS, where=source.name)
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise HarnessError(
            f"transformers cannot read {source.name} ({first}); a model that brings its own code needs a plugin"
        ) from error
    found = getattr(config, TOWERS[tower or "vision"], None)
    if found is not None:
        modality = "image" if (tower or "vision") == "vision" else "text"
        _require_blocks(source, found)
        return found, modality
    modality = _modality(source, config)
    if tower is not None and modality != ("image" if tower == "vision" else "text"):
        raise HarnessError(f"{source.name} ({config.model_type}) has no {tower} tower; it reads {modality}; leave tower out")
    return config, modality


def _modality(source: Source, config: Any) -> str:
    """Whether the model class takes pixels or token ids; anything else is refused."""
    from transformers import MODEL_MAPPING

    model_class = MODEL_MAPPING.get(type(config), None)
    modality = {"pixel_values": "image", "input_ids": "text"}.get(getattr(model_class, "main_input_name", ""))
    if modality is None:
        raise _not_plain(source, config)
    _require_blocks(source, config)
    return modality


def _require_blocks(source: Source, config: Any) -> None:
    one_stack = type(config).__name__ in OF_ITS_OWN or all(
        isinstance(getattr(config, size, None), int) for size in ("num_hidden_layers", "hidden_size")
    )
    if not one_stack or getattr(config, "is_encoder_decoder", False):
        raise _not_plain(source, config)


def _not_plain(source: Source, config: Any) -> HarnessError:
    kind = getattr(config, "model_type", "unknown")
    return HarnessError(f"{source.name} ({kind}) is not an image or text encoder with one stack of blocks; it needs a plugin")
