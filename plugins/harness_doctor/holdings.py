"""What lies on this machine: data sets below HARNESS_DATA, weights in packages, models in the Hub's cache. Nothing is opened or asked
over a network; a file that is there is not checked (`harness validate` does that)."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.api import Entry, HarnessError, find_tasks, read_task


def tasks(registry: Any) -> list[dict[str, Any]]:
    """Every task: found, missing, "needs none" or broken; where it looked, what is missing, what to do."""
    entries = registry.entries("datasets")
    found = []
    for name, path in sorted(find_tasks(registry).items()):
        try:
            dataset = read_task(path).dataset
            entry = entries.get(dataset["name"])
            if entry is None:
                raise HarnessError(f"its data set {dataset['name']!r} is of no plugin that works")
            found.append({"name": name, "dataset": entry.name, **_data(entry, dataset), "broken": None})
        except HarnessError as error:
            found.append({"name": name, "dataset": None, "state": "broken", "missing": [], "bring": "", "broken": str(error)})
    return found


def _data(entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    patterns = [need.removeprefix("data:") for need in entry.needs if need.startswith("data:")]
    if not patterns:
        return {"state": "needs none", "folder": None, "missing": [], "bring": ""}
    root = os.environ.get("HARNESS_DATA")
    if root is None and options.get("folder") is None:
        bring = f"set HARNESS_DATA to a folder that has {entry.name}/; {entry.bring}"
        return {"state": "missing", "folder": None, "missing": ["HARNESS_DATA"], "bring": bring}
    folder = Path(options.get("folder") or Path(root or "") / entry.name).expanduser().absolute()
    named = [
        pattern.format_map(defaultdict(lambda: "*", {key: str(value) for key, value in options.items()}))
        for pattern in patterns
    ]
    missing = [pattern for pattern in named if not any(_there(folder, place) for place in pattern.split("|"))]
    return {
        "state": "missing" if missing else "found",
        "folder": str(folder),
        "missing": missing,
        "bring": entry.bring if missing else "",
    }


def _there(folder: Path, pattern: str) -> bool:
    return next(iter(folder.glob(pattern)), None) is not None


def weights(registry: Any) -> list[dict[str, Any]]:
    """Every backbone with weights of its own: ready or missing, where they come from (a package, or a Hub id), and what to do."""
    found = []
    for name, entry in sorted(registry.entries("backbones").items()):
        if entry.needs:
            missing = [need.partition(":")[2] for need in entry.needs if not _have(need)]
            models = [need.removeprefix("hub:") for need in entry.needs if need.startswith("hub:")]
            bring = entry.bring or f"hf download {' '.join(models)}"
            found.append(
                {
                    "name": name,
                    "from": models[0] if models else "package",
                    "state": "missing" if missing else "ready",
                    "missing": missing,
                    "bring": bring if missing else "",
                }
            )
    return found


def _have(need: str) -> bool:
    kind, _, name = need.partition(":")
    if kind == "package":
        return find_spec(name) is not None
    return any(_whole(snapshot) for snapshot in hub_cache().glob(f"models--{name.replace('/', '--')}/snapshots/*"))


def _whole(snapshot: Path) -> bool:
    """Whether a snapshot has its configuration and every file of its weights."""
    index = snapshot / "model.safetensors.index.json"
    if not (snapshot / "config.json").exists():
        return False
    if not index.exists():
        return (snapshot / "model.safetensors").exists()
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):  # half a file: not whole
        return False
    return all((snapshot / shard).exists() for shard in shards)


def hub_cache() -> Path:
    """Where the Hub's library keeps what it downloads: HF_HUB_CACHE, else below HF_HOME."""
    return Path(os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub").expanduser()


def token() -> str | None:
    """Where a token for the Hub is: never the token itself."""
    if os.environ.get("HF_TOKEN"):
        return "set"
    return "not set; a token file is there" if (_hub_home() / "token").is_file() else None


def _hub_home() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser()


def cached() -> list[dict[str, Any]]:
    """Models and data sets in the Hub's cache: id, kind, bytes, and for a model whether its weights are whole."""
    found = []
    for folder in sorted(hub_cache().glob("*--*")):
        kind, _, name = folder.name.partition("--")
        if kind in ("models", "datasets"):
            size = sum(file.stat().st_size for file in (folder / "blobs").glob("*") if file.is_file())
            whole = any(_whole(snapshot) for snapshot in folder.glob("snapshots/*")) if kind == "models" else None
            found.append({"id": name.replace("--", "/"), "kind": kind.removesuffix("s"), "bytes": size, "whole": whole})
    return found
