"""Cutoffs, cal counts, levels and layers against loops in float64, on three small worlds; and that test labels have no say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from small_worlds import DETECTION, Measured

from harness.calibration import at_layer, at_level, best_cutoffs, calibrate, choose, in_concept, sample_cutoffs, token_cutoffs
from harness.embed import Tokens
from harness.numerics import tail_cutoffs
from harness.types import LEVELS, Method

every_detection = pytest.mark.parametrize("method", DETECTION, ids=lambda m: f"{m.detector}-{m.concepts}-{m.fit_on}")
fitted = pytest.mark.parametrize(("concepts", "fit_on"), [("linear", "tokens"), ("mean", "tokens"), ("linear", "summary")])


def test_the_levels_are_the_twelve_of_the_paper() -> None:
    assert LEVELS == oracle.LEVELS


@fitted
def test_the_normalised_values_are_the_stored_ones_minus_the_train_mean_over_their_rms_norm(
    world: Measured, concepts: str, fit_on: str
) -> None:
    rows, seen = world.rows[fit_on], world.seen(concepts, fit_on)
    for split in ("train", "cal", "test"):
        wanted = oracle.normalise("train", rows["train"], rows[split])
        for got, exact in zip(seen.tokens[split], wanted, strict=True):
            np.testing.assert_allclose(got, exact, rtol=0, atol=2e-6)


@fitted
def test_the_token_truth_is_the_regions_with_minus_one_where_nothing_is_known(
    world: Measured, concepts: str, fit_on: str
) -> None:
    for split in ("train", "cal", "test"):
        for got, wanted in zip(world.seen(concepts, fit_on).truth[split], world.rows[fit_on][split].truth, strict=True):
            np.testing.assert_array_equal(got, wanted)


@fitted
def test_activations_are_dot_products_or_cosines_with_the_fitted_vectors(world: Measured, concepts: str, fit_on: str) -> None:
    seen = world.seen(concepts, fit_on)
    vectors = seen.vectors.astype(np.float64)
    for split in ("cal", "test"):
        for tokens, got in zip(seen.tokens[split], seen.activations[split], strict=True):
            wanted = np.einsum("ltd,lcd->ltc", tokens.astype(np.float64), vectors)
            if concepts == "mean":
                wanted /= (
                    np.linalg.norm(tokens.astype(np.float64), axis=-1)[..., None] * np.linalg.norm(vectors, axis=-1)[:, None]
                )
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_mean_vectors_are_the_mean_of_the_tokens_in_the_concept(world: Measured) -> None:
    seen = world.seen("mean", "tokens")
    rows = world.rows["tokens"]["train"]
    tokens = np.concatenate(seen.tokens["train"], 1).astype(np.float64)
    truth = np.concatenate(rows.truth)
    for c in range(len(world.concepts)):
        inside = tokens[:, truth[:, c] == 1]
        if inside.shape[1] == 0:
            assert np.isnan(seen.vectors[:, c]).all()
        else:
            np.testing.assert_allclose(seen.vectors[:, c], inside.mean(1), atol=1e-6)


def test_lda_separators_solve_the_ridged_covariance_for_the_gap_between_the_class_means(world: Measured) -> None:
    seen, rows = world.seen("linear", "tokens"), world.rows["tokens"]["train"]
    truth = np.concatenate(rows.truth)
    for layer, x in enumerate(np.concatenate(seen.tokens["train"], 1).astype(np.float64)):
        covariance = np.cov(x.T, bias=True)
        ridged = covariance + 0.01 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        for c in range(len(world.concepts)):
            if (truth[:, c] == 1).any():
                gap = x[truth[:, c] == 1].mean(0) - x[truth[:, c] == 0].mean(0)
                wanted = np.linalg.solve(ridged, gap)
                np.testing.assert_allclose(seen.vectors[layer, c], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
            else:
                assert np.isnan(seen.vectors[layer, c]).all()


@every_detection
def test_every_cutoff_at_every_level_layer_and_concept_is_the_quantile_by_hand(world: Measured, method: Method) -> None:
    expected = world.expected(method)
    rows = world.table(method, "calibration")
    assert len(rows) == len(LEVELS) * len(world.layers) * len(world.concepts)
    for row in rows:
        place = LEVELS.index(row["level"]), world.layers.index(row["layer"]), world.concepts.index(row["concept"])
        wanted = expected.cutoffs[place[0]][place[1]][place[2]]
        assert (row["cutoff"] is None) == (wanted is None), row
        if wanted is not None:
            assert row["cutoff"] == pytest.approx(wanted, rel=0, abs=1e-9), row


@every_detection
def test_cal_counts_and_f1_at_every_level_are_those_by_hand(world: Measured, method: Method) -> None:
    expected = world.expected(method)
    for row in world.table(method, "calibration"):
        place = LEVELS.index(row["level"]), world.layers.index(row["layer"]), world.concepts.index(row["concept"])
        tp, fp, fn = expected.counts[place[0]][place[1]][place[2]]
        assert (row["tp"], row["fp"], row["fn"]) == (tp, fp, fn), row
        wanted = expected.f1[place[0]][place[1]][place[2]]
        assert row["f1"] == (None if wanted is None else pytest.approx(wanted, abs=1e-12)), row


@every_detection
def test_level_and_layer_are_the_first_best_by_cal_f1(world: Measured, method: Method) -> None:
    expected = world.expected(method)
    for c, choice in enumerate(world.choices(method)):
        layer = expected.layer[c]
        if layer is None:
            assert (choice.layer, choice.level, choice.cutoff, choice.cal_f1) == (None, None, None, None)
            continue
        level = expected.level[layer][c]
        assert level is not None
        assert (choice.layer, choice.level) == (world.layers[layer], LEVELS[level])
        assert choice.cutoff == pytest.approx(expected.cutoff(c), rel=0, abs=1e-9)
        assert choice.cal_f1 == pytest.approx(expected.f1[level][layer][c], abs=1e-12)


@pytest.mark.parametrize("world", ["folder"], indirect=True)
def test_the_worlds_hold_ties_so_that_at_or_above_is_put_to_the_test(world: Measured) -> None:
    """Test scores on their layer's chosen cutoff, and train tokens on the cutoff of a super-activator."""
    at_layer_ties = at_chosen_ties = 0
    for method in DETECTION:
        expected = world.expected(method)
        for c in range(len(world.concepts)):
            for layer, levels in enumerate(expected.level):
                cutoff = expected.cutoffs[levels[c]][layer][c]  # type: ignore[index]
                ties = sum(sample[layer][c] == cutoff for sample in expected.test)
                at_layer_ties += ties
                at_chosen_ties += ties * (layer == expected.layer[c])
    assert at_layer_ties > at_chosen_ties > 0
    method = next(m for m in DETECTION if m.detector == "superactivator" and m.concepts == "linear")
    expected, seen = world.expected(method), world.seen("linear", "tokens")
    tokens = [
        sum((a[expected.layer[c], :, c] == expected.token_cutoff(c)).sum() for a in seen.activations["train"])
        for c in range(len(world.concepts))
    ]
    assert sum(tokens) > 0


