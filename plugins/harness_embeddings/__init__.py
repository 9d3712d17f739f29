"""Embeddings you already have, as a backbone and a task in one: `--backbone embeddings:<folder>` (layout: folder.py)."""

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> Iterable[Entry]:
    """`embeddings`."""
    return [Entry("embeddings", "harness_embeddings.folder:load", "labels and token truth of a folder of stored embeddings")]


@hookimpl
def harness_register_backbones() -> Iterable[Entry]:
    """`embeddings`."""
    return [
        Entry("embeddings", "harness_embeddings.folder:StoredEmbeddings", "embeddings:<folder>, token embeddings stored by you")
    ]
