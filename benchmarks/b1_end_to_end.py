"""B1: everything after embedding, from stored tokens to test F1, against the paper's steps written out plainly.

cache   `harness.pipeline.run`, one method, no bootstrap, embeddings in the block cache: reads and hashes the task, fits, activates cal
        and test, sets all 12 cutoffs, chooses, tests, writes its result files
folder  the same on `--backbone embeddings:<folder>`, which is read anew at every pass
memory  the core's pieces alone on tokens that are in memory: what is left when nothing is read or written
plain   reads the same folder and follows docs/method.md section by section: all tokens normalised (2), one concept at a time fitted
        (3), cosine by broadcasting a sample's tokens against all vectors, for all splits (4), `torch.quantile` per concept and level
        (5), counts per concept and level (6); writes nothing
Importing and finding plugins is in none of them.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from harness_embeddings.folder import StoredEmbeddings
from harness_vectors.linear import Linear
from harness_vectors.mean import Mean
from pairs import Benchmark, Case, Found, Gate, Row, Sides, main, ratio
from planted import Planted, Size, close, detect, plant, splits, write_folder
from safetensors.torch import load_file
from torch import Tensor

from harness import pipeline
from harness.api import Entry, hookimpl
from harness.registry import Registry, load
from harness.types import LEVELS, Method, RunSpec

NAME = "b1_end_to_end"
SHRINKAGE = 1e-2
PARTS = {"mean": "mean", "lda": "linear"}


class Outcome(NamedTuple):
    """cutoffs [P, C] · cal counts TP, FP, FN [3, P, C] · the place of each concept's level [C] · test F1 [C]."""

    cutoffs: Tensor
    counts: Tensor
    level: Tensor
    f1: Tensor


