"""`verify`: every number of a result again from its files, in the order in which a run makes them; without torch, data or a model.

The rules are those of docs/method.md; the arithmetic is the core's `recompute` and `statistics`. What the files cannot give is counted
in `Ledger.left`: the intervals of token average precision, and metrics that a plugin brings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from harness.api import (
    Evidence,
    HarnessError,
    average,
    average_intervals,
    detection,
    drawn,
    finite,
    interval,
    replicates,
    run_id_of,
)
from harness_trust.bundle import (
    Finding,
    Ledger,
    Mismatch,
    check_columns,
    check_manifest,
    check_shape,
    readable,
)

Array = NDArray[Any]

VERSIONS = {
    "f1": ("detection", 1),
    "precision": ("detection", 1),
    "recall": ("detection", 1),
    "average_precision": ("detection", 1),
    "auroc": ("detection", 1),
    "token_f1": ("localization", 1),
    "token_iou": ("localization", 1),
    "token_average_precision": ("localization", 1),
    "pointing_game": ("localization", 1),
    "insertion_auc": ("insertion", 1),
    "deletion_auc": ("deletion", 1),
}
"""The metrics that are recomputed here, with the kind and version that is meant."""
RANKED = ("average_precision", "auroc")
MEANS = ("pointing_game", "insertion_auc", "deletion_auc")
EXACT = 20_000_000
"""Weightings x samples up to which the ends of a ranked metric's interval are exact; beyond, a run bins the ranking."""
BINS = 2048
NO_VECTOR = "no vector: train has no token to fit the concept on"
NO_CUTOFF = "no cutoff: cal has no positive to calibrate on"
RESULT = "result.json"
TENSORS = ("activations", "map", "mask", "truth", "detected", "offsets", "regions", "views")


@dataclass(frozen=True)
class Verdict:
    """What verifying a bundle found: None = everything follows; `manifest` whether there was one."""

    folder: Path
    finding: Finding | None
    ledger: Ledger
    manifest: bool = False
    read: Mapping[str, Any] | None = None


def verify(folder: Path) -> Verdict:
    """The first thing that does not follow, if any; raises where the bundle cannot be read."""
    read, ledger, manifest = readable(folder), Ledger(), False
    try:
        check_shape(read, ledger)
        check_columns(folder, ledger)
        try:
            Checks(Evidence(folder, read), ledger).all()
        except HarnessError as error:  # the tables are readable, and do not fit each other
            what, _, needed = str(error).partition("; ")
            raise Mismatch(Finding(folder.name, "", what, needed)) from error
        manifest = check_manifest(folder, ledger)
    except Mismatch as found:
        return Verdict(folder, found.finding, ledger, manifest, read)
    return Verdict(folder, None, ledger, manifest, read)


