"""What `harness init` writes: a working plugin of one module with a test, or a task with a few lines of data; from templates."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from harness.api import KINDS, HarnessError, find_tasks, write_atomic

TEMPLATES = Path(__file__).parent / "templates"
PARTS = {
    "detector": "detectors",
    "concept-method": "concept_methods",
    "backbone": "backbones",
    "localizer": "localizers",
    "task": "tasks",
}
WEATHER = {
    "rain": ("a cold rain fell on {}", "rain"),
    "sun": ("the warm sun shone on {}", "sun"),
    "both": ("rain and sun came to {}", "rain sun"),
    "none": ("nothing at all happened in {}", ""),
}
PLACES = tuple(
    re.findall(
        r"\w+",
        """Oslo Lima Cairo Perth Quito Turin Kyoto Accra Delhi
Malmo Porto Sofia Tunis Dakar Leeds Basel Nantes Bergen""",
    )
)


def begin(registry: Any, kind: str, name: str, folder: Path) -> list[Path]:
    """The files, written into a folder that is empty or not there."""
    _check_name(registry, kind, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HarnessError(f"{folder} is there and not empty; nothing is overwritten; name another folder with -o")
    files = _texts(name) if kind == "backbone" else {}
    words = {"name": name, "kind": kind, "folder": folder.resolve().name, "title": _title(name)}
    if kind == "task":
        files |= {f"{name}.yaml": _render("task.yaml", words), f"{name}.jsonl": _lines()}
    else:
        files |= {
            f"{name}.py": _render(f"{kind}.py", words),
            f"test_{name}.py": _render("test.py", words),
            "pyproject.toml": _render("pyproject.toml", words),
        }
    files["README.md"] = _render("README.md", words)
    for file, text in files.items():
        write_atomic(folder / file, text.encode())
    return [folder / file for file in files]


def _check_name(registry: Any, kind: str, name: str) -> None:
    """An identifier in lower case that nothing else is named."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii() or name != name.lower() or name.startswith("_"):
        near = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name.lower()).strip("_")
        near = (
            f"{kind.replace('-', '_')}_{near}".rstrip("_") if not near or near[0].isdigit() or keyword.iskeyword(near) else near
        )
        raise HarnessError(
            f"{name!r} cannot be the name of a module; lower-case letters, digits and _ are allowed; try {near!r}"
        )
    taken: dict[str, str] = dict.fromkeys(find_tasks(registry), "task") if kind == "task" else {}
    if kind != "task":
        taken |= dict.fromkeys(registry.entries(PARTS[kind]), KINDS[PARTS[kind]])
        taken |= dict.fromkeys(registry.methods(), "method")
        taken |= {plugin.name: "plugin" for plugin in registry.plugins}
    if name in taken:
        raise HarnessError(f"there is a {taken[name]} {name!r} already; see `harness list`; try {'my_' + name!r}")


def _texts(name: str) -> Mapping[str, str]:
    """A text task beside a backbone, to run it on: the planted world of `toy` has no texts."""
    words = {"name": f"{name}_texts", "kind": "task"}
    return {f"{name}_texts.yaml": _render("task.yaml", words), f"{name}_texts.jsonl": _lines()}


def _lines() -> str:
    """Six places per split, four sentences each: no sentence stands in two splits."""
    rows = []
    for i, place in enumerate(PLACES):
        for sentence, concepts in WEATHER.values():
            text = sentence.format(place)
            regions = [{"concept": c, "start": text.index(c), "end": text.index(c) + len(c)} for c in concepts.split()]
            row = {"text": text, "split": ("train", "cal", "test")[i % 3], "concepts": concepts.split(), "regions": regions}
            rows.append(json.dumps(row) + "\n")
    return "".join(rows)


def _title(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _render(template: str, words: Mapping[str, str]) -> str:
    """Plain text: names are checked identifiers, so nothing needs escaping."""
    environment = jinja2.Environment(  # noqa: S701 - Python, TOML and Markdown, no HTML
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.get_template(f"{template}.jinja").render(words)
