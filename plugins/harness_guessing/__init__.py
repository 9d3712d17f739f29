"""The floor of a table: guessing without looking (method section 6.1, Random)."""

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl


@hookimpl
def harness_register_scorers() -> Iterable[Entry]:
    """`coin`, `always-yes` and `always-no`."""
    return [
        Entry("coin", "harness_guessing.scorers:Coin", "yes with probability 1/2, by a hash of seed, sample id and concept"),
        Entry("always-yes", "harness_guessing.scorers:AlwaysYes", "yes to every sample and concept"),
        Entry("always-no", "harness_guessing.scorers:AlwaysNo", "no to every sample and concept"),
    ]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """`coin`, `always-yes` and `always-no` as rows."""
    return [
        Method("coin", "floor: a fair coin", scorer="coin", tags=("core",)),
        Method("always-yes", "floor: yes to everything", scorer="always-yes", tags=("core",)),
        Method("always-no", "floor: no to everything", scorer="always-no", tags=("core",)),
    ]
