"""Train tokens held in memory: a seeded sample of at most so many, a few layers at a time, so that memory stays bounded.

A method that goes over the same tokens many times (k-means, ICA, NMF) reads them from here. The sample is the same at every layer and
for every block size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.api import Blocks, HarnessError

HELD_BYTES = 1_500_000_000
"""Room for the layers that are held at once; one layer at least."""


def drawn(train: Blocks, max_rows: int) -> Tensor:
    """[N] int64, ascending: the places of `max_rows` train tokens, drawn without replacement by the run's seed; all if no more."""
    n, device = len(train.truth), train.truth.device
    if n <= max_rows:
        return torch.arange(n, device=device)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(train.seed))
    return order[:max_rows].sort().values.to(device)


def layers_of(train: Blocks, places: Tensor) -> Iterator[Tensor]:
    """[N, d] float32 for every layer in turn, to be changed at will; one pass over train for as many layers as fit `HELD_BYTES`."""
    step = max(1, HELD_BYTES // max(4 * len(places) * train.width, 1))
    for first in range(0, len(train.sites), step):
        yield from _held(train, places, slice(first, min(first + step, len(train.sites))))


def _held(train: Blocks, places: Tensor, layers: slice) -> Tensor:
    rows = torch.empty(layers.stop - layers.start, len(places), train.width, device=places.device)
    start = 0
    for block in train:
        end = start + block.values.shape[1]
        first, last = torch.searchsorted(places, torch.tensor([start, end], device=places.device)).tolist()
        rows[:, first:last] = block.values[layers][:, places[first:last] - start]
        start = end
    return rows


def at_least(least: int, where: str, **options: int) -> None:
    """Raises where an option is smaller than `least`."""
    for name, value in options.items():
        if value < least:
            raise HarnessError(
                f"bad value {value} for option {name!r} of concept method {where!r}; allowed: whole numbers from {least}"
            )
