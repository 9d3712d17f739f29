"""Short names of vision-language models on the Hub; whichever plugin offers `hf` finds and fetches them."""

from __future__ import annotations

from harness.api import HarnessError, Setup, Weights


def llama(setup: Setup, revision: str = "main") -> Weights:
    """Llama-3.2-11B-Vision-Instruct; gated: its terms are accepted on the Hub."""
    return _hub(setup, "meta-llama/Llama-3.2-11B-Vision-Instruct", revision)


def qwen(setup: Setup, revision: str = "main") -> Weights:
    """Qwen2.5-VL-3B-Instruct."""
    return _hub(setup, "Qwen/Qwen2.5-VL-3B-Instruct", revision)


def llava(setup: Setup, revision: str = "main") -> Weights:
    """LLaVA 1.5 7B, the conversion of its authors' weights."""
    return _hub(setup, "llava-hf/llava-1.5-7b-hf", revision)


def _hub(setup: Setup, model: str, revision: str) -> Weights:
    if setup.weights is None:
        raise HarnessError(f"{model} can only be found within a run; use it as prompt:<name> in `harness run`")
    return setup.weights(f"hf:{model}:revision={revision}")
