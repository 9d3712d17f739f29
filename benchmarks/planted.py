"""Made-up tokens with planted concepts for the benchmarks, in memory as `Blocks` or on disk as a folder of `embeddings`.

A sample is a square of tokens; a concept that is present covers a rectangle of it, at full strength only in a tail of its tokens and
faintly in the rest, and tokens out of concept sometimes carry the faint trace too (the regime of arXiv 2512.05038). The noise has a
covariance far from the identity, so that a mean vector is not already the best separator, and no F1 is 1.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness_superactivator.detector import SuperActivator
from safetensors.torch import save_file
from torch import Tensor

from harness.calibration import Chosen, at_layer, at_level, calibrate, choose, in_concept, token_cutoffs
from harness.embed import Affine, normalization
from harness.numerics import Counts, Moments, counts_at, f1_score, token_sums
from harness.types import LEVELS, SPLITS, Concepts, Site, TokenEmbeddings

SHARES = (0.6, 0.2, 0.2)
TAIL, STRAY = 0.2, 0.1
BLOCK_TOKENS = 8192


@dataclass(frozen=True)
class Size:
    """samples x tokens (a square number) x width, with so many concepts and layers; strength of the tail in standard deviations."""

    samples: int = 300
    tokens: int = 256
    width: int = 1024
    concepts: int = 6
    layers: int = 1
    strength: float = 6.0
    seed: int = 0


@dataclass(frozen=True)
class Planted:
    """values [L, S * T, d] float32 · truth [S * T, C] bool · labels [S, C] bool · offsets [S + 1]; samples of the splits in order."""

    values: Tensor
    truth: Tensor
    labels: Tensor
    offsets: Tensor

    @property
    def names(self) -> list[str]:
        """The split of every sample."""
        return [name for name, place in places(len(self.labels)).items() for _ in place]


def places(samples: int) -> dict[str, range]:
    """Split -> its samples."""
    train, cal = (round(samples * share) for share in SHARES[:2])
    return dict(zip(SPLITS, (range(train), range(train, train + cal), range(train + cal, samples)), strict=True))


def plant(size: Size) -> Planted:
    """The world of a size and its seed."""
    g = torch.Generator().manual_seed(size.seed)
    present = torch.rand(size.samples, size.concepts, generator=g) < max(0.1, 2 / size.concepts)
    present[::7, 0], present[1::7, 0] = True, False
    for c, split in ((c, place) for c in range(size.concepts) for place in places(size.samples).values()):
        present[split[c % len(split)], c], present[split[(c + 1) % len(split)], c] = True, False
    truth = (_rectangles(size, g) & present[:, None]).flatten(0, 1)
    strong = truth & (torch.rand(truth.shape, generator=g) < TAIL)
    stray = torch.rand(truth.shape, generator=g) < STRAY
    amount = torch.where(strong, size.strength, torch.where(truth | stray, size.strength / 4, 0.0))
    directions = torch.nn.functional.normalize(torch.randn(size.concepts, size.width, generator=g), dim=1)
    spread = torch.logspace(-0.25, 0.25, size.width)[torch.randperm(size.width, generator=g)]
    values = torch.randn(size.layers, len(truth), size.width, generator=g).mul_(spread).add_(amount @ directions).add_(0.3)
    return Planted(values, truth, present, torch.arange(0, len(truth) + 1, size.tokens))


def _rectangles(size: Size, g: torch.Generator) -> Tensor:
    """[S, T, C] bool: a rectangle of a quarter to a half of the side, anywhere."""
    side = math.isqrt(size.tokens)
    assert side * side == size.tokens, "tokens must be a square number"
    shape = (size.samples, size.concepts, 2)
    length = torch.randint(max(side // 4, 1), max(side // 2, 1) + 1, shape, generator=g)
    start = (torch.rand(shape, generator=g) * (side - length + 1)).long()
    at = torch.arange(side)[:, None, None, None]
    inside = (at >= start) & (at < start + length)  # [side, S, C, 2]
    return (inside[:, None, ..., 0] & inside[None, ..., 1]).flatten(0, 1).transpose(0, 1)


class Split:
    """`Blocks` in memory; values are normalised as the paper does (train mean, train RMS norm)."""

    def __init__(self, world: Planted, place: range, affine: Affine, seed: int = 0) -> None:
        offsets = world.offsets[place.start : place.stop + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        self.values = affine(world.values[:, tokens].clone())
        self.truth, self.labels = world.truth[tokens].to(torch.int8), world.labels[place.start : place.stop]
        self.offsets, self.seed, self.width = offsets - offsets[0], seed, self.values.shape[2]
        self.ids = tuple(f"sample-{i}" for i in place)
        self.concepts = tuple(f"concept-{c:03}" for c in range(self.labels.shape[1]))
        self.sites = tuple(Site(i) for i in range(len(self.values)))
        self.centre, self.scale, self.backbone = affine.centre, affine.scale, None

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        step = max(1, BLOCK_TOKENS // int(self.offsets.diff().max()))
        for first in range(0, len(self.ids), step):
            offsets = self.offsets[first : first + step + 1]
            here, samples = slice(int(offsets[0]), int(offsets[-1])), slice(first, first + step)
            given = self.values[:, here], offsets - offsets[0], self.ids[samples], self.sites
            yield TokenEmbeddings(*given, self.labels[samples], self.truth[here])

    @property
    def widest(self) -> int:
        """The tokens of the largest block."""
        return min(len(self.truth), BLOCK_TOKENS)

    def blind(self) -> Iterator[TokenEmbeddings]:
        """The blocks as a method sees cal and test."""
        return (replace(block, labels=None, truth=None) for block in self)

    def rows(self, index: Tensor) -> Tensor:
        """[L, N, d]."""
        return self.values[:, index]


class Splits(NamedTuple):
    """The three splits."""

    train: Split
    cal: Split
    test: Split


def splits(world: Planted) -> Splits:
    """The world as `Blocks`."""
    place = places(len(world.labels))
    moments = Moments(*world.values[:, 0].shape)
    train = world.values[:, : int(world.offsets[place["train"].stop])]
    moments.add(train.shape[1], token_sums(train))
    return Splits(*(Split(world, where, normalization("train", moments)) for where in place.values()))


def write_folder(world: Planted, folder: Path) -> None:
    """The world as a folder of embeddings: what `--backbone embeddings:<folder>` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"layer.{i}": values for i, values in enumerate(world.values)}
    tensors.update(offsets=world.offsets, labels=world.labels.to(torch.uint8), truth=world.truth.to(torch.uint8))
    save_file(tensors, folder / "tokens.safetensors")
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([["id", "split"], *([f"sample-{i}", name] for i, name in enumerate(world.names))])
    (folder / "concepts.json").write_text(json.dumps([f"concept-{c:03}" for c in range(world.labels.shape[1])]))


