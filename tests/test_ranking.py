"""Paired comparisons and ranks of real toy results: ties stay ties, order of rows means nothing, and nothing unlike is compared."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from harness.errors import HarnessError
from harness.leaderboard import build
from harness.ranking import Standing, compare, rank
from harness.recompute import Evidence, open_result
from harness.results import find_results


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranking")
    run = [sys.executable, "-c", "from harness.cli import main; main()", "run", "--task", "toy", "--bootstrap", "20"]
    run += ["--cache-dir", str(out / "cache"), "--method", "superactivator,max,coin,last,oracle"]
    subprocess.run([*run, "--output", str(out / "full")], check=True, capture_output=True)
    subprocess.run([*run, "--output", str(out / "limited"), "--limit", "20"], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def full(root: Path) -> dict[str, Evidence]:
    return {path.parent.name: open_result(path) for path in find_results(root / "full")}


def test_a_method_compared_with_itself_differs_by_nothing(full: dict[str, Evidence]) -> None:
    found = compare(full["max"], full["max"], "f1", "weighted")
    assert (found.overall.value, found.overall.p) == (0.0, 1.0)
    assert [one.value for one in found.concepts.values()] == [0.0] * 3


def test_a_difference_turns_its_sign_with_its_sides_and_is_that_of_the_published_values(full: dict[str, Evidence]) -> None:
    for metric, average in itertools.product(("f1", "average_precision", "token_f1"), ("macro", "weighted")):
        one, other = full["superactivator"], full["max"]
        there, back = (compare(a, b, metric, average).overall for a, b in ((one, other), (other, one)))
        assert there.value == pytest.approx(-back.value)
        assert there.p == pytest.approx(back.p)
        published = [
            next(s["value"] for s in r.read["scores"] if (s["metric"], s["layer"], s["concept"]) == (metric, "chosen", average))
            for r in (one, other)
        ]
        assert there.value == pytest.approx(published[0] - published[1])


def test_guessing_is_beaten_and_ties_share_their_ranks(full: dict[str, Evidence]) -> None:
    found = rank([full["coin"], full["superactivator"], full["max"]], "f1", "weighted", higher_is_better=True)
    assert found.standings == [Standing(3, 3), Standing(1, 2), Standing(1, 2)]
    assert 0 < found.detectable < 0.5
    turned = rank([full["coin"], full["superactivator"], full["max"]], "f1", "weighted", higher_is_better=False)
    assert turned.standings == [Standing(1, 1), Standing(2, 3), Standing(2, 3)]


def test_the_order_of_rows_in_a_file_moves_nothing(full: dict[str, Evidence], tmp_path: Path) -> None:
    shutil.copytree(full["max"].folder, tmp_path / "r")
    for path in (tmp_path / "r").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(pa.array(range(len(table) - 1, -1, -1))), path)
    turned = open_result(tmp_path / "r")
    for metric in ("f1", "auroc", "token_iou"):
        assert compare(turned, full["coin" if metric != "token_iou" else "last"], metric, "macro") == compare(
            full["max"], full["coin" if metric != "token_iou" else "last"], metric, "macro"
        )


def test_other_samples_labels_or_metrics_are_refused(full: dict[str, Evidence], root: Path, tmp_path: Path) -> None:
    limited = open_result(next(path for path in find_results(root / "limited") if path.parent.name == "max"))
    with pytest.raises(HarnessError, match="not of the same test samples, concepts and labels; differences are paired"):
        compare(full["max"], limited, "f1", "macro")
    shutil.copytree(full["max"].folder, tmp_path / "r")
    path = tmp_path / "r" / "per_sample.parquet"
    table = pq.read_table(path)
    turned = table.set_column(table.column_names.index("label"), "label", pc.invert(table.column("label")))
    pq.write_table(turned, path)
    with pytest.raises(HarnessError, match="labels"):
        compare(full["max"], open_result(tmp_path / "r"), "f1", "macro")
    with pytest.raises(HarnessError, match="do not give metric 'token_f1' per sample"):
        compare(full["max"], full["coin"], "token_f1", "macro")


def test_the_board_ranks_full_runs_and_says_why_others_have_no_rank(root: Path, tmp_path: Path) -> None:
    definition = {"board": "b", "title": "B", "unranked": ["last"]}
    definition["columns"] = [{"metric": "f1", "average": "weighted", "name": "F1"}]  # type: ignore[assignment]
    tmp_path.joinpath("b.yaml").write_text(json.dumps(definition))
    build([root], tmp_path)
    full, limited = (tmp_path / "README.md").read_text().split("limited to 20")
    rows = {line.split("|")[2].strip(): line.split("|")[1].strip() for line in full.splitlines() if line.startswith("| ")}
    assert rows.pop("oracle (ceiling, picked on test: not ranked)") == "–"
    assert rows == {"method": "rank", "superactivator": "**1–2**", "max": "**1–2**", "coin": "3", "last": "–"}
    assert "Ranks from 3 paired comparisons of F1, Holm-corrected; a true difference of 0." in full
    assert "Not ranked: last: shown for orientation." in full
    assert "max: a limited run" in limited


def test_a_board_of_layers_has_a_column_per_layer(root: Path, tmp_path: Path) -> None:
    definition = {
        "board": "b",
        "title": "B",
        "each_layer": True,
        "columns": [{"metric": "f1", "average": "macro", "name": "chosen"}],
    }
    tmp_path.joinpath("b.yaml").write_text(json.dumps(definition))
    build([root / "full"], tmp_path)
    readme = (tmp_path / "README.md").read_text()
    header = next(line for line in readme.splitlines() if "| method" in line)
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "rank",
        "method",
        "chosen",
        *(f"layer {i}" for i in range(4)),
        "layers",
    ]
    read = json.loads(next((root / "full").rglob("max/*/result.json")).read_text())
    wanted = [
        f"{s['value']:.3f}" for s in read["scores"] if (s["metric"], s["concept"]) == ("f1", "macro") and s["layer"] in "0123"
    ]
    row = next(line for line in readme.splitlines() if "| max" in line)
    assert [cell.strip() for cell in row.split("|")[4:-2]] == wanted
