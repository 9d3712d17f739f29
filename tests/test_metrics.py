"""Metrics against scikit-learn, weightings against repeated samples, and what is said where a number does not exist."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from harness_metrics import ranked
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as scikit

from harness.metrics import Bootstrap, all_rows, score_rows
from harness.registry import Registry
from harness.statistics import sample_weights as drawn_weights
from harness.types import Evaluation, Metric, Score

DETECTION = ("f1", "precision", "recall", "average_precision", "auroc")
LOCALIZATION = ("token_f1", "token_iou", "token_average_precision", "pointing_game")


ORACLES: dict[str, Callable[..., float]] = {
    "f1": lambda t, d, s, w: scikit.f1_score(t, d, sample_weight=w),
    "precision": lambda t, d, s, w: scikit.precision_score(t, d, sample_weight=w) if d.any() else math.nan,
    "recall": lambda t, d, s, w: scikit.recall_score(t, d, sample_weight=w),
    "average_precision": lambda t, d, s, w: scikit.average_precision_score(t, s, sample_weight=w),
    "auroc": lambda t, d, s, w: scikit.roc_auc_score(t, s, sample_weight=w) if 0 < t.sum() < len(t) else math.nan,
    "token_f1": lambda t, d, s, w: scikit.f1_score(t, d, sample_weight=w),
    "token_iou": lambda t, d, s, w: scikit.jaccard_score(t, d, sample_weight=w),
    "token_average_precision": lambda t, d, s, w: scikit.average_precision_score(t, s, sample_weight=w),
}


def evaluation(lengths: list[int], seed: int, concepts: int = 3, ties: bool = False, unknown: float = 0.0) -> Evaluation:
    """Scores that know something, decisions by a cutoff, some truth unknown."""
    g, n = np.random.default_rng(seed), sum(lengths)
    truth = (g.random((n, concepts)) < 0.4).astype(np.int8)
    truth[:1], truth[-1:] = 1, 0
    scores = truth + g.standard_normal((n, concepts))
    scores = np.round(scores * 2) / 2 if ties else scores
    truth[(g.random((n, concepts)) < unknown) & (np.arange(n)[:, None] % max(n - 1, 1) > 0)] = -1
    return Evaluation(
        torch.from_numpy(scores),
        torch.from_numpy(scores >= 0.5),
        torch.from_numpy(truth),
        torch.tensor([0, *lengths]).cumsum(0),
        torch.ones(concepts, dtype=torch.bool),
    )


def drawn(samples: int, replicates: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(drawn_weights(samples, replicates, seed)).float()


def ones(evaluation: Evaluation) -> torch.Tensor:
    return torch.ones(1, len(evaluation.offsets) - 1)


@pytest.fixture(scope="module")
def every(registry: Registry) -> dict[str, Metric]:
    return {name: registry.create("metrics", name) for name in registry.entries("metrics")}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ORACLES)
def test_the_value_is_scikit_learns_over_known_items(name: str, ties: bool, every: dict[str, Metric]) -> None:
    lengths = [1] * 40 if name in DETECTION else [5, 0, 1, 9, 3, 0, 12]
    given = evaluation(lengths, seed=4, ties=ties, unknown=0.2)
    got = every[name].compute(given, ones(given))[0]
    for c in range(3):
        known = (given.truth[:, c] >= 0).numpy()
        true, found = (given.truth[:, c] == 1).numpy()[known], given.decisions[:, c].numpy()[known]
        wanted = ORACLES[name](true, found, given.scores[:, c].numpy()[known], None)
        assert got[c].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ORACLES)
def test_a_weighting_is_the_metric_of_the_samples_drawn_that_often(name: str, ties: bool, every: dict[str, Metric]) -> None:
    lengths = [1] * 30 if name in DETECTION else [5, 0, 1, 9, 3, 0, 12, 4]
    given = evaluation(lengths, seed=8, ties=ties, unknown=0.1)
    weights = drawn(len(lengths), 12, seed=1)
    got = every[name].compute(given, weights)
    sample = np.repeat(np.arange(len(lengths)), lengths)
    for b, row in enumerate(weights.numpy()):
        for c in range(3):
            known = (given.truth[:, c] >= 0).numpy()
            again = np.repeat(np.flatnonzero(known), row[sample][known].astype(int))
            true = (given.truth[:, c] == 1).numpy()[again]
            if not true.any():
                assert got[b, c].isnan()
                continue
            wanted = ORACLES[name](true, given.decisions[:, c].numpy()[again], given.scores[:, c].numpy()[again], None)
            assert got[b, c].item() == pytest.approx(wanted, abs=1e-9, nan_ok=True)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([-math.inf, 0.0, 1.0, 1.5])), min_size=2, max_size=12).filter(
        lambda rows: 0 < sum(true for true, _ in rows) < len(rows)
    )
)
def test_a_sample_that_scores_minus_infinity_ranks_below_every_other(rows: list[tuple[bool, float]]) -> None:
    true = np.array([t for t, _ in rows])
    scores = np.array([s for _, s in rows])
    given = Evaluation(
        torch.from_numpy(scores)[:, None],
        torch.from_numpy(scores >= 1)[:, None],
        torch.from_numpy(true.astype(np.int8))[:, None],
        torch.arange(len(rows) + 1),
        torch.ones(1, dtype=torch.bool),
    )
    low = np.where(np.isfinite(scores), scores, -9.0)
    for metric, oracle in ((ranked.AveragePrecision(), scikit.average_precision_score), (ranked.Auroc(), scikit.roc_auc_score)):
        assert metric.compute(given, ones(given))[0, 0].item() == pytest.approx(oracle(true, low), abs=1e-12)


def test_swapping_the_scores_turns_auroc_over_and_swapping_decisions_lowers_the_rest(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 60, seed=2)
    swapped = Evaluation(-given.scores, ~given.decisions, given.truth, given.offsets, given.calibrated)
    for name in DETECTION:
        metric = every[name]
        right, wrong = metric.compute(given, ones(given))[0], metric.compute(swapped, ones(given))[0]
        assert metric.higher_is_better
        assert (right > wrong).all(), name
        if name in ("auroc", "recall"):
            torch.testing.assert_close(right + wrong, torch.ones_like(right))


def test_every_metric_says_its_kind_unit_range_and_chance(every: dict[str, Metric]) -> None:
    assert {name for name, metric in every.items() if metric.kind == "detection"} == set(DETECTION)
    assert {name for name, metric in every.items() if metric.kind == "localization"} == set(LOCALIZATION)
    assert {name: metric.higher_is_better for name, metric in every.items() if metric.kind in ("insertion", "deletion")} == {
        "insertion_auc": True,
        "deletion_auc": False,
    }
    for metric in every.values():
        assert (metric.unit, metric.range, metric.version) == ("share", (0.0, 1.0), 1)
        assert metric.chance


def test_perfect_decisions_score_one_and_none_at_all_scores_zero_where_that_is_defined(every: dict[str, Metric]) -> None:
    truth = torch.tensor([[1], [0], [1], [0]], dtype=torch.int8)
    base = (torch.arange(5), torch.ones(1, dtype=torch.bool))
    perfect = Evaluation(truth.double(), truth == 1, truth, *base)
    silent = Evaluation(-truth.double(), torch.zeros(4, 1, dtype=torch.bool), truth, *base)
    for name, metric in every.items():
        assert metric.compute(perfect, ones(perfect)).item() == 1.0, name
    for name in ("f1", "recall", "token_f1", "token_iou", "auroc"):
        assert every[name].compute(silent, ones(silent)).item() == 0.0, name
    assert every["precision"].compute(silent, ones(silent)).isnan()


# --- maps that explain


def hits(given: Evaluation, c: int) -> list[float | None]:
    """By a loop over samples: 1 where the strongest annotated token, the first among equals, is in the concept; None without one."""
    found: list[float | None] = []
    for start, end in given.offsets.unfold(0, 2, 1).tolist():
        known = [(float(given.scores[t, c]), int(given.truth[t, c])) for t in range(start, end) if given.truth[t, c] >= 0]
        best = max((score for score, _ in known), default=0.0)
        there = any(true for _, true in known)
        found.append(float(next(true for score, true in known if score == best)) if there else None)
    return found


@pytest.mark.parametrize("ties", [False, True])
def test_the_pointing_game_counts_the_samples_whose_strongest_token_is_in_the_concept(
    ties: bool, every: dict[str, Metric]
) -> None:
    lengths = [5, 0, 1, 9, 3, 0, 12, 4, 2, 7]
    given = evaluation(lengths, seed=3, ties=ties, unknown=0.3)
    weights = torch.cat([ones(given), drawn(len(lengths), 8, seed=2)])
    got = every["pointing_game"].compute(given, weights)
    for b, row in enumerate(weights.tolist()):
        for c in range(3):
            counted = [(weight, hit) for weight, hit in zip(row, hits(given, c), strict=True) if hit is not None and weight]
            wanted = np.average([hit for _, hit in counted], weights=[w for w, _ in counted]) if counted else math.nan
            assert got[b, c].item() == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_the_pointing_game_takes_the_first_of_equal_tokens_and_no_unknown_one(every: dict[str, Metric]) -> None:
    def play(scores: list[float], truth: list[int]) -> float:
        given = Evaluation(
            torch.tensor(scores, dtype=torch.float64)[:, None],
            torch.zeros(len(scores), 1, dtype=torch.bool),
            torch.tensor(truth, dtype=torch.int8)[:, None],
            torch.tensor([0, len(scores)]),
            torch.ones(1, dtype=torch.bool),
        )
        return every["pointing_game"].compute(given, ones(given)).item()

    assert play([2.0, 2.0, 1.0], [1, 0, 0]) == 1.0
    assert play([2.0, 2.0, 1.0], [0, 1, 0]) == 0.0
    assert play([9.0, 2.0, 1.0], [-1, 1, 0]) == 1.0
    assert play([math.nan, 2.0, 1.0], [-1, 0, 1]) == 0.0
    assert play([-math.inf, -math.inf, math.nan], [-1, 1, 0]) == 1.0
    assert math.isnan(play([2.0, 1.0], [0, 0]))
    assert math.isnan(play([2.0, 1.0], [-1, -1]))


@pytest.mark.parametrize("name", ["insertion_auc", "deletion_auc"])
def test_the_area_of_a_concept_is_the_weighted_mean_of_its_explained_samples(name: str, every: dict[str, Metric]) -> None:
    given = evaluation([1] * 20, seed=4, concepts=4, unknown=0.5)
    truth = torch.where(given.truth == 1, 1, -1).to(torch.int8)
    truth[:, 3] = -1
    areas = torch.where(truth == 1, given.scores.sigmoid(), torch.nan)
    given = Evaluation(areas, truth == 1, truth, given.offsets, (truth == 1).any(0))
    weights = drawn(20, 6, seed=0)
    got = every[name].compute(given, weights)
    for b in range(6):
        for c in range(3):
            there = truth[:, c] == 1
            heavy = weights[b, there].double().numpy()
            wanted = heavy @ areas[there, c].numpy() / heavy.sum() if heavy.any() else math.nan
            assert got[b, c].item() == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert bool(got[:, 3].isnan().all())


# --- tokens, binned


@pytest.mark.parametrize("ties", [False, True])
def test_binned_rankings_give_close_to_exact_token_ap_intervals(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(0)
    given = evaluation(g.integers(0, 200, 60).tolist(), seed=6, concepts=2, ties=ties)
    weights = drawn(60, 100, seed=0)
    exact = ranked.TokenAveragePrecision().compute(given, weights)
    monkeypatch.setattr(ranked, "EXACT", 0)
    binned = ranked.TokenAveragePrecision().compute(given, weights)
    assert not torch.equal(exact, binned) or ties
    for c in range(2):
        for q in (0.025, 0.975):
            assert binned[:, c].quantile(q).item() == pytest.approx(exact[:, c].quantile(q).item(), abs=2e-3)


def test_the_value_itself_is_never_binned(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weighting of as many tokens as are ever exact; the published value must be the exact one."""
    given = evaluation([400] * 20, seed=1, concepts=1)
    exact = ranked.TokenAveragePrecision().compute(given, ones(given))
    wanted = scikit.average_precision_score(given.truth[:, 0].numpy() == 1, given.scores[:, 0].numpy())
    assert exact.item() == pytest.approx(wanted, abs=1e-12)
    monkeypatch.setattr(ranked, "EXACT", 1000)
    assert ranked.TokenAveragePrecision().compute(given, ones(given)).item() == pytest.approx(wanted, abs=1e-12)


