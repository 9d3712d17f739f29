"""Result files: whole or not there, STATUS last, one folder per set of numbers, no NaN; and what a bad one gets when it is read."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from harness import results
from harness.api import HarnessError, Method, Result, RunSpec, read_result, read_tokens, write_atomic
from harness.pipeline import run
from harness.registry import load
from harness.results import (
    choices_of,
    config,
    file_name,
    find_results,
    run_folder,
    scores_of,
    to_json,
    write_result,
    write_samples,
)
from harness.types import Choice, Score

MAX = Method("max", concepts="linear", detector="max", localizer="direct")
SPEC = RunSpec(task="toy", backbone="toy", methods=(MAX,), output=Path("results"))
TASK = {"name": "toy", "fingerprint": "a1b2", "version": 1}
BACKBONE = {"name": "toy", "revision": "1", "sites": ["0", "1"], "seed": 0}


@contextmanager
def quiet(what: str, total: int, unit: str):
    yield lambda n: None


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A real result: the toy world, twelve samples a split, with its tokens."""
    folder = tmp_path_factory.mktemp("made")
    registry = load()
    methods = (registry.methods()["superactivator"],)
    spec = RunSpec("toy", "toy", methods, limit=12, bootstrap=10, log_tokens=True, cache_dir=folder / "c", output=folder / "r")
    (result,) = run(spec, registry, quiet)
    return result


def small(**changes: Any) -> Result:
    scores = (
        Score("f1", "chosen", "circle", 0.5, 0.25, 0.75, 3),
        Score("f1", "chosen", "star", None, n=0, reason="no positives"),
    )
    choices = (
        Choice("circle", "1", 0.1, 2.5, 0.75),
        Choice("star", None, None, None, None, reason="no positives to calibrate on"),
    )
    return dataclasses.replace(Result(SPEC, MAX, TASK, BACKBONE, scores, choices, {"note": 1}, {"seconds": 0.5}), **changes)


