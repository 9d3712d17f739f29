"""The method again, from its definitions, in Python loops and float64: what the pipe must give on small data, decision by decision.

Written from the paper's definitions and not from the code. Slow on purpose: one value at a time, ranks as fractions, None where
undefined.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rows:
    """One split: per sample its id, labels [C], truth [T, C] and raw values [L, T, d]; of a summary, T is 1 or (no tokens) 0."""

    ids: list[str]
    labels: list[Array]
    truth: list[Array]
    values: list[Array]


def normalise(how: str, train: Rows, rows: Rows) -> list[Array]:
    """float64 [L, T, d] per sample: minus the train mean, over sqrt(E[|x|^2]) of the uncentred train tokens."""
    every = np.concatenate(train.values, 1).astype(np.float64)
    out = []
    for values in rows.values:
        done = np.zeros(values.shape)
        for layer in range(len(every)):
            mean = every[layer].sum(0) / every.shape[1]
            if how == "train":
                scale: Any = math.sqrt((every[layer] ** 2).sum() / every.shape[1])
            elif how == "standardize":
                scale = np.sqrt(((every[layer] - mean) ** 2).sum(0) / every.shape[1])
            else:
                mean, scale = 0.0, 1.0
            done[layer] = (values[layer].astype(np.float64) - mean) / scale
        out.append(done)
    return out


def quantile(values: list[float], level: float) -> float | None:
    """The (1 - level)-quantile, linear interpolation between order statistics, the rank an exact fraction; None of nothing."""
    if not values or any(math.isnan(x) for x in values):
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * (1 - Fraction(str(level)))
    low = rank.numerator // rank.denominator
    if rank == low:
        return float(ordered[low])
    return float(ordered[low] + float(rank - low) * (float(ordered[low + 1]) - float(ordered[low])))


def count(decisions: list[bool], truth: list[int]) -> tuple[int, int, int]:
    """(TP, FP, FN); truth -1 is in no count."""
    pairs = list(zip(decisions, truth, strict=True))
    return sum(d and t == 1 for d, t in pairs), sum(d and t == 0 for d, t in pairs), sum(not d and t == 1 for d, t in pairs)


def f1(tp: int, fp: int, fn: int) -> float | None:
    """2 TP / (2 TP + FP + FN)."""
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None


def first_best(values: list[float | None]) -> int | None:
    """The place of the largest number, the first among equals; None where there is no number."""
    best = None
    for i, value in enumerate(values):
        if value is not None and (best is None or value > values[best]):  # type: ignore[operator]
            best = i
    return best


def reaches(score: float, cutoff: float | None) -> bool:
    """Detected: the score is at the cutoff or above."""
    return cutoff is not None and not math.isnan(score) and score >= cutoff


def pool(how: str, tokens: Array, sample_id: str, seed: int) -> float:
    """One score from a sample's token activations [T]; -inf without tokens. The mean is rounded to the activations' float32."""
    if len(tokens) == 0:
        return -math.inf
    if any(math.isnan(x) for x in tokens):
        return math.nan
    if how in ("superactivator", "max"):
        return max(float(x) for x in tokens)
    if how == "mean":
        return float(np.float32(math.fsum(float(x) for x in tokens) / len(tokens)))
    if how == "last":
        return float(tokens[-1])
    digest = hashlib.sha256(f"{seed}:{sample_id}".encode()).digest()
    return float(tokens[int.from_bytes(digest[:7], "big") % len(tokens)])


@dataclass(frozen=True)
class Detection:
    """Scores [S][L][C] of cal and test; cutoffs, cal counts and F1 [P][L][C]; level [L][C] and layer [C] as places."""

    cal: list[list[list[float]]]
    test: list[list[list[float]]]
    cutoffs: list[list[list[float | None]]]
    token_cutoffs: list[list[list[float | None]]]
    counts: list[list[list[tuple[int, int, int]]]]
    f1: list[list[list[float | None]]]
    level: list[list[int | None]]
    layer: list[int | None]

    def cutoff(self, c: int) -> float | None:
        """The cutoff at the chosen layer and level."""
        layer = self.layer[c]
        return None if layer is None else self.cutoffs[self.level[layer][c]][layer][c]  # type: ignore[index]

    def token_cutoff(self, c: int) -> float | None:
        """What a super-activator token must reach at the chosen layer and level."""
        layer = self.layer[c]
        return None if layer is None else self.token_cutoffs[self.level[layer][c]][layer][c]  # type: ignore[index]

    def decisions(self, split: str, c: int) -> list[bool]:
        """Per sample, at the chosen layer and level."""
        scores = self.cal if split == "cal" else self.test
        return [reaches(sample[self.layer[c] or 0][c], self.cutoff(c)) for sample in scores]


def detect(how: str, activations: dict[str, list[Array]], rows: dict[str, Rows], seed: int) -> Detection:
    """From token activations [L, T, C] per sample of cal and test to the choice of level and layer; nothing of test is looked at."""
    layers, concepts = activations["cal"][0].shape[0], activations["cal"][0].shape[2]
    places = [(layer, c) for layer in range(layers) for c in range(concepts)]

    def scores(split: str) -> list[list[list[float]]]:
        samples = zip(activations[split], rows[split].ids, strict=True)
        return [[[pool(how, a[la, :, c], name, seed) for c in range(concepts)] for la in range(layers)] for a, name in samples]

    def table(value: Any) -> list[list[list[Any]]]:
        return [[[value(p, layer, c) for c in range(concepts)] for layer in range(layers)] for p in range(len(LEVELS))]

    cal = scores("cal")
    positives = [[s for s, labels in enumerate(rows["cal"].labels) if labels[c]] for c in range(concepts)]
    inside = {
        (layer, c): [
            float(a[layer, t, c])
            for a, truth in zip(activations["cal"], rows["cal"].truth, strict=True)
            for t in range(a.shape[1])
            if truth[t, c] == 1
        ]
        for layer, c in places
    }
    pooled = {(la, c): [cal[s][la][c] for s in positives[c] if cal[s][la][c] != -math.inf] for la, c in places}
    on_tokens = table(lambda p, layer, c: quantile(inside[layer, c], LEVELS[p]))
    cutoffs = on_tokens if how == "superactivator" else table(lambda p, layer, c: quantile(pooled[layer, c], LEVELS[p]))

    def counted(p: int, layer: int, c: int) -> tuple[int, int, int]:
        found = [reaches(sample[layer][c], cutoffs[p][layer][c]) for sample in cal]
        return count(found, [int(labels[c]) for labels in rows["cal"].labels])

    counts = table(counted)
    scored = table(lambda p, layer, c: f1(*counts[p][layer][c]) if cutoffs[p][layer][c] is not None else None)
    level = [
        [first_best([scored[p][layer][c] for p in range(len(LEVELS))]) for c in range(concepts)] for layer in range(layers)
    ]

    def best(layer: int, c: int) -> float | None:
        return None if level[layer][c] is None else scored[level[layer][c]][layer][c]  # type: ignore[index,no-any-return]

    layer = [first_best([best(la, c) for la in range(layers)]) for c in range(concepts)]
    return Detection(cal, scores("test"), cutoffs, on_tokens, counts, scored, level, layer)


def match(how: str, activations: list[Array], rows: Rows, seed: int) -> list[list[int | None]]:
    """[L][C]: the unit whose best cal F1 over levels is best, from the activations [L, T, K] of each cal sample; one pair at a time."""
    layers, _, units = activations[0].shape
    found = []
    for layer in range(layers):
        pooled = [
            [pool(how, a[layer, :, k], name, seed) for a, name in zip(activations, rows.ids, strict=True)] for k in range(units)
        ]
        row = []
        for c in range(len(rows.labels[0])):
            true = [int(labels[c]) for labels in rows.labels]
            scores = []
            for k in range(units):
                inside = [
                    float(x) for a, y in zip(activations, rows.truth, strict=True) for x in a[layer, y[:, c] == 1, k].tolist()
                ]
                if how != "superactivator":
                    inside = [x for x, y in zip(pooled[k], true, strict=True) if y and x != -math.inf]
                tried = [quantile(inside, level) for level in LEVELS]
                counted = [None if cut is None else f1(*count([reaches(x, cut) for x in pooled[k]], true)) for cut in tried]
                best = first_best(counted)
                scores.append(None if best is None else counted[best])
            row.append(first_best(scores))
        found.append(row)
    return found


def unit(vector: Array) -> Array:
    """The vector over its length; cosine needs no more."""
    return vector / max(math.sqrt(float(vector @ vector)), 1e-300)


@dataclass(frozen=True)
class Map:
    """One concept's map: scores of cal and test tokens per sample, level (a place), cutoff, cal F1, decisions on test."""

    cal: list[Array]
    test: list[Array]
    level: int | None
    cutoff: float | None
    cal_f1: float | None
    decisions: list[list[bool]]


