"""Any data set with no code, as the dataset `table`: parquet, JSONL, CSV, an image folder or a Hugging Face Hub id.

Concepts come from a list column, from 0/1 columns or from class folders; regions from RLE, mask images or character spans.
"""

from __future__ import annotations

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> list[Entry]:
    """One dataset: `table`."""
    return [
        Entry(
            "table", "harness_table.dataset:load", "any data: parquet, JSONL, CSV, image folder or Hub id, with masks or spans"
        )
    ]
