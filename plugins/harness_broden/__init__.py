"""Broden (NetDissect) as the data set `broden`: one of its sources, with the labels of some of its categories as concepts.

Two tasks use it: `broden-pascal` (objects and parts) and `broden-opensurfaces` (materials). See README.md.
"""

from __future__ import annotations

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> list[Entry]:
    """One dataset: `broden`."""
    return [Entry("broden", "harness_broden.dataset:load", "Broden: Pascal's objects and parts, OpenSurfaces' materials, ...")]
