"""Towers of models with several (Llama-3.2-Vision, LLaVA, Qwen2.5-VL, CLIP) and the paper's named models, on tiny random models. Offline."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as tf
from harness_hf.load import load
from safetensors.torch import load_file, save_file
from test_hf import DINO, GQA, LAYERS, TEXTS, VIT, embed, every_site, reference, sample, save, save_tokenizer

from harness.api import STREAMS, HarnessError, Sample, Setup, Site
from harness.registry import Registry
from harness.testing import check_backbone

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA_TEXT = {**GQA, "num_hidden_layers": 5, "rope_parameters": ROPE, "cross_attention_layers": [1, 3]}
LLAMA_TEXT |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
LLAMA_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_global_layers": 2,
    "attention_heads": 4,
    "intermediate_size": 64,
}
LLAMA_VISION |= {"vision_output_dim": 96, "image_size": 32, "patch_size": 8, "intermediate_layers_indices": [0, 2]}
LLAVA = {"vision_config": {"model_type": "clip_vision_model", **VIT, "image_size": 32}, "image_token_index": 5}
QWEN_VISION = {"depth": LAYERS, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
QWEN_VISION |= {"fullatt_block_indexes": [2], "window_size": 56}
QWEN_TEXT = {**GQA, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}, "bos_token_id": 0, "eos_token_id": 0}

WHOLE = {
    "llama": lambda: tf.MllamaForConditionalGeneration(tf.MllamaConfig(vision_config=LLAMA_VISION, text_config=LLAMA_TEXT)),
    "llava": lambda: tf.LlavaForConditionalGeneration(tf.LlavaConfig(**LLAVA, text_config={"model_type": "llama", **GQA})),
    "qwen": lambda: tf.Qwen2_5_VLForConditionalGeneration(
        tf.Qwen2_5_VLConfig(vision_config=QWEN_VISION, text_config=QWEN_TEXT)
    ),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config={k: v for k, v in GQA.items() if k != "num_key_value_heads"} | {"bos_token_id": 0, "eos_token_id": 1},
            vision_config={**VIT, "image_size": 32},
            projection_dim=16,
        )
    ),
}
SIZE = {"llama": 32, "llava": 32, "clip": 32, "qwen": 112}
GRID = {"llama": 4, "llava": 4, "clip": 4, "qwen": 8}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wholes")
    made = {name: save(make(), root / name) for name, make in WHOLE.items()}
    for name in made:
        save_tokenizer("llama", root / name)
    return made


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-3.2-Vision whose tables hold nothing for tiles that an image does not have, as the published weights."""
    model = WHOLE["llama"]()
    folder = tmp_path_factory.mktemp("sparse")
    save(model, folder)
    vision = model.model.vision_model
    tables = (vision.pre_tile_positional_embedding.embedding, vision.gated_positional_embedding.tile_embedding)
    for table in (*tables, vision.post_tile_positional_embedding.embedding):
        with torch.no_grad():
            table.weight[1].reshape(4, -1)[1:] = 0
    model.save_pretrained(folder)
    return folder


def vision(wholes: dict[str, Path], name: str, **options: Any) -> Any:
    return load(Setup(image_size=SIZE[name] if name == "qwen" else None), str(wholes[name]), **options)


def block_sites(backbone: Any) -> list[Site]:
    return [Site(layer, stream) for layer in range(backbone.n_layers) for stream in STREAMS]


