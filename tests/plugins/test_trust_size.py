"""A synthetic bundle of COCO's size verifies in seconds: 80 concepts, 500 cal and 999 test samples, 4 layers, masks, 1,000 replicates."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from harness_trust.bundle import MANIFEST, Ledger, manifest_of
from harness_trust.checks import BINS, Checks, bounds

from harness.api import (
    LEVELS,
    Evidence,
    Method,
    RunSpec,
    average,
    average_intervals,
    detection,
    drawn,
    interval,
    replicates,
    run_id_of,
)

ABOUT = {"unit": "share", "range": [0.0, 1.0], "chance": "p", "higher_is_better": True, "version": 1}
DETECTION = ("f1", "precision", "recall", "average_precision", "auroc")
TOKENS = ("token_f1", "token_iou", "token_average_precision", "pointing_game")


def words(names: list[str], places: Any) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(places, np.int32).ravel()), pa.array(names))


def tail(scores: Any, levels: Any = LEVELS) -> Any:
    return np.quantile(scores, 1 - np.array(levels))


class World:
    """Pooled scores, labels and token scores of a made-up run."""

    def __init__(self, concepts: int, cal: int, test: int, layers: int, tokens: int, seed: int = 0) -> None:
        g = np.random.default_rng(seed)
        self.concepts = [f"concept {c}" for c in range(concepts)]
        self.layers = [str(layer) for layer in range(layers)]
        self.ids = {"cal": [f"cal {i}" for i in range(cal)], "test": [f"test {i}" for i in range(test)]}
        share = np.clip(g.pareto(1.5, concepts) * 0.02, 0.01, 0.5)
        self.labels = {split: g.random((len(ids), concepts)) < share for split, ids in self.ids.items()}
        for labels in self.labels.values():
            labels[:2], labels[2:4] = True, False
        strength = 1 + np.arange(layers)[:, None, None] / layers
        self.scores = {
            split: (strength * labels + g.standard_normal((layers, *labels.shape))).astype(np.float32)
            for split, labels in self.labels.items()
        }
        self.g, self.tokens = g, tokens

    def write(self, folder: Path, replicates_: int) -> None:
        """The files, in the order of a run."""
        folder.mkdir(parents=True)
        many, deep, wide = len(LEVELS), len(self.layers), len(self.concepts)
        cal, labels = self.scores["cal"].astype(float), self.labels["cal"]
        cutoffs = np.stack([[tail(cal[i, labels[:, c], c]) for c in range(wide)] for i in range(deep)]).transpose(2, 0, 1)
        decided = [cal >= cutoff[:, None] for cutoff in cutoffs]
        counts = np.stack([[(d & labels).sum(1), (d & ~labels).sum(1), (~d & labels).sum(1)] for d in decided], 1)
        f1 = 2 * counts[0] / (2 * counts[0] + counts[1] + counts[2])
        p, i, c = np.indices((many, deep, wide)).reshape(3, -1)
        level = pa.array(np.array(LEVELS)[p])
        more = {key: counts[k].ravel().astype(float) for k, key in enumerate(("tp", "fp", "fn"))}
        columns = {
            "level": level,
            "layer": words(self.layers, i),
            "concept": words(self.concepts, c),
            "cutoff": cutoffs.ravel(),
        }
        pq.write_table(pa.table({**columns, **more, "f1": f1.ravel()}), folder / "calibration.parquet")
        self._scores(folder)
        best = f1.max(0)
        self.layer = best.argmax(0)
        self.level = np.take_along_axis(f1.argmax(0), self.layer[None], 0)[0]
        self.cutoff = cutoffs[self.level, self.layer, np.arange(wide)]
        self._samples(folder)
        self._masks(folder)
        self._result(folder, replicates_, best)
        (folder / MANIFEST).write_text(json.dumps(manifest_of(folder)))

    def _scores(self, folder: Path) -> None:
        names = [*self.ids["cal"], *self.ids["test"]]
        grids, start = [], 0
        for s, (split, ids) in enumerate(self.ids.items()):
            i, row, c = np.indices(self.scores[split].shape).reshape(3, -1)
            grids.append((np.full(len(i), s), i, row + start, c, self.scores[split].ravel()))
            start += len(ids)
        split, i, row, c, score = (np.concatenate(parts) for parts in zip(*grids, strict=True))
        named = {"split": words(["cal", "test"], split), "layer": words(self.layers, i), "id": words(names, row)}
        pq.write_table(pa.table({**named, "concept": words(self.concepts, c), "score": score}), folder / "scores.parquet")

    def _samples(self, folder: Path) -> None:
        parts: dict[str, list[Any]] = {}
        for split, ids in self.ids.items():
            score = np.take_along_axis(self.scores[split], self.layer[None, None], 0)[0].astype(float)
            row, c = np.indices(score.shape).reshape(2, -1)
            made = {
                "split": [split] * len(row),
                "id": [ids[i] for i in row],
                "concept": [self.concepts[i] for i in c],
                "layer": [self.layers[self.layer[i]] for i in c],
                "score": score.ravel().tolist(),
                "detected": (score >= self.cutoff).ravel().tolist(),
                "label": self.labels[split].ravel().tolist(),
            }
            for key, value in made.items():
                parts.setdefault(key, []).extend(value)
        pq.write_table(pa.table(parts), folder / "per_sample.parquet")
        chosen = np.take_along_axis(self.scores["test"], self.layer[None, None], 0)[0]
        self.detected = chosen.astype(float) >= self.cutoff

    def _masks(self, folder: Path) -> None:
        g, many, wide, n = self.g, len(LEVELS), len(self.concepts), len(self.ids["test"])
        labels = self.labels["test"]
        counts = np.zeros((3, many, n, wide), np.int64)
        cutoffs, steps, points = np.empty((many, wide)), {"concept": [], "score": [], "positives": [], "negatives": []}, []
        for c in range(wide):
            truth = (g.random((n, self.tokens)) < 0.3) & labels[:, [c]]
            truth[:, 0] |= labels[:, c]
            score = truth + g.standard_normal(truth.shape)
            cutoffs[:, c] = np.sort(tail(score[truth]))[::-1]
            for p in range(many):
                marked = (score >= cutoffs[p, c]) & self.detected[:, [c]]
                counts[:, p, :, c] = (marked & truth).sum(1), (marked & ~truth).sum(1), (~marked & truth).sum(1)
            order = np.argsort(-score.ravel())
            ends = np.linspace(0, len(order), BINS + 1).astype(int)[1:]
            first = np.r_[0, ends[:-1]]
            found = np.add.reduceat(truth.ravel()[order].astype(int), first)
            steps["concept"] += [self.concepts[c]] * BINS
            steps["score"] += score.ravel()[order][first].tolist()
            steps["positives"] += found.tolist()
            steps["negatives"] += (ends - first - found).tolist()
            hit = truth[np.arange(n), score.argmax(1)]
            points += [(self.ids["test"][i], self.concepts[c], float(hit[i])) for i in np.flatnonzero(truth.any(1))]
        p, i, c = np.indices((many, n, wide)).reshape(3, -1)
        columns = {"level": np.array(LEVELS)[p], "id": words(self.ids["test"], i), "concept": words(self.concepts, c)}
        more = {key: counts[k].ravel() for k, key in enumerate(("tp", "fp", "fn"))}
        pq.write_table(pa.table({**columns, **more}), folder / "localization.parquet")
        pq.write_table(pa.table(steps), folder / "token_ranking.parquet")
        pointed = {key: [row[k] for row in points] for k, key in enumerate(("id", "concept", "value"))}
        pq.write_table(pa.table({"metric": ["pointing_game"] * len(points), **pointed}), folder / "sample_values.parquet")
        total = counts.sum(2)
        self.map_f1 = np.where(
            np.arange(many)[:, None] < self.level, np.nan, 2 * total[0] / (2 * total[0] + total[1] + total[2])
        )
        self.map_cutoffs = cutoffs
        p, c = np.indices((many, wide)).reshape(2, -1)
        f1 = self.map_f1.ravel()
        columns = {"level": np.array(LEVELS)[p], "concept": words(self.concepts, c), "cutoff": cutoffs.ravel()}
        more = {key: total[k].ravel() for k, key in enumerate(("tp", "fp", "fn"))}
        made = pa.table({**columns, **more, "f1": pa.array(f1, mask=np.isnan(f1))})
        pq.write_table(made, folder / "map_calibration.parquet")

    def _result(self, folder: Path, replicates_: int, best: Any) -> None:
        count = {split: labels.sum(0).tolist() for split, labels in self.labels.items()}
        sizes = {"train": 1000, **{split: len(ids) for split, ids in self.ids.items()}}
        positives = {c: {"train": 10, "cal": count["cal"][i], "test": count["test"][i]} for i, c in enumerate(self.concepts)}
        method = Method("made-up", concepts="linear", detector="superactivator", localizer="superactivator", tags=())
        spec = dataclasses.asdict(RunSpec("made-up", "none", (method,), bootstrap=replicates_))
        config = {k: v for k, v in spec.items() if k not in ("methods", "output", "cache_dir") and v is not None}
        config.update(streams=["residual"], method=["made-up"])
        place = np.where(np.isnan(self.map_f1), -np.inf, self.map_f1).argmax(0)
        choices = [
            {
                "concept": concept,
                "layer": self.layers[self.layer[c]],
                "level": LEVELS[self.level[c]],
                "cutoff": float(self.cutoff[c]),
                "cal_f1": float(best[self.layer[c], c]),
                "map_level": LEVELS[place[c]],
                "map_cutoff": float(self.map_cutoffs[place[c], c]),
                "map_cal_f1": float(self.map_f1[place[c], c]),
                "unit": None,
                "reason": None,
            }
            for c, concept in enumerate(self.concepts)
        ]
        kinds = {**dict.fromkeys(DETECTION, "detection"), **dict.fromkeys(TOKENS, "localization")}
        read: dict[str, Any] = {
            "schema_version": 2,
            "status": "complete",
            "run_id": "",
            "task": {
                "name": "made-up",
                "version": 1,
                "fingerprint": "0" * 64,
                "modality": "tokens",
                "limit": None,
                "samples": sizes,
                "positives": positives,
            },
            "backbone": {
                "name": "none",
                "revision": "1",
                "n_layers": len(self.layers),
                "width": 8,
                "sites": self.layers,
                "normalization": "train",
            },
            "method": json.loads(json.dumps(dataclasses.asdict(method))),
            "config": config,
            "metrics": {name: {"kind": kind, **ABOUT} for name, kind in kinds.items()},
            "choices": choices,
            "scores": [],
            "notes": {},
            "provenance": {"harness": "0.1.0"},
        }
        read["run_id"] = run_id_of(read)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        read["scores"] = list(rows(Evidence(folder, read)))
        (folder / "result.json").write_text(json.dumps(read))
        (folder / "STATUS").write_text("complete")


def rows(result: Evidence) -> Any:
    """The score rows, as a run writes them."""
    weights, once = drawn(result), np.ones((1, len(result.ids)))
    for layer in ("chosen", *result.layers):
        values, many = (detection(result, layer, w) for w in (once, weights))
        for metric in DETECTION:
            yield from of_metric(result, metric, layer, values[metric][0], many[metric], weights)
    steps = Checks(result, Ledger())._steps
    exact = np.array([np.mean(bounds(*step[1:])) for step in steps])
    for metric in TOKENS:
        found = (
            [exact[None]] * 2
            if metric == "token_average_precision"
            else [replicates(result, metric, "chosen", w) for w in (once, weights)]
        )
        yield from of_metric(result, metric, "chosen", found[0][0], found[1], weights)


def of_metric(result: Evidence, metric: str, layer: str | None, values: Any, many: Any, weights: Any) -> Any:
    def number(x: float) -> float | None:
        return float(x) if np.isfinite(x) else None

    positives = result.labels.sum(0)
    for c, concept in enumerate(result.concepts):
        low, high = interval(many[:, c])
        reason = None if np.isfinite(values[c]) else "0 / 0"
        yield {
            **{"metric": metric, "layer": layer, "concept": concept, "value": number(values[c]), "ci_low": number(low)},
            **{"ci_high": number(high), "n": int(positives[c]), "sample_ci": None, "reason": reason},
        }
    for kind, shares, again in (("macro", None, None), ("weighted", positives, weights @ result.labels)):
        drawn_too = again if many.shape[0] == len(weights) else None
        both, alone = average_intervals(many, drawn_too, int(result.read["config"]["seed"]))
        value = number(float(average(values, shares)))
        yield {
            **{"metric": metric, "layer": layer, "concept": kind, "value": value, "ci_low": number(both.low)},
            **{
                "ci_high": number(both.high),
                "n": int(np.isfinite(values).sum()),
                "sample_ci": [number(x) for x in alone] if number(alone.low) is not None else None,
                "reason": None if value is not None else "no concept has a value",
            },
        }


def verified(folder: Path) -> tuple[str, float]:
    """What is said, and the seconds of processor time it took: those of the clock depend on who else is there."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from harness.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "verify", str(folder)], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout + done.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_small_made_up_bundle_follows(tmp_path: Path) -> None:
    World(3, 30, 40, 2, 60).write(tmp_path / "b", 20)
    said, _ = verified(tmp_path / "b")
    assert said.startswith("follows: "), said
    assert "MANIFEST.json: every file has its sha256" in said


@pytest.mark.slow
def test_a_bundle_of_the_size_of_coco_verifies_in_ten_seconds(tmp_path: Path) -> None:
    World(80, 500, 999, 4, 64).write(tmp_path / "b", 1000)
    said, seconds = verified(tmp_path / "b")
    assert said.startswith("follows: "), said
    assert seconds < 10
