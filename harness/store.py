"""The block cache: content-addressed, one safetensors file per (block of samples, site), written once, atomically.

A block's address is what determines its values: backbone (weights, geometry, dtype, source code), storage dtype and the content
of its samples. Labels and masks are no part of it: `coco` and `coco-80` share their blocks. A file that is there is whole, so a
run that was killed goes on where it stopped, and a limited run can never pass for a full one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness.errors import HarnessError
from harness.numerics import token_sums
from harness.results import write_atomic
from harness.types import Backbone, Embedded, Site, View

SCHEMA = 2
OVERFLOW = "overflow"
Storage = Literal["float32", "float16", "bfloat16"]
DTYPES: dict[Storage, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class StorageOverflowError(Exception):
    """A value does not fit the 16-bit storage dtype; the caller takes the next one."""


class Geometry(NamedTuple):
    """What is known of a block before any value is read: offsets [S+1], regions [T, 4 or 2], views (None for text)."""

    offsets: Tensor
    regions: Tensor
    views: tuple[View, ...] | None


def address(backbone: Backbone, dtype: Storage) -> tuple[str, dict[str, Any]]:
    """(folder name, what it stands for) of everything but the samples that a stored value depends on."""
    about = {
        "schema": SCHEMA,
        "backbone": backbone.name,
        "revision": backbone.revision,
        "identity": dict(backbone.identity),
        "source": _source_hash(type(backbone)),
        "storage": dtype,
    }
    return _sha([about]), about


def _source_hash(kind: type) -> str:
    """sha256 of the source of the backbone's plugin, every file of its package: edited code never reads what the old code wrote."""
    files: set[Path] = set()
    for name in {c.__module__ for c in kind.__mro__ if c.__module__ not in ("builtins", "typing", "abc")}:
        package = sys.modules.get(name.partition(".")[0])
        folders = getattr(package, "__path__", ())
        files.update(path for folder in folders for path in Path(folder).rglob("*.py"))
        files.add(Path(inspect.getfile(sys.modules[name])))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Store:
    """Blocks of one backbone in one storage dtype under `root`."""

    def __init__(self, root: Path, backbone: Backbone, dtype: Storage) -> None:
        name, about = address(backbone, dtype)
        self.dtype, self.folder, self._about = dtype, root / "blocks" / name, about

    def overflowed(self) -> bool:
        """Whether an earlier run met a value of this backbone that the storage dtype does not hold."""
        return (self.folder / OVERFLOW).is_file()

    def _block(self, content: Sequence[str]) -> Path:
        return self.folder / _sha(list(content))

    def has(self, content: Sequence[str], sites: Sequence[Site]) -> bool:
        """Whether the block with these content hashes is there at every site."""
        folder = self._block(content)
        return all((folder / name).is_file() for name in ["geometry.safetensors", *map(_file, sites)])

    def write(self, content: Sequence[str], sites: Sequence[Site], block: Embedded) -> None:
        """Stores a block; raises `StorageOverflowError` where a value becomes infinite in the storage dtype."""
        folder = self._block(content)
        if not (self.folder / "about.json").is_file():
            write_atomic(self.folder / "about.json", json.dumps(self._about, indent=1, default=str).encode())
        stored = block.values.to("cpu", DTYPES[self.dtype])
        summary = block.summary.to("cpu", DTYPES[self.dtype])
        if not (stored.isfinite().all() and summary.isfinite().all()):
            write_atomic(self.folder / OVERFLOW, b"")
            raise StorageOverflowError(self.dtype)
        views = torch.tensor(block.views or (), dtype=torch.int64).reshape(-1, len(View._fields))
        geometry = {"offsets": block.offsets.cpu(), "regions": block.regions.cpu().contiguous(), "views": views}
        for i, site in enumerate(sites):
            sums = token_sums(stored[i : i + 1].float())[:, 0].contiguous()
            tensors = {"tokens": stored[i].contiguous(), "summary": summary[i].contiguous(), "sums": sums}
            write_atomic(folder / _file(site), save(tensors))
        write_atomic(folder / "geometry.safetensors", save(geometry))

    def geometry(self, content: Sequence[str]) -> Geometry:
        """The geometry of a stored block."""
        read = _read(self._block(content) / "geometry.safetensors")
        views = tuple(View(*row) for row in read["views"].tolist())
        return Geometry(read["offsets"], read["regions"], views or None)

    def tokens(self, content: Sequence[str], sites: Sequence[Site]) -> Tensor:
        """[L, T, d] float32: the token values of a stored block."""
        return self._stacked(content, sites, "tokens")

    def summary(self, content: Sequence[str], sites: Sequence[Site]) -> Tensor:
        """[L, S, d] float32: the summaries of a stored block."""
        return self._stacked(content, sites, "summary")

    def sums(self, content: Sequence[str], sites: Sequence[Site]) -> Tensor:
        """[2, L, d] float64: the `token_sums` of a stored block, for which no token is read."""
        return torch.stack([_read(self._block(content) / _file(site), ("sums",))["sums"] for site in sites], 1)

    def _stacked(self, content: Sequence[str], sites: Sequence[Site], name: str) -> Tensor:
        first, *others = [_read(self._block(content) / _file(site), (name,))[name] for site in sites]
        out = torch.empty(len(sites), *first.shape)
        for i, values in enumerate((first, *others)):
            out[i] = values
        return out

    def remove(self, content: Sequence[str], sites: Sequence[Site]) -> None:
        """Forgets a block at the given sites (a group of layers that has been used)."""
        for site in sites:
            (self._block(content) / _file(site)).unlink(missing_ok=True)


def _file(site: Site) -> str:
    return f"{site.stream}.{site.layer}.safetensors"


def _read(path: Path, names: Sequence[str] = ("offsets", "regions", "views")) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise HarnessError(f"cannot read the cache file {path}; {error}; delete {path.parent} and run again") from error


def free_bytes(root: Path) -> int:
    """The bytes free on the disk that holds `root` (or its nearest existing parent)."""
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free
