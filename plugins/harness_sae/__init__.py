"""Published sparse autoencoders as units without names: `sae:<folder, or org/repo/path on the Hub>` (method section 8).

SAELens, Gemma Scope and CLIP-Scope layouts; safetensors, npz and JSON alone, never pickle. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_concept_methods() -> Iterable[Entry]:
    """`sae`."""
    return [
        Entry(
            "sae",
            "harness_sae.units:sae",
            "sae:<folder or org/repo/path>: features of a sparse autoencoder (SAELens, Gemma Scope, CLIP-Scope), matched on cal",
        )
    ]
