"""Any transformers image encoder with one token per patch: CLIP, SigLIP, DINOv2 (with registers or not), ViT, DeiT, BEiT, ...

Geometry is a `View`, the one function for pixels and masks. The default squashes, so that no labelled pixel is cropped away.
Which position holds which patch is measured once at load, not assumed: special tokens are then dropped by position.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.api import Embedded, HarnessError, Inputs, Opened, Sample, Setup, Site, View, apply_view, square_patches, unknown

from .model import FrozenModel, mean_token, pack
from .weights import Source

GEOMETRIES = ("squash", "crop", "pad")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionBackbone:
    """An image encoder; tokens are patches, the summary is CLS, or the mean patch where the model has no special token.

    geometry "squash": resized to a square whatever the shape · "crop": shortest edge resized, then the centre, as the model's
    own processor · "pad": longest edge resized, zeros right and below; patches wholly in the padding are no tokens.
    """

    modality: Literal["image"] = "image"
    usual = "squash"
    """The geometry where none is asked for."""

    def __init__(
        self, source: Source, config: Any, setup: Setup, geometry: str | None = None, device_map: str | None = None
    ) -> None:
        geometry = self.usual if geometry is None else geometry
        if geometry not in GEOMETRIES:
            raise unknown("geometry", geometry, GEOMETRIES, where=source.name)
        self.name, self.revision, self.geometry, self.folder = source.name, source.revision, geometry, source.folder
        processor = _processor(source.folder)
        self.mean, self.std = _normalization(processor)
        self.patch, trained = self._sizes(source, config, _crop(processor))
        self.image_size = self._size(setup, trained, _crop(processor) or trained)
        self.shortest = round(self.image_size * _margin(processor))
        self.grid = self.image_size // self.patch
        self.frozen = FrozenModel(source, config, setup, self._depths(config), device_map)
        self.device = self.frozen.device
        self.n_layers, self.width, self.layers = self.frozen.n_layers, self.frozen.width, self.frozen.layers
        self.options = self._interpolation(trained)
        self.n_special, self.n_positions = self._measure()
        self.boxes = square_patches(self.grid * self.patch, self.grid * self.patch, self.patch)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What beside the weights changes a value."""
        pixels = {"geometry": self.geometry, "image_size": self.image_size, "mean": list(self.mean), "std": list(self.std)}
        return {**self.frozen.identity, **pixels, **({"shortest_edge": self.shortest} if self.geometry == "crop" else {})}

    def _sizes(self, source: Source, config: Any, processed: int | None) -> tuple[int, int]:
        """(patch, image) side in pixels, as the model was trained."""
        return _side(config, "patch_size", source.name), _side(config, "image_size", source.name)

    def _size(self, setup: Setup, trained: int, usual: int) -> int:
        """The side of the image that the model is given."""
        return _image_size(self.name, setup.image_size if setup.image_size is not None else usual, self.patch, trained)

    def _depths(self, config: Any) -> list[int]:
        """The lengths of the model's lists of blocks."""
        return [config.num_hidden_layers]

    def view(self, height: int, width: int) -> View:
        """The view of an image of that many pixels."""
        size = self.image_size
        if self.geometry == "squash":
            return View(size, size, 0, 0, size, size)
        if self.geometry == "crop":
            short = min(height, width)
            height, width = self.shortest * height // short, self.shortest * width // short
            return View(height, width, (height - size) // 2, (width - size) // 2, size, size)
        long = max(height, width)
        return View(max(size * height // long, 1), max(size * width // long, 1), 0, 0, size, size)

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Normalised pixels [B, 3, H, W] float32 and the box of every patch that shows some image."""
        images = [_rgb(sample) for sample in samples]
        views = tuple(self.view(*image.shape[:2]) for image in images)
        pixels = np.stack([apply_view(image, view) for image, view in zip(images, views, strict=True)])
        scaled = (torch.from_numpy(pixels).float() / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)
        shown = torch.stack([self._shown(view) for view in views])
        positions = torch.zeros(len(samples), self.n_positions, dtype=torch.bool)
        positions[:, self.n_special : self.n_special + len(self.boxes)] = shown
        regions = torch.cat([self.boxes[kept] for kept in shown])
        tensors = {"pixel_values": scaled.permute(0, 3, 1, 2).contiguous().to(self.device)}
        return Inputs(tensors, positions, regions, views)

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """One forward pass to the sites; differentiable in the pixels."""
        states = self._states(inputs.tensors["pixel_values"], sites)
        values, offsets = pack(states, inputs.positions)
        return Embedded(values, offsets, inputs.regions, self._summary(states, inputs.positions), inputs.views)

    def opened(self, inputs: Inputs) -> Opened:
        """One image opened for attribution: the leaf is its pixels, a removed patch is the mean colour (0 after normalisation)."""
        pixels = inputs.tensors["pixel_values"]
        cells = torch.full((1, *pixels.shape[2:]), -1, dtype=torch.int64)
        for token, (top, left, bottom, right) in enumerate(inputs.regions.tolist()):
            cells[0, top:bottom, left:right] = token
        return Opened(inputs, "pixel_values", cells[0], 1, torch.zeros(1, 1, 1, 1), self.frozen.blocks)

    def _summary(self, states: list[Tensor], positions: Tensor) -> Tensor:
        if not self.n_special:
            return mean_token(states, positions)
        return torch.stack([state[:, 0].float() for state in states])

    def _states(self, pixels: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        return self.frozen.states({"pixel_values": pixels.to(self.frozen.model.dtype), **self.options}, sites)

    def _shown(self, view: View) -> Tensor:
        """[patches] bool: the patch's box meets the resized image."""
        return (self.boxes[:, 0] < view.height - view.window_top) & (self.boxes[:, 1] < view.width - view.window_left)

    def _interpolation(self, trained: int) -> dict[str, bool]:
        """Position embeddings are interpolated away from the trained size; some models do so unasked."""
        asked = "interpolate_pos_encoding" in inspect.signature(self.frozen.model.forward).parameters
        return {"interpolate_pos_encoding": True} if asked and self.image_size != trained else {}

    def _entering(self, pixels: Tensor) -> Tensor:
        """[B, N, d]: the tokens before the first block."""
        tokens = first_block_input(self, pixels)
        if tokens.ndim != 3 or (len(tokens), tokens.shape[2]) != (len(pixels), self.width):
            raise ValueError(f"its blocks see {tuple(tokens.shape)}, not [{len(pixels)}, tokens, {self.width}]")
        return tokens

    @torch.no_grad()
    def _measure(self) -> tuple[int, int]:
        """(special tokens before the patches, positions in all): light up the first, second, last patch; see what moves."""
        size, patch, last = self.image_size, self.patch, (self.grid - 1) * self.patch
        pixels = torch.zeros(4, 3, size, size, device=self.device)
        for row, (top, left) in enumerate([(0, 0), (0, min(patch, last)), (last, last)], start=1):
            pixels[row, :, top : top + patch, left : left + patch] = 1
        try:
            tokens = self._entering(pixels)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            first = str(error).strip().splitlines()[0]
            raise HarnessError(
                f"{self.name} does not take a {size} px image as pixel_values alone ({first}); it needs a plugin"
            ) from error
        moved = [_moved(tokens[row] - tokens[0]) for row in (1, 2, 3)]
        special = moved[0][0] if moved[0] else 0
        if moved != [[special], [special + min(1, self.grid - 1)], [special + self.grid**2 - 1]]:
            raise HarnessError(f"{self.name} has not one token per {patch} px patch, row by row; it needs a plugin")
        return special, tokens.shape[1]


def _moved(change: Tensor) -> list[int]:
    """The positions of [N, d] that changed by more than rounding."""
    size = change.float().abs().amax(-1)
    return (size > 0.01 * size.max()).nonzero().flatten().tolist()


class _ReachedError(Exception):
    """Ends a forward pass at the first block."""


def first_block_input(backbone: VisionBackbone, pixels: Tensor) -> Tensor:
    """What enters the first block: [B, N, d] in most models."""
    entered: list[Tensor] = []

    def stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])
        raise _ReachedError

    handle = backbone.frozen.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        backbone._states(pixels, [Site(0)])
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return entered[0]


def _rgb(sample: Sample) -> np.ndarray:
    if sample.image is None:
        raise HarnessError(f"sample {sample.id!r} has no image, and the backbone takes images")
    try:
        return np.asarray(sample.image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise HarnessError(f"the image of sample {sample.id!r} cannot be read: {error}") from error


def _side(config: Any, key: str, name: str) -> int:
    """The side of a square that the configuration gives as a number or a pair."""
    value = getattr(config, key, None)
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise HarnessError(f"the {key} of {name} is {value}, and should be one number of pixels; it needs a plugin")
    return side


def _image_size(name: str, size: int, patch: int, trained: int) -> int:
    """The size, if it is a whole number of patches (or the one the model was trained at, whose rest the model ignores)."""
    if size >= patch and (size % patch == 0 or size == trained):
        return size
    below = max(size // patch, 1) * patch
    raise HarnessError(
        f"image size {size} is not a multiple of the {patch} px patches of {name}; the nearest are {below} and {below + patch}"
    )


def _processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings as saved with the model, or none."""
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (folder / file).exists():
            saved = json.loads((folder / file).read_text())
            return saved.get("image_processor", saved)
    return {}


def _normalization(processor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(processor.get("image_mean") or IMAGENET_MEAN), tuple(processor.get("image_std") or IMAGENET_STD)


def _edge(size: Any) -> int | None:
    """The (shortest) edge of a processor's size, which is a number or a dictionary."""
    if not isinstance(size, Mapping):
        return size
    return size.get("shortest_edge") or size.get("height")


def _crop(processor: Mapping[str, Any]) -> int | None:
    """The side of the image that the model's own processor makes."""
    cropped = _edge(processor.get("crop_size")) if processor.get("do_center_crop") else None
    return cropped or _edge(processor.get("size"))


def _margin(processor: Mapping[str, Any]) -> float:
    """Shortest edge before the processor's centre crop, in crops: 256/224 for DINOv2, 1 for CLIP."""
    crop, edge = _crop(processor), _edge(processor.get("size"))
    return edge / crop if crop and edge else 1.0
