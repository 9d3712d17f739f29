"""The paper's baselines: max, mean, last and random token, and the summary (CLS, or the mean embedding of a text).

All are calibrated on the pooled scores of positive cal samples (method sections 5 and 6), all on the same separators.
"""

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl


@hookimpl
def harness_register_detectors() -> Iterable[Entry]:
    """`max`, `mean`, `last`, `random`."""
    return [
        Entry("max", "harness_pooling.detectors:Max", "strongest token, cutoff from positive samples"),
        Entry("mean", "harness_pooling.detectors:Mean", "mean over tokens, cutoff from positive samples"),
        Entry("last", "harness_pooling.detectors:Last", "last token (bottom-right patch, last word piece)"),
        Entry("random", "harness_pooling.detectors:Random", "one token per sample, drawn by a hash of seed and sample id"),
    ]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """One recipe per baseline, on linear separators."""
    tokens = [
        Method(
            name,
            f"{what} on linear separators",
            concepts="linear",
            detector=name,
            localizer="direct",
            tags=("core", "detection"),
        )
        for name, what in (
            ("max", "strongest token"),
            ("mean", "mean token"),
            ("last", "last token"),
            ("random", "a random token"),
        )
    ]
    summary = Method(
        "summary",
        "separators fitted and scored on the summary embedding (CLS, or mean)",
        concepts="linear",
        detector="max",
        fit_on="summary",
        tags=("core", "detection"),
    )
    return [*tokens, summary]
