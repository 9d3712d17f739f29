"""The command line as a person meets it: every command once for real, every option three ways, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import save_file

from harness import __version__
from harness.api import SPLITS, RunSpec
from harness.cli import cli, main
from harness.registry import KINDS, load

STATED = "metadata: {source: a test, license: CC0-1.0, citation: none}\n"
SMALL = ("--limit", "8", "--bootstrap", "20")
DETECTOR = """
from harness.api import Entry, hookimpl, segment_max


class Strongest:
    calibrate_on = "samples"

    def pool(self, activations, block):
        return segment_max(activations, block.offsets)


@hookimpl
def harness_register_detectors():
    return [Entry("strongest", "my_cli_detector:Strongest", "as max")]
"""


class Said:
    """What a command did: exit code, stdout, stderr."""

    def __init__(self, code: int | None, out: str, err: str) -> None:
        self.code, self.out, self.err = code or 0, out, err


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the caller, a cache of its own, and a working folder where results may fall."""
    for name in [name for name in os.environ if name.startswith("HARNESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def refused(harness: Callable[..., Said]) -> Callable[..., str]:
    """The one line that a mistake gets: exit code 2, nothing on stdout, no traceback."""

    def call(*arguments: object) -> str:
        said = harness(*arguments)
        assert said.code == 2, said.out + said.err
        assert said.out == ""
        (line,) = [line for line in said.err.splitlines() if line.strip()]
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return call


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The specs that `harness run` would run; nothing runs."""
    specs: list[RunSpec] = []
    monkeypatch.setattr("harness.pipeline.run", lambda spec, *more: specs.append(spec) or [])
    return specs


def subprocess_harness(*arguments: object, folder: Path, **environment: str) -> Said:
    """Runs the console script."""
    script = Path(sysconfig.get_path("scripts")) / "harness"
    given = {key: value for key, value in os.environ.items() if not key.startswith("HARNESS_")}
    given.update(OMP_NUM_THREADS="1", **environment)
    done = subprocess.run(
        [script, *map(str, arguments)], capture_output=True, text=True, cwd=folder, env=given, timeout=120, check=False
    )
    return Said(done.returncode, done.stdout, done.stderr)


class Finished:
    """A run of the toy task by the console script, and where it left its result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arguments = ("run", "--task", "toy", "--method", "max", *SMALL, "--cache-dir", folder / "cache")
        self.said = subprocess_harness(*arguments, folder=folder)
        assert self.said.code == 0, self.said.err
        (self.result,) = (path.parent for path in (folder / "results").rglob("result.json"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


def detector_file(folder: Path) -> Path:
    path = folder / "my_cli_detector.py"
    path.write_text(DETECTOR)
    return path


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def results_below(folder: Path) -> list[dict[str, Any]]:
    return [strict(path.read_text()) for path in sorted(folder.rglob("result.json"))]


# Every command once, for real


def test_run_prints_the_table_and_the_absolute_path_on_stdout_and_nothing_else_there(finished: Finished):
    out = finished.said.out
    assert "F1 weighted" in out
    assert f"wrote {finished.result.absolute()}" in out.splitlines()
    (row,) = [line for line in out.splitlines() if line.split()[:1] == ["max"]]
    assert row.count("[") >= 3
    assert "Traceback" not in finished.said.err
    assert "embedding" not in out


def test_list_show_plugins_and_validate_answer_for_real(tmp_path: Path):
    task = tmp_path / "mine.yaml"
    task.write_text("task: mine\nmodality: tokens\ndataset: {name: toy}\nconcepts: [star, circle]\nbackbone: toy\n" + STATED)
    expected = {
        ("list",): "superactivator",
        ("show", "toy"): "task toy",
        ("plugins",): "harness_toy",
        ("validate", task): "task mine",
    }
    for arguments, word in expected.items():
        said = subprocess_harness(*arguments, folder=tmp_path)
        assert said.code == 0, said.err
        assert word in said.out
        assert said.err == ""


def test_leaderboard_build_writes_its_pages_for_real_and_the_same_bytes_again(finished: Finished, tmp_path: Path):
    arguments = ("leaderboard", "build", finished.folder / "results", "--output", tmp_path / "pages")
    first = subprocess_harness(*arguments, folder=tmp_path)
    assert first.code == 0, first.err
    pages = {path.name: path.read_bytes() for path in (tmp_path / "pages").rglob("*.*")}
    assert {"README.md", "index.html"} <= set(pages)
    assert b"max" in pages["README.md"]
    assert b"<html" in pages["index.html"]
    assert f"wrote {(tmp_path / 'pages' / 'README.md').absolute()}" in first.out.splitlines()
    main_again = subprocess_harness(*arguments, folder=tmp_path)
    assert main_again.code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "pages").rglob("*.*")} == pages


# Help, lists, show


def commands(group: click.Group, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = [(path, group)]
    for name, command in group.commands.items():
        inner = commands(command, *path, name) if isinstance(command, click.Group) else [((*path, name), command)]
        found += inner
    return found


COMMANDS = commands(cli)


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=lambda path: " ".join(path) or "harness")
def test_every_command_has_help_that_is_its_answer(path: tuple[str, ...], harness: Callable[..., Said]):
    said = harness(*path, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Usage: harness")
    assert harness(*path, "-h").out == said.out


@pytest.mark.parametrize(
    ("path", "command"),
    [(p, c) for p, c in COMMANDS if not isinstance(c, click.Group)],
    ids=lambda x: " ".join(x) if type(x) is tuple else "",
)
def test_every_command_and_every_option_explains_itself_and_the_help_has_an_example(
    path: tuple[str, ...], command: click.Command
):
    assert re.search(rf"^ +harness (-p \S+ )?{' '.join(path)}", command.help or "", re.MULTILINE)
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


def test_no_command_at_all_prints_the_help_and_exits_with_2(harness: Callable[..., Said]):
    said = harness()
    assert said.code == 2
    assert "Usage: harness" in said.out + said.err


def test_the_version_is_the_one_of_the_package(harness: Callable[..., Said]):
    assert harness("--version").out.strip().endswith(__version__)


@pytest.mark.parametrize("kind", ["tasks", "methods", *(kind.replace("_", "-") for kind in KINDS)])
def test_every_kind_can_be_listed_by_itself_with_a_summary_for_each_name(kind: str, harness: Callable[..., Said]):
    said = harness("list", kind)
    assert (said.code, said.err) == (0, "")
    head, *rows = said.out.splitlines()
    assert head == kind
    assert rows
    assert all(len(row.split(maxsplit=1)) == 2 for row in rows)
    assert harness("list", kind.replace("-", "_")).out == said.out


def test_a_list_is_json_where_a_machine_reads_it(harness: Callable[..., Said]):
    read = strict(harness("list", "--json").out)
    assert set(read) == {"tasks", "methods", *KINDS}
    assert "toy" in read["tasks"]
    assert strict(harness("list", "detectors", "--json").out) == {"detectors": read["detectors"]}


def test_the_plugins_are_json_where_a_machine_reads_it(harness: Callable[..., Said]):
    rows = strict(harness("plugins", "--json").out)
    assert {"name", "origin", "version", "broken"} == set(rows[0])
    assert {row["name"] for row in rows} >= {"toy", "pooling"}
    assert not [row for row in rows if row["broken"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toy", ["task toy", "dataset toy", "backbone toy"]),
        ("superactivator", ["method superactivator", "detector superactivator", "localizer superactivator"]),
        ("linear", ["concept method linear, from plugin vectors", "estimator"]),
        ("f1", ["metric f1, from plugin metrics"]),
        ("coin", ["method coin", "scorer coin"]),
    ],
)
def test_show_describes_everything_of_a_name(name: str, words: list[str], harness: Callable[..., Said]):
    said = harness("show", name)
    assert (said.code, said.err) == (0, "")
    assert all(word in said.out for word in words)


def test_validate_takes_a_file_and_the_name_of_a_task(harness: Callable[..., Said], tmp_path: Path):
    by_name = harness("validate", "toy")
    assert by_name.code == 0
    declared = "task: toy\nmodality: tokens\ndataset: {name: toy}\nconcepts: [circle, square, star]\n"
    (tmp_path / "toy.yaml").write_text(declared + STATED)
    by_file = harness("validate", "toy.yaml")
    assert by_file.out == by_name.out
    assert "circle" in by_file.out


# Options: `_` and `-`, lists, environment


def test_underscores_and_hyphens_are_the_same_in_every_flag(planned: list[RunSpec], harness: Callable[..., Said]):
    for sign in "_-":
        flags = [f"--batch{sign}size", "3", f"--concept{sign}method=mean", f"--log{sign}tokens", f"--cache{sign}bytes=7"]
        assert harness("run", "--task", "toy", *flags).code == 0
    first, second = planned
    assert first == second
    assert (first.batch_size, first.log_tokens, first.cache_bytes) == (3, True, 7)
    assert first.methods[0].concepts == "mean"


def test_underscores_inside_a_value_stay(planned: list[RunSpec], harness: Callable[..., Said]):
    assert harness("run", "--task", "toy", "--output=a_b", "--backbone=toy:some_key=x_y").code == 0
    assert planned[0].output == Path("a_b")
    assert planned[0].backbone == "toy:some_key=x_y"


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "max,mean"],
        ["--method", "max", "--method", "mean"],
        ["-m", "max", "-m", "mean"],
        ["--method=max, mean"],
        ["--method", "max,,mean,"],
        ["--method", "max,mean", "--method", "max"],
    ],
    ids=str,
)
def test_a_list_is_comma_separated_or_a_repeated_flag(flags: list[str], planned: list[RunSpec], harness: Callable[..., Said]):
    assert harness("run", "--task", "toy", *flags).code == 0
    assert [method.name for method in planned[0].methods] == ["max", "mean"]


