"""Matching units to concepts: every pair by hand in float64 loops, slices change nothing, assignments against brute force."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness import match as matching
from harness.match import best, match, one_to_one, pair_f1, select, slices
from harness.numerics import segment_max, segment_mean
from harness.testing import CONCEPTS, SITES, WIDTH, MadeUp
from harness.types import TokenEmbeddings

LEVELS = oracle.LEVELS


class Cal(MadeUp):
    """The made-up split with what the core knows of its own."""

    widest = 36


@dataclass(frozen=True)
class Rows:
    """Units that are directions; sparse ones are cut off at 0."""

    vectors: Tensor
    sparse: bool = False

    @property
    def units(self) -> list[str]:
        return [f"u{i}" for i in range(self.vectors.shape[1])]

    def activate(self, block: TokenEmbeddings, units: slice) -> Tensor:
        found = block.values @ self.vectors[:, units].transpose(1, 2)
        return found.clamp(min=0) if self.sparse else found

    def pick(self, index: Tensor) -> Any:
        raise NotImplementedError


class Strongest:
    calibrate_on = "tokens"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        return segment_max(activations, block.offsets)


class StrongestOfSamples(Strongest):
    calibrate_on = "samples"


class MeanOfSamples:
    calibrate_on = "samples"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        return segment_mean(activations, block.offsets)


def made(k: int, sparse: bool = False, seed: int = 0) -> Rows:
    return Rows(torch.randn(len(SITES), k, WIDTH, generator=torch.Generator().manual_seed(seed)), sparse)


def by_hand(units: Rows, cal: MadeUp, detector: Any) -> list[list[list[float | None]]]:
    """F1 [L][C][K]: one (concept, unit, level) at a time."""
    block = next(iter(MadeUp().blind()))
    activations = units.activate(block, slice(None)).double()
    starts = cal.offsets.tolist()
    found = []
    for layer in range(len(SITES)):
        rows: list[list[float | None]] = []
        for c in range(len(CONCEPTS)):
            row: list[float | None] = []
            for k in range(activations.shape[2]):
                tokens = [activations[layer, a:b, k].tolist() for a, b in itertools.pairwise(starts)]
                mean = isinstance(detector, MeanOfSamples)
                pooled = [(sum(t) / len(t) if mean else max(t)) if t else float("-inf") for t in tokens]
                if detector.calibrate_on == "tokens":
                    own = activations[layer, cal.truth[:, c] == 1, k].tolist()
                else:
                    own = [s for s, yes in zip(pooled, cal.labels[:, c].tolist(), strict=True) if yes and s > float("-inf")]
                own = [x for x in own if x > 0] if units.sparse else own
                scores = []
                for level in LEVELS:
                    cutoff = oracle.quantile(own, level)
                    hits = [cutoff is not None and s >= cutoff for s in pooled]
                    counted = oracle.f1(*oracle.count(hits, cal.labels[:, c].int().tolist()))
                    scores.append(None if cutoff is None else counted)
                top = oracle.first_best(scores)
                row.append(None if top is None else scores[top])
            rows.append(row)
        found.append(rows)
    return found


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("detector", [Strongest(), StrongestOfSamples(), MeanOfSamples()], ids=lambda d: type(d).__name__)
def test_every_pair_of_concept_and_unit_has_the_f1_by_hand(detector: Any, sparse: bool) -> None:
    units, cal = made(7, sparse), Cal(per_block=5)
    found = pair_f1(units, slice(0, 7), cal, detector, LEVELS)
    for layer, rows in enumerate(by_hand(units, cal, detector)):
        for c, row in enumerate(rows):
            for k, wanted in enumerate(row):
                assert float(found[layer, c, k]) == pytest.approx(
                    float("nan") if wanted is None else wanted, abs=1e-12, nan_ok=True
                )


def test_slices_and_block_sizes_change_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    units = made(23)
    whole = match(units, Cal(), Strongest(), LEVELS, "best")
    monkeypatch.setattr(matching, "SLICE_BYTES", 4000)
    assert len(slices(units, Cal())) > 3
    parts = match(units, Cal(per_block=2), Strongest(), LEVELS, "best")
    assert torch.equal(whole.unit, parts.unit)
    assert torch.equal(whole.f1, parts.f1)


def test_the_best_unit_is_the_first_of_the_best_and_may_serve_two_concepts() -> None:
    f1 = torch.tensor([[0.2, 0.9, 0.9], [0.1, 0.8, 0.3], [float("nan")] * 3])
    assert best(f1).tolist() == [1, 1, -1]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
def test_one_to_one_has_the_largest_sum_of_any_assignment(concepts: int, units: int, seed: int) -> None:
    f1 = torch.rand(concepts, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = one_to_one(f1).tolist()
    used = [unit for unit in found if unit >= 0]
    assert len(set(used)) == len(used) == min(concepts, units)
    rows, columns = (range(concepts), range(units))
    small = min(concepts, units)
    every = (
        sum(float(f1[c, u]) for c, u in zip(some, order, strict=True))
        for some in itertools.combinations(rows, small)
        for order in itertools.permutations(columns, small)
    )
    assert sum(float(f1[c, u]) for c, u in enumerate(found) if u >= 0) == pytest.approx(max(every))


def test_a_concept_without_any_f1_gets_no_unit_and_takes_none_from_others() -> None:
    f1 = torch.tensor([[float("nan"), float("nan")], [0.3, 0.4]])
    assert one_to_one(f1).tolist() == [-1, 1]


def test_a_concept_without_positives_in_cal_has_no_unit_and_the_match_says_so() -> None:
    found = match(made(4), Cal(positives=False), Strongest(), LEVELS, "best")
    assert found.unit[:, -1].tolist() == [-1, -1]
    assert found.name(0, len(CONCEPTS) - 1) is None
    assert found.f1[:, -1].isnan().all()
    assert found.name(0, 0) == f"u{int(found.unit[0, 0])}"


def test_units_without_pruning_are_all_kept_and_pruning_sees_no_label() -> None:
    units = made(3)
    assert select(units, Cal()) is units
    seen = []

    class Pruned(Rows):
        def select(self, cal: Any, positives: Tensor) -> Rows:
            seen.extend(block.labels is None and block.truth is None for block in cal)
            seen.append(positives.tolist() == (Cal().truth == 1).sum(0).tolist())
            return Rows(self.vectors[:, :1])

    assert select(Pruned(units.vectors), Cal(per_block=5)).units == ["u0"]
    assert all(seen)
    assert len(seen) == 4
