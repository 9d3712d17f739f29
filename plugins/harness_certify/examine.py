"""Every check of a plugin: its parts' contracts and rules, the same numbers when built again and in other processes, cost, faults.

A check passes, fails with a sentence, or is skipped with a reason. It says nothing about how good a method is.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.api import KIND_OF, RULES, HarnessError, cost, read_task
from harness_certify.faults import FAULTS, faulty, offsets_ignored, one_sample_late, shifted, swapped, unknown_counted
from harness_certify.parts import Part, Skipped, build, kind_of, numbers, offered, own_check

BUDGET = 30.0
"""Seconds after which no more faults are planted: the rest of a minute is for what cannot be left out."""
CAUGHT = 0.95
"""The share of a plugin's planted faults that the checks must catch."""
REFERENCES = {"detectors": "max", "concept_methods": "mean", "localizers": "direct"}
"""The cheapest part of each kind whose cost is measured: a ratio of 10 means ten times its seconds or bytes."""
WIDEST = 50
"""A detector or localizer may make a tensor of so many times the bytes of the cheapest one's largest: never tokens by tokens."""
MAYBE_WITHOUT_EFFECT = (shifted, swapped, one_sample_late, offsets_ignored, unknown_counted)
HASH_SEEDS = ("1", "2")


class Check(NamedTuple):
    """One check: `verdict` is pass, fail or skip; `reason` says why it is not a pass."""

    name: str
    verdict: str
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Examined:
    """What was found of one part, or of the plugin itself (`part` empty)."""

    part: str
    checks: list[Check] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> bool:
        """Whether the part's contract was checked, with whatever verdict."""
        return any(check.name == "contract" and check.verdict != "skip" for check in self.checks)

    def run(self, name: str, check: Callable[[], str | None]) -> bool:
        """Runs one check; what it raises is a failure, what it returns the reason of a skip."""
        started, verdict, reason = time.perf_counter(), "pass", ""
        try:
            said = check()
            verdict, reason = ("skip", said) if said else ("pass", "")
        except Exception as error:  # a third-party part may raise anything, and that is what is asked
            verdict, reason = "fail", _sentence(error)
        self.checks.append(Check(name, verdict, reason, round(time.perf_counter() - started, 3)))
        return verdict == "pass"


def _sentence(error: Exception) -> str:
    words = " ".join(str(error).split()) or "no message"
    return words if isinstance(error, AssertionError | HarnessError) else f"{type(error).__name__}: {words}"


@dataclass
class Examination:
    """A plugin, its parts and what of them could be built, by their place among all parts asked; what was found of each, and of it."""

    plugin: str
    parts: dict[int, Part] = field(default_factory=dict)
    made: dict[int, Any] = field(default_factory=dict)
    found: dict[int, Examined] = field(default_factory=dict)
    whole: Examined = field(default_factory=lambda: Examined(""))
    seconds: float = 0.0

    @property
    def all(self) -> list[Examined]:
        """The plugin itself, then its parts."""
        return [self.whole, *self.found.values()]


def examine(
    registry: Any, plugin: str, requests: Sequence[str], named: tuple[str, ...] = (), only: str | None = None
) -> list[Examined]:
    """Every check of a plugin; `only`: of the parts of that name alone."""
    (one,) = examine_all(registry, [plugin], requests, named, only)
    return one.all


def examine_all(
    registry: Any, plugins: Sequence[str], requests: Sequence[str], named: tuple[str, ...] = (), only: str | None = None
) -> list[Examination]:
    """Every check of every plugin: they share the other processes, whose start is most of the time that a small plugin takes."""
    place = itertools.count()
    every = [Examination(plugin) for plugin in plugins]
    with _one_thread():
        for one in every:
            parts = [part for part in offered(registry, one.plugin, named) if only in (None, part.reference.partition(":")[0])]
            one.parts = {next(place): part for part in parts}
            _build(registry, one, named)
        with _elsewhere(requests, every) as others:
            for one in every:
                _here(registry, one)
            told = others()
        for one in every:
            if isinstance(told, str) and len(every) > 1:  # one of them ended the process: whose was it?
                with _elsewhere(requests, [one]) as alone:
                    _others(alone(), one, _is_package(registry, one.plugin))
            else:
                _others(told, one, _is_package(registry, one.plugin))
    for one in every:
        share = _caught(list(one.found.values()))
        if share is not None:
            one.whole.run("planted faults", lambda one=one, share=share: _force(share, list(one.found.values())))  # type: ignore[misc]
    return every


