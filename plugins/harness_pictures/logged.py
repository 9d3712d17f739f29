"""The logged test tokens of a result, beside the samples they come from; and one sample's, for one concept, as a picture shows them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness.api import HarnessError, Sample, View, load_task, read_result, read_tokens, unknown
from harness_pictures.marks import OUTLINED, TRUTH, line, number
from harness_pictures.pieces import Piece, of_places, of_text


@dataclass(frozen=True)
class Panel:
    """One sample's tokens for one concept: activations [T] float64, truth [T] int8, regions [T, 4 or 2]; view of an image, or None.

    cutoff: the activation of a super-activator, 1 on the scale. zero: that which is 0 on the scale; zero_is: the same in words.
    """

    sample: Sample
    concept: str
    layer: str
    outcome: str
    cutoff: float
    zero: float
    zero_is: str
    activations: NDArray[np.float64]
    truth: NDArray[np.int8]
    regions: NDArray[np.int64]
    view: View | None

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """[T]: each token's activation, 0 at `zero` and 1 at the cutoff."""
        return (self.activations - self.zero) / (self.cutoff - self.zero)

    @cached_property
    def super_activators(self) -> NDArray[np.bool_]:
        """[T]: whether the activation is at or above the cutoff, compared as it is stored."""
        return self.activations >= self.cutoff

    @property
    def pieces(self) -> list[Piece]:
        """The tokens in order with what lies between them; of stored embeddings, their places."""
        if self.sample.text is None:
            return of_places(len(self.activations))
        return of_text(self.sample.text, [(int(start), int(end)) for start, end in self.regions[:, :2]])

    @property
    def name(self) -> str:
        """The sample, in one line."""
        return line(self.sample.id)

    @property
    def heading(self) -> str:
        """What is shown of the sample, in one line."""
        known = "" if (self.truth >= 0).all() else ", truth unknown" if (self.truth < 0).all() else ", truth partly unknown"
        return f"{line(self.concept)} · layer {self.layer} · {self.outcome}{known}"

    @property
    def counts(self) -> str:
        """How many tokens, and how many of them are what."""
        inside = f", in the concept {(self.truth == 1).sum()}" if (self.truth >= 0).any() else ""
        found = f"super-activators {self.super_activators.sum()} of {len(self.activations)} tokens{inside}"
        return f"{found}; cutoff {number(self.cutoff)}, {self.zero_is} {number(self.zero)}"

    def words(self, token: int) -> str:
        """What is known of one token."""
        above = f", {OUTLINED.split(':')[0]}" if self.super_activators[token] else ""
        scale = f"activation {number(self.activations[token])}, {self.shares[token] + 0.0:.2f} of the cutoff"
        return f"{scale}{above}; {TRUTH[int(self.truth[token])]}"


