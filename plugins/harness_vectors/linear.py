"""Linear separators by three named estimators, all layers at once; activation e.w without bias, not divided by |w| (section 4).

lda       closed form from one Gram matrix, ridge shrinkage: the default, fastest, and as good in detection
logistic  L-BFGS to convergence on a balanced token sample, L2 penalty as scikit-learn's C
adam      the paper's recipe (section 3, linsep): bias-free, BCE, Adam, StepLR, early stop on train
The authors undersample without a seed and give a concept without both classes a random vector; here the seed is the run's, and
such a concept gets no vector (NaN), which the result says.

supervision=samples replaces the truth of every token by the label of its sample, for any estimator: no token annotation is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.api import Blocks, TokenEmbeddings, unknown
from harness_vectors.covariance import Covariance, fisher
from harness_vectors.directions import Directions
from harness_vectors.mean import ClassSums


@dataclass(frozen=True)
class Linear:
    """A linear separator per concept and layer.

    supervision: tokens, or samples: every token of a positive sample counts as in the concept, every other token as outside.
    shrinkage: lda; share of the mean variance added to the diagonal. c: logistic; inverse L2 strength, as in scikit-learn.
    epochs: adam; at most so many. max_rows: logistic and adam; tokens held in memory at most, shared by the concepts, beyond which
    the balanced sample of a concept is cut (the paper takes all, which is what happens below the limit).
    """

    estimator: str = "lda"
    shrinkage: float = 1e-2
    c: float = 1.0
    epochs: int = 1000
    max_rows: int = 200_000
    supervision: str = "tokens"

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise unknown("estimator", self.estimator, ESTIMATORS, "concept method 'linear'")
        if self.supervision not in SUPERVISIONS:
            raise unknown("supervision", self.supervision, SUPERVISIONS, "concept method 'linear'")

    @property
    def needs_truth(self) -> bool:
        """Whether train must have annotated tokens."""
        return self.supervision == "tokens"

    def fit(self, train: Blocks) -> Directions:
        """[L, C, d] weights by the named estimator."""
        seen = train if self.needs_truth else BySample(train)
        return Directions(ESTIMATORS[self.estimator](self, seen).float(), cosine=False)


SUPERVISIONS = ("tokens", "samples")


class BySample:
    """`Blocks` in which a token's truth is the label of its sample, annotated or not."""

    def __init__(self, train: Blocks) -> None:
        self._train = train
        self.truth = train.labels.repeat_interleave(train.offsets.diff(), dim=0).to(torch.int8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._train, name)

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        start = 0
        for block in self._train:
            end = start + block.values.shape[1]
            yield replace(block, truth=self.truth[start:end])
            start = end


def lda(options: Linear, train: Blocks) -> Tensor:
    """w = (S + shrinkage * tr(S)/d * I)^-1 (mean of positives - mean of negatives), S the covariance of all train tokens."""
    covariance = Covariance(train)
    classes = (ClassSums(train, 1), ClassSums(train, 0))
    for block in train:
        for sums in (covariance, *classes):
            sums.add(block)
    return fisher(covariance.matrix(), classes[0].mean() - classes[1].mean(), options.shrinkage)


