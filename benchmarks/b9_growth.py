"""B9: how time grows. The pipe's arithmetic (moments, fit, activate, pool, 12 cutoffs, choose, test) at n and at four times n.

The exponent is log(ratio) / log(4): 1 is linear. It is taken for samples, tokens per sample, concepts and layers, one at a time; the
part that does not grow (the fixed cost of a call) makes an exponent smaller, never larger.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness_vectors.linear import Linear
from harness_vectors.mean import Mean
from pairs import Benchmark, Case, Found, Gate, Row, Sides, main
from planted import Detected, Planted, Size, close, detect, plant, splits

TIMES = 4
KINDS = {"mean": Mean, "lda": Linear}


def measure(world: Planted, method: str) -> Detected:
    """Everything after embedding, in memory."""
    train, cal, test = splits(world)
    return detect(KINDS[method]().fit(train), cal, test)


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """The world of a size and the one in which one dimension is four times as large."""
    plain = {key: case[key] for key in ("samples", "tokens", "concepts", "layers", "width")}
    small = plant(Size(**plain))
    large = plant(Size(**{**plain, case["grows"]: TIMES * plain[case["grows"]]}))

    def check(results: Found) -> dict[str, dict[str, Any]]:
        if case["grows"] in ("concepts", "layers"):  # what is there at both sizes does not change
            part = _part(large, case)
            again = measure(part, case["method"])
            whole = results[f"{TIMES}x"]
            inside = whole.cutoffs[:, : case["layers"], : case["concepts"]]
            close("cutoffs", inside, again.cutoffs, 1e-5 * float(again.cutoffs.abs().max()))
        assert all(found.f1.isfinite().any() for found in results.values()), "no concept has an F1"
        return {f"{TIMES}x": {"exponent": lambda row: round(exponent(row), 2)}}

    calls = {"1x": lambda: measure(small, case["method"]), f"{TIMES}x": lambda: measure(large, case["method"])}
    yield Sides(calls, check, "of concepts and layers: the first quarter alone gives the same cutoffs, to 1e-5 of the largest")


def _part(world: Planted, case: Case) -> Planted:
    """The large world cut down to the small number of layers and concepts."""
    few = slice(case["concepts"])
    return Planted(world.values[: case["layers"]], world.truth[:, few], world.labels[:, few], world.offsets)


def exponent(row: Row) -> float:
    """log(ratio) / log(4)."""
    return math.log(row.ratio) / math.log(TIMES)


def gates(rows: Sequence[Row]) -> list[Gate]:
    """No dimension grows faster than linearly (0.1 for what is left of the noise)."""
    large = [row for row in rows if row.side != "1x"]
    return [Gate(f"exponent in {r.case['grows']}, {r.case['method']}", exponent(r), 1.1, False) for r in large]


SHAPE = {"samples": 60, "tokens": 256, "concepts": 20, "layers": 1, "width": 512}
TINY = {"samples": 40, "tokens": 16, "concepts": 2, "layers": 1, "width": 12}
GROWS = ("samples", "tokens", "concepts", "layers")
BENCHMARK = Benchmark(
    "B9",
    "growth of time in samples, tokens, concepts and layers",
    build,
    [{"method": method, "grows": what, **SHAPE} for method in KINDS for what in GROWS],
    [{"method": "mean", "grows": what, **TINY} for what in GROWS],
    gates,
    fresh=0,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
