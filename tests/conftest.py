"""What every test starts from: no setting of the caller's shell, no network, shapes checked at run time, small runs of the pipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs tests start, too: on tiny tensors threads wait for each other
for variable in [name for name in os.environ if name.startswith("HARNESS_") and name != "HARNESS_DATA"]:
    del os.environ[variable]

from jaxtyping import install_import_hook  # noqa: E402 - the environment comes first

with install_import_hook("harness.numerics", "beartype.beartype"):
    import harness.numerics  # noqa: F401

import pytest  # noqa: E402
import ragged_world  # noqa: E402
import small_backbones  # noqa: E402
import torch  # noqa: E402
from small_worlds import NAMES, Measured  # noqa: E402

from harness import pipeline  # noqa: E402
from harness.registry import Registry, load  # noqa: E402
from harness.types import Method, Result, RunSpec  # noqa: E402

torch.set_num_threads(1)


@contextmanager
def quiet(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress that shows nothing."""
    yield lambda n: None


@pytest.fixture(scope="session")
def progress() -> Any:
    return quiet


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Every installed plugin, and the tests' own."""
    return load(["ragged_world", "small_backbones"])


@pytest.fixture(scope="session", params=NAMES)
def world(request: pytest.FixtureRequest, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Each small world, run through the pipe once for all tests."""
    return Measured(request.param, tmp_path_factory.mktemp(request.param), registry, quiet)


@pytest.fixture
def give() -> Iterator[Callable[..., str]]:
    """Makes a reference to a data set of given rows: `give("text", train=[...], cal=[...], test=[...])` -> its key."""
    keys = []

    def make(modality: str, **splits: Any) -> str:
        keys.append(f"key{len(small_backbones.GIVEN)}")
        made = {name: small_backbones.table(modality, rows) for name, rows in splits.items()}
        small_backbones.GIVEN[keys[-1]] = made
        return keys[-1]

    yield make
    for key in keys:
        small_backbones.GIVEN.pop(key, None)


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., RunSpec]:
    """A small run: the toy task, one recipe, few replicates, cache and output below the test's own folder."""

    def make(
        task: str = "toy", backbone: str = "toy", methods: tuple[Method, ...] = (SUPERACTIVATOR,), **changes: Any
    ) -> RunSpec:
        options = {"bootstrap": 20, "cache_dir": tmp_path / "cache", "output": tmp_path / "out", "device": "cpu", **changes}
        return RunSpec(task, backbone, methods, **options)

    return make


@pytest.fixture
def run_toy(make_spec: Callable[..., RunSpec], registry: Registry) -> Callable[..., list[Result]]:
    """Results of the toy task with the named recipes, e.g. `run_toy("superactivator", "max", seed=1)`."""

    def run(*names: str, **changes: Any) -> list[Result]:
        known = registry.methods()
        return pipeline.run(make_spec(methods=tuple(known[name] for name in names), **changes), registry, quiet)

    return run


@pytest.fixture
def run_ragged(make_spec: Callable[..., RunSpec], registry: Registry, tmp_path: Path) -> Callable[..., list[Result]]:
    """The same on the ragged samples, which are fewer."""

    def run(*names: str, **changes: Any) -> list[Result]:
        known = registry.methods()
        task = ragged_world.write_task(tmp_path)
        spec = make_spec(task, "ragged", tuple(known[name] for name in names), **changes)
        return pipeline.run(spec, registry, quiet)

    return run


SUPERACTIVATOR = Method("superactivator", concepts="linear", detector="superactivator", localizer="superactivator")
