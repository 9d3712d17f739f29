"""The SuperActivator finding as plugins: only the extreme high tail of in-concept token activations is reliable (arXiv 2512.05038)."""

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl


@hookimpl
def harness_register_detectors() -> Iterable[Entry]:
    """`superactivator`."""
    return [
        Entry(
            "superactivator",
            "harness_superactivator.detector:SuperActivator",
            "strongest token, cutoff in the tail of in-concept tokens",
        )
    ]


@hookimpl
def harness_register_localizers() -> Iterable[Entry]:
    """`direct` and `superactivator`."""
    return [
        Entry("direct", "harness_superactivator.localizers:Direct", "the concept's own activations, second level on cal"),
        Entry(
            "superactivator",
            "harness_superactivator.localizers:SuperActivatorMap",
            "cosine to the super-activators' vector (vector=global-softmax, global-mean or sample-mean)",
        ),
    ]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """The method with every concept method, with each localizer, with each way of matching; and the ceiling of its rule."""
    on = {
        "": ("linear", "the paper's method on closed-form separators", ("core", "detection")),
        "-mean": ("mean", "the paper's method on mean vectors (its avg rows)", ("core", "paper")),
        "-paper": (
            "linear:estimator=adam",
            "the paper's method on the paper's Adam separators (its linsep rows)",
            ("core", "paper"),
        ),
        "-kmeans": ("kmeans", "the paper's method on k-means centres", ("core", "paper")),
        "-kmeans-linear": (
            "kmeans-linear",
            "the paper's method on a separator per cluster (its linsepkmeans rows)",
            ("core", "paper"),
        ),
        "-pca": ("pca", "on principal components", ("core",)),
        "-ica": ("ica", "on independent components", ("core",)),
        "-nmf": ("nmf", "on non-negative factors", ("core",)),
    }
    every = [
        Method(f"superactivator{name}", summary, concepts, "superactivator", "superactivator", tags=tags)
        for name, (concepts, summary, tags) in on.items()
    ]
    return [
        *every,
        Method(
            "superactivator-direct",
            "the same detection, localized by the separators themselves",
            "linear",
            "superactivator",
            "direct",
            tags=("core",),
        ),
        Method(
            "superactivator-kmeans-one-to-one",
            "k-means centres, none matched to two concepts",
            "kmeans",
            "superactivator",
            "superactivator",
            match="one-to-one",
            tags=("core",),
        ),
        Method(
            "oracle",
            "ceiling of the strongest token: cutoff and layer picked on test",
            "linear",
            "superactivator",
            choose_on="test",
            tags=("core",),
        ),
    ]