@dataclass(frozen=True)
class Logged:
    """tensors and about: as `results.write_tokens` says. place: sample id -> its number in the log. title: what was run."""

    folder: Path
    title: str
    modality: str
    tensors: dict[str, Tensor]
    about: dict[str, Any]
    place: dict[str, int]
    task: Any

    @classmethod
    def read(cls, registry: Any, folder: Path) -> Logged:
        """Reads a result and its task; the task must still be the one that was measured."""
        result = read_result(folder)
        tensors, about = read_tokens(folder)
        task = load_task(registry, result["config"]["task"], result["task"]["limit"])
        if task.fingerprint != result["task"]["fingerprint"]:
            raise HarnessError(
                f"the data of task {task.name!r} changed since result {folder} was made; its fingerprint is "
                f"{task.fingerprint[:12]}, then {result['task']['fingerprint'][:12]}; run again"
            )
        title = " · ".join((task.name, result["backbone"]["name"], result["method"]["name"]))
        return cls(folder, title, task.modality, tensors, about, {name: i for i, name in enumerate(about["ids"])}, task)

    @property
    def concepts(self) -> list[str]:
        """The concept names."""
        names: list[str] = self.about["concepts"]
        return names

    def chosen(self, samples: tuple[str, ...], concepts: tuple[str, ...]) -> list[Panel]:
        """The panels asked for: a sample alone with its first concept, a concept alone with its strongest true positive."""
        for name in concepts:
            if name not in self.concepts:
                raise unknown("concept", line(name), map(line, self.concepts), f"result {self.folder}")
        for name in samples:
            if name not in self.place:
                raise self._no_sample(name)
        wanted = [self.concepts.index(name) for name in concepts] or list(range(len(self.concepts)))
        if samples:
            own = {name: wanted if concepts else self._first(name) for name in samples}
            return [self.panel(name, c) for name in samples for c in own[name]]
        found = [(self.strongest(c), c) for c in wanted]
        panels = [self.panel(name, c) for name, c in found if name is not None]
        if not panels:
            raise HarnessError(f"no detected positive sample in result {self.folder}; name one with --sample")
        return panels

    def panel(self, name: str, c: int) -> Panel:
        """One sample for one concept."""
        cutoff, i = self.about["super_activator_cutoffs"][c], self.place[name]
        if cutoff is None:
            raise HarnessError(
                f"concept {self.concepts[c]!r} has no cutoff in result {self.folder}; choose another --concept, such as "
                f"{', '.join(line(self.concepts[k]) for k in self._calibrated()[:3]) or 'none: no concept has one'}"
            )
        rows = slice(int(self.tensors["offsets"][i]), int(self.tensors["offsets"][i + 1]))
        detected, labelled = bool(self.tensors["detected"][i, c]), bool(self.task.splits["test"].labels[i, c])
        every = self.tensors["activations"][:, c].double().numpy()
        zero, zero_is = _zero(every[np.isfinite(every)], cutoff)
        return Panel(
            self.task.splits["test"].sample(i),
            self.concepts[c],
            str(self.about["layers"][c]),
            f"{'true' if detected == labelled else 'false'} {'positive' if detected else 'negative'}",
            cutoff,
            zero,
            zero_is,
            every[rows],
            self.tensors["truth"][rows, c].numpy(),
            self.tensors["regions"][rows].numpy(),
            View(*self.tensors["views"][i].tolist()) if self.modality == "image" else None,
        )

    def strongest(self, c: int) -> str | None:
        """The detected positive sample with the strongest token of concept c."""
        labels = self.task.splits["test"].labels[:, c]
        offsets, scores = self.tensors["offsets"].tolist(), self.tensors["activations"][:, c]
        best, found = float("-inf"), None
        for name, i in self.place.items():
            own = scores[offsets[i] : offsets[i + 1]]
            if labels[i] and self.tensors["detected"][i, c] and len(own) and float(own.max()) > best:
                best, found = float(own.max()), name
        return found

    def _calibrated(self) -> list[int]:
        return [c for c, cutoff in enumerate(self.about["super_activator_cutoffs"]) if cutoff is not None]

    def _first(self, name: str) -> list[int]:
        """The first concept with a cutoff that the sample is labelled with, else the first with a cutoff."""
        labels, known = self.task.splits["test"].labels[self.place[name]], self._calibrated()
        return ([c for c in known if labels[c]] or known or [0])[:1]

    def _no_sample(self, name: str) -> HarnessError:
        near = difflib.get_close_matches(name, self.place, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(map(line, near))}?; " if near else ""
        some = ", ".join(line(known) for known in list(self.place)[:5])
        return HarnessError(
            f"unknown sample {line(name)!r} in the test split of result {self.folder}; {meant}there are {len(self.place)}, such as {some}"
        )


def _zero(every: NDArray[np.float64], cutoff: float) -> tuple[float, str]:
    """The zero of the scale: the median of all test tokens, else what is below the cutoff."""
    if len(every) and (median := float(np.median(every))) < cutoff:
        return median, "median test token"
    if len(every) and (lowest := float(every.min())) < cutoff:
        return lowest, "lowest test token"
    return cutoff - 1.0, "cutoff minus one"
