"""The contract checks: everything bundled passes them, and a planted fault of each kind is caught with a sentence that names it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from harness.api import (
    Blocks,
    Concepts,
    Embedded,
    Entry,
    Evaluation,
    HarnessError,
    Inputs,
    Sample,
    Setup,
    Site,
    TokenEmbeddings,
    segment_max,
    segment_mean,
    segment_sum,
)
from harness.registry import KINDS, Registry, load
from harness.testing import (
    RULES,
    Axes,
    MadeUp,
    answers,
    check_backbone,
    check_concept_method,
    check_dataset,
    check_detector,
    check_explainer,
    check_localizer,
    check_metric,
    check_scorer,
    cost,
    made_up_samples,
)

CHECKS: Mapping[str, Callable[[Any], None]] = {
    "detectors": check_detector,
    "concept_methods": check_concept_method,
    "localizers": check_localizer,
    "scorers": check_scorer,
    "metrics": check_metric,
}
OPTIONS = {
    "concept_methods": ["linear:estimator=logistic", "linear:estimator=adam"],
    "localizers": ["superactivator:vector=global-mean", "superactivator:vector=sample-mean"],
}
BUNDLED = load()
NEED_A_MODEL = {"sae", "zero-shot", "prompt"}
"""Parts that are nothing without files of a model; the tests of their plugins check them."""
PARTS = [
    (kind, name) for kind in CHECKS for name in (*BUNDLED.entries(kind), *OPTIONS.get(kind, [])) if name not in NEED_A_MODEL
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fault(check: Callable[..., None], sentence: str, *given: Any, **options: Any) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check(*given, **options)


@pytest.mark.parametrize(("kind", "reference"), PARTS, ids=[f"{kind}-{name}" for kind, name in PARTS])
def test_every_bundled_part_passes_the_check_of_its_kind(kind: str, reference: str):
    part = BUNDLED.create(kind, reference)
    (check_explainer if hasattr(part, "needs") else CHECKS[kind])(part)


def test_every_kind_of_part_has_a_check():
    assert {*CHECKS, "backbones", "datasets", "models"} == set(KINDS)  # a model is a folder, and has no behaviour


def test_the_toy_data_set_passes():
    check_dataset(BUNDLED.target("datasets", "toy"), "tokens")


def test_the_toy_backbone_passes():
    check_backbone(BUNDLED.create("backbones", "toy", Setup()))


def test_a_check_passes_twice_and_leaves_the_global_random_generators_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    check_detector(Good())
    check_detector(Good())
    assert torch.equal(before, torch.get_rng_state())


def test_the_made_up_split_has_an_empty_sample_an_unannotated_one_and_two_ways_to_read_the_same_tokens():
    world = MadeUp()
    assert 0 in world.offsets.diff()
    assert bool((world.truth[-1] == -1).all())
    blocks = list(MadeUp(per_block=2))
    assert torch.equal(torch.cat([block.values for block in blocks], 1), world.values)
    assert torch.equal(torch.cat([block.truth for block in blocks]), world.truth)
    assert torch.equal(world.rows(torch.tensor([0, 7])), world.values[:, [0, 7]])
    assert all(block.labels is None and block.truth is None for block in world.blind())


# Detectors


class Good:
    """The strongest token; each fault below changes one thing."""

    calibrate_on = "samples"

    def pool(self, activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
        return segment_max(activations, block.offsets)


def detector(pool: Callable[[torch.Tensor, TokenEmbeddings], torch.Tensor], **members: Any) -> Any:
    return type("Faulty", (Good,), {"pool": lambda self, a, b: pool(a, b), **members})()


class CountsCalls(Good):
    """Remembers the largest score it has ever seen: what comes out depends on which block came first."""

    def __init__(self) -> None:
        self.best = torch.tensor(-torch.inf)

    def pool(self, activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
        scores = segment_max(activations, block.offsets)
        self.best = torch.maximum(self.best, scores.max())
        return torch.where(scores.isfinite(), scores + (self.best == scores.max()), scores)


def centred_on_the_block(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations - activations.mean(1, keepdim=True), block.offsets)


def previous_sample(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    scores = segment_max(activations, block.offsets)
    return torch.where(scores.isfinite(), torch.maximum(scores, scores.roll(1, 1)), scores)


def place_in_the_block(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations, block.offsets) + torch.arange(len(block.ids))[None, :, None]


def zero_when_empty(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations, block.offsets).nan_to_num(neginf=0.0)


def not_finite(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    scores = segment_max(activations, block.offsets)
    return torch.where(block.offsets.diff()[None, :, None] == 1, torch.nan, scores)


def unseeded(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations, block.offsets) + torch.rand(())


def from_the_clock(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations, block.offsets) + float(np.random.default_rng().random())


def reads_labels(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations, block.offsets) + block.labels.float()


def reads_truth(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations * (block.truth == 1), block.offsets)


def upside_down(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_mean(-activations, block.offsets)


def samples_first(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations, block.offsets).transpose(0, 1)


def in_place(activations: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return segment_max(activations.mul_(2), block.offsets)


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        (centred_on_the_block, "depends on the other samples of its block"),
        (previous_sample, "depends on the other samples of its block"),
        (place_in_the_block, "depends on the other samples of its block"),
        (zero_when_empty, "without tokens a score; it must be -inf"),
        (not_finite, "not finite"),
        (unseeded, "draws from a global random generator"),
        (from_the_clock, "other values each time"),
        (reads_labels, "without labels and truth"),
        (reads_truth, "looks at labels or truth"),
        (upside_down, "not monotone"),
        (samples_first, r"has shape \[12, 2, 3\]; it must be \[2, 12, 3\]"),
        (in_place, "changes the activations"),
    ],
)
def test_a_faulty_detector_is_caught_and_the_sentence_says_why(pool: Callable[..., torch.Tensor], sentence: str):
    fault(check_detector, sentence, detector(pool))


def test_a_detector_that_remembers_earlier_blocks_is_caught():
    fault(check_detector, "each time|other samples|order of the samples", CountsCalls())


@pytest.mark.parametrize("allowed", ["tokens", "samples"])
def test_a_detector_may_be_calibrated_on_tokens_or_on_samples(allowed: str):
    check_detector(detector(Good().pool, calibrate_on=allowed))


@pytest.mark.parametrize("wrong", ["token", "fixed", "detected", None])
def test_a_detector_calibrated_on_anything_else_is_caught(wrong: Any):
    fault(check_detector, "calibrate_on is .*; allowed: tokens, samples", detector(Good().pool, calibrate_on=wrong))


def test_a_detector_without_a_member_of_its_protocol_is_caught():
    fault(check_detector, "object has no pool, calibrate_on; see its Protocol", object())


def test_a_detector_whose_fit_returns_nothing_is_caught():
    fault(check_detector, "fit returns nothing", detector(Good().pool, fit=lambda self, train, concepts: None))


def test_a_detector_whose_fit_draws_from_numpy_or_python_is_caught():
    for draw in (np.random.rand, random.random):
        faulty = detector(Good().pool, fit=lambda self, train, concepts, draw=draw: (draw(), self)[1])
        fault(check_detector, "draws from a global random generator", faulty)


# Concept methods


@dataclass(frozen=True)
class Vectors:
    vectors: torch.Tensor | None

    def activate(self, block: TokenEmbeddings) -> torch.Tensor:
        return block.values @ self.vectors.transpose(1, 2)


class GoodMeans:
    """Mean of the positive tokens, accumulated over blocks."""

    def fit(self, train: Blocks) -> Concepts:
        return Vectors(self.means(train).float())

    def means(self, train: Blocks) -> torch.Tensor:
        total = torch.zeros(len(train.sites), len(train.concepts), train.width, dtype=torch.float64)
        for block in train:
            total += (block.truth == 1).double().T @ block.values.double()
        return total / (train.truth == 1).sum(0)[:, None]


class Unseeded(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        return Vectors(torch.randn(len(train.sites), len(train.concepts), train.width))


class NewSeedEachTime(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        noise = np.random.default_rng().standard_normal((len(train.sites), len(train.concepts), train.width))
        return Vectors(torch.from_numpy(noise).float())


class LastBlockOnly(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        for block in train:
            if (block.truth == 1).any(0).all():
                kept = (block.truth == 1).float().T @ block.values
        return Vectors(kept)


class Spoiled(GoodMeans):
    """One NaN row makes every activation NaN."""

    def fit(self, train: Blocks) -> Concepts:
        means = self.means(train)
        return Vectors((means - means.mean(1, keepdim=True)).float())


class Blank(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        return Vectors(torch.full_like(self.means(train), torch.nan).float())


class OneSiteUnread(GoodMeans):
    """At a site that it does not read everything is NaN, and that is fine."""

    def fit(self, train: Blocks) -> Concepts:
        means = self.means(train).float()
        return Vectors(torch.stack([torch.full_like(means[0], torch.nan), means[1]]))


class OneLayer(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        return Vectors(self.means(train)[:1].float())


class Transposed(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        found = self.means(train).float()

        class Units(Vectors):
            def activate(self, block: TokenEmbeddings) -> torch.Tensor:
                return block.values @ found.transpose(1, 2)

        return Units(found.transpose(1, 2))


class TwiceAsWide(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        found = self.means(train)

        class Units(Vectors):
            def activate(self, block: TokenEmbeddings) -> torch.Tensor:
                return block.values.double() @ found.transpose(1, 2)

        return Units(found)


class Centred(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        class Units(Vectors):
            def activate(self, block: TokenEmbeddings) -> torch.Tensor:
                return (block.values - block.values.mean(1, keepdim=True)) @ self.vectors.transpose(1, 2)

        return Units(self.means(train).float())


class ReadsLabels(GoodMeans):
    def fit(self, train: Blocks) -> Concepts:
        class Units(Vectors):
            def activate(self, block: TokenEmbeddings) -> torch.Tensor:
                return (block.truth == 1).float().expand(len(block.sites), -1, -1)

        return Units(self.means(train).float())


class InPlace(GoodMeans):
    def fit(self, train: Any) -> Concepts:
        train.values.mul_(2)
        return super().fit(train)


@pytest.mark.parametrize("method", [GoodMeans, OneSiteUnread])
def test_a_method_of_mean_vectors_passes(method: type):
    check_concept_method(method())


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (Unseeded, "draws from a global random generator"),
        (NewSeedEachTime, "other units each time"),
        (LastBlockOnly, "depends on the block size"),
        (Spoiled, "one concept without positives spoils the others"),
        (Blank, "every activation is NaN"),
        (OneLayer, r"vectors has shape|has shape"),
        (Transposed, r"vectors has shape \[2, 8, 3\]; it must be \[2, 3, 8\]"),
        (TwiceAsWide, "torch.float64; they must be float32"),
        (Centred, "depends on the other samples of its block"),
        (ReadsLabels, "without labels and truth"),
        (InPlace, "changes the tokens"),
    ],
)
def test_a_faulty_concept_method_is_caught_and_the_sentence_says_why(method: type, sentence: str):
    fault(check_concept_method, sentence, method())


# Localizers


class GoodMap:
    calibrate_on = "tokens"

    def score(self, block: TokenEmbeddings, explained: Any) -> torch.Tensor:
        return explained.activations(block)


def localizer(score: Callable[..., torch.Tensor], **members: Any) -> Any:
    return type("Faulty", (GoodMap,), {"score": lambda self, b, e: score(b, e), **members})()


def test_a_map_of_activations_passes():
    check_localizer(GoodMap())


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        (lambda b, e: e.activations(b) - e.activations(b).mean(0), "depends on the other samples of its block"),
        (lambda b, e: e.activations(b) + torch.rand(()), "global random generator"),
        (lambda b, e: e.activations(b).T, r"has shape \[3, 40\]; it must be \[40, 3\]"),
        (lambda b, e: e.activations(b)[:, :1], r"has shape \[40, 1\]"),
        (lambda b, e: e.activations(b) / 0, "not finite"),
        (lambda b, e: e.activations(b) * (b.truth == 1), "looks at labels or truth"),
        (lambda b, e: e.activations(b) + torch.arange(b.values.shape[1])[:, None], "depends on the other samples"),
    ],
)
def test_a_faulty_localizer_is_caught_and_the_sentence_says_why(score: Callable[..., torch.Tensor], sentence: str):
    fault(check_localizer, sentence, localizer(score))


def test_a_localizer_calibrated_on_samples_is_caught():
    fault(
        check_localizer,
        "calibrate_on is 'samples'; allowed: tokens, detected",
        localizer(GoodMap().score, calibrate_on="samples"),
    )


# Explainers


class LeaveOneOut:
    """The score lost without a token."""

    needs, calibrate_on = frozenset({"inputs"}), "detected"

    def forwards(self, tokens: int, concepts: int) -> int:
        return tokens + 1

    def explain(self, probe: Any, concepts: Sequence[int]) -> torch.Tensor:
        keep = ~torch.eye(probe.tokens, dtype=torch.bool)
        whole = probe.masked(torch.ones(1, probe.tokens, dtype=torch.bool))
        return (whole - probe.masked(keep))[:, list(concepts)].float()


def explainer(change: Callable[..., torch.Tensor] = lambda found, probe, concepts: found, **members: Any) -> Any:
    def explain(self: Any, probe: Any, concepts: Sequence[int]) -> torch.Tensor:
        return change(LeaveOneOut().explain(probe, concepts), probe, concepts)

    return type("Faulty", (LeaveOneOut,), {"explain": explain, **members})()


def test_leaving_tokens_out_passes():
    check_explainer(LeaveOneOut())


@pytest.mark.parametrize(
    ("change", "members", "sentence"),
    [
        (lambda a, p, c: a.T, {}, r"explain has shape \[2, 7\]; it must be \[7, 2\]"),
        (lambda a, p, c: a.double(), {}, "torch.float64; it must be float32"),
        (lambda a, p, c: a / 0, {}, "finite numbers without a graph"),
        (lambda a, p, c: a + 0 * p.f(p.leaf[None].clone().requires_grad_()).sum(), {}, "without a graph"),
        (lambda a, p, c: a + 0.01 * torch.rand(a.shape), {}, "draws from a global random generator"),
        (lambda a, p, c: a + torch.rand(a.shape, generator=Once.generator), {}, "other values each time"),
        (lambda a, p, c: a - a.mean(1, keepdim=True), {}, "depends on the other concepts"),
        (lambda a, p, c: -a, {}, "does not find the token"),
        (lambda a, p, c: a + 0 * p.leaf.zero_().sum(), {}, "changes the sample"),
        (lambda a, p, c: a, {"needs": frozenset({"weights"})}, "needs is {'weights'}; allowed: inputs, gradients"),
        (lambda a, p, c: a, {"needs": frozenset()}, "needs is"),
        (lambda a, p, c: a, {"forwards": lambda self, t, c: 0}, "forwards is 0; it must be a number of forward passes"),
        (lambda a, p, c: a, {"calibrate_on": "samples"}, "calibrate_on is 'samples'; allowed: tokens, detected"),
        (lambda a, p, c: a, {"directions": torch.ones(2, 8)}, r"directions has shape \[2, 8\]; it must be \[3, 8\]"),
        (lambda a, p, c: a, {"fit": lambda self, train, explained: None}, "returns nothing"),
    ],
)
def test_a_faulty_explainer_is_caught_and_the_sentence_says_why(change: Any, members: dict[str, Any], sentence: str):
    fault(check_explainer, sentence, explainer(change, **members))


class Once:
    """Luck that no call repeats."""

    generator = torch.Generator().manual_seed(0)


# Scorers


class GoodScorer:
    calibrate_on = "samples"

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray:
        return np.array([[float(len(sample.text or "") + len(concept)) for concept in concepts] for sample in samples])


def scorer(change: Callable[[np.ndarray], np.ndarray], **members: Any) -> Any:
    def score(self: Any, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray:
        return change(GoodScorer().score(samples, concepts))

    return type("Faulty", (GoodScorer,), {"score": score, **members})()


def test_a_scorer_that_answers_by_length_passes():
    check_scorer(GoodScorer())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s + np.arange(len(s))[:, None], "depends on the other samples or their order"),
        (lambda s: s - s.mean(), "depends on the other samples or their order"),
        (lambda s: s.astype(np.float32), r"is float32 \[12, 3\]; it must be float64"),
        (lambda s: s.T, r"is float64 \[3, 12\]; it must be float64 \[S, C\] = \[12, 3\]"),
        (lambda s: s + np.random.rand(), "global random generator"),
        (lambda s: s + np.random.default_rng().random(), "other scores each time"),
        (lambda s: np.full_like(s, np.nan), "no answer"),
    ],
)
def test_a_faulty_scorer_is_caught_and_the_sentence_says_why(change: Callable[[np.ndarray], np.ndarray], sentence: str):
    fault(check_scorer, sentence, scorer(change))


def test_only_a_scorer_with_a_fixed_cutoff_may_give_no_answer():
    check_scorer(scorer(lambda s: np.full_like(s, np.nan), calibrate_on="fixed"))


def test_a_scorer_whose_fit_returns_nothing_is_caught():
    fault(check_scorer, "fit returns nothing", scorer(lambda s: s, fit=lambda self, samples, labels, seed: None))


# Metrics


class GoodShare:
    """Precision over samples."""

    kind, unit, range, chance, higher_is_better, version = "detection", "share", (0.0, 1.0), "p", True, 1

    def compute(self, evaluation: Evaluation, weights: torch.Tensor) -> torch.Tensor:
        yes, no = evaluation.truth == 1, evaluation.truth == 0
        hit, miss = (
            self.sums(evaluation.decisions & yes, evaluation, weights),
            self.sums(evaluation.decisions & no, evaluation, weights),
        )
        return torch.where(self.sums(yes, evaluation, weights) > 0, hit / (hit + miss), torch.nan)

    def sums(self, cells: torch.Tensor, evaluation: Evaluation, weights: torch.Tensor) -> torch.Tensor:
        return weights.double() @ segment_sum(cells.double()[None], evaluation.offsets)[0]


def metric(change: Callable[[GoodShare, Evaluation, torch.Tensor], torch.Tensor], **members: Any) -> Any:
    return type("Faulty", (GoodShare,), {"compute": lambda self, e, w: change(GoodShare(), e, w), **members})()


def test_a_share_of_detections_passes_on_samples_and_on_tokens():
    check_metric(GoodShare())
    check_metric(metric(GoodShare.compute, kind="localization"))


@pytest.mark.parametrize(
    ("change", "members", "sentence"),
    [
        (lambda good, e, w: 100 * good.compute(e, w), {}, "leaves its range"),
        (lambda good, e, w: good.compute(e, w).nan_to_num(0.0), {}, "must be NaN, never 0 or -1"),
        (lambda good, e, w: good.compute(e, w).nan_to_num(-1.0), {}, "must be NaN, never 0 or -1"),
        (lambda good, e, w: good.compute(e, w).float(), {}, "must be float64"),
        (lambda good, e, w: good.compute(e, w)[:1], {}, r"has shape \[1, 3\]; it must be \[5, 3\]"),
        (lambda good, e, w: good.compute(e, torch.ones_like(w)), {}, "weight 2 must be the sample twice"),
        (lambda good, e, w: good.compute(e, (w > 0).float()), {}, "weight 2 must be the sample twice"),
        (lambda good, e, w: good.compute(e, w / w.mean(0, keepdim=True).clamp(min=1)), {}, "depends on the other weightings"),
        (lambda good, e, w: good.compute(e, w * torch.arange(w.shape[1])), {}, "twice|order of the samples"),
        (lambda good, e, w: good.compute(e, w) + 0 * torch.rand(()), {}, "global random generator"),
        (lambda good, e, w: 1 - good.compute(e, w), {}, "is higher_is_better right"),
        (GoodShare.compute, {"higher_is_better": False}, "is higher_is_better right"),
        (GoodShare.compute, {"kind": "tokens"}, "kind is 'tokens'; allowed: detection, localization, insertion, deletion"),
        (
            lambda good, e, w: good.compute(replace(e, truth=e.truth.clamp(min=0)), w),
            {"kind": "localization"},
            r"truth is unknown \(-1\)",
        ),
    ],
)
def test_a_faulty_metric_is_caught_and_the_sentence_says_why(change: Any, members: dict[str, Any], sentence: str):
    fault(check_metric, sentence, metric(change, **members))


def test_a_metric_that_does_not_say_its_range_is_caught():
    class Bare:
        kind = "detection"

    fault(check_metric, "Bare has no unit, range, chance, higher_is_better, version, compute", Bare())


# Backbones


class GoodModel:
    """Embeds the words of a text: a hash of the word, plus the layer."""

    name, revision, modality, n_layers, width = "words", "1", "text", 2, 4
    identity: Mapping[str, Any] = {"kind": "test"}

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        words = [(sample.text or "").split() for sample in samples]
        ids = torch.zeros(len(words), max(map(len, words)))
        positions = torch.zeros(ids.shape, dtype=torch.bool)
        for s, row in enumerate(words):
            ids[s, : len(row)] = torch.tensor([float(sum(word.encode())) for word in row])
            positions[s, : len(row)] = True
        spans = [word.span() for sample in samples for word in re.finditer(r"\S+", sample.text or "")]
        return Inputs({"ids": ids}, positions, torch.tensor(spans).reshape(-1, 2))

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        for site in sites:
            if site.stream != "residual":
                raise HarnessError("no such stream")
        states = torch.stack(
            [torch.stack([inputs.tensors["ids"] * (k + 1) + 1e3 * site.layer for k in range(4)], -1) for site in sites]
        )
        return self.embedded(inputs, states)

    def embedded(self, inputs: Inputs, states: torch.Tensor) -> Embedded:
        lengths = inputs.positions.sum(1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        values = states[:, inputs.positions]
        return Embedded(values, offsets, inputs.regions, segment_mean(values, offsets))


def model(change: Callable[[Embedded, Inputs, Sequence[Site]], Embedded], **members: Any) -> Any:
    def forward(self: Any, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        return change(GoodModel().forward(inputs, sites), inputs, sites)

    return type("Faulty", (GoodModel,), {"forward": forward, **members})()


def test_a_model_that_embeds_words_passes():
    check_backbone(GoodModel())


@pytest.mark.parametrize(
    ("change", "members", "sentence"),
    [
        (lambda e, i, s: replace(e, values=e.values + i.positions.shape[1]), {}, "differs alone and in a batch; padding"),
        (lambda e, i, s: replace(e, summary=e.summary + 1e3 * len(i.positions)), {}, "differs alone and in a batch; padding"),
        (lambda e, i, s: replace(e, values=e.values[:1]), {}, r"values has shape \[1, 30, 4\]; it must be \[3, 30, 4\]"),
        (lambda e, i, s: e, {"width": 5}, "values has shape"),
        (lambda e, i, s: replace(e, summary=e.summary[:, :1]), {}, r"summary has shape \[3, 1, 4\]"),
        (lambda e, i, s: replace(e, offsets=e.offsets + 1), {}, "offsets do not fit"),
        (lambda e, i, s: replace(e, values=e.values / 0), {}, "not finite"),
        (lambda e, i, s: replace(e, values=torch.nn.functional.dropout(e.values)), {}, "global random generator"),
        (lambda e, i, s: replace(e, values=e.values + float(np.random.default_rng().random()) * 1e6), {}, "in eval mode"),
        (lambda e, i, s: GoodModel().forward(i, sorted(s)), {}, "in the order they are asked for"),
        (lambda e, i, s: replace(e, values=e.values.flip(0)), {}, "gives site 0 other values alone than among others"),
        (lambda e, i, s: e, {"modality": "sound"}, "modality is 'sound'; allowed: image, text, tokens"),
        (lambda e, i, s: e, {"modality": "image"}, r"regions has shape \[30, 2\]; it must be \[30, 4\]"),
    ],
)
def test_a_faulty_backbone_is_caught_and_the_sentence_says_why(change: Any, members: dict[str, Any], sentence: str):
    fault(check_backbone, sentence, model(change, **members))


def test_a_backbone_that_answers_for_a_stream_it_does_not_have_is_caught():
    class Deaf(GoodModel):
        def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
            return super().forward(inputs, [Site(site.layer) for site in sites])

    fault(check_backbone, "answers stream 'attention' with the residual one", Deaf())


def test_a_backbone_that_counts_padding_as_tokens_is_caught():
    class Padded(GoodModel):
        def inputs(self, samples: Sequence[Sample]) -> Inputs:
            made = super().inputs(samples)
            positions = torch.ones_like(made.positions)
            places = torch.arange(positions.shape[1]).repeat(len(positions))
            return Inputs(made.tensors, positions, torch.stack([places, places + 1], 1))

    fault(check_backbone, "differs alone and in a batch; padding", Padded())


# Data sets


def made(change: Callable[[dict[str, list[Any]]], None] = lambda rows: None, splits: Sequence[str] = ("train", "cal", "test")):
    found = {}
    for split in splits:
        rows = {
            "id": [f"{split}-0", f"{split}-1"],
            "text": ["a red cube", "no"],
            "concepts": [["red"], []],
            "regions": [[{"concept": "red", "start": 2, "end": 5}], []],
        }
        change(rows)
        found[split] = datasets.Dataset.from_dict(rows)
    return datasets.DatasetDict(found)


def edited(column: str, value: Any) -> Callable[[], datasets.DatasetDict]:
    return lambda: made(lambda rows: rows.__setitem__(column, value))


@pytest.mark.parametrize(
    ("loader", "sentence"),
    [
        (lambda: made(splits=("train", "test")), "split 'cal' is missing or empty"),
        (lambda: made(lambda rows: rows.pop("text")), "split 'train' has no column text"),
        (edited("id", ["a", "b"]), "there twice"),
        (
            edited("regions", [[{"concept": "red", "start": 2, "end": 99}], []]),
            "sample 'train-0', concept 'red': bad span 2..99",
        ),
        (edited("regions", [[{"concept": "red", "start": 5, "end": 5}], []]), "bad span 5..5"),
    ],
)
def test_a_faulty_data_set_is_caught_and_the_sentence_says_why(loader: Callable[[], Any], sentence: str):
    fault(check_dataset, sentence, loader, "text")


def test_a_data_set_that_reads_differently_the_second_time_is_caught():
    calls: list[int] = []

    def loader() -> datasets.DatasetDict:
        calls.append(1)
        return made(lambda rows: rows["id"].reverse() if len(calls) % 2 else None)

    fault(check_dataset, "not the same when it is loaded again", loader, "text")


def test_a_good_data_set_passes_with_regions_that_are_not_annotated():
    check_dataset(made, "text")
    check_dataset(edited("regions", [None, None]), "text")


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [(None, r"the mask is \(4, 4\), the image \(24, 40\)"), ("zz!", "sample 'train', concept 'red': bad mask; ")],
)
def test_a_mask_of_another_size_than_its_image_or_of_none_is_caught(counts: str | None, sentence: str):
    encoded = coco_mask.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))["counts"].decode()
    rle = {"size": [4, 4], "counts": counts or encoded}
    text, number = datasets.Value("string"), datasets.Value("int64")
    kept = {"size": datasets.List(number), "counts": text}
    features = datasets.Features(
        {
            "id": text,
            "image": datasets.Image(),
            "concepts": datasets.List(text),
            "regions": datasets.List({"concept": text, "rle": kept}),
        }
    )

    def loader() -> datasets.DatasetDict:
        image, regions = made_up_samples(1)[0].image, [{"concept": "red", "rle": rle}]
        rows = {"image": [image], "concepts": [["red"]], "regions": [regions]}
        splits = {split: {"id": [split], **rows} for split in ("train", "cal", "test")}
        return datasets.DatasetDict({s: datasets.Dataset.from_dict(found, features=features) for s, found in splits.items()})

    fault(check_dataset, sentence, loader, "image")


def test_the_axes_of_the_made_up_split_tell_its_concepts_apart():
    world = MadeUp()
    activations = Axes().activate(next(iter(world)))[1]
    for c in range(3):
        known = world.truth[:, c] >= 0
        positive = (world.truth[:, c] == 1) & known
        assert activations[positive, c].mean() > activations[known & ~positive, c].mean() + 2


def test_the_checks_work_on_a_plugin_given_as_a_file(tmp_path: Path):
    path = tmp_path / "my_first_detector.py"
    path.write_text(
        "from harness.api import Entry, hookimpl, segment_max\n\n\nclass Strongest:\n    calibrate_on = 'samples'\n\n"
        "    def pool(self, activations, block):\n        return segment_max(activations, block.offsets)\n\n\n"
        "@hookimpl\ndef harness_register_detectors():\n    return [Entry('strongest', 'my_first_detector:Strongest', 'as max')]\n"
    )
    registry: Registry = load([str(path)])
    assert isinstance(registry.entries("detectors")["strongest"], Entry)
    check_detector(registry.create("detectors", "strongest"))


# Rules beyond a kind's own check


RULED = [
    pytest.param(kind, rule, name, id=f"{rule}-{name}")
    for kind in RULES
    for rule in RULES[kind]
    for name in ({"detectors": "mean", "concept_methods": "linear", "localizers": "superactivator"}[kind],)
]


@pytest.mark.parametrize(("kind", "rule", "name"), RULED)
def test_a_bundled_part_keeps_every_rule(kind: str, rule: str, name: str):
    assert RULES[kind][rule](kind, BUNDLED.create(kind, name)) is None


def faulty(kind: str, change: Callable[[torch.Tensor, TokenEmbeddings], torch.Tensor]) -> Any:
    """A detector, a concept method or a localizer whose answer goes through `change`."""
    if kind == "detectors":
        return detector(lambda activations, block: change(segment_max(activations, block.offsets), block))
    if kind == "localizers":
        return localizer(lambda block, explained: change(explained.activations(block), block))

    class Fitted(Axes):
        def activate(self, block: TokenEmbeddings) -> torch.Tensor:
            return change(super().activate(block), block)

    return type("Faulty", (), {"fit": lambda self, train: Fitted()})()


def peeks(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return found + (0 if block.truth is None else 0 * int(block.truth.sum()))


def stains(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    block.values[0, 0] += 1
    return found


def spreads_nan(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return found + 0 * found.mean(-1, keepdim=True)


def needs_two(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return found + float(block.values.shape[1] == 1)


def by_spread(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return found / block.values.std()


def by_place(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return found + torch.arange(found.shape[1])[:, None]


def swaps(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
    return found.roll(1, -1)


@pytest.mark.parametrize(
    ("rule", "change", "sentence", "kinds"),
    [
        ("labels out of sight", peeks, "reads the labels or the truth", RULES),
        ("blocks untouched", stains, "changes the values or offsets of the block", RULES),
        ("NaN stays alone", spreads_nan, "changes the others' scores", ["detectors", "localizers"]),
        ("NaN stays alone", swaps, "changes the others' scores", ["detectors", "localizers"]),
        ("few tokens", needs_two, "otherwise for a block of one token alone", RULES),
        ("ties", by_spread, "gives no number where every token is 0", RULES),
        ("ties", by_place, "gives equal tokens different activations", ["concept_methods"]),
        ("token order", by_place, "depends on where the token stands", ["concept_methods"]),
        ("planted tokens", swaps, "no higher than others; are concepts swapped", ["concept_methods"]),
    ],
)
def test_a_fault_breaks_its_rule_and_the_sentence_says_why(rule: str, change: Any, sentence: str, kinds: Sequence[str]):
    for kind in kinds:
        with pytest.raises(AssertionError, match=sentence):
            RULES[kind][rule](kind, faulty(kind, change))


def test_what_a_detector_or_localizer_may_do_is_said_and_not_refused():
    assert RULES["detectors"]["token order"]("detectors", BUNDLED.create("detectors", "last")) is not None
    said = RULES["localizers"]["planted tokens"]("localizers", faulty("localizers", swaps))
    assert said is not None
    assert "a floor, or tokens or concepts in the wrong place" in said


def test_answers_are_the_same_for_a_part_that_is_built_again():
    for kind, name in (("detectors", "random"), ("concept_methods", "kmeans"), ("scorers", "coin"), ("metrics", "f1")):
        first, second = (answers(kind, BUNDLED.create(kind, name)) for _ in range(2))
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_the_cost_sees_the_largest_tensor_that_was_made():
    def every_pair(found: torch.Tensor, block: TokenEmbeddings) -> torch.Tensor:
        n = block.values.shape[1]
        return found + 0 * torch.zeros(n, n).max()

    lean, heavy = (
        cost("detectors", part, copies=4) for part in (BUNDLED.create("detectors", "max"), faulty("detectors", every_pair))
    )
    assert heavy.tokens == 4 * 40
    assert heavy.bytes == heavy.tokens**2 * 4 > lean.bytes
