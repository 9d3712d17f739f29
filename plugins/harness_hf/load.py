"""A backbone from a model's name: its configuration says whether it reads images or text.

No code of a model repository is ever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.api import Backbone, HarnessError, Setup

from .weights import Source, locate

CLIP = "openai/clip-vit-large-patch14"


def clip_vit_l14(setup: Setup, argument: str | None = None, geometry: str = "squash", revision: str = "main") -> Backbone:
    """The vision tower of openai/clip-vit-large-patch14."""
    if argument is not None:
        raise HarnessError(f"clip-vit-l14 takes no argument, got {argument!r}; for another model use hf:<model id or folder>")
    return _build(replace(locate(CLIP, str(revision)), name="clip-vit-l14"), setup, {"geometry": geometry})


def load(
    setup: Setup,
    argument: str | None = None,
    revision: str = "main",
    geometry: str | None = None,
    max_length: int | None = None,
) -> Backbone:
    """The vision or text encoder of a Hub id or local folder; of a model with both, the vision tower.

    geometry: squash, crop or pad, for images · max_length: tokens, for text · revision: branch, tag or commit on the Hub.
    """
    if not argument:
        raise HarnessError("hf needs a model: hf:<model id or local folder>, such as hf:openai-community/gpt2")
    asked = {"geometry": geometry, "max_length": max_length}
    options = {name: value for name, value in asked.items() if value is not None}
    return _build(locate(str(argument), str(revision)), setup, options)


def _build(source: Source, setup: Setup, options: Mapping[str, Any]) -> Backbone:
    config = _config(source)
    modality = _modality(source, config)
    allowed = "geometry" if modality == "image" else "max_length"
    for option in options:
        if option != allowed:
            raise HarnessError(f"option {option!r} is not one of {source.name}, which reads {modality}; it has {allowed}")
    if modality == "image":
        from .vision import VisionBackbone

        return VisionBackbone(source, config, setup, **options)
    from .text import TextBackbone

    return TextBackbone(source, config, setup, **options)


def _config(source: Source) -> Any:
    """The configuration of the encoder to load: the vision tower's where the model has one."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except ValueError as error:
        first = str(error).strip().splitlines()[0]
        raise HarnessError(
            f"transformers cannot read {source.name} ({first}); a model that brings its own code needs a plugin"
        ) from error
    return getattr(config, "vision_config", None) or config


def _modality(source: Source, config: Any) -> str:
    """Whether the model class takes pixels or token ids; anything else is refused."""
    from transformers import MODEL_MAPPING

    model_class = MODEL_MAPPING.get(type(config), None)
    takes = getattr(model_class, "main_input_name", None)
    blocks = all(isinstance(getattr(config, size, None), int) for size in ("num_hidden_layers", "hidden_size"))
    modality = {"pixel_values": "image", "input_ids": "text"}.get(takes)
    if modality is None or not blocks or getattr(config, "is_encoder_decoder", False):
        kind = getattr(config, "model_type", "unknown")
        raise HarnessError(
            f"{source.name} ({kind}) is not an image or text encoder with one stack of blocks; it needs a plugin"
        )
    return modality
