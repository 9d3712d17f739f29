"""What cal chose and what the others would have given, from result files alone: sparsity, layers, levels (method section 9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.api import Bootstrap, Evaluation, Metric, scores_of, unknown
from harness_analysis.pictures import layer_pictures, level_pictures, sparsity_pictures
from harness_analysis.report import Report, span
from harness_analysis.sources import Group, NothingError, Source

AVERAGES = ("weighted", "macro")
LOOK = "a look at test: the level is chosen on cal, never here"


def levels_of(source: Source) -> list[float]:
    """The sparsity levels that cal was swept over, ascending; none for a fixed cutoff or a ceiling."""
    return sorted({float(level) for level in source.table("calibration")["level"] if not np.isnan(level)})


def with_levels(group: Group) -> tuple[list[Source], list[str]]:
    """(results whose level was chosen on cal, why the others are left out)."""
    found = [source for source in group.sources if levels_of(source)]
    if not found:
        raise NothingError(
            f"no result of {group.name} has sparsity levels; choose results whose cutoffs were calibrated on cal"
        )
    return found, [f"{source.label}: no level was chosen on cal" for source in group.sources if source not in found]


def sparsity(group: Group) -> Report:
    """Per method the number of concepts that prefer each level: at the chosen layers, and at every layer by itself."""
    sources, notes = with_levels(group)
    rows = [{**source.named, **row} for source in sources for row in preferred(source)]
    levels = sorted({row["level"] for row in rows if row["level"] is not None})
    of_method = {source.run_id: source.label for source in sources}
    chosen = {(row["run_id"], row["level"]): row["concepts"] for row in rows if row["layer"] == "chosen"}
    shown = [[label, *(chosen.get((run_id, level), 0) for level in levels)] for run_id, label in of_method.items()]
    about = {
        "definition": {
            "level": "the fraction of in-concept cal tokens (some detectors: positive cal samples) at or above the cutoff",
            "concepts": "how many concepts have their best cal F1 at this level; ties take the smallest; level null = no cutoff",
            "layer": "chosen = each concept at the layer cal chose; else all concepts at that layer",
        }
    }
    headers = ["method", *(f"{100 * level:g} %" for level in levels)]
    title = "concepts per sparsity level, at the chosen layers"
    return Report(
        group,
        title,
        {"sparsity": rows},
        about,
        (headers, shown),
        lambda: sparsity_pictures(group, sources, rows, levels),
        notes,
    )


def preferred(source: Source) -> Iterator[dict[str, Any]]:
    """Rows (layer, level, concepts) of one result; a level that no concept prefers has 0."""
    levels: list[float | None] = [*levels_of(source), None]
    chosen = [choice.level for choice in source.choices.values()]
    for level in levels:
        yield {"layer": "chosen", "level": level, "concepts": chosen.count(level)}
    table = source.table("calibration")
    for layer in dict.fromkeys(layer for layer in table["layer"] if layer is not None):
        best = [_best(table, layer, concept) for concept in source.choices]
        for level in levels:
            yield {"layer": layer, "level": level, "concepts": best.count(level)}


def _best(table: dict[str, Any], layer: str, concept: str) -> float | None:
    """The level with the best cal F1 at a layer, the smallest among equals."""
    mine = (table["layer"] == layer) & (table["concept"] == concept)
    levels, f1 = table["level"][mine], table["f1"][mine]
    order = np.argsort(levels)
    levels, f1 = levels[order], f1[order]
    return None if np.isnan(f1).all() else float(levels[np.nanargmax(f1)])


def layers(group: Group, metric: str) -> Report:
    """The rows of a detection metric at every fixed layer and at the chosen ones, per method."""
    sources, notes = group.layered()
    there = {score.metric for source in sources for score in scores_of(source.read) if score.layer in group.layers}
    if metric not in there:
        raise unknown("metric", metric, there, f"the fixed-layer rows of {group.name}")
    rows = [
        {
            **source.named,
            "layer": score.layer,
            "concept": score.concept,
            "value": score.value,
            "value_low": score.ci_low,
            "value_high": score.ci_high,
            "n": score.n,
        }
        for source in sources
        for score in scores_of(source.read)
        if score.metric == metric and score.layer is not None
    ]
    few = [
        group.layers[i] for i in np.unique(np.linspace(0, len(group.layers) - 1, min(len(group.layers), 5)).round().astype(int))
    ]
    at = {(row["run_id"], row["layer"], row["concept"]): row for row in rows}
    shown = [
        [
            source.label,
            *(row["value"] if (row := at.get((source.run_id, layer, "weighted"))) else None for layer in few),
            span(at[source.run_id, "chosen", "weighted"], "value"),
        ]
        for source in sources
    ]
    about = {
        "definition": {
            "value": f"{metric} on test; at a fixed layer every concept has the level that cal chose at that layer",
            "layer": "a site, or chosen = per concept, on cal",
            "concept": "a concept, or macro (plain mean), or weighted (by positive test samples)",
            "value_low, value_high": "95 %: two-level bootstrap for averages, samples alone for a concept",
        },
        "options": {"metric": metric},
    }
    headers = ["method", *(f"layer {layer}" for layer in few), "chosen on cal"]
    title = f"{metric} on test by layer, weighted"
    return Report(
        group,
        title,
        {"layers": rows},
        about,
        (headers, shown),
        lambda: layer_pictures(group, sources, rows, metric),
        notes,
    )


def levels(group: Group, registry: Any) -> Report:
    """Per method the test F1 at every level, each concept at its chosen layer."""
    sources, notes = with_levels(group)
    metric = registry.create("metrics", "f1")
    rows = [{**source.named, **row} for source in sources for row in looked_at(source, group, metric)]
    every = sorted({row["level"] for row in rows if row["level"] is not None})
    at = {(row["run_id"], row["level"]): row for row in rows if row["concept"] == "weighted"}
    shown = [
        [
            source.label,
            *(at[source.run_id, level]["f1"] if (source.run_id, level) in at else None for level in every),
            span(at[source.run_id, None], "f1"),
        ]
        for source in sources
    ]
    about = {
        "warning": LOOK,
        "definition": {
            "f1": "test F1 of samples with a score at or above the cutoff that cal gave the level, at the concept's chosen layer",
            "chosen": "the level that cal chose; in the averages, level null = every concept at its own level of cal",
            "concept": "a concept, or macro (plain mean), or weighted (by positive test samples), all concepts at the same level",
            "f1_low, f1_high": "95 %: two-level bootstrap for averages, samples alone for a concept",
        },
    }
    headers = ["method", *(f"{100 * level:g} %" for level in every), "level of cal"]
    return Report(
        group,
        f"weighted test F1 by level at the chosen layers; {LOOK}",
        {"levels": rows},
        about,
        (headers, shown),
        lambda: level_pictures(group, sources, rows, every),
        notes,
    )


def looked_at(source: Source, group: Group, metric: Metric) -> Iterator[dict[str, Any]]:
    """Rows (level, concept) of one result: the F1 of every level, and once more of cal's choice for the averages."""
    import torch

    from harness.api import score_rows

    concepts, choices = group.concepts, source.choices
    scores, labels, layers = test_scores(source, concepts)
    cutoffs = cutoffs_at(source, concepts, layers)
    spec = source.read["config"]
    bootstrap = Bootstrap(torch.from_numpy(labels), concepts, spec["bootstrap"], spec["seed"])
    truth, offsets = torch.from_numpy(labels).to(torch.int8), torch.arange(len(labels) + 1)
    own = np.array(
        [cutoffs[level][c] if (level := choices[name].level) is not None else np.nan for c, name in enumerate(concepts)]
    )
    for level, cutoff in [*cutoffs.items(), (None, own)]:
        with np.errstate(invalid="ignore"):
            decisions = torch.from_numpy(scores >= cutoff)
        evaluation = Evaluation(torch.from_numpy(scores), decisions, truth, offsets, torch.from_numpy(np.isfinite(cutoff)))
        for score in score_rows("f1", metric, evaluation, None, bootstrap):
            if level is None and score.concept not in AVERAGES:
                continue
            c = concepts.index(score.concept) if score.concept in concepts else None
            yield {
                "level": level,
                "concept": score.concept,
                "layer": None if c is None else layers[c],
                "cutoff": None if c is None or np.isnan(cutoff[c]) else float(cutoff[c]),
                "chosen": level is None or (c is not None and choices[score.concept].level == level),
                "f1": score.value,
                "f1_low": score.ci_low,
                "f1_high": score.ci_high,
                "n": score.n,
            }


