"""A plugin for the tests: a text and an image backbone of a few lines, each of which can be given a fault; and a data set of given rows.

`words`: a token per word, padded batches. `pixels`: a token per 4 x 4 patch of a squashed image. `peek`: a detector that looks past
what it is given.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch

from harness.api import (
    Embedded,
    Entry,
    HarnessError,
    Inputs,
    Sample,
    Setup,
    Site,
    TokenEmbeddings,
    View,
    apply_view,
    hookimpl,
    square_patches,
)

LAYERS, WIDTH, SIZE, PATCH = 3, 6, 32, 4
GIVEN: dict[str, Any] = {}
"""What the data set `given` gives, by key; tests put it there and take it away."""
TEXT_REGION = {"concept": datasets.Value("string"), "start": datasets.Value("int64"), "end": datasets.Value("int64")}
IMAGE_REGION = {
    "concept": datasets.Value("string"),
    "rle": {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")},
}


def table(modality: str, rows: Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    """One split with explicit features."""
    more = {"text": {"text": datasets.Value("string")}, "image": {"image": datasets.Image()}, "tokens": {}}[modality]
    features = {
        "id": datasets.Value("string"),
        "concepts": datasets.List(datasets.Value("string")),
        "regions": datasets.List(IMAGE_REGION if modality == "image" else TEXT_REGION),
        **more,
    }
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def load(key: str) -> Any:
    """The rows that a test has put there."""
    made = GIVEN[key]
    return made() if callable(made) else made


MEMORY: dict[str, Exception] = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
    ),
    "linux": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    "python": MemoryError(),
    "other": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
}
"""What running out of memory looks like, by device, and what is something else."""


class Words:
    """A token per word: its vector is drawn by the word. `room`: as many samples fit the memory.

    fault: leak, padding, hole, width, sites, shift, drop, special, stale, alike; `who` is the faulty sample's text. memory: what is raised.
    """

    name, revision, modality, n_layers = "words", "1", "text", LAYERS
    layers = range(LAYERS)

    def __init__(self, setup: Setup, *, fault: str = "", who: str = "", room: int = 0, memory: str = "cuda") -> None:
        self._fault, self._who, self.identity, self.width = fault, who, {"fault": fault}, WIDTH
        self._room, self._memory, self._seen = room, memory, 0.0

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Padded vectors of the words."""
        found = [list(re.finditer(r"\S+", sample.text or "")) for sample in samples]
        longest = max(map(len, found))
        values = torch.zeros(len(samples), longest, WIDTH)
        for b, words in enumerate(found):
            for t, word in enumerate(words):
                values[b, t] = torch.from_numpy(_vector(word.group()))
        lengths = torch.tensor([len(words) for words in found])
        positions = torch.arange(longest)[None] < lengths[:, None]
        spans = [[word.start(), word.end()] for words in found for word in words]
        if self._fault == "drop":  # as if each text began with a start token
            positions[:, 0], spans = False, [[w.start(), w.end()] for words in found for w in words[1:]]
        if self._fault == "special":
            values = torch.cat([torch.ones(len(samples), 1, WIDTH), values], 1)
            positions = torch.cat([positions[:, :1] | True, positions], 1)
            spans = [span for words in found for span in ([0, 0], *([w.start(), w.end()] for w in words))]
        if self._fault == "labels":  # each token has its neighbour's region
            spans = [[w.start(), w.end()] for words in found for w in (*words[1:], words[-1])]
        if self._fault == "padding":
            positions = torch.ones_like(positions)
            padded = [words + [None] * (longest - len(words)) for words in found]
            spans = [[w.start(), w.end()] if w else [0, 0] for words in padded for w in words]
        faulty = torch.tensor([sample.text == self._who for sample in samples])
        return Inputs({"values": values, "faulty": faulty}, positions, torch.tensor(spans).reshape(-1, 2))

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """Layer l is (l + 1) times the word's vector plus that of the sample's mean word."""
        values, positions = inputs.tensors["values"], inputs.positions
        lengths = positions.sum(1)
        _refuse_streams(sites)
        if self._room and len(values) > self._room:
            raise MEMORY[self._memory]
        context = values.sum(1) / (values.shape[1] if self._fault == "leak" else lengths[:, None].clamp(min=1))
        every = torch.stack([(site.layer + 1.0) * values + 0.1 * site.layer * context[:, None] for site in sites])
        if self._fault == "shift":
            every = torch.cat([every[:, :, :1], every[:, :, :-1]], 2)
        if self._fault == "stale":
            every = every + self._seen
            self._seen = float(every.mean())
        if self._fault == "alike":
            every = every[-1:].expand(len(every), -1, -1, -1)
        if self._fault == "hole":
            for i, site in enumerate(sites):
                if site.layer == 1:
                    every[i, inputs.tensors["faulty"], 0, 2] = torch.nan
        if self._fault == "width":
            every = every[..., :-1]
        if self._fault == "sites":
            every = every[:-1]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        summary = (every * positions[None, :, :, None]).sum(2) / lengths[:, None].clamp(min=1)
        return Embedded(every[:, positions], offsets, inputs.regions, summary)


