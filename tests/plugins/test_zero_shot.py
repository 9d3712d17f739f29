"""CLIP's text embeddings as concept vectors, on a tiny random CLIP with both towers: the similarity is the model's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as tf
from harness_hf.load import load
from harness_hf.zero_shot import ZeroShot
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from harness.api import HarnessError, Sample, Setup, Site, TokenEmbeddings
from harness.testing import MadeUp

WORDS = ["<pad>", "<start>", "<end>", "a", "photo", "of", "red", "round", "rare", "unknown"]
ROLES = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP with a word tokenizer."""
    torch.manual_seed(0)
    text = {
        **TINY,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 16,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {**TINY, "image_size": 32, "patch_size": 8}
    path = tmp_path_factory.mktemp("clip")
    tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(path)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, **{"unk_token": "unknown"}))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tf.PreTrainedTokenizerFast(tokenizer_object=inner, **ROLES).save_pretrained(path)
    return path


def images(n: int) -> list[Sample]:
    g = np.random.default_rng(0)
    return [Sample(str(i), PIL.Image.fromarray(g.integers(0, 256, (40, 32, 3), dtype=np.uint8))) for i in range(n)]


def train(backbone: Any, sites: tuple[Site, ...]) -> Any:
    """Blocks of two concepts, with a normalisation that must be undone."""
    blocks = MadeUp()
    blocks.concepts, blocks.sites, blocks.backbone, blocks.width = ("color::red", "round"), sites, backbone, backbone.width
    g = torch.Generator().manual_seed(1)
    blocks.centre, blocks.scale = torch.randn(len(sites), 1, 16, generator=g), 2 + torch.rand(len(sites), 1, 16, generator=g)
    return blocks


def test_the_summary_at_the_last_block_has_the_models_own_image_text_similarity(folder: Path) -> None:
    backbone = load(Setup(), str(folder))
    inputs, sites = backbone.inputs(images(3)), (Site(0), Site(1), Site(2))
    with torch.no_grad():
        given = backbone.forward(inputs, sites)
        model = tf.CLIPModel.from_pretrained(folder).eval()
        words = tf.AutoTokenizer.from_pretrained(folder)(["a photo of a red", "a photo of a round"], return_tensors="pt")
        own = model(**words, pixel_values=inputs.tensors["pixel_values"])
    wanted = own.logits_per_image / model.logit_scale.exp()
    blocks = train(backbone, sites)
    concepts = ZeroShot().fit(blocks)
    summaries = (given.summary - blocks.centre) / blocks.scale
    found = concepts.activate(TokenEmbeddings(summaries, torch.arange(4), ("0", "1", "2"), sites))
    assert torch.allclose(found[1], wanted, atol=1e-5)
    patches = (given.values - blocks.centre) / blocks.scale
    block = TokenEmbeddings(patches, given.offsets, ("0", "1", "2"), sites)
    every = concepts.activate(block)
    assert every.shape == (3, 48, 2)
    assert torch.allclose(every[1], every[2], atol=1e-5), "the last block, normed here, is `final`"
    assert not torch.allclose(every[0], every[1], atol=1e-2)
    one = backbone.frozen.model.post_layernorm(given.values[1, :1]) @ model.visual_projection.weight.T
    with torch.no_grad():
        assert torch.allclose(every[1, 0], torch.nn.functional.cosine_similarity(one, concepts.shared.texts), atol=1e-5)
    mlp = replace(block, sites=(Site(0), Site(1, "mlp"), Site(2)))
    assert concepts.activate(mlp)[1].isnan().all()


def test_another_prompt_is_another_vector_and_one_without_a_place_is_refused(folder: Path) -> None:
    blocks = train(load(Setup(), str(folder)), (Site(1),))
    plain, other = ZeroShot().fit(blocks), ZeroShot("a {}").fit(blocks)
    assert not torch.allclose(plain.shared.texts, other.shared.texts)
    with pytest.raises(
        HarnessError, match=r"prompt 'a photo' of concept method 'zero-shot' has no place for the concept; write \{\} there"
    ):
        ZeroShot("a photo").fit(blocks)


def test_a_backbone_without_a_text_tower_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="backbone none has none; use clip-vit-l14 or hf:<a CLIP with both towers>"):
        ZeroShot().fit(MadeUp())
    alone = tf.CLIPVisionModel(tf.CLIPVisionConfig(**TINY, image_size=32, patch_size=8))
    alone.save_pretrained(tmp_path)
    with pytest.raises(HarnessError, match="zero-shot needs the whole CLIP, not its vision tower"):
        ZeroShot().fit(train(load(Setup(), str(tmp_path)), (Site(1),)))
