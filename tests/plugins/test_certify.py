"""`harness init` and `harness certify`: what is made works as it is, what keeps its contract is certified, and what does not is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command_line import cli
from harness_certify.certificate import badge, short, verdict
from harness_certify.certificate import certificate as made_of
from harness_certify.examine import Check, Examined, examine, examine_all, examine_part, first_failure
from harness_certify.faults import FAULTS
from harness_certify.parts import build, offered

from harness.api import Certificate, HarnessError, merge_certificates, read_certificates
from harness.registry import load

ROOT = Path(__file__).parents[2]
NAMES = {"detector": "strong3", "concept-method": "apart", "backbone": "hashes", "localizer": "alike", "task": "rainy"}


def python_environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HARNESS_")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


# --- init


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one beginning of each kind."""
    folder = tmp_path_factory.mktemp("begun")
    for kind, name in NAMES.items():
        assert cli("init", kind, name, "-o", str(folder / name)) == 0
    return folder


def commands_of(folder: Path) -> list[list[str]]:
    (block,) = re.findall(r"```bash\n(.*?)```", (folder / "README.md").read_text(), re.S)
    return [line.split() for line in block.splitlines()]


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "task"])
def test_a_new_plugin_passes_its_test_and_runs_with_the_commands_of_its_readme(
    kind: str, begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    """In this process, to be quick: the way of CONTRIBUTING, below, is walked in a shell."""
    folder = begun / NAMES[kind]
    monkeypatch.chdir(folder)
    tests, certify, words = commands_of(folder)
    assert tests == ["pytest"]
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", "."]) == 0
    assert certify == ["harness", "certify", f"{NAMES[kind]}.py"]
    capsys.readouterr()
    assert cli(*words[1:], "--bootstrap", "20", "--cache-dir", "cache") == 0
    row = "superactivator" if kind == "backbone" else NAMES[kind]
    assert re.search(rf"^  {row} +[01]\.\d{{3}} ", capsys.readouterr().out, re.M)


def test_a_new_task_is_valid_with_the_command_of_its_readme(begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(begun / "rainy")
    validate, run = commands_of(begun / "rainy")
    assert cli(*validate[1:], "--cache-dir", "cache") == 0
    assert "rain" in capsys.readouterr().out
    assert run[:4] == ["harness", "run", "--task", "rainy.yaml"]


def test_a_new_package_names_its_entry_point_and_leaves_the_licence_to_its_author(begun: Path):
    import tomllib

    project = tomllib.loads((begun / "strong3" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["harness"] == {"strong3": "strong3"}
    assert "license" not in project
    assert "LICENSE" in (begun / "strong3" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        (
            "detector",
            "my-top",
            "'my-top' cannot be the name of a module; lower-case letters, digits and _ are allowed; try 'my_top'",
        ),
        ("detector", "3", "try 'detector_3'"),
        ("detector", "class", "try 'detector_class'"),
        ("detector", "max", "there is a method 'max' already; see `harness list`; try 'my_max'"),
        ("concept-method", "pooling", "there is a plugin 'pooling' already"),
        ("task", "toy", "there is a task 'toy' already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(kind: str, name: str, sentence: str, tmp_path: Path, capsys: Any):
    assert cli("init", kind, name, "-o", str(tmp_path / "new")) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_into_a_folder_that_is_not_empty(tmp_path: Path, capsys: Any):
    (tmp_path / "mine.txt").write_text("mine")
    assert cli("init", "detector", "strong3", "-o", str(tmp_path)) == 2
    assert "is there and not empty; nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- certify


GOOD = """
import torch
from harness.api import Entry, hookimpl, segment_max

class Mine:
    calibrate_on = "samples"
    def pool(self, activations, block):
        return {score}

@hookimpl
def harness_register_detectors():
    return [Entry("mine", "mine:Mine", "mine")]
"""


def plugin(folder: Path, score: str = "segment_max(activations, block.offsets)") -> Path:
    path = folder / "mine.py"
    path.write_text(GOOD.format(score=score))
    return path


OTHER = Certificate("a" * 64, True, None, ())


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certified")
    board = folder / "board" / "certificates.json"
    merge_certificates(board, {"other": OTHER})
    assert cli("certify", str(plugin(folder)), "-o", str(folder), "--board", str(board)) == 0
    return folder


def test_a_certificate_says_what_was_checked_of_which_source(certified: Path):
    made = json.loads((certified / "certificate.json").read_text())
    assert made["certified"]
    assert made["plugin"] == "mine"
    assert len(made["sha256"]) == 64
    assert made["seconds"] < 60
    (part,) = [part for part in made["parts"] if part["part"] == "detector mine"]
    verdicts = {check["name"]: check["verdict"] for check in part["checks"]}
    assert set(verdicts.values()) == {"pass"}
    assert {"name": "light to list", "verdict": "skip"}.items() <= made["parts"][0]["checks"][1].items()
    assert {"contract", "labels out of sight", "built again", "other processes", "cost", "ties"} <= set(verdicts)
    assert part["cost"]["against"] == "max"
    assert len(part["faults"]["caught"]) == part["faults"]["planted"] >= 10


def test_a_badge_is_an_image_of_the_same_bytes_each_time(certified: Path):
    made = json.loads((certified / "certificate.json").read_text())
    assert (certified / "badge.svg").read_text() == badge(made)
    ElementTree.fromstring(badge({**made, "plugin": '<script>"&'}))  # noqa: S314 - our own text
    assert "not certified" in badge({**made, "certified": False})


def test_a_certificate_holds_until_the_source_changes(certified: Path, tmp_path: Path, capsys: Any):
    certificate = str(certified / "certificate.json")
    path = plugin(tmp_path)
    assert cli("certify", "--check", certificate, str(path)) == 0
    assert "holds: mine, certified with harness" in capsys.readouterr().out
    path.write_text(path.read_text() + "\n# changed\n")
    assert cli("certify", "--check", certificate, str(path)) == 1
    assert "does not hold: the source has changed: " in capsys.readouterr().out
    assert cli("certify", "--check", certificate, "pooling") == 1
    assert "it is of plugin 'mine', not of 'pooling'" in capsys.readouterr().out


def test_a_plugin_that_differs_between_processes_is_not_certified_and_told_so(tmp_path: Path, capsys: Any):
    path = plugin(tmp_path, "segment_max(activations, block.offsets) + hash(block.ids[0][:6]) % 1000")
    assert cli("certify", str(path), "-o", str(tmp_path / "c")) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "not certified: detector mine, check `other processes`: gives other numbers in another process; is it hash()"
    )
    assert not json.loads((tmp_path / "c" / "certificate.json").read_text())["certified"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["certify"], "name one plugin, or give --all"),
        (["certify", "poolin"], "unknown plugin or part 'poolin'; did you mean pooling"),
        (["certify", "nothing.py"], "no plugin file nothing.py"),
        (["certify", "pooling", "--part", "maxx"], "unknown part 'maxx' in plugin pooling; did you mean max"),
        (["certify", "pooling", "--check", "nowhere.json"], "no certificate nowhere.json"),
        (["certify", "--all", "--part", "max"], "--all takes no --part, --check or --board"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(words: list[str], sentence: str, capsys: Any):
    assert cli(*words) == 2
    assert sentence in capsys.readouterr().err


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path, capsys: Any):
    for text, sentence in (
        ("{", "is not JSON"),
        ("{}", "is no certificate; it lacks schema, plugin"),
        ("[]", "is no certificate"),
    ):
        (tmp_path / "c.json").write_text(text)
        assert cli("certify", "--check", str(tmp_path / "c.json"), "pooling") == 2
        assert sentence in capsys.readouterr().err


def test_a_plugin_whose_parts_all_need_what_is_not_here_is_not_certified_and_says_why():
    found = examine(load(), "sae", [])
    reasons = [check.reason for one in found for check in one.checks if check.verdict == "skip"]
    assert any("cannot be built from its name alone" in reason for reason in reasons)
    made = made_of(load(), "sae", found, 1.0, None)
    assert (
        verdict(made, found)
        == "not certified: none of the 1 parts of sae could be checked here; name those you have with --part"
    )
    assert short(made, found).certified is None


def test_the_first_failed_check_is_named_with_what_to_do():
    found = [Examined("", [Check("names", "pass")]), Examined("detector mine", [Check("ties", "fail", "gives no number")])]
    assert first_failure(found) is not None
    made = made_of(load(), "pooling", found, 1.0, None)
    assert verdict(made, found) == "not certified: detector mine, check `ties`: gives no number; mend it and certify again"


SEEDED = {
    "pooling": ["max", "mean"],
    "vectors": ["linear", "kmeans"],
    "superactivator": ["direct"],
    "guessing": ["coin"],
    "metrics": ["f1"],
    "toy": ["toy"],
}


def test_at_least_95_percent_of_seeded_plugin_faults_are_caught():
    """Every fault of the table, planted in bundled parts of every kind; the new backbone of `harness init` is tested below."""
    registry, planted, missed, faults = load(), 0, [], set()
    for name, parts in SEEDED.items():
        for part in offered(registry, name):
            if part.reference in parts:
                one = Examined(part.name)
                examine_part(registry, part, build(registry, part, False), one, time.perf_counter() + 60)
                planted += one.faults.get("planted", 0)
                missed += [f"{one.part}: {fault}" for fault in one.faults.get("missed", ())]
                faults |= set(one.faults.get("caught", ()))
    assert planted >= 40
    assert len(faults) >= 20
    assert len(missed) <= 0.05 * planted, missed


@pytest.mark.slow
def test_every_bundled_plugin_is_certified_and_written_down_for_the_board(tmp_path: Path):
    path = tmp_path / "certificates.json"
    assert cli("certify", "--all", "-o", str(path)) == 0
    registry, board = load(), read_certificates(path)
    assert board is not None
    assert set(board) == {one.name for one in registry.plugins if one.distribution == "concept-harness"}
    assert all(board[name].sha256 == registry.source(name)["sha256"] for name in board)
    assert {"concept method linear", "concept method kmeans"} < set(board["vectors"].parts)
    assert (board["coco"].certified, board["coco"].parts) == (None, ())


def test_a_certificate_goes_among_those_of_a_board_which_keeps_the_others(certified: Path):
    sha256 = json.loads((certified / "certificate.json").read_text())["sha256"]
    board = read_certificates(certified / "board" / "certificates.json")
    assert board == {"mine": Certificate(sha256, True, None, ("detector mine",)), "other": OTHER}


def test_a_board_that_cannot_be_read_is_refused_before_anything_is_checked(tmp_path: Path, capsys: Any):
    (tmp_path / "certificates.json").write_text("[]")
    assert cli("certify", str(plugin(tmp_path)), "-o", str(tmp_path / "c"), "--board", str(tmp_path / "certificates.json")) == 2
    assert "certificates.json; it must be a mapping of plugins" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


FAILS = "segment_max(activations, block.offsets) if hash('a') == {here} else 1 / 0"
ENDS = "segment_max(activations, block.offsets) if hash('a') == {here} else __import__('os')._exit(3)"


@pytest.mark.parametrize(
    ("score", "check", "reason"),
    [
        (FAILS, "other processes", "fails in another process, and not in this one; ZeroDivisionError: division by zero"),
        (ENDS, "light to list", "cannot be used in a process of its own; it ended with code 3"),
    ],
    ids=["raises", "ends the process"],
)
def test_plugins_share_the_other_processes_and_a_plugin_that_fails_there_does_not_fail_the_others(
    score: str, check: str, reason: str, tmp_path: Path
):
    file = str(plugin(tmp_path, score.format(here=hash("a"))))
    mine, guessing = examine_all(load([file]), ["mine", "guessing"], [file])
    assert first_failure(list(guessing.found.values())) is None
    assert {check.name for one in guessing.found.values() for check in one.checks} >= {"contract", "other processes"}
    failed = first_failure(mine.all)
    assert failed is not None and failed[1][::2] == (check, reason)


def test_a_backbone_is_certified_with_the_faults_of_its_kind(begun: Path):
    file = str(begun / "hashes" / "hashes.py")
    found = examine(load([file]), "hashes", [file])
    assert first_failure(found) is None
    (part,) = [one for one in found if one.part]
    assert set(part.faults["caught"]) == {fault.__name__ for fault in FAULTS["backbones"]}


def test_a_result_says_whose_code_made_it(tmp_path: Path):
    file = plugin(tmp_path)
    words = f"run -p {file} --task toy --concept-method linear --detector mine --layers 1 --bootstrap 0 --limit 40"
    assert cli(*words.split(), "--cache-dir", str(tmp_path / "cache"), "-o", str(tmp_path / "results")) == 0
    (path,) = tmp_path.glob("results/**/result.json")
    plugins = json.loads(path.read_text())["provenance"]["plugins"]
    assert set(plugins) == {"concepts", "detector", "backbone", "dataset"}
    registry = load([str(file)])
    assert plugins["detector"] == {"part": "mine", **registry.source("mine")}
    assert plugins["detector"]["distribution"] is None
    assert plugins["concepts"]["distribution"] == "concept-harness"


def test_parts_are_those_of_the_plugin_and_an_unknown_reference_is_an_error():
    registry = load()
    assert {part.reference for part in offered(registry, "guessing")} == {"coin", "always-yes", "always-no"}
    with pytest.raises(HarnessError, match="unknown part 'coint' in plugin guessing; did you mean coin"):
        offered(registry, "guessing", ("coint",))


# --- CONTRIBUTING


def steps() -> list[str]:
    """The commands of the way from an idea to a row, as they stand on the page."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    way = page.partition("## From an idea to a row on the board")[2].partition("\n## ")[0]
    return [line for block in re.findall(r"```bash\n(.*?)```", way, re.S) for line in block.splitlines() if line]


def test_following_contributing_from_an_empty_folder_ends_in_a_ranked_row(tmp_path: Path):
    """Literally, in a shell; a made-up project's board stands for the clone that the page names."""
    tools = tmp_path / "bin"
    tools.mkdir()
    calls = {"harness": "from harness.cli import main; main()", "pytest": "import sys, pytest; sys.exit(pytest.main())"}
    for name, call in calls.items():
        (tools / name).write_text(f"#!{sys.executable}\n{call}\n")
        (tools / name).chmod(0o755)
    folder = tmp_path / "empty"
    (folder / "concept-harness" / "leaderboards").mkdir(parents=True)
    for board in (ROOT / "leaderboards").glob("*.yaml"):
        shutil.copy(board, folder / "concept-harness" / "leaderboards")
    commands = [line for line in steps() if not line.startswith("git ")]
    environment = python_environment(PATH=f"{tools}:{os.environ['PATH']}", HOME=str(tmp_path / "home"))
    started = time.perf_counter()
    script = "set -e\n" + "\n".join(commands)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert time.perf_counter() - started < 15 * 60
    assert "certified: top3" in done.stdout
    board = (folder / "concept-harness" / "leaderboards" / "README.md").read_text()
    assert re.search(r"^\|[ *]*\d[^|]*\| top3 ", board, re.M), board
    assert (
        "Not certified: plugin pooling, no certificate (mean); plugin superactivator, no certificate (all rows); plugin toy"
        in board
    )
    assert "plugin top3" not in board
