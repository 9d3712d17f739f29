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
    Choice,
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
    Price,
    Probe,
    Progress,
    Result,
    RunSpec,
    Sample,
    Score,
    Scorer,
    Setup,
    Site,
    TokenEmbeddings,
    Units,
    View,
    Weights,
)

if TYPE_CHECKING:
    from harness.calibration import at_layer, at_level, calibrate, choose, in_concept, sample_cutoffs, token_cutoffs
    from harness.cli import progress
    from harness.embed import apply_view, capture, square_patches
    from harness.localize import Explanation, Job, locate
    from harness.masks import checked_rle, rle_mask
    from harness.metrics import Bootstrap, score_rows
    from harness.network import unreachable
    from harness.numerics import (
        segment_ids,
        segment_last,
        segment_logsumexp,
        segment_max,
        segment_mean,
        segment_pick,
        segment_sum,
        segment_top_mean,
        tail_cutoffs,
    )
    from harness.pipeline import Refit, refit
    from harness.results import check_output, choices_of, find_results, read_result, read_tokens, scores_of, write_atomic
    from harness.super_activators import super_activator_vectors
    from harness.tables import plain
    from harness.tasks import load_task

_LAZY = {
    "apply_view": "harness.embed",
    "checked_rle": "harness.masks",
    "rle_mask": "harness.masks",
    "unreachable": "harness.network",
    "capture": "harness.embed",
    "square_patches": "harness.embed",
    "segment_last": "harness.numerics",
    "segment_logsumexp": "harness.numerics",
    "segment_max": "harness.numerics",
    "segment_mean": "harness.numerics",
    "segment_pick": "harness.numerics",
    "segment_sum": "harness.numerics",
    "segment_top_mean": "harness.numerics",
    "refit": "harness.pipeline",
    "find_results": "harness.results",
    "read_result": "harness.results",
    "read_tokens": "harness.results",
    "write_atomic": "harness.results",
    "super_activator_vectors": "harness.super_activators",
    "load_task": "harness.tasks",
    "at_layer": "harness.calibration",
    "at_level": "harness.calibration",
    "calibrate": "harness.calibration",
    "choose": "harness.calibration",
    "in_concept": "harness.calibration",
    "sample_cutoffs": "harness.calibration",
    "token_cutoffs": "harness.calibration",
    "progress": "harness.cli",
    "Explanation": "harness.localize",
    "Job": "harness.localize",
    "locate": "harness.localize",
    "Bootstrap": "harness.metrics",
    "score_rows": "harness.metrics",
    "segment_ids": "harness.numerics",
    "tail_cutoffs": "harness.numerics",
    "Refit": "harness.pipeline",
    "check_output": "harness.results",
    "choices_of": "harness.results",
    "scores_of": "harness.results",
    "plain": "harness.tables",
}

__all__ = [
    "LEVELS",
    "SPLITS",
    "STREAMS",
    "Backbone",
    "Blocks",
    "Bootstrap",
    "Choice",
    "ConceptMethod",
    "Concepts",
    "Detector",
    "Embedded",
    "Entry",
    "Evaluation",
    "Explained",
    "Explainer",
    "Explanation",
    "HarnessError",
    "Inputs",
    "Job",
    "Localizer",
    "Method",
    "Metric",
    "Opened",
    "Price",
    "Probe",
    "Progress",
    "Refit",
    "Result",
    "RunSpec",
    "Sample",
    "Score",
    "Scorer",
    "Setup",
    "Site",
    "TokenEmbeddings",
    "Units",
    "View",
    "Weights",
    "apply_view",
    "at_layer",
    "at_level",
    "calibrate",
    "capture",
    "check_output",
    "checked_rle",
    "choices_of",
    "choose",
    "find_results",
    "hookimpl",
    "in_concept",
    "load_task",
    "locate",
    "plain",
    "progress",
    "read_result",
    "read_tokens",
    "refit",
    "rle_mask",
    "sample_cutoffs",
    "score_rows",
    "scores_of",
    "segment_ids",
    "segment_last",
    "segment_logsumexp",
    "segment_max",
    "segment_mean",
    "segment_pick",
    "segment_sum",
    "segment_top_mean",
    "square_patches",
    "super_activator_vectors",
    "tail_cutoffs",
    "token_cutoffs",
    "unknown",
    "unreachable",
    "write_atomic",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'harness.api' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
