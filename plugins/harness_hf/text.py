"""Any transformers text encoder or decoder with a fast tokenizer: GPT-2, Llama, Gemma-2, Qwen3, BERT, MPNet, a CLIP's or VLM's tower.

The model gets its special tokens; which positions are content is known from the tokenizer's own special-token mask and from
where padding was put, never from token ids (in GPT-2 padding, end and start are one id; elsewhere the start token is id 0).
Padding is always on the right, whatever the tokenizer says: positions then count from zero, and no padding precedes a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from harness.api import Embedded, HarnessError, Inputs, Opened, Sample, Setup, Site

from .model import FrozenModel, mean_token, pack, quiet
from .weights import Source


class Encoded(NamedTuple):
    """One text as the model reads it: ids [N], content [N] bool, spans [N, 2] (start, end characters)."""

    ids: Tensor
    content: Tensor
    spans: Tensor


class TextBackbone:
    """A text model; the summary is the mean content token of a layer, and zeros for a text without tokens.

    A text longer than `max_length` tokens (by default what the model allows) is cut: its regions end where the tokens end.
    """

    modality: Literal["text"] = "text"

    def __init__(
        self, source: Source, config: Any, setup: Setup, max_length: int | None = None, device_map: str | None = None
    ) -> None:
        self.name, self.revision = source.name, source.revision
        self.tokenizer = _fast_tokenizer(source)
        self.frozen = FrozenModel(source, config, setup, device_map=device_map)
        self.device = self.frozen.device
        self.n_layers, self.width, self.layers = self.frozen.n_layers, self.frozen.width, self.frozen.layers
        self.max_length = _max_length(max_length, self._limit(), source.name)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What beside the weights changes a value."""
        return {**self.frozen.identity, "max_length": self.max_length}

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Token ids padded on the right, and the character span of every content token."""
        texts = [self._encode(sample) for sample in samples]
        filler = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        # a text without any token still gets one position, so that the model has something to attend to; it is no content
        ids = [text.ids if len(text.ids) else torch.tensor([filler]) for text in texts]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        positions = torch.zeros_like(mask, dtype=torch.bool)
        for row, text in enumerate(texts):
            positions[row, : len(text.content)] = text.content
        regions = torch.cat([text.spans[text.content] for text in texts])
        padded = pad_sequence(ids, batch_first=True, padding_value=filler)
        return Inputs({"input_ids": padded.to(self.device), "attention_mask": mask.to(self.device)}, positions, regions)

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """One forward pass to the sites; differentiable in `inputs_embeds` where the inputs hold them in place of ids."""
        states = self.frozen.states(inputs.tensors, sites)
        values, offsets = pack(states, inputs.positions)
        return Embedded(values, offsets, inputs.regions, mean_token(states, inputs.positions))

    def opened(self, inputs: Inputs) -> Opened:
        """One text opened for attribution: the leaf is its input embeddings; a removed token is the mask token, or zero without one."""
        ids = inputs.tensors["input_ids"]
        table = self.frozen.model.get_input_embeddings()
        with torch.no_grad():
            leaf = table(ids)
            mask = self.tokenizer.mask_token_id
            baseline = torch.zeros_like(leaf[:, :1]) if mask is None else table(torch.tensor([[mask]], device=ids.device))
        tensors = {"inputs_embeds": leaf, **{name: t for name, t in inputs.tensors.items() if name != "input_ids"}}
        cells = torch.full((ids.shape[1],), -1, dtype=torch.int64)
        cells[inputs.positions[0]] = torch.arange(int(inputs.positions.sum()))
        return Opened(replace(inputs, tensors=tensors), "inputs_embeds", cells, 2, baseline, self.frozen.blocks)

    def _encode(self, sample: Sample) -> Encoded:
        """Content are the tokens that cover at least one character and were not added by the tokenizer."""
        if sample.text is None:
            raise HarnessError(f"sample {sample.id!r} has no text, and the backbone takes text")
        cut = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        coded = self.tokenizer(sample.text, return_offsets_mapping=True, return_special_tokens_mask=True, **cut)
        spans = torch.tensor(coded["offset_mapping"], dtype=torch.int64).reshape(-1, 2)
        added = torch.tensor(coded["special_tokens_mask"], dtype=torch.bool)
        content = ~added & (spans[:, 1] > spans[:, 0])
        return Encoded(torch.tensor(coded["input_ids"], dtype=torch.int64), content, spans)

    def _limit(self) -> int | None:
        """The most tokens the model can read, special tokens included; None where neither it nor its tokenizer says."""
        limits = [self.tokenizer.model_max_length if self.tokenizer.model_max_length < 1e9 else None]
        table = getattr(getattr(self.frozen.model, "embeddings", None), "position_embeddings", None)
        first = 0 if getattr(table, "padding_idx", None) is None else table.padding_idx + 1  # RoBERTa counts from there
        places = getattr(self.frozen.model.config, "max_position_embeddings", None)
        limits.append(places - first if places and places > 0 else None)
        return min((limit for limit in limits if limit), default=None)


def _max_length(asked: int | None, limit: int | None, name: str) -> int | None:
    if asked is None:
        return limit
    if not isinstance(asked, int) or not 1 <= asked <= (limit or asked):
        raise HarnessError(f"max_length {asked!r} of {name} should be a number of tokens from 1 to {limit or 'any'}")
    return asked


def _fast_tokenizer(source: Source) -> Any:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise HarnessError(
            f"{source.name} has no tokenizer that can be read in {source.folder} ({first}); copy its tokenizer.json there"
        ) from error
    # without files of its vocabulary transformers makes up an empty tokenizer
    if not any((source.folder / file).exists() for file in tokenizer.vocab_files_names.values()):
        raise HarnessError(
            f"{source.name} has no tokenizer file in {source.folder}; copy its tokenizer.json there (Hub: `hf download`)"
        )
    if not tokenizer.is_fast:
        raise HarnessError(
            f"{source.name} has no fast tokenizer, and only a fast one says which characters a token covers; "
            "convert it to tokenizer.json"
        )
    return tokenizer
