"""The vision model of Llama-3.2-Vision (Mllama): tiles, a stack of local blocks and then one of global blocks.

An image is one tile, its longest edge the tile's side (the paper's geometry); the model was trained with that tile among empty ones,
which its tokens attend to, so they cannot be left out. Layers count through both stacks; after the last there is no norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.api import HarnessError, Setup, Site

from .vision import VisionBackbone
from .weights import Source

ONE_TILE = 1
"""The model's number for an image of 1 x 1 tiles (0 is no image)."""


class TiledBackbone(VisionBackbone):
    """Tokens are the patches of the image's tile; the summary is that tile's CLS."""

    usual = "pad"

    def __init__(
        self, source: Source, config: Any, setup: Setup, geometry: str | None = None, device_map: str | None = None
    ) -> None:
        if list(config.supported_aspect_ratios[ONE_TILE - 1]) != [1, 1]:
            raise HarnessError(f"{source.name} has no aspect ratio of one tile in the first place; it needs a plugin")
        self.tiles: int = config.max_num_tiles
        self.shared = False
        super().__init__(source, config, setup, geometry, device_map)
        self.layers = list(range(self.n_layers))
        if device_map is None and _alike(self.frozen.model, self.tiles):
            self.shared = True
            self.n_special, self.n_positions = self._measure()

    def _depths(self, config: Any) -> list[int]:
        return [config.num_hidden_layers, config.num_global_layers]

    def _size(self, setup: Setup, trained: int, usual: int) -> int:
        """Always the trained size: the position table is that of one tile."""
        if setup.image_size not in (None, trained) and setup.size_asked:
            raise HarnessError(
                f"image size {setup.image_size} is not one of {self.name}, whose tiles have {trained} px; leave --image-size out"
            )
        return trained

    def _interpolation(self, trained: int) -> dict[str, bool]:
        return {}

    def _states(self, pixels: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        pixels = pixels.to(self.frozen.model.dtype)
        if self.shared:
            with self.frozen.captured(sites) as seen:
                _with_one_empty_tile(self.frozen.model, pixels, self.tiles)
            return [seen[site] for site in sites]
        empty = pixels.new_zeros(len(pixels), self.tiles - 1, *pixels.shape[1:])
        mask = torch.zeros(len(pixels), 1, self.tiles, dtype=torch.long, device=pixels.device)
        mask[:, :, 0] = 1
        tensors = {
            "pixel_values": torch.cat([pixels[:, None], empty], 1)[:, None],
            "aspect_ratio_ids": torch.full((len(pixels), 1), ONE_TILE, device=pixels.device),
            "aspect_ratio_mask": mask,
        }
        return self.frozen.states(tensors, sites)


def _alike(model: Any, tiles: int) -> bool:
    """Whether the empty tiles of a one-tile image are the same to the model: then they stay the same in every block.

    No position tells them apart where the tables hold nothing for tiles that the image does not have, as in the published weights.
    With no row of padding per tile the model masks everything, which is left to its own code.
    """
    tables = (
        model.pre_tile_positional_embedding.embedding,
        model.gated_positional_embedding.tile_embedding,
        model.post_tile_positional_embedding.embedding,
    )
    rows = [table.weight[ONE_TILE].reshape(tiles, -1)[1:] for table in tables]
    return tiles > 2 and model.num_patches % 8 > 0 and all(bool((row == row[:1]).all()) for row in rows)


def _with_one_empty_tile(model: Any, pixels: Tensor, tiles: int) -> None:
    """The model's forward pass with its equal empty tiles computed once, and repeated where they are attended to.

    As the model's own: rows of padding and of empty tiles do not see each other, and everything else sees everything.
    """
    patches = torch.stack([model.patch_embedding(images).flatten(2).transpose(1, 2) for images in (pixels, 0 * pixels)], 1)
    batch, _, n, width = patches.shape

    def of_tiles(table: Any, gate: Tensor) -> Tensor:
        """[1, 2, rows, d]: what the image's tile and an empty one are given."""
        rows: Tensor = table.weight[ONE_TILE].reshape(1, tiles, -1, width)[:, :2]
        return rows * gate.tanh()

    before, place, after = (
        model.pre_tile_positional_embedding,
        model.gated_positional_embedding,
        model.post_tile_positional_embedding,
    )
    states = patches + of_tiles(before.embedding, before.gate)
    states = model.apply_class_embedding(states.reshape(batch * 2, n, width)).reshape(batch, 2, n + 1, width)
    states = states + (1 - place.gate.tanh()) * place.embedding + of_tiles(place.tile_embedding, place.gate)
    states = pad(model.layernorm_pre(states), (0, 0, 0, -(n + 1) % 8))
    rows = states.shape[2]
    states = states.reshape(batch, 2 * rows, width)

    hidden = torch.ones(2 * rows, device=states.device)
    hidden[: n + 1] = 0
    mask = torch.outer(hidden, _repeated(hidden[None, :, None], rows, tiles)[0, :, 0]) * torch.finfo(states.dtype).min
    mask = mask.to(states.dtype).expand(batch, 1, -1, -1)
    blocks = [*model.transformer.layers, *model.global_transformer.layers]
    keys = [part for block in blocks for part in (block.self_attn.k_proj, block.self_attn.v_proj)]
    handles = [part.register_forward_hook(lambda _, __, made: _repeated(made, rows, tiles)) for part in keys]
    try:
        for block in model.transformer.layers:
            states = block(states, attention_mask=mask)
        states = model.layernorm_post(states).reshape(batch, 2, rows, width) + of_tiles(after.embedding, after.gate)
        states = states.reshape(batch, 2 * rows, width)
        for block in model.global_transformer.layers:
            states = block(states, attention_mask=mask)
    finally:
        for handle in handles:
            handle.remove()


def _repeated(made: Tensor, rows: int, tiles: int) -> Tensor:
    """[B, tiles * rows, d]: of [B, 2 * rows, d], the empty tile once for each that there is."""
    return torch.cat([made[:, :rows], made[:, rows:].repeat(1, tiles - 1, 1)], 1)
