"""Metrics of counts: TP, FP and FN per sample, then one matmul with the sample weights. Items with truth -1 are in no count."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.api import Evaluation, segment_sum


def weighted_counts(evaluation: Evaluation, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(TP, FP, FN), each [B, C] float64."""
    positive, negative = evaluation.truth == 1, evaluation.truth == 0
    cells = (evaluation.decisions & positive, evaluation.decisions & negative, ~evaluation.decisions & positive)
    tp, fp, fn = (weights.double() @ segment_sum(cell.double()[None], evaluation.offsets)[0] for cell in cells)
    return tp, fp, fn


def ratio(above: Tensor, below: Tensor, positives: Tensor) -> Tensor:
    """above / below; NaN where below is 0 or there is no positive."""
    return torch.where((below > 0) & (positives > 0), above / below, torch.nan)


class F1:
    """2TP / (2TP + FP + FN); undefined only where that is 0 / 0 or the split has no positives. 0 when nothing is found."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "2p/(1+p) for yes to all", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        tp, fp, fn = weighted_counts(evaluation, weights)
        return ratio(2 * tp, 2 * tp + fp + fn, tp + fn)


class Precision:
    """TP / (TP + FP); undefined where nothing is detected."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "p", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        tp, fp, fn = weighted_counts(evaluation, weights)
        return ratio(tp, tp + fp, tp + fn)


class Recall:
    """TP / (TP + FN)."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "share detected", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        tp, _, fn = weighted_counts(evaluation, weights)
        return ratio(tp, tp + fn, tp + fn)


class TokenF1(F1):
    """F1 over tokens, pooled over the samples of a split; an undetected sample's tokens are all predicted negative."""

    kind = "localization"


class TokenIou:
    """TP / (TP + FP + FN) over tokens, pooled over the samples of a split (not a mean of per-sample ratios)."""

    kind, unit, range, chance, higher_is_better, version = "localization", "share", (0.0, 1.0), "p for all tokens", True, 1

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, C]."""
        tp, fp, fn = weighted_counts(evaluation, weights)
        return ratio(tp, tp + fp + fn, tp + fn)
