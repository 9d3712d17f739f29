"""`verify --rerun K`: K random test samples of a result scored again from the raw data, and held against scores.parquet.

The method is fitted again on train (and cal, where units are matched), and no test sample but the K is embedded. Another machine or
batch size rounds differently; the tolerance says how far a score may be off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.api import HarnessError, open_result, progress, rescore

TOLERANCE = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.1}
"""How far a score may be off, in standard deviations of the concept's published test scores at that layer."""


def rerun(row: dict[str, Any], registry: Any, count: int, seed: int, cache_dir: Path | None) -> None:
    """Adds what was found to a verdict; raises where data or weights are not those of the result."""
    result = open_result(Path(row["bundle"]))
    drawn = np.random.default_rng(seed).choice(len(result.ids), min(count, len(result.ids)), replace=False)
    place = {name: i for i, name in enumerate(result.ids)}
    ids = [result.ids[i] for i in sorted(drawn)]
    cache = {} if cache_dir is None else {"cache_dir": cache_dir}
    with progress() as track:
        again = rescore(result.folder, registry, track, ids, **cache).double().cpu().numpy()
    published = result.scores["test"]
    if again.shape != (published.shape[0], len(ids), published.shape[2]):
        raise HarnessError(
            f"the task gives {again.shape[1]} of the {len(ids)} samples drawn from {result.folder}; the data changed; run it again"
        )
    origin = result.read["provenance"]
    kinds = {str(origin.get("dtype")), str(origin.get("storage"))}
    share = max(TOLERANCE.get(kind, 0.0) for kind in {*kinds, "float32"})
    with np.errstate(invalid="ignore"):
        spread = np.nan_to_num(np.nanstd(np.where(np.isfinite(published), published, np.nan), axis=1, keepdims=True))
    mine = published[:, [place[name] for name in ids]]
    again = np.where(np.isfinite(again), again, np.nan)
    off = np.abs(again - mine)
    wrong = (off > share * spread + 1e-6) | (np.isnan(again) != np.isnan(mine))
    where = f"scores.parquet of {len(ids)} test samples"
    found = {"ids": ids, "seed": seed, "scores": int(mine.size), "beyond": int(wrong.sum()), "tolerance": share}
    known = off[~np.isnan(off)]
    found["largest"] = float(known.max()) if len(known) else 0.0
    if wrong.any():
        layer, i, c = (int(x[0]) for x in np.nonzero(wrong))
        site = "" if result.layers[layer] is None else f", layer {result.layers[layer]}"
        values = [None if np.isnan(x) else float(x) for x in (mine[layer, i, c], again[layer, i, c])]
        shown = ["null" if x is None else f"{x:.6g}" for x in values]
        row["verdict"] = "does not follow"
        row["cause"] = (
            f"scores.parquet: score of test sample {ids[i]}, {result.concepts[c]}{site}: published {shown[0]}, made again {shown[1]}; "
            f"{found['beyond']} of {found['scores']} scores are beyond the tolerance"
        )
    found["said"] = (
        f"made again from raw data: {found['scores']:,} scores, {where} (seed {seed}); {found['beyond']} beyond {share:g} standard "
        f"deviations; the largest difference is {found['largest']:.2g}"
    )
    row["rerun"] = found