class Checks:
    """The checks of one result."""

    def __init__(self, result: Evidence, ledger: Ledger) -> None:
        self.result, self.read, self.ledger = result, result.read, ledger
        self.concepts, self.layers = result.concepts, result.layers

    def all(self) -> None:
        """In the order of the pipe: what was run, samples, calibration, choices, decisions, masks, metrics."""
        self.identity()
        self.samples()
        self.calibration()
        self.choices()
        self.decisions()
        if self.result.localized:
            self.map_calibration()
            self.masks()
            self.ranking()
        self.sample_values()
        self.scores()
        self.tokens()

    # --- what was run

    def identity(self) -> None:
        """The options say the same wherever they stand, and give the run id."""
        read, same = self.read, self.ledger.same
        config, method = read["config"], read["method"]
        written = yaml.safe_load((self.result.folder / "config.yaml").read_text(encoding="utf-8"))
        self.ledger.holds("config.yaml", "", isinstance(written, dict), written, "the options of the run")
        for key in dict.fromkeys([*config, *written]):
            same("config.yaml", str(key), written.get(key), config.get(key))
        if "method" in config:
            same(RESULT, "config.method", config["method"], [method["name"]])
        else:
            for key, part in {"concept_method": "concepts", "detector": "detector", "scorer": "scorer"}.items():
                same(RESULT, f"config.{key}", config.get(key), method[part])
        same(RESULT, "task.limit", read["task"].get("limit"), config.get("limit"))
        same(RESULT, "backbone.normalization", read["backbone"]["normalization"], config.get("normalization"))
        same(RESULT, "status", read["status"], "complete")
        same(RESULT, "run_id", read["run_id"], run_id_of(read))

    # --- samples

    def samples(self) -> None:
        """Ids and labels give the counts of the task."""
        task, scored = self.read["task"], set(self.result.samples)
        needed = {"test"} if self.read["method"]["scorer"] and "cal" not in scored else {"cal", "test"}
        self.ledger.same("per_sample.parquet", "splits", sorted(scored), sorted(needed))
        self.ledger.same("scores.parquet", "splits", sorted(self.result.table("scores.parquet")["split"][1]), sorted(needed))
        for split in sorted(scored):
            ids, labels = self.result.samples[split][:2]
            self.ledger.same(RESULT, f"task.samples.{split}", task["samples"][split], len(ids))
            for c, concept in enumerate(self.concepts):
                self.ledger.same(
                    RESULT, f"task.positives.{concept}.{split}", task["positives"][concept][split], int(labels[:, c].sum())
                )
        for concept in self.concepts:
            counts = task["positives"][concept]
            few = next((split for split in counts if not 0 <= counts[split] <= task["samples"][split]), None)
            self.ledger.holds(RESULT, f"task.positives.{concept}.{few}", few is None, counts, "no more than there are samples")

    # --- calibration

    @property
    def ceiling(self) -> bool:
        """Whether cutoffs were picked on test."""
        return bool(self.read["method"]["choose_on"] == "test")

    def calibration(self) -> None:
        """Counts and F1 at every level, layer and concept, from the pooled scores of cal (of test, for a ceiling)."""
        name, found = "calibration.parquet", self.result.calibration
        self._levels(name, found.levels, found.cutoffs)
        split = "test" if self.ceiling else "cal"
        if split not in self.result.scores:
            labels = [self.read["task"]["positives"][concept]["cal"] for concept in self.concepts]
            counts = np.zeros(found.counts.shape)
            counts[2] = labels
            f1 = np.full(found.f1.shape, np.nan)
        else:
            scores, labels = self.result.scores[split], self.result.samples[split][1]
            counts = np.stack([_counts(scores >= cutoff[:, None], labels) for cutoff in found.cutoffs], 1)
            f1 = np.where(np.isnan(found.cutoffs), np.nan, _f1(counts))
            self._cutoffs(scores, labels)
        for k, key in enumerate(("tp", "fp", "fn")):
            self.ledger.cells(name, self._cell(key, found.levels, True), found.counts[k], counts[k])
        self.ledger.cells(name, self._cell("f1", found.levels, True), found.f1, f1)

    def _cutoffs(self, scores: Array, labels: Array) -> None:
        """Where a cutoff follows from pooled scores: a ceiling's, and a scorer's."""
        found, expected = self.result.calibration, None
        if self.ceiling:
            expected = _best_cutoffs(scores, labels)
        elif self.read["method"]["scorer"] and len(found.levels) == 1:
            expected = np.full(found.cutoffs.shape, 0.5)
        elif self.read["method"]["scorer"]:
            expected = _tail_cutoffs(scores, labels, found.levels)
        if expected is not None:
            self.ledger.cells("calibration.parquet", self._cell("cutoff", found.levels, True), found.cutoffs, expected)

    def _levels(self, name: str, levels: tuple[float | None, ...], cutoffs: Array) -> None:
        """Levels are shares; a concept has a cutoff at every level or at none; a higher level has no higher cutoff."""
        good = levels == (None,) or all(x is not None and 0 < x <= 1 for x in levels)
        self.ledger.holds(name, "level", good, levels, "shares above 0 and at most 1, or null")
        known = np.isfinite(cutoffs)
        layered = cutoffs.ndim == 3
        whole = np.broadcast_to(known.any(0), known.shape)
        self.ledger.cells(name, self._cell("cutoff (is there)", levels, layered), known, whole)
        rise = np.diff(np.where(known, cutoffs, 0.0), axis=0)
        room = 1e-9 * (1 + np.abs(np.where(known, cutoffs, 0.0))[1:])
        wrong = np.argwhere(rise > room)
        if len(wrong):
            at = (int(wrong[0][0]) + 1, *map(int, wrong[0][1:]))
            where = self._cell("cutoff", levels, layered)(at)
            self.ledger.holds(name, where, False, float(cutoffs[at]), f"at most {cutoffs[(at[0] - 1, *at[1:])]:.12g}")

    def _cell(self, key: str, levels: tuple[float | None, ...], layered: bool) -> Any:
        def where(at: tuple[int, ...]) -> str:
            layer = f", layer {self.layers[at[1]]}" if layered and self.layers[at[1]] is not None else ""
            level = "" if levels[at[0]] is None else f", level {levels[at[0]]:g}"
            return f"{key} of {self.concepts[at[-1]]}{layer}{level}"

        return where

    def choices(self) -> None:
        """Level and layer are the best cal F1, the smallest level and the earliest layer among equals."""
        result, given = self.result, self.read["choices"]
        self.ledger.same(RESULT, "concepts of choices", [row["concept"] for row in given], self.concepts)
        found = result.calibration
        level = _first_best(found.f1)
        best = np.take_along_axis(found.f1, level[None], 0)[0]
        for c, row in enumerate(given):
            layer = int(result.layer[c])
            cutoff = finite(float(result.cutoffs[layer, c]))
            expected = {
                "layer": self.layers[layer] if cutoff is not None else None,
                "level": found.levels[int(level[layer, c])] if cutoff is not None else None,
                "cutoff": cutoff,
                "cal_f1": finite(float(best[layer, c])),
                **self._map_choice(c),
                "unit": self._units.get((self.layers[layer], row["concept"])) if cutoff is not None else None,
            }
            for key, value in expected.items():
                self.ledger.same(RESULT, f"choices[{row['concept']}].{key}", row[key], value)
            allowed = [None] if cutoff is not None else self._no_cutoff("cal", layer, c)
            self._one_of(f"choices[{row['concept']}].reason", row["reason"], allowed)

    def _map_choice(self, c: int) -> dict[str, Any]:
        nothing = {"map_level": None, "map_cutoff": None, "map_cal_f1": None}
        if not self.result.localized or not self.result.has_map[c]:
            return nothing
        found, p = self.result.map_calibration, int(self.result.map_level[c])
        return {
            "map_level": found.levels[p],
            "map_cutoff": finite(float(found.cutoffs[p, c])),
            "map_cal_f1": finite(float(found.f1[p, c])),
        }

    def _no_cutoff(self, split: str, layer: int, c: int) -> list[str | None]:
        """A score that is not finite is null in the files, be it NaN (no vector) or -inf (no tokens)."""
        scores = self.result.scores.get(split)
        unknown = scores is None or bool(np.isnan(scores[layer, :, c]).any())
        return [NO_VECTOR, NO_CUTOFF] if unknown else [NO_CUTOFF]

    def _one_of(self, where: str, published: Any, allowed: list[str | None]) -> None:
        needed = " or ".join("null" if reason is None else reason for reason in allowed)
        self.ledger.holds(RESULT, where, published in allowed, published, needed)

    @cached_property
    def _units(self) -> dict[tuple[str | None, str], str | None]:
        """(layer, concept) -> the matched unit; empty where units have names."""
        if not (self.result.folder / "match.parquet").is_file():
            return {}
        table = self.result.table("match.parquet")
        layers, concepts, units = (
            [names[i] for i in places] for places, names in map(_words, (table["layer"], table["concept"], table["unit"]))
        )
        found = dict(zip(zip(layers, concepts, strict=True), units, strict=True))
        every = {(layer, concept) for layer in self.layers for concept in self.concepts}
        self.ledger.holds(
            "match.parquet",
            "rows",
            len(layers) == len(every) and found.keys() == every,
            len(layers),
            "one row per layer and concept",
        )
        return found

    def decisions(self) -> None:
        """per_sample.parquet holds the score at the chosen layer, and whether it reaches the cutoff."""
        result, name = self.result, "per_sample.parquet"
        table = result.table(name)
        layers = dict(zip(self.concepts, (self.layers[i] for i in result.layer), strict=True))
        (places, named), (of, concepts) = _words(table["layer"]), _words(table["concept"])
        code = {layer: i for i, layer in enumerate(named)}
        expected = np.array([code.get(layers[concept], -1) for concept in concepts])[of]
        wrong = np.flatnonzero(places != expected)
        if len(wrong):
            row = int(wrong[0])
            concept = concepts[of[row]]
            self.ledger.same(name, f"layer in row {row} ({concept})", named[places[row]], layers[concept])
        cutoff = np.take_along_axis(result.cutoffs, result.layer[None], 0)[0]
        for split, (ids, _, detected, scores) in result.samples.items():
            chosen = np.take_along_axis(result.scores[split], result.layer[None, None], 0)[0]
            where = self._sample(split, ids)
            self.ledger.cells(name, lambda at, w=where: f"score of {w(at)}", scores, chosen)
            self.ledger.cells(name, lambda at, w=where: f"detected of {w(at)}", detected, chosen >= cutoff)

    def _sample(self, split: str, ids: list[str]) -> Any:
        return lambda at: f"{split} sample {ids[at[-2]]}, {self.concepts[at[-1]]}"

    # --- masks

    def map_calibration(self) -> None:
        """Cal's token F1 follows from its counts; counts grow as cutoffs fall; a null F1 is a level that was not allowed."""
        name, found = "map_calibration.parquet", self.result.map_calibration
        self._levels(name, found.levels, found.cutoffs)
        cell = self._cell
        if found.levels == (None,):
            self.ledger.cells(name, cell("f1", found.levels, False), found.f1, np.full(found.f1.shape, np.nan))
            return
        tp, fp, fn = found.counts
        self.ledger.cells(name, cell("tp + fn", found.levels, False), tp + fn, np.broadcast_to((tp + fn)[:1], tp.shape))
        for key, count in (("tp", tp), ("fp", fp)):
            self.ledger.cells(name, cell(key, found.levels, False), count, np.maximum.accumulate(count, 0))
        f1 = np.where(np.isnan(found.cutoffs), np.nan, _f1(found.counts))
        chosen = np.take_along_axis(_first_best(self.result.calibration.f1), self.result.layer[None], 0)[0]
        below = np.arange(len(f1))[:, None] < chosen
        limited = np.where(below & (len(f1) == len(self.result.calibration.levels)), np.nan, f1)
        for c in range(len(self.concepts)):
            expected = f1 if np.array_equal(np.isnan(found.f1[:, c]), np.isnan(f1[:, c])) else limited
            self.ledger.cells(name, lambda at, c=c: cell("f1", found.levels, False)((at[0], c)), found.f1[:, c], expected[:, c])

    def masks(self) -> None:
        """Token counts: no mask in a sample that is not detected; the same positives at every level; counts grow as cutoffs fall."""
        name, counts = "localization.parquet", self.result.token_counts
        levels, ids = self.result.map_calibration.levels, self.result.ids
        tp, fp, fn = counts

        def where(key: str) -> Any:
            return lambda at: (
                f"{key} of {self._sample('test', ids)(at)}" + ("" if levels[at[0]] is None else f", level {levels[at[0]]:g}")
            )

        detected = self.result.at("chosen")[1]
        for key, count in (("tp", tp), ("fp", fp)):
            self.ledger.cells(name, where(key), count, np.maximum.accumulate(np.where(detected, count, 0.0), 0))
        self.ledger.cells(name, where("tp + fn"), tp + fn, np.broadcast_to((tp + fn)[:1], tp.shape))

    @cached_property
    def _steps(self) -> list[tuple[Array, Array, Array]]:
        """Per concept (score, positives, negatives) of every step of the token ranking, from the highest score down."""
        table = self.result.table("token_ranking.parquet")
        places, names = _words(table["concept"])
        for name in names:
            self.ledger.holds("token_ranking.parquet", "concept", name in self.concepts, name, "a concept of the result")
        code = {name: i for i, name in enumerate(names)}
        rows = [places == code.get(concept, -1) for concept in self.concepts]
        return [tuple(np.asarray(table[key], float)[mine] for key in ("score", "positives", "negatives")) for mine in rows]  # type: ignore[misc]

    def ranking(self) -> None:
        """The ranked tokens are those of the masks: the same positives, and enough above every cutoff."""
        name, cutoffs = "token_ranking.parquet", self.result.map_calibration.cutoffs
        tp, fp, fn = self.result.token_counts.sum(2)
        for c, concept in enumerate(self.concepts):
            score, positives, negatives = self._steps[c]
            order = np.where(np.isnan(score), -np.inf, score)
            fall = bool((np.diff(order) < 0).all()) and bool((positives + negatives > 0).all())
            self.ledger.holds(name, f"score of {concept}", fall, "steps that do not fall or are empty", "steps that fall")
            self.ledger.same(name, f"sum of positives of {concept}", float(positives.sum()), float(tp[0, c] + fn[0, c]))
            for p, cutoff in enumerate(cutoffs[:, c]):
                if np.isnan(cutoff):
                    continue
                for key, count, of in (("tp", tp, positives), ("fp", fp, negatives)):
                    most = float(of[order >= cutoff].sum())
                    said = f"at most {most:g}, the ranked tokens at or above the cutoff"
                    self.ledger.holds(
                        "localization.parquet", f"sum of {key} of {concept}", count[p, c] <= most, float(count[p, c]), said
                    )

    def sample_values(self) -> None:
        """The pointing game has a value, 0 or 1, for every sample with a token in the concept, and for no other."""
        if not self.result.localized:
            return
        name = "sample_values.parquet"
        for metric, values in self.result.sample_values.items():
            self.ledger.holds(name, "metric", metric in self.read["metrics"], metric, "a metric of the result")
            if metric == "pointing_game":
                there = self.result.token_counts[0, 0] + self.result.token_counts[2, 0] > 0
                where = self._sample("test", self.result.ids)
                self.ledger.cells(name, lambda at, w=where: f"pointing_game of {w(at)}, is there", np.isfinite(values), there)
                good = bool(np.isin(values[np.isfinite(values)], (0.0, 1.0)).all())
                self.ledger.holds(name, "pointing_game", good, "a value between", "0 or 1")
        rows = len(self.result.table(name)["value"])
        cells = sum(int(np.isfinite(values).sum()) for values in self.result.sample_values.values())
        self.ledger.same(name, "rows", rows, cells)

    # --- published numbers

    def scores(self) -> None:
        """Every row of `scores`: value, both intervals, n and reason."""
        rows = {}
        for row in self.read["scores"]:
            key = (row["metric"], row["layer"], row["concept"])
            self.ledger.holds(RESULT, _row(key), key not in rows, "twice", "once")
            rows[key] = row
        groups = list(self._groups())
        every = {(metric, layer, name) for metric, layer in groups for name in (*self.concepts, "macro", "weighted")}
        more, missing = [key for key in rows if key not in every], sorted((k for k in every if k not in rows), key=str)
        self.ledger.holds(RESULT, _row(more[0]) if more else "", not more, "a row", "none")
        self.ledger.holds(RESULT, _row(missing[0]) if missing else "", not missing, None, "a row")
        weights, once = drawn(self.result), np.ones((1, len(self.result.ids)))
        self.again = weights @ self.result.labels
        shared = [self._detection(w) for w in (once, weights)]
        for layer in dict.fromkeys(layer for _, layer in groups):
            for metric in (metric for metric, at in groups if at == layer):
                self._metric(metric, layer, rows, [found.get(layer, {}) for found in shared], (once, weights))

    def _detection(self, weights: Array) -> dict[str | None, dict[str, Array]]:
        """Layer -> metric -> [B, C]; what is published of the chosen layers are columns of the others."""
        found = {layer: detection(self.result, layer, weights) for layer in self.layers}
        if self.layers != [None]:
            every = [found[layer] for layer in self.layers]
            columns = range(len(self.concepts))
            found["chosen"] = {
                name: np.stack([every[self.result.layer[c]][name][:, c] for c in columns], 1) for name in every[0]
            }
        return found

    @property
    def _detected_at(self) -> list[str | None]:
        return [None] if self.layers == [None] else ["chosen", *self.layers]

    def _groups(self) -> Iterator[tuple[str, str | None]]:
        """(metric, layer) of every group of rows that a run publishes."""
        curves = self.read["method"]["localize_on"] == "explained" and self.result.localized
        for metric, about in self.read["metrics"].items():
            if metric in VERSIONS:
                self.ledger.same(RESULT, f"metrics.{metric}.kind", about["kind"], VERSIONS[metric][0])
                better = metric != "deletion_auc"
                self.ledger.same(RESULT, f"metrics.{metric}.higher_is_better", about["higher_is_better"], better)
                self.ledger.same(RESULT, f"metrics.{metric}.range", about["range"], [0, 1])
            if about["kind"] == "detection":
                yield from ((metric, layer) for layer in self._detected_at)
            elif (about["kind"] == "localization" and self.result.localized) or (
                about["kind"] in ("insertion", "deletion") and curves
            ):
                yield metric, "chosen"
            else:
                self.ledger.holds(
                    RESULT,
                    f"metrics.{metric}.kind",
                    about["kind"] in ("localization", "insertion", "deletion"),
                    about["kind"],
                    "a kind of metric",
                )

    def _metric(
        self,
        metric: str,
        layer: str | None,
        rows: Mapping[Any, Any],
        shared: list[dict[str, Array]],
        weights: tuple[Array, Array],
    ) -> None:
        mine = {name: rows[metric, layer, name] for name in (*self.concepts, "macro", "weighted")}
        if metric in VERSIONS and self.read["metrics"][metric]["version"] != VERSIONS[metric][1]:
            self.ledger.leave(f"{metric}, version {self.read['metrics'][metric]['version']}", 3 * len(mine))
            return
        if metric == "token_average_precision":
            values, many = self._between(mine), None
        elif metric in shared[0]:
            values, many = shared[0][metric][0], shared[1][metric]
        else:
            found = [self._means(metric, layer, w) for w in weights]
            if found[0] is None or found[1] is None:
                self.ledger.leave(f"{metric}, a plugin's", 3 * len(mine))
                return
            values, many = found[0][0], found[1]
        if metric in RANKED and weights[1].size > EXACT:
            many = None
        self._values(metric, layer, mine, values)
        self._reasons(metric, layer, mine, values)
        if many is None:
            self._ordered(metric, layer, mine)
        else:
            self._intervals(metric, layer, mine, many)

    def _means(self, metric: str, layer: str | None, weights: Array) -> Array | None:
        found = replicates(self.result, metric, layer, weights)
        nothing = metric in MEANS and metric not in self.result.sample_values
        return np.full((len(weights), len(self.concepts)), np.nan) if found is None and nothing else found

    def _values(self, metric: str, layer: str | None, rows: Mapping[str, Any], values: Array) -> None:
        positives = self.result.labels.sum(0)
        for c, concept in enumerate(self.concepts):
            self.ledger.same(
                RESULT, f"{_row((metric, layer, concept))}.value", rows[concept]["value"], finite(float(values[c]))
            )
            self.ledger.same(RESULT, f"{_row((metric, layer, concept))}.n", rows[concept]["n"], int(positives[c]))
        for kind, shares in (("macro", None), ("weighted", positives)):
            expected = finite(float(average(values, shares)))
            self.ledger.same(RESULT, f"{_row((metric, layer, kind))}.value", rows[kind]["value"], expected)
            self.ledger.same(RESULT, f"{_row((metric, layer, kind))}.n", rows[kind]["n"], int(np.isfinite(values).sum()))

    def _intervals(self, metric: str, layer: str | None, rows: Mapping[str, Any], many: Array) -> None:
        whole = np.isfinite(many).all(0) & (len(many) > 0)
        ends = np.full((2, many.shape[1]), np.nan)
        if whole.any():
            ends[:, whole] = np.quantile(many[:, whole], (0.025, 0.975), axis=0)
        for c in np.flatnonzero(~whole):
            ends[:, c] = interval(many[:, c])
        for c, concept in enumerate(self.concepts):
            self._ends(metric, layer, rows[concept], ends[:, c], None)
        for kind, shares in (("macro", None), ("weighted", self.again)):
            found = average_intervals(many, shares, int(self.read["config"]["seed"]))
            self._ends(metric, layer, rows[kind], found.both, found.samples)

    def _ends(self, metric: str, layer: str | None, row: Mapping[str, Any], ends: Any, alone: Any) -> None:
        where = _row((metric, layer, row["concept"]))
        for key, value in zip(("ci_low", "ci_high"), ends, strict=True):
            self.ledger.same(RESULT, f"{where}.{key}", row[key], finite(float(value)))
        sample = None if alone is None or math.isnan(alone.low) else [alone.low, alone.high]
        self.ledger.same(RESULT, f"{where}.sample_ci", row["sample_ci"], sample)

    def _ordered(self, metric: str, layer: str | None, rows: Mapping[str, Any]) -> None:
        """An interval that the files do not give has at least its ends in order."""
        for name, row in rows.items():
            for key, ends in (("ci_low", (row["ci_low"], row["ci_high"])), ("sample_ci", row["sample_ci"] or (None, None))):
                good = (ends[0] is None) == (ends[1] is None) and (ends[0] is None or 0 <= ends[0] <= ends[1] <= 1)
                self.ledger.holds(RESULT, f"{_row((metric, layer, name))}.{key}", good, ends, "ends in order, from 0 to 1")
        self.ledger.leave(f"intervals of {metric}", 2 * len(rows) + 4)

    def _between(self, rows: Mapping[str, Any]) -> Array:
        """Average precision of tokens: as published where that lies within what the steps allow; exact where no step was merged."""
        values = np.full(len(self.concepts), np.nan)
        for c, concept in enumerate(self.concepts):
            low, high = bounds(*self._steps[c][1:]) if self.result.has_map[c] else (math.nan, math.nan)
            published = rows[concept]["value"]
            if math.isnan(low) or published is None:
                values[c] = low
                continue
            where = f"{_row(('token_average_precision', 'chosen', concept))}.value"
            inside = low - 1e-9 <= published <= high + 1e-9
            self.ledger.holds(RESULT, where, inside, published, shown_range(low, high))
            values[c] = published
        return values

    def _reasons(self, metric: str, layer: str | None, rows: Mapping[str, Any], values: Array) -> None:
        kind = self.read["metrics"][metric]["kind"]
        for c, concept in enumerate(self.concepts):
            allowed: list[str | None] = [None]
            if np.isnan(values[c]):
                allowed = self._undefined(kind, layer, c)
            self._one_of(f"{_row((metric, layer, concept))}.reason", rows[concept]["reason"], allowed)
        for name in ("macro", "weighted"):
            expected = None if rows[name]["value"] is not None else "no concept has a value"
            self.ledger.same(RESULT, f"{_row((metric, layer, name))}.reason", rows[name]["reason"], expected)

    def _undefined(self, kind: str, layer: str | None, c: int) -> list[str | None]:
        """Why a metric has no value for a concept."""
        if kind in ("insertion", "deletion"):
            return [NO_VECTOR]
        if kind == "localization":
            _, positives, negatives = self._steps[c]
            scored = np.isfinite(self._steps[c][0]).any()
            if not self.result.has_map[c]:
                return [NO_VECTOR, NO_CUTOFF]
            found, other = bool(positives.sum()), bool(negatives.sum())
            if not len(positives):
                return ["no annotated tokens"]
        else:
            scores, _, calibrated = self.result.at(layer)
            if not calibrated[c]:
                return [NO_VECTOR, NO_CUTOFF] if np.isnan(scores[:, c]).any() else [NO_CUTOFF]
            labels, scored = self.result.labels[:, c], np.isfinite(scores[:, c]).any()
            found, other = bool(labels.any()), not labels.all()
        if not found:
            return ["no positives"]
        return ["0 / 0" if scored else "no scores"] if other else ["no negatives"]

    # --- logged tokens

    def tokens(self) -> None:
        """tokens.safetensors, where it is there, gives the decisions and the token counts of test."""
        path = self.result.folder / "tokens.safetensors"
        if not path.is_file() or not self.result.localized:
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as opened:
                tensors = {key: opened.get_tensor(key) for key in TENSORS}
                about = json.loads(opened.metadata()["about"])
            mask, truth, detected = (tensors[key].astype(int) for key in ("mask", "truth", "detected"))
            offsets = tensors["offsets"]
            written = {key: about[key] for key in ("ids", "concepts", "layers", "super_activator_cutoffs", "map_cutoffs")}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise HarnessError(f"cannot read {path}; {error}; the bundle is damaged") from error
        name, ids, chosen = path.name, self.result.ids, self.read["choices"]
        self.ledger.same(name, "ids", written["ids"], ids)
        self.ledger.same(name, "concepts", written["concepts"], self.concepts)
        self.ledger.same(name, "layers", written["layers"], [self.layers[i] for i in self.result.layer])
        self.ledger.same(name, "map_cutoffs", written["map_cutoffs"], [row["map_cutoff"] for row in chosen])
        self.ledger.same(name, "samples", len(offsets) - 1, len(ids))
        self.ledger.same(name, "concepts", detected.shape[1], len(self.concepts))
        self.ledger.same(name, "tokens", len(mask), int(offsets[-1]))
        cutoffs = np.array([math.nan if x is None else x for x in written["map_cutoffs"]], float)
        known, sample = np.isfinite(cutoffs), np.repeat(np.arange(len(ids)), np.diff(offsets))
        above = (tensors["map"][:, known] >= cutoffs[known]) & (detected[sample][:, known] == 1)
        self.ledger.cells(name, lambda at: f"mask of token {at[0]}", mask[:, known], above)
        self.ledger.cells(
            name, lambda at: f"detected of {self._sample('test', ids)(at)}", detected, self.result.at("chosen")[1]
        )
        if self.read["method"]["localize_on"] == "explained":
            return
        cells = ((mask == 1) & (truth == 1), (mask == 1) & (truth == 0), (mask == 0) & (truth == 1))
        for key, cell, published in zip(("tp", "fp", "fn"), cells, self.result.masks, strict=True):
            counted = np.zeros((len(ids), len(self.concepts)))
            np.add.at(counted, sample, cell)
            self.ledger.cells(name, lambda at, k=key: f"{k} of {self._sample('test', ids)(at)}", counted, published)