def test_one_small_example_by_hand() -> None:
    """Five in-concept tokens 1..5: at level 0.5 the cutoff is the median; at 0.9 rank 0.4."""
    cutoffs = tail_cutoffs(torch.tensor([[3.0], [1.0], [5.0], [2.0], [4.0]]), (0.5, 0.9))
    assert cutoffs[:, 0].tolist() == [3.0, pytest.approx(1.4)]
    scores = torch.tensor([3.0, 1.4, 0.0])[None, :, None]
    made = calibrate(scores, torch.tensor([[True], [False], [True]]), cutoffs[:, None].reshape(2, 1, 1))
    assert [count.flatten().tolist() for count in made.counts] == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


def test_a_score_that_ties_with_the_cutoff_is_detected() -> None:
    scores = torch.tensor([2.0, 2.0, 1.0])[None, :, None]
    made = calibrate(scores, torch.tensor([[True], [False], [False]]), torch.full((1, 1, 1), 2.0, dtype=torch.float64))
    assert (made.counts.tp.item(), made.counts.fp.item(), made.counts.fn.item()) == (1, 1, 0)


def test_equal_f1_takes_the_smallest_level_and_the_earliest_layer() -> None:
    scores = torch.tensor([1.0, 1.0, 0.0]).expand(3, 3)[:, :, None]  # three layers alike
    labels = torch.tensor([[True], [True], [False]])
    cutoffs = torch.tensor([2.0, 1.0, 0.5, 0.25], dtype=torch.float64)[:, None, None].expand(4, 3, 1)
    chosen = choose(calibrate(scores, labels, cutoffs))
    assert chosen.level.flatten().tolist() == [1, 1, 1]
    assert chosen.layer.tolist() == [0]


