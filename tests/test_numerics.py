"""Every kernel against a loop in float64, with empty segments, ties, any offsets and any block size; and shapes checked at run time."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from harness import numerics
from harness.numerics import Counts, Moments, boxes_hit, counts_at, f1_score, first_best, spans_hit, tail_cutoffs, token_sums
from harness.types import LEVELS

quick = settings(deadline=None, max_examples=60)
few_values = st.sampled_from([-2.0, -0.5, 0.0, 0.1, 0.5, 3.0])  # few, so that ties are common
any_value = st.floats(-1e4, 1e4, width=32)
lengths_of = st.lists(st.integers(0, 5), min_size=1, max_size=8)
seeds = st.integers(0, 2**31)


def tokens(lengths: list[int], seed: int, layers: int = 2, units: int = 3) -> torch.Tensor:
    return torch.randn(layers, sum(lengths), units, generator=torch.Generator().manual_seed(seed)) * 3


def offsets_of(lengths: list[int], start: int = 0) -> torch.Tensor:
    return torch.tensor([start, *lengths]).cumsum(0)


def by_loop(values: torch.Tensor, lengths: list[int], how: Any, empty: float) -> np.ndarray[Any, Any]:
    """[L, S, K]: `how` of the float64 values of every segment."""
    wide, ends = values.double().numpy(), np.cumsum([0, *lengths])
    out = np.full((values.shape[0], len(lengths), values.shape[2]), empty)
    for layer in range(values.shape[0]):
        for s in range(len(lengths)):
            for k in range(values.shape[2]):
                segment = wide[layer, ends[s] : ends[s + 1], k]
                if len(segment):
                    out[layer, s, k] = how(segment)
    return out


# --- segments

REDUCTIONS = {
    "segment_max": (max, -math.inf, 0.0),
    "segment_sum": (math.fsum, 0.0, 1e-12),
    "segment_mean": (lambda x: math.fsum(x) / len(x), -math.inf, 1e-6),
    "segment_last": (lambda x: x[-1], -math.inf, 0.0),
    "segment_logsumexp": (lambda x: math.log(math.fsum(math.exp(v - max(x)) for v in x)) + max(x), -math.inf, 1e-6),
}
each = pytest.mark.parametrize("name", REDUCTIONS)


@each
@quick
@given(lengths=lengths_of, start=st.integers(0, 50), seed=seeds)
def test_a_segment_reduction_is_the_loop_whatever_the_lengths_and_the_first_offset(
    name: str, lengths: list[int], start: int, seed: int
) -> None:
    how, empty, tolerance = REDUCTIONS[name]
    values = tokens(lengths, seed)
    got = getattr(numerics, name)(values, offsets_of(lengths, start))
    np.testing.assert_allclose(got.double().numpy(), by_loop(values, lengths, how, empty), rtol=tolerance, atol=tolerance)


@each
@quick
@given(length=st.integers(0, 5), count=st.integers(1, 6), seed=seeds)
def test_equal_lengths_give_what_ragged_ones_give(name: str, length: int, count: int, seed: int) -> None:
    """Equal lengths take a shorter way; one longer segment at the end forces the other."""
    values, more = tokens([length] * count, seed), tokens([length + 1], seed + 1)
    equal = getattr(numerics, name)(values, offsets_of([length] * count))
    ragged = getattr(numerics, name)(torch.cat([values, more], 1), offsets_of([length] * count + [length + 1]))
    torch.testing.assert_close(equal, ragged[:, :-1], rtol=1e-12 if equal.dtype == torch.float64 else 1e-6, atol=1e-12)


@each
@quick
@given(lengths=lengths_of, cut=st.integers(0, 8), seed=seeds)
def test_two_blocks_give_what_one_gives(name: str, lengths: list[int], cut: int, seed: int) -> None:
    reduce, values, cut = getattr(numerics, name), tokens(lengths, seed), min(cut, len(lengths))
    whole, offsets = reduce(values, offsets_of(lengths)), offsets_of(lengths)
    at = int(offsets[cut])
    parts = [reduce(values[:, :at], offsets[: cut + 1]), reduce(values[:, at:], offsets[cut:])]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-6, atol=1e-12)


@quick
@given(lengths=lengths_of, start=st.integers(0, 9), seed=seeds)
def test_a_picked_item_is_the_one_at_its_place(lengths: list[int], start: int, seed: int) -> None:
    values = tokens(lengths, seed)
    place = [seed % max(n, 1) for n in lengths]
    got = numerics.segment_pick(values, offsets_of(lengths, start), torch.tensor(place))
    ends = np.cumsum([0, *lengths])
    for s, n in enumerate(lengths):
        wanted = values[:, ends[s] + place[s]] if n else torch.full_like(got[:, s], -torch.inf)
        assert torch.equal(got[:, s], wanted)


@quick
@given(lengths=lengths_of, start=st.integers(0, 9), top=st.integers(1, 7), seed=seeds)
def test_the_mean_of_the_strongest_is_that_of_the_sorted_loop_and_of_all_where_there_are_fewer(
    lengths: list[int], start: int, top: int, seed: int
) -> None:
    values = tokens(lengths, seed).round()  # ties
    got = numerics.segment_top_mean(values, offsets_of(lengths, start), top)
    wanted = by_loop(values, lengths, lambda x: math.fsum(sorted(x)[-top:]) / min(top, len(x)), -math.inf)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-6, atol=1e-6)


def test_the_strongest_of_no_segment_and_of_no_token_are_fine() -> None:
    assert numerics.segment_top_mean(torch.zeros(2, 0, 3), torch.tensor([0]), 2).shape == (2, 0, 3)
    assert (numerics.segment_top_mean(torch.zeros(2, 0, 3), torch.tensor([4, 4, 4]), 2) == -torch.inf).all()


@pytest.mark.parametrize("reduce", [lambda v, o: numerics.segment_top_mean(v, o, 2), numerics.segment_logsumexp])
def test_a_nan_column_stays_alone_and_large_values_do_not_overflow(reduce: Any) -> None:
    values = torch.tensor([[1e4, 0.0], [1e4, torch.nan], [-1e4, 2.0]])[None]
    got = reduce(values, torch.tensor([0, 2, 3]))[0]
    torch.testing.assert_close(got[:, 0], torch.tensor([1e4, -1e4]), rtol=1e-4, atol=0.0)
    assert got[0, 1].isnan()
    assert got[1, 1] == 2.0


def test_the_gradient_of_logsumexp_is_the_softmax() -> None:
    values = tokens([3, 0, 2], 1).requires_grad_()
    numerics.segment_logsumexp(values, offsets_of([3, 0, 2]))[:, [0, 2]].sum().backward()
    wanted = torch.cat([part.softmax(1) for part in values.detach().split([3, 2], 1)], 1)
    torch.testing.assert_close(values.grad, wanted)


@each
def test_no_segment_at_all_and_no_token_at_all_are_fine(name: str) -> None:
    reduce = getattr(numerics, name)
    assert reduce(torch.zeros(2, 0, 3), torch.tensor([0])).shape == (2, 0, 3)
    empty = reduce(torch.zeros(2, 0, 3), torch.tensor([4, 4, 4]))
    assert (empty == (0.0 if name == "segment_sum" else -torch.inf)).all()
    assert empty.shape == (2, 2, 3)


@pytest.mark.parametrize("lengths", [[2, 2], [1, 3]])
def test_the_mean_of_large_and_small_values_is_accumulated_in_float64(lengths: list[int]) -> None:
    values = torch.tensor([1e8, 1.0, -1e8, 3.0])[None, :, None]
    mean = numerics.segment_mean(values, offsets_of(lengths))
    ends = np.cumsum([0, *lengths])
    wanted = [values[0, a:b, 0].double().mean().float().item() for a, b in pairwise(ends)]
    assert mean[0, :, 0].tolist() == wanted


@quick
@given(lengths=lengths_of, start=st.integers(0, 9))
def test_segment_ids_name_the_segment_of_every_item(lengths: list[int], start: int) -> None:
    assert numerics.segment_ids(offsets_of(lengths, start)).tolist() == [s for s, n in enumerate(lengths) for _ in range(n)]


# --- cutoffs


def quantile(column: list[float], level: float) -> float:
    """The (1 - level)-quantile with an exact rank."""
    ordered, rank = sorted(column), (len(column) - 1) * (1 - Fraction(str(level)))
    low = math.floor(rank)
    high = min(low + 1, len(column) - 1)
    return ordered[low] + float(rank - low) * (ordered[high] - ordered[low])


@quick
@given(st.lists(st.one_of(few_values, any_value), min_size=1, max_size=60))
def test_tail_cutoffs_are_the_interpolated_quantiles_of_numpy_and_of_an_exact_rank(column: list[float]) -> None:
    scores = torch.tensor(column)[:, None]
    column = scores[:, 0].double().tolist()
    got = tail_cutoffs(scores, LEVELS)[:, 0]
    assert got.dtype == torch.float64
    span = max(map(abs, column)) + 1
    for level, cutoff in zip(LEVELS, got.tolist(), strict=True):
        assert cutoff == pytest.approx(quantile(column, level), rel=0, abs=1e-12 * span)
        assert cutoff == pytest.approx(np.quantile(column, 1 - level, method="linear"), rel=0, abs=1e-12 * span)


@quick
@given(n=st.integers(1, 400), seed=seeds)
def test_wherever_the_rank_is_whole_the_cutoff_is_that_very_score(n: int, seed: int) -> None:
    """Interpolating by 1e-15 between two scores would lift a cutoff off the score it stands on, and lose that sample."""
    scores = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))
    ordered = scores[:, 0].sort().values.double().tolist()
    for level, cutoff in zip(LEVELS, tail_cutoffs(scores, LEVELS)[:, 0].tolist(), strict=True):
        rank = (n - 1) * (1 - Fraction(str(level)))
        if rank.denominator == 1:
            assert cutoff == ordered[int(rank)]


def test_level_005_of_21_scores_is_the_second_highest_exactly() -> None:
    scores = torch.arange(21.0)[:, None].flip(0) / 7
    assert tail_cutoffs(scores, (0.05,)).item() == scores.double().flatten().sort().values[19].item()


@pytest.mark.parametrize("value", [0.1, -3.7])
def test_one_score_is_its_own_cutoff_at_every_level(value: float) -> None:
    assert tail_cutoffs(torch.tensor([[value]]), LEVELS)[:, 0].tolist() == [torch.tensor(value).double().item()] * len(LEVELS)


def test_equal_scores_are_their_own_cutoff() -> None:
    assert (tail_cutoffs(torch.full((13, 2), 0.1), LEVELS) == torch.tensor(0.1).double()).all()


def test_no_score_gives_no_cutoff() -> None:
    cutoffs = tail_cutoffs(torch.zeros(0, 3), LEVELS)
    assert cutoffs.shape == (12, 3)
    assert cutoffs.isnan().all()


def test_columns_and_levels_do_not_touch_each_other() -> None:
    scores = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    whole = tail_cutoffs(scores, LEVELS)
    for k in range(5):
        for p, level in enumerate(LEVELS):
            assert tail_cutoffs(scores[:, k : k + 1], (level,)).item() == whole[p, k].item()


def test_a_cutoff_of_many_scores_is_not_refused() -> None:
    """`torch.quantile` refuses 16 million elements; and a float32 rank would move the cutoff."""
    n = 17_000_000
    cutoffs = tail_cutoffs(torch.arange(n, dtype=torch.float64)[:, None], (0.02, 0.9))
    assert cutoffs[:, 0].tolist() == [pytest.approx((n - 1) * 0.98, abs=1e-6), pytest.approx((n - 1) * 0.1, abs=1e-6)]


# --- counts


def counts_by_loop(scores: Any, truth: Any, cutoffs: Any) -> list[list[tuple[int, int, int]]]:
    """[P][K] of (TP, FP, FN)."""
    return [
        [
            tuple(
                sum(bool(score >= cutoff) == found and true == positive for score, true in zip(column, truths, strict=True))
                for found, positive in ((True, 1), (True, 0), (False, 1))
            )
            for column, truths, cutoff in zip(scores.T.tolist(), truth.T.tolist(), row, strict=True)
        ]
        for row in cutoffs.tolist()
    ]


@quick
@given(st.data(), st.integers(0, 12), st.integers(1, 3), st.integers(1, 4))
def test_counts_are_the_loop_with_ties_nan_cutoffs_infinite_scores_and_unknown_truth(
    data: st.DataObject, n: int, units: int, levels: int
) -> None:
    def draw(values: Any, rows: int) -> list[list[Any]]:
        return [[data.draw(values) for _ in range(units)] for _ in range(rows)]

    scores = torch.tensor(draw(st.one_of(few_values, st.just(-math.inf)), n)).reshape(n, units)
    truth = torch.tensor(draw(st.sampled_from([-1, 0, 1]), n), dtype=torch.int8).reshape(n, units)
    cutoffs = torch.tensor(draw(st.one_of(few_values, st.just(math.nan)), levels), dtype=torch.float32).double()
    counts = counts_at(scores, truth, cutoffs)
    got = [[tuple(int(count[p, k]) for count in counts) for k in range(units)] for p in range(levels)]
    assert got == counts_by_loop(scores.double(), truth, cutoffs)


def test_a_float32_score_is_compared_with_a_float64_cutoff_in_float64() -> None:
    score = torch.tensor([[0.1]])
    just_above = torch.tensor([[0.1]]).double() + 1e-12
    assert counts_at(score, torch.ones(1, 1, dtype=torch.int8), just_above).tp.item() == 0
    assert counts_at(score, torch.ones(1, 1, dtype=torch.int8), score.double()).tp.item() == 1


def test_f1_is_its_definition_and_nan_only_where_nothing_is_there() -> None:
    counts = Counts(*(torch.tensor(row, dtype=torch.float64) for row in ([2, 0, 0, 0], [1, 0, 3, 0], [3, 4, 0, 0])))
    got = f1_score(counts).tolist()
    assert got[:3] == [4 / 8, 0.0, 0.0]
    assert math.isnan(got[3])


@quick
@given(st.lists(st.lists(st.one_of(few_values, st.just(math.nan)), min_size=2, max_size=2), min_size=1, max_size=8))
def test_first_best_is_the_first_of_the_largest_and_never_nan_beside_a_number(values: list[list[float]]) -> None:
    got = first_best(torch.tensor(values)).tolist()
    for k in range(2):
        numbers = [(-row[k], i) for i, row in enumerate(values) if not math.isnan(row[k])]
        assert got[k] == (min(numbers)[1] if numbers else 0)


# --- moments


@quick
@given(n=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=4), shift=st.sampled_from([0.0, 1000.0]), seed=seeds)
def test_moments_are_those_of_numpy_whatever_the_blocks(n: int, cuts: list[int], shift: float, seed: int) -> None:
    values = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed)) + shift
    moments, start = Moments(2, 3), 0
    for end in [*sorted(min(cut, n) for cut in cuts), n]:
        moments.add(end - start, token_sums(values[:, start:end]))
        start = end
    wide = values.double().numpy()
    assert moments.n == n
    np.testing.assert_allclose(moments.mean.numpy(), wide.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.mean_square.numpy(), (wide**2).mean(1), rtol=1e-12)


def test_moments_change_no_value_they_are_given() -> None:
    values = torch.randn(2, 5, 3, dtype=torch.float64)
    before = values.clone()
    token_sums(values)
    assert torch.equal(values, before)


def test_moments_of_nothing_are_zero() -> None:
    moments = Moments(2, 3)
    moments.add(0, token_sums(torch.zeros(2, 0, 3)))
    assert moments.mean.tolist() == [[0.0] * 3] * 2


# --- regions


@quick
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.floats(0, 1),
    boxes=st.lists(st.lists(st.integers(-3, 12), min_size=4, max_size=4), min_size=1, max_size=8),
    seed=seeds,
)
def test_a_box_is_hit_iff_a_mask_pixel_lies_in_it(
    height: int, width: int, share: float, boxes: list[list[int]], seed: int
) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in boxes]
    wanted = [
        any(bool(mask[y, x]) for y in range(height) for x in range(width) if t <= y < b and left <= x < r)
        for t, left, b, r in boxes
    ]
    assert boxes_hit(mask, torch.tensor(boxes)).tolist() == wanted


spans = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=5)


@quick
@given(spans=spans, words=spans)
def test_a_token_is_hit_iff_it_shares_a_character_with_a_span(
    spans: list[tuple[int, int]], words: list[tuple[int, int]]
) -> None:
    there = [(start, start + 1 + n) for start, n in spans]
    words = [(start, start + 1 + n) for start, n in words]
    wanted = [any(set(range(*span)) & set(range(*word)) for span in there) for word in words]
    got = spans_hit(torch.tensor(there).reshape(-1, 2).long(), torch.tensor(words).reshape(-1, 2).long())
    assert got.tolist() == wanted


# --- shapes

WRONG = {
    "segment_max without layers": lambda: numerics.segment_max(torch.zeros(5, 3), torch.tensor([0, 5])),
    "segment_mean of integers": lambda: numerics.segment_mean(torch.zeros(1, 5, 3).long(), torch.tensor([0, 5])),
    "counts_at with another number of rows": lambda: counts_at(
        torch.zeros(5, 2), torch.zeros(4, 2, dtype=torch.int8), torch.zeros(1, 2)
    ),
    "counts_at with another number of units": lambda: counts_at(
        torch.zeros(5, 2), torch.zeros(5, 2, dtype=torch.int8), torch.zeros(1, 3)
    ),
    "tail_cutoffs with layers": lambda: tail_cutoffs(torch.zeros(1, 5, 3), (0.5,)),
    "boxes_hit with spans": lambda: boxes_hit(torch.zeros(4, 4, dtype=torch.bool), torch.zeros(2, 2).long()),
    "boxes_hit with a mask of numbers": lambda: boxes_hit(torch.zeros(4, 4), torch.zeros(2, 4).long()),
    "spans_hit with boxes": lambda: spans_hit(torch.zeros(2, 2).long(), torch.zeros(2, 4).long()),
    "segment_ids of rows of offsets": lambda: numerics.segment_ids(torch.tensor([[0, 2]])),
    "segment_max with rows of offsets": lambda: numerics.segment_max(torch.zeros(1, 5, 3), torch.tensor([[0, 5]])),
    "segment_max with float offsets": lambda: numerics.segment_max(torch.zeros(1, 5, 3), torch.tensor([0.0, 5.0])),
    "segment_pick with a place for every second segment": lambda: numerics.segment_pick(
        torch.zeros(1, 4, 3), torch.tensor([0, 2, 4]), torch.tensor([[0], [1]])
    ),
    "first_best of integers": lambda: first_best(torch.tensor([[1, 2], [3, 4]])),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_shape_is_refused_by_the_run_time_check(what: str) -> None:
    with pytest.raises(TypeCheckError):
        WRONG[what]()
