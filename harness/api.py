"""The only module of the harness that a plugin imports. It defines nothing: names that need torch are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, unknown
from harness.hookspecs import hookimpl
from harness.types import (
    LEVELS,
    SPLITS,
    STREAMS,
    Backbone,
    Blocks,
    ConceptMethod,
    Concepts,
    Detector,
    Embedded,
    Entry,
    Evaluation,
    Explained,
    Explainer,
    Inputs,
    Localizer,
    Method,
    Metric,
    Opened,
    Probe,
    Result,
    RunSpec,
    Sample,
    Scorer,
    Setup,
    Site,
    TokenEmbeddings,
    Units,
    View,
)

if TYPE_CHECKING:
    from harness.embed import apply_view, capture, square_patches
    from harness.masks import checked_rle, rle_mask
    from harness.network import unreachable
    from harness.numerics import segment_last, segment_max, segment_mean, segment_pick, segment_sum
    from harness.pipeline import refit
    from harness.results import find_results, read_result, read_tokens, write_atomic
    from harness.super_activators import super_activator_vectors
    from harness.tasks import load_task

_LAZY = {
    "apply_view": "harness.embed",
    "checked_rle": "harness.masks",
    "rle_mask": "harness.masks",
    "unreachable": "harness.network",
    "capture": "harness.embed",
    "square_patches": "harness.embed",
    "segment_last": "harness.numerics",
    "segment_max": "harness.numerics",
    "segment_mean": "harness.numerics",
    "segment_pick": "harness.numerics",
    "segment_sum": "harness.numerics",
    "refit": "harness.pipeline",
    "find_results": "harness.results",
    "read_result": "harness.results",
    "read_tokens": "harness.results",
    "write_atomic": "harness.results",
    "super_activator_vectors": "harness.super_activators",
    "load_task": "harness.tasks",
}

__all__ = [
    "LEVELS",
    "SPLITS",
    "STREAMS",
    "Backbone",
    "Blocks",
    "ConceptMethod",
    "Concepts",
    "Detector",
    "Embedded",
    "Entry",
    "Evaluation",
    "Explained",
    "Explainer",
    "HarnessError",
    "Inputs",
    "Localizer",
    "Method",
    "Metric",
    "Opened",
    "Probe",
    "Result",
    "RunSpec",
    "Sample",
    "Scorer",
    "Setup",
    "Site",
    "TokenEmbeddings",
    "Units",
    "View",
    "apply_view",
    "capture",
    "checked_rle",
    "find_results",
    "hookimpl",
    "load_task",
    "read_result",
    "read_tokens",
    "refit",
    "rle_mask",
    "segment_last",
    "segment_max",
    "segment_mean",
    "segment_pick",
    "segment_sum",
    "square_patches",
    "super_activator_vectors",
    "unknown",
    "unreachable",
    "write_atomic",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'harness.api' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
