"""Paired timing for the benchmarks: A B A B in one process, the median of the ratios; memory and bytes written in a fresh process.

A benchmark is cases x sides. Every side runs once before anything is timed, and the case's `check` asserts that all give the same
result. Wall and CPU seconds (of all threads and children) are medians over rounds. Extra memory is the peak resident memory above
that of the inputs, written are the bytes given to write(); each is the median of calls in processes of their own, on Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import threadpoolctl
import torch
from tabulate import tabulate

Case = Mapping[str, Any]
Found = Mapping[str, Any]
"""Side -> what its call returned."""


class Sides(NamedTuple):
    """What one case compares: name -> a call without arguments, the project's own first; ratios are to the first.

    check raises where results differ by more than `tolerance` says, and returns further columns per side; a column may be a
    function of the side's row.
    """

    calls: Mapping[str, Callable[[], Any]]
    check: Callable[[Found], Mapping[str, Mapping[str, Any]]]
    tolerance: str


Build = Callable[[Case], AbstractContextManager[Sides]]


class SkippedError(Exception):
    """This machine cannot run a case, and the message says why."""


class Cost(NamedTuple):
    """Seconds of one call: by the clock, and of all threads and child processes together."""

    wall: float
    cpu: float


class Room(NamedTuple):
    """Bytes of one call in a fresh process: peak resident memory, how much of that is above the inputs, bytes written."""

    peak: int
    extra: int
    written: int


@dataclass(frozen=True)
class Row:
    """One side of one case. ratio: median over rounds of its wall seconds over the first side's; `spread` the smallest and largest."""

    case: Case
    side: str
    wall: float
    cpu: float
    ratio: float
    spread: tuple[float, float]
    cpu_ratio: float
    room: Room | None
    more: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The row as it is printed."""
        room = {} if self.room is None else {f"{name} MB": round(size / 1e6, 2) for name, size in self.room._asdict().items()}
        low, high = self.spread
        return {
            **self.case,
            "side": self.side,
            "wall s": f"{self.wall:.4g}",
            "CPU s": f"{self.cpu:.4g}",
            "ratio": f"{self.ratio:.3g}",
            "low..high": f"{low:.3g}..{high:.3g}",
            "CPU ratio": f"{self.cpu_ratio:.3g}",
            **room,
            **self.more,
        }


class Gate(NamedTuple):
    """A bound that a number of this run has to keep."""

    what: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def kept(self) -> bool:
        """NaN keeps nothing."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'kept  ' if self.kept else 'MISSED'}  {self.what}: {self.value:.3g}, gate {sign} {self.bound:g}"


