"""`--dtype auto` on a GPU: 16 bit where one batch says that its numbers are finite and those of float32, else float32.

The verdict is kept in the cache, by backbone and device: float32 weights are loaded for it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from harness.embed import Batching, embed_samples
from harness.errors import HarnessError
from harness.results import write_atomic
from harness.tasks import Task
from harness.types import Backbone, Sample, Site

CLOSE = 0.1
"""Largest allowed relative difference of a layer's median token in 16 bit from float32."""
SAMPLES = 4


class Precision(NamedTuple):
    """The backbone in the dtype that was chosen, and why."""

    backbone: Backbone
    dtype: str
    found: str


def first_taken(dtypes: tuple[str, ...], make: Callable[[str], Backbone]) -> tuple[Backbone, tuple[str, ...]]:
    """The backbone in the first dtype that it takes, and the dtypes from there on: some models overflow in float16 and refuse it.

    A refusal of a dtype names it, as `--dtype float16`; any other error is the user's to see.
    """
    for place, dtype in enumerate(dtypes[:-1]):
        try:
            return make(dtype), dtypes[place:]
        except HarnessError as error:
            if f"--dtype {dtype};" not in str(error):
                raise
    return make(dtypes[-1]), dtypes[-1:]


def choose_dtype(
    first: Backbone, dtypes: Sequence[str], make: Callable[[str], Backbone], task: Task, cache_dir: Path
) -> Precision:
    """The backbone in the first of the dtypes, the last of which is float32, whose values are finite and close to float32's on a few
    train samples; `first` is the backbone in the first of them.

    A model whose float32 values cannot be had for want of memory keeps the first dtype whose values are finite.
    """
    if len(dtypes) == 1:
        return Precision(first, dtypes[0], f"{dtypes[0]}: 16 bit was refused")
    verdict = cache_dir / "dtypes" / f"{_key(first)}.json"
    kept = _kept(verdict)
    if kept.get("dtype") in dtypes:
        same = kept["dtype"] == dtypes[0]
        return Precision(first if same else make(kept["dtype"]), kept["dtype"], kept["found"])
    samples = task.splits["train"].samples(range(min(SAMPLES, len(task.splits["train"]))))
    chosen = _compared(dtypes, make, first, samples)
    write_atomic(verdict, json.dumps({"dtype": chosen.dtype, "found": chosen.found}).encode())
    return chosen


def _compared(dtypes: Sequence[str], make: Callable[[str], Backbone], first: Backbone, samples: Sequence[Sample]) -> Precision:
    exact: Tensor | None = None
    why: list[str] = []
    for dtype in dtypes[:-1]:
        try:
            backbone = first if dtype == dtypes[0] else make(dtype)
            values = _values(backbone, samples)
        except HarnessError as error:
            why.append(f"{dtype} refused ({error})")
            continue
        if exact is None:
            try:
                exact = _values(make(dtypes[-1]), samples)
            except HarnessError as error:
                return Precision(backbone, dtype, f"{dtype}: finite, and not compared with float32 ({error})")
        size = exact.norm(dim=-1).clamp(min=1e-6)
        gap = float(((values - exact).norm(dim=-1) / size).median(dim=1).values.max()) if values.shape[1] else 0.0
        if gap <= CLOSE:
            return Precision(backbone, dtype, f"{dtype}: differs by {gap:.2g} from float32 at most (median token of a layer)")
        why.append(f"{dtype} differs by {gap:.2g} from float32, allowed {CLOSE:g}")
    return Precision(make(dtypes[-1]), dtypes[-1], f"{dtypes[-1]}: {'; '.join(why)}")


def _values(backbone: Backbone, samples: Sequence[Sample]) -> Tensor:
    """[L, T, d] at every layer."""
    sites = [Site(layer) for layer in getattr(backbone, "layers", range(backbone.n_layers + 1))]
    return embed_samples(backbone, samples, sites, Batching(len(samples))).values.float()


def _key(backbone: Backbone) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    about = [backbone.name, backbone.revision, dict(backbone.identity), device, torch.__version__]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _kept(verdict: Path) -> dict[str, str]:
    """An earlier verdict; empty where there is none or the file is damaged."""
    try:
        read = json.loads(verdict.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
