"""What a result's numbers are made of, as columns: every pooled score, and the token counts and ranking of its masks.

With these files every published number can be computed again without a model, and two results can be compared sample by
sample. Written beside the per-sample decisions; read by `recompute.py`. Token scores themselves are not kept (`--log-tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.numerics import Counts, segment_sum
from harness.types import Evaluation, Metric, finite

BINS = 2048
"""Steps that a concept's token ranking is kept in; neighbouring scores share a step where there are more tokens."""


def coded(names: Sequence[str | None], places: Any) -> Any:
    """An arrow column of names[places], each name stored once."""
    import pyarrow as pa

    known = [name for name in names if name is not None]
    at = {name: i for i, name in enumerate(known)}
    code = np.array([-1 if name is None else at[name] for name in names], np.int32)[np.asarray(places)]
    return pa.DictionaryArray.from_arrays(pa.array(code, mask=code < 0), pa.array(known, pa.string()))


def score_columns(
    scores: Mapping[str, Tensor], ids: Mapping[str, Sequence[str]], layers: Sequence[str | None], concepts: Sequence[str]
) -> dict[str, Any]:
    """`scores.parquet`: split, layer, id, concept, score; from pooled scores [L, S, C] per split. A value that is not finite is null."""
    import pyarrow as pa

    splits = list(scores)
    shapes = [scores[split].shape for split in splits]
    grids = [np.indices(shape).reshape(3, -1) for shape in shapes]
    names = [name for split in splits for name in ids[split]]
    before = np.cumsum([0, *(len(ids[split]) for split in splits)])
    values = np.concatenate([scores[split].cpu().numpy().ravel() for split in splits])
    sizes = [grid.shape[1] for grid in grids]
    return {
        "split": coded(splits, np.repeat(np.arange(len(splits)), sizes)),
        "layer": coded(layers, np.concatenate([grid[0] for grid in grids])),
        "id": coded(names, np.concatenate([grid[1] + start for grid, start in zip(grids, before, strict=False)])),
        "concept": coded(concepts, np.concatenate([grid[2] for grid in grids])),
        "score": pa.array(values, mask=~np.isfinite(values)),
    }


def token_count_columns(
    given: Evaluation,
    cutoffs: Tensor,
    detected: Tensor,
    levels: Sequence[float | None],
    ids: Sequence[str],
    concepts: Sequence[str],
) -> dict[str, Any]:
    """`localization.parquet`: level, id, concept, tp, fp, fn over the tokens of each test sample, at the map cutoffs [P, C] of all levels."""
    known, inside = given.truth >= 0, given.truth == 1
    sample = torch.repeat_interleave(torch.arange(len(ids)), given.offsets.diff())
    there, found = detected[sample], []
    positives = segment_sum(inside.double()[None], given.offsets)[0]
    for cutoff in cutoffs:
        marked = (given.scores >= cutoff) & there & known
        tp, every = (segment_sum(cell.double()[None], given.offsets)[0] for cell in (marked & inside, marked))
        found.append(torch.stack([tp, every - tp, positives - tp]))
    counts = torch.stack(found, 1).long().numpy()
    level, i, c = np.indices(counts.shape[1:]).reshape(3, -1)
    columns = dict(zip(("tp", "fp", "fn"), counts.reshape(3, -1), strict=True))
    return {"level": [levels[p] for p in level], "id": coded(ids, i), "concept": coded(concepts, c), **columns}


def map_calibration_columns(
    cutoffs: Tensor, counts: Counts, f1: Tensor, levels: Sequence[float | None], concepts: Sequence[str]
) -> dict[str, Any]:
    """`map_calibration.parquet`: level, concept, cutoff, tp, fp, fn, f1 over the tokens of cal."""
    level, c = np.indices(cutoffs.shape).reshape(2, -1)
    return {
        "level": [levels[p] for p in level],
        "concept": coded(concepts, c),
        "cutoff": [finite(x) for x in cutoffs.flatten().tolist()],
        **{name: count.flatten().long().tolist() for name, count in counts._asdict().items() if name in ("tp", "fp", "fn")},
        "f1": [finite(x) for x in f1.flatten().tolist()],
    }


def ranking_columns(given: Evaluation, concepts: Sequence[str]) -> dict[str, Any]:
    """`token_ranking.parquet`: concept, score, positives, negatives: annotated test tokens in at most 2,048 steps from the highest score down.

    score: the highest of a step. Tokens of equal score share a step, so that with fewer different scores the ranking is exact.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("concept", "score", "positives", "negatives")}
    for c, concept in enumerate(concepts):
        known = given.truth[:, c] >= 0
        scores, positive = given.scores[known, c].nan_to_num(nan=-torch.inf), (given.truth[known, c] == 1).long()
        values, group = torch.unique(-scores, return_inverse=True)
        if len(values) > BINS:
            ends = torch.bincount(group).cumsum(0)
            step = (ends - 1) * BINS // len(group)
            first = torch.unique_consecutive(step, return_counts=True)[1].cumsum(0).roll(1)
            first[0] = 0
            step = torch.unique_consecutive(step, return_inverse=True)[1]
            values, group = values[first], step[group]
        found = torch.zeros(len(values), dtype=torch.int64).index_add_(0, group, positive)
        every = torch.bincount(group, minlength=len(values))
        columns["concept"] += [concept] * len(values)
        columns["score"] += [finite(x) for x in (-values).tolist()]
        columns["positives"] += found.tolist()
        columns["negatives"] += (every - found).tolist()
    return columns


def mean_columns(
    metrics: Mapping[str, Metric], given: Mapping[str, Evaluation], ids: Sequence[str], concepts: Sequence[str]
) -> dict[str, Any]:
    """`sample_values.parquet`: metric, id, concept, value, for metrics that are means over samples (`Metric.mean_of_samples`)."""
    columns: dict[str, list[Any]] = {name: [] for name in ("metric", "id", "concept", "value")}
    for name, metric in metrics.items():
        if metric.kind not in given or not getattr(metric, "mean_of_samples", False):
            continue
        values = metric.compute(given[metric.kind], torch.eye(len(ids)))
        for i, c in values.isfinite().nonzero().tolist():
            for key, value in zip(columns, (name, ids[i], concepts[c], float(values[i, c])), strict=True):
                columns[key].append(value)
    return columns