def test_streams_are_a_list_too(planned: list[RunSpec], harness: Callable[..., Said]):
    harness("run", "--task", "toy", "--streams", "mlp,residual", "--streams", "attention")
    assert planned[0].streams == ("mlp", "residual", "attention")


def test_all_methods_are_the_core_ones_and_a_tag_is_all_that_have_it(planned: list[RunSpec], harness: Callable[..., Said]):
    harness("run", "--task", "toy", "--method", "all")
    harness("run", "--task", "toy", "--method", "detection")
    harness("run", "--task", "toy")
    names = [[method.name for method in spec.methods] for spec in planned]
    known = load().methods()
    assert names[0] == [name for name, method in known.items() if "core" in method.tags]
    assert set(names[1]) == {"superactivator", "max", "mean", "last", "random", "summary"}
    assert names[2] == ["superactivator"]


def test_a_model_is_a_backbone(planned: list[RunSpec], harness: Callable[..., Said]):
    for flag in ("--model", "--backbone", "-b"):
        assert harness("run", "--task", "toy", flag, "toy:seed=1").code == 0
    assert [spec.backbone for spec in planned] == ["toy:seed=1"] * 3


def test_a_method_is_composed_of_parts_and_stands_beside_named_ones(planned: list[RunSpec], harness: Callable[..., Said]):
    harness(
        "run", "--task", "toy", "--concept-method", "mean", "--detector", "max", "--localizer", "direct", "--method", "coin"
    )
    composed, named = planned[0].methods
    assert (composed.concepts, composed.detector, composed.localizer) == ("mean", "max", "direct")
    assert named.name == "coin"


