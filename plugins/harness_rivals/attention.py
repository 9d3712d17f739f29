"""An attention-pooling probe: score = sum_t softmax_t(e_t.q) (e_t.w) + b, with q and w learned together from train sample labels alone.

The attention pooling of Ilse, Tomczak and Welling 2018 ("Attention-based deep multiple instance learning") in its linear form. It sees
no token truth, and ignores the activations it is handed: the concept method beside it serves the map alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from harness.api import Blocks, Concepts, HarnessError, TokenEmbeddings, Units, segment_ids, segment_logsumexp, segment_sum

HELD_BYTES = 1_500_000_000
"""Room for the train tokens of the layers that are learned at once. Where one layer of all samples needs more, samples are drawn."""

BATCH, GOOD = 16, 0.05
INSTEAD = "choose supervised concepts, or a detector that fits nothing (topk-mean, softmax)"


class Probes(NamedTuple):
    """weights [L, d, 2C]: q of every concept, then w of every concept; bias [L, C]."""

    weights: Tensor
    bias: Tensor

    def score(self, values: Tensor, offsets: Tensor) -> Tensor:
        """[L, S, C]; the bias for a sample without tokens."""
        query, strength = torch.matmul(values, self.weights).chunk(2, -1)
        share = (query - segment_logsumexp(query, offsets)[:, segment_ids(offsets)]).exp()
        return segment_sum(share * strength, offsets).to(values.dtype) + self.bias[:, None]


class Lesson(NamedTuple):
    """Train samples at some layers: tokens [l, T, d] of mean square norm 1, offsets [S+1], labels and importance [S, C] float.

    importance: S / (2 n) for each of the n samples of a class, so that both classes weigh alike; 0 where one of them is empty.
    """

    tokens: Tensor
    offsets: Tensor
    labels: Tensor
    importance: Tensor


@dataclass(frozen=True)
class Attention:
    """Adam on the class-balanced cross-entropy of train samples; every concept at every layer by itself, all in the same matmuls.

    epochs: at most so many. A concept stops at a layer after the first epoch whose mean loss is below 0.05 (chance is 0.69); there is
    no other stop, and the last weights are kept. rate, decay: Adam's, weight decay decoupled, for tokens of mean square norm 1.
    Batches of 16 samples, in an order drawn by the run's seed. probes: what `fit` learned; NaN without both classes in train.
    """

    epochs: int = 15
    rate: float = 0.1
    decay: float = 0.01
    probes: Probes | None = None

    calibrate_on = "samples"

    def __post_init__(self) -> None:
        for option, wrong, allowed in (
            ("epochs", self.epochs < 1, "whole numbers from 1"),
            ("rate", not self.rate > 0, "numbers above 0"),
            ("decay", not self.decay >= 0, "numbers from 0"),
        ):
            if wrong:
                raise HarnessError(
                    f"bad value {getattr(self, option)} for option {option!r} of detector 'attention'; allowed: {allowed}"
                )

    def fit(self, train: Blocks, concepts: Concepts | Units) -> Attention:
        """With probes; one pass over train for as many layers as fit `HELD_BYTES`."""
        if isinstance(concepts, Units):
            raise HarnessError(
                f"detector 'attention' learns one probe per concept and cannot match the {len(concepts.units)} unnamed units of this "
                f"concept method; {INSTEAD}"
            )
        samples = drawn(train)
        learned = [self._learn(held, train, samples) for held in held_tokens(train, samples)]
        return replace(self, probes=Probes(*(torch.cat(parts) for parts in zip(*learned, strict=True))))

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, C], logits; -inf without tokens."""
        shape = (activations.shape[0], activations.shape[2])
        if self.probes is None or self.probes.bias.shape != shape:
            fitted = "nothing" if self.probes is None else " x ".join(map(str, self.probes.bias.shape))
            raise HarnessError(
                f"detector 'attention' is fitted per layer and concept; it was given {shape[0]} x {shape[1]} and fitted on {fitted}; "
                f"{INSTEAD}"
            )
        scores = self.probes.score(block.values, block.offsets)
        return scores.masked_fill((block.offsets.diff() == 0)[None, :, None], -torch.inf)

    def _learn(self, held: Tensor, train: Blocks, samples: Tensor) -> Probes:
        """The probes of the held layers [l, T, d]; their tokens are those of the samples, and are scaled in place."""
        norm = torch.linalg.vector_norm(held, dim=(1, 2), keepdim=True) / max(held.shape[1], 1) ** 0.5
        norm = norm.clamp(min=torch.finfo(norm.dtype).tiny)
        labels = train.labels[samples].float()
        lesson = Lesson(held.div_(norm), offsets_of(train.offsets.diff()[samples]), labels, balance(labels))
        probes = Probes(
            start(train).to(held.device).repeat(len(held), 1, 1).requires_grad_(),
            torch.zeros(len(held), labels.shape[1], device=held.device, requires_grad=True),
        )
        optimizer = torch.optim.AdamW(probes, lr=self.rate, weight_decay=self.decay)
        generator = torch.Generator().manual_seed(train.seed)
        unfit = lesson.importance.sum(0) == 0
        stopped = unfit.repeat(len(held), 1)
        for _ in range(self.epochs):
            if bool(stopped.all()):
                break
            before = [part.detach().clone() for part in probes]
            loss = epoch(probes, lesson, optimizer, torch.randperm(len(samples), generator=generator).to(held.device))
            for part, old, keep in zip(probes, before, (stopped.repeat(1, 2)[:, None], stopped), strict=True):
                part.data.copy_(torch.where(keep, old, part.data))
            stopped |= loss < GOOD
        weights, bias = (part.detach() for part in probes)
        return Probes((weights / norm).masked_fill(unfit.repeat(2), torch.nan), bias.masked_fill(unfit, torch.nan))


