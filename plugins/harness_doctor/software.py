"""What is installed: the packages the project requires, the versions it was tested with, and the extras that are not there."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

PROJECT = "concept-harness"
SKIPPED = {"all", "test"}
"""Extras that only join others, or serve the project's own tests."""


def packages() -> list[dict[str, Any]]:
    """Python and every required package: version, what is needed, what the project was tested with, and what is wrong."""
    tested = constraints()
    python = metadata(PROJECT)["Requires-Python"] or ""
    return [
        _state("python", platform.python_version(), python, None),
        *(_state(one.name, installed(one.name), str(one.specifier), tested.get(_key(one.name))) for one in _required(None)),
    ]


def _state(name: str, found: str | None, needed: str, tested: str | None) -> dict[str, Any]:
    wrong = None
    if found is None:
        wrong = "not installed"
    elif needed and not Requirement(f"x{needed}").specifier.contains(found, prereleases=True):
        wrong = f"{found} is not {needed}"
    return {"name": name, "installed": found, "needs": needed, "tested": tested, "broken": wrong}


def extras() -> list[dict[str, Any]]:
    """Every extra: what of it is missing, and the command that brings it."""
    found = []
    for extra in sorted(set(metadata(PROJECT).get_all("Provides-Extra") or ()) - SKIPPED):
        missing = [one.name for one in _required(extra) if installed(one.name) is None]
        found.append({"name": extra, "missing": missing, "bring": f"pip install '{PROJECT}[{extra}]'"})
    return found


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def constraints() -> dict[str, str]:
    """Package -> the version the project was tested with: of constraints.txt, where a checkout is installed."""
    spec = find_spec("harness")
    file = Path(spec.origin).parent.parent / "constraints.txt" if spec and spec.origin else None
    if file is None or not file.is_file():
        return {}
    pins = re.findall(r"^([\w.-]+)==([^\s#]+)", file.read_text(encoding="utf-8"), re.M)
    return {_key(name): pinned for name, pinned in pins}


def _required(extra: str | None) -> list[Requirement]:
    """The direct requirements, or those that an extra adds."""
    found = []
    for line in requires(PROJECT) or ():
        try:
            one = Requirement(line)
        except InvalidRequirement:  # a line that this version of packaging cannot read is pip's to judge
            continue
        of_extra = one.marker is not None and "extra" in str(one.marker)
        wanted = one.marker is None or one.marker.evaluate({"extra": extra or ""})
        if wanted and of_extra == (extra is not None):
            found.append(one)
    return found


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
