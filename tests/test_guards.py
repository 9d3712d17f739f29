"""Planted faults of a backbone stop the run with the sample and the layer; what is right passes; a leak of labels is found."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import ragged_world
from conftest import quiet
from pycocotools import mask as coco_mask

from harness import guards, pipeline
from harness.errors import HarnessError
from harness.registry import Registry
from harness.types import Method, Result, RunSpec

Spec = Callable[..., RunSpec]
SUMMARY = Method("summary", concepts="mean", detector="max", fit_on="summary")
LONG = "one two three four five six seven"


@pytest.fixture
def texts(give: Callable[..., str], tmp_path: Path) -> str:
    """A text task of sentences of different length, half of them glad."""

    def rows(split: str) -> list[dict[str, Any]]:
        made = []
        for i in range(6):
            text = f"{split} {i} " + ("glad " if i % 2 else "") + " ".join(LONG.split()[: i + 1])
            at = text.find("glad")
            regions = [{"concept": "joy", "start": at, "end": at + 4}] if i % 2 else []
            made.append({"id": f"{split}{i}", "text": text, "concepts": ["joy"] if i % 2 else [], "regions": regions})
        return made

    key = give("text", **{split: rows(split) for split in ("train", "cal", "test")})
    path = tmp_path / "texts.yaml"
    path.write_text(f"task: texts\nmodality: text\ndataset: {{name: given, key: {key}}}\nbackbone: words\n")
    return str(path)


@pytest.fixture
def images(give: Callable[..., str], tmp_path: Path) -> str:
    """An image task of wide pictures, half of them with a red square at the left edge: a centre crop loses it."""

    def picture(i: int, red: bool) -> tuple[bytes, np.ndarray[Any, Any]]:
        pixels = np.random.default_rng(i).integers(0, 60, (16, 64, 3), dtype=np.uint8)
        mask = np.zeros((16, 64), bool)
        if red:
            mask[4:12, :16] = True
            pixels[mask] = (250, 10, 10)
        sink = io.BytesIO()
        PIL.Image.fromarray(pixels).save(sink, "PNG")
        return sink.getvalue(), mask

    def rows(split: str, first: int) -> list[dict[str, Any]]:
        made = []
        for i in range(6):
            data, mask = picture(first + i, bool(i % 2))
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            region = {"concept": "red", "rle": {"size": list(rle["size"]), "counts": rle["counts"].decode()}}
            row = {
                "image": {"bytes": data, "path": None},
                "concepts": ["red"] if i % 2 else [],
                "regions": [region] if i % 2 else [],
            }
            made.append({"id": f"{split}{i}", **row})
        return made

    key = give("image", train=rows("train", 0), cal=rows("cal", 10), test=rows("test", 20))
    path = tmp_path / "images.yaml"
    path.write_text(f"task: images\nmodality: image\ndataset: {{name: given, key: {key}}}\nbackbone: pixels\n")
    return str(path)


def failure(spec: RunSpec, registry: Registry) -> str:
    with pytest.raises(HarnessError) as caught:
        pipeline.run(spec, registry, quiet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_right_text_backbone_passes_and_the_result_says_by_how_much(texts: str, make_spec: Spec, registry: Registry) -> None:
    (result,) = pipeline.run(make_spec(texts, "words", (SUMMARY,)), registry, quiet)
    assert result.notes["guards"]["batch"].startswith("passed: largest relative difference")
    assert "2 samples and 3 sites" in result.notes["guards"]["batch"]
    assert result.notes["guards"]["view"] == "skipped: not images"


def test_a_right_image_backbone_passes_and_finds_its_red_square(images: str, make_spec: Spec, registry: Registry) -> None:
    method = Method("superactivator", concepts="mean", detector="superactivator", localizer="direct")
    (result,) = pipeline.run(make_spec(images, "pixels", (method,)), registry, quiet)
    assert result.notes["guards"]["view"].startswith("passed: ")
    for metric, least in (("f1", 1.0), ("token_f1", 0.9)):
        row = result.score(metric)
        assert row is not None
        assert row.value is not None
        assert row.value >= least


@pytest.mark.parametrize("fault", ["leak", "padding"])
def test_padding_that_leaks_into_tokens_is_stopped_by_sample_and_layer(
    fault: str, texts: str, make_spec: Spec, registry: Registry
) -> None:
    message = failure(make_spec(texts, f"words:fault={fault}", (SUMMARY,)), registry)
    assert message.startswith("guard 'batch' failed: sample 'train0' ")  # the shortest: the one that is padded
    assert "backbone words" in message
    if fault == "leak":
        assert "at layer 2 differs by" in message or "at layer 1 differs by" in message
    else:
        assert "tokens alone and" in message


def test_the_batch_guard_names_the_first_layer_that_is_beyond_tolerance_when_it_is_asked_for_alone(
    texts: str, make_spec: Spec, registry: Registry
) -> None:
    """Layer 0 of the leaking backbone takes nothing from its context: it alone passes, layer 1 alone fails."""
    pipeline.run(make_spec(texts, "words:fault=leak", (SUMMARY,), layers="0"), registry, quiet)
    assert "at layer 1 differs" in failure(make_spec(texts, "words:fault=leak", (SUMMARY,), layers="1"), registry)


@pytest.mark.parametrize("fault", ["crop", "mirror"])
def test_pixels_that_do_not_lie_where_the_masks_are_are_stopped_by_sample(
    fault: str, images: str, make_spec: Spec, registry: Registry
) -> None:
    message = failure(make_spec(images, f"pixels:fault={fault}", (SUMMARY,)), registry)
    assert message.startswith("guard 'view' failed: the masks of sample 'train0' do not lie where backbone pixels sees")


def test_an_image_backbone_without_views_is_stopped(images: str, make_spec: Spec, registry: Registry) -> None:
    message = failure(make_spec(images, "pixels:fault=blind", (SUMMARY,)), registry)
    assert "guard 'view' failed: backbone pixels takes images but gives no views" in message


@pytest.mark.parametrize("who", ["cal3", "train0"])
def test_a_token_that_is_not_finite_is_stopped_by_sample_and_layer(
    who: str, texts: str, make_spec: Spec, registry: Registry
) -> None:
    bench = pipeline.prepare(make_spec(texts, "words", (SUMMARY,)), registry)
    split = bench.task.splits[who[:-1]]
    text = split.sample(split.ids.index(who)).text
    message = failure(make_spec(texts, f"words:fault=hole:who={text}", (SUMMARY,)), registry)
    assert message.startswith(f"non-finite token of sample '{who}' at layer 1; backbone words")


@pytest.mark.parametrize("fault", ["width", "sites"])
def test_another_width_or_number_of_sites_than_declared_is_stopped(
    fault: str, texts: str, make_spec: Spec, registry: Registry
) -> None:
    message = failure(make_spec(texts, f"words:fault={fault}", (SUMMARY,), guards="off"), registry)
    got = {"width": "3 sites of width 5", "sites": "2 sites of width 6"}[fault]
    assert message.startswith(f"backbone words gave {got}; it declares width 6 and 3 were asked for")


def test_a_wrong_width_names_the_sample_and_the_layer_like_every_guard(texts: str, make_spec: Spec, registry: Registry) -> None:
    message = failure(make_spec(texts, "words:fault=width", (SUMMARY,)), registry)
    assert "sample 'train" in message, message
    assert "layer" in message, message


def test_guards_that_are_off_say_so_and_stop_nothing(texts: str, make_spec: Spec, registry: Registry) -> None:
    (result,) = pipeline.run(make_spec(texts, "words:fault=leak", (SUMMARY,), guards="off"), registry, quiet)
    assert result.notes["guards"] == dict.fromkeys(guards.GUARDS, "off")


def test_stored_embeddings_skip_what_needs_raw_inputs_and_say_so(run_toy: Callable[..., list[Result]]) -> None:
    (result,) = run_toy("superactivator")
    assert result.notes["guards"] == dict.fromkeys(guards.GUARDS, "skipped: stored embeddings")


def test_a_failed_guard_leaves_no_verdict_that_a_second_run_would_trust(
    texts: str, make_spec: Spec, registry: Registry
) -> None:
    spec = make_spec(texts, "words:fault=leak", (SUMMARY,))
    assert failure(spec, registry) == failure(spec, registry)


def test_a_run_with_guards_off_does_not_spare_the_next_run_its_guards(texts: str, make_spec: Spec, registry: Registry) -> None:
    pipeline.run(make_spec(texts, "words:fault=leak", (SUMMARY,), guards="off"), registry, quiet)
    assert "guard 'batch' failed" in failure(make_spec(texts, "words:fault=leak", (SUMMARY,)), registry)


def test_a_verdict_on_some_layers_does_not_speak_for_others(texts: str, make_spec: Spec, registry: Registry) -> None:
    """Layer 0 passes; layer 1, embedded with guards off, was never checked."""
    pipeline.run(make_spec(texts, "words:fault=leak", (SUMMARY,), layers="0"), registry, quiet)
    pipeline.run(make_spec(texts, "words:fault=leak", (SUMMARY,), layers="1", guards="off"), registry, quiet)
    assert "guard 'batch' failed" in failure(make_spec(texts, "words:fault=leak", (SUMMARY,), layers="1"), registry)


# --- shuffled labels


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_fall_to_chance_on_the_toy_task(seed: int, make_spec: Spec, registry: Registry) -> None:
    methods = (registry.methods()["superactivator"], registry.methods()["summary"])
    (result, _) = pipeline.run(make_spec(methods=methods, guards="full", seed=seed, layers="last"), registry, quiet)
    assert result.notes["guards"]["shuffled"].startswith("passed: mean AUROC 0.")


def test_shuffled_labels_fall_to_chance_on_ragged_samples(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    method = registry.methods()["max"]
    spec = make_spec(ragged_world.write_task(tmp_path), "ragged", (method,), guards="full")
    (result,) = pipeline.run(spec, registry, quiet)
    assert result.notes["guards"]["shuffled"].startswith("passed: mean AUROC 0.")


def test_the_shuffled_run_changes_no_number_of_the_run_it_guards(run_ragged: Callable[..., list[Result]]) -> None:
    (full,), (cheap,) = run_ragged("superactivator", guards="full"), run_ragged("superactivator")
    assert full.scores == cheap.scores
    assert full.choices == cheap.choices


def test_a_detector_that_reaches_the_test_labels_is_stopped(make_spec: Spec, registry: Registry) -> None:
    method = Method("peek", concepts="linear", detector="peek")
    pipeline.run(make_spec(methods=(method,), layers="last"), registry, quiet)
    message = failure(make_spec(methods=(method,), guards="full", layers="last"), registry)
    assert message.startswith("guard 'shuffled' failed: with permuted labels the mean AUROC is 1.000, allowed 0.5 ± ")


@pytest.mark.parametrize("names", [("max", "peek"), ("peek", "max")])
def test_every_method_of_a_run_is_guarded_not_the_first_alone(
    names: tuple[str, str], make_spec: Spec, registry: Registry
) -> None:
    methods = tuple(Method(name, concepts="linear", detector=name) for name in names)
    assert "guard 'shuffled' failed" in failure(make_spec(methods=methods, guards="full", layers="last"), registry)


def test_the_bound_on_shuffled_auroc_holds_for_noise_and_not_for_knowledge() -> None:
    g = np.random.default_rng(0)
    labels = g.random((100, 4)) < 0.3
    for _ in range(50):
        assert guards.check_shuffled(g.standard_normal(labels.shape), labels, "mine").startswith("passed")
    for known in (labels.astype(float), -labels.astype(float)):
        with pytest.raises(HarnessError, match="guard 'shuffled' failed"):
            guards.check_shuffled(known + g.standard_normal(labels.shape) * 0.5, labels, "knowledge")


def test_the_shuffled_guard_copes_with_samples_without_tokens_and_concepts_of_one_class() -> None:
    labels = np.array([[True, True], [False, True], [True, True], [False, True]])
    scores = np.array([[-np.inf, 0.0], [1.0, 0.0], [2.0, 0.0], [-np.inf, 0.0]])
    assert guards.check_shuffled(scores, labels, "mine").startswith("passed")
    assert guards.check_shuffled(scores, np.ones_like(labels), "mine") == "skipped: no concept has both positives and negatives"
