"""The paper's baselines: max, mean, last and random token, and the summary (CLS, or the mean embedding of a text).

All are calibrated on the pooled scores of positive cal samples (method sections 5 and 6), on the same units as the super-activator.
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


DETECTORS = {"max": "strongest token", "mean": "mean token", "last": "last token", "random": "a random token"}
CONCEPTS = {
    "": ("linear", "linear separators"),
    "-mean": ("mean", "mean vectors"),
    "-paper": ("linear:estimator=adam", "the paper's Adam separators"),
    "-kmeans": ("kmeans", "k-means centres"),
    "-kmeans-linear": ("kmeans-linear", "a separator per cluster"),
}
SUMMARIES = {
    **CONCEPTS,
    "-kmeans": ("kmeans:k=50", "50 k-means centres"),
    "-kmeans-linear": ("kmeans-linear:k=50", "a separator per cluster, 50 clusters"),
    "-pca": ("pca", "principal components"),
    "-ica": ("ica", "independent components"),
    "-nmf": ("nmf", "non-negative factors"),
}


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """Every baseline on every concept method of the paper; and every concept method fitted and scored on the summary embedding."""
    tokens = [
        Method(
            f"{detector}{name}",
            f"{what} on {on}",
            concepts,
            detector,
            "direct",
            tags=("paper",) if name else ("core", "detection"),
        )
        for name, (concepts, on) in CONCEPTS.items()
        for detector, what in DETECTORS.items()
    ]
    summaries = [
        Method(
            f"summary{name}",
            f"{on}, fitted and scored on the summary embedding (CLS, or mean)",
            concepts,
            "max",
            fit_on="summary",
            tags=("core", "detection") if not name else ("core", "paper") if name in CONCEPTS else ("core",),
        )
        for name, (concepts, on) in SUMMARIES.items()
    ]
    return [*tokens, *summaries]
