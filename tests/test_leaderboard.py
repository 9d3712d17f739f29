"""Leaderboards are a pure function of result files: the same bytes, hostile names harmless, nothing mixed that may not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.leaderboard import build, definitions, read_board

HOSTILE = '<script>alert("1")</script>|`x`\n# head'


def score(value: float | None, metric: str = "f1", concept: str = "weighted", layer: str | None = "chosen") -> dict[str, Any]:
    low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
    ends = {"ci_low": low, "ci_high": high, "n": 3, "sample_ci": None, "reason": None}
    return {"metric": metric, "layer": layer, "concept": concept, "value": value, **ends}


def put(root: Path, name: str, value: float | None, /, method: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Writes a complete result; `changes` go to its task, `method` to its recipe."""
    task = {"name": "toy", "version": 1, "fingerprint": "f" * 64, "modality": "tokens", "limit": None}
    task |= {"samples": {"train": 3, "cal": 2, "test": 2}, "positives": {"star": {"train": 1, "cal": 1, "test": 1}}, **changes}
    folder = root / str(task["limit"]) / str(task["fingerprint"])[:4] / "".join(c for c in name if c.isalnum())[:100]
    read = {
        "schema_version": 2,
        "run_id": f"{name}-{task['fingerprint']}-{task['limit']}",
        "task": task,
        "backbone": {"name": "toy", "revision": "1", "sites": ["0", "1"], "normalization": "train"},
        "method": {"name": name, "summary": name, **(method or {})},
        "choices": [{"layer": "3"}, {"layer": "11"}],
        "scores": [score(value), score(0.2, layer="3"), score(value, "token_f1")],
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(read))
    (folder / "STATUS").write_text("complete")
    return folder


def page(root: Path, output: Path) -> str:
    build([root], output)
    return (output / "README.md").read_text()


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    for name, value in (("a", 0.5), ("b", 0.7), ("c", 0.7)):
        put(tmp_path / "results", name, value)
    assert page(tmp_path / "results", tmp_path / "one") == page(tmp_path / "results", tmp_path / "two")


def test_rows_are_sorted_by_the_first_column_and_equal_ones_by_name(tmp_path: Path) -> None:
    for name, value in (("low", 0.5), ("beta", 0.7), ("alpha", 0.7), ("none", None)):
        put(tmp_path / "results", name, value)
    readme = page(tmp_path / "results", tmp_path / "board")
    assert rows(readme, "Detection")[1:] == ["alpha", "beta", "low"]


def rows(readme: str, board: str) -> list[str]:
    """The names in a board's tables."""
    part = readme.split(f"## {board}\n")[1].split("\n## ")[0]
    return [line.split("|")[2].strip() for line in part.splitlines() if line.startswith("| ")]


def test_a_ceiling_comes_last_and_says_what_it_is(tmp_path: Path) -> None:
    put(tmp_path / "results", "oracle", 0.9, {"choose_on": "test"})
    put(tmp_path / "results", "honest", 0.5, {"choose_on": "cal"})
    readme = page(tmp_path / "results", tmp_path / "board")
    assert rows(readme, "Detection")[1:] == ["honest", "oracle (ceiling, picked on test: not ranked)"]


def test_what_was_localized_on_explained_samples_stands_on_its_own_board_alone(tmp_path: Path) -> None:
    put(tmp_path / "results", "lime", 0.9, {"localize_on": "explained"})
    put(tmp_path / "results", "plain", 0.5, {"localize_on": "all"})
    readme = page(tmp_path / "results", tmp_path / "board")
    assert rows(readme, "Detection")[1:] == rows(readme, "Localization")[1:] == ["plain"]
    assert rows(readme, "Attribution")[1:] == ["lime"]


def test_the_interval_and_the_range_of_layers_are_shown_and_a_fixed_layer_is_not_the_chosen_one(tmp_path: Path) -> None:
    put(tmp_path / "results", "a", 0.5)
    readme = page(tmp_path / "results", tmp_path / "board")
    assert "0.500 [0.400, 0.600]" in readme
    assert "3–11" in readme
    assert "0.200" not in readme


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    put(tmp_path / "results", HOSTILE, 0.5, name=HOSTILE)
    readme = page(tmp_path / "results", tmp_path / "board")
    assert "<script>alert" not in readme
    assert "&lt;script&gt;alert" in readme
    assert not any(line.startswith("# head") for line in readme.splitlines())


