"""The block cache: an address for everything a value depends on, whole files or none, and no limited run that passes for a full one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import quiet

from harness import pipeline
from harness.errors import HarnessError
from harness.registry import Registry
from harness.store import DTYPES, Storage, StorageOverflowError, Store, address, free_bytes
from harness.types import Embedded, Result, RunSpec, Site, View

SITES = (Site(0), Site(3), Site(3, "mlp"))
CONTENT = ("hash of a", "hash of b")


@dataclass(frozen=True)
class Model:
    """What an address is made of."""

    name: str = "model"
    revision: str = "r1"
    identity: dict[str, Any] = field(default_factory=lambda: {"dtype": "float32", "size": 224, "view": {"how": "squash"}})


def block(seed: int = 0, views: bool = False, scale: float = 1.0) -> Embedded:
    g = torch.Generator().manual_seed(seed)
    regions = torch.arange(20).reshape(5, 4) if views else torch.arange(10).reshape(5, 2)
    shown = (View(8, 9, 1, -2, 6, 7), View(4, 4, 0, 0, 4, 4)) if views else None
    values, summary = torch.randn(3, 5, 4, generator=g) * scale, torch.randn(3, 2, 4, generator=g) * scale
    return Embedded(values, torch.tensor([0, 2, 5]), regions, summary, shown)


# --- addresses


def test_the_same_backbone_and_dtype_have_the_same_address() -> None:
    assert address(Model(), "float32") == address(Model(), "float32")


@pytest.mark.parametrize(
    "other",
    [
        replace(Model(), name="other"),
        replace(Model(), revision="r2"),
        replace(Model(), identity={**Model().identity, "dtype": "bfloat16"}),
        replace(Model(), identity={**Model().identity, "size": 336}),
        replace(Model(), identity={**Model().identity, "view": {"how": "crop"}}),
        replace(Model(), identity={**Model().identity, "more": None}),
        replace(Model(), identity={}),
    ],
    ids=str,
)
def test_any_other_field_of_the_backbone_has_another_address(other: Model) -> None:
    assert address(other, "float32")[0] != address(Model(), "float32")[0]


def test_every_storage_dtype_has_its_own_address() -> None:
    assert len({address(Model(), dtype)[0] for dtype in DTYPES}) == 3


def test_the_order_in_which_an_identity_is_written_is_no_part_of_it() -> None:
    turned = replace(Model(), identity=dict(reversed(Model().identity.items())))
    assert address(turned, "float32")[0] == address(Model(), "float32")[0]


SOURCE = """
class {base}:
    factor = {factor}

class Mine({base}):
    name, revision, identity = "mine", "1", {{}}
