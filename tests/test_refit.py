"""A result fitted and decided again: the same choices, or one line that says what changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ragged_world
import torch

from harness import pipeline
from harness.api import (
    Blocks,
    Concepts,
    Entry,
    HarnessError,
    Method,
    TokenEmbeddings,
    choices_of,
    hookimpl,
    read_result,
)
from harness.publish import choices
from harness.registry import Registry, load

NAMES = ("superactivator", "superactivator-mean", "max", "mean", "last", "random", "summary")


def decided_again(folder: Path, registry: Registry, progress: Any, **how: Any) -> pipeline.Refit:
    return pipeline.refit(folder, registry, progress, **how)


def same_choices(found: pipeline.Refit, folder: Path) -> None:
    """Everything but localization, which a refit leaves out."""
    bare = {"map_level": None, "map_cutoff": None, "map_cal_f1": None}
    then = [replace(choice, **bare) for choice in choices_of(read_result(folder))]
    assert list(choices(found.bench, found.decided, None)) == then


def message(folder: Path, registry: Registry, progress: Any, **how: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        decided_again(folder, registry, progress, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("where", ["run_toy", "run_ragged"])
def test_a_refit_chooses_what_the_result_says(
    where: str, request: pytest.FixtureRequest, registry: Registry, progress: Any, tmp_path: Path
):
    for result in request.getfixturevalue(where)(*NAMES, bootstrap=0, limit=30):
        same_choices(decided_again(result.path, registry, progress, cache_dir=tmp_path / "cache"), result.path)


def test_a_refit_of_another_seed_and_normalization_keeps_them(
    run_ragged: Any, registry: Registry, progress: Any, tmp_path: Path
):
    (result,) = run_ragged("random", seed=5, normalization="standardize", layers="0,2", limit=20, bootstrap=0)
    found = decided_again(result.path, registry, progress, cache_dir=tmp_path / "cache")
    assert (found.bench.spec.seed, found.bench.spec.limit, found.decided.layers) == (5, 20, ("0", "2"))
    same_choices(found, result.path)


def test_a_refit_embeds_nothing_where_the_run_left_its_blocks(run_toy: Any, registry: Registry, progress: Any, tmp_path: Path):
    (result,) = run_toy("superactivator", bootstrap=0, limit=12)
    found = decided_again(result.path, registry, progress, cache_dir=tmp_path / "cache")
    assert [group.embedded for group in found.bench.plan.groups] == [0]


def test_layer_groups_that_do_not_fit_the_cache_are_embedded_anew_and_decide_the_same(
    run_toy: Any, registry: Registry, progress: Any, tmp_path: Path
):
    (result,) = run_toy("superactivator", bootstrap=0, limit=24, cache_bytes=150_000)
    found = decided_again(result.path, registry, progress, cache_dir=tmp_path / "other")
    assert len(found.groups) > 1
    same_choices(found, result.path)
    sites = [len(block.values) for tokens, _, _ in found.visit(progress) for block in tokens.test]
    assert sum(sites) == len(found.decided.layers)
    assert not list((tmp_path / "other").rglob("residual.*"))  # room was made for the next group


def test_a_value_that_does_not_fit_16_bit_is_refitted_as_the_run_was(
    make_spec: Any, registry: Registry, progress: Any, tmp_path: Path
):
    task = ragged_world.write_task(tmp_path)
    method = registry.methods()["superactivator-mean"]
    spec = make_spec(task, "ragged:big=1e30", (method,), cache_bytes=100, bootstrap=0, guards="off")
    (result,) = pipeline.run(spec, registry, progress)
    assert "bfloat16" in str(result.notes["storage"])
    same_choices(decided_again(result.path, registry, progress, cache_dir=tmp_path / "fresh"), result.path)


def test_methods_that_share_concepts_share_their_fit(run_toy: Any, registry: Registry, progress: Any, tmp_path: Path):
    fits: dict[Any, Any] = {}
    for result in run_toy("superactivator", "max", "superactivator-mean", "summary", bootstrap=0, limit=24):
        found = decided_again(result.path, registry, progress, cache_dir=tmp_path / "cache", fits=fits)
        same_choices(found, result.path)
    assert sorted(key[:2] for key in fits) == [("linear", "summary"), ("linear", "tokens"), ("mean", "tokens")]
    assert len(fits) == 3


@dataclass(frozen=True)
class Arrows:
    """Five random directions per layer: units without names. A whole concept method, and a plugin of this file's own."""

    directions: Any = None
    units = tuple("abcde")

    def fit(self, train: Blocks) -> Arrows:
        made = torch.randn(len(train.sites), train.width, 5, generator=torch.Generator().manual_seed(train.seed))
        return Arrows(made)

    def activate(self, block: TokenEmbeddings, units: slice) -> torch.Tensor:
        return block.values @ self.directions[:, :, units]

    def pick(self, index: torch.Tensor) -> Concepts:
        picked = torch.stack([d[:, i].T for d, i in zip(self.directions, index, strict=True)])
        return Picked(picked)


