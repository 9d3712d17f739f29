"""A folder of stored token embeddings: `tokens.safetensors`, `samples.csv`, `concepts.json`.

tokens.safetensors: `layer.<i>` [T, d] float · `offsets` [S+1] int64 · `labels` [S, C] uint8 · optional `truth` [T, C] uint8 ·
optional `summary.<i>` [S, d] float (without it the summary is the mean token). samples.csv: columns `id,split`, rows in offset
order. concepts.json: a list of C names. A token's region is its place in the sample: [i, i+1).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.api import SPLITS, Embedded, HarnessError, Inputs, Sample, Setup, Site, segment_mean, unknown

LAYOUT = "needs tokens.safetensors (layer.<i>, offsets, labels), samples.csv (id,split) and concepts.json"
FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "concepts": datasets.List(datasets.Value("string")),
        "regions": datasets.List(
            {"concept": datasets.Value("string"), "start": datasets.Value("int64"), "end": datasets.Value("int64")}
        ),
    }
)


@dataclass(frozen=True)
class Folder:
    """The checked contents of a folder; tensors are read when asked for."""

    path: Path

    def __post_init__(self) -> None:
        for name in ("tokens.safetensors", "samples.csv", "concepts.json"):
            if not (self.path / name).is_file():
                raise HarnessError(f"no file {name} in {self.path.absolute()}; a folder of embeddings {LAYOUT}")
        for name in ("offsets", "labels"):
            if name not in self.names:
                raise HarnessError(
                    f"no tensor {name!r} in {self.path / 'tokens.safetensors'}; it holds {', '.join(sorted(self.names))}"
                )
        self._check()

    def _check(self) -> None:
        offsets, labels = self.offsets, self.tensor("labels")
        samples, concepts = len(self.samples), len(self.concepts)
        if offsets.ndim != 1:
            raise HarnessError(f"tensor 'offsets' in {self.path} has shape {list(offsets.shape)}; it must be [{samples + 1}]")
        tokens = int(offsets[-1]) if len(offsets) else 0
        if len(offsets) != samples + 1 or int(offsets[0]) != 0 or bool((offsets.diff() < 0).any()):
            raise HarnessError(
                f"bad offsets in {self.path}; {samples} samples need {samples + 1} rising numbers from 0; got {len(offsets)}"
            )
        shapes = {"labels": (tuple(labels.shape), (samples, concepts))}
        if "truth" in self.names:
            shapes["truth"] = (self.shape("truth"), (tokens, concepts))
        if not self.layers:
            raise HarnessError(
                f"no tensor layer.<i> in {self.path / 'tokens.safetensors'}; it holds {', '.join(sorted(self.names))}"
            )
        width = self.shape(f"layer.{self.layers[0]}")[-1]
        for layer in self.layers:
            shapes[f"layer.{layer}"] = (self.shape(f"layer.{layer}"), (tokens, width))
            if f"summary.{layer}" in self.names:
                shapes[f"summary.{layer}"] = (self.shape(f"summary.{layer}"), (samples, width))
        for name, (got, wanted) in shapes.items():
            if got != wanted:
                raise HarnessError(f"tensor {name!r} in {self.path} has shape {list(got)}; it must be {list(wanted)}")

    @cached_property
    def names(self) -> set[str]:
        """The tensors there are."""
        try:
            with safe_open(self.path / "tokens.safetensors", framework="pt") as opened:
                return set(opened.keys())
        except (OSError, SafetensorError) as error:
            raise HarnessError(f"cannot read {self.path / 'tokens.safetensors'}; {error}; {LAYOUT}") from error

    def tensor(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A tensor, or some of its rows."""
        with safe_open(self.path / "tokens.safetensors", framework="pt") as opened:
            return opened.get_slice(name)[rows]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        with safe_open(self.path / "tokens.safetensors", framework="pt") as opened:
            return tuple(opened.get_slice(name).get_shape())

    @cached_property
    def offsets(self) -> Tensor:
        """[S+1] int64."""
        return self.tensor("offsets").long()

    @cached_property
    def layers(self) -> list[int]:
        """The layer indices there are, ascending."""
        return sorted(int(name[6:]) for name in self.names if name.startswith("layer.") and name[6:].isdigit())

    @cached_property
    def samples(self) -> list[dict[str, str]]:
        """Rows with `id` and `split`, in offset order."""
        path = self.path / "samples.csv"
        try:
            rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        except (UnicodeDecodeError, csv.Error) as error:
            raise HarnessError(f"cannot read {path}; {error}; it must be UTF-8 CSV with the columns id and split") from error
        for number, row in enumerate(rows, 2):
            if not row.get("id") or row.get("split") not in SPLITS:
                raise HarnessError(
                    f"bad row in {path}, line {number}; needs an id and a split; allowed splits: {', '.join(SPLITS)}"
                )
        return rows

    @cached_property
    def concepts(self) -> list[str]:
        """The C names."""
        path = self.path / "concepts.json"
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise HarnessError(f"cannot read {path}; {error}; it must be a JSON list of names") from error
        if not (isinstance(read, list) and read and all(isinstance(name, str) for name in read)):
            raise HarnessError(f"{path} must be a JSON list of names")
        twice = [name for i, name in enumerate(read) if name in read[:i]]
        if twice:
            raise HarnessError(f"{path} names {twice[0]!r} twice; every concept once")
        return read

    @cached_property
    def revision(self) -> str:
        """sha256 of the tensors file."""
        digest = hashlib.sha256()
        with (self.path / "tokens.safetensors").open("rb") as opened:
            while chunk := opened.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


