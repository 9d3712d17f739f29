"""Units without names: k-means against scikit-learn and a loop, separators per cluster against a solve each, dictionaries, the pipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ragged_world
import torch
from conftest import quiet
from harness_vectors import kmeans, sampling
from harness_vectors.covariance import Covariance
from harness_vectors.dictionaries import Ica, Nmf, Pca, whitening
from harness_vectors.directions import DirectionUnits
from harness_vectors.kmeans import KMeans, KMeansLinear, lloyd, nearest, start
from harness_vectors.sampling import drawn, layers_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.decomposition import NMF, PCA, FastICA
from torch import Tensor

from harness import pipeline
from harness.api import HarnessError, Method, Result, RunSpec, Site, TokenEmbeddings, Units
from harness.registry import Registry
from harness.testing import check_concept_method

Methods = KMeans | KMeansLinear | Pca | Ica | Nmf
EVERY = (KMeans(), KMeans(k=3), KMeansLinear(), KMeansLinear(k=2), Pca(), Pca(k=2), Ica(), Ica(k=3), Nmf(), Nmf(k=3))
EACH = (KMeans(k=6), KMeansLinear(k=6), Pca(k=3), Ica(k=3), Nmf(k=3))
every = pytest.mark.parametrize("method", EVERY, ids=repr)
each = pytest.mark.parametrize("method", EACH, ids=lambda method: type(method).__name__)


class Train:
    """`Blocks` of the given tokens [L, N, d], without labels of interest; `per_block` tokens in a block; counts its passes."""

    def __init__(self, values: Tensor, per_block: int = 1000, seed: int = 0) -> None:
        layers, n, self.width = values.shape
        self.values, self.per_block, self.seed, self.passes = values, per_block, seed, 0
        self.concepts, self.sites = ("one",), tuple(Site(layer) for layer in range(layers))
        self.ids, self.offsets = tuple(str(i) for i in range(n)), torch.arange(n + 1)
        self.truth, self.labels = torch.zeros(n, 1, dtype=torch.int8), torch.zeros(n, 1).bool()
        self.centre, self.scale = torch.zeros(layers, 1, self.width), torch.ones(layers, 1, self.width)
        self.backbone: Any = None

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        self.passes += 1
        for first in range(0, len(self.ids), self.per_block):
            here = slice(first, first + self.per_block)
            values = self.values[:, here].clone()
            offsets = torch.arange(values.shape[1] + 1)
            yield TokenEmbeddings(values, offsets, self.ids[here], self.sites, self.labels[here], self.truth[here])

    def rows(self, index: Tensor) -> Tensor:
        return self.values[:, index]


def blobs(layers: int = 2, n: int = 240, width: int = 5, groups: int = 6, seed: int = 0) -> Tensor:
    """Tokens around `groups` centres far from the origin."""
    g = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(layers, groups, width, generator=g) + 1
    return centres[:, torch.arange(n) % groups] + torch.randn(layers, n, width, generator=g)


def vectors_of(method: Methods, train: Train) -> Tensor:
    return method.fit(train).vectors


# --- the contract


@every
def test_every_method_keeps_the_contract_of_concept_methods(method: Methods) -> None:
    check_concept_method(method)


@each
def test_units_are_units_and_have_a_name_each(method: Methods) -> None:
    fitted = method.fit(Train(blobs()))
    assert isinstance(fitted, Units)
    assert len(set(fitted.units)) == len(fitted.units) == fitted.vectors.shape[1]
    assert fitted.vectors.dtype == torch.float32


@each
def test_the_size_of_blocks_changes_no_unit(method: Methods) -> None:
    wanted = vectors_of(method, Train(blobs()))
    for per_block in (1, 7, 240):
        assert torch.allclose(vectors_of(method, Train(blobs(), per_block)), wanted, atol=1e-4, equal_nan=True)


@each
def test_the_same_seed_gives_the_same_units_bit_by_bit_and_a_layer_alone_its_own(method: Methods) -> None:
    wanted = vectors_of(method, Train(blobs(), seed=4))
    assert torch.equal(vectors_of(method, Train(blobs(), seed=4)), wanted)
    assert torch.allclose(vectors_of(method, Train(blobs()[1:], seed=4)), wanted[1:], atol=1e-5)


@pytest.mark.parametrize("method", [KMeans(k=30), Ica(k=3), Nmf(k=3, max_rows=100)], ids=repr)
def test_another_seed_gives_other_units(method: Methods) -> None:
    tokens = torch.randn(1, 400, 6, generator=torch.Generator().manual_seed(1))
    found = [vectors_of(method, Train(tokens, seed=seed)) for seed in (0, 1)]
    assert not torch.allclose(*found, atol=1e-3)


@each
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_no_tokens_or_very_few_give_units_all_the_same(method: Methods, n: int) -> None:
    fitted = method.fit(Train(blobs(n=n)))
    assert len(fitted.units) >= 1
    assert fitted.vectors.shape == (2, len(fitted.units), 5)
    assert n or fitted.vectors.isnan().all()
    assert not fitted.vectors.isinf().any()


@each
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_tokens_that_are_all_the_same_give_no_number_that_is_not_one(method: Methods, value: float) -> None:
    fitted = method.fit(Train(torch.full((2, 40, 5), value)))
    assert not fitted.vectors.isinf().any()
    activations = fitted.activate(next(iter(Train(blobs()))), slice(None))
    assert not activations.isinf().any()
    if isinstance(method, KMeans) and not isinstance(method, KMeansLinear):
        assert torch.equal(fitted.vectors[:, 0], torch.full((2, 5), value))
        assert fitted.vectors[:, 1:].isnan().all()
        assert fitted.note == "10 empty clusters over all layers"


@pytest.mark.parametrize("method", [Pca(k=5), Ica(k=5)], ids=repr)
def test_components_beyond_the_rank_are_nan_and_the_others_are_not(method: Pca | Ica) -> None:
    flat = blobs()
    flat[0, :, 3:] = 0
    vectors = vectors_of(method, Train(flat))
    assert vectors.isnan().any(2).sum(1).tolist() == [4, 0]
    assert vectors[0, :6].isfinite().all()


# --- a picked unit


def test_picked_units_are_their_own_vectors_and_minus_one_is_nan() -> None:
    units = DirectionUnits(torch.arange(12.0).reshape(2, 3, 2), False, ("a", "b", "c"))
    picked = units.pick(torch.tensor([[2, 0], [1, -1]]))
    assert torch.equal(picked.vectors[0], torch.tensor([[4.0, 5.0], [0.0, 1.0]]))
    assert torch.equal(picked.vectors[1, 0], torch.tensor([8.0, 9.0]))
    assert picked.vectors[1, 1].isnan().all()


@each
def test_activation_is_cosine_for_centres_and_a_dot_product_for_the_rest(method: Methods) -> None:
    train = Train(blobs())
    fitted, block = method.fit(train), next(iter(train))
    e, v = block.values.double().numpy(), fitted.vectors.double().numpy()
    dot = np.einsum("ltd,lkd->ltk", e, v)
    if type(method) is KMeans:
        dot /= np.linalg.norm(e, axis=-1)[..., None] * np.linalg.norm(v, axis=-1)[:, None]
    np.testing.assert_allclose(fitted.activate(block, slice(1, 3)).numpy(), dot[..., 1:3], rtol=1e-4, atol=1e-5)


# --- k-means


def sse(tokens: np.ndarray[Any, Any], centres: np.ndarray[Any, Any]) -> float:
    return float(((tokens[:, None] - centres[None]) ** 2).sum(2).min(1).sum())


def naive(tokens: np.ndarray[Any, Any], centres: np.ndarray[Any, Any], iterations: int) -> np.ndarray[Any, Any]:
    """Lloyd's algorithm one token at a time, in float64."""
    for _ in range(iterations):
        own = [min(range(len(centres)), key=lambda k, x=x: float(((x - centres[k]) ** 2).sum())) for x in tokens]
        members = [[x for x, mine in zip(tokens, own, strict=True) if mine == k] for k in range(len(centres))]
        centres = np.array([np.mean(mine, 0) if mine else old for mine, old in zip(members, centres, strict=True)])
    return centres


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_so_many_iterations_give_the_centres_of_a_loop_in_float64(iterations: int) -> None:
    tokens = blobs(1, 150)[0]
    first = tokens[:7]
    found = lloyd(tokens.clone(), first, KMeans(iterations=iterations, tol=0.0))
    np.testing.assert_allclose(found.numpy(), naive(tokens.double().numpy(), first.double().numpy(), iterations), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(8, 40))
