"""A floor for text: tf-idf of a sample's words and logistic regression on sample labels, with no model at all (scorer `bag-of-words`)."""

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl


@hookimpl
def harness_register_scorers() -> Iterable[Entry]:
    """`bag-of-words`."""
    summary = "tf-idf of words and pairs of words, logistic regression per concept; texts only"
    return [Entry("bag-of-words", "harness_words.scorer:BagOfWords", summary)]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """`bag-of-words`, asked for by name, since it reads texts alone."""
    return [Method("bag-of-words", "floor for text: tf-idf and logistic regression", scorer="bag-of-words", tags=("text",))]