def load(folder: str) -> datasets.DatasetDict:
    """Split -> rows (id, concepts, regions in token places); without `truth` regions are null: not annotated."""
    found = Folder(Path(folder).expanduser())
    labels = found.tensor("labels").bool().tolist()
    truth = found.tensor("truth").bool() if "truth" in found.names else None
    columns: dict[str, dict[str, list[Any]]] = {split: {"id": [], "concepts": [], "regions": []} for split in SPLITS}
    for i, row in enumerate(found.samples):
        start, end = int(found.offsets[i]), int(found.offsets[i + 1])
        into = columns[row["split"]]
        into["id"].append(row["id"])
        into["concepts"].append([name for name, yes in zip(found.concepts, labels[i], strict=True) if yes])
        into["regions"].append(None if truth is None else _spans(truth[start:end], found.concepts))
    return datasets.DatasetDict({s: datasets.Dataset.from_dict(columns[s], features=FEATURES) for s in SPLITS})


def _spans(truth: Tensor, concepts: Sequence[str]) -> list[dict[str, Any]]:
    """Runs of true tokens as half-open spans."""
    edge = truth.new_zeros(1, len(concepts))
    change = torch.cat([edge, truth, edge]).to(torch.int8).diff(dim=0).T
    starts, ends = (change == 1).nonzero().tolist(), (change == -1).nonzero()[:, 1].tolist()  # both by concept, then by place
    return [{"concept": concepts[c], "start": start, "end": end} for (c, start), end in zip(starts, ends, strict=True)]


class StoredEmbeddings:
    """The backbone of such a folder: `forward` looks values up. Nothing is copied into the cache."""

    modality = "tokens"
    store = False

    def __init__(self, setup: Setup, argument: str | None = None) -> None:
        if argument is None:
            raise HarnessError("backbone 'embeddings' needs a folder; write --backbone embeddings:<folder>")
        self._folder = Folder(Path(argument).expanduser())
        self.name = f"embeddings/{self._folder.path.resolve().name}"
        self.revision, self.layers = self._folder.revision, self._folder.layers
        self.n_layers = self.layers[-1] + 1
        self.width = self._folder.shape(f"layer.{self.layers[0]}")[1]
        self.identity: Mapping[str, Any] = {"kind": "stored embeddings"}
        self._place = {row["id"]: i for i, row in enumerate(self._folder.samples)}

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """The samples' places in the folder; a token's region is [i, i+1)."""
        for sample in samples:
            if sample.id not in self._place:
                raise unknown("sample", sample.id, list(self._place)[:20], f"backbone {self.name}")
        places = torch.tensor([self._place[sample.id] for sample in samples])
        lengths = self._folder.offsets.diff()[places]
        within = torch.cat([torch.arange(n) for n in lengths.tolist()])
        positions = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return Inputs({"places": places}, positions, torch.stack([within, within + 1], 1))

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """The stored values, float32."""
        offsets = self._folder.offsets
        spans = [slice(int(offsets[i]), int(offsets[i + 1])) for i in inputs.tensors["places"].tolist()]
        for site in sites:
            if site.stream != "residual":
                raise unknown("stream", site.stream, ["residual"], f"backbone {self.name}")
        values = torch.stack(
            [torch.cat([self._folder.tensor(f"layer.{s.layer}", span).float() for span in spans]) for s in sites]
        )
        lengths = torch.tensor([span.stop - span.start for span in spans])
        packed = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        mean = segment_mean(values, packed).nan_to_num(neginf=0.0)
        summary = torch.stack([self._summary(s.layer, inputs.tensors["places"], mean[i]) for i, s in enumerate(sites)])
        return Embedded(values, packed, inputs.regions, summary)

    def _summary(self, layer: int, places: Tensor, mean: Tensor) -> Tensor:
        name = f"summary.{layer}"
        return self._folder.tensor(name)[places].float() if name in self._folder.names else mean
