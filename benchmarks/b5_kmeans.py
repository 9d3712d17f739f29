"""B5: k-means. Seconds and squared error (SSE) of the project's Lloyd iterations against scikit-learn and, where installed, faiss.

iterations  the same start and as many iterations for every side (tol 0): `lloyd`, KMeans, faiss.Kmeans on all tokens; and
            MiniBatchKMeans from that start with its own stopping rule, which ends at a larger error
fit         the concept method as a user calls it, its own start and stop included, against KMeans (k-means++, one start) likewise
The SSE of all sides is computed by one function, in float64.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sklearn.cluster
import torch
from harness_vectors.kmeans import KMeans, lloyd, start
from pairs import Benchmark, Case, Found, Gate, Row, Sides, main, ratio
from planted import Size, plant, splits
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

SAME = 1e-3
"""Share by which the SSE of equal starts and iterations may differ: float32 sums and ties between centres."""


def squared_error(tokens: Tensor, centres: Tensor) -> float:
    """The sum of squared distances of tokens [N, d] to their nearest centre."""
    wide = centres[~centres.isnan().any(1)].double()
    parts = [torch.cdist(part.double(), wide).amin(1).square().sum() for part in tokens.split(4096)]
    return float(torch.stack(parts).sum())


def faiss_kmeans(tokens: Tensor, centres: Tensor, iterations: int) -> Tensor:
    """[K, d] by faiss, on all tokens."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    options = {"niter": iterations, "max_points_per_centroid": len(tokens), "min_points_per_centroid": 1, "seed": 1}
    fitted = faiss.Kmeans(tokens.shape[1], len(centres), **options)
    fitted.train(tokens.numpy(), init_centroids=centres.numpy())
    return torch.from_numpy(fitted.centroids)


def scikit_learn(tokens: Tensor, kind: type, **options: Any) -> Tensor:
    """[K, d] by a class of `sklearn.cluster`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(kind(n_init=1, random_state=0, **options).fit(tokens.numpy()).cluster_centers_)


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """The train tokens of a planted world, their mean removed once for all sides where the start is given."""
    k = case["K"]
    train = splits(plant(Size(case["samples"], case["tokens"], case["width"], 80))).train
    tokens = train.values[0] - train.values[0].mean(0)
    if case["what"] == "fit":
        calls: dict[str, Callable[[], Tensor]] = {
            "harness": lambda: KMeans(k).fit(train).vectors[0],
            "KMeans": lambda: scikit_learn(train.values[0], sklearn.cluster.KMeans, n_clusters=k),
        }
        yield Sides(calls, lambda results: _errors(train.values[0], results), "not the same clusters: SSE as printed")
        return
    first, n = start(tokens, k, 0), case["iterations"]
    given = {"n_clusters": k, "init": first.numpy()}
    calls = {
        "harness": lambda: lloyd(tokens, first, KMeans(k, n, 0.0)),
        "KMeans": lambda: scikit_learn(tokens, sklearn.cluster.KMeans, max_iter=n, tol=0, algorithm="lloyd", **given),
        "MiniBatchKMeans": lambda: scikit_learn(tokens, sklearn.cluster.MiniBatchKMeans, **given),
    }
    if importlib.util.find_spec("faiss"):
        calls["faiss"] = lambda: faiss_kmeans(tokens, first, n)
    yield Sides(
        calls, lambda results: _errors(tokens, results, ("KMeans", "faiss")), f"SSE of KMeans and faiss to a share of {SAME:g}"
    )


def _errors(tokens: Tensor, results: Found, same: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The SSE of every side as a share of that of one cluster; raises where one of `same` differs from the project's."""
    whole = float(tokens.double().sub(tokens.mean(0)).square().sum())
    error = {name: squared_error(tokens, centres) / whole for name, centres in results.items()}
    for name in set(same) & set(error):
        gap = error[name] / error["harness"] - 1
        assert abs(gap) <= SAME, f"{name}: SSE differs by a share of {gap:.2g}"
    return {name: {"SSE": round(value, 5)} for name, value in error.items()}


def gates(rows: Sequence[Row]) -> list[Gate]:
    """No slower than scikit-learn and faiss at equal starts and iterations, at equal SSE (asserted)."""
    made = []
    for case in (dict(row.case) for row in rows if row.side == "harness"):
        others = [row.side for row in rows if row.case == case and row.side in ("KMeans", "faiss")]
        made += [Gate(f"{side} / harness, {case['what']}, K = {case['K']}", ratio(rows, side, **case), 1) for side in others]
    return made


SHAPE = {"iterations": 10, "samples": 300, "tokens": 256, "width": 384}
BENCHMARK = Benchmark(
    "B5",
    "k-means: seconds and squared error",
    build,
    [{"what": what, "K": k, **SHAPE} for what in ("iterations", "fit") for k in (200, 1000)],
    [{"what": what, "K": 4, "iterations": 3, "samples": 40, "tokens": 16, "width": 12} for what in ("iterations", "fit")],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
