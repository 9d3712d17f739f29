"""A world with known answers: concepts planted in the sparse tail of random tokens. No download; for tests and for learning."""

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> Iterable[Entry]:
    """`toy`."""
    return [Entry("toy", "harness_toy.world:load", "planted concepts with a known sparse tail")]


@hookimpl
def harness_register_backbones() -> Iterable[Entry]:
    """`toy`."""
    return [Entry("toy", "harness_toy.world:ToyBackbone", "the token embeddings of the toy world, 4 layers of width 32")]