def test_from_the_same_start_scikit_learn_ends_at_the_same_centres(seed: int, k: int, n: int) -> None:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 3, generator=g)
    first = tokens[torch.randperm(n, generator=g)[:k]]
    theirs = SklearnKMeans(k, init=first.double().numpy(), n_init=1, tol=0, max_iter=300).fit(tokens.double().numpy())
    ours = lloyd(tokens.clone(), first, KMeans(iterations=300, tol=0.0))
    assert sse(tokens.double().numpy(), ours.double().numpy()) == pytest.approx(theirs.inertia_, rel=1e-5)
    np.testing.assert_allclose(ours.numpy(), theirs.cluster_centers_, atol=1e-4)


def test_the_start_and_the_end_are_as_good_as_those_of_scikit_learn() -> None:
    tokens = blobs(1, 3000, 8, 40)[0]
    wide = tokens.double().numpy()
    ours = [sse(wide, lloyd(tokens.clone(), start(tokens, 40, seed), KMeans()).double().numpy()) for seed in range(5)]
    theirs = [SklearnKMeans(40, n_init=1, random_state=seed).fit(wide).inertia_ for seed in range(5)]
    random = [SklearnKMeans(40, init="random", n_init=1, random_state=seed).fit(wide).inertia_ for seed in range(5)]
    assert np.median(ours) < 1.02 * np.median(theirs)
    assert np.median(ours) < 0.95 * np.median(random)