def tiles(backbone: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model's own processor makes of images of one tile."""
    batch = len(pixels)
    four = torch.cat([pixels[:, None], torch.zeros(batch, 3, *pixels.shape[1:])], 1)[:, None]
    mask = torch.tensor([[[1, 0, 0, 0]]]).expand(batch, -1, -1)
    return {"pixel_values": four, "aspect_ratio_ids": torch.ones(batch, 1, dtype=torch.long), "aspect_ratio_mask": mask}


# ------------------------------------------------------------------------------------------------ Llama-3.2-Vision, images


@pytest.mark.parametrize("which", ["full", "shared"])
def test_llama_vision_gives_the_models_own_states_of_the_first_tile_in_both_stacks(wholes, sparse, which):
    folder = wholes["llama"] if which == "full" else sparse
    backbone = load(Setup(), str(folder))
    assert backbone.shared == (which == "shared")
    assert (backbone.n_layers, backbone.width, backbone.layers) == (5, 32, [0, 1, 2, 3, 4])
    assert (backbone.n_special, backbone.n_positions, backbone.geometry) == (1, (4 if which == "full" else 2) * 24, "pad")
    samples = [sample(i, 40, 40) for i in range(2)]
    got = embed(backbone, samples, block_sites(backbone))
    model = tf.MllamaForConditionalGeneration.from_pretrained(folder).eval().model.vision_model
    blocks = [*model.transformer.layers, *model.global_transformer.layers]
    seen: dict[int, torch.Tensor] = {}
    for i, block in enumerate(blocks):
        for j, part in enumerate((block, block.self_attn, block.mlp)):
            part.register_forward_hook(
                lambda _, __, out, at=3 * i + j: seen.update({at: out[0] if isinstance(out, tuple) else out})
            )
    with torch.no_grad():
        own = model(**tiles(backbone, backbone.inputs(samples).tensors["pixel_values"])).last_hidden_state[:, 0, 0]
    for at in range(15):
        assert torch.allclose(got.values[at], seen[at][:, 1:17].flatten(0, 1), atol=5e-5), at
        assert torch.allclose(got.summary[at], seen[at][:, 0], atol=5e-5), at
    last, first, third = own[..., :32], *own[..., 32:].unflatten(-1, (32, 2)).unbind(-1)
    for at, states in ((12, last), (0, first), (6, third)):  # what the model itself puts out
        assert torch.allclose(got.values[at], states[:, 1:].flatten(0, 1), atol=5e-5), at


@pytest.mark.parametrize("which", ["full", "shared"])
def test_the_streams_of_a_global_block_are_gated_and_those_of_a_local_one_are_not(wholes, sparse, which):
    backbone = load(Setup(), str(wholes["llama"] if which == "full" else sparse))
    for layer in (1, 4):
        sites = [Site(layer - 1), Site(layer), Site(layer, "attention"), Site(layer, "mlp")]
        before, after, attention, mlp = embed(backbone, [sample(0, 32, 32)], sites).values
        block = backbone.frozen.blocks[layer]
        if layer == 4:
            attention, mlp = block.gate_attn.tanh() * attention, block.gate_ffn.tanh() * mlp
        assert torch.allclose(before + attention + mlp, after, atol=1e-4)


def test_llama_vision_resizes_the_longest_edge_and_pads_right_and_below_as_the_paper(wholes):
    backbone = load(Setup(), str(wholes["llama"]))
    wide, tall = sample(0, 20, 64), sample(1, 64, 17)
    inputs = backbone.inputs([wide, tall])
    assert [(view.height, view.width) for view in inputs.views] == [(10, 32), (32, 8)]
    assert inputs.positions.sum(1).tolist() == [8, 4]  # patches wholly in the padding are no tokens
    assert not inputs.positions[:, 17:].any()  # nor is anything of the empty tiles
    black = (torch.zeros(3) - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    assert torch.allclose(inputs.tensors["pixel_values"][0, :, 31, 31], black)


def test_an_image_size_of_the_task_is_not_forced_on_a_model_of_one_size_and_one_asked_for_is_refused(wholes):
    assert load(Setup(image_size=336, size_asked=False), str(wholes["llama"])).image_size == 32
    assert load(Setup(image_size=32), str(wholes["llama"])).image_size == 32
    with pytest.raises(
        HarnessError, match="image size 336 is not one of llama, whose tiles have 32 px; leave --image-size out"
    ):
        load(Setup(image_size=336), str(wholes["llama"]))


def test_llama_vision_in_16_bit_shares_its_empty_tiles_to_the_same_numbers(sparse):
    backbone = load(Setup(dtype="bfloat16"), str(sparse))
    samples = [sample(0, 32, 32)]
    shared = embed(backbone, samples, block_sites(backbone)).values
    backbone.shared = False
    backbone.n_special, backbone.n_positions = backbone._measure()
    full = embed(backbone, samples, block_sites(backbone)).values
    assert float((shared - full).norm() / full.norm()) < 0.02


def test_hooks_leave_llama_vision_also_where_tiles_are_shared(sparse):
    backbone = load(Setup(), str(sparse))
    embed(backbone, [sample(0, 32, 32)], [Site(0)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.frozen.model.modules())


# ------------------------------------------------------------------------------------------------------------ any tower


@pytest.mark.parametrize("name", ["llama", "llava", "qwen", "clip"])
def test_a_vision_tower_keeps_the_contract_of_a_backbone(wholes, name):
    backbone = vision(wholes, name)
    check_backbone(backbone, [sample(i, 40, 30 + 12 * i) for i in range(3)])
    got = embed(backbone, [sample(0, 40, 40)], block_sites(backbone))
    assert got.values.shape == (3 * backbone.n_layers, GRID[name] ** 2, 32)


@pytest.mark.parametrize("name", ["llama", "llava", "qwen"])
def test_gradients_reach_the_pixels_of_a_tower(wholes, sparse, name):
    backbone = vision(wholes, name) if name != "llama" else load(Setup(), str(sparse))
    opened = backbone.opened(backbone.inputs([sample(0, 40, 40)]))
    pixels = opened.inputs.tensors["pixel_values"].requires_grad_()
    backbone.forward(opened.inputs, [Site(backbone.n_layers - 1)]).values.sum().backward()
    assert pixels.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["llama", "sparse", "llava", "qwen"])
def test_a_bright_patch_changes_only_the_token_whose_region_holds_it(wholes, sparse, tmp_path, name):
    model = tf.AutoModelForImageTextToText.from_pretrained(sparse if name == "sparse" else wholes[name])
    for part, module in model.named_modules():
        if "vision" in part or "visual" in part:
            for output in ("self_attn.out_proj", "self_attn.o_proj", "attn.proj"):
                if part.endswith(output):  # no token sees another
                    torch.nn.init.zeros_(module.weight)
                    if module.bias is not None:
                        torch.nn.init.zeros_(module.bias)
    model.save_pretrained(tmp_path)
    backbone = load(Setup(image_size=112 if name == "qwen" else None), str(tmp_path))
    side, grid = backbone.image_size, backbone.grid
    cell = side // grid
    dark = np.zeros((side, side, 3), np.uint8)
    for row, column in [(0, 0), (0, 3), (2, 1), (grid - 1, grid - 1), (1, grid - 2)]:
        lit = dark.copy()
        lit[cell * row : cell * (row + 1), cell * column : cell * (column + 1)] = 255
        pair = [Sample("dark", image=PIL.Image.fromarray(dark)), Sample("lit", image=PIL.Image.fromarray(lit))]
        got = embed(backbone, pair, [Site(layer) for layer in range(backbone.n_layers)])
        tokens = grid * grid
        change = (got.values[:, :tokens] - got.values[:, tokens:]).abs().amax(-1)
        expected = torch.zeros(tokens, dtype=torch.bool)
        expected[grid * row + column] = True
        assert torch.equal(change > 1e-3, expected.expand_as(change)), (row, column)
        box = [cell * row, cell * column, cell * (row + 1), cell * (column + 1)]
        assert got.regions[tokens + grid * row + column].tolist() == box


def renamed(folder: Path, out: Path, pairs: list[tuple[str, str]]) -> Path:
    """The same checkpoint, its weights named as another version of transformers has them."""
    shutil.copytree(folder, out)
    stored = load_file(out / "model.safetensors")
    for old, new in pairs:
        stored = {re.sub(old, new, name): tensor.clone() for name, tensor in stored.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out


LAYOUTS = {
    "with the tower's own prefix": [("^vision_tower\\.", "vision_tower.vision_model.")],
    "below model": [("^vision_tower\\.", "model.vision_tower."), ("^language_model\\.model\\.", "model.language_model.")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_llava_towers_are_found_however_the_checkpoint_names_them(wholes, tmp_path, layout, tower):
    folder = renamed(wholes["llava"], tmp_path / "llava", LAYOUTS[layout])
    backbone, own = (load(Setup(), str(f), tower=tower) for f in (folder, wholes["llava"]))
    samples = [sample(0, 40, 40)] if tower == "vision" else [Sample("0", text=TEXTS[0])]
    assert torch.equal(embed(backbone, samples).values, embed(own, samples).values)


def test_the_towers_of_llava_are_those_of_the_whole_model(wholes):
    model = tf.LlavaForConditionalGeneration.from_pretrained(wholes["llava"]).eval().model
    seeing, reading = (load(Setup(), str(wholes["llava"]), tower=tower) for tower in (None, "text"))
    assert (seeing.identity["class"], reading.identity["class"]) == ("CLIPVisionModel", "LlamaModel")
    for mine, whole in ((seeing.frozen.model, model.vision_tower), (reading.frozen.model, model.language_model)):
        own = whole.state_dict()
        assert set(own) == set(mine.state_dict())
        assert all(torch.equal(own[name], tensor) for name, tensor in mine.state_dict().items())


def test_a_clip_tower_without_its_text_tower_is_no_clip_to_zero_shot(wholes):
    from harness_hf.zero_shot import _shared

    with pytest.raises(HarnessError, match=r"no text tower of a CLIP in .* \(it lacks "):
        _shared(wholes["llava"], ["a cube"], torch.device("cpu"))


def test_qwen_vision_lays_out_patches_as_its_processor_and_its_merger_reads_them(wholes):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    backbone = vision(wholes, "qwen")
    processor = Qwen2VLImageProcessorPil(image_mean=list(backbone.mean), image_std=list(backbone.std), do_resize=False)
    one = sample(3, 112, 112)
    made = processor(one.image)
    pixels = backbone.inputs([one]).tensors["pixel_values"]
    assert made["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert torch.allclose(backbone._flat(pixels), torch.as_tensor(np.asarray(made["pixel_values"])), atol=1e-5)
    model = tf.Qwen2_5_VLForConditionalGeneration.from_pretrained(wholes["qwen"]).eval().model.visual
    with torch.no_grad():
        own = model(torch.as_tensor(np.asarray(made["pixel_values"])), grid_thw=torch.tensor([[1, 8, 8]])).pooler_output
        tokens = embed(backbone, [one], [Site(LAYERS - 1)]).values[0]
        merged = tokens.reshape(4, 2, 4, 2, 32).transpose(1, 2).reshape(64, 32)  # 2 x 2 patches side by side, row by row
        assert torch.allclose(model.merger(merged), own, atol=1e-4)


def test_qwen_vision_names_the_nearest_sizes(wholes):
    with pytest.raises(HarnessError, match=r"image size 100 is not a multiple of the 28 px .* the nearest are 84 and 112"):
        load(Setup(image_size=100), str(wholes["qwen"]))


# ------------------------------------------------------------------------------------------------------------ text towers


@pytest.mark.parametrize("name", ["llava", "qwen", "clip"])
def test_a_text_tower_in_a_padded_batch_equals_each_text_alone(wholes, name):
    backbone = load(Setup(), str(wholes[name]), tower="text")
    assert backbone.modality == "text"
    check_backbone(backbone, [Sample(str(i), text=text) for i, text in enumerate(TEXTS)])


@pytest.mark.parametrize("side", ["left", "right"])
def test_llama_text_is_the_language_tower_without_its_cross_attention_blocks(wholes, tmp_path, side):
    shutil.copytree(wholes["llama"], tmp_path / "llama")
    save_tokenizer("llama", tmp_path / "llama", side=side)
    backbone = load(Setup(), str(tmp_path / "llama"), tower="text")
    assert (backbone.n_layers, backbone.layers) == (5, [0, 2, 4, 5])
    sites = [Site(layer) for layer in backbone.layers]
    got = embed(backbone, [Sample(str(i), text=text) for i, text in enumerate(TEXTS)], sites)
    model = tf.MllamaForConditionalGeneration.from_pretrained(wholes["llama"]).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(wholes["llama"])
    seen: dict[int, torch.Tensor] = {}
    for i, block in enumerate(model.model.language_model.layers):
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out[0] if isinstance(out, tuple) else out}))
    for i, text in enumerate(TEXTS):
        rows = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        if not text:
            continue
        with torch.no_grad():
            own = model.model(input_ids=tokenizer(text, return_tensors="pt").input_ids).last_hidden_state
        assert sorted(seen) == [0, 2, 4]
        for at, states in enumerate([seen[0], seen[2], seen[4], own]):
            states = states.reshape(1, -1, 32)
            assert torch.allclose(got.values[at, rows], states[0, 1:], atol=5e-5)  # the start token is no content


def test_a_skipped_block_is_refused_by_name_and_is_no_layer(wholes):
    backbone = load(Setup(), str(wholes["llama"]), tower="text")
    assert backbone.layers == [0, 2, 4, 5]
    with pytest.raises(HarnessError, match=r"llama has no site 3; its layers are 0\.\.4.*, without 1, 3, which need an image"):
        backbone.forward(backbone.inputs([Sample("0", text="a")]), [Site(3)])


def test_a_tower_that_is_not_there_is_refused(wholes, tmp_path):
    save(tf.ViTModel(tf.ViTConfig(**VIT, image_size=32)), tmp_path / "vit")
    with pytest.raises(HarnessError, match=r"vit \(vit\) has no text tower; it reads image; leave tower out"):
        load(Setup(), str(tmp_path / "vit"), tower="text")
    with pytest.raises(HarnessError, match=r"unknown tower 'txt' in llava; did you mean text\?"):
        load(Setup(), str(wholes["llava"]), tower="txt")
    assert load(Setup(), str(tmp_path / "vit"), tower="vision").modality == "image"


# ----------------------------------------------------------------------------------------------------------- by its name

NAMED = {
    "gemma-2-9b": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**GQA, attn_logit_softcapping=0.05, sliding_window=4)),
    "qwen3-embedding-4b": lambda: tf.Qwen3Model(tf.Qwen3Config(**GQA)),
    "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(text_config=GQA, vision_config={**VIT, "image_size": 32})),
    "dinov2-b": lambda: tf.Dinov2Model(tf.Dinov2Config(**DINO)),
    "dinov2-l": lambda: tf.Dinov2Model(tf.Dinov2Config(**DINO)),
    "clip-vit-l14": WHOLE["clip"],
    "llama-3.2-11b-text": WHOLE["llama"],
    "llama-3.2-11b-vision": WHOLE["llama"],
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_read_from_a_folder_and_keeps_its_name(registry: Registry, tmp_path, name):
    save(NAMED[name](), tmp_path / "m")
    save_tokenizer("qwen3" if name.startswith("qwen") else "llama", tmp_path / "m")
    backbone = registry.create("backbones", f"{name}:model={tmp_path / 'm'}", Setup())
    assert backbone.name == name
    text = backbone.modality == "text"
    assert text == (name in ("gemma-2-9b", "qwen3-embedding-4b", "llama-3.2-11b-text"))
    check_backbone(
        backbone, [Sample(str(i), text=t) for i, t in enumerate(TEXTS)] if text else [sample(i, 40, 50) for i in (0, 1)]
    )
    if text and not name.startswith("llama"):
        states, content, _ = reference(tmp_path / "m", TEXTS[0])
        got = embed(backbone, [Sample("0", text=TEXTS[0])], [Site(0), Site(LAYERS)])
        assert torch.allclose(got.values[0], states[0][content], atol=2e-5)
        assert torch.allclose(got.values[1], states[-1][content], atol=2e-5)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_without_network_names_its_official_id(registry: Registry, tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HarnessError, match=r"no weights of \S+/\S+: not in .*HF_HUB_OFFLINE is set"):
        registry.create("backbones", name, Setup())
    with pytest.raises(HarnessError, match=f"{name} takes no argument, got 'x'"):
        registry.create("backbones", f"{name}:x", Setup())


def test_gemma_is_never_run_in_float16(registry: Registry, tmp_path):
    save(NAMED["gemma-2-9b"](), tmp_path / "m")
    save_tokenizer("llama", tmp_path / "m")
    with pytest.raises(HarnessError, match="gemma-2-9b overflows in float16; --dtype float16; use bfloat16 or float32"):
        registry.create("backbones", f"gemma-2-9b:model={tmp_path / 'm'}", Setup(dtype="float16"))


# ----------------------------------------------------------------------------------------------------------- device maps


@pytest.mark.parametrize("name", ["llava", "qwen", "llama"])
@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_model_spread_by_accelerate_gives_the_same_values(wholes, name, tower, device_map):
    pytest.importorskip("accelerate")
    setup = Setup(image_size=SIZE[name] if tower == "vision" else None)
    spread, whole = (load(setup, str(wholes[name]), tower=tower, device_map=m) for m in (device_map, None))
    samples = [sample(0, 40, 40)] if tower == "vision" else [Sample("0", text=TEXTS[0])]
    sites = [Site(layer) for layer in whole.layers]
    assert str(spread.device) == "cpu"
    assert torch.allclose(embed(spread, samples, sites).values, embed(whole, samples, sites).values, atol=1e-5)


def test_device_map_without_accelerate_names_the_extra(wholes, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "accelerate" else found(name, *more))
    with pytest.raises(HarnessError, match=r"device_map of llava needs the package accelerate.*'concept-harness\[large\]'"):
        load(Setup(), str(wholes["llava"]), device_map="auto")


def test_weights_that_do_not_fit_the_device_are_answered_with_what_to_do(wholes, monkeypatch):
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tf.CLIPVisionModel, "from_pretrained", full)
    with pytest.raises(
        HarnessError, match=r"the weights of llava do not fit cpu in float32; use --dtype bfloat16.*device_map=auto"
    ):
        load(Setup(), str(wholes["llava"]))


def test_every_stream_of_every_tower_is_captured(wholes):
    for name, tower in (("llava", "text"), ("qwen", "text"), ("clip", "text")):
        backbone = load(Setup(), str(wholes[name]), tower=tower)
        got = embed(backbone, [Sample("0", text=TEXTS[0])], every_site(backbone.n_layers))
        assert got.values.shape[0] == 3 * backbone.n_layers + 1
