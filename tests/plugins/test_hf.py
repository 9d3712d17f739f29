"""The transformers backbones on tiny random models of the real classes, saved to and loaded from local folders. Offline."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as tf
from harness_hf.load import clip_vit_l14, load
from stub_server import address, listening
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from harness.api import HarnessError, Sample, Setup, Site

LAYERS = 3
VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "patch_size": 8}
DINO = {
    "hidden_size": 32,
    "mlp_ratio": 2,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 32,
}
LM = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
GQA = {**LM, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}

VISION = {
    "clip": lambda: tf.CLIPVisionModel(tf.CLIPVisionConfig(**VIT, image_size=32)),
    "siglip": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**VIT, image_size=32)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**DINO)),
    "registers": lambda: tf.Dinov2WithRegistersModel(tf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)),
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**VIT, image_size=32)),
    "deit": lambda: tf.DeiTModel(tf.DeiTConfig(**VIT, image_size=32)),
    "beit": lambda: tf.BeitModel(tf.BeitConfig(**VIT, image_size=32, use_relative_position_bias=True, use_mean_pooling=False)),
    "dinov3": lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**VIT, image_size=32, num_register_tokens=2)),
    "yolos": lambda: tf.YolosModel(tf.YolosConfig(**VIT, image_size=[32, 32], num_detection_tokens=5)),
}
SPECIAL = {"clip": 1, "siglip": 0, "dinov2": 1, "registers": 4, "vit": 1, "deit": 2, "beit": 1, "dinov3": 3, "yolos": 1}
NOT_PLAIN = {
    "mae": lambda: tf.ViTMAEModel(tf.ViTMAEConfig(**VIT, image_size=32)),  # hides random patches
    "siglip2": lambda: tf.Siglip2VisionModel(tf.Siglip2VisionConfig(**VIT, num_patches=16)),
    "swin": lambda: tf.SwinModel(
        tf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
    "pixtral": lambda: tf.PixtralVisionModel(tf.PixtralVisionConfig(**VIT, image_size=32)),  # one sequence for a whole batch
    "resnet": lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])),
}

TEXT = {
    "bert": lambda: tf.BertModel(tf.BertConfig(**LM, max_position_embeddings=64)),
    "mpnet": lambda: tf.MPNetModel(tf.MPNetConfig(**LM, max_position_embeddings=64)),
    "gpt2": lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=300, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64)),
    "llama": lambda: tf.LlamaModel(tf.LlamaConfig(**GQA)),
    "gemma2": lambda: tf.Gemma2Model(tf.Gemma2Config(**GQA, attn_logit_softcapping=0.05, sliding_window=4)),
    "qwen3": lambda: tf.Qwen3Model(tf.Qwen3Config(**GQA)),
}
TEXTS = ["the cat sat on the mat", "héllo  wörld!", "", "a", "one two three four five six seven eight nine ten 🙂 end"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny matrices spend their time waiting for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save(model: torch.nn.Module, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():  # away from the small default initialisation, so that every part matters
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def sample(i: int, height: int, width: int, mode: str = "RGB") -> Sample:
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(str(i), image=PIL.Image.fromarray(pixels).convert(mode))


def byte_tokenizer(template: str | None, names: list[str]) -> Tokenizer:
    """A byte-level BPE of 300 ids; `names` take the first ids; the template says what is added to a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "the mat the cat"], trainer)
    if template:
        pairs = [(name, tokenizer.token_to_id(name)) for name in names if name in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


def save_tokenizer(kind: str, folder: Path, side: str = "right") -> None:
    """gpt2: one token is start, end and padding, none added · llama, gemma2: start token of id 0 · bert, mpnet: both ends."""
    if kind == "gpt2":
        tokenizer, roles = (
            byte_tokenizer(None, ["<|end|>"]),
            {"bos_token": "<|end|>", "eos_token": "<|end|>", "pad_token": "<|end|>"},
        )
    elif kind in ("bert", "mpnet"):
        names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
        tokenizer = byte_tokenizer("[CLS] $A [SEP]", names)
        roles = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    elif kind == "qwen3":
        tokenizer, roles = byte_tokenizer("$A <end>", ["<pad>", "<end>"]), {"eos_token": "<end>", "pad_token": "<pad>"}
    else:
        tokenizer, roles = byte_tokenizer("<s> $A", ["<s>"]), {"bos_token": "<s>", "eos_token": "<s>"}
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **roles)
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: save(make(), root / name) for name, make in {**VISION, **TEXT}.items()}
    for kind in TEXT:
        save_tokenizer(kind, root / kind)
    return made


