"""Everything the other modules find, as plain data (`examine`), and in words (`show`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness_doctor import holdings, machine

KINDS = ("datasets", "backbones", "concept_methods", "detectors", "scorers", "localizers", "metrics", "models")
VARIABLES = ("HARNESS_DATA", "HARNESS_DOWNLOAD", "HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT")
SHOWN = ("python", "torch", "transformers", "datasets", "numpy")
"""Packages that are shown even where nothing is wrong with them."""


def examine(registry: Any, cache_dir: Path) -> dict[str, Any]:
    """Everything, as plain data; `broken` says in a line each what does not work."""
    asked = machine.start_probe()
    found: dict[str, Any] = {
        "system": machine.system(),
        "processors": machine.processors(),
        "memory": machine.memory(),
        "cache": machine.room(cache_dir),
        "hub_cache": machine.room(holdings.hub_cache()),
        "environment": {**{name: os.environ.get(name) or None for name in VARIABLES}, "HF_TOKEN": holdings.token()},
        "tasks": holdings.tasks(registry),
        "weights": holdings.weights(registry),
        "cached": holdings.cached(),
        **_installed(),
        "plugins": _plugins(registry),
    }
    found["torch"], found["torch_broken"] = machine.read_probe(asked)
    found["broken"] = _broken(found)
    return found


def _installed() -> dict[str, Any]:
    """Packages and extras; without the package that reads requirements, that is what is wrong."""
    try:
        from harness_doctor import software
    except ImportError as error:
        wrong = {"name": str(error.name), "installed": None, "needs": "", "tested": None, "broken": "not installed"}
        return {"packages": [wrong], "extras": []}
    return {"packages": software.packages(), "extras": software.extras()}


def _plugins(registry: Any) -> list[dict[str, Any]]:
    """Every plugin, after all of its hooks were called."""
    for kind in KINDS:
        registry.entries(kind)
    registry.methods()
    return [{"name": plugin.name, "origin": plugin.origin, "broken": plugin.cause} for plugin in registry.plugins]


def _broken(found: dict[str, Any]) -> list[str]:
    slow = (found["torch_broken"] or "").startswith(machine.SLOW)
    lines = [f"torch: {found['torch_broken']}"] if found["torch_broken"] and not slow else []
    lines += [f"package {one['name']}: {one['broken']}" for one in found["packages"] if one["broken"]]
    lines += [f"plugin {one['name']}: {one['broken']}" for one in found["plugins"] if one["broken"]]
    lines += [f"task {one['name']}: {one['broken']}" for one in found["tasks"] if one["broken"]]
    return lines + [
        f"{found[name]['path']} cannot be written" for name in ("cache", "hub_cache") if not found[name]["writable"]
    ]


# --- in words


def show(found: dict[str, Any]) -> None:
    """Tables of short words; what to do stands below each table."""
    console = Console()
    _show_machine(console, found)
    _show_packages(console, found)
    _show_tasks(console, found["tasks"])
    _show_weights(console, found)
    _show_extras(console, found["extras"])
    _show_plugins(console, found["plugins"])
    for line in found["broken"]:
        say(console, f"broken: {line}", "bold red")
    say(
        console,
        "broken: see above" if found["broken"] else "Nothing is broken.",
        "bold red" if found["broken"] else "bold green",
    )


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line of text, wrapped at words."""
    console.print(escape(text), style=style, highlight=False)


def hints(console: Console, found: Sequence[tuple[str, str]]) -> None:
    """What to do, for all names that need the same: (name, hint) each."""
    grouped: dict[str, list[str]] = {}
    for name, hint in found:
        grouped.setdefault(hint, []).append(name)
    for hint, names in grouped.items():
        say(console, f"- {', '.join(names)}: {hint}")
    say(console, "")


