"""B11: cold start. `harness --help`, `harness list` and the smallest run, each a new process, against `import torch`.

The interpreter alone is there to be subtracted. The smallest run is the toy task with one method and no bootstrap, into a folder that
is new every time, so that nothing is cached.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pairs import Benchmark, Case, Found, Gate, Row, Sides, found, main

CLI = "from harness.cli import main; main()"
RUN = ("run", "--task", "toy", "--method", "superactivator", "--bootstrap", "0", "--layers", "last")


def python(code: str, *arguments: str) -> str:
    """What a new interpreter prints; the caller's settings of the harness are not passed on."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HARNESS_")}
    words = [sys.executable, "-c", code, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout


def smallest_run() -> str:
    """The table of the toy task."""
    with tempfile.TemporaryDirectory(prefix="harness-b11-") as made:
        return python(CLI, *RUN, "--cache-dir", f"{made}/cache", "--output", f"{made}/results")


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """The commands of a case, `import torch` first."""
    calls: dict[str, Callable[[], str]] = {
        "import torch": lambda: python("import torch"),
        "python": lambda: python("pass"),
        "--help": lambda: python(CLI, "--help"),
        "list": lambda: python(CLI, "list"),
        "run": smallest_run,
    }

    def check(results: Found) -> dict[str, dict[str, Any]]:
        words = {"--help": "Usage", "list": "toy", "run": "superactivator"}
        for name, word in words.items():
            assert name not in results or word in results[name], f"{name} prints no {word!r}"
        return {}

    yield Sides({name: calls[name] for name in case["commands"].split(", ")}, check, "each prints what it should")


def gates(rows: Sequence[Row]) -> list[Gate]:
    """Help and list take less than importing torch would; the smallest run not more than a few times that."""
    bounds = {"--help": 0.5, "list": 0.5, "run": 8}
    return [Gate(f"{name} / import torch", found(rows, name)[0].ratio, bound, False) for name, bound in bounds.items()]


BENCHMARK = Benchmark(
    "B11",
    "cold start against `import torch`",
    build,
    [{"commands": "import torch, python, --help, list, run"}],
    [{"commands": "python, --help"}],
    gates,
    fresh=0,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
