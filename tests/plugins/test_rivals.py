"""The rivals against loops, scipy and scikit-learn; what they refuse; and what the attention probe learns from sample labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from harness_rivals import attention, noisy_or
from harness_rivals.attention import Attention, Probes, balance, gathered
from harness_rivals.noisy_or import NoisyOr, platt
from harness_rivals.pooling import Softmax, TopMean
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from harness.api import HarnessError, Result, Site, TokenEmbeddings, segment_max, segment_mean
from harness.registry import Registry
from harness.testing import Axes, MadeUp, check_detector

LENGTHS = (3, 0, 1, 7, 2)


def block_of(values: torch.Tensor, lengths: tuple[int, ...] = LENGTHS) -> TokenEmbeddings:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return TokenEmbeddings(values, offsets, tuple(map(str, range(len(lengths)))), tuple(map(Site, range(len(values)))))


def some(units: int, seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    return torch.randn(2, sum(lengths), units, generator=torch.Generator().manual_seed(seed)) * 3


def by_loop(activations: torch.Tensor, how: Callable[[np.ndarray[Any, Any]], float], lengths: tuple[int, ...] = LENGTHS) -> Any:
    wide, ends = activations.double().numpy(), np.cumsum([0, *lengths])
    columns = [
        [[how(wide[layer, a:b, k]) if b > a else -math.inf for k in range(wide.shape[2])] for a, b in pairwise(ends)]
        for layer in range(len(wide))
    ]
    return np.array(columns)


@pytest.mark.parametrize(
    "detector",
    [TopMean(), TopMean(k=1), TopMean(k=100), Softmax(), Softmax(t=0.1, normalize=True), NoisyOr(), Attention(epochs=3)],
    ids=repr,
)
def test_a_rival_keeps_the_contract_of_a_detector(detector: Any) -> None:
    check_detector(detector)


# --- topk-mean and softmax


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("units", [3, 200])
def test_topk_mean_is_the_loop_and_takes_all_tokens_where_there_are_fewer(k: int, units: int) -> None:
    activations = some(units)
    got = TopMean(k).pool(activations, block_of(activations))
    np.testing.assert_allclose(got, by_loop(activations, lambda x: float(np.sort(x)[-k:].mean())), rtol=1e-5, atol=1e-6)
    if k == 1:
        assert torch.equal(got, segment_max(activations, block_of(activations).offsets))


@pytest.mark.parametrize("t", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("units", [3, 200])
def test_softmax_is_scipys_logsumexp_at_that_temperature_and_normalized_divides_by_the_tokens(t: float, units: int) -> None:
    activations = some(units)
    plain, normal = (Softmax(t, normalize).pool(activations, block_of(activations)) for normalize in (False, True))
    np.testing.assert_allclose(plain, by_loop(activations, lambda x: t * logsumexp(x / t)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        normal, by_loop(activations, lambda x: t * (logsumexp(x / t) - np.log(len(x)))), rtol=1e-4, atol=1e-4
    )


def test_softmax_goes_from_the_maximum_to_the_mean() -> None:
    activations = some(4)
    block = block_of(activations)
    cold = Softmax(1e-3).pool(activations, block)
    hot = Softmax(1e3, normalize=True).pool(activations, block)
    torch.testing.assert_close(cold, segment_max(activations, block.offsets), atol=1e-2, rtol=0.0)
    torch.testing.assert_close(hot, segment_mean(activations, block.offsets), atol=3e-2, rtol=0.0)


@pytest.mark.parametrize("detector", [TopMean(), Softmax(), Softmax(normalize=True)], ids=repr)
def test_a_nan_unit_spoils_no_other_and_no_token_at_all_is_fine(detector: Any) -> None:
    activations = some(3)
    wanted = detector.pool(activations, block_of(activations))
    spoilt = activations.clone()
    spoilt[:, :, 1] = torch.nan
    got = detector.pool(spoilt, block_of(spoilt))
    assert torch.equal(got[..., [0, 2]], wanted[..., [0, 2]])
    assert got[:, [0, 2, 3, 4], 1].isnan().all()
    nothing = torch.zeros(2, 0, 3)
    assert (detector.pool(nothing, block_of(nothing, (0, 0))) == -torch.inf).all()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TopMean(k=0), "bad value 0 for option 'k' of detector 'topk-mean'; allowed: whole numbers from 1"),
        (lambda: Softmax(t=0.0), "bad value 0.0 for option 't' of detector 'softmax'; allowed: numbers above 0"),
        (lambda: Softmax(t=math.nan), "bad value nan for option 't'"),
        (lambda: Attention(epochs=0), "bad value 0 for option 'epochs' of detector 'attention'; allowed: whole numbers from 1"),
        (lambda: Attention(rate=0.0), "bad value 0.0 for option 'rate' of detector 'attention'; allowed: numbers above 0"),
        (lambda: Attention(decay=-1.0), "bad value -1.0 for option 'decay' of detector 'attention'; allowed: numbers from 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_in_one_line(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(HarnessError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


# --- noisy-or


def scikit_learns(x: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Platt's smoothed targets as weights: every token once inside and once outside."""
    inside, outside = int((truth == 1).sum()), int((truth == 0).sum())
    target = np.where(truth == 1, (inside + 1) / (inside + 2), 1 / (outside + 2))
    given = np.concatenate([x, x])[:, None], np.repeat([1, 0], len(x)), np.concatenate([target, 1 - target])
    fitted = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(given[0], given[1], given[2])
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


