"""Tiny random chat models of real transformers classes, in folders as save_pretrained writes them, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TEXT = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
SEEN = (
    "{% for m in messages %}<u>{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SPECIAL = ["<u>", "</u>", "<a>"]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
POSITIONS = 2048


def tokenizer(*more: str, template: str | None = TEXT) -> PreTrainedTokenizerFast:
    """One token per byte; `Yes` and `No` begin with different ones."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=[*SPECIAL, *more], **special)
    wrapped.chat_template = template
    return wrapped


def spread(model: Any) -> Any:
    """Weights large enough that a wrong position or mask shows in the first token's probabilities."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(
                    torch.randn(weight.shape, generator=generator)
                    * (2.0 if "lm_head" in name else 1.5)
                    / weight.shape[-1] ** 0.5
                )
            elif "gate" in name:
                weight.fill_(0.7)  # cross-attention starts closed
    return model.eval()


def language_model(kind: str, folder: Path, template: str | None = TEXT) -> Path:
    """llama, gemma2 (a sliding window of 8 in every other layer) or qwen2."""
    words = tokenizer(template=template)
    common = {**SMALL, "vocab_size": len(words), "num_hidden_layers": 2, "max_position_embeddings": POSITIONS}
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id, "pad_token_id": words.pad_token_id}
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common, **ends)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**common, **ends, head_dim=8, sliding_window=8, query_pre_attn_scalar=8)
        ),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**common, **ends)),
    }[kind]()
    spread(made).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    words = tokenizer("<image>", template=SEEN.replace("IMAGE", "<image>"))
    text = LlamaConfig(**SMALL, vocab_size=len(words), num_hidden_layers=2, max_position_embeddings=POSITIONS)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"))
    model = spread(LlavaForConditionalGeneration(config))
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        image_processor=pixels,
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    ).save_pretrained(folder)
    return folder


def mllama(folder: Path) -> Path:
    words = tokenizer("<|image|>", "<|python_tag|>", template=SEEN.replace("IMAGE", "<|image|>"))
    text = {
        **SMALL,
        "vocab_size": len(words),
        "num_hidden_layers": 3,
        "cross_attention_layers": [1],
        "max_position_embeddings": POSITIONS,
    }
    text.update(rope_parameters={"rope_type": "default", "rope_theta": 1e4}, pad_token_id=words.pad_token_id)
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4,
        "image_size": 28, "patch_size": 14, "max_num_tiles": 2, "intermediate_layers_indices": [0], "vision_output_dim": 64,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<|image|>"))
    model = spread(MllamaForConditionalGeneration(config))
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(folder)
    pixels = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    MllamaProcessor(image_processor=pixels, tokenizer=words, chat_template=words.chat_template).save_pretrained(folder)
    return folder


def qwen2_5_vl() -> tuple[Any, Any]:
    """(model, processor), not in a folder: its processor cannot be saved without torchvision, which reads videos."""
    words = tokenizer(
        "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
        template=SEEN.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    ids = {
        name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    text = {**SMALL, "vocab_size": len(words), "num_hidden_layers": 2, "max_position_embeddings": POSITIONS}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 14, "out_hidden_size": 32}
    vision["fullatt_block_indexes"] = [1]
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    model = spread(Qwen2_5_VLForConditionalGeneration(config))
    processor = object.__new__(Qwen2_5_VLProcessor)
    processor.tokenizer, processor.chat_template = words, words.chat_template
    processor.image_processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84)
    processor.video_processor = None
    processor.image_token, processor.video_token = "<|image_pad|>", "<|video_pad|>"
    processor.image_token_id, processor.video_token_id = ids["image_pad"], ids["video_pad"]
    return model, processor