"""


def imported(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_an_edited_source_file_has_another_address(tmp_path: Path) -> None:
    path = tmp_path / "edited_backbone.py"
    first = address(imported(path, SOURCE.format(base="Base", factor=1)).Mine(), "float32")[0]
    same = address(imported(path, SOURCE.format(base="Base", factor=1)).Mine(), "float32")[0]
    other = address(imported(path, SOURCE.format(base="Base", factor=2)).Mine(), "float32")[0]
    assert first == same
    assert first != other


def test_an_edited_base_class_in_another_file_has_another_address(tmp_path: Path) -> None:
    found = []
    for factor in (1, 2):
        base = imported(tmp_path / "base_backbone.py", f"class Base:\n    factor = {factor}\n")
        module = imported(tmp_path / "derived_backbone.py", "from base_backbone import Base\nclass Mine(Base):\n    pass\n")
        model = module.Mine()
        model.name, model.revision, model.identity = "mine", "1", {"base": base.__name__}
        found.append(address(model, "float32")[0])
    assert found[0] != found[1]


# --- blocks


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_what_is_read_is_what_was_written_rounded_to_the_storage_dtype(dtype: Storage, views: bool, tmp_path: Path) -> None:
    store, given = Store(tmp_path, Model(), dtype), block(views=views)
    store.write(CONTENT, SITES, given)
    tokens, summary, geometry = store.tokens(CONTENT, SITES), store.summary(CONTENT, SITES), store.geometry(CONTENT)
    assert torch.equal(tokens, given.values.to(DTYPES[dtype]).float())
    assert torch.equal(summary, given.summary.to(DTYPES[dtype]).float())
    assert tokens.dtype == summary.dtype == torch.float32
    assert torch.equal(geometry.offsets, given.offsets)
    assert torch.equal(geometry.regions, given.regions)
    assert geometry.views == given.views


def test_sites_are_read_in_the_order_they_are_asked_for_and_any_of_them_alone(tmp_path: Path) -> None:
    store, given = Store(tmp_path, Model(), "float32"), block()
    store.write(CONTENT, SITES, given)
    assert torch.equal(store.tokens(CONTENT, (SITES[2], SITES[0])), given.values[[2, 0]])


def test_an_identical_block_is_a_hit_and_any_other_a_miss(tmp_path: Path) -> None:
    store = Store(tmp_path, Model(), "float32")
    assert not store.has(CONTENT, SITES)
    store.write(CONTENT, SITES, block())
    assert Store(tmp_path, Model(), "float32").has(CONTENT, SITES)
    assert store.has(CONTENT, SITES[1:])
    assert not store.has(CONTENT[::-1], SITES)
    assert not store.has(CONTENT[:1], SITES)
    assert not store.has((*CONTENT, "hash of c"), SITES)
    assert not store.has(CONTENT, (*SITES, Site(4)))
    assert not Store(tmp_path, replace(Model(), revision="r2"), "float32").has(CONTENT, SITES)
    assert not Store(tmp_path, Model(), "float16").has(CONTENT, SITES)


def test_later_sites_join_a_block_that_is_there(tmp_path: Path) -> None:
    store, given = Store(tmp_path, Model(), "float32"), block()
    for i in range(3):
        part = replace(given, values=given.values[i : i + 1], summary=given.summary[i : i + 1])
        store.write(CONTENT, SITES[i : i + 1], part)
    assert torch.equal(store.tokens(CONTENT, SITES), given.values)


@pytest.mark.parametrize(("dtype", "fits"), [("float32", True), ("bfloat16", True), ("float16", False)])
@pytest.mark.parametrize("where", ["values", "summary"])
def test_a_value_that_does_not_fit_sixteen_bits_stores_nothing(dtype: Storage, fits: bool, where: str, tmp_path: Path) -> None:
    store, given = Store(tmp_path, Model(), dtype), block()
    getattr(given, where)[1, 1, 1] = 70_000.0
    if fits:
        store.write(CONTENT, SITES, given)
        return
    with pytest.raises(StorageOverflowError):
        store.write(CONTENT, SITES, given)
    assert not store.has(CONTENT, SITES)


def test_a_block_without_tokens_can_be_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, Model(), "float32")
    empty = Embedded(torch.zeros(3, 0, 4), torch.tensor([0, 0, 0]), torch.zeros(0, 2).long(), torch.zeros(3, 2, 4))
    store.write(CONTENT, SITES, empty)
    assert store.tokens(CONTENT, SITES).shape == (3, 0, 4)
    assert store.geometry(CONTENT).regions.shape == (0, 2)


def test_a_removed_site_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    store = Store(tmp_path, Model(), "float32")
    store.write(CONTENT, SITES, block())
    store.remove(CONTENT, SITES[:1])
    store.remove(CONTENT, SITES[:1])
    assert not store.has(CONTENT, SITES[:1])
    assert store.has(CONTENT, SITES[1:])


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    store = Store(tmp_path, Model(), "float16")
    store.write(CONTENT, SITES, block())
    about = json.loads((store.folder / "about.json").read_text())
    assert (about["backbone"], about["revision"], about["storage"]) == ("model", "r1", "float16")
    assert about["identity"] == Model().identity


DAMAGE = {"cut": lambda data: data[: len(data) // 2], "emptied": lambda data: b"", "garbled": lambda data: b"\xff" * 64}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("which", ["geometry.safetensors", "residual.3.safetensors"])
def test_a_damaged_file_is_one_line_that_says_what_to_delete(which: str, how: str, tmp_path: Path) -> None:
    store = Store(tmp_path, Model(), "float32")
    store.write(CONTENT, SITES, block())
    (path,) = tmp_path.rglob(which)
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    with pytest.raises(HarnessError) as caught:
        _ = store.geometry(CONTENT), store.tokens(CONTENT, SITES)
    assert str(caught.value).startswith(f"cannot read the cache file {path}; ")
    assert f"delete {path.parent} and run again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_free_bytes_of_a_folder_that_is_not_there_are_those_of_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.05)


# --- limited runs


def samples_of(result: Result) -> Any:
    assert result.path is not None
    return pq.read_table(result.path / "per_sample.parquet").to_pylist()


def test_a_limited_run_never_passes_for_the_full_one(
    make_spec: Callable[..., RunSpec], registry: Registry, tmp_path: Path
) -> None:
    limited = pipeline.run(make_spec(limit=30, layers="last"), registry, quiet)[0]
    after = pipeline.run(make_spec(layers="last"), registry, quiet)[0]
    clean = pipeline.run(make_spec(layers="last", cache_dir=tmp_path / "clean", output=tmp_path / "clean"), registry, quiet)[0]
    assert limited.task["limit"] == 30
    assert set(limited.task["samples"].values()) == {30}
    assert after.task["limit"] is None
    assert limited.path != after.path
    assert limited.task["fingerprint"] != after.task["fingerprint"]
    assert samples_of(after) == samples_of(clean)
    assert after.scores == clean.scores
    again = pipeline.run(make_spec(limit=30, layers="last"), registry, quiet)[0]
    assert samples_of(again) == samples_of(limited)


def test_a_limited_run_says_so_in_its_result_file(make_spec: Callable[..., RunSpec], registry: Registry) -> None:
    result = pipeline.run(make_spec(limit=30, layers="last"), registry, quiet)[0]
    assert result.path is not None
    assert json.loads((result.path / "result.json").read_text())["task"]["limit"] == 30
