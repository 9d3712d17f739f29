"""The bootstrap against a loop over the same draws, the cases with nothing to average, and whether 95 % intervals are 95 % intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics import Difference, average, average_intervals, difference, draws, holm, interval, sample_weights


def drawn_samples(samples: int, replicates: int, seed: int) -> list[list[int]]:
    """Which samples each replicate draws, from the seed that the weights are drawn with."""
    return torch.randint(samples, (replicates, samples), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 3])
@pytest.mark.parametrize("bound", [1, 6, 999, 100_000])
def test_draws_are_those_of_torch(bound: int, seed: int) -> None:
    wanted = torch.randint(bound, (30, 40), generator=torch.Generator().manual_seed(seed)).numpy()
    assert np.array_equal(draws(bound, (30, 40), seed), wanted)


def test_the_weights_count_how_often_each_sample_is_drawn() -> None:
    weights = sample_weights(7, 50, seed=3)
    for row, drawn in zip(weights.tolist(), drawn_samples(7, 50, 3), strict=True):
        assert row == [drawn.count(s) for s in range(7)]


def test_every_replicate_draws_as_many_samples_as_there_are() -> None:
    assert (sample_weights(11, 30, seed=0).sum(1) == 11).all()


def test_the_seed_decides_the_draws() -> None:
    assert np.array_equal(sample_weights(9, 20, 1), sample_weights(9, 20, 1))
    assert not np.array_equal(sample_weights(9, 20, 1), sample_weights(9, 20, 2))


def test_an_interval_is_the_two_percentiles_of_the_defined_replicates() -> None:
    values = np.array([0.3, math.nan, 0.9, 0.1, 0.5, math.inf])
    known = values[np.isfinite(values)]
    got = interval(values)
    assert got.low == pytest.approx(np.quantile(known, 0.025), abs=1e-12)
    assert got.high == pytest.approx(np.quantile(known, 0.975), abs=1e-12)


def test_an_interval_of_nothing_is_nan() -> None:
    for replicates in (np.zeros(0), np.array([math.nan, math.nan])):
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
    values, counts = np.array([v for v, _ in pairs]), np.array([n for _, n in pairs])
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
    g = np.random.default_rng(5)
    count, concepts, samples, seed = 60, 4, 12, 9
    labels = g.random((samples, concepts)) < 0.5
    hits = g.random((samples, concepts))  # a metric: the mean hit of the positive samples drawn
    weights = sample_weights(samples, count, seed)
    positives = weights @ labels
    with np.errstate(invalid="ignore"):
        replicates = (weights @ (hits * labels)) / positives
    got = average_intervals(replicates, positives if weighted else None, seed)
    concept_draws = torch.randint(concepts, (count, concepts), generator=torch.Generator().manual_seed(seed + 1)).tolist()
    both, alone = [], []
    for drawn, chosen in zip(drawn_samples(samples, count, seed), concept_draws, strict=True):
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
    replicates = np.random.default_rng(0).random((200, 1))
    got = average_intervals(replicates, None, seed=0)
    assert got.both == got.samples == interval(replicates[:, 0])


def test_concepts_that_differ_widen_the_interval_of_their_average() -> None:
    replicates = np.array([0.2, 0.5, 0.9]) + 0.01 * np.random.default_rng(1).standard_normal((500, 3))
    got = average_intervals(replicates, None, seed=0)
    assert got.both.high - got.both.low > 5 * (got.samples.high - got.samples.low)


def test_a_95_percent_interval_holds_the_truth_about_95_times_in_100() -> None:
    """Share of successes of 60 samples, truth 0.6, 300 times; the percentile bootstrap is a little short at this size."""
    g = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        sample = g.random(60) < 0.6
        low, high = interval((sample_weights(60, 300, seed=trial) @ sample) / 60)
        held += low <= 0.6 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_a_two_level_interval_holds_the_mean_over_all_concepts_about_95_times_in_100() -> None:
    """Concepts are drawn too: 25 of a population with mean 0.5; intervals from samples alone would hold it far less often."""
    g = np.random.default_rng(3)
    held = alone = 0
    for trial in range(200):
        rates = 0.5 + 0.3 * (g.random(25) - 0.5)
        hits = g.random((60, 25)) < rates
        weights = sample_weights(60, 300, seed=trial)
        got = average_intervals(weights @ hits / 60, None, seed=trial)
        held += got.both.low <= 0.5 <= got.both.high
        alone += got.samples.low <= 0.5 <= got.samples.high
    assert 0.90 <= held / 200 <= 1.0
    assert alone < held


# --- differences between two methods


def test_holm_is_the_step_down_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


class World:
    """Two methods that are right with the same probabilities but for a gap, each concept with an advantage of its own for one of them."""

    def __init__(self, samples: int, concepts: int, own: float, seed: int, gap: float = 0.0) -> None:
        g = np.random.default_rng(seed)
        self.labels = g.random((samples, concepts)) < g.uniform(0.1, 0.4, concepts)
        self.labels[0] = True
        ease, shared = 0.8 + 0.1 * g.standard_normal(concepts), g.random((samples, concepts))
        self.found = []
        for mine in (gap, 0.0):
            right = np.clip(ease + own * g.standard_normal(concepts) + mine, 0.05, 0.99)
            luck = np.where(g.random((samples, concepts)) < 0.5, g.random((samples, concepts)), shared)
            hit = luck < np.where(self.labels, right, 1 - (1 - right) * 0.4)
            self.found.append(np.where(hit, self.labels, ~self.labels))

    def f1(self, which: int, weights: np.ndarray) -> np.ndarray:
        tp = weights @ (self.found[which] & self.labels)
        wrong = weights @ (self.found[which] ^ self.labels)
        with np.errstate(invalid="ignore"):
            return 2 * tp / (2 * tp + wrong)

    def compared(self, seed: int, replicates: int = 120) -> Difference:
        weights, once = sample_weights(len(self.labels), replicates, seed), np.ones((1, len(self.labels)))
        values = self.f1(0, once)[0] - self.f1(1, once)[0]
        again = self.f1(0, weights) - self.f1(1, weights)
        return difference(values, again, self.labels.sum(0), weights @ self.labels, len(self.labels))

    def naive(self, seed: int, replicates: int = 120) -> bool:
        """Whether the samples' noise alone would call the difference real."""
        weights, once = sample_weights(len(self.labels), replicates, seed), np.ones((1, len(self.labels)))
        again = average(self.f1(0, weights) - self.f1(1, weights), weights @ self.labels)
        value = average(self.f1(0, once)[0] - self.f1(1, once)[0], self.labels.sum(0))
        return abs(value) > 1.96 * again.std()


