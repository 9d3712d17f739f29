"""Batches are halved where memory runs out, once and for all, and no number depends on it; 16 bit is chosen by what it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import quiet

from harness import pipeline, precision
from harness.bench import prepare
from harness.cli import cli
from harness.embed import Batching, embed_samples
from harness.errors import HarnessError
from harness.precision import choose_dtype, first_taken
from harness.registry import Registry
from harness.types import Embedded, Inputs, Method, RunSpec, Sample, Setup, Site

Spec = Callable[..., RunSpec]
MEAN = Method("mean", concepts="mean", detector="max")


@pytest.fixture
def texts(give: Callable[..., str], tmp_path: Path) -> str:
    def rows(split: str) -> list[dict[str, Any]]:
        made = []
        for i in range(10):
            text = f"{split} {i} " + ("glad " if i % 2 else "") + "word " * (i % 4)
            at = text.find("glad")
            regions = [{"concept": "joy", "start": at, "end": at + 4}] if i % 2 else []
            made.append({"id": f"{split}{i}", "text": text, "concepts": ["joy"] if i % 2 else [], "regions": regions})
        return made

    key = give("text", **{split: rows(split) for split in ("train", "cal", "test")})
    path = tmp_path / "texts.yaml"
    path.write_text(f"task: texts\nmodality: text\ndataset: {{name: given, key: {key}}}\nbackbone: words\n")
    return str(path)


def words(registry: Registry, **options: Any) -> Any:
    reference = ":".join(["words", *(f"{key}={value}" for key, value in options.items())])
    return registry.create("backbones", reference, Setup())


SAMPLES = [Sample(str(i), text="one two three four"[: 4 + 5 * (i % 3)].strip()) for i in range(11)]


@pytest.mark.parametrize("memory", ["cuda", "cpu", "linux", "python"])
@pytest.mark.parametrize(("room", "size"), [(5, 5), (3, 2), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_values_are_the_same(
    registry: Registry, capsys: pytest.CaptureFixture[str], memory: str, room: int, size: int
) -> None:
    batching, sites = Batching(11), [Site(0), Site(2)]
    got = embed_samples(words(registry, room=room, memory=memory), SAMPLES, sites, batching)
    whole = embed_samples(words(registry), SAMPLES, sites, Batching(11))
    assert batching.size == size
    assert torch.equal(got.offsets, whole.offsets)
    assert torch.equal(got.regions, whole.regions)
    assert torch.allclose(got.values, whole.values, atol=1e-6)
    said = capsys.readouterr().err
    assert said == f"out of memory with 11 samples at a time; going on with {size} (--batch-size)\n"
    embed_samples(words(registry, room=room, memory=memory), SAMPLES, sites, batching)  # remembered: nothing fails any more
    assert capsys.readouterr().err == ""


def test_one_sample_that_does_not_fit_is_answered_with_what_to_do(registry: Registry) -> None:
    backbone = words(registry, room=1)
    backbone._room = 0.5
    with pytest.raises(HarnessError) as caught:
        embed_samples(backbone, SAMPLES, [Site(0)], Batching(4))
    assert str(caught.value) == (
        "out of memory with one sample at a time; sample '0', backbone words; try --dtype bfloat16, fewer --layers, a smaller "
        "--image-size or max_length, or device_map=auto for a model of hf:"
    )


def test_an_error_that_is_not_about_memory_is_not_taken_for_it(registry: Registry) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        embed_samples(words(registry, room=2, memory="other"), SAMPLES, [Site(0)], Batching(4))


def test_a_run_says_the_batch_size_it_came_down_to_and_decides_the_same(
    texts: str, make_spec: Spec, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plain,) = pipeline.run(make_spec(texts, "words", (MEAN,)), registry, quiet)
    assert plain.provenance["batch size"] == 16
    spec = make_spec(texts, "words:room=3", (MEAN,), cache_dir=tmp_path / "other")
    (small,) = pipeline.run(spec, registry, quiet)
    assert small.provenance["batch size"] == 2
    assert small.scores == plain.scores
    assert small.choices == plain.choices
    assert capsys.readouterr().err.count("out of memory") == 1


def test_the_cache_does_not_ask_for_the_batch_size(
    texts: str, make_spec: Spec, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = pipeline.run(make_spec(texts, "words", (MEAN,), batch_size=7), registry, quiet)
    (again,) = pipeline.run(make_spec(texts, "words", (MEAN,), batch_size=3), registry, quiet)
    assert (first.provenance["samples embedded"], again.provenance["samples embedded"]) == (30, 0)
    assert (first.provenance["batch size"], again.provenance["batch size"]) == (7, None)
    assert first.scores == again.scores


def test_the_batch_guard_says_where_memory_leaves_it_nothing_to_compare(
    texts: str, make_spec: Spec, registry: Registry
) -> None:
    (result,) = pipeline.run(make_spec(texts, "words:room=1", (MEAN,)), registry, quiet)
    assert result.notes["guards"]["batch"] == "skipped: memory holds 1 of 2 samples at a time"


@pytest.mark.parametrize(("word", "size"), [("auto", None), ("5", 5)])
def test_the_batch_size_is_a_number_or_auto(
    word: str, size: int | None, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunSpec] = []
    monkeypatch.setattr("harness.pipeline.run", lambda spec, *more: seen.append(spec) or [])
    done = CliRunner().invoke(cli, ["run", "--task", "toy", "--batch-size", word], obj=registry)
    assert done.exit_code == 0, done.output
    assert seen[-1].batch_size == size


# ------------------------------------------------------------------------------------------------------- dtype auto on a GPU


class Rounded:
    """A backbone whose values are off by `error` in some dtypes, overflow or refuse in others."""

    name, revision, modality, n_layers, width = "rounded", "1", "text", 2, 4
    layers = (0, 1)

    def __init__(self, dtype: str, faults: dict[str, Any]) -> None:
        self.dtype, self.fault = dtype, faults.get(dtype)
        self.identity = {"faults": sorted(map(str, faults.items()))}
        if self.fault == "refused":
            raise HarnessError(f"rounded overflows; --dtype {dtype}; use another")
        if self.fault == "absent":
            raise HarnessError("no weights of rounded")

    def inputs(self, samples: Any) -> Inputs:
        positions = torch.ones(len(samples), 3, dtype=torch.bool)
        return Inputs({}, positions, torch.zeros(3 * len(samples), 2, dtype=torch.int64))

    def forward(self, inputs: Inputs, sites: Any) -> Embedded:
        if self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        n = len(inputs.positions)
        values = torch.ones(len(sites), 3 * n, 4) * (1 + (self.fault if isinstance(self.fault, float) else 0))
        if self.fault == "overflow":
            values[1, 2] = torch.inf
        return Embedded(values, torch.arange(n + 1) * 3, inputs.regions, torch.ones(len(sites), n, 4))


HALF = ("bfloat16", "float16", "float32")


class Train(list[Sample]):
    def samples(self, places: Any) -> list[Sample]:
        return [self[i] for i in places]


@pytest.mark.parametrize(
    ("faults", "dtype", "says"),
    [
        ({}, "bfloat16", "bfloat16: differs by 0 from float32 at most"),
        ({"bfloat16": 0.05}, "bfloat16", "bfloat16: differs by 0.05 from float32 at most"),
        ({"bfloat16": 0.3}, "float16", "float16: differs by 0 from float32"),
        ({"bfloat16": "overflow"}, "float16", "float16: differs by 0"),
        ({"bfloat16": 0.3, "float16": "overflow"}, "float32", "float32: bfloat16 differs by 0.3 from float32, allowed 0.1; float16"),
        ({"bfloat16": 0.3, "float16": "refused"}, "float32", "rounded overflows; --dtype float16; use another"),
        ({"bfloat16": "refused"}, "float16", "float16: differs by 0"),
        ({"bfloat16": "refused", "float16": "refused"}, "float32", "float32: 16 bit was refused"),
        ({"float32": "memory"}, "bfloat16", "bfloat16: finite, and not compared with float32 (out of memory with one sample"),
    ],
)  # fmt: skip
def test_16_bit_is_taken_where_it_is_finite_and_close_to_float32(
    faults: dict[str, Any], dtype: str, says: str, tmp_path: Path
) -> None:
    made: list[str] = []

    def make(name: str) -> Any:
        made.append(name)
        return Rounded(name, faults)

    task: Any = SimpleNamespace(splits={"train": Train(SAMPLES)})
    first, left = first_taken(HALF, make)
    chosen = choose_dtype(first, left, make, task, tmp_path)
    assert chosen.dtype == dtype
    assert chosen.backbone.dtype == dtype  # type: ignore[attr-defined]
    assert says in chosen.found
    made.clear()
    first, left = first_taken(HALF, make)
    again = choose_dtype(first, left, make, task, tmp_path)
    assert (again.dtype, again.found) == (dtype, chosen.found)
    assert "float32" not in made or dtype == "float32"  # a kept verdict loads nothing to compare with


def test_what_is_wrong_in_every_dtype_is_said_at_once() -> None:
    made: list[str] = []

    def make(name: str) -> Any:
        made.append(name)
        return Rounded(name, dict.fromkeys(HALF, "absent"))

    with pytest.raises(HarnessError, match="no weights of rounded"):
        first_taken(HALF, make)
    assert made == ["bfloat16"]


def test_a_damaged_verdict_is_made_again(tmp_path: Path) -> None:
    task: Any = SimpleNamespace(splits={"train": Train(SAMPLES)})
    choose_dtype(Rounded("bfloat16", {}), HALF, lambda dtype: Rounded(dtype, {}), task, tmp_path)
    (verdict,) = (tmp_path / "dtypes").iterdir()
    for damage in ("{", "[]", json.dumps({"dtype": "int8", "found": "x"})):
        verdict.write_text(damage)
        assert choose_dtype(Rounded("bfloat16", {}), HALF, lambda dtype: Rounded(dtype, {}), task, tmp_path).dtype == "bfloat16"


def test_a_run_takes_the_dtype_and_its_result_says_why(
    texts: str, make_spec: Spec, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.bench.pick_dtypes", lambda dtype, device: HALF)
    monkeypatch.setattr(precision, "CLOSE", 1.0)
    bench = prepare(make_spec(texts, "words", (MEAN,)), registry)
    assert bench.dtype == "bfloat16"
    (result,) = pipeline.run(replace(bench.spec, guards="off"), registry, quiet)
    assert result.provenance["dtype"] == "bfloat16"
    assert result.notes["dtype"].startswith("bfloat16: differs by 0 from float32")
