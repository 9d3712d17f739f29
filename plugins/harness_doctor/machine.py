"""The machine: memory, processors, room on the disks, and what torch answers when it is asked in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness_doctor import probe

SECONDS = 7.0
"""How long torch may take to import and answer; the whole command is to end within ten."""

SLOW = "importing torch and asking it took more than"
"""Begins what is said of a torch that was given up: it may be cold, or the machine busy, and so it is not called broken."""


def start_probe() -> subprocess.Popen[str]:
    """The probe, started; the rest of the command goes on beside it."""
    return subprocess.Popen(  # noqa: S603 - this interpreter, our own file
        [sys.executable, "-P", str(probe.__file__)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read_probe(process: subprocess.Popen[str], seconds: float = SECONDS) -> tuple[dict[str, Any] | None, str | None]:
    """(what torch said, None), or (None, why it said nothing)."""
    try:
        said, complained = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, f"{SLOW} {seconds:g} s"
    if process.returncode == 0:
        found: dict[str, Any] = json.loads(said)
        return found, None
    if process.returncode < 0:
        return None, f"importing torch ended the process with signal {-process.returncode}"
    lines = [line for line in complained.splitlines() if line.strip()]
    return None, lines[-1].strip() if lines else f"importing torch ended the process with code {process.returncode}"


def memory() -> dict[str, int | None]:
    """Bytes: total, and available now; a limit of the container counts as the total."""
    total = available = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (found := Path("/proc/meminfo")).is_file():
        lines = dict(line.split(":", 1) for line in found.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = _number(Path("/sys/fs/cgroup/memory.max"))
    if limit is not None and total is not None and limit < total:
        used = _number(Path("/sys/fs/cgroup/memory.current")) or 0
        total, available = limit, min(limit - used, available if available is not None else limit)
    return {"total": total, "available": available}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # no such file here, or not to be read: no limit is known
        return None
    return int(text) if text.isdecimal() else None


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def room(path: Path) -> dict[str, Any]:
    """A folder (as it is, or is to be), the bytes free where it lies, and whether it can be written."""
    path = path.expanduser().absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    return {"path": str(path), "free": shutil.disk_usage(there).free, "writable": there.is_dir() and os.access(there, os.W_OK)}


def system() -> str:
    """Operating system, architecture."""
    return f"{platform.system()} {platform.release()}, {platform.machine()}"