def message(folder: Path) -> str:
    with pytest.raises(HarnessError) as caught:
        read_result(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Written whole, STATUS last


def test_a_run_writes_everything_a_reader_needs_and_nothing_else(made: Result):
    names = {path.name for path in made.path.iterdir()}
    evidence = {"per_sample", "calibration", "scores", "localization", "map_calibration", "token_ranking", "sample_values"}
    assert names == {*(f"{name}.parquet" for name in evidence), "tokens.safetensors", "config.yaml", "result.json", "STATUS"}
    assert (made.path / "STATUS").read_text() == "complete"


def test_per_sample_scores_are_written_first_and_the_status_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    order: list[str] = []

    def recorded(path: Path, data: bytes) -> None:
        if path.is_relative_to(tmp_path / "out"):
            order.append(path.name)
        write_atomic(path, data)

    monkeypatch.setattr(results, "write_atomic", recorded)
    registry = load()
    spec = RunSpec(
        "toy", "toy", (registry.methods()["coin"],), limit=6, bootstrap=2, cache_dir=tmp_path, output=tmp_path / "out"
    )
    run(spec, registry, quiet)
    assert order[0] == "per_sample.parquet"
    assert order[-1] == "STATUS"
    assert order.index("per_sample.parquet") < order.index("result.json")


def test_per_sample_scores_are_on_disk_when_a_metric_fails_and_the_result_is_not_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def broken(*given: Any) -> None:
        raise RuntimeError("a metric with a bug")

    monkeypatch.setattr("harness.publish.all_rows", broken)
    registry = load()
    spec = RunSpec("toy", "toy", (registry.methods()["coin"],), limit=6, bootstrap=2, cache_dir=tmp_path / "c", output=tmp_path)
    with pytest.raises(RuntimeError, match="a metric with a bug"):
        run(spec, registry, quiet)
    (samples,) = tmp_path.rglob("per_sample.parquet")
    assert pq.read_table(samples).num_rows == 2 * 6 * 3
    assert not list(tmp_path.rglob("STATUS"))


def test_a_run_that_starts_again_takes_the_status_away_before_it_touches_anything(tmp_path: Path):
    write_result(tmp_path, small())
    assert read_result(tmp_path)
    write_samples(tmp_path, {"id": ["a"], "score": [0.5]})
    assert "no complete result" in message(tmp_path)


def test_a_crash_between_result_and_status_leaves_no_complete_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def stops(path: Path, data: bytes) -> None:
        if path.name == "STATUS":
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr(results, "write_atomic", stops)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path, small())
    assert "no complete result" in message(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(HarnessError) as caught:
        write_atomic(path, b"new")
    assert str(caught.value) == f"cannot write {path}; No space left on device; free some space or choose another folder"
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_write_makes_its_folders_and_a_file_that_others_may_read(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_write_below_a_file_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HarnessError, match=r"cannot write .*file/below; .*choose another folder"):
        write_atomic(tmp_path / "file" / "below", b"x")


# One folder per set of numbers

CHANGES_A_NUMBER: dict[str, Any] = {
    "image_size": 224,
    "normalization": "none",
    "limit": 10,
    "dtype": "bfloat16",
    "seed": 1,
    "bootstrap": 10,
    "cache_bytes": 1000,
    "explain_limit": 1,
}
CHANGES_NONE: dict[str, Any] = {
    "output": Path("elsewhere"),
    "cache_dir": Path("elsewhere"),
    "guards": "full",
    "log_tokens": True,
    "methods": (MAX, Method("mean", concepts="linear", detector="mean")),
}
DESCRIBED: dict[str, Any] = {
    "task": "toy:seed=1",
    "backbone": "toy:seed=1",
    "layers": "last",
    "streams": ("residual", "mlp"),
}
"""Words for what the fingerprint and the backbone's description (sites, weights, identity) hold: other words, the same run."""
LAST_BITS = {"device", "batch_size", "block_tokens"}
"""Change the order of sums at most: no decision; whether they change the id is open."""


def folder(spec: RunSpec = SPEC, method: Method = MAX, task: Any = None, backbone: Any = None) -> str:
    return run_folder(spec, method, task or TASK, backbone or BACKBONE).name


def test_every_option_of_a_run_is_known_to_change_a_number_or_not():
    fields = {field.name for field in dataclasses.fields(RunSpec)}
    assert fields == {*CHANGES_A_NUMBER, *CHANGES_NONE, *DESCRIBED, *LAST_BITS}


@pytest.mark.parametrize("name", CHANGES_A_NUMBER)
def test_an_option_that_changes_a_number_changes_the_run_id(name: str):
    assert folder(dataclasses.replace(SPEC, **{name: CHANGES_A_NUMBER[name]})) != folder()


@pytest.mark.parametrize("name", CHANGES_NONE)
def test_an_option_that_changes_no_number_keeps_the_run_id(name: str):
    assert folder(dataclasses.replace(SPEC, **{name: CHANGES_NONE[name]})) == folder()


@pytest.mark.parametrize("changes", [{"task": "toy:seed=1"}, {"backbone": "toy:seed=1"}, {"layers": "last"}, {"layers": "0,1"}])
def test_another_task_backbone_or_layer_is_another_run(changes: dict[str, Any], tmp_path: Path):
    registry = load()
    options = {"limit": 6, "bootstrap": 2, "cache_dir": tmp_path / "c", "output": tmp_path / "r"}
    base = RunSpec("toy", "toy", (registry.methods()["max"],), **options)
    ids = [run(spec, registry, quiet)[0].path.name for spec in (base, dataclasses.replace(base, **changes))]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"concepts": "mean"},
        {"concepts": "linear:estimator=adam"},
        {"detector": "mean"},
        {"localizer": "superactivator"},
        {"localizer": None},
        {"fit_on": "summary"},
        {"match": "one-to-one"},
        {"choose_on": "test"},
        {"localize_on": "explained"},
    ],
    ids=str,
)
def test_a_recipe_that_keeps_its_name_and_changes_a_part_gets_another_run_id(changed: dict[str, Any]):
    assert folder(method=dataclasses.replace(MAX, **changed)) != folder()


def test_what_a_recipe_says_of_itself_is_no_part_of_the_run_id():
    assert folder(method=dataclasses.replace(MAX, summary="other words", tags=("core", "mine"))) == folder()


@pytest.mark.parametrize(
    ("task", "backbone"),
    [
        ({"fingerprint": "other"}, {}),
        ({}, {"revision": "2"}),
        ({}, {"sites": ["0"]}),
        ({}, {"seed": 1}),
        ({}, {"geometry": "crop"}),
    ],
    ids=str,
)
def test_other_content_weights_sites_or_geometry_give_another_run_id(task: dict[str, Any], backbone: dict[str, Any]):
    assert folder(task={**TASK, **task}, backbone={**BACKBONE, **backbone}) != folder()