def bounds(positives: Array, negatives: Array) -> tuple[float, float]:
    """The least and the largest average precision of a ranking in steps, whose tokens within a step are in unknown order.

    With no more tokens than steps are kept, no step was merged: its tokens are tied, and the number is exact. NaN without positives.
    """
    every, whole = positives + negatives, float(positives.sum())
    if whole == 0:
        return math.nan, math.nan
    found, seen = positives.cumsum(), every.cumsum()
    tied = float((positives * found / seen).sum() / whole)
    if every.sum() <= BINS:
        return tied, tied
    step = np.repeat(np.arange(len(every)), positives.astype(int))
    k = np.arange(len(step)) - (found - positives)[step] + 1
    before, above = (found - positives)[step] + k, (seen - every)[step]
    return float((before / (above + negatives[step] + k)).sum() / whole), float((before / (above + k)).sum() / whole)


def shown_range(low: float, high: float) -> str:
    """`0.51`, or what lies between two numbers."""
    return f"{low:.12g}" if high - low < 1e-12 else f"between {low:.12g} and {high:.12g}"


def _row(key: tuple[Any, ...]) -> str:
    return "scores[" + ", ".join("null" if x is None else str(x) for x in key) + "]"


def _words(column: Any) -> tuple[Any, list[Any]]:
    """Words as (places, names); an empty column has none."""
    return column if isinstance(column, tuple) else (np.zeros(0, np.int64), [])