def every_site(n_layers: int) -> list[Site]:
    streams = [Site(layer, stream) for layer in range(n_layers) for stream in ("residual", "attention", "mlp")]
    return [*streams, Site(n_layers)]


def embed(backbone, samples, sites=None):
    with torch.no_grad():
        return backbone.forward(backbone.inputs(samples), sites or every_site(backbone.n_layers))


# ---------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("kind", VISION)
def test_image_values_equal_the_models_own_hidden_states(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    samples = [sample(i, 40, 50 + i) for i in range(3)]
    sites = [Site(i) for i in range(LAYERS + 1)]
    got = embed(backbone, samples, sites)
    model = tf.AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        own = model(pixel_values=backbone.inputs(samples).tensors["pixel_values"], output_hidden_states=True)
    assert (backbone.n_layers, backbone.width, backbone.n_special) == (LAYERS, 32, SPECIAL[kind])
    for layer in range(LAYERS - 1):
        patches = own.hidden_states[layer + 1][:, SPECIAL[kind] : SPECIAL[kind] + 16]
        assert torch.equal(got.values[layer], patches.flatten(0, 1))
        summary = own.hidden_states[layer + 1][:, 0] if SPECIAL[kind] else patches.mean(1)
        assert torch.allclose(got.summary[layer], summary, atol=1e-6)
    final = own.last_hidden_state if kind != "clip" else model.post_layernorm(own.last_hidden_state)
    assert torch.equal(got.values[LAYERS], final[:, SPECIAL[kind] : SPECIAL[kind] + 16].flatten(0, 1))
    assert torch.equal(got.offsets, torch.tensor([0, 16, 32, 48]))
    assert not torch.equal(got.values[LAYERS - 1], got.values[LAYERS])


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "dinov2", "gpt2", "llama", "qwen3"])
def test_the_streams_of_a_block_add_up_to_its_residual_output(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    samples = [sample(0, 32, 32)] if kind in VISION else [Sample("0", text=TEXTS[0])]
    sites = [Site(0), Site(1), Site(1, "attention"), Site(1, "mlp")]
    before, after, attention, mlp = embed(backbone, samples, sites).values
    block = backbone.frozen.blocks[1]
    if kind == "dinov2":
        attention, mlp = block.layer_scale1(attention), block.layer_scale2(mlp)
    assert torch.allclose(before + attention + mlp, after, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_the_streams_of_a_post_norm_block_are_taken_before_its_sums(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    sites = [Site(0), Site(1), Site(1, "attention"), Site(1, "mlp")]
    before, after, attention, mlp = embed(backbone, [Sample("0", text=TEXTS[0])], sites).values
    block = backbone.frozen.blocks[1]
    norm = block.attention.output.LayerNorm if kind == "bert" else block.attention.LayerNorm
    assert torch.allclose(block.output.LayerNorm(norm(before + attention) + mlp), after, atol=1e-5)


@pytest.mark.parametrize("kind", [*VISION, *TEXT])
def test_outputs_with_and_without_hooks_are_bit_identical_and_hooks_leave(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    samples = [sample(0, 40, 30)] if kind in VISION else [Sample("0", text=TEXTS[0])]
    tensors = backbone.inputs(samples).tensors
    with torch.no_grad():
        plain = backbone.frozen.model(**tensors).last_hidden_state
        embed(backbone, samples)
        with_hooks = backbone.frozen.states(tensors, every_site(LAYERS))
        again = backbone.frozen.model(**tensors).last_hidden_state
    assert torch.equal(plain, again)
    if kind != "clip":
        assert torch.equal(plain, with_hooks[-1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.frozen.model.modules())


@pytest.mark.parametrize("kind", [*VISION, *TEXT])
def test_a_forward_pass_ends_behind_the_last_layer_that_is_asked_for(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    samples = [sample(0, 40, 30)] if kind in VISION else [Sample("0", text=TEXTS[0])]
    ran = []
    handle = backbone.frozen.blocks[1].register_forward_hook(lambda *_: ran.append(1))
    sites = [Site(0), Site(0, "mlp"), Site(0, "attention")]
    short = embed(backbone, samples, sites).values
    assert not ran
    whole = embed(backbone, samples, [*sites, Site(LAYERS)]).values
    assert len(ran) == 1
    handle.remove()
    assert torch.equal(short, whole[:3])
    assert not any(m._forward_hooks for m in backbone.frozen.model.modules())


@pytest.mark.parametrize("kind", VISION)
def test_an_image_alone_and_in_a_batch_gives_the_same_values(folders, kind):
    backbone = load(Setup(), str(folders[kind]), geometry="pad")
    samples = [sample(i, 40, 20 + 15 * i) for i in range(4)]
    together = embed(backbone, samples)
    for i, one in enumerate(samples):
        alone = embed(backbone, [one])
        rows = slice(int(together.offsets[i]), int(together.offsets[i + 1]))
        assert torch.allclose(alone.values, together.values[:, rows], atol=2e-5)
        assert torch.allclose(alone.summary[:, 0], together.summary[:, i], atol=2e-5)
        assert torch.equal(alone.regions, together.regions[rows])


def test_a_bright_patch_changes_only_the_token_whose_region_holds_it(folders, tmp_path):
    model = tf.AutoModel.from_pretrained(folders["vit"])
    for layer in model.layers:
        torch.nn.init.zeros_(layer.attention.o_proj.weight)  # no token sees another
    model.save_pretrained(tmp_path)
    backbone = load(Setup(), str(tmp_path))
    dark = np.zeros((32, 32, 3), np.uint8)
    for row, column in [(0, 0), (0, 3), (2, 1), (3, 3)]:
        lit = dark.copy()
        lit[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 255
        pair = [Sample("dark", image=PIL.Image.fromarray(dark)), Sample("lit", image=PIL.Image.fromarray(lit))]
        got = embed(backbone, pair, [Site(layer) for layer in range(LAYERS + 1)])
        changed = (got.values[:, :16] - got.values[:, 16:]).abs().amax(-1) > 1e-3
        expected = torch.zeros(16, dtype=torch.bool)
        expected[4 * row + column] = True
        assert torch.equal(changed, expected.expand_as(changed))
        assert got.regions[16 + 4 * row + column].tolist() == [8 * row, 8 * column, 8 * row + 8, 8 * column + 8]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_images_of_any_mode_are_read_as_rgb(folders, mode):
    backbone = load(Setup(), str(folders["clip"]))
    one = sample(0, 40, 50, mode)
    rgb = Sample("rgb", image=one.image.convert("RGB"))
    assert torch.equal(backbone.inputs([one]).tensors["pixel_values"], backbone.inputs([rgb]).tensors["pixel_values"])


def naive_pixels(image: PIL.Image.Image, geometry: str, size: int) -> np.ndarray:
    """[size, size, 3] uint8, by PIL alone."""
    if geometry == "squash":
        return np.asarray(image.resize((size, size), PIL.Image.Resampling.BICUBIC))
    scale = size / max(image.size)
    small = image.resize((int(image.width * scale), int(image.height * scale)), PIL.Image.Resampling.BICUBIC)
    canvas = PIL.Image.new("RGB", (size, size))
    canvas.paste(small, (0, 0))
    return np.asarray(canvas)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (32, 32), (20, 23), (33, 100)])
@pytest.mark.parametrize("geometry", ["squash", "pad"])
def test_squash_and_pad_are_what_pil_makes(folders, geometry, shape):
    backbone = load(Setup(), str(folders["clip"]), geometry=geometry)
    one = sample(1, *shape)
    pixels = torch.tensor(naive_pixels(one.image, geometry, 32)).float() / 255
    expected = (pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(backbone.inputs([one]).tensors["pixel_values"][0].permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (32, 32), (20, 23), (33, 100), (101, 33)])
@pytest.mark.parametrize("edge", [32, 37])
def test_crop_is_what_the_models_own_processor_makes(folders, tmp_path, edge, shape):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": 32, "width": 32})
    tf.AutoModel.from_pretrained(folders["clip"]).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    backbone = load(Setup(), str(tmp_path), geometry="crop")
    one = sample(2, *shape)
    expected = torch.as_tensor(np.asarray(processor(one.image)["pixel_values"][0]))
    assert torch.allclose(backbone.inputs([one]).tensors["pixel_values"][0], expected, atol=1e-5)


def test_patches_wholly_in_the_padding_are_no_tokens(folders):
    backbone = load(Setup(), str(folders["dinov2"]), geometry="pad")
    wide, tall, square = sample(0, 20, 64), sample(1, 64, 17), sample(2, 50, 50)  # 10 x 32, 32 x 8, 32 x 32 pixels
    inputs = backbone.inputs([wide, tall, square])
    assert inputs.positions.sum(1).tolist() == [8, 4, 16]
    assert inputs.regions[:8].tolist() == [[8 * r, 8 * c, 8 * r + 8, 8 * c + 8] for r in range(2) for c in range(4)]
    assert inputs.regions[8:12].tolist() == [[8 * r, 0, 8 * r + 8, 8] for r in range(4)]
    assert not inputs.positions[:, 0].any()  # CLS


@pytest.mark.parametrize("kind", VISION)
def test_a_larger_image_size_interpolates_positions(folders, kind):
    backbone = load(Setup(image_size=48), str(folders[kind]))
    got = embed(backbone, [sample(0, 40, 40)])
    assert got.values.shape == (3 * LAYERS + 1, 36, 32)
    assert got.regions[-1].tolist() == [40, 40, 48, 48]
    assert backbone.identity["image_size"] == 48


def test_the_trained_size_may_leave_a_rest_that_the_model_ignores(tmp_path):
    save(tf.SiglipVisionModel(tf.SiglipVisionConfig(**VIT, image_size=36)), tmp_path)
    got = embed(load(Setup(), str(tmp_path)), [sample(0, 40, 40)], [Site(0)])
    assert got.regions[-1].tolist() == [24, 24, 32, 32]


def test_an_image_size_that_is_no_multiple_of_the_patch_names_the_nearest(folders):
    with pytest.raises(
        HarnessError, match=r"image size 50 is not a multiple of the 8 px patches of clip; the nearest are 48 and 56"
    ):
        load(Setup(image_size=50), str(folders["clip"]))


def test_a_full_clip_gives_its_vision_tower(tmp_path):
    text = {**LM, "max_position_embeddings": 16}
    full = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config={**VIT, "image_size": 32}, projection_dim=16))
    save(full, tmp_path)
    got_backbone = load(Setup(), str(tmp_path))
    inputs = got_backbone.inputs([sample(0, 40, 40)])
    with torch.no_grad():
        own = full.eval().vision_model(inputs.tensors["pixel_values"], output_hidden_states=True)
    assert torch.equal(got_backbone.forward(inputs, [Site(1)]).values[0], own.hidden_states[2][0, 1:])
    assert got_backbone.identity["class"] == "CLIPVisionModel"


def test_gradients_reach_the_pixels(folders):
    backbone = load(Setup(), str(folders["dinov2"]))
    inputs = backbone.inputs([sample(0, 32, 32)])
    pixels = inputs.tensors["pixel_values"].requires_grad_()
    backbone.forward(inputs, [Site(LAYERS - 1)]).values.sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.frozen.model.parameters())


def test_half_precision_runs_and_returns_float32(folders):
    exact, half = (load(Setup(dtype=dtype), str(folders["dinov2"])) for dtype in ("float32", "bfloat16"))
    samples = [sample(0, 32, 32)]
    a, b = embed(exact, samples).values, embed(half, samples).values
    assert b.dtype == torch.float32
    assert (a - b).norm() / a.norm() < 0.05
    assert (exact.identity["dtype"], half.identity["dtype"]) == ("float32", "bfloat16")


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_a_plain_vision_encoder_is_refused_in_one_line(tmp_path, kind):
    NOT_PLAIN[kind]().save_pretrained(tmp_path)
    with pytest.raises(HarnessError, match="it needs a plugin") as caught:
        load(Setup(), str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_stream_or_layer_that_is_not_there_is_refused(folders):
    backbone = load(Setup(), str(folders["clip"]))
    inputs = backbone.inputs([sample(0, 32, 32)])
    with pytest.raises(HarnessError, match=r"clip has no site 7; its layers are 0\.\.2, and 3 = after the final norm"):
        backbone.forward(inputs, [Site(7)])
    with pytest.raises(HarnessError, match=r"clip has no site attention\.3"):
        backbone.forward(inputs, [Site(3, "attention")])
    with pytest.raises(HarnessError, match="stream 'router' cannot be captured in clip: its CLIPEncoderLayer has self_attn"):
        backbone.forward(inputs, [Site(0, "router")])


def test_an_unreadable_image_names_its_sample(folders, tmp_path):
    file = tmp_path / "cut.jpg"
    sample(0, 300, 300).image.save(file)
    file.write_bytes(file.read_bytes()[:5000])
    backbone = load(Setup(), str(folders["clip"]))
    with pytest.raises(HarnessError, match="the image of sample 'x7' cannot be read"):
        backbone.inputs([Sample("x7", image=PIL.Image.open(file))])


# ------------------------------------------------------------------------------------------------------------------ text


def reference(folder: Path, text: str) -> tuple[list[torch.Tensor], torch.Tensor, list[str]]:
    """A text alone through the model, no padding: hidden states per layer and final, content positions, covered text."""
    tokenizer, model = tf.AutoTokenizer.from_pretrained(folder), tf.AutoModel.from_pretrained(folder).eval()
    coded = tokenizer(text, return_offsets_mapping=True)
    encoding = coded.encodings[0]
    content = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
    with torch.no_grad():
        own = model(input_ids=torch.tensor([coded["input_ids"]]), output_hidden_states=True)
    states = [*own.hidden_states[1:LAYERS], own.last_hidden_state]
    return [state[0] for state in states], torch.tensor(content), [text[slice(*coded["offset_mapping"][i])] for i in content]


@pytest.mark.parametrize("kind", TEXT)
def test_text_values_in_a_padded_batch_equal_each_text_alone(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    got = embed(backbone, [Sample(str(i), text=text) for i, text in enumerate(TEXTS)], [Site(0), Site(1), Site(LAYERS)])
    assert got.offsets.tolist()[2:4] == [got.offsets[2]] * 2  # the empty text has no token
    assert got.summary[:, 2].abs().max() == 0
    for i, text in enumerate(TEXTS):
        rows = slice(int(got.offsets[i]), int(got.offsets[i + 1]))
        if not text:
            continue
        states, content, words = reference(folders[kind], text)
        assert [text[start:end] for start, end in got.regions[rows].tolist()] == words
        for layer in range(3):
            assert torch.allclose(got.values[layer, rows], states[layer][content], atol=2e-5)
            assert torch.allclose(got.summary[layer, i], states[layer][content].mean(0), atol=2e-5)


@pytest.mark.parametrize("kind", TEXT)
def test_the_tokenizers_padding_side_changes_nothing(folders, tmp_path, kind):
    tf.AutoModel.from_pretrained(folders[kind]).save_pretrained(tmp_path)
    save_tokenizer(kind, tmp_path, side="left")
    samples = [Sample(str(i), text=text) for i, text in enumerate(TEXTS)]
    left, right = load(Setup(), str(tmp_path)), load(Setup(), str(folders[kind]))
    assert left.tokenizer.padding_side == "left"
    a, b = embed(left, samples), embed(right, samples)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.regions, b.regions)


@pytest.mark.parametrize("kind", TEXT)
def test_every_text_of_a_batch_may_be_empty(folders, kind):
    got = embed(load(Setup(), str(folders[kind])), [Sample("0", text=""), Sample("1", text="")])
    assert got.values.shape == (3 * LAYERS + 1, 0, 32)
    assert got.regions.shape == (0, 2)
    assert got.offsets.tolist() == [0, 0, 0]
    assert got.summary.abs().sum() == 0


def test_a_special_token_written_in_the_text_is_content(folders):
    for kind, word in [("gpt2", "<|end|>"), ("llama", "<s>"), ("bert", "[SEP]")]:
        text = f"the {word} cat"
        inputs = load(Setup(), str(folders[kind])).inputs([Sample("0", text=text), Sample("1", text="a")])
        start = text.index(word)
        assert [start, start + len(word)] in inputs.regions.tolist(), kind
        assert int(inputs.positions[1].sum()) == 1


def test_spans_are_characters_not_bytes(folders):
    inputs = load(Setup(), str(folders["gpt2"])).inputs([Sample("0", text="é🙂 b")])
    spans = inputs.regions.tolist()
    assert spans[-1][1] == 4
    assert {(0, 1), (1, 2)} <= {tuple(span) for span in spans}


def test_a_token_that_covers_no_character_is_dropped_by_position(folders, tmp_path):
    tokenizer = byte_tokenizer(None, ["<|end|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # as published for GPT-2: a lone space covers nothing
    tf.AutoModel.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path)
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    backbone = load(Setup(), str(tmp_path))
    spans = backbone.tokenizer("a   b", return_offsets_mapping=True)["offset_mapping"]
    inputs = backbone.inputs([Sample("0", text="a   b")])
    assert any(end == start for start, end in spans), spans
    assert inputs.positions[0].tolist() == [end > start for start, end in spans]


@pytest.mark.parametrize("kind", TEXT)
def test_a_long_text_is_cut_at_what_the_model_can_read(folders, kind):
    backbone = load(Setup(), str(folders[kind]))
    assert backbone.max_length == (62 if kind == "mpnet" else 64)
    inputs = backbone.inputs([Sample("0", text="the cat " * 200)])
    assert inputs.tensors["input_ids"].shape[1] == backbone.max_length
    assert inputs.regions[-1, 1] < 1600
    assert torch.isfinite(embed(backbone, [Sample("0", text="the cat " * 200)]).values).all()


def test_max_length_is_an_option_with_limits(folders):
    backbone = load(Setup(), str(folders["gpt2"]), max_length=5)
    assert backbone.inputs([Sample("0", text=TEXTS[0])]).positions.shape[1] == 5
    assert backbone.identity["max_length"] == 5
    for wrong in (999, 0, "many"):
        with pytest.raises(HarnessError, match=f"max_length {wrong!r} of gpt2 should be a number of tokens from 1 to 64"):
            load(Setup(), str(folders["gpt2"]), max_length=wrong)


def test_soft_capped_attention_is_never_left_to_a_kernel_without_it(folders):
    assert load(Setup(), str(folders["gemma2"])).identity["attention"] == "eager"


def test_gradients_reach_word_embeddings_given_in_place_of_ids(folders):
    from dataclasses import replace

    backbone = load(Setup(), str(folders["gpt2"]))
    inputs = backbone.inputs([Sample("0", text=TEXTS[0]), Sample("1", text=TEXTS[3])])
    words = backbone.frozen.model.get_input_embeddings()(inputs.tensors["input_ids"]).detach().requires_grad_()
    tensors = {"inputs_embeds": words, "attention_mask": inputs.tensors["attention_mask"]}
    got = backbone.forward(replace(inputs, tensors=tensors), [Site(1)])
    assert torch.equal(got.values, embed(backbone, [Sample("0", text=TEXTS[0]), Sample("1", text=TEXTS[3])], [Site(1)]).values)
    got.values.sum().backward()
    assert words.grad.abs().sum() > 0


# --------------------------------------------------------------------------------------------------- loading and errors


def test_the_revision_of_a_folder_changes_with_its_content(folders, tmp_path):
    first = load(Setup(), str(folders["vit"])).revision
    assert load(Setup(), str(folders["vit"])).revision == first
    model = tf.AutoModel.from_pretrained(folders["vit"])
    model.layernorm.weight.data[0] += 1
    model.save_pretrained(tmp_path)
    assert load(Setup(), str(tmp_path)).revision != first
    assert len(first) == 64


def test_identity_is_plain_json(folders):
    for kind in ("clip", "gpt2"):
        identity = load(Setup(), str(folders[kind])).identity
        assert json.loads(json.dumps(dict(identity))) == dict(identity)


def test_pickled_weights_are_refused(folders, tmp_path):
    model = tf.AutoModel.from_pretrained(folders["vit"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(HarnessError, match=r"has pickled weights \(\.bin\) only.*save_pretrained"):
        load(Setup(), str(tmp_path))


def test_folders_that_hold_no_model_are_refused(folders, tmp_path):
    with pytest.raises(HarnessError, match=r"no folder '\./nowhere'; hf: takes a folder"):
        load(Setup(), "./nowhere")
    with pytest.raises(HarnessError, match=r"is not a model folder: it has no config\.json"):
        load(Setup(), str(tmp_path))
    tf.AutoConfig.from_pretrained(folders["vit"]).save_pretrained(tmp_path)
    with pytest.raises(HarnessError, match=r"lacks the weight file model\.safetensors"):
        load(Setup(), str(tmp_path))
    with pytest.raises(HarnessError, match="hf needs a model"):
        load(Setup())
    with pytest.raises(HarnessError, match="clip-vit-l14 takes no argument"):
        clip_vit_l14(Setup(), "x")


def test_weights_of_another_model_are_refused(folders, tmp_path):
    tf.AutoModel.from_pretrained(folders["vit"]).save_pretrained(tmp_path)
    tf.Dinov2Config(**DINO).save_pretrained(tmp_path)
    with pytest.raises(HarnessError, match=r"the weights of .* lack \d+ parameters of Dinov2Model"):
        load(Setup(), str(tmp_path))


def test_options_are_checked_for_the_modality(folders):
    with pytest.raises(HarnessError, match="option 'max_length' is not one of vit, which reads image; it has geometry"):
        load(Setup(), str(folders["vit"]), max_length=3)
    with pytest.raises(HarnessError, match="option 'geometry' is not one of gpt2, which reads text; it has max_length"):
        load(Setup(), str(folders["gpt2"]), geometry="pad")
    with pytest.raises(HarnessError, match=r"unknown geometry 'squish' in vit; did you mean squash\?"):
        load(Setup(), str(folders["vit"]), geometry="squish")


def test_models_that_are_not_one_stack_or_lack_a_tokenizer_are_refused(folders, tmp_path):
    t5 = tf.T5Model(tf.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(HarnessError, match=r"t5 \(t5\) is not an image or text encoder with one stack of blocks"):
        load(Setup(), str(tmp_path / "t5"))
    tf.AutoModel.from_pretrained(folders["qwen3"]).save_pretrained(tmp_path / "bare")
    with pytest.raises(HarnessError, match=r"bare has no .*tokenizer"):
        load(Setup(), str(tmp_path / "bare"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"model_type": "homemade", "auto_map": {"AutoConfig": "x.Y"}}')
    (tmp_path / "own" / "model.safetensors").write_bytes(b"")
    with pytest.raises(HarnessError, match="transformers cannot read own"):
        load(Setup(), str(tmp_path / "own"))


def test_the_wrong_kind_of_sample_is_named(folders):
    with pytest.raises(HarnessError, match="sample 'a' has no image, and the backbone takes images"):
        load(Setup(), str(folders["vit"])).inputs([Sample("a", text="x")])
    with pytest.raises(HarnessError, match="sample 'a' has no text, and the backbone takes text"):
        load(Setup(), str(folders["gpt2"])).inputs([Sample("a", image=sample(0, 8, 8).image)])


ASK = """
import sys, time
from harness.api import HarnessError, Setup
from harness_hf.weights import locate
start = time.perf_counter()
try:
    print("found", locate(sys.argv[1]).revision)
except HarnessError as error:
    print(error)
print(time.perf_counter() - start)
"""


def ask_hub(home: Path, model: str, **environment: str) -> tuple[str, float]:
    """What locating a Hub model answers in a fresh process, and in how many seconds."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    env = {**clean, "HF_HOME": str(home), **environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ASK, model], capture_output=True, text=True, env=env, check=True)
    *answer, seconds = done.stdout.strip().splitlines()
    assert len(answer) == 1, done.stdout
    return answer[0], float(seconds)


@pytest.fixture
def silent():
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectError"),
        ({"HF_ENDPOINT": "silent"}, "Timeout"),
    ],
)
def test_missing_weights_without_network_are_answered_fast(tmp_path, silent, environment, why):
    environment = {name: value.replace("silent", silent) for name, value in environment.items()}
    answer, seconds = ask_hub(tmp_path, "openai/clip-vit-large-patch14", **environment)
    assert answer.startswith(f"no weights of openai/clip-vit-large-patch14: not in {tmp_path / 'hub'} (HF_HOME)")
    assert "run `hf download openai/clip-vit-large-patch14`" in answer
    assert why in answer
    assert seconds < 5


class Hub(BaseHTTPRequestHandler):
    """Just enough of the Hub: `tiny/vit` can be downloaded, `tiny/gated` asks for terms, `tiny/pickled` has only .bin."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/tiny/") and "/tree/" not in path:
            model = path.split("/")[4]
            names = [
                "config.json",
                "pytorch_model.bin" if model == "pickled" else "model.safetensors",
                "onnx/model.safetensors",
            ]
            about = {"id": f"tiny/{model}", "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
            return self.answer(200, json.dumps(about).encode())
        if path.startswith("/api/models/tiny/vit/tree/"):
            files = [file for file in self.folder.iterdir() if file.is_file()]
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f"{len(f.name):040x}"} for f in files]
            return self.answer(200, json.dumps(tree).encode())
        if "/gated/" in path:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        if path.startswith("/tiny/vit/resolve/"):
            file = self.folder / path.rsplit("/", 1)[1]
            return self.answer(200, file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": self.commit})
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(folders):
    handler = type("TinyHub", (Hub,), {"folder": folders["vit"]})
    with listening(handler) as server:
        yield address(server)


def test_a_hub_model_is_downloaded_once_and_then_found_without_network(hub, tmp_path):
    answer, _ = ask_hub(tmp_path, "tiny/vit", HF_ENDPOINT=hub)
    assert answer == f"found {Hub.commit}"
    answer, _ = ask_hub(tmp_path, "tiny/vit", HF_HUB_OFFLINE="1")
    assert answer == f"found {Hub.commit}"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("tiny/gated", "tiny/gated is gated: accept its terms at https://huggingface.co/tiny/gated, then set HF_TOKEN"),
        ("tiny/pickled", "tiny/pickled has no safetensors weights"),
        ("other/none", "no model 'other/none': not a local folder, not in"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(hub, tmp_path, model, says):
    answer, _ = ask_hub(tmp_path, model, HF_ENDPOINT=hub)
    assert answer.startswith(says)
