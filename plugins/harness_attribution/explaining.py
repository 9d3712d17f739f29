"""What the explainers share: the kind of vector whose score they explain, and options that are checked when a run is planned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from harness.api import Blocks, Explained, HarnessError, super_activator_vectors, unknown

VECTORS = ("global", "superactivator")


@dataclass(frozen=True)
class Explaining:
    """An explainer but for `explain` and `forwards`.

    vector: global = f_c is the concept's score as the detector sees it; superactivator = it is the detector's pooling of the cosine to
    u_c, the softmax-weighted mean of the concept's super-activators (section 7.3). directions: u_c [C, d], once fitted.
    """

    vector: str = "global"
    directions: Tensor | None = None

    calibrate_on = "detected"
    needs: ClassVar[frozenset[str]] = frozenset({"inputs"})
    name: ClassVar[str] = ""
    at_least: ClassVar[dict[str, float]] = {}
    """Option -> its smallest value."""

    def __post_init__(self) -> None:
        where = f"localizer {self.name!r}"
        if self.vector not in VECTORS:
            raise unknown("vector", self.vector, VECTORS, where)
        for option, least in self.at_least.items():
            given: Any = getattr(self, option)
            if given is None or given < least:
                raise HarnessError(f"bad value {given} for option {option!r} of {where}; it must be at least {least}")

    def fit(self, train: Blocks, explained: Explained) -> Self:
        """With u_c from one pass over train, where that is what is explained."""
        if self.vector == "global":
            return self
        return replace(self, directions=super_activator_vectors(train, explained))
