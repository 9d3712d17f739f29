"""The layouts in which sparse autoencoders are published -> an encoder and the site it reads. Safetensors, npz and JSON, never pickle.

SAELens: `cfg.json` + `sae_weights.safetensors`, all versions (before 6 the settings lie flat, then under `metadata`). Gemma Scope:
`params.npz`, its layer in the path. CLIP-Scope: the two tensors of the encoder, converted from its pickle, its layer in the path.
What cannot be read as it was meant is refused, never guessed.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.api import STREAMS, HarnessError, Site, unknown

from .encoder import NORMALIZATIONS, Encoder, Input
from .finding import GEMMA_SCOPE, PICKLED, SAELENS, pickled

STREAM_OF = {"hook_resid_pre": "residual", "hook_resid_post": "residual", "hook_attn_out": "attention", "hook_mlp_out": "mlp"}
"""TransformerLens' names of the places that are sites here; what comes before block N is what block N-1 put out."""

CENTRED = (
    "jbloom/GPT2-Small-SAEs-Reformatted",
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
    "tommmcgrath/gpt2-small-mlp-out-saes",
)
"""Repositories whose `cfg.json` does not say that the model's writing weights were centred (sae-lens keeps this in a list)."""


@dataclass(frozen=True)
class Wishes:
    """What a user says where the files do not: site, k of TopK, factor of the input, centring. None = as the files say."""

    layer: int | None = None
    stream: str | None = None
    k: int | None = None
    input_scale: float | None = None
    centre: bool | None = None


@dataclass(frozen=True)
class Dictionary:
    """A sparse autoencoder as it is used here: its name in messages, the site it reads, its encoder."""

    name: str
    site: Site
    encoder: Encoder


def read(name: str, place: Path, wishes: Wishes) -> Dictionary:
    """The dictionary in a folder, or in a file of its own."""
    if wishes.stream is not None and wishes.stream not in STREAMS:
        raise unknown("stream", wishes.stream, STREAMS, "concept method 'sae'")
    if place.is_file():
        return _read_file(name, place, wishes)
    if all((place / file).exists() for file in SAELENS):
        return _saelens(name, place, wishes)
    if (place / GEMMA_SCOPE).exists():
        return _gemma_scope(name, place / GEMMA_SCOPE, wishes)
    files = sorted(path for path in place.iterdir() if path.suffix in (".safetensors", *PICKLED))
    if len(files) == 1:
        return _read_file(name, files[0], wishes)
    below = sorted({str(path.parent.relative_to(place)) for file in (SAELENS[0], GEMMA_SCOPE) for path in place.rglob(file)})
    hint = (
        f"below it: {', '.join(below[:5])}{', ...' if len(below) > 5 else ''}; give one of them" if below else "check the path"
    )
    raise HarnessError(
        f"no sparse autoencoder in {place}; looked for {' + '.join(SAELENS)} (SAELens), {GEMMA_SCOPE} (Gemma Scope) or one .safetensors "
        f"file (CLIP-Scope); {hint}"
    )


def _read_file(name: str, path: Path, wishes: Wishes) -> Dictionary:
    if path.suffix in PICKLED:
        raise pickled(path)
    if path.name == GEMMA_SCOPE:
        return _gemma_scope(name, path, wishes)
    if path.suffix != ".safetensors":
        raise HarnessError(f"{path} is no sparse autoencoder; sae: takes a folder, {GEMMA_SCOPE} or a .safetensors file")
    return _clip_scope(name, path, wishes)


# --------------------------------------------------------------------------------------------------------------- SAELens


def _saelens(name: str, folder: Path, wishes: Wishes) -> Dictionary:
    config = _config(folder / SAELENS[0])
    layer, stream = _hook(name, config)
    site = _site(name, layer, stream, wishes)
    kind, k = _architecture(name, config)
    tensors = Tensors(folder / SAELENS[1])
    weight = tensors["W_enc"]
    d, size = weight.shape
    given = _input(name, config, wishes, tensors.shaped("b_dec", d))
    if not config.get("apply_b_dec_to_input", True):
        given = replace(given, before=torch.zeros(d))
    if kind == "gated":
        gain, lift = tensors.shaped("r_mag", size).exp(), tensors.shaped("b_mag", size)
        return _checked(name, site, Encoder(kind, given, weight, tensors.shaped("b_gate", size), gain=gain, lift=lift))
    bias = tensors.shaped("b_enc", size)
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norms = tensors["W_dec"].norm(dim=1)
        weight, bias = weight * norms, bias * norms
    threshold = tensors.shaped("threshold", size) if kind == "jumprelu" else None
    return _checked(name, site, Encoder(kind, given, weight, bias, threshold, k=k))