@contextmanager
def silent(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress that shows nothing."""
    yield lambda n: None


class Cached(StoredEmbeddings):
    """Stored embeddings that go through the block cache, as those of a model do."""

    store = True


@hookimpl
def harness_register_backbones() -> list[Entry]:
    """`cached`."""
    return [Entry("cached", f"{NAME}:Cached", "embeddings, cached")]


def harness(folder: Path, method: str, registry: Registry, backbone: str) -> Outcome:
    """The real pipe, and its own result files read back."""
    recipe = Method(f"b1-{method}", concepts=PARTS[method], detector="superactivator")
    options: dict[str, Any] = {"bootstrap": 0, "guards": "off", "device": "cpu", "output": folder.parent / "results"}
    spec = RunSpec(f"embeddings:{folder}", f"{backbone}:{folder}", (recipe,), cache_dir=folder.parent / "cache", **options)
    (result,) = pipeline.run(spec, registry, silent)
    table = pq.read_table(result.path / "calibration.parquet").to_pydict()  # type: ignore[operator]
    shape = (len(LEVELS), len(result.choices))
    cutoffs, *counts = (torch.tensor(table[name]).reshape(shape) for name in ("cutoff", "tp", "fp", "fn"))
    level = torch.tensor([LEVELS.index(choice.level) for choice in result.choices])  # type: ignore[arg-type]
    f1 = [result.score("f1", concept=choice.concept).value for choice in result.choices]  # type: ignore[union-attr]
    return Outcome(cutoffs, torch.stack(counts), level, torch.tensor(f1))


def memory(world: Planted, method: str) -> Outcome:
    """The core's functions on tokens in memory, from their normalisation on."""
    train, cal, test = splits(world)
    done = detect({"mean": Mean(), "lda": Linear()}[method].fit(train), cal, test)
    return Outcome(done.cutoffs[:, 0], torch.stack(done.counts)[:, :, 0], done.chosen.level[0], done.f1)


def plain(folder: Path, method: str) -> Outcome:
    """The same from the definitions, one concept and one level at a time."""
    read = load_file(folder / "tokens.safetensors")
    with (folder / "samples.csv").open(encoding="utf-8") as opened:
        splits = [row["split"] for row in csv.DictReader(opened)]
    offsets, labels, truth = read["offsets"], read["labels"].bool(), read["truth"].bool()
    of_token = [split for split, n in zip(splits, offsets.diff().tolist(), strict=True) for _ in range(n)]
    in_train, in_cal = (torch.tensor([split == name for split in of_token]) for name in ("train", "cal"))
    tokens = read["layer.0"]
    train = tokens[in_train]
    tokens = (tokens - train.mean(0)) / train.square().sum(1).mean().sqrt()
    fit = {"mean": mean_vector, "lda": separator}[method]
    vectors = torch.stack([fit(tokens[in_train], truth[in_train, c]) for c in range(truth.shape[1])])
    samples = [tokens[start:end] for start, end in offsets.unfold(0, 2, 1).tolist()]
    if method == "mean":
        activations = [F.cosine_similarity(sample[:, None], vectors[None], dim=-1) for sample in samples]
    else:
        activations = [sample @ vectors.T for sample in samples]
    strongest = torch.stack([sample.max(0).values for sample in activations])
    every = torch.cat(activations)
    return thresholds(every[in_cal], truth[in_cal], strongest, labels, splits)


def mean_vector(tokens: Tensor, positive: Tensor) -> Tensor:
    """The mean of the positive tokens."""
    return tokens[positive].mean(0)


def separator(tokens: Tensor, positive: Tensor) -> Tensor:
    """Fisher's direction with the ridge that `linear` documents, fitted for one concept as if it were the only one."""
    tokens = tokens.double()
    centred = tokens - tokens.mean(0)
    covariance = centred.T @ centred / len(tokens)
    ridge = SHRINKAGE * covariance.diagonal().mean() * torch.eye(tokens.shape[1], dtype=torch.float64)
    gap = tokens[positive].mean(0) - tokens[~positive].mean(0)
    return torch.linalg.solve(covariance + ridge, gap).float()


def thresholds(inside: Tensor, truth: Tensor, strongest: Tensor, labels: Tensor, splits: Sequence[str]) -> Outcome:
    """Sections 5 and 6: a cutoff per concept and level, counts on cal, the best level, F1 on test."""
    cal, test = (torch.tensor([split == name for split in splits]) for name in ("cal", "test"))
    concepts = labels.shape[1]
    cutoffs = torch.zeros(len(LEVELS), concepts, dtype=torch.float64)
    counts = torch.zeros(3, len(LEVELS), concepts)
    level, f1 = torch.zeros(concepts, dtype=torch.int64), torch.zeros(concepts)
    for c in range(concepts):
        best = -1.0
        for p, share in enumerate(LEVELS):
            cutoffs[p, c] = torch.quantile(inside[truth[:, c], c].double(), 1 - share)
            counts[:, p, c] = counted(strongest[cal, c] >= cutoffs[p, c], labels[cal, c])
            if (value := f1_of(counts[:, p, c])) > best:
                best, level[c] = value, p
        f1[c] = f1_of(counted(strongest[test, c] >= cutoffs[level[c], c], labels[test, c]))
    return Outcome(cutoffs, counts, level, f1)


def counted(found: Tensor, labels: Tensor) -> Tensor:
    """TP, FP, FN."""
    return torch.stack([(found & labels).sum(), (found & ~labels).sum(), (~found & labels).sum()]).float()


def f1_of(counts: Tensor) -> float:
    """2 TP / (2 TP + FP + FN)."""
    tp, fp, fn = counts.tolist()
    return 2 * tp / (2 * tp + fp + fn)


TIES = 1e-5
"""Both sides work in float32: a score so near its cutoff may fall on either side of it."""


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """A folder of embeddings, and both sides on it."""
    size = Size(case["samples"], case["tokens"], case["width"], case["C"])
    with tempfile.TemporaryDirectory(prefix="harness-b1-") as made:
        folder = Path(made) / "planted"
        world, registry, method = plant(size), load([NAME]), case["method"]
        write_folder(world, folder)
        calls = {
            "cache": lambda: harness(folder, method, registry, "cached"),
            "folder": lambda: harness(folder, method, registry, "embeddings"),
            "memory": lambda: memory(world, method),
            "plain": lambda: plain(folder, method),
        }
        harness(folder, method, registry, "cached")  # fills the cache
        yield Sides(
            calls, equal, f"cutoffs to {TIES:g} of the largest; at most 1 of 1000 counts differs; levels and test F1 equal"
        )


def equal(results: Found) -> dict[str, dict[str, Any]]:
    """Raises where cutoffs, counts, levels or F1 differ from the plain ones; returns the macro F1 of each side."""
    other, columns = results["plain"], {}
    for name, ours in results.items():
        close(f"{name}: cutoffs", ours.cutoffs, other.cutoffs, TIES * float(other.cutoffs.abs().max()))
        cells = int((ours.counts != other.counts).sum())
        assert cells <= ours.counts.numel() / 1000, f"{name}: {cells} of {ours.counts.numel()} counts differ"
        close(f"{name}: levels", ours.level, other.level, 0)
        close(f"{name}: test F1", ours.f1, other.f1, 1e-6)
        columns[name] = {"F1": f"{float(ours.f1.mean()):.3f}", "counts off": cells}
    return columns


def gates(rows: Sequence[Row]) -> list[Gate]:
    """15 times as fast with cached embeddings, in every case."""
    every = [dict(row.case) for row in rows if row.side == "plain"]
    return [Gate(f"plain / cache, {case['method']}, C = {case['C']}", ratio(rows, "plain", **case), 15) for case in every]


SHAPE = {"samples": 300, "tokens": 256, "width": 1024}
BENCHMARK = Benchmark(
    "B1",
    "end to end after embedding, against the paper's steps written plainly",
    build,
    [{"method": method, "C": c, **SHAPE} for method, c in (*(("mean", c) for c in (6, 29, 80)), ("lda", 6), ("lda", 29))],
    [{"method": method, "C": 3, "samples": 40, "tokens": 16, "width": 12} for method in PARTS],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