def test_a_layer_without_a_cutoff_is_never_chosen_over_one_with() -> None:
    scores = torch.tensor([[0.0, 1.0], [5.0, 0.0]])[:, :, None]
    cutoffs = torch.tensor([[[math.nan], [9.0]]], dtype=torch.float64)
    chosen = choose(calibrate(scores, torch.tensor([[True], [False]]), cutoffs))
    assert chosen.layer.tolist() == [1]  # its F1 is 0, and 0 is a number


def test_a_positive_sample_without_tokens_is_left_out_of_sample_cutoffs_and_is_missed() -> None:
    scores = torch.tensor([-math.inf, 1.0, 3.0, 0.0])[None, :, None]
    labels = torch.tensor([[True], [True], [True], [False]])
    cutoffs = sample_cutoffs(scores, labels, (0.5, 0.95))
    assert cutoffs.flatten().tolist() == [2.0, pytest.approx(1.1)]
    counts = calibrate(scores, labels, cutoffs).counts
    assert (counts.tp.flatten().tolist(), counts.fn.flatten().tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_a_concept_without_in_concept_tokens_has_no_cutoff_and_spoils_no_other() -> None:
    truth = torch.tensor([[1, 0], [0, -1], [1, 0]], dtype=torch.int8)
    activations = torch.arange(6.0).reshape(1, 3, 2)
    cutoffs = token_cutoffs(in_concept(activations, truth), (0.5,))
    assert cutoffs[0, 0, 0] == 2.0
    assert cutoffs[0, 0, 1].isnan()


def test_the_chosen_level_and_layer_are_read_from_the_right_places() -> None:
    cutoffs = torch.arange(24.0, dtype=torch.float64).reshape(2, 3, 4)  # P, L, C
    level = torch.tensor([[0, 1, 0, 1]] * 3)
    layer = torch.tensor([2, 0, 1, 1])
    by_level = at_level(cutoffs, level)
    assert by_level.tolist() == [[cutoffs[level[i, c], i, c].item() for c in range(4)] for i in range(3)]
    assert at_layer(by_level, layer).tolist() == [by_level[layer[c], c].item() for c in range(4)]
    deep = torch.arange(3 * 5 * 4).reshape(3, 5, 4)  # L, S, C
    assert at_layer(deep, layer).tolist() == [[deep[layer[c], s, c].item() for c in range(4)] for s in range(5)]


@pytest.mark.parametrize("world", ["ragged"], indirect=True)
def test_a_concept_that_train_gave_no_vector_is_explained_as_such(world: Measured) -> None:
    """`hidden` has positives in cal; what it lacks is an annotated token in train, and the reason must not blame cal."""
    method = next(m for m in DETECTION if m.detector == "superactivator")
    choice = world.choices(method)[world.concepts.index("hidden")]
    assert choice.cutoff is None
    assert choice.reason is not None
    assert "train" in choice.reason, choice.reason


def opened(world: Measured, summaries: bool = False) -> Tokens:
    group: Any = world.bench.plan.groups[0]
    return group.open(summaries=summaries)


def test_blocks_of_cal_and_test_carry_no_labels_and_no_truth(world: Measured) -> None:
    for summaries in (False, True):
        tokens = opened(world, summaries)
        for split in (tokens.cal, tokens.test):
            assert all(block.labels is None and block.truth is None for block in split.blind())


def test_a_ceiling_is_the_best_f1_of_any_cutoff_and_the_highest_cutoff_that_has_it() -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (2, 40, 3), generator=g).float()  # ties
    scores[:, 3] = -torch.inf
    labels = torch.rand(40, 3, generator=g) < 0.4
    labels[:, 2] = False
    found = best_cutoffs(scores, labels)
    assert found.shape == (1, 2, 3)
    assert found[..., 2].isnan().all()
    for layer in range(2):
        for c in range(2):
            every = {
                cutoff: oracle.f1(*oracle.count((scores[layer, :, c] >= cutoff).tolist(), labels[:, c].int().tolist()))
                for cutoff in scores[layer, :, c].unique().tolist()
                if cutoff > -math.inf
            }
            best = max(every.values())
            assert float(found[0, layer, c]) == max(cutoff for cutoff, f1 in every.items() if f1 == best)
    assert float(calibrate(scores, labels, found).f1[0, 0, 0]) == pytest.approx(best_of(scores, labels))


def best_of(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The best F1 of the first layer and concept over a grid of cutoffs."""
    values = (oracle.f1(*oracle.count((scores[0, :, 0] >= x).tolist(), labels[:, 0].int().tolist())) for x in range(7))
    return max(value for value in values if value is not None)