def super_vector(
    kind: str, tokens: dict[str, list[Array]], strengths: dict[str, list[Array]], cutoff: float, own: Array
) -> dict[str, list[Array]]:
    """Per sample of cal and test the vector a token is compared with. Super-activators are train tokens that reach the cutoff."""
    strong = [
        (float(s), token.astype(np.float64))
        for sample, row in zip(tokens["train"], strengths["train"], strict=True)
        for token, s in zip(sample, row, strict=True)
        if s >= cutoff
    ]
    fallback = own.astype(np.float64)
    if kind != "sample-mean" and strong:
        top = max(s for s, _ in strong)
        weights = [math.exp(s - top) if kind == "global-softmax" else 1.0 for s, _ in strong]
        fallback = sum(w * token for w, (_, token) in zip(weights, strong, strict=True)) / sum(weights)
    found: dict[str, list[Array]] = {}
    for split in ("cal", "test"):
        found[split] = []
        for sample, row in zip(tokens[split], strengths[split], strict=True):
            mine = [token.astype(np.float64) for token, s in zip(sample, row, strict=True) if s >= cutoff]
            found[split].append(sum(mine) / len(mine) if kind == "sample-mean" and mine else fallback)
    return found


def localise(kind: str, c: int, seen: Detection, on_tokens: bool, given: dict[str, Any], rows: dict[str, Rows]) -> Map | None:
    """One concept's map, its level chosen on cal. kind: direct, or a vector of super-activators.

    given: `activations` and `tokens` (normalised values), split -> per sample [L, T, C] and [L, T, d], and `vectors` [L, C, d].
    """
    layer, detected = seen.layer[c], {split: seen.decisions(split, c) for split in ("cal", "test")}
    if layer is None:
        return None
    strengths = {split: [a[layer, :, c] for a in found] for split, found in given["activations"].items()}
    maps = {split: strengths[split] for split in ("cal", "test")}
    if kind != "direct":
        tokens = {split: [values[layer] for values in found] for split, found in given["tokens"].items()}
        vectors = super_vector(kind, tokens, strengths, seen.token_cutoff(c), given["vectors"][layer, c])  # type: ignore[arg-type]
        maps = {
            split: [
                np.array([unit(t.astype(np.float64)) @ unit(v) for t in sample], np.float64).astype(np.float32)
                for sample, v in zip(tokens[split], vectors[split], strict=True)
            ]
            for split in maps
        }
    truth = {split: [rows[split].truth[s][:, c] for s in range(len(rows[split].ids))] for split in maps}
    inside = [
        float(x)
        for scores, true, found in zip(maps["cal"], truth["cal"], detected["cal"], strict=True)
        for x, t in zip(scores, true, strict=True)
        if t == 1 and (found or kind == "direct")
    ]
    cutoffs = [quantile(inside, level) for level in LEVELS]

    def decide(split: str, cutoff: float | None) -> list[list[bool]]:
        pairs = zip(maps[split], detected[split], strict=True)
        return [[found and reaches(float(x), cutoff) for x in scores] for scores, found in pairs]

    def cal_f1(p: int) -> float | None:
        below = kind == "direct" and on_tokens and p < seen.level[layer][c]  # type: ignore[operator]
        if below or cutoffs[p] is None:
            return None
        return f1(
            *count([x for found in decide("cal", cutoffs[p]) for x in found], [int(t) for true in truth["cal"] for t in true])
        )

    scored = [cal_f1(p) for p in range(len(LEVELS))]
    level = first_best(scored)
    cutoff = None if level is None else cutoffs[level]
    return Map(maps["cal"], maps["test"], level, cutoff, None if level is None else scored[level], decide("test", cutoff))