ENVIRONMENT: Mapping[str, tuple[str, Callable[[RunSpec], Any], Any]] = {
    "task": ("toy", lambda spec: spec.task, "toy"),
    "backbone": ("toy:seed=1", lambda spec: spec.backbone, "toy:seed=1"),
    "method": ("max,mean", lambda spec: [method.name for method in spec.methods], ["max", "mean"]),
    "concept_method": ("mean", lambda spec: spec.methods[0].concepts, "mean"),
    "detector": ("max", lambda spec: spec.methods[0].detector, "max"),
    "localizer": ("direct", lambda spec: spec.methods[0].localizer, "direct"),
    "scorer": ("coin", lambda spec: spec.methods[0].scorer, "coin"),
    "fit_on": ("summary", lambda spec: spec.methods[0].fit_on, "summary"),
    "match": ("one-to-one", lambda spec: spec.methods[0].match, "one-to-one"),
    "explain_limit": ("3", lambda spec: spec.explain_limit, 3),
    "layers": ("0:4:2", lambda spec: spec.layers, "0:4:2"),
    "streams": ("mlp,attention", lambda spec: spec.streams, ("mlp", "attention")),
    "image_size": ("224", lambda spec: spec.image_size, 224),
    "normalization": ("none", lambda spec: spec.normalization, "none"),
    "limit": ("5", lambda spec: spec.limit, 5),
    "device": ("cpu", lambda spec: spec.device, "cpu"),
    "dtype": ("bfloat16", lambda spec: spec.dtype, "bfloat16"),
    "batch_size": ("3", lambda spec: spec.batch_size, 3),
    "seed": ("7", lambda spec: spec.seed, 7),
    "bootstrap": ("11", lambda spec: spec.bootstrap, 11),
    "guards": ("full", lambda spec: spec.guards, "full"),
    "log_tokens": ("1", lambda spec: spec.log_tokens, True),
    "output": ("elsewhere", lambda spec: spec.output, Path("elsewhere")),
    "cache_dir": ("kept", lambda spec: spec.cache_dir, Path("kept")),
    "cache_bytes": ("99", lambda spec: spec.cache_bytes, 99),
    "block_tokens": ("64", lambda spec: spec.block_tokens, 64),
}
"""Option of `run` -> (value of its variable, where it arrives, what arrives)."""
OTHERS = {"dry_run", "as_json", "config", "plugin", "help"}


def test_every_option_of_run_is_tested_as_a_variable():
    assert {parameter.name for parameter in cli.commands["run"].params} - {"help"} == {*ENVIRONMENT, *OTHERS} - {"help"}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_an_option_may_be_an_environment_variable_and_the_flag_wins(
    name: str, planned: list[RunSpec], harness: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
):
    value, where, expected = ENVIRONMENT[name]
    base = [] if name == "task" else ["--task", "toy"]
    monkeypatch.setenv(f"HARNESS_{name.upper()}", value)
    said = harness("run", *base)
    assert said.code == 0, said.err
    assert where(planned[0]) == expected
    monkeypatch.setenv(f"HARNESS_{name.upper()}", {"log_tokens": "0", "guards": "off", "task": "clevr"}.get(name, "2"))
    flag = [f"--{name}"] if name == "log_tokens" else [f"--{name}", value]
    assert harness("run", *base, *flag).code == 0
    assert where(planned[1]) == expected


def test_the_remaining_options_are_environment_variables_too(
    planned: list[RunSpec], harness: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "run.yaml").write_text("seed: 4\n")
    monkeypatch.setenv("HARNESS_CONFIG", str(tmp_path / "run.yaml"))
    monkeypatch.setenv("HARNESS_JSON", "1")
    assert strict(harness("run", "--task", "toy").out) == []
    assert planned.pop().seed == 4
    monkeypatch.delenv("HARNESS_JSON")
    monkeypatch.setenv("HARNESS_DRY_RUN", "1")
    assert "passes" in harness("run", "--task", "toy").out
    assert not planned
    monkeypatch.setenv("HARNESS_PLUGIN", str(detector_file(tmp_path)))
    assert "my_cli_detector" in harness("plugins").out


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=lambda path: " ".join(path) or "harness")
def test_every_option_of_every_command_names_its_variable(path: tuple[str, ...]):
    command = dict(COMMANDS)[path]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "version"):
            name = {"as_json": "JSON"}.get(str(parameter.name), str(parameter.name).upper())
            scope = (
                "LEADERBOARD_" if path == ("leaderboard", "build") and name == "OUTPUT" else ""
            )  # `run --output` is another folder
            assert parameter.envvar == f"HARNESS_{scope}{name}", parameter.name