def _build(registry: Any, one: Examination, named: tuple[str, ...]) -> None:
    for place, part in one.parts.items():
        one.found[place] = Examined(part.name)
        try:
            one.made[place] = build(registry, part, part.reference in named)
        except Skipped as reason:
            one.found[place].checks.append(Check("contract", "skip", str(reason)))
        except Exception as error:  # as in `run`
            one.found[place].checks.append(Check("contract", "fail", _sentence(error)))


def _here(registry: Any, one: Examination) -> None:
    """The checks in this process; what refuses the made-up world is asked no more."""
    started = time.perf_counter()
    one.whole.run("names", lambda: _names(registry, one.plugin))
    for place, made in list(one.made.items()):
        if not examine_part(registry, one.parts[place], made, one.found[place], started + BUDGET):
            del one.made[place]
    one.seconds = time.perf_counter() - started


def examine_part(registry: Any, part: Part, made: Any, found: Examined, deadline: float) -> bool:
    """The checks of one part in this process; False where it refuses the made-up world, and so cannot be asked."""
    checks: dict[str, Callable[[Any], str | None]] = {"contract": own_check(part)}
    kind = kind_of(part, made)
    try:
        numbers(part, made)
    except HarnessError as refusal:
        found.checks.append(Check("contract", "skip", f"refuses the made-up world: {refusal}"))
        return False
    except Exception:  # noqa: S110 - the checks will say what it is
        pass
    checks |= {name: lambda one, rule=rule: rule(kind, one) for name, rule in RULES.get(kind, {}).items()}  # type: ignore[misc]
    passed = {name: check for name, check in checks.items() if found.run(name, lambda check=check: check(made))}  # type: ignore[misc]
    found.run("built again", lambda: _built_again(registry, part, made))
    if kind in REFERENCES:
        found.run("cost", lambda: _cost(registry, kind, made, found))
    if "contract" in passed:
        found.faults = _plant(kind, part, made, passed, deadline)
    return True


def _built_again(registry: Any, part: Part, made: Any) -> None:
    """A recipe keeps a part's reference and nothing else: what is built from it must give the same numbers."""
    first, again = numbers(part, made), numbers(part, build(registry, part, True))
    if not _same(first, again):
        raise AssertionError("gives other numbers when it is built again from its name and options; results cannot be repeated")


def _same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), 1e-5, 1e-6, equal_nan=True)


def _cost(registry: Any, kind: str, made: Any, found: Examined) -> None:
    mine, least = cost(kind, made), cost(kind, registry.create(kind, REFERENCES[kind]))
    ratio = {"seconds": round(mine.seconds / least.seconds, 1), "bytes": round(mine.bytes / least.bytes, 1)}
    found.cost = {**mine._asdict(), "seconds": round(mine.seconds, 4), "against": REFERENCES[kind], "ratio": ratio}
    if kind != "concept_methods" and ratio["bytes"] > WIDEST:
        raise AssertionError(
            f"makes a tensor of {ratio['bytes']:g} times the largest of {REFERENCES[kind]!r} for {mine.tokens} tokens; "
            f"allowed: {WIDEST}; go sample by sample, or over segments"
        )


def _plant(kind: str, part: Part, made: Any, passed: dict[str, Any], deadline: float) -> dict[str, Any]:
    """How many faults were planted, which check caught each, which were missed, had no effect, or had no time."""
    plain = None if kind == "datasets" else numbers(part, made)
    caught, missed, without, late = {}, [], [], []
    for fault in FAULTS.get(kind, ()):
        if time.perf_counter() > deadline:
            late.append(fault.__name__)
            continue
        try:
            mutant = faulty(kind, made, fault)
        except TypeError:  # a class that cannot be copied with another method
            without.append(fault.__name__)
            continue
        if fault in MAYBE_WITHOUT_EFFECT and _no_effect(part, mutant, plain):
            without.append(fault.__name__)
            continue
        catcher = next((name for name, check in passed.items() if _catches(check, mutant)), None)
        if catcher:
            caught[fault.__name__] = catcher
        else:
            missed.append(fault.__name__)
    return {"planted": len(caught) + len(missed), "caught": caught, "missed": missed, "no effect": without, "no time": late}


def _no_effect(part: Part, mutant: Any, plain: Any) -> bool:
    try:
        return _same(plain, numbers(part, mutant))
    except Exception:  # it has an effect: the checks will say which
        return False