def balanced(train: Blocks, max_rows: int) -> list[tuple[Tensor, Tensor]]:
    """Per concept (positive, negative) token places, equally many, drawn without replacement by the run's seed."""
    cap = max(1, max_rows // (2 * len(train.concepts)))
    drawn = []
    for c in range(len(train.concepts)):
        generator = torch.Generator().manual_seed(train.seed * 1_000_003 + c)
        classes = [(train.truth[:, c] == value).nonzero()[:, 0].cpu() for value in (1, 0)]
        n = min(len(classes[0]), len(classes[1]), cap)
        positive, negative = (places[torch.randperm(len(places), generator=generator)[:n]] for places in classes)
        drawn.append((positive, negative))
    return drawn


def gathered(train: Blocks, drawn: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Per drawn (positive, negative) places: tokens [L, N, d], positives first, and labels [N] float; from one pass over train."""
    index = torch.unique(torch.cat([places for pair in drawn for places in pair])).to(train.truth.device)
    rows = train.rows(index)
    for positive, negative in drawn:
        places = torch.cat([positive, negative]).to(index.device)
        labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(rows.device)
        yield rows[:, torch.searchsorted(index, places)], labels


def logistic(options: Linear, train: Blocks) -> Tensor:
    """The minimum of C * sum log-loss + |w|^2 / 2 on the balanced sample, with an intercept that scoring leaves out."""
    fitted = []
    for tokens, labels in gathered(train, balanced(train, options.max_rows)):
        weight = tokens.new_zeros(tokens.shape[0], tokens.shape[2] + 1)
        if len(labels) == 0:
            fitted.append(weight[:, 1:] + torch.nan)
            continue
        fitted.append(_minimise(weight, tokens, labels, 1 / (options.c * len(labels))))
    return torch.stack(fitted, 1)


def _minimise(weight: Tensor, tokens: Tensor, labels: Tensor, ridge: float) -> Tensor:
    weight.requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=500, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe")
    target = labels.expand(len(tokens), -1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = torch.einsum("lnd,ld->ln", tokens, weight[:, 1:]) + weight[:, :1]
        per_layer = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        total = (per_layer + 0.5 * ridge * weight[:, 1:].square().sum(1)).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach()[:, 1:]


RATE, DECAY, STEP, GAMMA, BATCH = 1e-3, 1e-4, 5, 0.8, 64
PATIENCE, IMPROVEMENT, GOOD = 20, 1e-3, 0.99


def adam(options: Linear, train: Blocks) -> Tensor:
    """The paper's separator: Adam (rate 1e-3, L2 1e-4 inside), rate x 0.8 every 5 epochs, batches of 64, last weights kept.

    A layer stops once its train F1 at 0.5 reaches 0.99, or after 20 epochs in which the train loss did not better the best by 1e-3.
    """
    fitted = []
    for c, (tokens, labels) in enumerate(gathered(train, balanced(train, options.max_rows))):
        generator = torch.Generator().manual_seed(train.seed * 1_000_003 + 500_009 + c)
        if len(labels) == 0:
            fitted.append(tokens.new_full((tokens.shape[0], tokens.shape[2]), torch.nan))
            continue
        fitted.append(_train(tokens, labels, options.epochs, generator))
    return torch.stack(fitted, 1)


def _train(tokens: Tensor, labels: Tensor, epochs: int, generator: torch.Generator) -> Tensor:
    """[L, d]: all layers of one concept side by side; a layer that has stopped keeps its weights.

    The gradient of the loss is X^T (sigmoid(Xw) - y) / n, written out: a step is two small matmuls, and no graph is built.
    """
    layers, _, width = tokens.shape
    rows = tokens.transpose(0, 1).contiguous()  # [N, L, d]: a batch is contiguous memory
    bound = width**-0.5
    start = (torch.rand(width, generator=generator) * 2 - 1) * bound  # torch's default init of a Linear(d -> 1)
    weight = start.to(tokens.device).repeat(layers, 1)
    moments = AdamMoments(torch.zeros_like(weight), torch.zeros_like(weight))
    best = torch.full((layers,), torch.inf, device=tokens.device)
    waited = torch.zeros(layers, device=tokens.device)
    stopped = torch.zeros(layers, dtype=torch.bool, device=tokens.device)
    for epoch in range(epochs):
        before = weight.clone()
        order = torch.randperm(len(labels), generator=generator).to(tokens.device)
        loss = _epoch(rows, labels, weight, moments, order, RATE * GAMMA ** (epoch // STEP))
        weight[stopped] = before[stopped]
        better = loss < best - IMPROVEMENT
        best, waited = torch.where(better, loss, best), torch.where(better, 0, waited + 1)
        stopped |= (waited >= PATIENCE) | (_f1(tokens, labels, weight) >= GOOD)
        if bool(stopped.all()):
            break
    return weight


@dataclass
class AdamMoments:
    """Adam's running averages of the gradient and of its square, and how many steps were taken."""

    first: Tensor
    second: Tensor
    steps: int = 0

    def step(self, weight: Tensor, gradient: Tensor, rate: float) -> None:
        """Moves the weight in place (Kingma and Ba 2015, beta 0.9 and 0.999, epsilon 1e-8)."""
        self.steps += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = (self.second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
        weight.addcdiv_(self.first, scale, value=-rate / (1 - 0.9**self.steps))


def _epoch(rows: Tensor, labels: Tensor, weight: Tensor, moments: AdamMoments, order: Tensor, rate: float) -> Tensor:
    """[L]: the mean train loss of one pass in the given order."""
    total = torch.zeros(rows.shape[1], device=rows.device)
    for batch in order.split(BATCH):
        tokens = rows[batch].transpose(0, 1)  # [L, n, d]
        logits = torch.bmm(tokens, weight[:, :, None])[:, :, 0]
        target = labels[batch].expand_as(logits)
        total += torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
        error = (logits.sigmoid() - target) / len(batch)
        gradient = torch.bmm(error[:, None], tokens)[:, 0] + DECAY * weight
        moments.step(weight, gradient, rate)
    return total / len(labels)


def _f1(tokens: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    found = torch.einsum("lnd,ld->ln", tokens, weight) > 0
    hit = (found & (labels == 1)).sum(1)
    return 2 * hit / (found.sum(1) + (labels == 1).sum())


ESTIMATORS: dict[str, Callable[[Linear, Blocks], Tensor]] = {"lda": lda, "logistic": logistic, "adam": adam}
