"""CLIP's own text embeddings as concept vectors: no concept is fitted, only named (Radford et al. 2021).

A token goes the way CLIP's CLS token goes, final norm and visual projection, and is compared with the prompt's embedding by cosine. At
the last block's summary that is CLIP's image-text similarity; at its patches the patch-text similarity. Earlier blocks are read
through the same norm and projection, which were not trained for them. Only cutoff, level and layer are then chosen on cal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from harness.api import Blocks, HarnessError, TokenEmbeddings

from .model import quiet


@dataclass(frozen=True)
class Shared:
    """Where images and texts meet: the final norm's weight, bias [d] and epsilon, the projection [p, d], unit texts [C, p]."""

    weight: Tensor
    bias: Tensor
    epsilon: float
    projection: Tensor
    texts: Tensor

    def cosine(self, states: Tensor, normed: bool) -> Tensor:
        """[T, C]: of model states [T, d], which may have passed the final norm already."""
        states = states if normed else layer_norm(states, self.weight.shape, self.weight, self.bias, self.epsilon)
        return normalize(states @ self.projection.T, dim=-1) @ self.texts.T


@dataclass(frozen=True)
class ZeroShot:
    """The text embedding of every concept's prompt; needs a CLIP with both towers. `{}` in the prompt is the concept's own word."""

    prompt: str = "a photo of a {}"

    def fit(self, train: Blocks) -> ZeroShotConcepts:
        """Nothing is fitted; train gives the concepts' names, the backbone and its normalisation."""
        if "{}" not in self.prompt:
            raise HarnessError(
                f"prompt {self.prompt!r} of concept method 'zero-shot' has no place for the concept; write {{}} there"
            )
        folder = getattr(train.backbone, "folder", None)
        kind = dict(train.backbone.identity).get("class") if train.backbone is not None else None
        if folder is None or kind != "CLIPVisionModel":
            name = getattr(train.backbone, "name", "none")
            raise HarnessError(
                f"concept method 'zero-shot' needs a text tower in the image's space; backbone {name} has none; "
                f"use clip-vit-l14 or hf:<a CLIP with both towers>"
            )
        words = [self.prompt.format(concept.rpartition("::")[2]) for concept in train.concepts]
        return ZeroShotConcepts(_shared(folder, words, train.truth.device), train.centre, train.scale, train.backbone.n_layers)


@dataclass(frozen=True)
class ZeroShotConcepts:
    """Cosine to the text in the shared space; no direction of the normalised token space, so `vectors` is None."""

    shared: Shared
    centre: Tensor
    scale: Tensor
    n_layers: int
    vectors: None = None

    def activate(self, block: TokenEmbeddings) -> Tensor:
        """[L, T, C]; NaN at sites that are not the residual stream."""
        columns = []
        for i, site in enumerate(block.sites):
            states = block.values[i] * self.scale[i] + self.centre[i]
            found = self.shared.cosine(states, normed=site.layer == self.n_layers)
            columns.append(found if site.stream == "residual" else torch.full_like(found, torch.nan))
        return torch.stack(columns)


def _shared(folder: Path, words: list[str], device: torch.device) -> Shared:
    """The shared space of the CLIP in a folder, with the words embedded."""
    from transformers import AutoTokenizer, CLIPModel

    try:
        with quiet(), torch.no_grad():
            model: Any
            model, report = CLIPModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            if report["missing_keys"]:  # a CLIP tower inside another model
                raise ValueError(f"it lacks {sorted(report['missing_keys'])[0]}")
            model.eval()
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            given = tokenizer(words, padding=True, return_tensors="pt")
            found = model.get_text_features(**given)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise HarnessError(
            f"no text tower of a CLIP in {folder} ({first}); zero-shot needs the whole CLIP, not its vision tower"
        ) from error
    texts = normalize((found if isinstance(found, Tensor) else found.pooler_output).float(), dim=-1)
    norm = model.vision_model.post_layernorm
    made = (norm.weight.detach().float(), norm.bias.detach().float(), model.visual_projection.weight.detach().float(), texts)
    weight, bias, projection, texts = (tensor.to(device) for tensor in made)
    return Shared(weight, bias, norm.eps, projection, texts)
