"""The vision model of Qwen2.5-VL: images of any size as one long row of patches, 2 x 2 patches side by side, in windows of attention.

Its blocks see all patches of a batch in one dimension, in the order of the windows; here they are put back, row by row. The merged
patches that its language model reads are no site: they are behind the last block. There is no CLS and no norm after the last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.api import HarnessError, Setup, Site

from .vision import VisionBackbone, first_block_input
from .weights import Source

USUAL = 448
"""Pixels, where nothing is asked for: the model takes any multiple of two patches."""


class WindowedBackbone(VisionBackbone):
    """Tokens are the patches before they are merged; the summary is their mean."""

    def __init__(
        self, source: Source, config: Any, setup: Setup, geometry: str | None = None, device_map: str | None = None
    ) -> None:
        self.merge: int = config.spatial_merge_size
        self.frames: int = config.temporal_patch_size
        config.num_hidden_layers = config.depth
        super().__init__(source, config, setup, geometry, device_map)
        self.layers = list(range(self.n_layers))

    def _sizes(self, source: Source, config: Any, processed: int | None) -> tuple[int, int]:
        return config.patch_size, USUAL // (config.patch_size * self.merge) * config.patch_size * self.merge

    def _size(self, setup: Setup, trained: int, usual: int) -> int:
        asked, step = setup.image_size or trained, self.patch * self.merge
        if asked % step:
            below = max(asked // step, 1) * step
            raise HarnessError(
                f"image size {asked} is not a multiple of the {step} px windows' patches of {self.name}; the nearest are {below} and "
                f"{below + step}"
            )
        return asked

    def _interpolation(self, trained: int) -> dict[str, bool]:
        return {}

    def _states(self, pixels: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        grid = torch.tensor([[1, self.grid, self.grid]] * len(pixels), device=pixels.device)
        with self.frozen.captured(sites) as seen:
            self.frozen.model(self._flat(pixels.to(self.frozen.model.dtype)), grid_thw=grid)
        return [self._rows(seen[site], len(pixels)) for site in sites]

    def _entering(self, pixels: Tensor) -> Tensor:
        self._order = self._measured_order()
        return self._rows(first_block_input(self, pixels), len(pixels))

    def _flat(self, pixels: Tensor) -> Tensor:
        """[B * N, channels * frames * patch * patch]: the patches as the model's own processor lays them out."""
        batch, channels, cells = len(pixels), pixels.shape[1], self.grid // self.merge
        cut = pixels.reshape(batch, channels, cells, self.merge, self.patch, cells, self.merge, self.patch)
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch * self.grid**2, channels, 1, self.patch**2)
        return cut.expand(-1, -1, self.frames, -1).reshape(batch * self.grid**2, -1)

    def _rows(self, states: Tensor, batch: int) -> Tensor:
        """[B, N, d] row by row, of [B * N, d] in the order of the windows."""
        return states.reshape(batch, self.grid**2, -1)[:, self._order.to(states.device)]

    def _measured_order(self) -> Tensor:
        """[N]: where in the order of the windows each patch of an image is, row by row: read off patches of noise."""
        noise = torch.randn(1, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
        laid: list[Tensor] = []
        handle = self.frozen.model.patch_embed.register_forward_hook(lambda _, __, made: laid.append(made))
        try:
            blocks_see = first_block_input(self, noise.to(self.device))
        finally:
            handle.remove()
        same = torch.cdist(laid[0].float(), blocks_see.float()).argmin(1).cpu()  # of each patch as the processor lays it out
        if sorted(same.tolist()) != list(range(self.grid**2)):
            raise ValueError("its blocks do not see the patches in another order")
        cells = self.grid // self.merge
        return same.reshape(cells, cells, self.merge, self.merge).transpose(1, 2).flatten()