@pytest.mark.parametrize(
    ("samples", "concepts", "own"), [(100, 6, 0.0), (100, 6, 0.05), (166, 10, 0.1), (80, 29, 0.05), (60, 1, 0.0)]
)
def test_equal_methods_differ_in_at_most_5_of_100_comparisons(samples: int, concepts: int, own: float) -> None:
    """A/A: which concepts favour which method is drawn anew each time, so neither is better over all concepts."""
    trials = 300
    worlds = [World(samples, concepts, own, seed) for seed in range(trials)]
    wrong = sum(world.compared(seed).p <= 0.05 for seed, world in enumerate(worlds)) / trials
    assert wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)
    if own >= 0.05:
        naive = sum(world.naive(seed) for seed, world in enumerate(worlds)) / trials
        assert naive > 0.08  # the reason for a second level


@pytest.mark.parametrize(("samples", "concepts", "own"), [(200, 6, 0.0), (200, 12, 0.03), (120, 29, 0.02)])
def test_a_planted_gap_is_found_as_often_as_predicted(samples: int, concepts: int, own: float) -> None:
    """A gap as large as `detectable` says is found about 8 times in 10."""
    trials = 200
    seen = [World(samples, concepts, own, seed, gap=0.12) for seed in range(trials)]
    found = [world.compared(seed) for seed, world in enumerate(seen)]
    size = float(np.mean([one.value for one in found]))
    power = float(np.mean([one.p <= 0.05 for one in found]))
    from scipy.stats import norm

    predicted = [
        norm.cdf(0.8416 + 1.0 * (size - one.detectable) / ((one.detectable - (one.high - one.value)) / 0.8416)) for one in found
    ]
    assert power == pytest.approx(float(np.mean(predicted)), abs=0.1)
    assert 0.2 < power <= 1


def test_the_interval_of_a_difference_holds_0_exactly_when_it_is_not_significant() -> None:
    for seed in range(40):
        one = World(80, 5, 0.05, seed, gap=0.08).compared(seed)
        assert (one.low <= 0 <= one.high) == (one.p > 0.05)
        assert one.low <= one.value <= one.high


def test_a_method_does_not_differ_from_itself_and_nothing_is_said_of_nothing() -> None:
    zeros = np.zeros((50, 4))
    assert difference(zeros[0], zeros, None, None, 20) == Difference(0.0, 0.0, 0.0, 1.0, 0.0)
    gone = difference(np.full(4, math.nan), np.full((50, 4), math.nan), None, None, 20)
    assert gone.p == 1
    assert math.isnan(gone.value)


def test_a_concept_that_one_method_has_no_value_for_is_left_out_of_the_difference() -> None:
    g = np.random.default_rng(0)
    values, again = g.random(3), g.random((60, 3))
    with_hole, holes = np.append(values, math.nan), np.column_stack([again, np.full(60, math.nan)])
    assert difference(with_hole, holes, None, None, 30) == difference(values, again, None, None, 30)