def epoch(probes: Probes, lesson: Lesson, optimizer: torch.optim.Optimizer, order: Tensor) -> Tensor:
    """[l, C]: the mean loss of one pass over the samples in the given order."""
    total = torch.zeros_like(probes.bias)
    for batch in order.split(BATCH):
        places, offsets = gathered(lesson.offsets, batch)
        scores = probes.score(lesson.tokens[:, places], offsets)
        loss = binary_cross_entropy_with_logits(scores, lesson.labels[batch].expand_as(scores), reduction="none")
        loss = (lesson.importance[batch] * loss).sum(1)
        optimizer.zero_grad()
        (loss.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach()
    return total / len(order)


def balance(labels: Tensor) -> Tensor:
    """[S, C]: the importance of every sample, see `Lesson`."""
    positive = labels.sum(0)
    rarity = torch.where(labels > 0, positive, len(labels) - positive)
    both = (positive > 0) & (positive < len(labels))
    return torch.where(both, len(labels) / (2 * rarity.clamp(min=1)), 0.0)


def start(train: Blocks) -> Tensor:
    """[d, 2C]: normal numbers of variance 1/d, the same at every layer; a concept's depend on the seed and its place alone."""
    generators = (torch.Generator().manual_seed(train.seed * 1_000_003 + c) for c in range(len(train.concepts)))
    columns = [torch.randn(train.width, 2, generator=generator) for generator in generators]
    return torch.stack(columns, 2).reshape(train.width, -1) / train.width**0.5


def drawn(train: Blocks) -> Tensor:
    """Places of the train samples with tokens, ascending: all, or as many as one layer has room for, drawn by the run's seed."""
    lengths = train.offsets.diff()
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(train.seed)).to(lengths.device)
    order = order[lengths[order] > 0]
    fits = 4 * train.width * lengths[order].cumsum(0) <= HELD_BYTES
    return order[fits].sort().values


def held_tokens(train: Blocks, samples: Tensor) -> Iterator[Tensor]:
    """[l, T, d]: the samples' tokens, for as many layers in turn as fit `HELD_BYTES`, at least one; each in one pass over train."""
    places, _ = gathered(train.offsets, samples)
    step = max(1, HELD_BYTES // max(4 * len(places) * train.width, 1))
    for first in range(0, len(train.sites), step):
        held = torch.empty(min(step, len(train.sites) - first), len(places), train.width, device=places.device)
        begin = 0
        for block in train:
            end = begin + block.values.shape[1]
            low, high = torch.searchsorted(places, torch.tensor([begin, end], device=places.device)).tolist()
            held[:, low:high] = block.values[first : first + step, places[low:high] - begin]
            begin = end
        yield held


def gathered(offsets: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """(places of the samples' tokens, one sample after the other; the offsets of the samples among these)."""
    lengths = offsets.diff()[samples]
    ends = offsets_of(lengths)
    shift = (offsets[samples] - ends[:-1]).repeat_interleave(lengths)
    return torch.arange(len(shift), device=shift.device) + shift, ends


def offsets_of(lengths: Tensor) -> Tensor:
    """[S+1]: 0, and where each of the S samples ends."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
