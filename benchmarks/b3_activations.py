"""B3: activations of K units on T tokens by `Directions.activate` against the broadcast cosine [tokens, K, d] of a sample at a time.

The definition (method section 4, avg): s = cos(e, v). The limits of the machine are measured in the same run: a matmul of the same
dtype, and a sum over more memory than any cache holds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from harness_vectors.directions import Directions
from pairs import Benchmark, Case, Found, Gate, Row, Sides, SkippedError, found, main, ratio
from planted import close
from torch import Tensor

from harness.types import Site, TokenEmbeddings

SAMPLE = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def broadcast(tokens: Tensor, vectors: Tensor) -> Tensor:
    """[T, K]: the definition, one sample at a time."""
    return torch.cat([F.cosine_similarity(sample[:, None], vectors[None], dim=-1) for sample in tokens.split(SAMPLE)])


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """Both sides on the same tokens; the values are noise, as neither side's time depends on them."""
    g = torch.Generator().manual_seed(0)
    dtype = DTYPES[case["dtype"]]
    if dtype != torch.float32 and not supported(dtype):
        raise SkippedError(f"{case['dtype']} is emulated on this CPU")
    tokens, vectors = (torch.randn(n, case["width"], generator=g) for n in (case["tokens"], case["K"]))
    block = TokenEmbeddings(tokens[None].to(dtype), torch.arange(0, case["tokens"] + 1, SAMPLE), (), (Site(0),))
    directions = Directions(vectors[None].to(dtype), cosine=True)
    plain = tokens.to(dtype).float() if dtype != torch.float32 else tokens

    def check(results: Found) -> dict[str, dict[str, Any]]:
        close("activations", results["harness"][0].float(), results["broadcast"], TOLERANCE[case["dtype"]])
        return {"harness": limits(case, dtype)}

    calls = {"harness": lambda: directions.activate(block), "broadcast": lambda: broadcast(plain, vectors)}
    yield Sides(calls, check, f"activations to {TOLERANCE[case['dtype']]:g}")


def limits(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """This machine's matmul and read limit, and how much of the nearer one a call reaches."""
    side = 2048 if case["tokens"] > 512 else 256
    square, long = torch.ones(side, side, dtype=dtype), torch.ones(side * side * 16)
    matmul = 2 * side**3 / best(lambda: square @ square)
    read = 4 * long.numel() / best(long.sum)
    flops = 2 * case["tokens"] * case["K"] * case["width"]
    items = case["tokens"] * case["width"] + case["tokens"] * case["K"] + case["K"] * case["width"]
    least = max(flops / matmul, items * dtype.itemsize / read)
    return {"GFLOP/s": round(matmul / 1e9), "GB/s": round(read / 1e9), "of limit": lambda row: round(least / row.wall, 2)}


def best(call: Callable[[], object]) -> float:
    """The seconds of the fastest of seven calls."""
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def gates(rows: Sequence[Row]) -> list[Gate]:
    """At K = 200 in float32: 40 times as fast in a quarter of the memory."""
    mine, other = (found(rows, side, K=200, dtype="float32") for side in ("harness", "broadcast"))
    made = [Gate("broadcast / harness, seconds at K = 200", ratio(rows, "broadcast", K=200, dtype="float32"), 40)]
    if mine and other and mine[0].room and other[0].room:
        made.append(Gate("harness / broadcast, extra memory at K = 200", mine[0].room.extra / other[0].room.extra, 0.25, False))
    return made


def supported(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies the dtype in hardware: an emulated matmul says nothing."""
    one, other = (torch.ones(256, 256, dtype=kind) for kind in (dtype, torch.float32))
    return best(lambda: one @ one) < 1.5 * best(lambda: other @ other)


SIZES = ((6, 4096), (29, 4096), (80, 4096), (200, 4096), (1000, 1024))
BENCHMARK = Benchmark(
    "B3",
    "activations: one matmul against the broadcast cosine",
    build,
    [{"K": k, "tokens": t, "width": 1024, "dtype": dtype} for dtype in DTYPES for k, t in SIZES],
    [{"K": k, "tokens": 512, "width": 32, "dtype": dtype} for dtype in DTYPES for k in (1, 7)],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
