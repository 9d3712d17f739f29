"""From a decided method to its result: per-sample scores on disk first, then metrics with intervals, then the result files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness import evidence, results
from harness.bench import Bench, Decided, Parts, asked_splits
from harness.calibration import at_layer, at_level
from harness.localize import Located
from harness.metrics import NO_CUTOFF, NO_VECTOR, Bootstrap, all_rows
from harness.numerics import Counts
from harness.provenance import provenance
from harness.types import Choice, Evaluation, Progress, Result, Score, finite

ABOUT = ("kind", "unit", "range", "chance", "higher_is_better", "version")
"""What a result says of each metric."""


@dataclass(frozen=True)
class Finished:
    """One method after test: all that its result is made of."""

    bench: Bench
    parts: Parts
    decided: Decided
    located: Located | None


def publish(done: Finished, bootstrap: Bootstrap, made: dict[str, Any], progress: Progress) -> Result:
    """Per-sample scores on disk first, then metrics, then the result and its status."""
    bench, method = done.bench, done.parts.method
    task, backbone = bench.task.describe(), describe(bench)
    folder = results.run_folder(bench.spec, method, task, backbone)
    results.write_samples(folder, sample_columns(bench, done.decided))
    for name, columns in evidence_columns(done):
        results.write_columns(folder, name, columns)
    if bench.spec.log_tokens and done.located is not None and done.located.activations is not None:
        results.write_tokens(folder, *token_log(bench, done.decided, done.located))
    with progress(f"intervals of {method.name}", 0, ""):
        scores = score(bench, done.decided, done.located, bootstrap)
    notes = {**bench.task.notes, **bench.notes}
    if done.decided.scorer is not None:
        notes["no answer"] = int(done.decided.test.isnan().sum())
        notes.update(getattr(done.decided.scorer, "notes", {}))
    origin = {
        **provenance(made["started"]),
        "device": bench.device,
        "dtype": bench.dtype,
        "storage": bench.plan.storage,
        "batch size": bench.plan.groups[0].extraction.batching.size if made["samples embedded"] else None,
        "samples embedded": made["samples embedded"],
        "plugins": {**done.parts.plugins, **bench.plugins},
    }
    chosen = choices(bench, done.decided, done.located)
    about = {name: {key: getattr(metric, key) for key in ABOUT} for name, metric in bench.metrics.items()}
    return results.write_result(folder, Result(bench.spec, method, task, backbone, tuple(scores), chosen, notes, origin, about))


def describe(bench: Bench) -> dict[str, Any]:
    """The backbone as a result states it."""
    backbone = bench.backbone
    return {
        "name": backbone.name,
        "revision": backbone.revision,
        "n_layers": backbone.n_layers,
        "width": backbone.width,
        "sites": [site.label for site in bench.sites],
        "normalization": bench.spec.normalization,
        **dict(backbone.identity),
    }


def score(bench: Bench, decided: Decided, located: Located | None, bootstrap: Bootstrap) -> list[Score]:
    """Every metric at the chosen layers and at every fixed layer; localization at the chosen layers."""
    rows = all_rows(bench.metrics, "detection", dict(evaluations(decided, bootstrap.labels)), bootstrap)
    if located is not None:
        for kind, evaluation in of_tokens(bench, located).items():
            rows += all_rows(bench.metrics, kind, {"chosen": evaluation}, bootstrap)
    return rows


def of_tokens(bench: Bench, located: Located) -> dict[str, Evaluation]:
    """Kind of metric -> what it sees of the test tokens: the masks, and the explained samples' curves."""
    offsets = bench.plan.groups[0].open(summaries=False).test.offsets.cpu()
    known = located.cutoff.isfinite().cpu()
    found = {
        "localization": Evaluation(located.map.double().cpu(), located.decisions.cpu(), located.truth.cpu(), offsets, known)
    }
    for name, areas in located.curves.items():
        there = areas.isfinite()
        samples = torch.arange(len(areas) + 1)
        found[name] = Evaluation(areas, there, there.to(torch.int8) * 2 - 1, samples, there.any(0))
    return found


