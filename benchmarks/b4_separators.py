"""B4: linear separators, seconds and sample F1: `lda`, `logistic` and `adam` of the project against scikit-learn, one fit per concept.

Every side but `lda` is fitted on the same balanced sample of tokens (the run's seed), whose drawing is part of its time; lda takes all
train tokens. scikit-learn runs as one would write it: SGDClassifier (hinge, log-loss) with its defaults, LogisticRegression with a
tighter tol. What is compared is sample F1 on test after the core's calibration, the same for all sides. `logistic` and
LogisticRegression minimise the same loss: their weights are asserted to be equal. The planted noise is Gaussian with one covariance,
which is what lda assumes: on real tokens it gains less.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from harness_vectors.directions import Directions
from harness_vectors.linear import ESTIMATORS, Linear, balanced, gathered
from pairs import Benchmark, Case, Found, Gate, Row, Sides, found, main
from planted import Size, Splits, detect, plant, splits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier

TOLERANCE = 1e-3
MAX_ROWS = Linear().max_rows
OTHERS: dict[str, Callable[[], Any]] = {
    "SGD hinge": lambda: SGDClassifier(loss="hinge", random_state=0),
    "SGD log-loss": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "LogisticRegression": lambda: LogisticRegression(tol=1e-6, max_iter=1000),
}


def scikit_learn(make: Callable[[], Any], world: Splits) -> Directions:
    """One classifier per concept on its balanced sample; the weights without the intercept, as the project scores."""
    weights = []
    for tokens, labels in gathered(world.train, balanced(world.train, MAX_ROWS)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = make().fit(tokens[0].numpy(), labels.numpy())
        weights.append(fitted.coef_[0])
    return Directions(torch.from_numpy(np.stack(weights)).float()[None], cosine=False)


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """All estimators on the same planted tokens, normalised as the paper does: the norm of a token is about 1."""
    size = Size(case["samples"], case["tokens"], case["width"], case["C"], strength=case["strength"])
    world = splits(plant(size))
    own = {name: lambda name=name: Linear(estimator=name).fit(world.train) for name in ESTIMATORS}
    others = {name: lambda make=make: scikit_learn(make, world) for name, make in OTHERS.items()}

    def check(results: Found) -> dict[str, dict[str, Any]]:
        mine, other = (results[name].vectors[0] for name in ("logistic", "LogisticRegression"))
        gap = float(((mine - other).norm(dim=1) / other.norm(dim=1)).max())
        assert gap <= TOLERANCE, f"logistic and LogisticRegression: weights differ by a share of {gap:.2g}"
        f1 = {name: float(detect(fitted, world.cal, world.test).f1.mean()) for name, fitted in results.items()}
        return {name: {"F1": round(value, 4)} for name, value in f1.items()}

    yield Sides(
        own | others, check, f"weights of logistic and LogisticRegression to {TOLERANCE:g} of their norm; F1 as printed"
    )


def gates(rows: Sequence[Row]) -> list[Gate]:
    """lda is no slower than SGD, at equal or better F1."""
    made = []
    for c in sorted({row.case["C"] for row in rows}):
        (lda,) = found(rows, "lda", C=c)
        for side in ("SGD hinge", "SGD log-loss"):
            (sgd,) = found(rows, side, C=c)
            made.append(Gate(f"{side} / lda, seconds at C = {c}", sgd.ratio, 1))
            made.append(Gate(f"lda - {side}, macro F1 at C = {c}", lda.more["F1"] - sgd.more["F1"], 0))
    return made


SHAPE = {"samples": 300, "tokens": 256, "width": 1024}
BENCHMARK = Benchmark(
    "B4",
    "linear separators: seconds and sample F1",
    build,
    [{"C": 6, "strength": 3.0, **SHAPE}, {"C": 80, "strength": 5.0, **SHAPE}],
    [{"C": 3, "samples": 40, "tokens": 16, "width": 12, "strength": 6.0}],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