@dataclass(frozen=True)
class Benchmark:
    """An id of the suite: what it measures, its cases (and tiny ones for `--quick`), and the gates on its rows.

    fresh: processes per side that measure memory; 0 = none.
    """

    name: str
    title: str
    build: Build
    cases: Sequence[Case]
    quick: Sequence[Case]
    gates: Callable[[Sequence[Row]], Sequence[Gate]]
    fresh: int = 1


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark as its command line says and returns the exit code: 1 where `--gate` is given and a gate is missed."""
    asked = _parser(benchmark).parse_args(arguments)
    threads = int(os.environ.get("OMP_NUM_THREADS") or joblib.cpu_count(only_physical_cores=True))
    every = benchmark.quick if asked.quick else benchmark.cases
    cases = [case for case in every if asked.only in _label(case)]
    fresh = benchmark.fresh if (not asked.quick if asked.fresh is None else asked.fresh) else 0
    rows, tolerances = [], {}
    with limited(threads):
        for case in cases:
            print(f"{benchmark.name} {_label(case)}", file=sys.stderr, flush=True)
            try:
                mine, tolerance = measure(benchmark.build, case, asked.rounds, fresh, threads)
            except SkippedError as reason:
                print(f"skipped: {reason}", file=sys.stderr, flush=True)
                continue
            rows += mine
            tolerances[_label(case)] = tolerance
    gates = [] if asked.quick else list(benchmark.gates(rows))
    report = {"machine": machine(threads), "rounds": asked.rounds, "equal": tolerances}
    if asked.json:
        plain = {"benchmark": benchmark.name, **report, "rows": [asdict(row) for row in rows]}
        plain["rows"] = [{**row, "room": row["room"] and row["room"]._asdict()} for row in plain["rows"]]
        print(json.dumps({**plain, "gates": [{**gate._asdict(), "kept": gate.kept} for gate in gates]}, indent=1))
    else:
        print(_text(benchmark, report, rows, gates))
    return int(asked.gate and not all(gate.kept for gate in gates))


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    script = Path(sys.modules[benchmark.build.__module__].__file__ or "").name
    example = f"example:\n  python benchmarks/{script} --quick\n  python benchmarks/{script} --gate --json > {script[:-3]}.json"
    parser = argparse.ArgumentParser(
        prog=script,
        description=f"{benchmark.name}: {benchmark.title}",
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs and that results are equal; no gates"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose line on stderr holds this text")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds A B A B; the median counts (default: 5)")
    parser.add_argument(
        "--fresh", action=argparse.BooleanOptionalAction, help="measure memory, in fresh processes (default: not with --quick)"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--gate", action="store_true", help="exit code 1 where a gate is missed")
    return parser


def measure(build: Build, case: Case, rounds: int, fresh: int, threads: int) -> tuple[list[Row], str]:
    """(one row per side, the tolerance to which their results are equal) of a case."""
    with build(case) as sides:
        more = sides.check({name: call() for name, call in sides.calls.items()})
        costs: dict[str, list[Cost]] = {name: [] for name in sides.calls}
        gc.collect()
        gc.freeze()  # what is there already is not searched again before every call
        try:
            for _ in range(rounds):
                for name, call in sides.calls.items():
                    costs[name].append(_cost(call))
        finally:
            gc.unfreeze()
    rooms = {name: _median_room([_alone(build, case, name, threads) for _ in range(fresh)]) for name in costs}
    first = next(iter(costs.values()))
    return [_row(case, name, mine, first, rooms[name], more.get(name, {})) for name, mine in costs.items()], sides.tolerance


def _row(case: Case, name: str, mine: list[Cost], first: list[Cost], room: Room | None, more: Mapping[str, Any]) -> Row:
    ratios = [a.wall / b.wall for a, b in zip(mine, first, strict=True)]
    cpu = statistics.median(a.cpu / max(b.cpu, 1e-9) for a, b in zip(mine, first, strict=True))
    wall, spent = (statistics.median(getattr(cost, kind) for cost in mine) for kind in ("wall", "cpu"))
    bare = Row(case, name, wall, spent, statistics.median(ratios), (min(ratios), max(ratios)), cpu, room)
    return replace(bare, more={key: value(bare) if callable(value) else value for key, value in more.items()})


def _cost(call: Callable[[], Any]) -> Cost:
    gc.collect()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    call()
    return Cost(time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Torch, OpenMP and BLAS use so many threads inside, and afterwards what they used before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpoolctl.threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def _alone(build: Build, case: Case, side: str, threads: int) -> Room | None:
    """What one call takes in a process of its own; None where the system does not say."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send_room, args=(there, build, case, side, threads))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{side} of {_label(case)} ended with exit code {child.exitcode} in a fresh process") from None
    finally:
        child.join()


def _send_room(there: Any, build: Build, case: Case, side: str, threads: int) -> None:
    with limited(threads), build(case) as sides:
        there.send(_room(sides.calls[side]))


def _room(call: Callable[[], Any]) -> Room:
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what building the inputs has freed goes back to the system first
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, written = _proc("status", "VmRSS"), _proc("io", "wchar")
    call()
    peak = _proc("status", "VmHWM")
    return Room(peak * 1024, max(peak - before, 0) * 1024, _proc("io", "wchar") - written)


def _proc(file: str, key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/self/{file}").read_text().splitlines())
    return int(lines[key].split()[0])


def _median_room(rooms: Sequence[Room | None]) -> Room | None:
    there = [room for room in rooms if room is not None]
    return Room(*(int(statistics.median(values)) for values in zip(*there, strict=True))) if there else None


def machine(threads: int) -> dict[str, Any]:
    """What a figure has to be read with."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "threads": threads,
        "cpus": os.cpu_count(),
        "cpu": (names or [platform.processor()])[0] if cpu.exists() else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def ratio(rows: Sequence[Row], side: str, **case: Any) -> float:
    """The ratio of the one row of a side whose case holds these values; NaN where there is none."""
    return next((row.ratio for row in found(rows, side, **case)), math.nan)


def found(rows: Sequence[Row], side: str, **case: Any) -> list[Row]:
    """The rows of a side whose case holds these values."""
    return [row for row in rows if row.side == side and case.items() <= dict(row.case).items()]


def _label(case: Case) -> str:
    return ", ".join(f"{key} {value}" for key, value in case.items())


def _text(benchmark: Benchmark, report: Mapping[str, Any], rows: Sequence[Row], gates: Sequence[Gate]) -> str:
    table = [row.columns() for row in rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    cells = [[row.get(name, "") for name in names] for row in table]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    head = f"{benchmark.name}: {benchmark.title}\n{machine}; {report['rounds']} rounds; ratio = time over the first side's\n"
    equal = "\n".join(f"equal  {label}: {tolerance}" for label, tolerance in report["equal"].items())
    return "\n".join([head, tabulate(cells, names, disable_numparse=True), "", equal, *map(str, gates)])
