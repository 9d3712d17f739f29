"""B8: the block cache. Writing a block, reading it whole, and reading one sample of one layer; and what 16 bit costs in precision.

A block is L layers of T tokens. The others hold the same values: `torch.save` one float32 file per layer, `.npy` one float32 file per
layer, zarr (where it is installed) one array per layer, chunked by sample. Every side reads into float32. Files are in the page cache,
nobody calls fsync: what is compared is the format, not the disk.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import Benchmark, Case, Found, Gate, Row, Sides, main, ratio
from torch import Tensor

from harness.store import Storage, Store
from harness.types import Embedded, Site

PRECISION = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8}


class Format(ABC):
    """A way to keep a block."""

    precision = 0.0

    def __init__(self, folder: Path, block: Embedded) -> None:
        self.folder, self.block = folder, block
        folder.mkdir(parents=True)

    @abstractmethod
    def write(self) -> None:
        """The whole block."""

    @abstractmethod
    def layer(self, layer: int) -> Tensor:
        """[T, d] float32."""

    def read(self) -> Tensor:
        """[L, T, d] float32."""
        out = torch.empty_like(self.block.values)
        for i, values in enumerate(out):
            values.copy_(self.layer(i))
        return out

    def sample(self, layer: int, place: int) -> Tensor:
        """[n, d] float32: the tokens of one sample at one layer."""
        return self.layer(layer)[self.tokens(place)].clone()

    def tokens(self, place: int) -> slice:
        """The sample's tokens."""
        return slice(int(self.block.offsets[place]), int(self.block.offsets[place + 1]))


class Ours(Format):
    """`harness.store.Store` in a storage dtype; it reads a layer of a block at a time, as the pipe does."""

    def __init__(self, folder: Path, block: Embedded, dtype: Storage) -> None:
        super().__init__(folder, block)
        self.precision = PRECISION[dtype]
        self.sites = [Site(i) for i in range(len(block.values))]
        self.store, self.content = Store(folder, NamedBackbone(), dtype), ["one block"]

    def write(self) -> None:
        """All layers and the geometry."""
        self.store.write(self.content, self.sites, self.block)

    def layer(self, layer: int) -> Tensor:
        """One site."""
        return self.store.tokens(self.content, [self.sites[layer]])[0]

    def read(self) -> Tensor:
        """All sites."""
        return self.store.tokens(self.content, self.sites)


class NamedBackbone:
    """What of a backbone the store asks for."""

    name, revision, modality, n_layers, width = "benchmark", "1", "tokens", 1, 1
    identity: dict[str, Any] = {}  # noqa: RUF012 - read, never written


class TorchSave(Format):
    """One float32 `.pt` per layer."""

    def write(self) -> None:
        """Saves every layer."""
        for i, values in enumerate(self.block.values):
            torch.save(values.clone(), self.folder / f"{i}.pt")

    def layer(self, layer: int) -> Tensor:
        """Loads one."""
        return torch.load(self.folder / f"{layer}.pt")


class Npy(Format):
    """One float32 `.npy` per layer; a sample is read through a memory map."""

    def write(self) -> None:
        """Saves every layer."""
        for i, values in enumerate(self.block.values):
            np.save(self.folder / f"{i}.npy", values.numpy())

    def layer(self, layer: int) -> Tensor:
        """Loads one."""
        return torch.from_numpy(np.load(self.folder / f"{layer}.npy"))

    def sample(self, layer: int, place: int) -> Tensor:
        """Copies the sample's part of the map."""
        return torch.from_numpy(np.array(np.load(self.folder / f"{layer}.npy", mmap_mode="r")[self.tokens(place)]))


class Zarr(Format):
    """One float32 array per layer, a chunk per sample of mean length, zarr's default compression."""

    def write(self) -> None:
        """Saves every layer."""
        import zarr

        chunk = max(1, self.block.values.shape[1] // (len(self.block.offsets) - 1))
        for i, values in enumerate(self.block.values):
            array = zarr.create_array(
                str(self.folder / f"{i}.zarr"), shape=values.shape, chunks=(chunk, values.shape[1]), dtype="f4", overwrite=True
            )
            array[:] = values.numpy()

    def layer(self, layer: int) -> Tensor:
        """Loads one."""
        import zarr

        return torch.from_numpy(zarr.open_array(str(self.folder / f"{layer}.zarr"), mode="r")[:])

    def sample(self, layer: int, place: int) -> Tensor:
        """Reads the sample's chunks."""
        import zarr

        return torch.from_numpy(zarr.open_array(str(self.folder / f"{layer}.zarr"), mode="r")[self.tokens(place)])


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """All formats, written once; the case says what is timed."""
    g = torch.Generator().manual_seed(0)
    tokens = case["samples"] * case["tokens"]
    values = torch.randn(case["L"], tokens, case["width"], generator=g)
    offsets = torch.arange(0, tokens + 1, case["tokens"])
    regions = torch.stack([torch.arange(tokens), torch.arange(tokens) + 1], 1)
    block = Embedded(values, offsets, regions, values[:, : case["samples"]].clone())
    with tempfile.TemporaryDirectory(prefix="harness-b8-") as made:
        formats: dict[str, Format] = {f"store {t}": Ours(Path(made) / t, block, t) for t in ("float16", "float32", "bfloat16")}
        formats |= {"torch.save": TorchSave(Path(made) / "pt", block), ".npy": Npy(Path(made) / "npy", block)}
        if importlib.util.find_spec("zarr"):
            formats["zarr"] = Zarr(Path(made) / "zarr", block)
        for kind in formats.values():
            kind.write()
        places = torch.randint(case["samples"], (20,), generator=g).tolist()
        jobs = {
            "write": lambda kind: kind.write(),
            "read": lambda kind: kind.read(),
            "20 samples": lambda kind: [kind.sample(i % case["L"], place) for i, place in enumerate(places)],
        }

        def check(results: Found) -> dict[str, dict[str, Any]]:
            columns = {}
            for name, kind in formats.items():
                worst = max(_error(kind.read(), values), _error(kind.sample(0, 0), values[0, kind.tokens(0)]))
                assert worst <= kind.precision, f"{name}: a value is off by a share of {worst:.2g} of the largest of its token"
                columns[name] = {"error": f"{worst:.1e}", "disk MB": f"{_size(kind.folder) / 1e6:.1f}"}
            return columns

        tolerance = "values as written for float32; 2^-11 and 2^-8 of the largest of a token for float16 and bfloat16"
        yield Sides({name: lambda kind=kind: jobs[case["job"]](kind) for name, kind in formats.items()}, check, tolerance)


def _error(read: Tensor, written: Tensor) -> float:
    return float(((read - written).abs().amax(-1) / written.abs().amax(-1)).max())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def gates(rows: Sequence[Row]) -> list[Gate]:
    """Writing and reading a block in float16 take no longer than `torch.save` and `torch.load` in float32."""
    return [
        Gate(f"torch.save / store float16, {job}", ratio(rows, "torch.save", job=job), 1)
        for job in sorted({row.case["job"] for row in rows} - {"20 samples"})
    ]


SHAPE = {"L": 12, "samples": 32, "tokens": 256, "width": 384}
TINY = {"L": 2, "samples": 4, "tokens": 9, "width": 8}
JOBS = ("write", "read", "20 samples")
BENCHMARK = Benchmark(
    "B8",
    "block cache: write, read, random access",
    build,
    [{"job": job, **SHAPE} for job in JOBS],
    [{"job": job, **TINY} for job in JOBS],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