# Plugins given with -p


@pytest.mark.parametrize("place", ["before", "after", "joined", "equals", "under"])
def test_a_plugin_may_be_given_before_or_after_the_command(place: str, harness: Callable[..., Said], tmp_path: Path):
    path = str(detector_file(tmp_path))
    words = {
        "before": ["-p", path, "list", "detectors"],
        "after": ["list", "detectors", "-p", path],
        "joined": [f"-p{path}", "list", "detectors"],
        "equals": ["list", "detectors", f"--plugin={path}"],
        "under": ["list", "--plugin", path, "detectors"],
    }[place]
    said = harness(*words)
    assert said.code == 0, said.err
    assert "strongest" in said.out


def test_a_detector_from_a_file_runs_like_a_bundled_one(harness: Callable[..., Said], tmp_path: Path):
    said = harness("-p", detector_file(tmp_path), "run", "--task", "toy", "--detector", "strongest", *SMALL, "--json")
    (mine,) = strict(said.out)
    (bundled,) = strict(harness("run", "--task", "toy", "--detector", "max", *SMALL, "--json").out)
    assert mine["method"]["detector"] == "strongest"
    assert mine["scores"] == bundled["scores"]


def test_a_plugin_is_left_out_with_no(harness: Callable[..., Said], refused: Callable[..., str]):
    assert "max" not in harness("-p", "no:pooling", "list", "detectors").out.split()
    assert "max" in harness("list", "detectors").out.split()
    assert refused("-p", "no:guesing", "list").startswith("unknown plugin 'guesing' in -p no:guesing; did you mean guessing?")


def test_a_plugin_file_that_is_not_there_is_one_line(refused: Callable[..., str]):
    assert refused("-p", "nothing.py", "list").startswith("no plugin file nothing.py; given with -p; looked for /")


def test_a_flag_without_its_value_is_one_line(refused: Callable[..., str]):
    refused("list", "-p")
    refused("run", "--task")


def test_a_command_that_a_plugin_adds_is_there_with_it_and_gone_without_it(
    harness: Callable[..., Said], refused: Callable[..., str], tmp_path: Path
):
    path = tmp_path / "my_cli_command.py"
    path.write_text(
        "import click\n\nfrom harness.api import hookimpl\n\n\n@hookimpl\ndef harness_add_commands(cli):\n"
        "    @cli.command()\n    def greet():\n        '''Greets.'''\n        click.echo('hello')\n"
    )
    assert harness("-p", path, "greet").out == "hello\n"
    assert "No such command" in refused("greet")


# What a run is: tasks x backbones, config, plan, JSON


def test_several_tasks_and_backbones_are_every_pair(planned: list[RunSpec], harness: Callable[..., Said]):
    harness("run", "--task", "toy,toy:seed=1", "--backbone", "toy", "--backbone", "toy:seed=1")
    assert [(spec.task, spec.backbone) for spec in planned] == [
        ("toy", "toy"),
        ("toy", "toy:seed=1"),
        ("toy:seed=1", "toy"),
        ("toy:seed=1", "toy:seed=1"),
    ]


def test_several_pairs_give_a_result_and_a_table_each(harness: Callable[..., Said], tmp_path: Path):
    said = harness("run", "--task", "toy,toy:seed=1", "--backbone", "toy,toy:seed=1", "--method", "coin", *SMALL)
    assert said.code == 0, said.err
    assert len(results_below(tmp_path / "results")) == 4
    assert said.out.count("wrote ") == 4
    assert len([line for line in said.out.splitlines() if line.split()[:1] == ["coin"]]) == 4


def test_a_task_brings_its_own_backbone(planned: list[RunSpec], harness: Callable[..., Said]):
    harness("run", "--task", "toy")
    assert planned[0].backbone == "toy"


def numbers(result: Mapping[str, Any]) -> Any:
    return result["scores"], result["choices"], result["run_id"]


@pytest.mark.parametrize(
    "chosen",
    [
        ["--method", "superactivator"],
        ["--concept-method", "mean", "--detector", "max", "--localizer", "direct"],
        ["--concept-method", "linear:estimator=logistic", "--detector", "random"],
        ["--method", "summary", "--streams", "residual"],
    ],
    ids=lambda words: " ".join(words),
)
def test_the_config_that_a_run_writes_repeats_it_with_identical_numbers(
    chosen: Sequence[str], harness: Callable[..., Said], tmp_path: Path
):
    odd = ["--layers", "0:4:2", "--seed", "3", "--normalization", "standardize", "--batch-size", "5", "--block-tokens", "50"]
    first = harness("run", "--task", "toy", *chosen, *odd, *SMALL, "--output", "once", "--log-tokens")
    assert first.code == 0, first.err
    (config,) = (tmp_path / "once").rglob("config.yaml")
    again = harness("run", "--config", config, "--output", "twice")
    assert again.code == 0, again.err
    (one,), (two,) = results_below(tmp_path / "once"), results_below(tmp_path / "twice")
    assert numbers(one) == numbers(two)
    assert one["config"] == two["config"]
    assert not {"output", "cache_dir"} & set(one["config"])


