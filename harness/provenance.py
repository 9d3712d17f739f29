"""Where a number was made: versions, machine, time. Nothing here changes a number."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from harness import __version__

PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "safetensors", "pillow", "pycocotools")


def provenance(started: float) -> dict[str, Any]:
    """Versions, platform, threads and wall time of a run that began at `started` (seconds since the epoch)."""
    return {
        "harness": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
