"""Run as a process of its own: what a plugin's parts give under another hash seed, and whether listing them imported torch.

`python -m harness_certify.elsewhere ASKED ANSWERS`: ASKED is JSON, ANSWERS a safetensors file that it writes.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import click

from harness.api import KINDS, HarnessError, load


def main(asked: Path, written: Path) -> None:
    """Writes one tensor per part, `heavy` 0 or 1, and nothing for a part that refuses the made-up world: there it is skipped."""
    wanted = json.loads(asked.read_text(encoding="utf-8"))
    registry = load(wanted["requests"])
    for kind in KINDS:
        registry.entries(kind)
    registry.methods()
    registry.add_commands(click.Group("empty"))
    heavy = "torch" in sys.modules

    import torch
    from safetensors.torch import save_file

    from harness_certify.parts import Part, build, numbers

    torch.set_num_threads(1)
    found = {"heavy": torch.tensor([int(heavy)])}
    for place, given in wanted["parts"].items():
        part = Part(**given)
        with suppress(HarnessError):
            found[place] = numbers(part, build(registry, part, True)).contiguous()
    save_file(found, written)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
