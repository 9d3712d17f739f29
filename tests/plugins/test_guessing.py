"""The floors: what they answer, that they keep a scorer's contract, and what they score through the pipe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from harness_guessing.scorers import AlwaysNo, AlwaysYes, Coin

from harness.api import Result, Sample
from harness.testing import check_scorer


@pytest.mark.parametrize("scorer", [Coin(), AlwaysYes(), AlwaysNo()], ids=lambda scorer: type(scorer).__name__)
def test_a_floor_keeps_the_contract_of_a_scorer(scorer: object) -> None:
    check_scorer(scorer)


def test_always_no_is_below_the_fixed_cutoff_everywhere() -> None:
    scores = AlwaysNo().score([Sample("a"), Sample("b")], ["x", "y", "z"])
    assert scores.shape == (2, 3)
    assert scores.dtype == np.float64
    assert (scores == 0).all()


def test_always_no_detects_nothing_and_says_so(run_toy: Callable[..., list[Result]]) -> None:
    (result,) = run_toy("always-no")
    found = {metric: result.score(metric) for metric in ("f1", "recall", "precision")}
    assert found["f1"].value == 0
    assert found["recall"].value == 0
    assert found["precision"].value is None
    assert found["precision"].reason
