"""What torch can do on this machine, as JSON on stdout. Run in a process of its own: a broken torch may crash or hang, not only raise.

This file imports nothing of the harness, so that it runs however broken the rest is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

DTYPES = ("float64", "float32", "bfloat16", "float16")


def probe() -> dict[str, Any]:
    """{torch, threads, devices: [{name, kind, memory, free, dtypes}]}; memory in bytes, None where it cannot be asked."""
    import torch

    devices: list[dict[str, Any]] = [
        {"name": "CPU", "kind": "cpu", "memory": None, "free": None, "dtypes": takes(torch, "cpu")}
    ]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, memory = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        devices.append({"name": name, "kind": f"cuda:{i}", "memory": memory, "free": free, "dtypes": takes(torch, f"cuda:{i}")})
    if torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory()
        devices.append({"name": "Apple GPU", "kind": "mps", "memory": memory, "free": None, "dtypes": takes(torch, "mps")})
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "devices": devices}


def takes(torch: Any, device: str) -> list[str]:
    """The dtypes in which a small product and a softmax come out finite and near the exact ones."""
    return [name for name in DTYPES if _works(torch, device, getattr(torch, name))]


def _works(torch: Any, device: str, dtype: Any) -> bool:
    try:
        values = (torch.arange(64.0).reshape(8, 8) / 64).to(device=device, dtype=dtype)
        found = torch.softmax(values @ values.T, -1).to("cpu").float()
        exact = torch.arange(64.0, dtype=torch.float64).reshape(8, 8) / 64
        exact = torch.softmax(exact @ exact.T, -1).float()
    except (RuntimeError, TypeError, NotImplementedError):  # the device has no kernel for it
        return False
    return bool(torch.isfinite(found).all() and (found - exact).abs().max() < 0.05)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()))