@pytest.mark.parametrize(("share", "gap"), [(0.5, 1.0), (0.01, 2.0), (0.3, -1.0), (0.2, 30.0), (0.5, 0.0)])
def test_platt_scaling_is_scikit_learns_on_the_middles_of_the_bins(share: float, gap: float) -> None:
    generator = np.random.default_rng(3)
    truth = (generator.random(5000) < share).astype(int)
    x = generator.standard_normal(5000) + gap * truth
    edges = np.linspace(x.min(), x.max(), 513)
    middles = (edges[1:] + edges[:-1]) / 2
    at = np.clip(np.digitize(x, edges) - 1, 0, 511)
    counts = np.stack([np.bincount(at[truth == value], minlength=512) for value in (0, 1)])
    slope, offset = platt(torch.from_numpy(counts).double())
    width = edges[-1] - edges[0]
    a, b = float(slope) / width, float(offset) - float(slope) * edges[0] / width
    wanted = scikit_learns(middles[at], truth)
    assert (a, b) == pytest.approx(wanted, rel=2e-3, abs=2e-3)
    exact = scikit_learns(x, truth)  # what the bins cost
    if abs(gap) < 10:  # where tokens are separable, the few nearest the border decide, and bins move those
        assert (a, b) == pytest.approx(exact, rel=2e-2, abs=2e-2)


def test_a_noisy_or_is_minus_the_log_of_no_token_being_in_the_concept() -> None:
    activations = some(3)
    fitted = NoisyOr(torch.tensor([[1.0, 0.5, 2.0]] * 2).double(), torch.tensor([[-1.0, 0.0, -3.0]] * 2).double())
    got = fitted.pool(activations, block_of(activations))
    for k in range(3):
        a, b = float(fitted.slope[0, k]), float(fitted.offset[0, k])
        wanted = by_loop(activations[..., [k]], lambda x, a=a, b=b: -math.log(math.prod(1 - 1 / (1 + np.exp(-a * x - b)))))
        np.testing.assert_allclose(got[..., [k]], wanted, rtol=1e-4)


