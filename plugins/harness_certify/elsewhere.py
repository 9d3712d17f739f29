"""Run as a process of its own: what plugins' parts give under another hash seed, and whether listing them imported torch.

`python -m harness_certify.elsewhere ASKED ANSWERS`: ASKED is JSON, ANSWERS a safetensors file that it writes. Its metadata says of the
parts that failed how they did.
"""

from __future__ import annotations

import json
import sys
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
    found, failed = {"heavy": torch.tensor([int(heavy)])}, {}
    for place, given in wanted["parts"].items():
        part = Part(**given)
        try:
            found[place] = numbers(part, build(registry, part, True)).contiguous()
        except HarnessError:  # skipped there as well
            continue
        except Exception as error:  # a third-party part may raise anything, and must not end the others
            failed[place] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    save_file(found, written, metadata=failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