def test_flags_and_environment_win_over_the_config(
    planned: list[RunSpec], harness: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "run.yaml").write_text("task: toy\nmethod: [max, mean]\nseed: 1\nlimit: 2\nlayers: last\nlog_tokens: true\n")
    monkeypatch.setenv("HARNESS_LIMIT", "3")
    harness("run", "--config", "run.yaml", "--seed", "4", "--method", "coin")
    (spec,) = planned
    assert (spec.task, spec.seed, spec.limit, spec.layers, spec.log_tokens) == ("toy", 4, 3, "last", True)
    assert [method.name for method in spec.methods] == ["coin"]


def test_the_order_of_config_and_flags_does_not_matter(planned: list[RunSpec], harness: Callable[..., Said], tmp_path: Path):
    (tmp_path / "run.yaml").write_text("task: toy\nseed: 1\n")
    harness("run", "--seed", "4", "--config", "run.yaml")
    assert planned[0].seed == 4


def test_a_config_may_use_hyphens_and_lists(planned: list[RunSpec], harness: Callable[..., Said], tmp_path: Path):
    (tmp_path / "run.yaml").write_text("task: [toy, 'toy:seed=1']\nbatch-size: 3\nstreams: [residual]\nlayers: 2\n")
    said = harness("run", "--config", "run.yaml")
    assert said.code == 0, said.err
    assert [spec.task for spec in planned] == ["toy", "toy:seed=1"]
    assert planned[0].batch_size == 3
    assert planned[0].layers == "2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: toy\nseeds: 1\n", "unknown key 'seeds' in config run.yaml; did you mean seed"),
        ("task: toy\nmetod: max\n", "unknown key 'metod' in config run.yaml; did you mean method"),
        ("- toy\n", "config run.yaml holds no mapping"),
        ("", "config run.yaml holds no mapping"),
        ("task: [\n", "cannot read config run.yaml; "),
        ("task: toy\nseed: many\n", "Invalid value for '--seed'"),
        ("task: toy\nlimit: 0\n", "Invalid value for '--limit'"),
        ("task: toy\nguards: some\n", "Invalid value for '--guards'"),
        ("task: {a: b}\n", "task"),
    ],
    ids=str,
)
def test_a_bad_config_is_one_line_that_names_file_key_and_nearest(
    text: str, words: str, refused: Callable[..., str], tmp_path: Path
):
    (tmp_path / "run.yaml").write_text(text)
    assert words in refused("run", "--config", "run.yaml")


def test_a_config_that_is_not_there_is_one_line(refused: Callable[..., str]):
    assert refused("run", "--config", "nothing.yaml").startswith("cannot read config nothing.yaml; ")


def test_a_dry_run_prints_the_plan_computes_nothing_and_writes_nothing(
    harness: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def computed(*given: Any) -> None:
        raise AssertionError("a dry run made a forward pass")

    monkeypatch.setattr("harness_toy.world.ToyBackbone.forward", computed)
    said = harness("run", "--task", "toy", "--method", "all", "--dry-run")
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines()] == ["task", "backbone", "methods", "passes", "storage", "output"]
    assert "280" in said.out
    assert str(tmp_path / "results") in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_after_a_run_says_that_everything_is_cached(harness: Callable[..., Said]):
    harness("run", "--task", "toy", "--method", "max", *SMALL)
    assert "cached" in harness("run", "--task", "toy", "--method", "mean", *SMALL, "--dry-run").out


def test_a_dry_run_finds_the_mistakes_that_a_run_would(refused: Callable[..., str]):
    assert "no layer" in refused("run", "--task", "toy", "--layers", "final", "--dry-run")


def test_json_is_all_there_is_on_stdout_and_holds_no_nan(harness: Callable[..., Said], tmp_path: Path):
    said = harness("run", "--task", "toy", "--method", "superactivator,coin", *SMALL, "--json")
    assert said.code == 0
    read = strict(said.out)
    assert [result["method"]["name"] for result in read] == ["superactivator", "coin"]
    written = {result["run_id"]: result for result in results_below(tmp_path / "results")}
    assert {result["run_id"]: result for result in read} == written


def test_json_of_a_dry_run_is_json_too(harness: Callable[..., Said]):
    strict(harness("run", "--task", "toy", "--dry-run", "--json").out)


def test_progress_and_notes_never_stand_on_stdout(harness: Callable[..., Said]):
    said = harness("run", "--task", "toy", "--method", "coin", *SMALL)
    assert not [line for line in said.out.splitlines() if line.startswith(("embedding", "fitting", "scoring"))]


def test_a_second_run_reads_the_cache(harness: Callable[..., Said], monkeypatch: pytest.MonkeyPatch):
    (first,) = strict(harness("run", "--task", "toy", "--method", "max", *SMALL, "--json").out)

    def computed(*given: Any) -> None:
        raise AssertionError("the cache was not read")

    monkeypatch.setattr("harness_toy.world.ToyBackbone.forward", computed)
    (again,) = strict(harness("run", "--task", "toy", "--method", "max", *SMALL, "--json").out)
    assert numbers(first) == numbers(again)
    assert again["provenance"]["samples embedded"] == 0