def evaluations(decided: Decided, labels: Tensor) -> Iterator[tuple[str | None, Evaluation]]:
    """(layer, evaluation) of the chosen layers, then of every layer with its own level: the same arrays serve both."""
    offsets = torch.arange(len(labels) + 1)
    truth, test = labels.to(torch.int8), decided.test.double().cpu()
    fixed = at_level(decided.calibrated.cutoffs, decided.chosen.level).cpu()
    layer = decided.chosen.layer.cpu()
    chosen, cutoff = at_layer(test, layer), at_layer(fixed, layer)
    yield (
        "chosen" if decided.layers[0] is not None else None,
        Evaluation(chosen, chosen >= cutoff, truth, offsets, cutoff.isfinite()),
    )
    for i, label in enumerate(decided.layers):
        if label is not None:
            yield label, Evaluation(test[i], test[i] >= fixed[i], truth, offsets, fixed[i].isfinite())


def choices(bench: Bench, decided: Decided, located: Located | None) -> tuple[Choice, ...]:
    """What cal chose, per concept, in words and numbers."""
    levels, made = bench.task.file.levels, []
    cutoff = decided.cutoff().tolist()
    for c, concept in enumerate(bench.task.concepts):
        layer = int(decided.chosen.layer[c])
        known = finite(cutoff[c]) is not None
        one_level = len(decided.calibrated.cutoffs) == 1  # a fixed cutoff has no level
        choice = Choice(
            concept,
            decided.layers[layer] if known else None,
            levels[int(decided.chosen.level[layer, c])] if known and not one_level else None,
            finite(cutoff[c]),
            finite(float(decided.chosen.best_f1[layer, c])),
            unit=unit(decided, layer, c) if known else None,
            reason=None
            if known
            else NO_VECTOR
            if at_layer(decided.cal, decided.chosen.layer)[:, c].isnan().any()
            else NO_CUTOFF,
        )
        if located is not None and finite(float(located.cutoff[c])) is not None:
            level = int(located.level[c])
            choice = replace(choice, map_level=levels[level] if level >= 0 else None, map_cutoff=float(located.cutoff[c]))
            choice = replace(choice, map_cal_f1=finite(float(located.cal_f1[c])))
        made.append(choice)
    return tuple(made)


def unit(decided: Decided, layer: int, concept: int) -> str | None:
    """The name of the unit that was matched to a concept at a layer; None for a supervised method."""
    found = decided.match(layer)
    return None if found is None else found[0].name(found[1], concept)


def evidence_columns(done: Finished) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, columns) of all that the result's numbers are computed from but the per-sample decisions."""
    bench, decided, located = done.bench, done.decided, done.located
    concepts, test = bench.task.concepts, bench.task.splits["test"].ids
    yield "calibration.parquet", calibration_columns(bench, decided)
    given = {"cal": decided.cal, "test": decided.test}
    asked = ("cal", "test") if decided.scorer is None else asked_splits(decided.scorer)
    ids = {split: bench.task.splits[split].ids for split in asked}
    scores = {split: given[split] for split in asked}
    yield "scores.parquet", evidence.score_columns(scores, ids, decided.layers, concepts)
    if decided.matches:
        yield "match.parquet", match_columns(bench, decided)
    if located is None:
        return
    kinds, levels = of_tokens(bench, located), bench.task.file.levels if len(located.cutoffs) > 1 else (None,)
    tokens, detected = kinds["localization"], decided.detected(decided.test).cpu()
    counts, cutoffs = Counts(*located.counts.cpu()), located.cutoffs.cpu()
    yield (
        "localization.parquet",
        evidence.token_count_columns(tokens, located.cutoffs.cpu(), detected, levels, test, concepts),
    )
    yield "map_calibration.parquet", evidence.map_calibration_columns(cutoffs, counts, located.f1.cpu(), levels, concepts)
    yield "token_ranking.parquet", evidence.ranking_columns(tokens, concepts)
    yield "sample_values.parquet", evidence.mean_columns(bench.metrics, kinds, test, concepts)


def match_columns(bench: Bench, decided: Decided) -> dict[str, Sequence[Any]]:
    """The columns of `match.parquet`: the unit of every concept at every layer, and the cal F1 it was matched by."""
    places = [(i, c) for i in range(len(decided.layers)) for c in range(len(bench.task.concepts))]
    f1 = [finite(float(found[0].f1[found[1], c])) for i, c in places if (found := decided.match(i)) is not None]
    return {
        "layer": [decided.layers[i] for i, _ in places],
        "concept": [bench.task.concepts[c] for _, c in places],
        "unit": [unit(decided, i, c) for i, c in places],
        "cal_f1": f1,
    }


