"""The bootstrap against a loop over the same draws, the cases with nothing to average, and whether 95 % intervals are 95 % intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics import average, average_intervals, interval, sample_weights


def draws(samples: int, replicates: int, seed: int) -> list[list[int]]:
    """Which samples each replicate draws, from the seed that the weights are drawn with."""
    return torch.randint(samples, (replicates, samples), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_weights_count_how_often_each_sample_is_drawn() -> None:
    weights = sample_weights(7, 50, seed=3)
    for row, drawn in zip(weights.tolist(), draws(7, 50, 3), strict=True):
        assert row == [drawn.count(s) for s in range(7)]


def test_every_replicate_draws_as_many_samples_as_there_are() -> None:
    assert (sample_weights(11, 30, seed=0).sum(1) == 11).all()


def test_the_seed_decides_the_draws() -> None:
    assert torch.equal(sample_weights(9, 20, 1), sample_weights(9, 20, 1))
    assert not torch.equal(sample_weights(9, 20, 1), sample_weights(9, 20, 2))


def test_an_interval_is_the_two_percentiles_of_the_defined_replicates() -> None:
    values = torch.tensor([0.3, math.nan, 0.9, 0.1, 0.5, math.inf])
    known = values[values.isfinite()].double().numpy()
    got = interval(values)
    assert got.low == pytest.approx(np.quantile(known, 0.025), abs=1e-12)
    assert got.high == pytest.approx(np.quantile(known, 0.975), abs=1e-12)


def test_an_interval_of_nothing_is_nan() -> None:
    for replicates in (torch.zeros(0), torch.tensor([math.nan, math.nan])):
        assert all(math.isnan(end) for end in interval(replicates))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.floats(0, 1), st.just(math.nan)), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    )
)
def test_an_average_leaves_out_concepts_without_a_value_from_both_sums(pairs: list[tuple[float, int]]) -> None:
    values, counts = torch.tensor([v for v, _ in pairs], dtype=torch.float64), torch.tensor([n for _, n in pairs])
    known = [(v, n) for v, n in pairs if not math.isnan(v)]
    plain, weighted = average(values).item(), average(values, counts).item()
    if not known:
        assert math.isnan(plain)
    else:
        assert plain == pytest.approx(sum(v for v, _ in known) / len(known))
    if sum(n for _, n in known) == 0:
        assert math.isnan(weighted)
    else:
        assert weighted == pytest.approx(sum(v * n for v, n in known) / sum(n for _, n in known))


@pytest.mark.parametrize("weighted", [False, True])
def test_two_levels_are_the_loop_over_the_same_draws_of_samples_and_then_of_concepts(weighted: bool) -> None:
    g = torch.Generator().manual_seed(5)
    count, concepts, samples, seed = 60, 4, 12, 9
    labels = torch.rand(samples, concepts, generator=g) < 0.5
    hits = torch.rand(samples, concepts, generator=g)  # a metric: the mean hit of the positive samples drawn
    weights = sample_weights(samples, count, seed)
    replicates = (weights.double() @ (hits.double() * labels)) / (weights.double() @ labels.double())
    positives = weights @ labels.float()
    got = average_intervals(replicates, positives if weighted else None, seed)
    concept_draws = torch.randint(concepts, (count, concepts), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    both, alone = [], []
    for drawn, chosen in zip(draws(samples, count, seed), concept_draws, strict=True):
        value, n = [], []
        for c in range(concepts):
            mine = [float(hits[s, c]) for s in drawn if labels[s, c]]
            value.append(sum(mine) / len(mine) if mine else math.nan)
            n.append(len(mine) if weighted else 1)
        for found, over in ((both, chosen), (alone, range(concepts))):
            terms = [(value[c], n[c]) for c in over if not math.isnan(value[c])]
            found.append(sum(v * k for v, k in terms) / sum(k for _, k in terms))
    for ends, found in ((got.both, both), (got.samples, alone)):
        assert ends.low == pytest.approx(np.quantile(found, 0.025), abs=1e-6)
        assert ends.high == pytest.approx(np.quantile(found, 0.975), abs=1e-6)


def test_with_one_concept_only_samples_are_resampled() -> None:
    replicates = torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    got = average_intervals(replicates, None, seed=0)
    assert got.both == got.samples == interval(replicates[:, 0])


def test_concepts_that_differ_widen_the_interval_of_their_average() -> None:
    g = torch.Generator().manual_seed(1)
    replicates = torch.tensor([0.2, 0.5, 0.9]) + 0.01 * torch.randn(500, 3, generator=g)
    got = average_intervals(replicates, None, seed=0)
    assert got.both.high - got.both.low > 5 * (got.samples.high - got.samples.low)


def test_a_95_percent_interval_holds_the_truth_about_95_times_in_100() -> None:
    """Share of successes of 60 samples, truth 0.6, 300 times; the percentile bootstrap is a little short at this size."""
    g = torch.Generator().manual_seed(2)
    held = 0
    for trial in range(300):
        sample = (torch.rand(60, generator=g) < 0.6).double()
        low, high = interval((sample_weights(60, 300, seed=trial).double() @ sample) / 60)
        held += low <= 0.6 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_a_two_level_interval_holds_the_mean_over_all_concepts_about_95_times_in_100() -> None:
    """Concepts are drawn too: 25 of a population with mean 0.5; intervals from samples alone would hold it far less often."""
    g = torch.Generator().manual_seed(3)
    held = alone = 0
    for trial in range(200):
        rates = 0.5 + 0.3 * (torch.rand(25, generator=g) - 0.5)
        hits = (torch.rand(60, 25, generator=g) < rates).double()
        weights = sample_weights(60, 300, seed=trial).double()
        got = average_intervals(weights @ hits / 60, None, seed=trial)
        held += got.both.low <= 0.5 <= got.both.high
        alone += got.samples.low <= 0.5 <= got.samples.high
    assert 0.90 <= held / 200 <= 1.0
    assert alone < held
