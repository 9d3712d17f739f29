"""A plugin for the tests: ragged samples with every oddity a data set can have, made from a seed; token embeddings, no model.

Oddities, in every split: a positive sample without tokens, samples that are not annotated, positives whose mask is missing or lies
beyond the tokens there are, a mask without a label. Concept `hidden` is annotated nowhere in train, so it can have no vector.
`Ragged` can also leak, overflow, count and die, as its options say.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch

from harness.api import (
    SPLITS,
    Blocks,
    Embedded,
    Entry,
    Explained,
    Inputs,
    Sample,
    Setup,
    Site,
    TokenEmbeddings,
    hookimpl,
    segment_max,
)

CONCEPTS = ("a", "b", "c", "hidden")
LAYERS, WIDTH = 3, 6
SIZES = {"train": 44, "cal": 33, "test": 37}
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "concepts": datasets.List(datasets.Value("string")),
        "regions": datasets.List(
            {"concept": datasets.Value("string"), "start": datasets.Value("int64"), "end": datasets.Value("int64")}
        ),
    }
)


@dataclass(frozen=True)
class One:
    """A sample: labels [C] bool, regions or None, values [L, T, d] float32, and what its truth [T, C] must be."""

    id: str
    labels: np.ndarray[Any, Any]
    regions: list[dict[str, Any]] | None
    values: np.ndarray[Any, Any]
    truth: np.ndarray[Any, Any]

    @property
    def summary(self) -> np.ndarray[Any, Any]:
        """[L, d] float32: something else than the mean token."""
        return (self.values.sum(1) / np.sqrt(max(self.values.shape[1], 1)) + 0.5).astype(np.float32)


@cache
def made(split: str, seed: int) -> tuple[One, ...]:
    """The samples of a split."""
    g = np.random.default_rng([seed, SPLITS.index(split)])
    directions = np.linalg.qr(np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)))[0][: len(CONCEPTS)]
    return tuple(_one(f"{split}/{i}", i, g, directions) for i in range(SIZES[split]))


def _one(name: str, i: int, g: np.random.Generator, directions: np.ndarray[Any, Any]) -> One:
    count, n = len(CONCEPTS), 0 if i % 11 == 3 else int(g.integers(1, 9))
    labels = g.random(count) < 0.45
    labels[0] |= i % 11 == 3  # a sample without tokens is positive for `a`
    annotated = i % 7 != 5
    if name.startswith("train"):
        labels[3] = not annotated
    there = labels & (g.random((n, count)) < 0.5)  # where the concept is
    regions = [{"concept": CONCEPTS[c], "start": int(t), "end": int(t) + 1} for t, c in zip(*np.nonzero(there), strict=True)]
    if i % 9 == 2:  # a mask beyond the last token, as in a truncated text
        labels[1], regions = True, [r for r in regions if r["concept"] != "b"] + [{"concept": "b", "start": n, "end": n + 2}]
        there[:, 1] = False
    if i % 10 == 4:  # a mask without a label
        labels[2] = False
        there[:, 2] = False
        regions = [r for r in regions if r["concept"] != "c"] + [{"concept": "c", "start": 0, "end": max(n, 1)}]
    strength = np.where(there, g.choice([0.5, 4.0], size=(n, count), p=[0.6, 0.4]), 0.0)
    share = (np.arange(LAYERS) + 1)[:, None, None] / LAYERS
    values = 3.0 + share * (strength @ directions) + g.standard_normal((LAYERS, n, WIDTH))
    truth = there.astype(np.int8)
    for c in range(count):
        if not annotated or (labels[c] and not there[:, c].any()):
            truth[:, c] = -1
    return One(name, labels, regions if annotated else None, values.astype(np.float32), truth)


def load(seed: int = 0, mixed: int | None = None, annotated: bool = True) -> datasets.DatasetDict:
    """The data set `ragged`. mixed: a seed by which labels and regions are permuted among the test samples."""
    found = {}
    for split in SPLITS:
        rows = list(made(split, seed))
        if mixed is not None and split == "test":
            order = np.random.default_rng(mixed).permutation(len(rows))
            rows = [replace(one, labels=rows[i].labels, regions=rows[i].regions) for one, i in zip(rows, order, strict=True)]
        if not annotated:
            rows = [replace(one, regions=None) for one in rows]
        columns = {
            "id": [one.id for one in rows],
            "concepts": [[c for c, yes in zip(CONCEPTS, one.labels, strict=True) if yes] for one in rows],
            "regions": [one.regions for one in rows],
        }
        found[split] = datasets.Dataset.from_dict(columns, features=FEATURES)
    return datasets.DatasetDict(found)


class Ragged:
    """The backbone `ragged`.

    big: a value to put into the first token of the second cal sample. die_after: forward passes before the process is killed.
    forwards: how many there were.
    """

    name, revision, modality, n_layers, width = "ragged", "1", "tokens", LAYERS, WIDTH
    layers = range(LAYERS)

    def __init__(self, setup: Setup, *, seed: int = 0, big: float | None = None, die_after: int | None = None) -> None:
        self._rows = {one.id: one for split in SPLITS for one in made(split, seed)}
        self._big, self._die_after, self.forwards = big, die_after, 0
        self.identity: Mapping[str, Any] = {"seed": seed, "big": big}

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Places of the samples; a token's region is its place in the sample."""
        lengths = torch.tensor([self._rows[sample.id].values.shape[1] for sample in samples])
        within = torch.cat([torch.arange(n) for n in lengths.tolist()])
        positions = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return Inputs({"ids": [sample.id for sample in samples]}, positions, torch.stack([within, within + 1], 1))  # type: ignore[dict-item]

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """The stored values."""
        if self._die_after is not None and self.forwards >= self._die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.forwards += 1
        rows = [self._rows[name] for name in inputs.tensors["ids"]]
        at = [site.layer for site in sites]
        values = torch.from_numpy(np.concatenate([one.values[at] for one in rows], 1))
        if self._big is not None and "cal/1" in inputs.tensors["ids"]:
            values = values.clone()
            values[0, int(inputs.positions.sum(1)[: inputs.tensors["ids"].index("cal/1")].sum())] = self._big
        lengths = inputs.positions.sum(1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return Embedded(values, offsets, inputs.regions, torch.from_numpy(np.stack([one.summary[at] for one in rows], 1)))


@dataclass
class Nosy:
    """A detector and localizer that notes what it can see of labels: `seen` holds (where, labels, truth)."""

    calibrate_on = "tokens"
    seen: ClassVar[list[tuple[str, Any, Any]]] = []

    def fit(self, train: Blocks, given: Any) -> Nosy:
        """Train may be looked at."""
        self.seen.extend(("train", block.labels, block.truth) for block in train)
        return self

    def pool(self, activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
        """As `superactivator`."""
        self.seen.append((block.ids[0].partition("/")[0], block.labels, block.truth))
        return segment_max(activations, block.offsets)

    def score(self, block: TokenEmbeddings, explained: Explained) -> torch.Tensor:
        """As `direct`."""
        self.seen.append((block.ids[0].partition("/")[0], block.labels, block.truth))
        return explained.activations(block)


@dataclass
class Cheat:
    """A detector that knows every label of the data set, by sample id: what the shuffled guard is there to find."""

    calibrate_on = "samples"

    def pool(self, activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
        """1 for a positive, 0 for a negative."""
        known = {one.id: one.labels for split in SPLITS for one in made(split, 0)}
        labels = torch.from_numpy(np.stack([known[name] for name in block.ids])).float()
        return labels.expand(len(activations), -1, -1).clone()


@dataclass(frozen=True)
class Hints:
    """A scorer that knows most answers and gives none for every fifth sample; `on` is what it is calibrated on."""

    on: str = "samples"

    @property
    def calibrate_on(self) -> Any:
        """samples or fixed."""
        return self.on

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray[Any, Any]:
        """[S, C] float64; NaN = no answer."""
        return np.array([[self.one(sample.id, concept) for concept in concepts] for sample in samples])

    def one(self, name: str, concept: str) -> float:
        """One score."""
        split, _, number = name.partition("/")
        labels = made(split, 0)[int(number)].labels
        noise = np.random.default_rng([int(number), len(concept), ord(concept[0]), len(split)]).random()
        silent = self.on == "fixed" and int(number) % 5 == 0
        return float("nan") if silent else 0.4 * labels[CONCEPTS.index(concept)] + 0.6 * noise


TASK = """
task: ragged
modality: tokens
dataset: {{name: ragged, seed: {seed}{options}}}
concepts: [a, b, c, hidden]
backbone: ragged
"""


def write_task(folder: Path, seed: int = 0, options: str = "") -> str:
    """The path of a task file over these samples."""
    path = folder / "ragged.yaml"
    path.write_text(TASK.format(seed=seed, options=f", {options}" if options else ""))
    return str(path)


@hookimpl
def harness_register_datasets() -> Iterable[Entry]:
    """`ragged`."""
    return [Entry("ragged", "ragged_world:load", "ragged samples with every oddity")]


@hookimpl
def harness_register_backbones() -> Iterable[Entry]:
    """`ragged`."""
    return [Entry("ragged", "ragged_world:Ragged", "their token embeddings")]


@hookimpl
def harness_register_detectors() -> Iterable[Entry]:
    """`nosy` and `cheat`."""
    return [Entry("nosy", "ragged_world:Nosy", "notes what it sees"), Entry("cheat", "ragged_world:Cheat", "knows the labels")]


@hookimpl
def harness_register_localizers() -> Iterable[Entry]:
    """`nosy`."""
    return [Entry("nosy", "ragged_world:Nosy", "notes what it sees")]


@hookimpl
def harness_register_scorers() -> Iterable[Entry]:
    """`hints`."""
    return [Entry("hints", "ragged_world:Hints", "knows most answers")]