def sample_columns(bench: Bench, decided: Decided) -> dict[str, Sequence[Any]]:
    """The columns of `per_sample.parquet`: every cal and test sample's score, decision and label per concept, at the chosen layer.

    A split that a scorer was not asked about has no rows.
    """
    columns: dict[str, Any] = {key: [] for key in ("split", "id", "concept", "layer", "score", "detected", "label")}
    layers = [decided.layers[int(i)] for i in decided.chosen.layer]
    given = {"cal": decided.cal, "test": decided.test}
    for name in ("cal", "test") if decided.scorer is None else asked_splits(decided.scorer):
        split, scores = bench.task.splits[name], given[name]
        count = len(layers)
        columns["split"] += [name] * len(split) * count
        columns["id"] += [i for i in split.ids for _ in range(count)]
        columns["concept"] += list(bench.task.concepts) * len(split)
        columns["layer"] += layers * len(split)
        columns["score"] += [finite(x) for x in at_layer(scores, decided.chosen.layer).double().flatten().tolist()]
        columns["detected"] += decided.detected(scores).flatten().tolist()
        columns["label"] += split.labels.flatten().tolist()
    return columns


def calibration_columns(bench: Bench, decided: Decided) -> dict[str, Sequence[Any]]:
    """The columns of `calibration.parquet`: cutoff and cal counts for every (level, layer, concept)."""
    cutoffs, counts = decided.calibrated.cutoffs, decided.calibrated.counts
    shape = cutoffs.shape
    levels = list(bench.task.file.levels) if shape[0] > 1 else [None]
    return {
        "level": [level for level in levels for _ in range(shape[1] * shape[2])],
        "layer": [layer for _ in levels for layer in decided.layers for _ in range(shape[2])],
        "concept": list(bench.task.concepts) * (shape[0] * shape[1]),
        "cutoff": [finite(x) for x in cutoffs.flatten().tolist()],
        **{name: counts._asdict()[name].flatten().tolist() for name in ("tp", "fp", "fn")},
        "f1": [finite(x) for x in decided.calibrated.f1.flatten().tolist()],
    }


def token_log(bench: Bench, decided: Decided, located: Located) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The test tokens' activations and maps at each concept's chosen layer, with what a picture of them needs."""
    tokens = bench.plan.groups[0].open(summaries=False).test
    tau = at_layer(at_level(decided.token_cutoffs, decided.chosen.level), decided.chosen.layer)  # type: ignore[arg-type]
    tensors = {
        "activations": located.activations.cpu(),  # type: ignore[union-attr]
        "map": located.map.cpu(),
        "mask": located.decisions.to(torch.uint8).cpu(),
        "truth": tokens.truth.cpu(),
        "offsets": tokens.offsets.cpu(),
        "regions": tokens.regions,
        "views": torch.tensor(tokens.views, dtype=torch.int64).reshape(-1, 6),
        "detected": decided.detected(decided.test).to(torch.uint8).cpu(),
    }
    about = {
        "ids": list(tokens.ids),
        "concepts": list(bench.task.concepts),
        "super_activator_cutoffs": [finite(x) for x in tau.tolist()],
        "map_cutoffs": [finite(x) for x in located.cutoff.tolist()],
        "layers": [decided.layers[int(i)] for i in decided.chosen.layer],
    }
    return tensors, about


def lost(bench: Bench) -> dict[str, Any]:
    """Per split and concept: positives that stay in detection but left token calibration and localization, and samples without tokens."""
    found: dict[str, Any] = {}
    if all(parts.concepts is None for parts in bench.parts):
        return found
    tokens = bench.plan.groups[0].open(summaries=False)
    for split in (tokens.train, tokens.cal, tokens.test):
        empty = [name for name, n in zip(split.ids, split.offsets.diff().tolist(), strict=True) if n == 0]
        if empty:
            found[f"without tokens in {split.name}, scored -inf"] = {"count": len(empty), "ids": empty[:10]}
        gone = split.lost()
        if gone:
            found[f"annotated positives without a token in {split.name}, detection only"] = gone
    return found
