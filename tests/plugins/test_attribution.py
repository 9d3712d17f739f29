"""The explainers on models whose attributions are known in closed form, and against loops; the recipes; what a user can get wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from harness_attribution.mfaba import probability
from harness_attribution.perturbation import coalitions, windows
from torch import Tensor, nn

from harness.api import HarnessError, Inputs, Opened
from harness.registry import load
from harness.testing import MadeUp, check_explainer, check_localizer, made_up_probe

REGISTRY = load()
PERTURBING = ("lime", "kernel-shap", "occlusion", "rise", "shap-iq")
GRADIENTS = ("integrated-gradients", "saliency", "input-x-gradient", "grad-cam", "fullgrad", "mfaba")
EXPLAINERS = (*PERTURBING, *GRADIENTS)
TOKENS, WIDTH, CONCEPTS = 9, 5, 3


def made(reference: str) -> Any:
    return REGISTRY.create("localizers", reference)


class LinearProbe:
    """A text of nine tokens between two special positions, through two linear blocks; f_c is linear in it, as far as `bend` leaves it so.

    Token t adds w_c . x_t to f_c, the special positions add to it too. A removed token is `baseline`. NaN: concepts without a vector.
    """

    batch_size = 4

    def __init__(self, bend: Any = lambda f: f, missing: Sequence[int] = (), layer: int = 1) -> None:
        g = torch.Generator().manual_seed(3)
        self.tokens, self.bend, self.missing, self._layer, self.forwards = TOKENS, bend, list(missing), layer, 0
        self.leaf = torch.randn(TOKENS + 2, WIDTH, generator=g)
        self.baseline = torch.randn(1, 1, WIDTH, generator=g)
        self.blocks = [nn.Linear(WIDTH, WIDTH, device="meta").to_empty(device="cpu") for _ in range(2)]
        for block in self.blocks:
            block.weight.data, block.bias.data = (torch.randn(*p.shape, generator=g) for p in (block.weight, block.bias))
            block.requires_grad_(False)
        self.vectors = torch.randn(CONCEPTS, WIDTH, generator=g)
        positions = torch.ones(1, TOKENS + 2, dtype=torch.bool)
        positions[:, [0, -1]] = False
        regions = torch.stack([torch.arange(TOKENS), torch.arange(1, TOKENS + 1)], 1)
        cells = torch.tensor([-1, *range(TOKENS), -1])
        inputs = Inputs({"leaf": self.leaf[None]}, positions, regions)
        self.opened = Opened(inputs, "leaf", cells, 2, self.baseline, self.blocks)

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(8)

    @property
    def weights(self) -> Tensor:
        """[C, d]: df_c/dx_t, the same for every token, where nothing bends."""
        return self.vectors @ self.blocks[1].weight @ self.blocks[0].weight

    @property
    def content(self) -> Tensor:
        return self.leaf[1:-1]

    def layer(self, concept: int) -> int:
        return self._layer

    def f(self, leaves: Tensor) -> Tensor:
        self.forwards += len(leaves)
        out = self.bend(self.blocks[1](self.blocks[0](leaves)).sum(1) @ self.vectors.T)
        return out.index_fill(1, torch.tensor(self.missing, dtype=torch.int64), torch.nan)

    def mask(self, keep: Tensor) -> Tensor:
        share = torch.nn.functional.pad(keep.float(), (1, 1), value=1.0)[..., None]  # the special positions stay
        return share * self.leaf + (1 - share) * self.baseline

    def masked(self, keep: Tensor) -> Tensor:
        return self.f(self.mask(keep)).double()

    def per_token(self, values: Tensor) -> Tensor:
        return values.sum(2)[:, 1:-1]

    def random_masks(self, n: int, share: float = 0.5) -> Tensor:
        return torch.rand(n, TOKENS, generator=self.generator) < share


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    scale = float(wanted.abs().max())
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * scale)


# --- closed forms


@pytest.mark.parametrize(
    ("reference", "tolerance"),
    [
        ("lime:ridge=0", 1e-4),
        ("lime", 0.05),
        ("kernel-shap", 1e-4),
        ("kernel-shap:masks=60", 1e-4),
        ("occlusion", 1e-4),
        ("shap-iq", 1e-4),
        ("shap-iq:budget=100", 1e-4),
        ("integrated-gradients", 1e-4),
    ],
)
def test_of_a_linear_score_a_token_has_what_it_adds_over_the_baseline(reference: str, tolerance: float) -> None:
    probe = LinearProbe()
    wanted = (probe.content - probe.baseline[0]) @ probe.weights.T
    close(made(reference).explain(probe, [2, 0]), wanted[:, [2, 0]], tolerance)


def test_input_x_gradient_of_a_linear_score_is_what_a_token_adds_and_saliency_the_size_of_its_weights() -> None:
    probe = LinearProbe()
    close(made("input-x-gradient").explain(probe, [2, 0]), (probe.content @ probe.weights.T)[:, [2, 0]])
    close(made("saliency").explain(probe, [2, 0]), probe.weights.abs().sum(1)[[2, 0]].expand(TOKENS, 2))


def test_rise_is_the_mean_score_of_the_masks_that_keep_a_token_and_ranks_as_what_tokens_add() -> None:
    probe = LinearProbe()
    got = made("rise:masks=50").explain(probe, [1])
    keep = probe.random_masks(50)
    for t in range(TOKENS):
        scores = [float(probe.f(probe.mask(row[None]))[0, 1]) for row in keep if row[t]]
        assert float(got[t, 0]) == pytest.approx(np.mean(scores), rel=1e-5)
    added = (probe.content - probe.baseline[0]) @ probe.weights[1]
    many = made("rise:masks=2000").explain(probe, [1])[:, 0]
    assert np.corrcoef(many, added)[0, 1] > 0.98


def test_a_token_that_no_mask_keeps_has_the_mean_score() -> None:
    probe = LinearProbe()
    probe.random_masks = lambda n, share=0.5: torch.arange(TOKENS)[None] < torch.tensor([[2], [4]])  # type: ignore[method-assign]
    got = made("rise:masks=2").explain(probe, [0])
    scores = probe.masked(probe.random_masks(2))[:, 0]
    close(got[4:, 0], scores.mean().expand(TOKENS - 4))


@pytest.mark.parametrize(("layer", "offset", "below"), [(1, 1, 1), (1, 2, 0), (0, 1, 0), (2, 1, 1), (0, 3, 0)])
def test_grad_cam_weighs_the_channels_that_enter_a_block_by_their_mean_gradient(layer: int, offset: int, below: int) -> None:
    """Layer 0 has no block below it: what enters the first one counts. Layer 2 of 2 blocks is after the final norm."""
    probe = LinearProbe(layer=layer)
    states = [probe.content, probe.blocks[0](probe.content)]
    gradients = [probe.weights, probe.vectors @ probe.blocks[1].weight]
    got = made(f"grad-cam:offset={offset}").explain(probe, [0, 2])
    close(got, (states[below] @ gradients[below].T).relu()[:, [0, 2]])
    assert (got == 0).any()


def test_grad_cam_leaves_no_hook_and_no_graph_behind() -> None:
    probe = LinearProbe()
    for name in ("grad-cam", "fullgrad"):
        found = made(name).explain(probe, [0])
        assert not found.requires_grad
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in probe.blocks)


def test_fullgrad_adds_the_bias_gradients_to_the_absolute_input_x_gradient() -> None:
    probe = LinearProbe()
    at_input = (probe.content[:, None] * probe.weights).abs().sum(2)
    close(made("fullgrad:bias=none").explain(probe, [0, 2]), at_input[:, [0, 2]])
    inner, outer = probe.vectors @ probe.blocks[1].weight, probe.vectors  # df/d(output) of the blocks, at every position
    per_place = (probe.blocks[0].bias * inner).abs().sum(1) + (probe.blocks[1].bias * outer).abs().sum(1)
    close(made("fullgrad:bias=tokens").explain(probe, [0, 2]), (at_input + per_place)[:, [0, 2]])
    constant = (TOKENS + 2) * per_place / TOKENS  # both special positions see the biases too
    close(made("fullgrad").explain(probe, [0, 2]), (at_input + constant)[:, [0, 2]])


def test_mfaba_sums_absolute_gradients_along_its_path() -> None:
    probe = LinearProbe()
    x = np.repeat(probe.leaf.double().numpy()[None], 2, 0)
    w, total = probe.weights.double().numpy(), np.zeros((2, TOKENS + 2, WIDTH))
    for _ in range(5):
        for i, concept in enumerate([2, 0]):
            f = probe.f(torch.from_numpy(x[i : i + 1]).float())[0].double().numpy()
            p = np.exp(f - f.max()) / np.exp(f - f.max()).sum()
            gradient = np.broadcast_to(p[concept] * (w[concept] - p @ w), x[i].shape)
            x[i] -= 0.01 * np.sign(gradient)
            total[i] += 0.01 * np.abs(gradient)
    close(made("mfaba:steps=5:alpha=0.01").explain(probe, [2, 0]), torch.from_numpy(total[:, 1:-1].sum(2).T), 1e-3)


def test_mfaba_follows_the_score_itself_where_no_other_concept_has_one() -> None:
    probe = LinearProbe(missing=[0, 2])
    close(made("mfaba:steps=5:alpha=0.01").explain(probe, [1]), 0.05 * probe.weights[1:2].abs().sum(1).expand(TOKENS, 1))
    scores = torch.tensor([[1.0, torch.nan, 2.0]])
    assert probability(scores)[0, [0, 2]].tolist() == pytest.approx(torch.tensor([1.0, 2.0]).softmax(0).tolist())


# --- scores that bend


def shapley(f: Any, tokens: int) -> list[float]:
    """By the definition, over all coalitions."""
    values = []
    for t in range(tokens):
        others = [i for i in range(tokens) if i != t]
        total = 0.0
        for size in range(tokens):
            weight = 1 / (tokens * math.comb(tokens - 1, size))
            total += sum(weight * (f((*s, t)) - f(s)) for s in combinations(others, size))
        values.append(total)
    return values


@pytest.mark.parametrize("reference", ["kernel-shap", "shap-iq"])
def test_where_all_coalitions_are_scored_the_values_are_the_shapley_values(reference: str) -> None:
    probe = made_up_probe()
    tokens = probe.tokens
    masks = torch.arange(2**tokens)[:, None] >> torch.arange(tokens) & 1
    scores = probe.masked(masks.bool())[:, 1]
    wanted = shapley(lambda kept: float(scores[sum(2**i for i in kept)]), tokens)
    close(made(reference).explain(probe, [1])[:, 0], torch.tensor(wanted))


@pytest.mark.parametrize(
    "reference", ["kernel-shap", "kernel-shap:masks=33", "shap-iq", "shap-iq:budget=40", "kernel-shap:masks=4"]
)
@pytest.mark.parametrize("bend", [torch.tanh, torch.square, torch.relu], ids=lambda bend: bend.__name__)
def test_shapley_values_add_up_to_what_the_sample_scores_over_the_empty_one(reference: str, bend: Any) -> None:
    probe = LinearProbe(bend)
    whole, empty = probe.masked(torch.tensor([[True], [False]]).expand(2, TOKENS))
    close(made(reference).explain(probe, [0, 1, 2]).sum(0), whole - empty, 1e-4)


def test_integrated_gradients_add_up_as_closely_as_their_steps_are_fine() -> None:
    probe = LinearProbe(lambda f: torch.tanh(f / 40))
    whole, empty = probe.masked(torch.tensor([[True], [False]]).expand(2, TOKENS))
    error = {
        n: float((made(f"integrated-gradients:steps={n}").explain(probe, [0, 1, 2]).sum(0) - whole + empty).abs().max())
        for n in (3, 64)
    }
    assert error[64] < 1e-3 * float((whole - empty).abs().max())
    assert error[64] < error[3]


@pytest.mark.parametrize("tokens", [2, 5])
def test_few_tokens_have_all_their_coalitions_with_the_weights_of_the_shapley_kernel(tokens: int) -> None:
    keep, weights = coalitions(tokens, 30, torch.Generator())
    assert len(keep) == 2**tokens - 2 == len(torch.unique(keep, dim=0))
    for row, weight in zip(keep, weights.tolist(), strict=True):
        size = int(row.sum())
        assert weight == pytest.approx((tokens - 1) / (math.comb(tokens, size) * size * (tokens - size)))


def test_many_tokens_have_coalitions_drawn_by_the_kernel_in_pairs() -> None:
    keep, weights = coalitions(40, 20_000, torch.Generator().manual_seed(0))
    assert keep.shape == (20_000, 40)
    assert bool((weights == 1).all())
    assert bool((keep[::2] ^ keep[1::2]).all())
    sizes = np.bincount(keep[::2].sum(1), minlength=41)
    kernel = np.array([0, *(1 / (k * (40 - k)) for k in range(1, 40)), 0])
    np.testing.assert_allclose(sizes / sizes.sum(), kernel / kernel.sum(), atol=0.01)
    assert keep.double().mean(0).numpy() == pytest.approx(np.full(40, 0.5), abs=0.01)


@pytest.mark.parametrize("reference", PERTURBING)
def test_a_sample_of_one_token_has_its_whole_score(reference: str) -> None:
    probe = LinearProbe()
    probe.tokens, mask = 1, probe.mask
    probe.mask = lambda keep: mask(keep.expand(-1, TOKENS))  # type: ignore[method-assign]
    probe.random_masks = lambda n, share=0.5: torch.rand(n, 1, generator=probe.generator) < share  # type: ignore[method-assign]
    inputs = probe.opened.inputs
    object.__setattr__(inputs, "regions", inputs.regions[:1])
    whole, empty = probe.masked(torch.tensor([[True], [False]]))
    got = made("lime:ridge=0" if reference == "lime" else reference).explain(probe, [0, 2])
    assert got.shape == (1, 2)
    if reference == "rise":
        close(got[0], whole[[0, 2]])
    else:
        close(got[0], (whole - empty)[[0, 2]], 0.02)


def test_a_window_hides_the_patches_or_words_around_a_token_and_a_token_has_the_mean_of_its_windows() -> None:
    grid = torch.tensor([[r * 14, c * 14, r * 14 + 14, c * 14 + 14] for r in range(3) for c in range(4)])
    hidden = windows(grid, 3)
    assert hidden[0].nonzero()[:, 0].tolist() == [0, 1, 4, 5]
    assert hidden[5].nonzero()[:, 0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert torch.equal(windows(grid, 1), torch.eye(12).bool())
    probe = LinearProbe()
    added = (probe.content - probe.baseline[0]) @ probe.weights[0]
    lost = [float(added[max(t - 1, 0) : t + 2].sum()) for t in range(TOKENS)]
    wanted = [np.mean(lost[max(t - 1, 0) : t + 2]) for t in range(TOKENS)]
    close(made("occlusion:window=3").explain(probe, [0])[:, 0], torch.tensor(wanted))


# --- every explainer


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("vector", ["global", "superactivator"])
def test_every_explainer_keeps_the_contract(name: str, vector: str) -> None:
    check_explainer(made(f"{name}:vector={vector}"))


def test_noise_keeps_the_contract_of_a_localizer_and_differs_by_seed_sample_and_concept() -> None:
    check_localizer(made("noise"))
    block = next(MadeUp().blind())
    explained: Any = type("Explained", (), {"layers": torch.zeros(3)})
    first = made("noise").score(block, explained)
    assert len(torch.unique(first)) == first.numel()
    assert bool(((first >= 0) & (first < 1)).all())
    assert not torch.equal(first, made("noise:seed=1").score(block, explained))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_another_concept_without_a_vector_spoils_nothing(name: str) -> None:
    alone, beside = (made(name).explain(LinearProbe(missing=missing), [2, 1]) for missing in ([], [0]))
    assert bool(beside.isfinite().all())
    if name != "mfaba":  # its softmax is over the concepts that are there
        close(beside, alone)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_price_is_what_an_explanation_costs(name: str) -> None:
    """Gradients count three for a forward with its backward pass; captum and the shared passes run no more forwards than that."""
    probe = LinearProbe()
    made(name).explain(probe, [0, 2])
    price = made(name).forwards(TOKENS, 2)
    if name == "shap-iq":  # the fake probe remembers nothing, and shapiq asks for every concept
        assert probe.forwards == 2 * price
    elif name in PERTURBING:
        assert probe.forwards == price
    else:
        assert probe.forwards <= price


def test_a_price_counts_all_coalitions_where_there_are_few() -> None:
    assert made("kernel-shap").forwards(4, 1) == 16
    assert made("kernel-shap").forwards(256, 3) == 502
    assert made("shap-iq").forwards(4, 1) == 16
    assert made("shap-iq").forwards(256, 3) == 512
    assert made("occlusion").forwards(256, 3) == 257


# --- what a user meets


def test_every_explainer_has_two_recipes_and_the_maps_without_a_model_a_twin_each() -> None:
    recipes = {name: method for name, method in REGISTRY.methods().items() if "attribution" in method.tags}
    assert set(recipes) == {
        *EXPLAINERS,
        *(f"{name}-superactivator" for name in EXPLAINERS),
        "explained-direct",
        "explained-superactivator",
        "explained-noise",
    }
    for name, method in recipes.items():
        assert method.tags == ("attribution",)
        assert (method.localize_on == "explained") == name.startswith("explained-")
        REGISTRY.create("localizers", method.localizer or "")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("lime:vector=superactivators", "unknown vector 'superactivators'.*localizer 'lime'.*superactivator"),
        ("lime:masks=0", "bad value 0 for option 'masks' of localizer 'lime'; it must be at least 1"),
        ("lime:kernel_width=0", "bad value 0 for option 'kernel_width' of localizer 'lime'; it must be at least 0.001"),
        ("kernel-shap:masks=1", "bad value 1 for option 'masks' of localizer 'kernel-shap'; it must be at least 2"),
        ("shap-iq:budget=3", "bad value 3 for option 'budget' of localizer 'shap-iq'; it must be at least 4"),
        ("rise:mask=3", "unknown option 'mask'.*masks"),
        ("occlusion:window=-1", "bad value -1 for option 'window' of localizer 'occlusion'; it must be at least 1"),
        (
            "integrated-gradients:steps=1",
            "bad value 1 for option 'steps' of localizer 'integrated-gradients'; it must be at least 2",
        ),
        ("grad-cam:offset=0", "bad value 0 for option 'offset' of localizer 'grad-cam'; it must be at least 1"),
        ("mfaba:steps=null", "bad value None for option 'steps' of localizer 'mfaba'; it must be at least 1"),
        ("fullgrad:bias=all", "unknown bias 'all'.*localizer 'fullgrad'.*constant"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(reference: str, sentence: str) -> None:
    with pytest.raises(HarnessError, match=sentence) as error:
        made(reference)
    assert "\n" not in str(error.value)