def test_scores(source: Source, concepts: Sequence[str]) -> tuple[Any, Any, list[str | None]]:
    """(scores [S, C] float64, labels [S, C] bool, layer per concept) of test, from `per_sample.parquet`; NaN = not finite."""
    table = source.table("per_sample")
    test = table["split"] == "test"
    columns = {concept: test & (table["concept"] == concept) for concept in concepts}
    scores = np.stack([table["score"][mine] for mine in columns.values()], 1)
    labels = np.stack([table["label"][mine] for mine in columns.values()], 1)
    return scores, labels, [table["layer"][mine][0] for mine in columns.values()]


def cutoffs_at(source: Source, concepts: Sequence[str], layers: Sequence[str | None]) -> dict[float, Any]:
    """Level -> cutoffs [C] float64 at each concept's layer, from `calibration.parquet`; NaN = none."""
    table = source.table("calibration")
    found = {level: np.full(len(concepts), np.nan) for level in levels_of(source)}
    place = {(layer, concept): c for c, (layer, concept) in enumerate(zip(layers, concepts, strict=True))}
    for level, layer, concept, cutoff in zip(*(table[key] for key in ("level", "layer", "concept", "cutoff")), strict=True):
        if (layer, concept) in place:
            found[float(level)][place[layer, concept]] = cutoff
    return found
