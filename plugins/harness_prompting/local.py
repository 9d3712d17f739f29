"""A transformers model that answers on this machine; all concepts of a sample share the forward pass of what their prompts share.

The prompts of a sample are made whole, as text and as token ids, and their longest common beginning is the prefix: it holds the image
or the passage. Its cache is computed once and repeated for the endings. Endings of one length make a batch, so nothing is ever padded:
sliding windows, rotary positions and cross-attention stay as they are for one prompt alone. The first shared result of a model is
compared with the plain forward pass; where they differ, or a cache cannot be repeated, every prompt is run whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.api import HarnessError, Setup, Weights

from .answers import Answer, Question

TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference of a next-token probability between the shared and the plain forward pass, by dtype."""
DAY = "26 Jul 2024"
"""What a chat template with a `date_string`, such as Llama's, is told in place of today: a stored answer is good on every day."""
VARIANTS = {
    word: [f"{space}{form}" for space in ("", " ") for form in (word.lower(), word, word.upper())] for word in ("Yes", "No")
}


class Prompts(NamedTuple):
    """The prompts of one sample: shared ids, each prompt's ending (never empty), tensors per position and tensors of the image."""

    prefix: list[int]
    endings: list[list[int]]
    per_token: Mapping[str, Tensor]
    of_image: Mapping[str, Tensor]


@dataclass
class Loaded:
    """The model and what turns text into its ids."""

    model: Any
    tokenizer: Any
    processor: Any
    yes: list[int]
    no: list[int]
    ends: list[int]


