"""Faults planted in backbones, and which guard catches each: the table in docs/models.md is this list."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import quiet
from small_backbones import Pixels, Words

from harness import guards, pipeline
from harness.errors import HarnessError
from harness.registry import Registry
from harness.testing import check_backbone
from harness.types import Embedded, Inputs, Method, RunSpec, Sample, Setup, Site

SUMMARY = Method("summary", concepts="mean", detector="max", fit_on="summary")
TEXT = {
    "padding": ("padding counted as tokens", "batch"),
    "leak": ("padding read by tokens", "batch"),
    "stale": ("state of an earlier batch", "batch"),
    "alike": ("one tensor captured for every layer", "layers"),
    "labels": ("labels shifted by a token: each token with its neighbour's region", "regions"),
    "drop": ("start token taken off a text that has none: a content token dropped", "regions"),
    "special": ("special token counted as content", "regions"),
    "shift": ("values shifted by a token", "place"),
}
IMAGE = {
    "crop": ("pixels cropped, masks not", "view"),
    "mirror": ("pixels mirrored, masks not", "view"),
    "turn": ("pixels or masks transposed", "view"),
    "blind": ("no view for the masks", "view"),
    "gap": ("a patch dropped", "regions"),
    "columns": ("patches column by column", "place"),
    "boxes": ("boxes with left before top", "place"),
    "class": ("class token counted as the first patch", "place"),
}
CONTRACT = {
    "off by one": ("layers off by one", "check_backbone(own=...)"),
    "normed": ("the final norm on every layer", "check_backbone(own=...)"),
}
NOT_CAUGHT = "special tokens that the model expects and never gets"


def failure(spec: RunSpec, registry: Registry) -> str:
    with pytest.raises(HarnessError) as caught:
        pipeline.run(spec, registry, quiet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def texts(give: Callable[..., str], tmp_path: Path) -> str:
    def rows(split: str) -> list[dict[str, Any]]:
        return [
            {"id": f"{split}{i}", "text": f"{split} {i} " + "word " * i, "concepts": ["odd"] * (i % 2), "regions": None}
            for i in range(6)
        ]

    key = give("text", **{split: rows(split) for split in ("train", "cal", "test")})
    path = tmp_path / "texts.yaml"
    path.write_text(f"task: texts\nmodality: text\ndataset: {{name: given, key: {key}}}\nbackbone: words\n")
    return str(path)


@pytest.fixture
def images(give: Callable[..., str], tmp_path: Path) -> str:
    def picture(i: int) -> dict[str, Any]:
        sink = io.BytesIO()
        PIL.Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 40, 3), dtype=np.uint8)).save(sink, "PNG")
        return {"bytes": sink.getvalue(), "path": None}

    def rows(split: str, first: int) -> list[dict[str, Any]]:
        return [
            {"id": f"{split}{i}", "image": picture(first + i), "concepts": ["odd"] * (i % 2), "regions": None} for i in range(4)
        ]

    key = give("image", train=rows("train", 0), cal=rows("cal", 10), test=rows("test", 20))
    path = tmp_path / "images.yaml"
    path.write_text(f"task: images\nmodality: image\ndataset: {{name: given, key: {key}}}\nbackbone: pixels\n")
    return str(path)


@pytest.mark.parametrize("fault", TEXT)
def test_a_fault_of_a_text_backbone_is_stopped_by_its_guard(
    fault: str, texts: str, make_spec: Callable[..., RunSpec], registry: Registry
) -> None:
    message = failure(make_spec(texts, f"words:fault={fault}", (SUMMARY,)), registry)
    assert message.startswith(f"guard '{TEXT[fault][1]}' failed: ")
    assert "backbone words" in message


@pytest.mark.parametrize("fault", IMAGE)
def test_a_fault_of_an_image_backbone_is_stopped_by_its_guard(
    fault: str, images: str, make_spec: Callable[..., RunSpec], registry: Registry
) -> None:
    message = failure(make_spec(images, f"pixels:fault={fault}", (SUMMARY,)), registry)
    assert message.startswith(f"guard '{IMAGE[fault][1]}' failed: ")
    assert "backbone pixels" in message


@pytest.mark.parametrize("fault", [f for f in TEXT if f not in ("drop",)])
def test_the_contract_check_finds_the_faults_of_a_text_backbone_too(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_backbone(Words(Setup(), fault=fault), SAMPLES)


@pytest.mark.parametrize("fault", [f for f in IMAGE if f not in ("crop", "mirror", "turn")])
def test_the_contract_check_finds_the_faults_of_an_image_backbone_that_are_not_in_its_pixels(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_backbone(Pixels(Setup(), fault=fault), PICTURES)


SAMPLES = [Sample(str(i), text=text) for i, text in enumerate(("one two three", "four", "five six seven eight nine"))]
PICTURES = [
    Sample(str(i), image=PIL.Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 30 + i, 3), dtype=np.uint8)))
    for i in range(2)
]


def test_what_is_right_passes_every_check() -> None:
    check_backbone(Words(Setup()), SAMPLES)
    check_backbone(Pixels(Setup()), PICTURES)


class Blocks(Words):
    """`Words` with a final norm, and layers that are asked for one too late or normed."""

    layers = range(3)  # type: ignore[assignment]

    def __init__(self, fault: str = "") -> None:
        super().__init__(Setup())
        self.wrong = fault

    def forward(self, inputs: Inputs, sites: Any) -> Embedded:
        shift = 1 if self.wrong == "off by one" else 0
        done = super().forward(inputs, [Site(site.layer + shift, site.stream) for site in sites])
        if self.wrong == "normed":
            return Embedded(torch.nn.functional.layer_norm(done.values, (6,)), *list(vars(done).values())[1:])
        return done

    def own(self, inputs: Inputs) -> Mapping[int, torch.Tensor]:
        """As the library that it is made of gives its layers."""
        plain = Words(Setup())
        states = torch.zeros(3, *inputs.positions.shape, 6)
        states[:, inputs.positions] = plain.forward(inputs, [Site(i) for i in range(3)]).values
        return dict(enumerate(states))


@pytest.mark.parametrize("fault", CONTRACT)
def test_layers_off_by_one_or_normed_are_found_by_the_librarys_own_states_and_by_nothing_else(fault: str) -> None:
    check_backbone(Blocks(), SAMPLES, own=Blocks().own)
    check_backbone(Blocks(fault), SAMPLES)
    with pytest.raises(AssertionError, match=r"Blocks.forward: layer 0 is not the output of block 0 as the library gives it"):
        check_backbone(Blocks(fault), SAMPLES, own=Blocks(fault).own)


def test_a_text_that_is_cut_is_no_hole() -> None:
    class Cut(Words):
        def inputs(self, samples: Any) -> Inputs:
            return super().inputs([Sample(s.id, text=" ".join((s.text or "").split()[:3])) for s in samples])

    assert guards.check_regions(Cut(Setup()), None) == "passed: 3 tokens cover a sentence of 6 words"
    assert guards.check_place(Cut(Setup()), None).startswith("passed: in 3 of 3 changes")


def test_the_documents_list_every_fault_with_its_guard() -> None:
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"(?m)^\| ([^|]+?) \| ([^|]+?) \|$", text))
    for what, guard in [*TEXT.values(), *IMAGE.values(), *CONTRACT.values(), (NOT_CAUGHT, "nothing")]:
        assert rows.get(what, "").strip("`").startswith(guard), what