def test_the_start_draws_different_tokens_as_long_as_there_are_any() -> None:
    tokens = torch.eye(6).repeat(5, 1)
    assert len({tuple(row) for row in start(tokens, 6, 3).tolist()}) == 6
    assert start(torch.zeros(8, 2), 3, 0).tolist() == [[0.0, 0.0]] * 3


def test_the_nearest_centre_is_the_first_among_equals_and_never_one_that_is_nan() -> None:
    centres = torch.tensor([[torch.nan, torch.nan], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = nearest(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]), centres)
    assert found.index.tolist() == [1, 1, 3]
    assert found.score.tolist() == [1.5, -0.5, 1.5]


def test_slicing_the_scores_changes_no_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = blobs(1, 101)[0]
    whole = nearest(tokens, tokens[:9])
    monkeypatch.setattr(kmeans, "SCORES", 30)
    sliced = nearest(tokens, tokens[:9])
    assert torch.equal(whole.index, sliced.index)
    assert torch.allclose(whole.score, sliced.score)


def test_an_empty_cluster_is_given_the_token_farthest_from_its_centre() -> None:
    tokens = torch.tensor([[0.0], [1.0], [2.0], [10.0], [10.5], [30.0]])
    found = lloyd(tokens, torch.tensor([[0.0], [100.0], [200.0], [12.0]]), KMeans(iterations=1))
    # 30 is farthest from its centre, then 2 and 10 are equally far: the first of them
    assert found[:, 0].tolist() == [0.5, 30.0, 2.0, 10.25]


def test_fewer_different_tokens_than_clusters_leave_the_rest_nan() -> None:
    tokens = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 7.0]]).repeat(20, 1)[None]
    fitted = KMeans(k=6).fit(Train(tokens))
    centres = fitted.vectors[0]
    found = np.array(sorted(centres[~centres.isnan().any(1)].tolist()))
    np.testing.assert_allclose(found, [[0, 0], [0, 7], [5, 0]], atol=1e-6)
    assert fitted.note == "3 empty clusters over all layers"


def test_the_fit_stops_once_an_iteration_gains_no_more_than_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, calls = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)), []
    real = kmeans.nearest
    monkeypatch.setattr(kmeans, "nearest", lambda *a: calls.append(1) or real(*a))
    steps, errors = [], []
    for tol in (0.1, 1e-3, 0.0):
        calls.clear()
        centres = lloyd(tokens.clone(), tokens[:30], KMeans(tol=tol, iterations=500))
        steps.append(len(calls))
        errors.append(sse(tokens.double().numpy(), centres.double().numpy()))
    assert steps == sorted(set(steps))
    assert errors == sorted(set(errors), reverse=True)
    assert steps[-1] < 500


def test_there_is_at_most_one_unit_per_four_train_tokens_and_the_note_says_so() -> None:
    fitted = KMeans().fit(Train(blobs(n=41)))
    assert len(fitted.units) == 10
    assert fitted.note == "k=10 and not 1000: 4 train tokens per unit"
    assert KMeans(k=10).fit(Train(blobs(n=41))).note == ""


