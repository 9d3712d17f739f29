"""Broden (NetDissect) as the data set `broden`: one of its sources, with the labels of some of its categories as concepts.

Two tasks use it: `broden-pascal` (objects and parts) and `broden-opensurfaces` (materials). See README.md.
"""

from __future__ import annotations

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> list[Entry]:
    """One dataset: `broden`."""
    return [
        Entry(
            "broden",
            "harness_broden.dataset:load",
            "Broden: Pascal's objects and parts, OpenSurfaces' materials, ...",
            needs=("data:index.csv|broden1_*/index.csv",),
            bring="HARNESS_DOWNLOAD=always fetches it on first use; or unpack http://netdissect.csail.mit.edu/data/broden1_224.zip there",
        )
    ]
