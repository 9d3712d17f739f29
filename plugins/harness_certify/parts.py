"""The parts of a plugin, built for its checks: which there are, what they are asked with, and why one cannot be asked here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.api import KINDS, HarnessError, Setup, Weights, answers, contract, find_tasks, read_task, unknown


@dataclass(frozen=True)
class Part:
    """One part as certified: its kind, its reference, and for a data set the modality and options of a task that uses it."""

    kind: str
    reference: str
    modality: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`detector max`."""
        return f"{KINDS[self.kind]} {self.reference}"


class Skipped(Exception):  # noqa: N818 - no error: a part that cannot be asked here
    """Why a part cannot be asked here."""


def offered(registry: Any, plugin: str, named: tuple[str, ...] = ()) -> list[Part]:
    """Every part of a plugin, in the order of `harness list`; a reference in `named` stands for the part of its name."""
    wanted = {reference.partition(":")[0]: reference for reference in named}
    there = [(kind, name) for kind in KINDS for name in registry.entries(kind) if registry.owner(kind, name) == plugin]
    for name in wanted:
        if name not in {known for _, known in there}:
            raise unknown("part", name, {known for _, known in there}, f"plugin {plugin}")
    return [_part(registry, kind, wanted.get(name, name)) for kind, name in there]


def _part(registry: Any, kind: str, reference: str) -> Part:
    if kind != "datasets":
        return Part(kind, reference)
    for path in find_tasks(registry).values():
        declared = read_task(path)
        if declared.dataset["name"] == reference:
            options = {key: value for key, value in declared.dataset.items() if key != "name"}
            return Part(kind, reference, declared.modality, options)
    return Part(kind, reference)


def build(registry: Any, part: Part, asked: bool) -> Any:
    """The part, built; of a data set, its loader with the task's options. Raises Skipped where it needs what is not here.

    asked: named by the user, who then means its real weights or data.
    """
    name = part.reference.partition(":")[0]
    entry = registry.entries(part.kind)[name]
    if part.kind == "models":
        raise Skipped("a folder of weights has no behaviour of its own")
    if entry.needs and not asked:
        raise Skipped(f"needs {', '.join(entry.needs)}; name it with --part to certify it with what is on this machine")
    if part.kind == "datasets":
        if not part.modality:
            raise Skipped("no task file names it: it is nothing without the user's data")
        return partial(registry.target("datasets", name), **part.options)
    try:
        made = registry.create(part.kind, part.reference, *([setup(registry)] if part.kind == "backbones" else []))
        return made.open(setup(registry), "text") if hasattr(made, "open") else made
    except HarnessError as error:
        if part.reference == name and not asked:
            raise Skipped(f"cannot be built from its name alone: {error}; name it with --part NAME:ARGUMENT") from error
        raise


def setup(registry: Any) -> Setup:
    """The CPU, and the models that plugins offer."""

    def weights(reference: str) -> Weights:
        found: Weights = registry.create("models", reference, setup(registry))
        return found

    return Setup(weights=weights)


def kind_of(part: Part, made: Any) -> str:
    """The kind whose faults are planted."""
    return "explainers" if part.kind == "localizers" and hasattr(made, "needs") else part.kind


def numbers(part: Part, made: Any) -> Any:
    """What the part gives for the made-up world, or of its data set."""
    return answers(part.kind, made() if part.kind == "datasets" else made)


def own_check(part: Part) -> Callable[[Any], None]:
    """The check of the part's kind."""
    return lambda made: contract(part.kind, (made, part.modality) if part.kind == "datasets" else made)