def test_the_same_sites_in_other_words_are_the_same_run():
    """`--layers all` and `--layers 0:2` of a model of two blocks: the sites are part of the backbone's description."""
    assert folder(dataclasses.replace(SPEC, layers="0:2")) == folder()


@pytest.mark.parametrize("name", DESCRIBED)
def test_other_words_for_the_same_content_weights_and_sites_are_the_same_run(name: str):
    assert folder(dataclasses.replace(SPEC, **{name: DESCRIBED[name]})) == folder()


def test_the_run_id_does_not_depend_on_the_order_in_which_a_description_was_written():
    assert folder(backbone=dict(reversed(BACKBONE.items()))) == folder()


def test_the_folder_names_task_backbone_method_and_run_and_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = run_folder(SPEC, MAX, {**TASK, "name": "my task"}, {**BACKBONE, "name": "org/model"})
    assert found.parent == tmp_path / "results" / "my_task" / "org__model" / "max"
    assert len(found.name) == 12


def test_a_folder_below_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(dataclasses.replace(SPEC, output=Path("~/r")), MAX, TASK, BACKBONE).is_relative_to(tmp_path / "r")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/model", "org__model"),
        ("linear:estimator=adam+max", "linear_estimator=adam+max"),
        ("../../etc", "__..__etc"),
        ("..", "_"),
        ("", "_"),
        ("a b\nc", "a_b_c"),
        ("naïve", "na_ve"),
        (".hidden", "hidden"),
    ],
)
def test_a_name_is_one_plain_path_component(text: str, name: str):
    found = file_name(text)
    assert "/" not in found
    assert found not in ("", ".", "..")
    assert not found.startswith(".")
    if text != "../../etc":
        assert found == name


def test_the_same_run_lands_in_the_same_folder_with_the_same_numbers(made: Result):
    registry = load()
    (again,) = run(made.spec, registry, quiet)
    assert again.path == made.path
    assert again.scores == made.scores
    assert again.choices == made.choices


# No NaN, and back again


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_result_file_holds_no_nan_and_no_infinity(made: Result):
    strict((made.path / "result.json").read_text())
    json.dumps(to_json(made), allow_nan=False)


def test_an_undefined_score_is_null_with_a_reason(tmp_path: Path):
    write_result(tmp_path, small())
    row = strict((tmp_path / "result.json").read_text())["scores"][1]
    assert row["value"] is None
    assert row["reason"] == "no positives"


def test_every_null_of_a_real_result_has_a_reason(made: Result):
    assert all(score.value is not None or score.reason for score in made.scores)
    assert all(choice.cutoff is not None or choice.reason for choice in made.choices)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_never_written(tmp_path: Path, value: float):
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path, small(scores=(Score("f1", "chosen", "circle", value),)))
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "STATUS").exists()


def test_what_was_written_is_read_back_as_it_was(made: Result):
    read = read_result(made.path)
    assert tuple(scores_of(read)) == made.scores
    assert tuple(choices_of(read)) == made.choices
    assert read["schema_version"] == 2
    assert read["run_id"] == made.path.name
    assert read["task"]["fingerprint"] == made.task["fingerprint"]


def test_a_result_says_where_it_was_made(made: Result):
    provenance = read_result(made.path)["provenance"]
    assert provenance["packages"]["torch"] == torch.__version__
    assert made.provenance["samples embedded"] == 36
    assert {"harness", "python", "platform", "finished", "seconds", "device", "dtype", "storage"} <= set(provenance)


def test_per_sample_scores_repeat_the_decisions_behind_the_numbers(made: Result):
    rows = pq.read_table(made.path / "per_sample.parquet").to_pylist()
    assert {row["split"] for row in rows} == {"cal", "test"}
    for choice in made.choices:
        mine = [row for row in rows if row["split"] == "test" and row["concept"] == choice.concept]
        assert len(mine) == 12
        assert {row["layer"] for row in mine} == {choice.layer}
        hits = sum(row["detected"] and row["label"] for row in mine)
        wrong = sum(row["detected"] != row["label"] for row in mine)
        assert made.score("f1", concept=choice.concept).value == pytest.approx(2 * hits / (2 * hits + wrong))
        for row in mine:
            assert row["detected"] == (row["score"] is not None and row["score"] >= choice.cutoff)


