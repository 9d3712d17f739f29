"""The toy world, made from a seed and a sample's id alone, so that the data set and the backbone agree without a file.

Every token is Gaussian noise plus, for a token in concept c, `strength` times direction c, but at full strength only in a `tail` share
of the in-concept tokens (at least one a sample): the rest carry a faint trace, and tokens out of concept sometimes carry that too.
So the mean token hardly tells, the strongest one does: the regime of arXiv 2512.05038. Layer l of L carries (l+1)/L of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from harness.api import SPLITS, Embedded, Inputs, Sample, Setup, Site, unknown

CONCEPTS = ("circle", "square", "star")
LAYERS, WIDTH = 4, 32
SIZES = {"train": 120, "cal": 80, "test": 80}
PREVALENCE, IN_CONCEPT, TAIL = 0.4, 0.4, 0.2
STRENGTH, FAINT, STRAY = 9.0, 1.0, 0.5
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "concepts": datasets.List(datasets.Value("string")),
        "regions": datasets.List(
            {"concept": datasets.Value("string"), "start": datasets.Value("int64"), "end": datasets.Value("int64")}
        ),
    }
)


def directions(seed: int) -> np.ndarray[Any, Any]:
    """[C, d]: the planted unit directions, orthogonal."""
    generator = np.random.default_rng([seed, 7])
    return np.linalg.qr(generator.standard_normal((WIDTH, len(CONCEPTS))))[0].T


@dataclass(frozen=True)
class Planted:
    """One sample: truth [T, C] bool, strong [T, C] bool (its tail), values [L, T, d]."""

    truth: np.ndarray[Any, Any]
    strong: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]


def plant(sample_id: str, seed: int) -> Planted:
    """The sample of an id: 8 to 24 tokens."""
    g = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "big")])
    tokens, count = int(g.integers(8, 25)), len(CONCEPTS)
    present = g.random(count) < PREVALENCE
    truth = (g.random((tokens, count)) < IN_CONCEPT) & present
    truth[g.integers(tokens, size=count), np.arange(count)] |= present
    strong = truth & (g.random((tokens, count)) < TAIL)
    for c in np.flatnonzero(present):
        strong[g.choice(np.flatnonzero(truth[:, c])), c] = True
    amount = np.where(strong, STRENGTH, np.where(truth, FAINT, FAINT * (g.random((tokens, count)) < STRAY)))
    share = (np.arange(LAYERS) + 1) / LAYERS
    signal = share[:, None, None] * (amount @ directions(seed))
    return Planted(truth, strong, signal + g.standard_normal((LAYERS, tokens, WIDTH)))


def load(seed: int = 0) -> datasets.DatasetDict:
    """120/80/80 samples; regions are places in the sample."""
    return datasets.DatasetDict({split: _split(split, n, seed) for split, n in SIZES.items()})


def _split(split: str, n: int, seed: int) -> datasets.Dataset:
    columns: dict[str, list[Any]] = {"id": [], "concepts": [], "regions": []}
    for i in range(n):
        name = f"{split}-{i:03d}"
        truth = plant(name, seed).truth
        columns["id"].append(name)
        columns["concepts"].append([c for k, c in enumerate(CONCEPTS) if truth[:, k].any()])
        columns["regions"].append(
            [{"concept": CONCEPTS[c], "start": int(t), "end": int(t) + 1} for t, c in zip(*np.nonzero(truth), strict=True)]
        )
    return datasets.Dataset.from_dict(columns, features=FEATURES)


class ToyBackbone:
    """Looks nothing up: it makes the tokens again. The summary is the mean token."""

    name, revision, modality, n_layers, width = "toy", "1", "tokens", LAYERS, WIDTH
    layers = range(LAYERS)

    def __init__(self, setup: Setup, *, seed: int = 0) -> None:
        self._seed = seed
        self.identity: Mapping[str, Any] = {"seed": seed}

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Nested as a padded batch, as a real model's would be."""
        planted = [plant(sample.id, self._seed).values for sample in samples]
        longest = max(values.shape[1] for values in planted)
        padded = np.stack([np.pad(v, ((0, 0), (0, longest - v.shape[1]), (0, 0)), constant_values=99.0) for v in planted], 1)
        lengths = torch.tensor([values.shape[1] for values in planted])
        within = torch.cat([torch.arange(n) for n in lengths.tolist()])
        positions = torch.arange(longest)[None] < lengths[:, None]
        return Inputs({"values": torch.from_numpy(padded).float()}, positions, torch.stack([within, within + 1], 1))

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """values [L, T, d], packed."""
        for site in sites:
            if site.stream != "residual":
                raise unknown("stream", site.stream, ["residual"], "backbone toy")
        values = inputs.tensors["values"][[site.layer for site in sites]]
        lengths = inputs.positions.sum(1)
        summary = (values * inputs.positions[None, :, :, None]).sum(2) / lengths[None, :, None]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        return Embedded(values[:, inputs.positions], offsets, inputs.regions, summary)


assert tuple(SIZES) == SPLITS  # noqa: S101 - the splits are the harness's
