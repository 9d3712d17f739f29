"""Every check of a plugin: its parts' contracts and rules, the same numbers when built again and in other processes, cost, faults.

A check passes, fails with a sentence, or is skipped with a reason. It says nothing about how good a method is.
"""

from __future__ import annotations

import importlib.util
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
from safetensors.torch import load_file

from harness.api import RULES, HarnessError, cost, read_task
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
KIND_OF = {"concepts": "concept_methods", "detector": "detectors", "localizer": "localizers", "scorer": "scorers"}


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


def examine(
    registry: Any, plugin: str, requests: Sequence[str], named: tuple[str, ...] = (), only: str | None = None
) -> list[Examined]:
    """Every check of a plugin; `only`: of the parts of that name alone."""
    deadline = time.perf_counter() + BUDGET
    parts = [part for part in offered(registry, plugin, named) if only in (None, part.reference.partition(":")[0])]
    whole, made, found = Examined(""), {}, {}
    with _one_thread():
        for place, part in enumerate(parts):
            found[place] = Examined(part.name)
            try:
                made[place] = build(registry, part, part.reference in named)
            except Skipped as reason:
                found[place].checks.append(Check("contract", "skip", str(reason)))
            except Exception as error:  # as in `run`
                found[place].checks.append(Check("contract", "fail", _sentence(error)))
        with _elsewhere(requests, {place: parts[place] for place in made}) as others:
            whole.run("names", lambda: _names(registry, plugin))
            for place, part in enumerate(parts):
                if place in made and not examine_part(registry, part, made[place], found[place], deadline):
                    del made[place]
            _others(
                others(),
                whole,
                {place: (parts[place], made[place], found[place]) for place in made},
                _is_package(registry, plugin),
            )
    share = _caught(list(found.values()))
    if share is not None:
        whole.run("planted faults", lambda: _force(share, list(found.values())))
    return [whole, *found.values()]


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


@contextmanager
def _elsewhere(requests: Sequence[str], parts: dict[int, Part]) -> Iterator[Callable[[], list[dict[str, Any] | str]]]:
    """Starts one process per hash seed; what is yielded waits for them: their tensors, or the last line of what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.json"
        given = {str(place): asdict(part) for place, part in parts.items()}
        asked.write_text(json.dumps({"requests": list(requests), "parts": given}), encoding="utf-8")
        running = []
        for seed in HASH_SEEDS:
            written = Path(folder) / f"{seed}.safetensors"
            command = [sys.executable, "-m", "harness_certify.elsewhere", str(asked), str(written)]
            how: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
            environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
            running.append((written, subprocess.Popen(command, env=environment, **how)))  # noqa: S603 - this very program

        def wait() -> list[dict[str, Any] | str]:
            done: list[dict[str, Any] | str] = []
            for written, process in running:
                _, told = process.communicate()
                done.append(load_file(written) if process.returncode == 0 else (told.strip().splitlines() or ["?"])[-1])
            return done

        try:
            yield wait
        finally:
            for _, process in running:
                process.kill()
                process.wait()


def _others(others: Sequence[Any], whole: Examined, made: dict[int, tuple[Part, Any, Examined]], package: bool) -> None:
    """What the other processes found: the same numbers of every part, and no torch for a list."""
    told = next((other for other in others if isinstance(other, str)), None)

    def light() -> str | None:
        if told is not None:
            raise AssertionError(f"cannot be used in a process of its own; {told}")
        heavy = any(int(other["heavy"]) for other in others)
        if heavy and package:
            raise AssertionError("imports torch when it is listed; import it in the module that a target names")
        return "imports torch when it is listed, as a plugin of one module may; a package should not" if heavy else None

    whole.run("light to list", light)

    def agree(place: int, part: Part, one: Any) -> str | None:
        if told is not None:
            return "the other processes failed; see `light to list`"
        mine = numbers(part, one)
        if not all(str(place) in other for other in others):
            raise AssertionError("is refused in another process, and not in this one")
        if not all(_same(mine, other[str(place)]) for other in others):
            raise AssertionError("gives other numbers in another process; is it hash() or the order of a set?")
        return None

    for place, (part, one, found) in made.items():
        found.run("other processes", lambda place=place, part=part, one=one: agree(place, part, one))  # type: ignore[misc]


def first_failure(found: Sequence[Examined]) -> tuple[Examined, Check] | None:
    """The first check that failed, in order."""
    return next(((one, check) for one in found for check in one.checks if check.verdict == "fail"), None)