class Detected(NamedTuple):
    """cutoffs [P, L, C] · cal counts [P, L, C] · what cal chose · test F1 [C] at each concept's level and layer."""

    cutoffs: Tensor
    counts: Counts
    chosen: Chosen
    f1: Tensor


def detect(concepts: Concepts, cal: Split, test: Split) -> Detected:
    """From fitted concepts to test F1 by the core's own functions, in the order of `harness.pipeline.sweep` and `decide`."""
    detector, inside = SuperActivator(), []
    pooled: dict[str, list[Tensor]] = {"cal": [], "test": []}
    start = 0
    for name, split in (("cal", cal), ("test", test)):
        for block in split.blind():
            activations = concepts.activate(block)
            pooled[name].append(detector.pool(activations, block))
            if split is cal:
                inside.append(in_concept(activations, cal.truth[start : start + activations.shape[1]]))
                start += activations.shape[1]
    scores = {name: torch.cat(parts, 1) for name, parts in pooled.items()}
    cutoffs = token_cutoffs([torch.cat(parts) for parts in zip(*inside, strict=True)], LEVELS)
    calibrated = calibrate(scores["cal"], cal.labels, cutoffs)
    chosen = choose(calibrated)
    cutoff = at_layer(at_level(cutoffs, chosen.level), chosen.layer)[None]
    counts = counts_at(at_layer(scores["test"], chosen.layer), test.labels.to(torch.int8), cutoff)
    return Detected(cutoffs, calibrated.counts, chosen, f1_score(counts)[0])


def close(name: str, mine: Any, other: Any, tolerance: float) -> None:
    """Raises where two arrays differ in shape, or anywhere by more than the tolerance; NaN equals NaN."""
    a, b = (torch.as_tensor(value).double() for value in (mine, other))
    assert a.shape == b.shape, f"{name}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.equal(a.isnan(), b.isnan()), f"{name}: NaN in different places"
    gap = float((a - b).abs().nan_to_num().max()) if a.numel() else 0.0
    assert gap <= tolerance, f"{name}: differs by {gap:.3g}, tolerance {tolerance:g}"
