"""From evaluations to score rows: every registered metric, per concept and averaged, with intervals. Metrics themselves are plugins.

Averages: `macro` (equal weights) and `weighted` by positive test samples (the paper's headline, method section 6.2). A concept
without a value is in neither; `n` says how many concepts are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.statistics import average, average_intervals, interval, sample_weights
from harness.types import Evaluation, Metric, Score, finite

AVERAGES = ("macro", "weighted")
NO_VECTOR = "no vector: train has no token to fit the concept on"
NO_CUTOFF = "no cutoff: cal has no positive to calibrate on"


def score_rows(
    name: str,
    metric: Metric,
    evaluation: Evaluation,
    layer: str | None,
    bootstrap: Bootstrap,
) -> Iterator[Score]:
    """The rows of one metric at one layer: each concept, macro, weighted."""
    unknown = ~evaluation.calibrated
    values = metric.compute(evaluation, torch.ones(1, bootstrap.samples))[0].masked_fill(unknown, torch.nan).double().numpy()
    again = metric.compute(evaluation, bootstrap.weights) if bootstrap.replicates else torch.empty(0, len(values))
    replicates = again.masked_fill(unknown, torch.nan).double().numpy()
    labels = bootstrap.labels.numpy()
    positives = labels.sum(0)
    for c, concept in enumerate(bootstrap.concepts):
        value = finite(float(values[c]))
        low, high = interval(replicates[:, c])
        reason = None if value is not None else undefined(evaluation, c)
        yield Score(name, layer, concept, value, finite(low), finite(high), int(positives[c]), reason=reason)
    for kind in AVERAGES:
        weights = positives if kind == "weighted" else None
        resampled = bootstrap.weights.double().numpy() @ labels if kind == "weighted" else None
        value = finite(float(average(values, weights)))
        both, alone = average_intervals(replicates, resampled, bootstrap.seed)
        sample_ci = None if math.isnan(alone.low) else (alone.low, alone.high)
        known = int(np.isfinite(values).sum())
        reason = None if value is not None else "no concept has a value"
        yield Score(name, layer, kind, value, finite(both.low), finite(both.high), known, sample_ci, reason)


def undefined(evaluation: Evaluation, concept: int) -> str:
    """Why a metric has no value for a concept."""
    truth = evaluation.truth[:, concept]
    if not evaluation.calibrated[concept]:
        return NO_VECTOR if evaluation.scores[:, concept].isnan().any() else NO_CUTOFF
    if not (truth >= 0).any():
        return "no annotated tokens"
    if not (truth == 1).any():
        return "no positives"
    if not (truth == 0).any():
        return "no negatives"
    return "no scores" if not evaluation.scores[:, concept].isfinite().any() else "0 / 0"


class Bootstrap:
    """The sample weightings of a test split, drawn once and shared by every method, metric and layer: intervals are paired."""

    def __init__(self, labels: Tensor, concepts: Sequence[str], replicates: int, seed: int) -> None:
        self.labels, self.concepts, self.replicates, self.seed = labels.cpu(), tuple(concepts), replicates, seed
        self.samples = len(labels)
        self.weights = torch.from_numpy(sample_weights(self.samples, replicates, seed)).float()


def all_rows(
    metrics: Mapping[str, Metric], kind: str, evaluations: Mapping[str | None, Evaluation], bootstrap: Bootstrap
) -> list[Score]:
    """The rows of every metric of a kind at every layer."""
    return [
        row
        for name, metric in metrics.items()
        if metric.kind == kind
        for layer, evaluation in evaluations.items()
        for row in score_rows(name, metric, evaluation, layer, bootstrap)
    ]