def test_a_name_makes_no_link_picture_emphasis_or_cell(tmp_path: Path) -> None:
    put(tmp_path / "results", "![i](http://e.org/x.png) *b* _i_ a_b \\| www.e.org", 0.5)
    readme = page(tmp_path / "results", tmp_path / "board")
    assert r"!\[i\](http&#58;//e.org/x.png) \*b\* \_i\_ a_b \\\| www&#46;e.org" in readme


def test_a_metric_that_is_better_when_lower_does_not_share_a_column_with_one_that_is_better_when_higher(tmp_path: Path) -> None:
    for name, better in (("a", True), ("b", False)):
        path = put(tmp_path / "results", name, 0.5) / "result.json"
        about = {"kind": "detection", "version": 1, "higher_is_better": better}
        path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"f1": about}}))
    detection = page(tmp_path / "results", tmp_path / "board").split("## Detection\n")[1].split("\n## ")[0]
    assert detection.count("### toy · toy") == 2


def test_another_result_of_a_run_does_not_take_its_place(tmp_path: Path) -> None:
    right = put(tmp_path / "results", "a", 0.5)
    own = tmp_path / "results" / "toy" / "toy" / "a" / json.loads((right / "result.json").read_text())["run_id"]
    own.parent.mkdir(parents=True)
    right.rename(own)
    put(tmp_path / "results", "a", 0.9)
    built = build([tmp_path / "results"], tmp_path / "board")
    assert [result.folder for result in built.results] == [own]
    assert "another result of run a-" in built.problems[0]


@pytest.mark.parametrize(
    "text", ['{"schema_version": 2}', '{"schema_version": 1e999}', "[" * 100_000, '{"schema_version": 1' + "0" * 400 + "}"]
)
def test_a_result_that_is_none_is_left_out_and_named(tmp_path: Path, text: str) -> None:
    put(tmp_path / "results", "a", 0.5)
    (put(tmp_path / "results", "b", 0.9) / "result.json").write_text(text)
    built = build([tmp_path / "results"], tmp_path / "board")
    assert len(built.results) == len(built.problems) == 1
    assert "run it again" in built.problems[0] or "is not JSON" in built.problems[0]


def test_a_name_that_turns_the_reading_order_or_never_ends_is_cut_and_shown(tmp_path: Path) -> None:
    put(tmp_path / "results", "a" * 50 + "\u202e" + "b" * 100_000, 0.5)
    readme = page(tmp_path / "results", tmp_path / "board")
    assert "\u202e" not in readme
    assert "a�b" in readme
    assert len(readme) < 20_000


@pytest.mark.parametrize("change", [{"fingerprint": "e" * 64}, {"limit": 20}])
def test_other_content_and_limited_runs_have_tables_of_their_own(tmp_path: Path, change: dict[str, Any]) -> None:
    put(tmp_path / "results", "a", 0.5)
    put(tmp_path / "results", "a", 0.9, **change)
    readme = page(tmp_path / "results", tmp_path / "board")
    detection = readme.split("## Detection\n")[1].split("\n## ")[0]
    headings = [line for line in detection.splitlines() if line.startswith("### ")]
    assert len(headings) == 2
    if "limit" in change:
        assert headings == ["### toy · toy", "### toy · toy (limited to 20 samples per split)"]


def test_a_run_that_was_cut_short_is_left_out_and_named(tmp_path: Path) -> None:
    put(tmp_path / "results", "a", 0.5)
    (put(tmp_path / "results", "b", 0.9) / "STATUS").unlink()
    told = build([tmp_path / "results"], tmp_path / "board").told
    assert told[0].startswith("1 results from ")
    assert "STATUS is missing" in told[1]
    assert "## Left out" in (tmp_path / "board" / "README.md").read_text()


def test_no_results_make_a_page_of_titles(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert rows(page(tmp_path / "results", tmp_path / "board"), "Detection") == []


def test_the_bundled_definitions_are_used_where_a_folder_has_none(tmp_path: Path) -> None:
    assert [board.board for board in definitions(tmp_path)] == ["detection", "layers", "localization", "tokens-explained"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("board: x\ntitle: X\ncolums: []", "unknown key 'colums' in leaderboard definition"),
        ("board: x\ntitle: X", "has no key 'columns'; it is required"),
        ("board: x\ntitle: X\ncolumns:\n- {metric: f1, avrage: macro, name: F1}", "did you mean average?"),
        ("- 1", "is not a mapping"),
        ("a: [", "cannot read leaderboard definition"),
    ],
)
def test_a_bad_definition_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(HarnessError) as error:
        read_board(tmp_path / "x.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