@dataclass(frozen=True)
class Picked:
    vectors: torch.Tensor

    def activate(self, block: TokenEmbeddings) -> torch.Tensor:
        return block.values @ self.vectors.transpose(1, 2)


@hookimpl
def harness_register_concept_methods() -> list[Entry]:
    return [Entry("arrows", "test_refit:Arrows", "five random directions")]


def test_units_without_names_are_matched_again(make_spec: Any, progress: Any, tmp_path: Path):
    registry = load(["test_refit"])
    method = Method("arrows", concepts="arrows", detector="superactivator")
    (result,) = pipeline.run(make_spec(methods=(method,), bootstrap=0, limit=24), registry, progress)
    assert {choice.unit for choice in result.choices} <= set("abcde")
    fits: dict[Any, Any] = {}
    for _ in range(2):
        found = decided_again(result.path, registry, progress, cache_dir=tmp_path / "cache", fits=fits)
        same_choices(found, result.path)


# --- mistakes


def test_a_scorer_has_no_concepts(run_toy: Any, registry: Registry, progress: Any, tmp_path: Path):
    (result,) = run_toy("coin", bootstrap=0, limit=12)
    assert message(result.path, registry, progress) == (
        f"method 'coin' of result {result.path} has no concepts in tokens; choose a result of another method"
    )


def test_changed_data_are_refused(run_toy: Any, registry: Registry, progress: Any, tmp_path: Path):
    (result,) = run_toy("superactivator", bootstrap=0, limit=12)
    edit(result.path, lambda read: read["task"].update(fingerprint="0" * 64))
    assert message(result.path, registry, progress, cache_dir=tmp_path / "cache") == (
        f"the data of task 'toy' changed since result {result.path} was made; run again"
    )


@pytest.mark.parametrize(("key", "value"), [("revision", "2"), ("n_layers", 7), ("pooling", "mean")])
def test_another_backbone_is_refused_by_what_changed(
    key: str, value: Any, run_toy: Any, registry: Registry, progress: Any, tmp_path: Path
):
    (result,) = run_toy("superactivator", bootstrap=0, limit=12)
    edit(result.path, lambda read: read["backbone"].update({key: value}))
    assert message(result.path, registry, progress, cache_dir=tmp_path / "cache") == (
        f"the backbone 'toy' ({key}) changed since result {result.path} was made; run again"
    )


def test_a_result_that_was_cut_short_is_refused(run_toy: Any, registry: Registry, progress: Any):
    (result,) = run_toy("superactivator", bootstrap=0, limit=12)
    (result.path / "STATUS").unlink()
    assert message(result.path, registry, progress).startswith(f"no complete result in {result.path}; STATUS is missing")


def test_a_method_whose_plugin_is_gone_is_refused_by_name(run_toy: Any, registry: Registry, progress: Any, tmp_path: Path):
    (result,) = run_toy("superactivator", bootstrap=0, limit=12)
    edit(result.path, lambda read: read["method"].update(detector="superactivatr"))
    assert "unknown detector 'superactivatr'" in message(result.path, registry, progress, cache_dir=tmp_path / "cache")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    read = json.loads((folder / "result.json").read_text())
    change(read)
    (folder / "result.json").write_text(json.dumps(read))


def test_a_refit_sees_no_label_of_test(run_ragged: Any, make_spec: Any, registry: Registry, progress: Any, tmp_path: Path):
    """The fit, the cutoffs and the choices are the run's own code; this holds its decisions to permuted test labels."""
    method = Method("m", concepts="linear", detector="superactivator")
    chosen = []
    for options in ("", "mixed: 3"):
        task = ragged_world.write_task(tmp_path, options=options)
        (result,) = pipeline.run(make_spec(task, "ragged", (method,), bootstrap=0), registry, progress)
        chosen.append(decided_again(result.path, registry, progress, cache_dir=tmp_path / "cache").decided)
    assert torch.equal(chosen[0].calibrated.cutoffs.nan_to_num(), chosen[1].calibrated.cutoffs.nan_to_num())
    assert torch.equal(chosen[0].chosen.layer, chosen[1].chosen.layer)
