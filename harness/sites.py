"""Which layers, streams, device and dtype a run means: the words of the command line -> true indices of the loaded model."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from harness.errors import HarnessError, unknown
from harness.types import STREAMS, Backbone, Site

PRESETS = {
    "paper-clip": "4%,25%,46%,67%,88%,100%",
    "paper-llama-vision": "2%,15%,28%,40%,52%,65%,78%,90%,100%",
    "paper-llama-text": "3%,19%,34%,50%,66%,81%,97%,final",
    "paper-qwen": "3%,19%,34%,50%,66%,81%,97%,final",
    "paper-gemma": "4%,21%,39%,57%,75%,93%,final",
}
"""The paper's layers per model (method section 2), as shares of the loaded model's true depth; for texts its 100 % is `final`."""

LAYER_WORDS = f"all, last, final, a percentage (50%), an index (3, -1), a slice (0:12:3), {', '.join(PRESETS)}, or several joined by commas"


def choose_sites(layers: str, streams: Sequence[str], backbone: Backbone) -> list[Site]:
    """The sites, ascending and once each. Layer index = output of block 0..n-1; `final` = after the final norm, index n.

    A percentage p of n blocks is block clamp(int(p/100 * n) - 1, 0, n-1) (method section 2); `last` is block n-1.
    """
    for stream in streams:
        if stream not in STREAMS:
            raise unknown("stream", stream, STREAMS, "--streams")
    n = backbone.n_layers
    there = list(getattr(backbone, "layers", range(n + 1)))
    wanted: set[int] = set()
    for word in ",".join(PRESETS.get(word.strip(), word) for word in layers.split(",")).split(","):
        wanted.update(_indices(word.strip(), n, [i for i in there if i < n]))
    missing = sorted(wanted - set(there))
    if missing:
        raise HarnessError(f"no layer {missing[0]} in backbone {backbone.name}; it has {_ranges(there)} (--layers {layers})")
    sites = [Site(i, stream) for stream in dict.fromkeys(streams) for i in sorted(wanted) if i < n or stream == "residual"]
    if not sites:
        raise HarnessError(
            f"no site for --layers {layers} with --streams {','.join(streams)}; only the residual stream has `final`"
        )
    return sites


def _indices(word: str, n: int, blocks: Sequence[int]) -> list[int]:
    if word == "all":
        return list(blocks)
    if word == "last":
        return [n - 1]
    if word == "final":
        return [n]
    if re.fullmatch(r"\d+(\.\d+)?%", word) and float(word[:-1]) <= 100:
        return [min(max(int(float(word[:-1]) / 100 * n) - 1, 0), n - 1)]
    if re.fullmatch(r"-?\d+", word) and -n <= int(word) < n:
        return [int(word) % n]
    if re.fullmatch(r"(-?\d*):(-?\d*)(:-?[1-9]\d*)?", word):
        found = range(n)[slice(*(int(part) if part else None for part in word.split(":")))]
        if found:
            return list(found)
    raise HarnessError(f"bad layer {word!r} in --layers; the model has blocks 0..{n - 1}; allowed: {LAYER_WORDS}")


def _ranges(numbers: Sequence[int]) -> str:
    """`0..2, 4, 6..11` of ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)


def pick_device(device: str) -> str:
    """`auto` is the first CUDA device, else the CPU; any other name must be usable."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise HarnessError(f"device {device!r} cannot be used; {str(error).splitlines()[0][:120]}; try --device cpu") from error
    return device


def pick_dtypes(dtype: str, device: str) -> tuple[str, ...]:
    """The dtype asked for; for `auto` those to try in this order: float32 on a CPU, 16 bit first on a GPU (see `precision.py`).

    float16 on a CPU is refused: it computes a hundred times slower there.
    """
    allowed = ("auto", "float32", "bfloat16", "float16")
    if dtype not in allowed:
        raise unknown("dtype", dtype, allowed, "--dtype")
    if dtype == "float16" and device == "cpu":
        raise HarnessError(
            "float16 on a CPU is not computed in hardware; --dtype float16 with --device cpu; use bfloat16 or float32"
        )
    if dtype != "auto":
        return (dtype,)
    if not device.startswith("cuda"):
        return ("float32",)
    half = ("bfloat16", "float16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("float16",)
    return (*half, "float32")
