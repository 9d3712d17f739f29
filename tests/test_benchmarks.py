"""Every benchmark of the suite in a tiny size: it runs, both sides give equal results, and its report is complete."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("b*_*.py"))
MEGABYTES = 64


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks can be imported, and use one thread."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def pairs() -> Any:
    return import_module("pairs")


def run(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    module = import_module(name)
    assert import_module("pairs").main(module.BENCHMARK, ["--quick", "--rounds", "1", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_in_a_tiny_size_and_its_sides_give_equal_results(name: str, capsys: pytest.CaptureFixture[str]):
    report, benchmark = json.loads(run(name, capsys, "--json")), import_module(name).BENCHMARK
    assert report["benchmark"].lower() == name.split("_")[0]
    ran = {json.dumps(row["case"]) for row in report["rows"]}
    must = {json.dumps(case) for case in benchmark.quick if case.get("dtype") != "bfloat16"}  # emulated on most machines
    assert must <= ran <= {json.dumps(case) for case in benchmark.quick}
    assert len(report["equal"]) == len(ran)
    for case in ran:
        sides = [row for row in report["rows"] if json.dumps(row["case"]) == case]
        assert len(sides) > 1
        assert sides[0]["ratio"] == 1
        assert all(row["wall"] > 0 and row["ratio"] > 0 for row in sides)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_full_sizes_have_the_keys_of_the_tiny_ones(name: str):
    benchmark = import_module(name).BENCHMARK
    assert {frozenset(case) for case in benchmark.cases} == {frozenset(case) for case in benchmark.quick}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_an_example_that_parses(name: str, pairs: Any, capsys: pytest.CaptureFixture[str]):
    benchmark = import_module(name).BENCHMARK
    with pytest.raises(SystemExit) as done:
        pairs.main(benchmark, ["--help"])
    assert done.value.code == 0
    examples = re.findall(r"^ +python (benchmarks/\S+)(.*)$", capsys.readouterr().out, re.M)
    assert examples
    for script, words in examples:
        assert script == f"benchmarks/{name}.py"
        pairs._parser(benchmark).parse_args(shlex.split(words.partition(">")[0]))


def test_the_table_names_every_side_and_the_machine(capsys: pytest.CaptureFixture[str]):
    text = run("b6_all_pairs", capsys)
    assert re.search(r"^threads 1, .*ratio = time over the first side's$", text, re.M)
    assert re.search(r"^3 .* scikit-learn ", text, re.M)
    assert "F1 of every pair to 1e-12" in text


def test_the_page_on_benchmarks_speaks_of_every_script():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"benchmarks/(b\d+_\w+)\.py", page)) == set(SCRIPTS)
    assert {f"B{i}" for i in range(1, 12)} <= set(re.findall(r"\bB\d+\b", page))


# --- how pairs are measured


@contextmanager
def room(case: Any) -> Iterator[Any]:
    """One side that takes memory and writes, one that does neither; both return the same."""
    yield import_module("pairs").Sides({"takes": lambda: takes(), "idle": lambda: 1}, lambda found: {}, "exactly")


def takes() -> int:
    Path("/dev/null").write_bytes(b"x" * 1_000_000)
    return int(torch.ones(MEGABYTES << 18).amax())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is Linux's")
def test_memory_and_bytes_written_are_those_of_one_side_alone(pairs: Any, monkeypatch: pytest.MonkeyPatch):
    rows, _ = pairs.measure(room, {"n": 1}, 1, 1, 1)
    took, idle = (row.room for row in rows)
    assert MEGABYTES * 1e6 < took.extra < 1.5 * MEGABYTES * 2**20
    assert took.peak > took.extra
    assert idle.extra < 8e6
    assert took.written >= 1_000_000 > idle.written


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds(pairs: Any):
    mine = [pairs.Cost(wall, 2 * wall) for wall in (1.0, 8.0, 6.0)]
    first = [pairs.Cost(wall, wall) for wall in (1.0, 2.0, 3.0)]
    row = pairs._row({}, "other", mine, first, None, {"twice": lambda row: 2 * row.ratio})
    assert (row.ratio, row.spread, row.cpu_ratio, row.wall, row.more) == (2.0, (1.0, 4.0), 4.0, 6.0, {"twice": 4.0})


def test_sides_take_turns(pairs: Any):
    turns = []

    @contextmanager
    def build(case: Any) -> Iterator[Any]:
        yield pairs.Sides({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, lambda found: {}, "")

    pairs.measure(build, {}, 2, 0, 1)
    assert turns == ["a", "b"] * 3  # the first turn is the check


def benchmark(pairs: Any, check: Any, bound: float) -> Any:
    @contextmanager
    def build(case: Any) -> Iterator[Any]:
        if case.get("skip"):
            raise pairs.SkippedError("not on this machine")
        yield pairs.Sides({"a": lambda: 1, "b": lambda: 2}, check, "")

    build.__module__ = __name__
    return pairs.Benchmark(
        "B0", "none", build, [{"n": 1}, {"skip": 1}], [], lambda rows: [pairs.Gate("two", 2, bound)], fresh=0
    )


def test_a_missed_gate_ends_with_1_only_where_that_is_asked_for(pairs: Any, capsys: pytest.CaptureFixture[str]):
    kept, missed = (benchmark(pairs, lambda found: {}, bound) for bound in (2, 3))
    assert [pairs.main(one, words) for one in (kept, missed) for words in ([], ["--gate"])] == [0, 0, 0, 1]
    out, err = capsys.readouterr()
    assert "kept    two: 2, gate >= 2" in out
    assert "MISSED  two: 2, gate >= 3" in out
    assert "skipped: not on this machine" in err


def test_a_number_that_is_missing_keeps_no_gate(pairs: Any):
    assert not pairs.Gate("none", float("nan"), 1).kept
    assert not pairs.Gate("none", float("nan"), 1, at_least=False).kept


def test_nothing_is_timed_where_results_differ(pairs: Any):
    close = import_module("planted").close

    def check(found: Any) -> Any:
        close("numbers", [found["a"]], [found["b"]], 0.5)

    with pytest.raises(AssertionError, match=r"numbers: differs by 1, tolerance 0.5"):
        pairs.main(benchmark(pairs, check, 1), [])


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [([1.0], [1.0, 2.0], "shapes"), ([float("nan")], [1.0], "NaN in different places"), ([1.0], [1.5], "differs by 0.5")],
)
def test_arrays_that_are_not_close_say_why(mine: list[float], other: list[float], said: str):
    with pytest.raises(AssertionError, match=said):
        import_module("planted").close("x", mine, other, 0.1)


def test_planted_tokens_are_balanced_over_splits_and_repeatable():
    planted = import_module("planted")
    size = planted.Size(40, 16, 8, 5, layers=2)
    one, two = planted.plant(size), planted.plant(size)
    assert torch.equal(one.values, two.values)
    assert torch.equal(one.truth, two.truth)
    for place in planted.places(40).values():
        labels = one.labels[place.start : place.stop]
        assert labels.any(0).all()
        assert not labels.all(0).any()
    assert not (one.truth & ~one.labels.repeat_interleave(16, 0)).any()


def test_a_folder_of_planted_tokens_holds_the_world(tmp_path: Path):
    from harness_embeddings.folder import Folder

    planted = import_module("planted")
    world = planted.plant(planted.Size(20, 4, 8, 2))
    planted.write_folder(world, tmp_path / "planted")
    folder = Folder(tmp_path / "planted")
    assert torch.equal(folder.tensor("layer.0"), world.values[0])
    assert torch.equal(folder.tensor("truth").bool(), world.truth)
    assert [row["split"] for row in folder.samples] == world.names


def test_importing_a_benchmark_runs_nothing(capsys: pytest.CaptureFixture[str]):
    for name in SCRIPTS:
        with contextlib.suppress(KeyError):
            del sys.modules[name]
        import_module(name)
    assert capsys.readouterr() == ("", "")