def _config(path: Path) -> dict[str, Any]:
    """The settings in one mapping, whatever version wrote them."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, **(found.get("metadata") or {})}
    except (ValueError, TypeError, AttributeError) as error:
        raise HarnessError(f"cannot read {path}; {error}; it must be the JSON mapping that SAELens writes") from error


def _architecture(name: str, config: Mapping[str, Any]) -> tuple[Any, int]:
    """(kind, k of TopK). Before version 6, TopK was an activation function of the standard architecture."""
    kind = config.get("architecture") or "standard"
    function = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if kind not in ("standard", "gated", "jumprelu", "topk"):
        raise HarnessError(
            f"{name} has architecture {kind!r}, which is not read; allowed: standard, gated, jumprelu, topk "
            "(batch-top-k is saved as jumprelu)"
        )
    if function not in ("relu", "topk"):
        raise HarnessError(f"{name} has activation function {function!r}, which is not read; allowed: relu, topk")
    if kind != "topk" and function != "topk":
        return kind, 0
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if kind not in ("topk", "standard") or not isinstance(k, int) or k < 1:
        raise HarnessError(f"{name} is a TopK one and its cfg.json gives no k; k is {k!r}")
    return "topk", k


def _input(name: str, config: Mapping[str, Any], wishes: Wishes, before: Tensor) -> Input:
    """What happens before the encoder. A norm of the whole training set is a number that the files do not hold."""
    normalize = config.get("normalize_activations") or "none"
    if normalize in (True, "expected_average_only_in"):
        if wishes.input_scale is None:
            raise HarnessError(
                f"{name} was trained on activations scaled to an expected norm ({normalize}) and does not say by what factor; "
                f"give it as option input_scale (sae-lens lists it as norm_scaling_factor)"
            )
        normalize = "none"
    if normalize not in NORMALIZATIONS:
        raise HarnessError(
            f"{name} has normalize_activations {normalize!r}, which is not read; allowed: {', '.join(NORMALIZATIONS)}"
        )
    loaded = config.get("model_from_pretrained_kwargs") or {}
    listed = any(f"/{repo}/" in f"/{name}/" for repo in CENTRED)
    centred = bool(loaded.get("center_writing_weights", listed)) if wishes.centre is None else wishes.centre
    return Input(before, centred, wishes.input_scale or 1.0, normalize)


def _hook(name: str, config: Mapping[str, Any]) -> tuple[int, str] | tuple[None, None]:
    """(layer, stream) of TransformerLens' hook, or of the module path of a transformers model; None where neither is named."""
    hook = str(config.get("hook_name") or config.get("hook_point") or "")
    module = re.search(r"(?:^|\.)(?:layers?|h|blocks|resblocks)\.(\d+)$", hook)
    if module:
        return int(module[1]), "residual"
    lens = re.fullmatch(r"blocks\.(\d+)\.(\w+(?:\.\w+)*)", hook)
    if not lens:
        return None, None
    layer, stream = int(lens[1]) - (lens[2] == "hook_resid_pre"), STREAM_OF.get(lens[2])
    normed = re.search(r"gemma-?[23]", str(config.get("model_name"))) is not None and stream in ("attention", "mlp")
    if stream is None or layer < 0 or normed:
        why = "after a norm that the stream does not have" if normed else "which is no site"
        raise HarnessError(f"{name} reads {hook}, {why}; sites are the outputs of a block, of its attention and of its mlp")
    return layer, stream


# ---------------------------------------------------------------------------------------------- Gemma Scope and CLIP-Scope


