"""The logged test tokens of a result, beside the samples they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.api import HarnessError, Sample, View, load_task, read_result, read_tokens


@dataclass(frozen=True)
class Logged:
    """tensors and about: as `results.write_tokens` says. place: sample id -> its number in the log."""

    folder: Path
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
        return cls(folder, task.modality, tensors, about, {name: i for i, name in enumerate(about["ids"])}, task)

    @property
    def concepts(self) -> list[str]:
        """The concept names."""
        names: list[str] = self.about["concepts"]
        return names

    def rows(self, name: str) -> slice:
        """The sample's tokens."""
        i = self.place[name]
        return slice(int(self.tensors["offsets"][i]), int(self.tensors["offsets"][i + 1]))

    def sample(self, name: str) -> Sample:
        """The sample itself."""
        sample: Sample = self.task.splits["test"].sample(self.place[name])
        return sample

    def view(self, name: str) -> View:
        """How the model saw the image."""
        return View(*self.tensors["views"][self.place[name]].tolist())

    def shares(self, name: str, c: int) -> Any:
        """[T] float: each token's activation, 0 at the median test token and 1 at the super-activator cutoff."""
        cutoff, every = self.about["super_activator_cutoffs"][c], self.tensors["activations"][:, c]
        if cutoff is None:
            raise HarnessError(f"concept {self.concepts[c]!r} has no cutoff in result {self.folder}; choose another --concept")
        middle = float(every.median())
        return ((every[self.rows(name)].double() - middle) / max(cutoff - middle, 1e-12)).numpy()

    def positive(self, name: str) -> list[int]:
        """The concepts the sample is labelled with."""
        labels = self.task.splits["test"].labels[self.place[name]]
        return [c for c, yes in enumerate(labels) if yes]

    def strongest(self, c: int) -> str | None:
        """The detected positive sample with the strongest token of concept c."""
        labels = self.task.splits["test"].labels[:, c]
        best, found = float("-inf"), None
        for name, i in self.place.items():
            scores = self.tensors["activations"][self.rows(name), c]
            if labels[i] and self.tensors["detected"][i, c] and len(scores) and float(scores.max()) > best:
                best, found = float(scores.max()), name
        return found
