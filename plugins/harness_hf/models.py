"""Pretrained models as folders, for parts of other plugins that need more of a model than its token embeddings.

They are found and fetched as the backbones of the same names are; nothing is loaded here.
"""

from __future__ import annotations

from harness.api import HarnessError, Setup, Weights

from .bundled_text import smollm2_folder
from .weights import locate


def smollm2(setup: Setup, argument: str | None = None) -> Weights:
    """SmolLM2-135M-Instruct, made into a transformers folder once."""
    if argument is not None:
        raise HarnessError(f"smollm2 takes no argument, got {argument!r}; for another model use hf:<model id or folder>")
    folder, revision = smollm2_folder(setup.cache_dir)
    return Weights("SmolLM2-135M-Instruct-Q4_1", folder, revision)


def hub(setup: Setup, argument: str | None = None, revision: str = "main") -> Weights:
    """A Hub id or a local folder; revision: branch, tag or commit on the Hub."""
    if not argument:
        raise HarnessError("hf needs a model: hf:<model id or local folder>, such as hf:HuggingFaceTB/SmolLM2-1.7B-Instruct")
    found = locate(argument, str(revision))
    return Weights(found.name, found.folder, found.revision)