# Mistakes: exit 2, one line, the nearest name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run --task toi", "unknown task 'toi'; did you mean toy?"),
        ("run --task toy,toi", "unknown task 'toi'; did you mean toy?"),
        ("run --task toy --backbone toi", "unknown backbone 'toi'; did you mean toy?"),
        ("run --task toy --method superactivater", "unknown method 'superactivater'; did you mean superactivator"),
        ("run --task toy --method detecton", "unknown method 'detecton'; did you mean detection"),
        ("run --task toy --concept-method liner", "unknown concept method 'liner'; did you mean linear or kmeans-linear?"),
        ("run --task toy --detector maks", "unknown detector 'maks'; did you mean max"),
        ("run --task toy --localizer dirct", "unknown localizer 'dirct'; did you mean direct"),
        ("run --task toy --concept-method linear:estimater=adam", "unknown option 'estimater' in concept method 'linear'; did"),
        (
            "run --task toy --concept-method linear:estimator=adm",
            "unknown estimator 'adm' in concept method 'linear'; did you mean",
        ),
        (
            "run --task toy --localizer superactivator:vector=mean",
            "unknown vector 'mean' in localizer 'superactivator'; did you",
        ),
        ("run --task toy:sead=1", "unknown option 'sead' in data set 'toy' of task 'toy'; did you mean seed?"),
        ("run --task toy --backbone toy:sead=1", "unknown option 'sead' in backbone 'toy'; did you mean seed?"),
        ("run --task toy --layers fnal", "bad layer 'fnal' in --layers; the model has blocks 0..3; allowed: all, last, final"),
        ("run --task toy --layers 4", "bad layer '4' in --layers; the model has blocks 0..3"),
        ("run --task toy --layers final", "no layer 4 in backbone toy; it has 0..3"),
        ("run --task toy --streams residul", "unknown stream 'residul' in --streams; did you mean residual?"),
        ("run --task toy --dtype flaot32", "unknown dtype 'flaot32' in --dtype; did you mean float32"),
        ("run --task toy --dtype float16 --device cpu", "float16 on a CPU is not computed in hardware"),
        ("run --task toy --device cud", "device 'cud' cannot be used; "),
        ("run --task toy --normalization trian", "unknown normalization 'trian' in --normalization; did you mean train?"),
        ("run --task toy --guards some", "Invalid value for '--guards'"),
        ("run --task toy --limit 0", "Invalid value for '--limit'"),
        ("run --task toy --seed -1", "Invalid value for '--seed'"),
        ("run --task toy --bootstrap many", "Invalid value for '--bootstrap'"),
        ("run --taks toy", "--taks"),
        ("run --task toy more", "Got unexpected extra argument (more); see `harness run --help`"),
        ("run", "nothing to run; give --task (see `harness list tasks`)"),
        ("run --backbone toy", "no task for backbone 'toy'; give --task"),
        ("run --backbone embeddings:nowhere", "no file tokens.safetensors in "),
        ("run --task toy --backbone embeddings", "backbone 'embeddings' needs a folder; write --backbone embeddings:<folder>"),
        ("run --task toy --backbone toy:strong", "strong"),
        ("run --task toy --concept-method mean:strong", "concept method 'mean' takes no argument; got 'strong'"),
        ("run --task nothing.yaml", "cannot read task file nothing.yaml; No such file or directory"),
        ("--task toy run", "No such option '--task'; see `harness --help`"),
        ("rnu", "No such command 'rnu'"),
        ("list backbone", "unknown kind 'backbone' in harness list; did you mean backbones?"),
        ("show superactivater", "unknown name 'superactivater' in harness show; did you mean superactivator"),
        ("show", "Missing argument 'NAME'; see `harness show --help`"),
        ("validate toi", "unknown task 'toi'; did you mean toy?"),
        ("validate nothing.yaml", "cannot read task file nothing.yaml; No such file or directory"),
        ("validate", "Missing argument"),
        ("leaderboard build nowhere", "no results folder "),
        ("leaderboard build", "no results folder "),
        ("leaderboard biuld", "No such command 'biuld'"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name_and_exit_code_2(words: str, expected: str, refused: Callable[..., str]):
    assert expected in refused(*shlex.split(words))


def test_a_mistake_found_with_the_model_at_hand_leaves_no_empty_line_either(harness: Callable[..., Said]):
    said = harness("run", "--task", "toy", "--layers", "fnal")
    assert len(said.err.splitlines()) == 1


def test_a_command_that_is_nearly_one_gets_its_name(refused: Callable[..., str]):
    assert "validate" in refused("valdate", "toy")


def test_an_option_that_is_nearly_one_gets_its_name(refused: Callable[..., str]):
    assert re.search(r"--task\b", refused("run", "--taks", "toy"))


def test_a_task_that_stands_for_another_folder_is_never_skipped_in_silence(harness: Callable[..., Said], tmp_path: Path):
    """A task with the embeddings of another: it is refused, or it is run; it does not end well without a number."""
    said = harness("run", "--task", "toy", "--backbone", "embeddings:nowhere", *SMALL)
    assert said.code == 2
    assert "nowhere" in said.err


@pytest.mark.parametrize("where", ["--output", "--cache-dir"])
def test_a_folder_that_cannot_be_written_is_one_line(where: str, harness: Callable[..., Said], tmp_path: Path):
    (tmp_path / "file").write_text("")
    said = harness("run", "--task", "toy", "--method", "max", *SMALL, where, "file/below")
    assert said.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("error: cannot write ")
    assert "file/below" in last


def test_a_leaderboard_that_cannot_be_written_is_one_line(finished: Finished, refused: Callable[..., str], tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert refused("leaderboard", "build", finished.folder / "results", "--output", "file/below").startswith("cannot write ")


def test_a_leaderboard_leaves_out_what_was_cut_short_and_says_so(
    finished: Finished, harness: Callable[..., Said], tmp_path: Path
):
    target = tmp_path / "results" / "toy" / "toy" / "max" / "abc"
    target.mkdir(parents=True)
    (target / "result.json").write_bytes((finished.result / "result.json").read_bytes())
    said = harness("leaderboard", "build", finished.folder / "results", tmp_path / "results", "--output", "pages")
    assert said.code == 0, said.err
    assert "1 results" in said.out
    assert "left out: no complete result in " in said.out


def test_ctrl_c_ends_with_130_and_says_what_is_kept(harness: Callable[..., Said], monkeypatch: pytest.MonkeyPatch):
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.pipeline.run", interrupted)
    said = harness("run", "--task", "toy")
    assert said.code == 130
    assert said.out == ""
    assert said.err.splitlines()[-1] == "stopped; what is computed is kept, run the same command to go on"


def test_a_real_interrupt_ends_with_130_and_no_traceback(tmp_path: Path):
    (tmp_path / "my_cli_sleep.py").write_text(
        "import time\n\nfrom harness.api import hookimpl\n\n\n@hookimpl\ndef harness_add_commands(cli):\n"
        "    @cli.command()\n    def nap():\n        '''Sleeps.'''\n        print('asleep', flush=True)\n        time.sleep(60)\n"
    )
    command = [sys.executable, "-c", "from harness.cli import main; main()", "-p", "my_cli_sleep.py", "nap"]

    def heed() -> None:  # a shell's background job ignores the signal, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=tmp_path, preexec_fn=heed) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "stopped; what is computed is kept, run the same command to go on"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def buggy(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("harness.pipeline.run", buggy)
    with pytest.raises(ZeroDivisionError):
        main(["run", "--task", "toy"])


# A folder of embeddings is task and backbone in one

CONCEPTS = ["red", "round"]


class Folder:
    """Stored embeddings of 24 samples, 8 a split; each malformed one changes one thing."""

    def __init__(self, path: Path) -> None:
        g = torch.Generator().manual_seed(2)
        self.path = path
        lengths = [i % 4 + 1 for i in range(24)]
        self.labels = torch.tensor([[i % 2 == 0, i % 3 == 0] for i in range(24)])
        member = torch.repeat_interleave(torch.arange(24), torch.tensor(lengths))
        truth = self.labels[member]
        tokens = torch.randn(2, len(member), 4, generator=g)
        tokens[:, :, :2] += 4.0 * truth
        self.tensors = {
            "layer.0": tokens[0],
            "layer.7": tokens[1],
            "offsets": torch.tensor([0, *lengths]).cumsum(0),
            "truth": truth.to(torch.uint8),
            "labels": self.labels.to(torch.uint8),
        }
        self.samples = "id,split\n" + "".join(f"s{i},{SPLITS[i // 8]}\n" for i in range(24))
        self.concepts = json.dumps(CONCEPTS)

    def write(self) -> str:
        self.path.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, self.path / "tokens.safetensors")
        (self.path / "samples.csv").write_text(self.samples)
        (self.path / "concepts.json").write_text(self.concepts)
        return f"embeddings:{self.path}"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "my_vectors")