def _gemma_scope(name: str, path: Path, wishes: Wishes) -> Dictionary:
    """JumpReLU on the raw residual stream, after the block of its layer; the decoder's bias is not subtracted."""
    where = path.absolute().as_posix()
    kind, layer = re.search(r"gemma-scope-[\w.-]*-(res|mlp|att)\b", where), re.search(r"/layer_(\d+)/", where)
    wrong = kind[1] if kind and kind[1] != "res" else "embedding" if layer is None and "/embedding/" in where else None
    if wrong is not None:
        raise HarnessError(
            f"{name} reads {wrong}, which is no site here; of Gemma Scope the residual ones (-res) are read: mlp ones come after a norm "
            "that the stream does not have, att ones before its projection"
        )
    site = _site(name, int(layer[1]) if layer else None, "residual" if kind else None, wishes)
    tensors = Tensors(path)
    weight = tensors["W_enc"]
    d, size = weight.shape
    given = Input(torch.zeros(d), bool(wishes.centre), wishes.input_scale or 1.0)
    return _checked(
        name, site, Encoder("jumprelu", given, weight, tensors.shaped("b_enc", size), tensors.shaped("threshold", size))
    )


def _clip_scope(name: str, path: Path, wishes: Wishes) -> Dictionary:
    """TopK on the residual stream after the block of its layer: x minus `pre_b`, times `enc`; no other bias.

    CLIP-Scope passes a negative value among the k strongest on; here it is 0, as sae-lens has it.
    """
    layer = re.search(r"/(\d+)_resid(?:/|\.)", path.absolute().as_posix())
    site = _site(name, int(layer[1]) if layer else None, "residual", wishes)
    tensors = Tensors(path)
    k = wishes.k or int(tensors.metadata.get("k", 0))
    if k < 1:
        raise HarnessError(f"{name} does not say how many units of a token are on; give it as option k (CLIP-Scope's is 32)")
    weight = tensors["enc"]
    d, size = weight.shape
    given = Input(tensors.shaped("pre_b", d), bool(wishes.centre), wishes.input_scale or 1.0)
    return _checked(name, site, Encoder("topk", given, weight, torch.zeros(size), k=k))


# ----------------------------------------------------------------------------------------------------------------- shared


def _site(name: str, layer: int | None, stream: str | None, wishes: Wishes) -> Site:
    """The site that the files name; what the user says comes first."""
    layer = layer if wishes.layer is None else wishes.layer
    stream = wishes.stream or stream
    if layer is None or stream is None:
        raise HarnessError(
            f"{name} does not say {'which layer' if layer is None else 'which stream'} it reads; give it as option "
            f"{'layer' if layer is None else 'stream'}, such as layer=8:stream=residual (layer 0 = the output of the first block)"
        )
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise HarnessError(
            f"bad value {layer!r} for option 'layer' of concept method 'sae'; allowed: the index of a block, from 0"
        )
    return Site(layer, stream)


def _checked(name: str, site: Site, encoder: Encoder) -> Dictionary:
    if not (encoder.weight.isfinite().all() and encoder.bias.isfinite().all()):
        raise HarnessError(f"{name} has a weight that is not finite; its file is damaged, or was written in too few bits")
    return Dictionary(name, site, encoder)


class Tensors:
    """The tensors of a file by name, as float32 on the CPU, each read when it is asked for; `metadata` of a safetensors file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.metadata: Mapping[str, str] = {}
        try:
            if path.suffix == ".npz":
                self._file: Any = np.load(path, allow_pickle=False)
                self._names = list(self._file.keys())
            else:
                self._file = safe_open(path, framework="pt")
                self._names, self.metadata = list(self._file.keys()), self._file.metadata() or {}
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            raise self._broken(error) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise HarnessError(f"{self._path} has no tensor {name!r}; it has {', '.join(self._names)}")
        try:
            read = self._file[name] if self._path.suffix == ".npz" else self._file.get_tensor(name)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            raise self._broken(error) from error
        return torch.as_tensor(read).float()

    def shaped(self, name: str, length: int) -> Tensor:
        """The tensor, which must be a vector of that length."""
        found = self[name]
        if found.shape != (length,):
            raise HarnessError(
                f"tensor {name!r} of {self._path} has shape {list(found.shape)}; beside the encoder it must be [{length}]"
            )
        return found

    def _broken(self, error: Exception) -> HarnessError:
        return HarnessError(f"cannot read {self._path}; {' '.join(str(error).split())}; copy it again")