class Local:
    """Answers of a language model or a vision-language model in a folder."""

    def __init__(self, weights: Weights, setup: Setup, modality: str, max_tokens: int, batch_size: int) -> None:
        from transformers import AutoConfig

        self.weights, self.setup, self.max_tokens, self.batch_size = weights, setup, max_tokens, batch_size
        self.identity: Mapping[str, Any] = {"model": weights.name, "revision": weights.revision, "dtype": setup.dtype}
        try:
            self.config = AutoConfig.from_pretrained(weights.folder, trust_remote_code=False, local_files_only=True)
        except ValueError as error:
            first = str(error).strip().splitlines()[0]
            raise HarnessError(
                f"transformers cannot read {weights.name} ({first}); a model with code of its own cannot be asked"
            ) from error
        self.sees = _sees(self.config)
        if modality == "image" and not self.sees:
            raise HarnessError(
                f"{weights.name} ({self.config.model_type}) reads no images; a task of images needs a vision-language model, such as "
                f"prompt:qwen2.5-vl-3b-instruct"
            )
        self.notes: dict[str, Any] = {}
        self.forwards = 0
        self.share = True
        self._checked = False
        self._loaded: Loaded | None = None

    def answer(self, questions: list[Question]) -> Iterator[Mapping[str, Answer]]:
        """Key -> answer, sample by sample; questions about one sample stand together."""
        with torch.inference_mode():
            for (_, kind), group in groupby(questions, lambda question: (question.sample, question.kind)):
                mine = list(group)
                prompts = self.prompts([question.text for question in mine], mine[0].image)
                answers = self._logits(prompts) if kind == "logit" else self._generated(prompts)
                yield {question.key: answer for question, answer in zip(mine, answers, strict=True)}

    def _logits(self, prompts: Prompts) -> list[Answer]:
        loaded = self.loaded
        answers: list[Answer] = []
        for logits in self.next_logits(prompts):
            p = logits.float().softmax(-1)
            answers.append({"yes": float(p[loaded.yes].sum()), "no": float(p[loaded.no].sum())})
        return answers

    # prompts

    def prompts(self, texts: Sequence[str], image: Any = None) -> Prompts:
        """The token ids of every prompt, cut where they stop being the same; the image goes before the text."""
        whole = [self._rendered(text, image is not None) for text in texts]
        plain = self.loaded.tokenizer.chat_template is None and not self.sees
        ids = [self.loaded.tokenizer(text, add_special_tokens=plain).input_ids for text in whole]
        shared = _common([one[:-1] for one in ids])
        prefix, tensors = ids[0][:shared], {}
        if image is not None:
            tensors = dict(
                self.loaded.processor(text=[whole[0]], images=[image], return_tensors="pt", add_special_tokens=False)
            )
            seen = tensors.pop("input_ids")[0].tolist()
            tensors.pop("attention_mask", None)
            ending = ids[0][shared:]
            if seen[len(seen) - len(ending) :] != ending:
                raise HarnessError(
                    f"the processor of {self.weights.name} and its tokenizer differ after the image; it cannot be asked"
                )
            prefix = seen[: len(seen) - len(ending)]
            per_token = {k: v for k, v in tensors.items() if v.shape[:2] == (1, len(seen)) and "pixel" not in k}
            of_image = {k: v.to(self.setup.device) for k, v in tensors.items() if k not in per_token}
            of_image = {k: v.to(self.loaded.model.dtype) if v.is_floating_point() else v for k, v in of_image.items()}
            self._refuse_long(len(seen))
            return Prompts(
                prefix, [one[shared:] for one in ids], {k: v.to(self.setup.device) for k, v in per_token.items()}, of_image
            )
        self._refuse_long(max(map(len, ids)))
        return Prompts(prefix, [one[shared:] for one in ids], {}, {})

    def _rendered(self, text: str, image: bool) -> str:
        """The prompt that ends where the answer starts; special tokens spelled in the text are broken up, since a sample is data."""
        loaded = self.loaded
        for token in sorted(loaded.tokenizer.get_added_vocab(), key=len, reverse=True):
            if len(token) > 1 and token.strip() and token in text and not token.isalnum():
                text = text.replace(token, f"{token[0]} {token[1:]}")
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character, and no tokenizer takes it
        how = {"tokenize": False, "add_generation_prompt": True, "date_string": DAY}
        if self.sees:
            content: list[dict[str, str]] = [{"type": "image"}] if image else []
            message = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
            return str(loaded.processor.apply_chat_template([message], **how))
        if loaded.tokenizer.chat_template is None:
            return f"{text}\n\nAnswer:"
        message = {"role": "user", "content": text}
        return str(loaded.tokenizer.apply_chat_template([message], **how))

    def _refuse_long(self, length: int) -> None:
        text = self.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        if limit and length + self.max_tokens > limit:
            raise HarnessError(
                f"a prompt of {length} tokens and an answer of {self.max_tokens} do not fit the {limit} positions of "
                f"{self.weights.name}; lower max_tokens, or shorten the samples"
            )

    # forward passes

    def next_logits(self, prompts: Prompts) -> list[Tensor]:
        """One [V] per prompt: the logits of the answer's first token."""
        if not self._shares(prompts):
            return [self.plain_logits(prompts, i) for i in range(len(prompts.endings))]
        found: dict[int, Tensor] = {}
        for places, logits, _ in self._started(prompts):
            found.update(zip(places, logits, strict=True))
        return [found[i] for i in range(len(prompts.endings))]

    def _generated(self, prompts: Prompts) -> list[Answer]:
        if not self._shares(prompts):
            return [self._plainly_generated(prompts, i) for i in range(len(prompts.endings))]
        found: dict[int, Answer] = {}
        for places, logits, cache in self._started(prompts):
            found.update(zip(places, self._continued(prompts, logits, cache), strict=True))
        return [found[i] for i in range(len(prompts.endings))]

    def _started(self, prompts: Prompts) -> Iterator[tuple[list[int], Tensor, Any]]:
        """(places, next-token logits [n, V], the cache to go on from) for batches of endings of one length."""
        cache = self._prefilled(prompts)
        order = sorted(range(len(prompts.endings)), key=lambda i: len(prompts.endings[i]))
        for _, same in groupby(order, lambda i: len(prompts.endings[i])):
            left = list(same)
            while left:
                part, before = left[: self.batch_size], self.batch_size
                try:
                    logits, repeated = self._ended(prompts, part, cache)
                    self._refuse_nan(logits)
                except torch.OutOfMemoryError:
                    if before == 1:
                        raise HarnessError(
                            f"{self.weights.name} does not fit the memory of {self.setup.device}; try --dtype bfloat16"
                        ) from None
                    self.batch_size = max(1, before // 2)
                    continue
                yield part, logits, repeated
                left = left[len(part) :]

    def _shares(self, prompts: Prompts) -> bool:
        """Whether to share the prefix: at the first chance the shared numbers are compared with the plain ones."""
        if not self.share or len(prompts.endings) == 1 or not prompts.prefix:
            return False
        if self._checked:
            return True
        self._checked = True
        last, why = len(prompts.endings) - 1, ""
        plain = self.plain_logits(prompts, last).float().softmax(-1)
        try:
            shared = self._ended(prompts, [last, last], self._prefilled(prompts))[0][-1].float().softmax(-1)
            worst = float((plain - shared).abs().max())
            if not worst <= TOLERANCE[self.setup.dtype]:
                why = f"a next-token probability differs by {worst:.2g}"
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if why:
            self.share = False
            self.notes["prefix not shared, prompts run whole"] = why
        return self.share

    def _prefilled(self, prompts: Prompts) -> Any:
        rows = {name: value[:, : len(prompts.prefix)] for name, value in prompts.per_token.items()}
        return self._forward([prompts.prefix], {**rows, **prompts.of_image}, use_cache=True).past_key_values

    def _ended(self, prompts: Prompts, places: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        """(logits [n, V], cache) of endings of one length after the shared prefix."""
        repeated = deepcopy(cache)
        repeated.batch_repeat_interleave(len(places))
        endings = [prompts.endings[i] for i in places]
        rows = self._rows(prompts, len(places), len(endings[0]))
        out = self._forward(endings, rows, past_key_values=repeated, use_cache=True)
        return out.logits[:, -1], out.past_key_values

    def _rows(self, prompts: Prompts, n: int, length: int) -> dict[str, Tensor]:
        """What the model is told of every position, for positions after the image: all are as the last one."""
        return {
            name: value[:, -1:].expand(n, length, *value.shape[2:]).contiguous() for name, value in prompts.per_token.items()
        }

    def plain_logits(self, prompts: Prompts, i: int) -> Tensor:
        """[V]: the same from one whole prompt, without a cache."""
        ids, more = self._whole(prompts, i)
        logits: Tensor = self._forward([ids], more, use_cache=False).logits
        self._refuse_nan(logits[0, -1])
        return logits[0, -1]

    def _refuse_nan(self, logits: Tensor) -> None:
        if bool(logits.isnan().any()):
            raise HarnessError(
                f"{self.weights.name} in {self.setup.dtype} gives NaN for the first token of an answer; its weights are broken or its "
                f"numbers overflow; try --dtype {'float32' if self.setup.dtype != 'float32' else 'bfloat16'}"
            )

    def _whole(self, prompts: Prompts, i: int) -> tuple[list[int], dict[str, Tensor]]:
        ids = prompts.prefix + prompts.endings[i]
        more = self._rows(prompts, 1, len(prompts.endings[i]))
        rows = {name: torch.cat([value[:, : len(prompts.prefix)], more[name]], 1) for name, value in prompts.per_token.items()}
        return ids, {**rows, **prompts.of_image}

    def _continued(self, prompts: Prompts, logits: Tensor, cache: Any) -> list[Answer]:
        """Greedy answers; rows that have ended go on unread until all have."""
        ends = torch.tensor(self.loaded.ends, device=logits.device)
        token = logits.argmax(-1)
        tokens, ended = [token], torch.isin(token, ends)
        while len(tokens) < self.max_tokens and not bool(ended.all()):
            rows = self._rows(prompts, len(token), 1)
            out = self._forward(token[:, None], rows, past_key_values=cache, use_cache=True)
            token, cache = out.logits[:, -1].argmax(-1), out.past_key_values
            tokens.append(token)
            ended |= torch.isin(token, ends)
        return [self._text(row) for row in torch.stack(tokens, 1).tolist()]

    def _plainly_generated(self, prompts: Prompts, i: int) -> Answer:
        from transformers import GenerationConfig

        ids, more = self._whole(prompts, i)
        how = GenerationConfig(
            do_sample=False, max_new_tokens=self.max_tokens, eos_token_id=self.loaded.ends, pad_token_id=self.loaded.ends[0]
        )
        given = torch.tensor([ids], device=self.setup.device)
        self.forwards += 1
        out = self.loaded.model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=how, **more)
        return self._text(out[0, len(ids) :].tolist())

    def _text(self, tokens: list[int]) -> Answer:
        end = next((i for i, token in enumerate(tokens) if token in self.loaded.ends), None)
        text = self.loaded.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return {"text": text, "cut": end is None}

    def _forward(self, ids: Any, tensors: Mapping[str, Any], **more: Any) -> Any:
        self.forwards += 1
        given = ids if isinstance(ids, Tensor) else torch.tensor(ids, device=self.setup.device)
        return self.loaded.model(input_ids=given, **tensors, **more)

    # loading

    @property
    def loaded(self) -> Loaded:
        """The model, loaded at the first question that has no answer yet."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Loaded:
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
            GenerationConfig,
        )

        folder, local = self.weights.folder, {"local_files_only": True, "trust_remote_code": False}
        kind = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        attention = "eager" if getattr(self.config.get_text_config(), "attn_logit_softcapping", None) else None
        with _quiet():
            try:
                processor = AutoProcessor.from_pretrained(folder, **local) if self.sees else None
            except (ImportError, AttributeError) as error:
                raise HarnessError(
                    f"the processor of {self.weights.name} cannot be read ({(str(error).splitlines() or [''])[0][:120]}); most "
                    f"vision-language processors need torchvision; run: pip install torchvision"
                ) from error
            model, report = kind.from_pretrained(
                folder,
                dtype=getattr(torch, self.setup.dtype),
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                **local,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **local) if processor is None else processor.tokenizer
        missing = sorted(report["missing_keys"])
        if missing:
            raise HarnessError(
                f"{self.weights.name} lacks {len(missing)} parameters of {type(model).__name__}, the first {missing[0]}; it is no "
                f"language model with its head, and cannot be asked"
            )
        model = model.to(self.setup.device).eval().requires_grad_(False)
        if processor is not None and processor.chat_template is None:
            raise HarnessError(
                f"{self.weights.name} has no chat template, which says where the image goes; use an instruct model"
            )
        yes, no = self._words(tokenizer)
        given = model.generation_config.eos_token_id
        ends = [*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id]
        known = sorted({end for end in ends if end is not None})
        model.generation_config = GenerationConfig(
            eos_token_id=known
        )  # greedy: no penalty for repetition that was saved with it
        if not known:
            raise HarnessError(f"{self.weights.name} has no token that ends an answer (eos_token); it cannot be asked")
        return Loaded(model, tokenizer, processor, yes, no, known)

    def _words(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """The first tokens of yes and of no in every spelling; a token that begins both says nothing and is left out."""
        first = {word: {tokenizer(form, add_special_tokens=False).input_ids[0] for form in VARIANTS[word]} for word in VARIANTS}
        yes, no = (sorted(first[word] - first[other]) for word, other in (("Yes", "No"), ("No", "Yes")))
        if not yes or not no:
            raise HarnessError(
                f"the tokenizer of {self.weights.name} begins Yes and No with the same token; use answers=generate"
            )
        return yes, no


def _common(ids: Sequence[Sequence[int]]) -> int:
    """The length of the longest common beginning."""
    shortest = min(map(len, ids))
    return next((i for i in range(shortest) if len({one[i] for one in ids}) > 1), shortest)


def _sees(config: Any) -> bool:
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the loading report and bar of transformers."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
