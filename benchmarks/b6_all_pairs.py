"""B6: the best cal F1 of every (concept, unit) pair over all 12 levels: the core's `match.pair_f1` against scikit-learn per pair.

Ours sorts each unit's sample scores once, for all concepts and levels. The other side takes one pair at a time: `numpy.quantile` of the
in-concept tokens gives the cutoffs, `precision_recall_curve` the precision and recall at every threshold, read off at the cutoffs.
Activations are made up beforehand and looked up by both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness_superactivator.detector import SuperActivator
from pairs import Benchmark, Case, Found, Gate, Row, Sides, main, ratio
from planted import Size, Split, close, plant, splits
from sklearn.metrics import precision_recall_curve
from torch import Tensor

from harness.match import pair_f1, slices
from harness.types import LEVELS, Concepts, TokenEmbeddings

TOLERANCE = 1e-12


@dataclass(frozen=True)
class MadeUp:
    """K units whose activations of a split were made beforehand, [T, K]; a block is found by its first sample."""

    every: Tensor
    starts: dict[str, int]

    @property
    def units(self) -> list[str]:
        """K names."""
        return [str(k) for k in range(self.every.shape[1])]

    def activate(self, block: TokenEmbeddings, units: slice) -> Tensor:
        """[1, T, k]."""
        start = self.starts[block.ids[0]]
        return self.every[None, start : start + block.values.shape[1], units]

    def pick(self, index: Tensor) -> Concepts:
        """Nothing here decides by a pick."""
        raise NotImplementedError


def harness(units: MadeUp, split: Split) -> Tensor:
    """[C, K] by the core, slice by slice, as `match.match` does."""
    return torch.cat([pair_f1(units, part, split, SuperActivator(), LEVELS)[0] for part in slices(units, split)], 1)


def scikit_learn(units: MadeUp, split: Split) -> np.ndarray:
    """[C, K], one pair at a time."""
    activations, truth, labels = units.every.numpy(), split.truth.numpy() == 1, split.labels.numpy()
    samples = np.split(activations, split.offsets[1:-1].numpy())
    strongest = np.stack([sample.max(0) for sample in samples])
    shares = 1 - np.array(LEVELS)
    best = np.zeros((labels.shape[1], activations.shape[1]))
    for c in range(labels.shape[1]):
        inside = activations[truth[:, c]].astype(np.float64)
        for k in range(activations.shape[1]):
            cutoffs = np.quantile(inside[:, k], shares)
            precision, recall, thresholds = precision_recall_curve(labels[:, c], strongest[:, k])
            places = np.searchsorted(thresholds, cutoffs)
            p, r = precision[places], recall[places]
            best[c, k] = (2 * p * r / np.maximum(p + r, 1e-300)).max()
    return best


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """Units that follow the concepts a little, so that the best levels differ; the tokens themselves do not matter."""
    size = Size(round(case["samples"] / 0.6), case["tokens"], 1, case["C"])
    split = splits(plant(size)).train
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(case["C"], case["K"], generator=g)
    every = split.truth.float() @ mix + torch.randn(len(split.truth), case["K"], generator=g)
    units = MadeUp(every, dict(zip(split.ids, split.offsets.tolist(), strict=False)))

    def check(results: Found) -> dict[str, dict[str, Any]]:
        close("F1", results["harness"], results["scikit-learn"], TOLERANCE)
        return {}

    calls = {"harness": lambda: harness(units, split), "scikit-learn": lambda: scikit_learn(units, split)}
    yield Sides(calls, check, f"F1 of every pair to {TOLERANCE:g}")


def gates(rows: Sequence[Row]) -> list[Gate]:
    """Faster than scikit-learn in every case; the suite names no bound."""
    every = [dict(row.case) for row in rows if row.side == "scikit-learn"]
    return [Gate(f"scikit-learn / harness, C = {c['C']}, K = {c['K']}", ratio(rows, "scikit-learn", **c), 1) for c in every]


SHAPE = {"samples": 200, "tokens": 256}
BENCHMARK = Benchmark(
    "B6",
    "all levels x concepts x units: one sort per unit against precision_recall_curve per pair",
    build,
    [{"C": c, "K": k, **SHAPE} for c, k in ((6, 200), (6, 1000), (29, 200))],
    [{"C": 3, "K": 5, "samples": 24, "tokens": 16}],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