def test_a_sample_of_tokens_gives_centres_of_these_tokens_alone() -> None:
    train = Train(blobs(n=400), seed=2)
    fitted = KMeans(k=6, max_rows=100).fit(train)
    places = drawn(train, 100)
    assert torch.equal(fitted.vectors, KMeans(k=6).fit(Train(train.values[:, places], seed=2)).vectors)
    assert fitted.note == "clustered 100 of 400 train tokens"


# --- kmeans-linear


def test_every_cluster_has_the_separator_that_solving_it_alone_gives() -> None:
    train = Train(blobs())
    found = KMeansLinear(k=6).fit(train).vectors.double().numpy()
    centres = KMeans(k=6).fit(train).vectors
    for layer, tokens in enumerate(train.values.double().numpy()):
        own = np.array([np.argmin(((x - centres[layer].double().numpy()) ** 2).sum(1)) for x in tokens])
        spread = np.cov(tokens.T, bias=True)
        ridged = spread + 1e-2 * np.trace(spread) / tokens.shape[1] * np.eye(tokens.shape[1])
        for k in range(6):
            gap = tokens[own == k].mean(0) - tokens[own != k].mean(0)
            np.testing.assert_allclose(found[layer, k], np.linalg.solve(ridged, gap), rtol=2e-3, atol=1e-4)


def test_a_separator_counts_the_tokens_outside_the_sample_too() -> None:
    train = Train(blobs(n=400))
    assert not torch.allclose(
        vectors_of(KMeansLinear(k=6, max_rows=100), train), vectors_of(KMeansLinear(k=6), train), atol=1e-3
    )
    assert KMeansLinear(k=6, max_rows=100).fit(train).note == "clustered 100 of 400 train tokens"


def test_one_cluster_of_all_tokens_has_no_separator() -> None:
    assert KMeansLinear(k=1).fit(Train(blobs())).vectors.isnan().all()


# --- dictionaries


def test_principal_components_are_those_of_scikit_learn_at_both_ends() -> None:
    tokens = blobs(width=7) @ torch.diag(torch.arange(1.0, 8.0))
    fitted = Pca(k=4).fit(Train(tokens, per_block=50))
    assert fitted.units == ("0+", "0-", "1+", "1-", "2+", "2-", "3+", "3-")
    for layer in range(2):
        theirs = PCA(4).fit(tokens[layer].double().numpy()).components_
        ours = fitted.vectors[layer].double().numpy()
        np.testing.assert_allclose(np.abs(np.einsum("kd,kd->k", ours[::2], theirs)), 1.0, atol=1e-5)
        np.testing.assert_array_equal(ours[::2], -ours[1::2])
        assert (np.take_along_axis(ours[::2], np.abs(ours[::2]).argmax(1)[:, None], 1) > 0).all()


def test_independent_components_are_those_of_scikit_learn_on_the_same_tokens() -> None:
    g = np.random.default_rng(0)
    tokens = torch.from_numpy((g.laplace(size=(1, 600, 4)) @ g.standard_normal((4, 4))).astype(np.float32))
    fitted = Ica(k=4).fit(Train(tokens, seed=3))
    theirs = FastICA(4, random_state=3).fit(tokens[0].numpy()).components_
    ours = fitted.vectors[0, ::2].numpy()
    same = np.abs(ours @ theirs.T) / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(theirs, axis=1)
    np.testing.assert_allclose(same.max(1), 1.0, atol=1e-4)
    assert sorted(same.argmax(1)) == [0, 1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)[same.argmax(1)], rtol=1e-2)
    assert fitted.note == ""


def test_independent_components_find_planted_sources_that_principal_ones_do_not() -> None:
    g = np.random.default_rng(0)
    mixing, sources = g.standard_normal((4, 4)), g.laplace(size=(2000, 4))
    train = Train(torch.from_numpy((sources @ mixing).astype(np.float32))[None])

    def match(method: Ica | Pca) -> float:
        found = method.fit(train).activate(next(iter(Train(train.values, 2000))), slice(None))[0].double().numpy()
        return float(np.corrcoef(sources.T, found.T)[:4, 4:].max(1).min())

    assert match(Ica(k=4)) > 0.95 > match(Pca(k=4))