# --- rows


def rows_of(metric: Metric, given: Evaluation, labels: torch.Tensor, replicates: int = 50) -> dict[str, Score]:
    bootstrap = Bootstrap(labels, [f"c{c}" for c in range(labels.shape[1])], replicates, 0)
    return {row.concept: row for row in score_rows("m", metric, given, "7", bootstrap)}


def test_a_metric_has_a_row_per_concept_and_two_averages(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 30, seed=3)
    rows = rows_of(every["f1"], given, given.truth == 1)
    assert list(rows) == ["c0", "c1", "c2", "macro", "weighted"]
    assert {row.layer for row in rows.values()} == {"7"}
    positives = (given.truth == 1).sum(0).tolist()
    values = [rows[f"c{c}"].value for c in range(3)]
    assert [rows[f"c{c}"].n for c in range(3)] == positives
    assert rows["macro"].value == pytest.approx(np.mean(values))
    assert rows["weighted"].value == pytest.approx(np.average(values, weights=positives))
    for row in rows.values():
        assert row.ci_low is not None
        assert row.ci_high is not None
        assert row.value is not None
        assert row.ci_low <= row.value <= row.ci_high
        assert (row.sample_ci is not None) == (row.concept in ("macro", "weighted"))


def test_an_undefined_number_is_none_with_its_reason_and_counts_in_no_average(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 30, seed=5, concepts=5)
    truth = given.truth.clone()
    decisions = given.decisions.clone()
    truth[:, 1], truth[:, 2], truth[:, 4] = 0, 1, -1
    decisions[:, 3] = False
    calibrated = torch.tensor([True, True, True, True, True])
    given = Evaluation(given.scores, decisions, truth, given.offsets, calibrated)
    reasons = {
        "f1": {"c1": "no positives", "c4": "no annotated tokens"},
        "precision": {"c1": "no positives", "c3": "0 / 0", "c4": "no annotated tokens"},
        "recall": {"c1": "no positives", "c4": "no annotated tokens"},
        "average_precision": {"c1": "no positives", "c4": "no annotated tokens"},
        "auroc": {"c1": "no positives", "c2": "no negatives", "c4": "no annotated tokens"},
    }
    for name, wanted in reasons.items():
        rows = rows_of(every[name], given, truth == 1)
        found = {concept: row.reason for concept, row in rows.items() if row.value is None}
        assert found == wanted, name
        for concept in wanted:
            assert (rows[concept].ci_low, rows[concept].ci_high) == (None, None)
        assert rows["macro"].n == 5 - len(wanted)
        assert all(row.reason is None for row in rows.values() if row.value is not None)