def test_a_folder_of_embeddings_is_a_task_and_a_backbone_and_needs_no_task(
    folder: Folder, harness: Callable[..., Said], tmp_path: Path
):
    said = harness("run", "--backbone", folder.write(), "--method", "superactivator,summary", "--bootstrap", "20", "--json")
    assert said.code == 0, said.err
    read = strict(said.out)
    assert [result["method"]["name"] for result in read] == ["superactivator", "summary"]
    assert read[0]["task"]["name"] == "my_vectors"
    assert read[0]["task"]["samples"] == {"train": 8, "cal": 8, "test": 8}
    assert read[0]["backbone"]["sites"] == ["0", "7"]
    assert not (tmp_path / "cache" / "blocks").exists()


def test_a_folder_without_truth_runs_what_needs_none_and_says_what_does(
    folder: Folder, harness: Callable[..., Said], refused: Callable[..., str]
):
    del folder.tensors["truth"]
    reference = folder.write()
    assert harness("run", "--backbone", reference, "--method", "summary", "--bootstrap", "20").code == 0
    said = refused("run", "--backbone", reference, "--method", "superactivator")
    assert "my_vectors" in said
    assert "summary" in said


def tensors(**changes: Any) -> Callable[[Folder], None]:
    def change(folder: Folder) -> None:
        for name, value in changes.items():
            key = name.replace("__", ".")
            folder.tensors[key] = value(folder.tensors[key]) if key in folder.tensors else value(folder.tensors["layer.0"])

    return change


def without(*names: str) -> Callable[[Folder], None]:
    return lambda folder: [folder.tensors.pop(name) for name in names] and None