def table(title: str, *columns: str) -> Table:
    """An empty table under a title."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def size(count: int | None) -> str:
    """Bytes in words."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _show_machine(console: Console, found: dict[str, Any]) -> None:
    made = table("Machine", "what", "found")
    memory = found["memory"]
    made.add_row("system", escape(found["system"]))
    threads = f"; torch uses {found['torch']['threads']} threads" if found["torch"] else ""
    made.add_row("processors", f"{found['processors']}{threads}")
    made.add_row("memory", f"{size(memory['total'])}, {size(memory['available'])} available")
    for device in found["torch"]["devices"] if found["torch"] else ():
        room = f", {size(device['free'])} of {size(device['memory'])} free" if device["free"] is not None else ""
        name = "" if device["kind"] == "cpu" else f"{escape(device['name'])}{room}; "
        made.add_row(device["kind"], f"{name}{', '.join(device['dtypes'])}")
    if found["torch"] and len(found["torch"]["devices"]) == 1:
        made.add_row("GPU", "none that torch can use")
    if found["torch_broken"]:
        if found["torch_broken"].startswith(machine.SLOW):
            made.add_row(
                "torch", f"[yellow]{escape(found['torch_broken'])}: a first import, or a busy machine? Try again[/yellow]"
            )
        else:
            made.add_row("torch", f"[red]{escape(found['torch_broken'])}[/red]")
    for name, what in (("cache", "embeddings"), ("hub_cache", "Hub cache")):
        made.add_row(what, f"{escape(found[name]['path'])}, {size(found[name]['free'])} free")
    for name, value in found["environment"].items():
        made.add_row(name, escape(value) if value else "[dim]not set[/dim]")
    console.print(made)


def _show_packages(console: Console, found: dict[str, Any]) -> None:
    made = table("Versions", "package", "installed", "needs", "tested with")
    for one in found["packages"]:
        if one["name"] in SHOWN or one["broken"]:
            version = f"[red]{escape(one['broken'])}[/red]" if one["broken"] else escape(one["installed"])
            made.add_row(one["name"], version, escape(one["needs"]), escape(one["tested"] or "-"))
    console.print(made)
    others = sum(not one["broken"] for one in found["packages"] if one["name"] not in SHOWN)
    say(console, f"{others} other required packages are installed in a version that serves.\n")


def _show_tasks(console: Console, tasks: Sequence[dict[str, Any]]) -> None:
    made = table("Data of the tasks", "task", "data", "missing")
    colours = {"found": "green", "needs none": "green", "missing": "yellow", "broken": "red"}
    for one in tasks:
        missing = one["broken"] or ", ".join(one["missing"]).replace("|", " or ")
        made.add_row(one["name"], f"[{colours[one['state']]}]{one['state']}[/]", escape(missing))
    console.print(made)
    hints(console, [(one["name"], f"{one['folder'] or 'no folder'}: {one['bring']}") for one in tasks if one["bring"]])


def _show_weights(console: Console, found: dict[str, Any]) -> None:
    made = table("Weights of the backbones", "backbone", "state", "from")
    for one in found["weights"]:
        made.add_row(one["name"], f"[{'green' if one['state'] == 'ready' else 'yellow'}]{one['state']}[/]", escape(one["from"]))
    console.print(made)
    say(console, "What is missing of the Hub is downloaded on first use, or with `hf download <id>`.")
    asked = [one for one in found["weights"] if one["bring"] and not one["bring"].startswith("hf download")]
    hints(console, [(one["name"], one["bring"]) for one in asked])
    made = table("In the Hub's cache", "id", "kind", "size", "weights")
    for one in found["cached"]:
        whole = {None: "-", True: "whole", False: "not whole, or not safetensors"}[one["whole"]]
        made.add_row(escape(one["id"]), one["kind"], size(one["bytes"]), whole)
    if found["cached"]:
        console.print(made)
    else:
        say(console, f"Nothing is in the Hub's cache ({found['hub_cache']['path']}).\n")


def _show_extras(console: Console, extras: Sequence[dict[str, Any]]) -> None:
    missing = [one for one in extras if one["missing"]]
    for one in missing:
        say(console, f"extra {one['name']} lacks {', '.join(one['missing'])}: {one['bring']}")
    whole = [one["name"] for one in extras if not one["missing"]]
    if whole:
        say(console, f"Extras that are installed: {', '.join(whole)}.")


def _show_plugins(console: Console, plugins: Sequence[dict[str, Any]]) -> None:
    broken = [one for one in plugins if one["broken"]]
    say(console, f"{len(plugins)} plugins, {len(broken) or 'none'} broken; `harness plugins` lists them.\n")