def _catches(check: Callable[[Any], str | None], mutant: Any) -> bool:
    try:
        return check(mutant) is not None
    except Exception:  # a fault may make a part raise anything
        return True


def _caught(found: Sequence[Examined]) -> float | None:
    planted = sum(one.faults.get("planted", 0) for one in found)
    return sum(len(one.faults.get("caught", ())) for one in found) / planted if planted else None


def _force(share: float, found: Sequence[Examined]) -> None:
    if share < CAUGHT:
        missed = "; ".join(f"{one.part}: {', '.join(one.faults['missed'])}" for one in found if one.faults.get("missed"))
        raise AssertionError(f"the checks catch {share:.0%} of the faults planted in it, less than {CAUGHT:.0%}: {missed}")


def _is_package(registry: Any, plugin: str) -> bool:
    """Whether a plugin has modules of its own, which it could import later."""
    (origin,) = (one.origin for one in registry.plugins if one.name == plugin)
    found = None if origin.endswith(".py") else importlib.util.find_spec(origin)
    return found is not None and found.submodule_search_locations is not None


def _names(registry: Any, plugin: str) -> None:
    """Recipes name parts that there are, and task files can be read."""
    for name, method in registry.methods().items():
        if registry.owner("methods", name) == plugin:
            for word, kind in KIND_OF.items():
                reference = getattr(method, word)
                if reference:
                    registry.target(kind, reference.partition(":")[0], f"recipe {name!r}")
    for folder in registry.task_dirs():
        for path in sorted(folder.glob("*.yaml")):
            read_task(path)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Answers(NamedTuple):
    """What another process found: the numbers of parts by their place, `heavy`, and how parts failed."""

    numbers: dict[str, torch.Tensor]
    failed: dict[str, str]


@contextmanager
def _elsewhere(requests: Sequence[str], every: Sequence[Examination]) -> Iterator[Callable[[], list[Answers] | str]]:
    """Starts one process per hash seed; what is yielded waits for them: their answers, or the last line of what ended one."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        given = {str(place): asdict(one.parts[place]) for one in every for place in one.made}
        asked.write_text(json.dumps({"requests": list(requests), "parts": given}), encoding="utf-8")
        running = []
        for seed in HASH_SEEDS:
            written = Path(folder) / f"{seed}.safetensors"
            command = [sys.executable, "-m", "harness_certify.elsewhere", str(asked), str(written)]
            how: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
            environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
            running.append((written, subprocess.Popen(command, env=environment, **how)))  # noqa: S603 - this very program

        def wait() -> list[Answers] | str:
            done = []
            for written, process in running:
                _, told = process.communicate()
                if process.returncode or not written.is_file():
                    return (told.strip().splitlines() or [f"it ended with code {process.returncode}"])[-1]
                with safe_open(written, "pt") as opened:
                    done.append(Answers(load_file(written), opened.metadata() or {}))
            return done

        try:
            yield wait
        finally:
            for _, process in running:
                process.kill()
                process.wait()


def _others(others: list[Answers] | str, one: Examination, package: bool) -> None:
    """What the other processes found: the same numbers of every part, and no torch for a list."""

    def light() -> str | None:
        if isinstance(others, str):
            raise AssertionError(f"cannot be used in a process of its own; {others}")
        heavy = any(int(other.numbers["heavy"]) for other in others)
        if heavy and package:
            raise AssertionError("imports torch when it is listed; import it in the module that a target names")
        return "imports torch when it is listed, as a plugin of one module may; a package should not" if heavy else None

    one.whole.run("light to list", light)

    def agree(place: int) -> str | None:
        if isinstance(others, str):
            return "the other processes failed; see `light to list`"
        key, mine = str(place), numbers(one.parts[place], one.made[place])
        failed = next((other.failed[key] for other in others if key in other.failed), None)
        if failed:
            raise AssertionError(f"fails in another process, and not in this one; {failed}")
        if not all(key in other.numbers for other in others):
            raise AssertionError("is refused in another process, and not in this one")
        if not all(_same(mine, other.numbers[key]) for other in others):
            raise AssertionError("gives other numbers in another process; is it hash() or the order of a set?")
        return None

    for place in one.made:
        one.found[place].run("other processes", lambda place=place: agree(place))  # type: ignore[misc]


def first_failure(found: Sequence[Examined]) -> tuple[Examined, Check] | None:
    """The first check that failed, in order."""
    return next(((one, check) for one in found for check in one.checks if check.verdict == "fail"), None)
