"""Maps, their levels, their cutoffs and every token decision against loops in float64, on three small worlds."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from small_worlds import LOCALIZATION, Measured

from harness.types import LEVELS, Method

every_map = pytest.mark.parametrize("method", LOCALIZATION, ids=lambda m: m.name.replace(" ", "-"))


@functools.cache
def expected(world: Measured, method: Method, c: int) -> oracle.Map | None:
    """One concept's map by loops."""
    seen, detection = world.of(method), world.expected(method)
    kind = "direct" if method.localizer == "direct" else (method.localizer or "").partition("vector=")[2]
    given = {"activations": seen.activations, "tokens": seen.tokens, "vectors": seen.vectors}
    return oracle.localise(kind, c, detection, method.detector == "superactivator", given, world.rows["tokens"])


@pytest.fixture
def maps(world: Measured, method: Method) -> list[oracle.Map | None]:
    return [expected(world, method, c) for c in range(len(world.concepts))]


@every_map
def test_the_map_of_every_test_token_is_the_one_by_hand(world: Measured, method: Method, maps: list[oracle.Map | None]) -> None:
    got = world.logged(method)["map"]
    for c, wanted in enumerate(maps):
        for s, scores in enumerate(got):
            if wanted is not None:
                np.testing.assert_allclose(scores[:, c], wanted.test[s], rtol=0, atol=1e-6)


@every_map
def test_the_map_level_and_cutoff_are_chosen_on_cal_tokens_alone(
    world: Measured, method: Method, maps: list[oracle.Map | None]
) -> None:
    for choice, wanted in zip(world.choices(method), maps, strict=True):
        if wanted is None or wanted.level is None:
            assert (choice.map_level, choice.map_cutoff, choice.map_cal_f1) == (None, None, None)
            continue
        assert choice.map_level == LEVELS[wanted.level], choice
        assert choice.map_cutoff == pytest.approx(wanted.cutoff, rel=0, abs=1e-6 if method.localizer != "direct" else 1e-9)
        assert choice.map_cal_f1 == pytest.approx(wanted.cal_f1, abs=1e-12)


@every_map
def test_every_token_decision_on_test_is_the_one_by_hand(
    world: Measured, method: Method, maps: list[oracle.Map | None]
) -> None:
    got = world.logged(method)["mask"]
    for c, wanted in enumerate(maps):
        for s, decisions in enumerate(got):
            assert decisions[:, c].tolist() == ([0] * len(decisions) if wanted is None else wanted.decisions[s]), (c, s)


@every_map
def test_a_direct_map_on_token_calibrated_detection_has_a_level_no_smaller_than_the_detection(
    world: Measured, method: Method
) -> None:
    for choice in world.choices(method):
        if choice.map_level is not None and method.localizer == "direct" and method.detector == "superactivator":
            assert choice.level is not None
            assert choice.map_level >= choice.level


@every_map
def test_an_undetected_sample_has_no_positive_token(world: Measured, method: Method) -> None:
    detection, got = world.expected(method), world.logged(method)["mask"]
    for c in range(len(world.concepts)):
        for found, decisions in zip(detection.decisions("test", c), got, strict=True):
            assert found or not decisions[:, c].any()


@every_map
def test_token_f1_iou_and_average_precision_are_scikit_learns_on_known_tokens(
    world: Measured, method: Method, maps: list[oracle.Map | None]
) -> None:
    truth = np.concatenate(world.rows["tokens"]["test"].truth)
    scores = np.concatenate(world.logged(method)["map"])
    result = world.results[method.name]
    for c, wanted in enumerate(maps):
        rows = [result.score(f"token_{name}", concept=world.concepts[c]) for name in ("f1", "iou", "average_precision")]
        values = [row.value if row else "no row" for row in rows]
        if wanted is None or wanted.level is None:
            assert values == [None, None, None]
            assert all(row is not None and row.reason for row in rows)
            continue
        known = truth[:, c] >= 0
        true = truth[known, c] == 1
        found = np.array([x for sample in wanted.decisions for x in sample])[known]
        assert values[0] == pytest.approx(f1_score(true, found), abs=1e-12)
        assert values[1] == pytest.approx(jaccard_score(true, found), abs=1e-12)
        assert values[2] == pytest.approx(average_precision_score(true, scores[known, c]), abs=1e-9)


def test_a_world_without_noise_is_located_exactly() -> None:
    """Loops and kernels agree above; here the answer itself is known: strong tokens are the truth."""
    from harness_superactivator.detector import SuperActivator
    from harness_superactivator.localizers import Direct

    from harness.localize import Explanation, Job, locate, score_tokens
    from harness.testing import Axes, MadeUp

    split = MadeUp()
    split.values = torch.where(split.truth[None, :, :1] == 1, 5.0, -5.0) * torch.ones(2, 1, split.width)
    explained = Explanation(Axes(), torch.zeros(3, dtype=torch.long), torch.full((3,), 5.0, dtype=torch.float64))
    detected = torch.ones(len(split.ids), 3, dtype=torch.bool)
    job = Job("direct", Direct(), explained, SuperActivator(), (detected, detected), None, None)
    given: Any = split
    scores = score_tokens(given, [job])["direct"]
    found = locate(job, (scores, scores), (given, given), LEVELS)
    assert found.decisions[:, 0].tolist() == (split.truth[:, 0] == 1).tolist()
    assert found.cal_f1[0] == 1.0


def test_the_levels_of_a_sample_calibrated_detector_are_all_tried(world: Measured) -> None:
    """Its detection level says nothing about tokens, so no level is ruled out; the loops know that too."""
    method = next(m for m in LOCALIZATION if m.detector == "max" and m.localizer == "direct")
    for c in range(len(world.concepts)):
        wanted = expected(world, method, c)
        choice = world.choices(method)[c]
        assert choice.map_cal_f1 == (None if wanted is None else pytest.approx(wanted.cal_f1, abs=1e-12))
        assert wanted is None or not math.isnan(wanted.cutoff or 0.0)


def test_where_a_map_was_not_drawn_it_has_no_say_in_the_level() -> None:
    """Attribution leaves NaN outside its pairs, and a search among sorted scores that meets one goes astray."""
    from harness_superactivator.detector import SuperActivator
    from harness_superactivator.localizers import SuperActivatorMap

    from harness.localize import Explanation, Job, locate
    from harness.numerics import segment_ids
    from harness.testing import Axes, MadeUp

    given: Any = MadeUp()
    g = torch.Generator().manual_seed(0)
    explained = Explanation(Axes(), torch.zeros(3, dtype=torch.long), torch.full((3,), 5.0, dtype=torch.float64))
    detected, pairs = torch.ones(len(given.ids), 3, dtype=torch.bool), torch.zeros(len(given.ids), 3, dtype=torch.bool)
    pairs[:2] = pairs[5:7] = True
    job = Job("few", SuperActivatorMap(), explained, SuperActivator(), (detected, detected), None, (pairs, pairs))
    there = pairs[segment_ids(given.offsets)]
    scores = given.values[0, :, :3] + torch.rand(len(there), 3, generator=g)
    drawn = scores.masked_fill(~there, torch.nan)
    few, all_of_it = (locate(job, (maps, maps), (given, given), LEVELS) for maps in (drawn, scores))
    for name in ("level", "cutoff", "cal_f1"):
        torch.testing.assert_close(getattr(few, name), getattr(all_of_it, name), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(few.decisions[there], all_of_it.decisions[there])
    assert not bool(few.decisions[~there].any())
    assert bool((few.truth[~there] == -1).all())
    assert bool((few.cal_f1[:2] > 0).all())