def test_nmf_units_are_scikit_learns_atoms_plus_half_minus_the_other() -> None:
    tokens = blobs(1)
    parts = np.concatenate([np.maximum(tokens[0].numpy(), 0), np.maximum(-tokens[0].numpy(), 0)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms = NMF(3, init="nndsvda", max_iter=50, random_state=0).fit(parts).components_
    fitted = Nmf(k=3).fit(Train(tokens))
    assert fitted.units == ("0", "1", "2")
    np.testing.assert_allclose(fitted.vectors[0].numpy(), atoms[:, :5] - atoms[:, 5:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [Ica(k=3, iterations=1), Nmf(k=3, iterations=1)], ids=repr)
def test_a_fit_that_is_stopped_warns_nobody_and_is_counted(method: Ica | Nmf, recwarn: pytest.WarningsRecorder) -> None:
    fitted = method.fit(Train(blobs()))
    assert not recwarn
    assert fitted.note == "2 of 2 layers stopped at 1 iterations"
    assert fitted.vectors.isfinite().all()


@pytest.mark.parametrize("method", [Ica(k=3, max_rows=50), Nmf(k=3, max_rows=50)], ids=repr)
def test_a_dictionary_of_a_sample_says_so(method: Ica | Nmf) -> None:
    assert method.fit(Train(blobs())).note.startswith("fitted on 50 of 240 train tokens")


@pytest.mark.parametrize("method", [Pca, Ica, Nmf])
def test_more_units_than_the_width_are_cut_to_it(method: Callable[..., Pca | Ica | Nmf]) -> None:
    fitted = method(k=99).fit(Train(blobs()))
    assert len(fitted.units) == (5 if method is Nmf else 10)


def test_whitened_tokens_have_unit_covariance_in_as_many_directions_as_hold_more_than_rounding() -> None:
    assert whitening(torch.zeros(0, 3)).shape == (3, 0)
    assert whitening(torch.ones(9, 3)).shape == (3, 0)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(90, 2, generator=g) @ torch.randn(2, 5, generator=g) + 3
    white = ((tokens - tokens.mean(0)) @ whitening(tokens)).double().numpy()
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(2), atol=1e-4)


# --- the sample and the covariance


def test_a_sample_is_ascending_without_repetition_seeded_and_all_tokens_where_they_fit() -> None:
    train = Train(blobs(n=100), seed=1)
    places = drawn(train, 30)
    assert len(places) == len(set(places.tolist())) == 30
    assert torch.equal(places, places.sort().values)
    assert torch.equal(places, drawn(Train(blobs(n=100), seed=1), 30))
    assert not torch.equal(places, drawn(Train(blobs(n=100), seed=2), 30))
    assert torch.equal(drawn(train, 100), torch.arange(100))


@pytest.mark.parametrize(("room", "passes"), [(0, 3), (2 * 20 * 5 * 4, 2), (10**9, 1)])
def test_layers_are_held_as_many_at_a_time_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, room: int, passes: int
) -> None:
    monkeypatch.setattr(sampling, "HELD_BYTES", room)
    train = Train(blobs(layers=3, n=90), per_block=7)
    places = drawn(train, 20)
    found = [tokens.clone() for tokens in layers_of(train, places)]
    assert torch.equal(torch.stack(found), train.values[:, places])
    assert train.passes == passes


def test_the_streamed_covariance_is_numpys() -> None:
    train = Train(blobs(), per_block=13)
    spread = Covariance(train)
    for block in train:
        spread.add(block)
    for layer, tokens in enumerate(train.values.double().numpy()):
        np.testing.assert_allclose(spread.mean()[layer].numpy(), tokens.mean(0), atol=1e-6)
        np.testing.assert_allclose(spread.matrix()[layer].numpy(), np.cov(tokens.T, bias=True), atol=1e-4)


@each
def test_no_method_needs_or_reads_the_truth_of_train(method: Methods) -> None:
    train, other = Train(blobs()), Train(blobs())
    other.truth, other.labels = torch.full_like(other.truth, -1), ~other.labels
    assert method.needs_truth is False
    assert torch.equal(vectors_of(method, train), vectors_of(method, other))


# --- options


@pytest.mark.parametrize(
    ("reference", "option", "name"),
    [
        ("kmeans:k=0", "k", "kmeans"),
        ("kmeans:iterations=0", "iterations", "kmeans"),
        ("kmeans-linear:k=-3", "k", "kmeans-linear"),
        ("kmeans-linear:max_rows=0", "max_rows", "kmeans-linear"),
        ("pca:k=0", "k", "pca"),
        ("ica:iterations=0", "iterations", "ica"),
        ("nmf:max_rows=0", "max_rows", "nmf"),
    ],
)
def test_a_count_below_one_is_refused_in_one_line(registry: Registry, reference: str, option: str, name: str) -> None:
    value = reference.rpartition("=")[2]
    with pytest.raises(HarnessError) as error:
        registry.create("concept_methods", reference)
    wanted = f"bad value {value} for option {option!r} of concept method {name!r}; allowed: whole numbers from 1"
    assert str(error.value) == wanted


@pytest.mark.parametrize("tol", ["1.0", "-0.1"])
def test_a_tolerance_that_is_no_share_is_refused_in_one_line(registry: Registry, tol: str) -> None:
    with pytest.raises(HarnessError) as error:
        registry.create("concept_methods", f"kmeans:tol={tol}")
    assert (
        str(error.value) == f"bad value {tol} for option 'tol' of concept method 'kmeans'; allowed: a share from 0 to below 1"
    )


# --- the pipe


def recipes(*concepts: str, **changes: Any) -> tuple[Method, ...]:
    return tuple(
        Method(f"{c} {how}", concepts=c, detector="superactivator", localizer="direct", match=how, **changes)
        for c in concepts
        for how in ("best", "one-to-one")
    )


def matched(result: Result) -> list[dict[str, Any]]:
    assert result.path is not None
    return pq.read_table(result.path / "match.parquet").to_pylist()


def test_clusters_of_the_toy_world_are_matched_to_its_concepts(make_spec: Callable[..., RunSpec], registry: Registry) -> None:
    best, assigned = pipeline.run(make_spec(methods=recipes("kmeans:k=8"), layers="2,3"), registry, quiet)
    for result in (best, assigned):
        rows = matched(result)
        assert [(row["layer"], row["concept"]) for row in rows] == [
            (layer, concept) for layer in ("2", "3") for concept in ("circle", "square", "star")
        ]
        assert {row["unit"] for row in rows} <= {str(unit) for unit in range(8)}
        found = {(row["layer"], row["concept"]): row for row in rows}
        for choice in result.choices:
            row = found[choice.layer, choice.concept]
            assert choice.unit == row["unit"]
            assert choice.cal_f1 == pytest.approx(row["cal_f1"])
            assert row["cal_f1"] == max(found[layer, choice.concept]["cal_f1"] for layer in ("2", "3"))
        assert "units" not in result.notes
    for layer in ("2", "3"):
        units = [row["unit"] for row in matched(assigned) if row["layer"] == layer]
        assert len(set(units)) == 3
    for one, two in zip(matched(best), matched(assigned), strict=True):
        assert one["cal_f1"] >= two["cal_f1"]


@pytest.mark.parametrize("fit_on", ["tokens", "summary"])
def test_permuting_the_test_labels_changes_no_match_and_no_decision(
    make_spec: Callable[..., RunSpec], registry: Registry, tmp_path: Path, fit_on: str
) -> None:
    parts = ("kmeans:k=8", "kmeans-linear:k=8", "pca:k=4", "ica:k=3", "nmf:k=4")
    methods = recipes(*parts, fit_on=fit_on)
    results = []
    for name, options in (("plain", ""), ("mixed", "mixed: 1")):
        (tmp_path / name).mkdir()
        task = ragged_world.write_task(tmp_path / name, **({"options": options} if options else {}))
        results.append(pipeline.run(make_spec(task, "ragged", methods), registry, quiet))
    labels_moved = 0
    for one, two in zip(*results, strict=True):
        assert matched(one) == matched(two)
        assert one.choices == two.choices
        assert any(choice.unit is not None for choice in one.choices)
        assert one.path is not None
        assert two.path is not None
        a, b = (pq.read_table(result.path / "per_sample.parquet").to_pylist() for result in (one, two))
        for before, after in zip(a, b, strict=True):
            assert {**before, "label": None} == {**after, "label": None}
            labels_moved += before["label"] != after["label"]
    assert labels_moved


def test_what_a_fit_left_out_stands_in_the_result(make_spec: Callable[..., RunSpec], registry: Registry) -> None:
    method = Method("m", concepts="kmeans:max_rows=200:k=60", detector="superactivator")
    (result,) = pipeline.run(make_spec(methods=(method,), layers="last"), registry, quiet)
    assert result.notes["units"] == {
        method.concepts: "clustered 200 of 1890 train tokens; k=50 and not 60: 4 train tokens per unit"
    }
