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
    """The method with each concept method of the paper, and with each localizer."""
    return [
        Method(
            "superactivator",
            "the paper's method on closed-form separators",
            concepts="linear",
            detector="superactivator",
            localizer="superactivator",
            tags=("core", "detection"),
        ),
        Method(
            "superactivator-direct",
            "the same detection, localized by the separators themselves",
            concepts="linear",
            detector="superactivator",
            localizer="direct",
            tags=("core",),
        ),
        Method(
            "superactivator-mean",
            "the paper's method on mean vectors (its avg rows)",
            concepts="mean",
            detector="superactivator",
            localizer="superactivator",
            tags=("core",),
        ),
        Method(
            "superactivator-paper",
            "the paper's method on the paper's Adam separators (its linsep rows)",
            concepts="linear:estimator=adam",
            detector="superactivator",
            localizer="superactivator",
            tags=("core",),
        ),
    ]