def test_a_noisy_or_tells_apart_what_a_probability_would_round_to_one() -> None:
    activations = torch.tensor([100.0, 200.0, -300.0])[None, :, None]
    fitted = NoisyOr(torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    assert fitted.pool(activations, block_of(activations, (1, 1, 1)))[0, :, 0].tolist() == [100.0, 200.0, 0.0]


def test_noisy_or_is_fitted_on_the_known_tokens_of_train_in_blocks_of_any_size() -> None:
    train, fitted = MadeUp(), NoisyOr().fit(MadeUp(), Axes())
    for size in (1, 5):
        again = NoisyOr().fit(MadeUp(size), Axes())
        torch.testing.assert_close((again.slope, again.offset), (fitted.slope, fitted.offset), rtol=1e-6, atol=1e-6)
    for layer in range(2):
        for c in range(3):
            known = train.truth[:, c] >= 0
            x, truth = train.values[layer, known, c].double().numpy(), train.truth[known, c].numpy()
            wanted = scikit_learns(x, truth)
            assert (float(fitted.slope[layer, c]), float(fitted.offset[layer, c])) == pytest.approx(wanted, rel=3e-2, abs=3e-2)


def test_a_concept_without_both_classes_and_a_nan_unit_are_nan_alone() -> None:
    train, nan = MadeUp(), Axes()
    train.truth[:, 0] = train.truth[:, 0].clamp(max=0)
    nan.vectors = nan.vectors.clone()
    nan.vectors[:, 1] = torch.nan
    fitted = NoisyOr().fit(train, nan)
    assert fitted.slope.isnan().tolist() == [[True, True, False]] * 2
    scores = torch.cat([fitted.pool(nan.activate(block), block) for block in train.blind()], 1)
    there = train.offsets.diff() > 0
    assert scores[:, there].isnan().all(1).tolist() == [[True, True, False]] * 2
    assert (scores[:, ~there] == -torch.inf).all()


def test_activations_that_never_change_give_the_prevalence() -> None:
    train = MadeUp()
    train.values[:] = 1.0
    fitted = NoisyOr().fit(train, Axes())
    for c in range(3):
        known = train.truth[:, c] >= 0
        inside, outside = int((train.truth[:, c] == 1).sum()), int((train.truth[:, c] == 0).sum())
        target = (inside * (inside + 1) / (inside + 2) + outside / (outside + 2)) / int(known.sum())
        found = torch.sigmoid(fitted.slope[:, c] + fitted.offset[:, c])
        torch.testing.assert_close(found, torch.full((2,), target).double(), rtol=1e-3, atol=1e-4)


# --- what is fitted per concept refuses units without names


class Clusters:
    """Units without names, as k-means gives them."""

    units = ("one", "two")

    def activate(self, block: TokenEmbeddings, units: slice) -> torch.Tensor:
        return block.values[..., :2][..., units]

    def pick(self, index: torch.Tensor) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("detector", [NoisyOr(), Attention(epochs=1)], ids=lambda d: type(d).__name__)
def test_unnamed_units_and_another_number_of_units_are_refused_in_one_line(detector: Any) -> None:
    with pytest.raises(HarnessError, match=r"units.*choose supervised concepts, or a detector that fits nothing") as caught:
        detector.fit(MadeUp(), Clusters())
    assert "\n" not in str(caught.value)
    block, units = next(MadeUp().blind()), torch.zeros(2, int(MadeUp().offsets[-1]), 7)
    with pytest.raises(HarnessError, match="it was given 2 x 7 and fitted on nothing; choose supervised concepts"):
        detector.pool(units, block)
    with pytest.raises(HarnessError, match="it was given 2 x 7 and fitted on 2 x 3; choose supervised concepts"):
        detector.fit(MadeUp(), Axes()).pool(units, block)


# --- attention


class Needles:
    """`Blocks` in which concept c is one token of a sample along axis c, among many of noise; layer 1 is layer 0 times 10."""

    def __init__(self, samples: int = 96, seed: int = 0, per_block: int = 96, ragged: bool = True, concepts: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.concepts, self.sites, self.width, self.seed = tuple("abcdef"[:concepts]), (Site(0), Site(1)), 8, 1
        draw = torch.randint(0, 13, (samples,), generator=generator)
        lengths = draw if ragged else torch.full_like(draw, 8)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        labels = torch.rand(samples, 6, generator=generator) < 0.4
        self.labels = (labels & (lengths > 0)[:, None])[:, :concepts]
        values = torch.randn(int(self.offsets[-1]), self.width, generator=generator) * 0.5
        for s, (start, end) in enumerate(pairwise(self.offsets.tolist())):
            for c in range(6):
                if labels[s, c] and end > start:
                    values[start + (7 * s + c) % (end - start), c] += 3.0
        self.values = torch.stack([values, values * 10])
        self.truth = torch.full((len(values), concepts), -1, dtype=torch.int8)
        self.ids, self._per_block = tuple(map(str, range(samples))), per_block

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        for first in range(0, len(self.ids), self._per_block):
            offsets, samples = self.offsets[first : first + self._per_block + 1], slice(first, first + self._per_block)
            here = slice(int(offsets[0]), int(offsets[-1]))
            given = self.values[:, here].clone(), offsets - offsets[0], self.ids[samples], self.sites
            yield TokenEmbeddings(*given, self.labels[samples], self.truth[here])


def scored(fitted: Attention, data: Needles) -> torch.Tensor:
    return torch.cat([fitted.pool(block.values[..., : len(data.concepts)], block) for block in data], 1)


@pytest.fixture(scope="module")
def learned() -> Attention:
    return Attention().fit(Needles(), None)  # type: ignore[arg-type]


def test_the_score_of_a_probe_is_the_loop() -> None:
    values, generator = some(4, lengths=LENGTHS), torch.Generator().manual_seed(1)
    probes = Probes(torch.randn(2, 4, 6, generator=generator), torch.randn(2, 3, generator=generator))
    got = Attention(probes=probes).pool(torch.zeros(2, 13, 3), block_of(values))
    for c in range(3):
        for layer in range(2):
            q, w, b = probes.weights[layer, :, c], probes.weights[layer, :, 3 + c], probes.bias[layer, c]
            for s, (start, end) in enumerate(pairwise(np.cumsum([0, *LENGTHS]).tolist())):
                tokens = values[layer, start:end].double()
                share = (tokens @ q.double()).softmax(0)
                wanted = float((share * (tokens @ w.double())).sum() + b) if end > start else -math.inf
                assert float(got[layer, s, c]) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_attention_finds_a_needle_from_sample_labels_alone_where_the_mean_cannot(learned: Attention) -> None:
    unseen = Needles(samples=300, seed=5)
    scores, labels, there = scored(learned, unseen), unseen.labels.numpy(), unseen.offsets.diff() > 0
    mean = segment_mean(unseen.values[..., :3], unseen.offsets)
    for c in range(3):
        found = average_precision_score(labels[there, c], scores[0, there, c])
        assert found > 0.95
        assert found > average_precision_score(labels[there, c], mean[0, there, c]) + 0.02
    assert (scores[:, ~there] == -torch.inf).all()


def test_a_probe_does_not_change_with_the_scale_of_a_layer(learned: Attention) -> None:
    scores = scored(learned, Needles(seed=5))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)


def test_a_probe_never_reads_the_truth_nor_the_activations_nor_the_size_of_blocks(learned: Attention) -> None:
    known = Needles(per_block=7)
    known.truth[:] = 1
    again = Attention().fit(known, Axes())
    torch.testing.assert_close(again.probes, learned.probes, rtol=1e-4, atol=1e-4)
    block = next(iter(Needles()))
    zeros = torch.zeros(2, block.values.shape[1], 3)
    assert torch.equal(learned.pool(zeros, block), learned.pool(zeros + 1, block))


def test_a_probe_does_not_depend_on_the_other_concepts_or_layers(learned: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    more = Attention().fit(Needles(concepts=5), None)  # type: ignore[arg-type]
    torch.testing.assert_close(scored(more, Needles(concepts=5))[..., :3], scored(learned, Needles()), rtol=1e-3, atol=1e-3)
    tokens = int(Needles().offsets[-1])
    monkeypatch.setattr(attention, "HELD_BYTES", 4 * tokens * 8)  # one layer at a time, still all samples
    apart = Attention().fit(Needles(), None)  # type: ignore[arg-type]
    torch.testing.assert_close(apart.probes, learned.probes, rtol=1e-4, atol=1e-4)


def test_where_a_layer_does_not_fit_samples_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Needles()
    assert attention.drawn(train).tolist() == (train.offsets.diff() > 0).nonzero()[:, 0].tolist()
    monkeypatch.setattr(attention, "HELD_BYTES", 4 * 8 * 100)
    places = attention.drawn(train)
    assert 50 < int(train.offsets.diff()[places].sum()) <= 100
    train.seed = 2
    assert attention.drawn(train).tolist() != places.tolist()
    held = list(attention.held_tokens(train, places))
    assert [len(layers) for layers in held] == [1, 1]
    wanted = torch.cat([train.values[1, train.offsets[s] : train.offsets[s + 1]] for s in places.tolist()])
    assert torch.equal(held[1][0], wanted)


def test_equal_and_ragged_samples_are_gathered_with_their_offsets() -> None:
    offsets = torch.tensor([0, 3, 3, 4, 9])
    places, ends = gathered(offsets, torch.tensor([3, 1, 0]))
    assert places.tolist() == [4, 5, 6, 7, 8, 0, 1, 2]
    assert ends.tolist() == [0, 5, 5, 8]


def test_both_classes_weigh_alike_and_a_concept_with_one_class_weighs_nothing() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]).float()
    assert balance(labels)[:, 0].tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
    assert (balance(labels)[:, 1:] == 0).all()


