"""Pure torch kernels: segment reductions, tail cutoffs, counts at every cutoff, streaming moments. Nothing here knows a file or a task.

Segments are given by offsets [S+1] int64: segment s is items offsets[s]:offsets[s+1]; offsets[0] may be any start.
Quantile ranks are float64 (float32 ranks move cutoffs by 6e-5) and exact for decimal levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RANK_DECIMALS = 9
"""Ranks are rounded to this many decimals, so that (n-1) * (1 - 0.05) = 19 is 19 and not 19.000000000000004."""


def _lengths(offsets: Int[Tensor, " s1"]) -> Int[Tensor, " s"]:
    return offsets[1:] - offsets[:-1]


def segment_ids(offsets: Int[Tensor, " s1"]) -> Int[Tensor, " t"]:
    """[T] int64: the segment of every item."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), _lengths(offsets))


def _reduce(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"], how: str, empty: float) -> Float[Tensor, "l s k"]:
    lengths = _lengths(offsets)
    layers, tokens, units = values.shape
    if len(lengths) and tokens and bool((lengths == lengths[0]).all()):
        shaped = values.reshape(layers, len(lengths), -1, units)
        return shaped.amax(2) if how == "amax" else shaped.sum(2)
    start = 0.0 if how == "sum" else -torch.inf
    out = torch.full((layers, len(lengths), units), start, dtype=values.dtype, device=values.device)
    index = segment_ids(offsets)[None, :, None].expand(layers, tokens, units)
    out.scatter_reduce_(1, index, values, how)
    return out.masked_fill((lengths == 0)[None, :, None], empty)


def segment_max(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"]) -> Float[Tensor, "l s k"]:
    """The largest value of every segment; -inf for an empty one."""
    return _reduce(values, offsets, "amax", -torch.inf)


def segment_sum(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"]) -> Float[Tensor, "l s k"]:
    """The sum of every segment, accumulated in float64; 0 for an empty one."""
    return _reduce(values.double(), offsets, "sum", 0.0)


def segment_mean(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"]) -> Float[Tensor, "l s k"]:
    """The mean of every segment, accumulated in float64 and returned in the values' dtype; -inf for an empty one."""
    lengths = _lengths(offsets)[None, :, None]
    mean = segment_sum(values, offsets) / lengths.clamp(min=1)
    return mean.masked_fill(lengths == 0, -torch.inf).to(values.dtype)


def segment_top_mean(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"], top: int) -> Float[Tensor, "l s k"]:
    """The mean of the `top` largest values of every segment, of all where it has fewer; -inf for an empty one."""
    lengths = _lengths(offsets)
    layers, tokens, units = values.shape
    out = values.new_full((layers, len(lengths), units), -torch.inf)
    if tokens == 0:
        return out
    place = torch.arange(int(lengths.max()), device=values.device)
    index = (offsets[:-1, None] - offsets[0] + place).clamp(max=tokens - 1)
    beyond = (place >= lengths[:, None])[..., None]
    kept = (place[:top] < lengths[:, None])[:, None, :]
    for layer, row in enumerate(values):  # one layer at a time: ragged segments are padded to the longest
        padded = row[index].masked_fill_(beyond, -torch.inf)
        best = padded.transpose(1, 2).topk(min(top, len(place)), dim=2).values.double().masked_fill_(~kept, 0.0)
        out[layer] = best.sum(2) / lengths.clamp(min=1, max=top)[:, None]
    return out.masked_fill_((lengths == 0)[None, :, None], -torch.inf)


def segment_logsumexp(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"]) -> Float[Tensor, "l s k"]:
    """log of the sum of exp of every segment, accumulated in float64 and returned in the values' dtype; -inf for an empty one."""
    peak = segment_max(values.detach(), offsets)
    shift = peak.masked_fill(~peak.isfinite(), 0.0)
    total = segment_sum((values - shift[:, segment_ids(offsets)]).exp(), offsets)
    return (total.log() + shift).to(values.dtype)


def segment_pick(
    values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"], place: Int[Tensor, " s"]
) -> Float[Tensor, "l s k"]:
    """The item at `place` (0..length-1) of every segment; -inf for an empty one."""
    lengths = _lengths(offsets)
    if values.shape[1] == 0:
        return values.new_full((values.shape[0], len(lengths), values.shape[2]), -torch.inf)
    at = (offsets[:-1] - offsets[0] + place.clamp(min=0)).clamp(max=values.shape[1] - 1)
    return values[:, at].masked_fill((lengths == 0)[None, :, None], -torch.inf)


def segment_last(values: Float[Tensor, "l t k"], offsets: Int[Tensor, " s1"]) -> Float[Tensor, "l s k"]:
    """The last item of every segment; -inf for an empty one."""
    return segment_pick(values, offsets, _lengths(offsets) - 1)


def tail_cutoffs(scores: Float[Tensor, "n k"], levels: tuple[float, ...]) -> Float[Tensor, "p k"]:
    """[P, K] float64: for every level the (1 - level)-quantile of each column, linear interpolation; NaN without any score.

    method section 5: the fraction `level` of the given in-concept scores lies at or above its cutoff. One sort serves all levels.
    A NaN is no score: it is left out of its column.
    """
    n, columns = scores.shape
    if n == 0:
        return torch.full((len(levels), columns), torch.nan, dtype=torch.float64, device=scores.device)
    ordered = scores.T.contiguous().sort(dim=1).values  # NaN comes last
    known = (n - ordered.isnan().sum(1)).double()
    top = (known - 1).clamp(min=0)[:, None]
    level = torch.tensor(levels, dtype=torch.float64, device=scores.device)
    rank = torch.round(top - top * level, decimals=RANK_DECIMALS)
    low = rank.floor().long()
    high = torch.minimum(low + 1, top.long())
    at_low, at_high = ordered.gather(1, low).double(), ordered.gather(1, high).double()
    return (at_low + (rank - low) * (at_high - at_low)).T


class Counts(NamedTuple):
    """True positives, false positives and false negatives, each [..., P, K] float64."""

    tp: Tensor
    fp: Tensor
    fn: Tensor


class Ranked(NamedTuple):
    """Scores [N, K] ascending per column (float64), and the rows they come from: one sort serves any number of truths."""

    scores: Tensor
    rows: Tensor


def ranked(scores: Float[Tensor, "n k"]) -> Ranked:
    """One sort per column; a NaN comes first, below every cutoff."""
    lowest = scores.double().masked_fill(scores.isnan(), -torch.inf)
    ordered, rows = lowest.T.contiguous().sort(dim=1)
    return Ranked(ordered.T, rows.T)


def counts_of(of: Ranked, truth: Int[Tensor, "n k"], cutoffs: Float[Tensor, "p k"]) -> Counts:
    """How often score >= cutoff agrees with truth (1, 0; -1 is left out), for all cutoffs from one sort per column; exact, no grid.

    A NaN cutoff detects nothing. Ties are on the detected side, as in the paper.
    """
    positive, negative = ((truth == value).gather(0, of.rows).double().cumsum(0) for value in (1, 0))
    below = torch.searchsorted(of.scores.T.contiguous(), cutoffs.nan_to_num(torch.inf).T.contiguous(), right=False).T
    pad = positive.new_zeros(1, truth.shape[1])
    positive, negative = torch.cat([pad, positive]), torch.cat([pad, negative])
    missed = positive.gather(0, below)
    total_positive, total_negative = positive[-1:], negative[-1:]
    nothing = cutoffs.isnan()
    tp = (total_positive - missed).masked_fill(nothing, 0.0)
    fp = (total_negative - negative.gather(0, below)).masked_fill(nothing, 0.0)
    return Counts(tp, fp, total_positive - tp)


def counts_at(scores: Float[Tensor, "n k"], truth: Int[Tensor, "n k"], cutoffs: Float[Tensor, "p k"]) -> Counts:
    """`counts_of` the scores, ranked for this one truth."""
    return counts_of(ranked(scores), truth, cutoffs)


def f1_score(counts: Counts) -> Float[Tensor, "*shape"]:
    """2 TP / (2 TP + FP + FN); NaN where that denominator is 0."""
    return 2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn)


def first_best(values: Float[Tensor, " p *rest"]) -> Int[Tensor, "*rest"]:
    """The index of the largest value along the first axis, the first among equals; NaN is never chosen over a number."""
    filled = values.nan_to_num(nan=-torch.inf)
    return (filled == filled.amax(0, keepdim=True)).long().argmax(0)


def token_sums(values: Float[Tensor, "l t d"]) -> Float[Tensor, "2 l d"]:
    """The float64 sums over a block's tokens of x, and of x^2."""
    out = torch.empty(2, values.shape[0], values.shape[2], dtype=torch.float64, device=values.device)
    for layer, tokens in enumerate(values):  # one site at a time: a float64 copy of a whole block would not fit the cache
        wide = tokens.double()
        out[0, layer], out[1, layer] = wide.sum(0), wide.square().sum(0)
    return out


class Moments:
    """Streaming sums of tokens in float64, so that no result depends on block size: E[x] and E[x^2] per site and dimension."""

    def __init__(self, layers: int, width: int, device: torch.device | str = "cpu") -> None:
        self.n = 0
        self._total = torch.zeros(layers, width, dtype=torch.float64, device=device)
        self._square = torch.zeros(layers, width, dtype=torch.float64, device=device)

    def add(self, n: int, sums: Float[Tensor, "2 l d"]) -> None:
        """Adds the `token_sums` of a block of n raw tokens."""
        self.n += n
        self._total += sums[0]
        self._square += sums[1]

    @property
    def mean(self) -> Float[Tensor, "l d"]:
        """E[x]."""
        return self._total / max(self.n, 1)

    @property
    def mean_square(self) -> Float[Tensor, "l d"]:
        """E[x^2], of the uncentred vectors."""
        return self._square / max(self.n, 1)


def boxes_hit(mask: Bool[Tensor, "h w"], boxes: Int[Tensor, "t 4"]) -> Bool[Tensor, " t"]:
    """Whether any mask pixel falls in each box (top, left, bottom, right; clipped to the mask), from one integral image."""
    height, width = mask.shape
    total = torch.zeros(height + 1, width + 1, dtype=torch.int64)
    total[1:, 1:] = mask.long().cumsum(0).cumsum(1)
    top, bottom = boxes[:, 0].clamp(0, height), boxes[:, 2].clamp(0, height)
    left, right = boxes[:, 1].clamp(0, width), boxes[:, 3].clamp(0, width)
    return total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left] > 0


def spans_hit(spans: Int[Tensor, "n 2"], tokens: Int[Tensor, "t 2"]) -> Bool[Tensor, " t"]:
    """Whether each token's half-open character range overlaps any of the spans."""
    return ((tokens[:, None, 0] < spans[None, :, 1]) & (tokens[:, None, 1] > spans[None, :, 0])).any(1)
