"""Concept methods that give directions: one per concept (means, separators), or units without names (clusters, dictionaries)."""

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_concept_methods() -> Iterable[Entry]:
    """`mean`, `linear` and `lat` give concepts; `kmeans`, `kmeans-linear`, `pca`, `ica` and `nmf` units that cal matches to them."""
    return [
        Entry("mean", "harness_vectors.mean:Mean", "mean of the positive train tokens, activation = cosine (the paper's avg)"),
        Entry(
            "linear",
            "harness_vectors.linear:Linear",
            "linear separator (estimator=lda, logistic or adam; supervision=tokens or samples), activation = dot product",
        ),
        Entry(
            "lat", "harness_vectors.lat:Lat", "first component of differences of random token pairs, activation = dot product"
        ),
        Entry("kmeans", "harness_vectors.kmeans:KMeans", "k=1000 clusters of train tokens, activation = cosine"),
        Entry("kmeans-linear", "harness_vectors.kmeans:KMeansLinear", "a separator per cluster, activation = dot product"),
        Entry("pca", "harness_vectors.dictionaries:Pca", "both ends of the k=100 directions of the largest variance"),
        Entry("ica", "harness_vectors.dictionaries:Ica", "both ends of k=100 independent components of a token sample"),
        Entry("nmf", "harness_vectors.dictionaries:Nmf", "k=100 atoms of a non-negative factorisation of a token sample"),
    ]