def text(**changes: Callable[[str], str]) -> Callable[[Folder], None]:
    def change(folder: Folder) -> None:
        for name, edit in changes.items():
            setattr(folder, name, edit(getattr(folder, name)))

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("offsets"), "no tensor 'offsets' in "),
        (without("labels"), "no tensor 'labels' in "),
        (without("layer.0", "layer.7"), "no tensor layer.<i> in "),
        (tensors(offsets=lambda t: t[:-1]), "24 samples need 25 rising numbers from 0; got 24"),
        (tensors(offsets=lambda t: t + 1), "24 samples need 25 rising numbers from 0"),
        (tensors(offsets=lambda t: t.flip(0)), "24 samples need 25 rising numbers from 0"),
        (tensors(offsets=lambda t: t * 2), "tensor 'truth' in "),
        (tensors(offsets=lambda t: t[:0]), "24 samples need 25 rising numbers from 0; got 0"),
        (tensors(offsets=lambda t: t[None]), "offsets"),
        (tensors(labels=lambda t: t[:, :1]), "tensor 'labels' in "),
        (tensors(labels=lambda t: t[:-1]), "tensor 'labels' in "),
        (tensors(labels=lambda t: t[:, 0].contiguous()), "tensor 'labels' in "),
        (tensors(truth=lambda t: t[:-1]), "tensor 'truth' in "),
        (tensors(layer__7=lambda t: t[:, :3]), "tensor 'layer.7' in "),
        (tensors(layer__7=lambda t: t[:-1]), "tensor 'layer.7' in "),
        (tensors(layer__0=lambda t: t[:, 0].contiguous()), "tensor 'layer."),
        (tensors(summary__0=lambda t: t[:3].clone()), "tensor 'summary.0' in "),
        (tensors(layer__0=lambda t: t.fill_(float("nan"))), "non-finite token of sample "),
        (text(samples=lambda s: s.replace("s5,train", "s5,trian")), "samples.csv, line 7; needs an id and a split"),
        (text(samples=lambda s: s.replace("s5,train", ",train")), "samples.csv, line 7; needs an id and a split"),
        (text(samples=lambda s: s.replace("s5,train", "s5")), "samples.csv, line 7; needs an id and a split"),
        (text(samples=lambda s: s.replace("id,split", "name,part")), "samples.csv, line 2; needs an id and a split"),
        (text(samples=lambda s: s.replace("s5,", "s4,")), "sample id 's4' is there twice"),
        (text(samples=lambda s: s.replace(",cal", ",train")), "split 'cal' of task 'my_vectors' is empty"),
        (text(samples=lambda s: ""), "need 1 rising numbers from 0; got 25"),
        (text(concepts=lambda s: "{}"), "concepts.json must be a JSON list of names"),
        (text(concepts=lambda s: "[]"), "concepts.json must be a JSON list of names"),
        (text(concepts=lambda s: "[1, 2]"), "concepts.json must be a JSON list of names"),
        (text(concepts=lambda s: "[red, round]"), "concepts.json"),
        (text(concepts=lambda s: ""), "concepts.json"),
        (text(concepts=lambda s: '["red", "red"]'), "red"),
        (text(concepts=lambda s: '["red"]'), "tensor 'labels' in "),
        (tensors(labels=lambda t: t * 0), "no concept of task 'my_vectors' has enough positives in every split"),
    ],
)
def test_a_malformed_folder_is_one_line_that_says_what_is_wrong_where(
    change: Callable[[Folder], None], expected: str, folder: Folder, harness: Callable[..., Said]
):
    change(folder)
    said = harness("run", "--backbone", folder.write(), "--method", "max", "--bootstrap", "2")
    assert said.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert expected in last


@pytest.mark.parametrize("name", ["tokens.safetensors", "samples.csv", "concepts.json"])
def test_a_folder_that_lacks_a_file_is_told_which_and_what_it_should_hold(
    name: str, folder: Folder, refused: Callable[..., str]
):
    reference = folder.write()
    (folder.path / name).unlink()
    assert refused("run", "--backbone", reference) == (
        f"no file {name} in {folder.path}; a folder of embeddings needs tokens.safetensors (layer.<i>, offsets, labels), "
        "samples.csv (id,split) and concepts.json"
    )


@pytest.mark.parametrize("name", ["tokens.safetensors", "samples.csv", "concepts.json"])
def test_a_file_of_bytes_that_mean_nothing_is_one_line_that_names_it(name: str, folder: Folder, refused: Callable[..., str]):
    reference = folder.write()
    (folder.path / name).write_bytes(b"\xff\xfe\x00\x81" * 9)
    assert name in refused("run", "--backbone", reference)


def test_another_stream_than_the_stored_one_is_refused(folder: Folder, harness: Callable[..., Said]):
    said = harness("run", "--backbone", folder.write(), "--method", "max", "--streams", "mlp", "--bootstrap", "2")
    assert said.code == 2
    assert "unknown stream 'mlp' in backbone embeddings/my_vectors" in said.err.splitlines()[-1]


def test_a_layer_that_the_folder_does_not_hold_is_refused(folder: Folder, refused: Callable[..., str]):
    said = refused("run", "--backbone", folder.write(), "--layers", "3")
    assert said == "no layer 3 in backbone embeddings/my_vectors; it has 0, 7 (--layers 3)"


def test_the_exit_code_a_plugins_command_asks_for_is_that_of_the_process(harness: Callable[..., Said], tmp_path: Path):
    text = (
        "import click\nfrom harness.api import hookimpl\n\n\n@hookimpl\ndef harness_add_commands(cli):\n"
        "    @cli.command()\n    @click.pass_context\n    def judge(context):\n        context.exit(3)\n"
    )
    (tmp_path / "my_cli_judge.py").write_text(text)
    assert harness("-p", str(tmp_path / "my_cli_judge.py"), "judge").code == 3
