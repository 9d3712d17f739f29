"""Concept methods that give one direction per concept: class means and linear separators (method section 3)."""

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_concept_methods() -> Iterable[Entry]:
    """`mean` and `linear`."""
    return [
        Entry("mean", "harness_vectors.mean:Mean", "mean of the positive train tokens, activation = cosine (the paper's avg)"),
        Entry(
            "linear",
            "harness_vectors.linear:Linear",
            "linear separator (estimator=lda, logistic or adam), activation = dot product",
        ),
    ]
