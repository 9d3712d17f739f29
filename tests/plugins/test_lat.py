"""LAT against numpy's singular values and scikit-learn's components; separators of sample labels against separators of given truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import ragged_world
import torch
from harness_vectors import lat
from harness_vectors.lat import Lat, first_component
from harness_vectors.linear import BySample, Linear, balanced, gathered
from sklearn.decomposition import TruncatedSVD

from harness import pipeline
from harness.api import HarnessError, Method, Result, RunSpec
from harness.registry import Registry
from harness.testing import MadeUp, check_concept_method


def planted(n: int, width: int, strength: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gap = torch.randn(2, 1, width, generator=generator, dtype=torch.float64)
    return torch.randn(2, n, width, generator=generator, dtype=torch.float64) + strength * gap


# --- lat


@pytest.mark.parametrize(("n", "width", "strength"), [(200, 12, 1.0), (200, 12, 0.1), (5, 12, 1.0), (1, 4, 1.0)])
def test_the_first_component_is_numpys_and_points_to_the_inside(n: int, width: int, strength: float) -> None:
    differences = planted(n, width, strength)
    for layer, found in zip(differences.numpy(), first_component(differences).numpy(), strict=True):
        wanted = np.linalg.svd(layer, full_matrices=False)[2][0]
        assert abs(wanted @ found) == pytest.approx(1, abs=1e-9)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-9)
        assert layer.mean(0) @ found >= 0


def test_shuffling_which_token_of_a_pair_comes_first_gives_the_same_direction_as_repe_draws_it() -> None:
    """RepE shuffles and centres; with the order shuffled the mean is near 0, and the components agree."""
    differences = planted(4000, 6, 1.0)[:1]
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (4000, 1))
    shuffled = differences[0].numpy() * signs
    wanted = TruncatedSVD(1, algorithm="arpack", random_state=0).fit(shuffled - shuffled.mean(0)).components_[0]
    assert abs(wanted @ first_component(differences)[0].numpy()) > 0.999


def test_lat_is_the_first_component_of_the_drawn_pairs_of_every_concept() -> None:
    train = MadeUp()
    found = Lat().fit(train)
    assert not found.cosine
    for c, (inside, outside) in enumerate(balanced(train, 10_000)):
        differences = (train.values[:, inside] - train.values[:, outside]).double()
        for layer in range(len(train.sites)):
            wanted = np.linalg.svd(differences[layer].numpy())[2][0]
            wanted = wanted * np.sign(differences[layer].mean(0).numpy() @ wanted)
            np.testing.assert_allclose(found.vectors[layer, c].numpy(), wanted, atol=1e-5)


def test_positives_score_higher_on_train() -> None:
    train = MadeUp()
    scores = torch.cat([Lat().fit(train).activate(block) for block in train], 1)
    for c in range(len(train.concepts)):
        means = [scores[:, train.truth[:, c] == value, c].mean(1) for value in (1, 0)]
        assert (means[0] > means[1]).all()


def test_no_more_pairs_are_drawn_than_asked_for_and_another_seed_draws_others() -> None:
    few = Lat(pairs=2).fit(MadeUp())
    other = MadeUp()
    other.seed = 6
    assert not torch.allclose(few.vectors, Lat().fit(MadeUp()).vectors)
    assert not torch.allclose(few.vectors, Lat(pairs=2).fit(other).vectors)
    drawn = balanced(MadeUp(), 2 * 2 * 3)
    assert [len(inside) for inside, _ in drawn] == [2, 2, 2]


def test_concepts_held_one_at_a_time_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    together = Lat().fit(MadeUp()).vectors
    monkeypatch.setattr(lat, "HELD_BYTES", 1)
    assert torch.equal(Lat().fit(MadeUp()).vectors, together)


def test_a_concept_without_a_pair_or_without_a_difference_is_nan_alone() -> None:
    train = MadeUp()
    train.truth[:, 1] = train.truth[:, 1].clamp(max=0)
    assert Lat().fit(train).vectors.isnan().all(2).tolist() == [[False, True, False]] * 2
    assert first_component(torch.zeros(2, 3, 4).double()).isnan().all()


def test_lat_keeps_the_contract() -> None:
    check_concept_method(Lat())


def test_lat_without_pairs_is_refused() -> None:
    with pytest.raises(
        HarnessError, match="bad value 0 for option 'pairs' of concept method 'lat'; allowed: whole numbers from 1"
    ):
        Lat(pairs=0)


# --- separators from sample labels


def labelled(train: MadeUp) -> MadeUp:
    """The same tokens, every one with the label of its sample as its truth."""
    train.truth = train.labels.repeat_interleave(train.offsets.diff(), dim=0).to(torch.int8)
    return train


@pytest.mark.parametrize("estimator", ["lda", "logistic", "adam"])
@pytest.mark.parametrize("per_block", [12, 5])
def test_supervision_by_samples_is_the_estimator_on_tokens_that_carry_their_samples_label(
    estimator: str, per_block: int
) -> None:
    by_samples = Linear(estimator=estimator, supervision="samples", epochs=5).fit(MadeUp(per_block))
    by_tokens = Linear(estimator=estimator, epochs=5).fit(labelled(MadeUp(per_block)))
    assert torch.equal(by_samples.vectors, by_tokens.vectors)
    assert not torch.allclose(by_samples.vectors, Linear(estimator=estimator, epochs=5).fit(MadeUp(per_block)).vectors)


@pytest.mark.parametrize("estimator", ["lda", "logistic", "adam"])
def test_supervision_by_samples_keeps_the_contract(estimator: str) -> None:
    check_concept_method(Linear(estimator=estimator, supervision="samples", epochs=5))


def test_supervision_by_samples_never_reads_the_truth_of_a_token() -> None:
    hidden = MadeUp()
    hidden.truth[:] = -1
    wanted = Linear(supervision="samples").fit(MadeUp()).vectors
    assert torch.equal(Linear(supervision="samples").fit(hidden).vectors, wanted)
    assert [Linear(supervision=word).needs_truth for word in ("tokens", "samples")] == [True, False]


def test_by_sample_gives_blocks_their_part_of_the_truth() -> None:
    train = BySample(MadeUp(per_block=5))
    assert torch.equal(torch.cat([block.truth for block in train]), labelled(MadeUp()).truth)
    assert train.concepts == MadeUp().concepts
    ((tokens, labels),) = list(gathered(train, balanced(train, 12)[:1]))
    assert tokens.shape[1] == len(labels) == 4


def test_an_unknown_supervision_is_answered_with_the_nearest() -> None:
    with pytest.raises(HarnessError, match=r"supervision 'sample'.*concept method 'linear'.*samples"):
        Linear(supervision="sample")


# --- through the pipe


def test_a_task_without_annotated_tokens_runs_with_supervision_by_samples_and_the_error_names_it(
    make_spec: Callable[..., RunSpec], registry: Registry, progress: object, tmp_path: object
) -> None:
    task, known = ragged_world.write_task(tmp_path, options="annotated: false"), registry.methods()
    attention = Method("attention-samples", "", "linear:supervision=samples", "attention")
    results = pipeline.run(make_spec(task, "ragged", (known["max-samples"], attention)), registry, progress)
    for result in results:
        assert result.score("f1").value > 0
    with pytest.raises(HarnessError, match=r"method 'max' is fitted on annotated tokens.*max-samples") as caught:
        pipeline.run(make_spec(task, "ragged", (known["max-samples"], known["max"])), registry, progress)
    assert "max-lat" not in str(caught.value)
    both = replace(known["noisy-or"], concepts="linear:supervision=samples")
    with pytest.raises(HarnessError, match="method 'noisy-or' is fitted on annotated tokens"):
        pipeline.run(make_spec(task, "ragged", (both,)), registry, progress)
    with pytest.raises(HarnessError, match="'superactivator-samples' is calibrated on annotated tokens"):
        pipeline.run(make_spec(task, "ragged", (known["superactivator-samples"],)), registry, progress)


def test_the_recipes_find_planted_concepts(run_toy: Callable[..., list[Result]]) -> None:
    names = ("max-samples", "superactivator-samples", "max-lat", "superactivator-lat")
    for result in run_toy(*names):
        assert result.score("f1").value > 0.8, result.method.name