def _first_best(values: Array) -> Array:
    return np.where(np.isnan(values), -np.inf, values).argmax(0)


def _counts(decided: Array, labels: Array) -> Array:
    """[3, L, C]: TP, FP, FN of decisions [L, S, C]."""
    return np.stack([(decided & labels).sum(1), (decided & ~labels).sum(1), (~decided & labels).sum(1)]).astype(float)


def _f1(counts: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2])


def _best_cutoffs(scores: Array, labels: Array) -> Array:
    """[1, L, C]: the score with the best F1 as a cutoff, the highest among equals; NaN without positives."""
    layers, _, concepts = scores.shape
    found = np.full((1, layers, concepts), np.nan)
    for layer in range(layers):
        for c in range(concepts):
            score, label = scores[layer, :, c], labels[:, c]
            cutoffs = np.unique(score[np.isfinite(score)])[::-1]
            if len(cutoffs) and label.any():
                order = np.argsort(-score, kind="stable")
                ends = np.searchsorted(-score[order], -cutoffs, side="right")
                tp = np.concatenate([[0], np.cumsum(label[order])])[ends]
                found[0, layer, c] = cutoffs[(2 * tp / (ends + label.sum())).argmax()]
    return found


def _tail_cutoffs(scores: Array, labels: Array, levels: tuple[float | None, ...]) -> Array:
    """[P, L, C]: the (1 - level)-quantile of the positive samples' scores, linear interpolation (method section 5)."""
    layers, _, concepts = scores.shape
    found = np.full((len(levels), layers, concepts), np.nan)
    level = np.array(levels, float)
    for layer in range(layers):
        for c in range(concepts):
            mine = np.sort(scores[layer, labels[:, c], c])
            mine = mine[np.isfinite(mine)]
            if len(mine):
                rank = np.round((len(mine) - 1) * (1 - level), 9)
                low = np.floor(rank).astype(int)
                high = np.minimum(low + 1, len(mine) - 1)
                found[:, layer, c] = mine[low] + (rank - low) * (mine[high] - mine[low])
    return found
