"""COCO 2017 as the dataset `coco`: instance categories with super-categories, or panoptic things and stuff.

Masks are exact unions in RLE; images stay paths. Missing parts are downloaded when the user agrees (see README.md).
"""

from __future__ import annotations

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> list[Entry]:
    """One dataset: `coco`."""
    return [
        Entry(
            "coco",
            "harness_coco.dataset:load",
            "COCO 2017: categories and super-categories, or panoptic things and stuff",
            needs=(
                "data:annotations/{annotations}_train2017.json",
                "data:annotations/{annotations}_val2017.json",
                "data:train2017/*.jpg",
                "data:val2017/*.jpg",
            ),
            bring="HARNESS_DOWNLOAD=always fetches what is missing on first use; or https://cocodataset.org/#download",
        )
    ]