def test_the_calibration_file_holds_every_level_layer_and_concept(made: Result):
    table = pq.read_table(made.path / "calibration.parquet")
    assert table.num_rows == 12 * 4 * 3
    assert set(table.column_names) == {"level", "layer", "concept", "cutoff", "tp", "fp", "fn", "f1"}


def test_logged_tokens_are_read_back_with_what_they_mean(made: Result):
    tensors, about = read_tokens(made.path)
    count = int(tensors["offsets"][-1])
    assert tensors["activations"].shape == tensors["map"].shape == tensors["truth"].shape == (count, 3)
    assert len(about["ids"]) == 12
    assert about["concepts"] == ["circle", "square", "star"]


def test_tokens_that_were_not_logged_are_one_line_that_says_how_to_get_them(tmp_path: Path):
    with pytest.raises(HarnessError, match=r"no logged tokens in .*; run again with --log-tokens"):
        read_tokens(tmp_path)


def test_tokens_that_cannot_be_read_are_one_line(tmp_path: Path):
    (tmp_path / "tokens.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(HarnessError) as caught:
        read_tokens(tmp_path)
    assert "\n" not in str(caught.value)


# The config that repeats a run


def test_the_config_names_the_options_of_the_command_line_and_nothing_that_is_unset(made: Result):
    from harness.cli import cli

    read = yaml.safe_load((made.path / "config.yaml").read_text())
    assert set(read) <= {parameter.name for parameter in cli.commands["run"].params}
    assert None not in read.values()
    assert read["method"] == ["superactivator"]
    assert read["limit"] == 12


def test_the_config_of_a_composed_method_names_its_parts():
    method = Method("x", concepts="mean", detector="max", localizer=None, tags=("composed",))
    found = config(SPEC, method)
    assert (found["concept_method"], found["detector"]) == ("mean", "max")
    assert "localizer" not in found
    assert "method" not in found


def test_the_config_is_plain_data_that_yaml_and_json_can_hold():
    assert yaml.safe_load(yaml.safe_dump(config(SPEC, MAX))) == config(SPEC, MAX)
    assert json.loads(json.dumps(config(SPEC, MAX))) == config(SPEC, MAX)


# What a bad result gets


def test_a_folder_that_holds_nothing_is_no_result(tmp_path: Path):
    assert message(tmp_path / "nowhere") == (
        f"no complete result in {tmp_path / 'nowhere'}; STATUS is missing, so the run was cut short; run it again"
    )


def test_a_status_of_another_word_is_no_result(tmp_path: Path):
    write_result(tmp_path, small())
    (tmp_path / "STATUS").write_text("running")
    assert "no complete result" in message(tmp_path)


def test_a_status_without_a_result_file_is_no_result(tmp_path: Path):
    write_result(tmp_path, small())
    (tmp_path / "result.json").unlink()
    assert "no complete result" in message(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "\x00\x01"])
def test_a_result_file_that_is_not_json_is_named(tmp_path: Path, text: str):
    write_result(tmp_path, small())
    (tmp_path / "result.json").write_text(text)
    assert message(tmp_path).startswith(f"{tmp_path / 'result.json'} is not JSON; ")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_a_result_file_that_is_json_of_another_kind_is_named(tmp_path: Path, text: str):
    write_result(tmp_path, small())
    (tmp_path / "result.json").write_text(text)
    assert str(tmp_path / "result.json") in message(tmp_path)


def test_a_result_file_that_is_not_text_is_named(tmp_path: Path):
    write_result(tmp_path, small())
    (tmp_path / "result.json").write_bytes(b"\xff\xfe\xff")
    assert str(tmp_path / "result.json") in message(tmp_path)


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_a_result_of_another_schema_version_is_refused_with_both_versions(tmp_path: Path, version: Any):
    write_result(tmp_path, small())
    read = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**read, "schema_version": version}))
    assert message(tmp_path) == f"{tmp_path / 'result.json'} has schema version {version!r}; this harness reads 2"


def test_results_are_found_below_a_folder_in_name_order(tmp_path: Path):
    for name in ("b/2", "a/1", "b/1"):
        write_result(tmp_path / name, small())
    assert [str(path.relative_to(tmp_path)) for path in find_results(tmp_path)] == ["a/1", "b/1", "b/2"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path):
    tmp_path.chmod(0o555)
    with pytest.raises(HarnessError, match=r"cannot write .*; Permission denied; .*choose another folder"):
        write_atomic(tmp_path / "file", b"x")
