"""Three small worlds, each run through the pipe once, with everything `oracle` needs to compute the same numbers by itself.

`toy`: the bundled task. `ragged`: every oddity (`ragged_world`). `folder`: stored embeddings of a user, layers 1 and 4.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow.parquet as pq
import ragged_world
import torch
from harness_toy import world as toy
from safetensors.torch import save_file

from harness import pipeline
from harness.registry import Registry
from harness.results import read_tokens
from harness.types import SPLITS, Choice, Method, Result, RunSpec

NAMES = ("toy", "ragged", "folder")
SEED = 3
METHODS = tuple(
    Method(f"{detector} {concepts} {localizer}".strip(), "", concepts, detector, localizer or None, fit_on=fit_on)
    for detector, concepts, localizer, fit_on in (
        ("superactivator", "linear", "direct", "tokens"),
        ("superactivator", "linear", "superactivator:vector=global-softmax", "tokens"),
        ("superactivator", "linear", "superactivator:vector=global-mean", "tokens"),
        ("superactivator", "linear", "superactivator:vector=sample-mean", "tokens"),
        ("superactivator", "mean", "direct", "tokens"),
        ("superactivator", "mean", "superactivator:vector=sample-mean", "tokens"),
        ("max", "linear", "direct", "tokens"),
        ("max", "linear", "superactivator:vector=global-softmax", "tokens"),
        ("mean", "linear", "direct", "tokens"),
        ("last", "linear", "direct", "tokens"),
        ("random", "linear", "superactivator:vector=global-mean", "tokens"),
        ("max", "linear", "", "summary"),
        ("superactivator", "kmeans:k=5", "superactivator:vector=global-softmax", "tokens"),
        ("max", "kmeans:k=5", "direct", "tokens"),
        ("superactivator", "kmeans-linear:k=4", "direct", "tokens"),
        ("max", "pca:k=3", "", "summary"),
        ("superactivator", "lat", "superactivator:vector=global-mean", "tokens"),
        ("max", "ica:k=3", "direct", "tokens"),
        ("superactivator", "nmf:k=3", "direct", "tokens"),
        ("max", "linear:supervision=samples", "direct", "tokens"),
    )
)
UNNAMED = ("kmeans:k=5", "kmeans-linear:k=4", "pca:k=3", "ica:k=3", "nmf:k=3")
COSINE = ("mean", "kmeans:k=5")
"""Concept methods whose activation is a cosine; that of the others is a dot product."""
DETECTION = tuple({(m.detector, m.concepts, m.fit_on): m for m in reversed(METHODS)}.values())[::-1]
LOCALIZATION = tuple(m for m in METHODS if m.localizer)


@dataclass(frozen=True)
class Seen:
    """What a method saw and gave, per split and sample: normalised values [L, T, d], activations [L, T, C]; vectors [L, C, d].

    units [L][C]: the names of the units that the loops match, where units had none.
    """

    tokens: dict[str, list[np.ndarray[Any, Any]]]
    activations: dict[str, list[np.ndarray[Any, Any]]]
    vectors: np.ndarray[Any, Any]
    truth: dict[str, list[np.ndarray[Any, Any]]]
    units: list[list[str | None]] | None = None


class Measured:
    """One world after its run: results by method name, and the raw rows."""

    def __init__(self, name: str, folder: Path, registry: Registry, progress: Any) -> None:
        self.name, self.concepts, self.rows = name, *rows_of(name, folder)
        task, backbone = {
            "toy": ("toy", f"toy:seed={SEED}"),
            "ragged": (ragged_world.write_task(folder, SEED), f"ragged:seed={SEED}"),
            "folder": (f"embeddings:{folder / 'mine'}", f"embeddings:{folder / 'mine'}"),
        }[name]
        task = f"toy:seed={SEED}" if name == "toy" else task
        options = {
            "bootstrap": 0,
            "log_tokens": True,
            "seed": SEED,
            "block_tokens": 200 if name == "toy" else 24,
            "device": "cpu",
        }
        self.spec = RunSpec(task, backbone, METHODS, cache_dir=folder / "cache", output=folder / "out", **options)
        self.results = {result.method.name: result for result in pipeline.run(self.spec, registry, progress)}
        self.bench = pipeline.prepare(self.spec, registry)
        self._progress = progress
        self.layers = [site.label for site in self.bench.sites]

    @functools.cache  # noqa: B019 - lives as long as the session
    def _fitted(self, concepts: str, fit_on: str) -> tuple[Any, Any]:
        """(tokens, what a concept method fits on them), again."""
        parts = next(p for p in self.bench.parts if (p.method.concepts, p.method.fit_on) == (concepts, fit_on))
        group = self.bench.plan.groups[0]
        group.fill(self._progress)
        tokens = group.open(summaries=fit_on == "summary")
        return tokens, parts.concepts.fit(tokens.train)

    @functools.cache  # noqa: B019 - as above
    def seen(self, concepts: str, fit_on: str, detector: str = "") -> Seen:
        """The tokens and activations of a concept method; units without names are matched by loops for the detector."""
        tokens, fitted = self._fitted(concepts, fit_on)
        units = None
        if concepts in UNNAMED:
            every = per_sample(tokens.cal, lambda block: fitted.activate(block, slice(None)))
            index = oracle.match(detector, every, self.rows[fit_on]["cal"], SEED)
            units = [[None if k is None else fitted.units[k] for k in row] for row in index]
            fitted = fitted.pick(torch.tensor([[-1 if k is None else k for k in row] for row in index]))
        splits = (tokens.train, tokens.cal, tokens.test)
        values = {split.name: per_sample(split, lambda block: block.values) for split in splits}
        activations = {split.name: per_sample(split, fitted.activate) for split in splits}
        truth = {split.name: [part.numpy() for part in split.truth.split(split.offsets.diff().tolist())] for split in splits}
        return Seen(values, activations, fitted.vectors.numpy(), truth, units)

    @functools.cache  # noqa: B019 - as above
    def detection(self, detector: str, concepts: str, fit_on: str) -> oracle.Detection:
        """By loops, from the activations."""
        return oracle.detect(detector, self.seen_by(detector, concepts, fit_on).activations, self.rows[fit_on], SEED)

    def seen_by(self, detector: str, concepts: str, fit_on: str) -> Seen:
        """What a detector saw: it matters which one only where units were matched for it."""
        return self.seen(concepts, fit_on, detector if concepts in UNNAMED else "")

    def expected(self, method: Method) -> oracle.Detection:
        """By loops, for a method."""
        return self.detection(method.detector, method.concepts, method.fit_on)  # type: ignore[arg-type]

    def of(self, method: Method) -> Seen:
        """What a method saw."""
        return self.seen_by(method.detector, method.concepts, method.fit_on)  # type: ignore[arg-type]

    def choices(self, method: Method) -> list[Choice]:
        """What the pipe chose, in the order of the concepts."""
        found = self.results[method.name].choices
        assert [choice.concept for choice in found] == list(self.concepts)
        return list(found)

    def table(self, method: Method, name: str) -> list[dict[str, Any]]:
        """The rows of a parquet file of the result."""
        return pq.read_table(folder_of(self.results[method.name]) / f"{name}.parquet").to_pylist()

    def logged(self, method: Method) -> dict[str, list[np.ndarray[Any, Any]]]:
        """The test tokens as the pipe logged them, cut into samples."""
        tensors, _ = read_tokens(folder_of(self.results[method.name]))
        lengths = tensors["offsets"].diff().tolist()
        return {key: [part.numpy() for part in tensors[key].split(lengths)] for key in ("map", "mask", "truth", "activations")}


def per_sample(split: Any, of: Callable[[Any], torch.Tensor]) -> list[np.ndarray[Any, Any]]:
    """What a function gives for the tokens of each sample [L, T, ...], computed block by block as the pipe does."""
    found = []
    for block in split.blind():
        whole = of(block).numpy()
        found += [whole[:, start:end] for start, end in pairwise(block.offsets.tolist())]
    return found


def folder_of(result: Result) -> Path:
    assert result.path is not None
    return result.path


def rows_of(name: str, folder: Path) -> tuple[tuple[str, ...], dict[str, dict[str, oracle.Rows]]]:
    """(concepts, fit_on -> split -> rows) of a world, from its own definition."""
    concepts, samples = {"toy": toy_samples, "ragged": ragged_samples, "folder": lambda: folder_samples(folder / "mine")}[
        name
    ]()
    found: dict[str, dict[str, oracle.Rows]] = {"tokens": {}, "summary": {}}
    for split in SPLITS:
        mine = samples[split]
        ids, labels = [one.id for one in mine], [one.labels for one in mine]
        found["tokens"][split] = oracle.Rows(ids, labels, [one.truth for one in mine], [one.values for one in mine])
        there = [min(one.values.shape[1], 1) for one in mine]
        truth = [one.labels[None].astype(np.int8)[:n] for one, n in zip(mine, there, strict=True)]
        summaries = [one.summary[:, None][:, :n] for one, n in zip(mine, there, strict=True)]
        found["summary"][split] = oracle.Rows(ids, labels, truth, summaries)
    return concepts, found


@dataclass(frozen=True)
class One:
    """A sample, as in `ragged_world.One`."""

    id: str
    labels: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]
    truth: np.ndarray[Any, Any]
    summary: np.ndarray[Any, Any]


def toy_samples() -> tuple[tuple[str, ...], dict[str, list[One]]]:
    """The toy world, whose concepts are labelled wherever they are planted."""
    found: dict[str, list[One]] = {}
    for split, n in toy.SIZES.items():
        planted = {f"{split}-{i:03d}": toy.plant(f"{split}-{i:03d}", SEED) for i in range(n)}
        found[split] = []
        for name, one in planted.items():
            values = one.values.astype(np.float32)
            # the backbone sums a padded batch in float32: taken from it, not made again
            summary = torch.from_numpy(values).sum(1).numpy() / np.float32(values.shape[1])
            found[split].append(One(name, one.truth.any(0), values, one.truth.astype(np.int8), summary))
    return toy.CONCEPTS, found


def ragged_samples() -> tuple[tuple[str, ...], dict[str, Any]]:
    """The ragged world."""
    return ragged_world.CONCEPTS, {split: ragged_world.made(split, SEED) for split in SPLITS}


def folder_samples(folder: Path) -> tuple[tuple[str, ...], dict[str, list[One]]]:
    """A folder of embeddings, written here: 2 layers of width 5, splits mixed, some samples without tokens.

    Every cal sample stands in train and test too, under another id: scores that tie with a cutoff.
    """
    g = np.random.default_rng(17)
    concepts, splits = ("x", "y"), [SPLITS[i] for i in g.integers(0, 3, 96)]
    lengths = g.integers(0, 7, 96)
    directions = np.linalg.qr(g.standard_normal((5, 5)))[0][:2]
    found: dict[str, list[One]] = {split: [] for split in SPLITS}
    every = []  # (sample, truth as stored, split), in the order of the files
    for i, split in enumerate(splits):
        labels = g.random(2) < 0.4
        lost = g.random(2) < 0.15  # a positive with no token in the concept
        truth = labels & ~lost & (g.random((lengths[i], 2)) < 0.6)
        amount = np.where(truth, g.choice([0.3, 5.0], size=truth.shape), 0.0)
        values = np.stack([share * (amount @ directions) + g.standard_normal((lengths[i], 5)) for share in (0.5, 1.0)])
        values = (values - 2.0).astype(np.float32)
        known = truth.astype(np.int8)
        known[:, labels & ~truth.any(0)] = -1
        mean = values.astype(np.float64).mean(1).astype(np.float32) if lengths[i] else np.zeros((2, 5), np.float32)
        one = One(f"s{i}", labels, values, known, mean)
        copies = [(other, replace(one, id=f"s{i} in {other}")) for other in ("train", "test") if split == "cal"]
        for name, sample in [(split, one), *copies]:
            found[name].append(sample)
            every.append((sample, truth, name))
    folder.mkdir()
    tensors = {
        "offsets": torch.from_numpy(np.cumsum([0, *(len(truth) for _, truth, _ in every)])),
        "labels": torch.from_numpy(np.stack([one.labels for one, *_ in every]).astype(np.uint8)),
        "truth": torch.from_numpy(np.concatenate([truth for _, truth, _ in every]).astype(np.uint8)),
        **{
            f"layer.{layer}": torch.from_numpy(np.concatenate([one.values[i] for one, *_ in every]))
            for i, layer in enumerate((1, 4))
        },
    }
    save_file(tensors, folder / "tokens.safetensors")
    with (folder / "samples.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([("id", "split"), *((one.id, split) for one, _, split in every)])
    (folder / "concepts.json").write_text(json.dumps(concepts))
    return concepts, found