def test_a_concept_without_both_classes_is_nan_alone(learned: Attention) -> None:
    train = Needles()
    train.labels = train.labels.clone()
    train.labels[:, 1] = False
    scores = scored(Attention().fit(train, None), Needles())  # type: ignore[arg-type]
    there = Needles().offsets.diff() > 0
    assert scores[:, there, 1].isnan().all()
    torch.testing.assert_close(scores[:, :, [0, 2]], scored(learned, Needles())[:, :, [0, 2]], rtol=1e-3, atol=1e-3)


def test_no_train_sample_with_tokens_gives_nan_and_no_error() -> None:
    train = Needles(samples=3)
    train.offsets, train.values = torch.zeros(4, dtype=torch.int64), train.values[:, :0]
    assert Attention().fit(train, None).probes.bias.isnan().all()  # type: ignore[arg-type,union-attr]


def test_a_concept_that_is_learned_well_enough_stops_and_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "GOOD", 10.0)  # every concept, after its first epoch
    stopped = Attention(epochs=9).fit(Needles(), None)  # type: ignore[arg-type]
    once = Attention(epochs=1).fit(Needles(), None)  # type: ignore[arg-type]
    assert torch.equal(stopped.probes.weights, once.probes.weights)  # type: ignore[union-attr]
    counted = []
    learn = attention.epoch

    def one_stops(*given: Any) -> torch.Tensor:
        counted.append(1)
        loss = learn(*given)
        return torch.where(torch.arange(3) == 1, 0.0, 1.0).expand_as(loss)

    monkeypatch.setattr(attention, "GOOD", 0.5)
    monkeypatch.setattr(attention, "epoch", one_stops)
    both = Attention(epochs=4).fit(Needles(), None)  # type: ignore[arg-type]
    assert len(counted) == 4
    assert torch.equal(both.probes.weights[..., [1, 4]], once.probes.weights[..., [1, 4]])  # type: ignore[union-attr]
    assert not torch.allclose(both.probes.weights[..., 0], once.probes.weights[..., 0])  # type: ignore[union-attr]


# --- through the pipe


def test_every_rival_finds_the_planted_concepts(run_toy: Callable[..., list[Result]]) -> None:
    for result in run_toy("topk-mean", "softmax", "noisy-or", "attention"):
        assert result.score("f1").value > 0.8, result.method.name  # type: ignore[union-attr,operator]


def test_the_recipes_are_in_all_and_under_one_tag(registry: Registry) -> None:
    rivals = {name for name, method in registry.methods().items() if "rivals" in method.tags}
    detectors = ("topk-mean", "softmax", "noisy-or", "attention")
    assert rivals == {*detectors, "max-samples", "max-lat", "superactivator-samples", "superactivator-lat"}
    assert all("core" in registry.methods()[name].tags for name in rivals)
    assert all(registry.create("detectors", name).calibrate_on == "samples" for name in detectors)


def test_the_number_of_bins_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = NoisyOr().fit(MadeUp(), Axes())
    monkeypatch.setattr(noisy_or, "BINS", 512)
    coarse = NoisyOr().fit(MadeUp(), Axes())
    torch.testing.assert_close(coarse.slope, fine.slope, rtol=5e-2, atol=5e-2)