def test_a_concept_that_was_not_calibrated_has_no_value_whatever_the_metric_computes(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 20, seed=5)
    given = Evaluation(given.scores, given.decisions, given.truth, given.offsets, torch.tensor([True, False, True]))
    for name in DETECTION:
        row = rows_of(every[name], given, given.truth == 1)["c1"]
        assert (row.value, row.ci_low, row.ci_high) == (None, None, None)
        assert row.reason is not None
        assert "calibrat" in row.reason


def test_where_no_concept_has_a_value_neither_has_an_average(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 10, seed=1)
    given = Evaluation(given.scores, given.decisions, torch.zeros_like(given.truth), given.offsets, given.calibrated)
    rows = rows_of(every["f1"], given, given.truth == 1)
    for average in ("macro", "weighted"):
        row = rows[average]
        assert (row.value, row.ci_low, row.ci_high, row.sample_ci, row.n) == (None, None, None, None, 0)
        assert row.reason == "no concept has a value"


def test_without_replicates_there_is_a_value_and_no_interval(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 10, seed=1)
    for row in rows_of(every["f1"], given, given.truth == 1, replicates=0).values():
        assert row.value is not None
        assert (row.ci_low, row.ci_high, row.sample_ci) == (None, None, None)


def test_one_concept_has_the_interval_of_its_samples(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 30, seed=1, concepts=1)
    rows = rows_of(every["f1"], given, given.truth == 1)
    for row in rows.values():
        assert (row.ci_low, row.ci_high) == pytest.approx((rows["c0"].ci_low, rows["c0"].ci_high), abs=1e-12)
    assert rows["macro"].sample_ci == (rows["macro"].ci_low, rows["macro"].ci_high)


def test_the_weighted_average_is_resampled_with_the_positives_of_each_replicate(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 25, seed=9)
    labels = given.truth == 1
    weights = drawn(25, 50, 0)
    replicates, positives = every["f1"].compute(given, weights).numpy(), (weights.double() @ labels.double()).numpy()
    means = [np.average(row[~np.isnan(row)], weights=n[~np.isnan(row)]) for row, n in zip(replicates, positives, strict=True)]
    row = rows_of(every["f1"], given, labels)["weighted"]
    assert row.sample_ci == (
        pytest.approx(np.quantile(means, 0.025), abs=1e-6),
        pytest.approx(np.quantile(means, 0.975), abs=1e-6),
    )


def test_only_metrics_of_the_kind_asked_for_are_computed(every: dict[str, Metric]) -> None:
    given = evaluation([1] * 12, seed=1)
    bootstrap = Bootstrap(given.truth == 1, ["a", "b", "c"], 0, 0)
    rows = all_rows(every, "detection", {"chosen": given, "0": given}, bootstrap)
    assert {row.metric for row in rows} == set(DETECTION)
    assert {row.layer for row in rows} == {"chosen", "0"}
    assert len(rows) == len(DETECTION) * 2 * 5
