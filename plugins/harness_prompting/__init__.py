"""Asking a model instead of probing it: scorer `prompt`, with recipes for its two kinds of answers (method section 6.1, Prompt).

A language model or a vision-language model answers yes or no per sample and concept. Nothing is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl


@hookimpl
def harness_register_models() -> Iterable[Entry]:
    """The vision-language models of the paper and one more, by a short name."""
    return [
        Entry(
            "llama-3.2-11b-vision-instruct",
            "harness_prompting.models:llama",
            "Llama-3.2-11B-Vision-Instruct (gated), the paper's",
        ),
        Entry("qwen2.5-vl-3b-instruct", "harness_prompting.models:qwen", "Qwen2.5-VL-3B-Instruct, the paper's"),
        Entry("llava-1.5-7b", "harness_prompting.models:llava", "LLaVA 1.5 7B"),
    ]


@hookimpl
def harness_register_scorers() -> Iterable[Entry]:
    """`prompt`."""
    summary = "prompt:<model>: a language or vision-language model answers yes or no per sample and concept"
    return [Entry("prompt", "harness_prompting.scorer:Prompt", summary)]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """Recipes that are asked for with a model: `--method prompt:smollm2`."""
    return [
        Method("prompt", "asks a model (prompt:<model>): P(yes) - P(no), cutoff from cal", scorer="prompt", tags=("prompt",)),
        Method(
            "prompt-generate",
            "asks a model (prompt-generate:<model>) in the paper's words and reads its answer",
            scorer="prompt:answers=generate",
            tags=("prompt",),
        ),
        Method(
            "prompt-locate",
            "as prompt-generate, and asks where: a box or words",
            scorer="prompt:answers=generate:locate=true",
            tags=("prompt",),
        ),
    ]