def _refuse_streams(sites: Sequence[Site]) -> None:
    if any(site.stream != "residual" for site in sites):
        raise HarnessError("these backbones have the residual stream alone")


def _vector(word: str) -> np.ndarray[Any, Any]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


class Pixels:
    """A token per patch: its mean colour and place. The view squashes. fault: crop (pixels are cropped, the view is not), mirror, turn
    (rows for columns), blind, columns (patches column by column), boxes (left before top), gap (the last patch left out), class (one
    position more, counted as the first patch).
    """

    name, revision, modality, n_layers, width = "pixels", "1", "image", 2, WIDTH
    layers = range(2)

    def __init__(self, setup: Setup, *, fault: str = "") -> None:
        self._fault, self._size, self.identity = fault, setup.image_size or SIZE, {"fault": fault}

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Float pixels in 0..1, squashed to a square."""
        view, pixels = View(self._size, self._size, 0, 0, self._size, self._size), []
        for sample in samples:
            image = np.asarray(sample.image)
            if self._fault == "crop":
                short, (height, width) = min(image.shape[:2]), image.shape[:2]
                top, left = (height - short) // 2, (width - short) // 2
                image = image[top : top + short, left : left + short]
            seen = torch.from_numpy(apply_view(image, view)).permute(2, 0, 1) / 255
            seen = seen.flip(2) if self._fault == "mirror" else seen
            pixels.append(seen.transpose(1, 2) if self._fault == "turn" else seen)
        boxes = square_patches(self._size, self._size, PATCH)
        boxes = boxes[:, [1, 0, 3, 2]] if self._fault == "boxes" else boxes[:-1] if self._fault == "gap" else boxes
        positions = torch.ones(len(samples), len(boxes), dtype=torch.bool)
        views = None if self._fault == "blind" else (view,) * len(samples)
        return Inputs({"pixel_values": torch.stack(pixels)}, positions, boxes.repeat(len(samples), 1), views)

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """Colour and place."""
        _refuse_streams(sites)
        patches = torch.nn.functional.avg_pool2d(inputs.tensors["pixel_values"], PATCH)
        patches = patches.transpose(2, 3) if self._fault == "columns" else patches
        patches = patches.flatten(2).transpose(1, 2)[:, : inputs.positions.shape[1]]
        if self._fault == "class":
            patches = torch.cat([torch.ones_like(patches[:, :1]), patches[:, :-1]], 1)
        place = torch.linspace(-1, 1, patches.shape[1])[None, :, None].expand(len(patches), -1, WIDTH - 3)
        every = torch.stack([torch.cat([patches * (site.layer + 1), place], 2) for site in sites])
        offsets = torch.arange(len(patches) + 1) * patches.shape[1]
        return Embedded(every.flatten(1, 2), offsets, inputs.regions, every.mean(2), inputs.views)


class Peek:
    """A detector that finds the labels in its caller's variables, as a leak in the core would hand them over."""

    calibrate_on = "samples"

    def pool(self, activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
        """1 for a positive, 0 for a negative."""
        split = sys._getframe(1).f_locals["split"]
        place = {name: i for i, name in enumerate(split.ids)}
        labels = split.labels[[place[name] for name in block.ids]]
        return labels.float().expand(len(activations), -1, -1).clone()


@hookimpl
def harness_register_datasets() -> Iterable[Entry]:
    """`given`."""
    return [Entry("given", "small_backbones:load", "rows that a test has made")]


@hookimpl
def harness_register_backbones() -> Iterable[Entry]:
    """`words` and `pixels`."""
    return [
        Entry("words", "small_backbones:Words", "a token per word"),
        Entry("pixels", "small_backbones:Pixels", "a token per patch"),
    ]


@hookimpl
def harness_register_detectors() -> Iterable[Entry]:
    """`peek`."""
    return [Entry("peek", "small_backbones:Peek", "looks past what it is given")]
