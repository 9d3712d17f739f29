"""B10: peak memory of a run at ten times the data. Tokens go through in blocks: only truth, labels and sample scores may grow.

The real pipe on `embeddings:<folder>`, everything cached or read from the folder; the ratio that counts is that of the peaks, each in a
process of its own, in five processes. What still grows is known: truth [T, C] bytes of each split, in-concept cal activations.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from b1_end_to_end import harness
from pairs import Benchmark, Case, Found, Gate, Row, Sides, found, main
from planted import Size, plant, write_folder

from harness.registry import load

TIMES = 10


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """Two folders, one with ten times the samples of the other; only `method` runs on them."""
    with tempfile.TemporaryDirectory(prefix="harness-b10-") as made:
        folders = {}
        for times in (1, TIMES):
            folders[f"{times}x"] = Path(made) / f"{times}x" / "planted"
            size = Size(times * case["samples"], case["tokens"], case["width"], case["C"])
            write_folder(plant(size), folders[f"{times}x"])
        registry = load()

        def check(results: Found) -> dict[str, dict[str, Any]]:
            assert all(done.f1.isfinite().all() for done in results.values()), "a concept has no F1"
            shape = (case["tokens"], case["width"])
            return {
                f"{times}x": {"data MB": round(times * case["samples"] * shape[0] * shape[1] * 4 / 1e6)} for times in (1, TIMES)
            }

        calls = {
            name: lambda folder=folder: harness(folder, case["method"], registry, "embeddings")
            for name, folder in folders.items()
        }
        yield Sides(calls, check, "nothing to compare: every concept has an F1 at both sizes")


def gates(rows: Sequence[Row]) -> list[Gate]:
    """Ten times the data take at most half as much memory again, the memory of the process itself left out."""
    made = []
    for case in (dict(row.case) for row in rows if row.side == "1x"):
        small, large = (found(rows, side, **case)[0].room for side in ("1x", f"{TIMES}x"))
        if small and large:
            made.append(Gate(f"extra memory, 10x / 1x, {case['method']}", large.extra / small.extra, 1.5, False))
    return made


SHAPE = {"C": 6, "samples": 100, "tokens": 256, "width": 384}
BENCHMARK = Benchmark(
    "B10",
    "peak memory at ten times the data",
    build,
    [{"method": method, **SHAPE} for method in ("mean", "lda")],
    [{"method": "mean", "C": 2, "samples": 20, "tokens": 4, "width": 8}],
    gates,
    fresh=5,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
