"""CLEVR with one object per scene: the data set `clevr`, with exact masks and no download.

The scenes are rendered by render.py, packed by pack.py and read by dataset.py; the task is
tasks/clevr.yaml. This module only registers.
"""

from __future__ import annotations

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> list[Entry]:
    """The data set `clevr`."""
    return [
        Entry(
            "clevr",
            "harness_clevr.dataset:load",
            "1,000 single-object scenes with exact masks, shipped inside the plugin",
        )
    ]
