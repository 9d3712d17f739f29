"""Every number that a run publishes is computed again from its files, without torch, and files that are not whole are refused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import HarnessError
from harness.recompute import Evidence, average_precision, drawn, open_result, replicates
from harness.results import find_results
from harness.statistics import average, average_intervals, interval

METHODS = "superactivator,superactivator-direct,max,summary,superactivator-kmeans,coin,oracle"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Evidence]:
    """The toy task with every kind of method: separators, units, summaries, a scorer, a ceiling."""
    out = tmp_path_factory.mktemp("recompute")
    base = [
        sys.executable,
        "-c",
        "from harness.cli import main; main()",
        "run",
        "--task",
        "toy",
        "--output",
        str(out),
        "--cache-dir",
        str(out / "c"),
    ]
    subprocess.run([*base, "--bootstrap", "40", "--method", METHODS], check=True, capture_output=True)
    return {path.parent.name: open_result(path) for path in find_results(out)}


def numbers(result: Evidence) -> list[tuple[Any, float | None, float]]:
    """(which, as published, as computed again) of every value and interval that the files give."""
    weights, once, made = drawn(result), np.ones((1, len(result.ids))), []
    seed, positives, again = int(result.read["config"]["seed"]), result.labels.sum(0), weights @ result.labels
    for row in result.read["scores"]:
        value, many = (replicates(result, row["metric"], row["layer"], w) for w in (once, weights))
        if value is None or many is None:
            assert row["metric"] == "token_average_precision"
            continue
        if row["concept"] in result.concepts:
            c = result.concepts.index(row["concept"])
            one, ends = value[0, c], interval(many[:, c])
        else:
            weighted = row["concept"] == "weighted"
            one = float(average(value[0], positives if weighted else None))
            ends = average_intervals(many, again if weighted else None, seed).both
        key = (row["metric"], row["layer"], row["concept"])
        made += [((*key, name), row[name], got) for name, got in (("value", one), ("ci_low", ends.low), ("ci_high", ends.high))]
    return made


def test_every_published_value_and_interval_follows_from_the_files(results: dict[str, Evidence]) -> None:
    metrics = set()
    assert len(results) == 7
    for result in results.values():
        for which, published, again in numbers(result):
            metrics.add(which[0])
            expected = math.nan if published is None else published
            assert again == pytest.approx(expected, abs=1e-9, nan_ok=True), (result.folder, which)
    assert metrics == {"f1", "precision", "recall", "average_precision", "auroc", "token_f1", "token_iou", "pointing_game"}


def test_choices_and_decisions_follow_from_calibration(results: dict[str, Evidence]) -> None:
    for result in results.values():
        scores, decisions, _ = result.at("chosen")
        assert np.array_equal(decisions, result.samples["test"][2])
        assert np.array_equal(np.isfinite(scores), np.isfinite(result.samples["test"][3]))
        for c, choice in enumerate(result.read["choices"]):
            if choice["cutoff"] is not None and choice["layer"] is not None:
                assert choice["layer"] == result.layers[result.layer[c]]
                assert choice["cutoff"] == result.cutoffs[result.layer[c], c]
            if choice.get("map_level") is not None:
                assert choice["map_level"] == result.map_calibration.levels[result.map_level[c]]


def test_the_ranking_of_tokens_bounds_the_published_average_precision(results: dict[str, Evidence]) -> None:
    result = results["superactivator"]
    table = result.table("token_ranking.parquet")
    for row in result.read["scores"]:
        if row["metric"] == "token_average_precision" and row["concept"] in result.concepts:
            mine = table["concept"][0] == table["concept"][1].index(row["concept"])
            found, other = table["positives"][mine], table["negatives"][mine]
            precision = found.cumsum() / (found + other).cumsum()
            assert row["value"] == pytest.approx((precision * found).sum() / found.sum(), abs=2e-3)


def test_average_precision_counts_ties_as_one_step() -> None:
    from sklearn.metrics import average_precision_score

    g = np.random.default_rng(0)
    scores, labels, weights = (
        g.integers(0, 4, (30, 2)).astype(float),
        g.random((30, 2)) < 0.4,
        g.integers(0, 3, (5, 30)).astype(float),
    )
    got = average_precision(scores, labels, weights)
    for b in range(5):
        for c in range(2):
            assert got[b, c] == pytest.approx(average_precision_score(labels[:, c], scores[:, c], sample_weight=weights[b]))


def test_nothing_here_imports_torch() -> None:
    code = "import sys, harness.recompute, harness.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BROKEN: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str]] = {
    "a row is missing": ("scores.parquet", lambda t: t.slice(1), "rows for"),
    "a row is there twice": ("per_sample.parquet", lambda t: pa.concat_tables([t, t.slice(0, 1)]), "every cell is needed once"),
    "another concept": (
        "calibration.parquet",
        lambda t: t.set_column(t.column_names.index("concept"), "concept", pa.array(["x"] * len(t))),
        "has concept 'x', which the result does not",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_not_whole_are_refused(name: str, results: dict[str, Evidence], tmp_path: Path) -> None:
    import shutil

    file, change, said = BROKEN[name]
    folder = tmp_path / "r"
    shutil.copytree(results["superactivator"].folder, folder)
    pq.write_table(change(pq.read_table(folder / file)), folder / file)
    broken = open_result(folder)
    with pytest.raises(HarnessError, match=said):
        _ = [broken.at("chosen"), broken.cutoffs]


def test_a_file_that_is_no_parquet_is_refused_with_its_name(results: dict[str, Evidence], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(results["max"].folder, tmp_path / "r")
    (tmp_path / "r" / "scores.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(HarnessError, match=r"cannot read .*scores\.parquet"):
        _ = open_result(tmp_path / "r").scores
    (tmp_path / "r" / "scores.parquet").unlink()
    with pytest.raises(HarnessError, match=r"cannot read \S+scores\.parquet; it is not there; the result is not whole"):
        _ = open_result(tmp_path / "r").scores
