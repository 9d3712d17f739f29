"""Token activations in and out of a concept: how far the two sets lie apart, and what lies above the background (method section 9).

D_in = test tokens with y_c = 1. D_out = the annotated tokens of samples without c. b_c = Q_q of D_out on cal. Every position is a
place in its own split: the authors index test tensors with places in the whole data set (section 11.B8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.api import (
    Bootstrap,
    Evaluation,
    Metric,
    Progress,
    Refit,
    Score,
    at_layer,
    progress,
    score_rows,
    segment_ids,
    segment_max,
    tail_cutoffs,
)
from harness_analysis.pictures import distribution_pictures, positives_pictures
from harness_analysis.refits import again, chosen_layers
from harness_analysis.report import Report, bootstrap_of, span
from harness_analysis.sources import Group

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for Wilson's 95 % interval."""

MEASURES = ("mass_above", "auroc", "cohens_d", "overlap")
SETS = {
    "D_in": "test tokens with y_c = 1",
    "D_out": "annotated tokens of samples without the concept; of test, and for b_c of cal",
    "b_c": "the q-quantile of D_out on cal, linear interpolation",
}


@dataclass(frozen=True)
class Drawing:
    """Which tokens are looked at: b_c is the quantile q, at most `most` tokens per concept and set (0 = all) are drawn by the seed."""

    q: float = 0.98
    most: int = 100_000
    seed: int = 0

    def draw(self, member: Tensor, which: int) -> list[Tensor]:
        """Per concept the ascending places [n] of the members [T, C]; `which` keeps the draws of two sets apart."""
        found = []
        for c, column in enumerate(member.cpu().unbind(1)):
            places = column.nonzero()[:, 0]
            if self.most and len(places) > self.most:
                drawn = np.random.default_rng([self.seed, which, c]).choice(len(places), self.most, replace=False)
                places = places[torch.from_numpy(np.sort(drawn))]
            found.append(places)
        return found


def inside(split: Any) -> Tensor:
    """[T, C] bool: the tokens in the concept."""
    return split.truth == 1


def outside(split: Any) -> Tensor:
    """[T, C] bool: the annotated tokens of samples without the concept."""
    return (split.truth == 0) & ~split.labels[segment_ids(split.offsets)]


class Looked(NamedTuple):
    """What one pass over a split gives: per set and concept the values [L, n] at the places asked for, and the highest [L, S, C]."""

    values: list[list[Tensor]]
    highest: Tensor


def look(split: Any, concepts: Any, sets: Sequence[Sequence[Tensor]], track: Progress) -> Looked:
    """One pass over a split, block by block; only the places [n] of each set and concept are kept."""
    found: list[list[list[Tensor]]] = [[[] for _ in places] for places in sets]
    highest, start = [], 0
    with track(f"looking at {split.name}", len(split.ids), "samples") as advance:
        for block in split.blind():
            activations = concepts.activate(block).cpu()
            end = start + activations.shape[1]
            for parts, places in zip(found, sets, strict=True):
                for c, column in enumerate(places):
                    first, last = torch.searchsorted(column, torch.tensor([start, end])).tolist()
                    parts[c].append(activations[:, column[first:last] - start, c])
            highest.append(segment_max(activations, block.offsets.cpu()))
            start = end
            advance(len(block.ids))
    return Looked([[torch.cat(column, 1) for column in parts] for parts in found], torch.cat(highest, 1))


@dataclass(frozen=True)
class Seen:
    """One method's tokens: values [L, n] per concept in D_in and D_out of test and in D_out of cal, and how many there were undrawn.

    background [L, C] float64: b_c. highest [L, S, C]: the strongest token of every test sample. labels [S, C] bool of test.
    """

    layers: tuple[str, ...]
    chosen: Mapping[str, str | None]
    inside: list[Tensor]
    outside: list[Tensor]
    drawn: list[Tensor]
    there: Mapping[str, list[int]]
    background: Tensor
    highest: Tensor
    labels: Tensor


def see(found: Refit, drawing: Drawing, track: Progress, tokens: bool = True) -> Seen:
    """One pass over cal and one over test, layer group by layer group; without `tokens`, no value of test is kept."""
    parts: list[tuple[Looked, Looked]] = []
    there: dict[str, list[int]] = {}
    for opened, concepts, _ in found.visit(track):
        cal, test = opened.cal, opened.test
        members = (outside(cal), inside(test), outside(test))
        there = {name: member.sum(0).tolist() for name, member in zip(("background", "in", "out"), members, strict=True)}
        background, *of_test = (drawing.draw(member, which) for which, member in enumerate(members))
        parts.append((look(cal, concepts, [background], track), look(test, concepts, of_test if tokens else [], track)))
    count = len(found.bench.task.concepts)

    def joined(which: int, values: int) -> list[Tensor]:
        return [torch.cat([part[which].values[values][c] for part in parts]) for c in range(count)]

    drawn = joined(0, 0)
    cutoffs = torch.stack([tail_cutoffs(values.T, (1 - drawing.q,))[0] for values in drawn], 1)
    return Seen(
        tuple(str(layer) for layer in found.decided.layers),
        chosen_layers(found),
        joined(1, 0) if tokens else [],
        joined(1, 1) if tokens else [],
        drawn,
        there,
        cutoffs,
        torch.cat([part[1].highest for part in parts]),
        torch.from_numpy(found.bench.task.splits["test"].labels),
    )


class Comparison(NamedTuple):
    """D_in against D_out at one layer: the measures (NaN = undefined), and both histograms as shares over equal bins."""

    mass_above: float
    auroc: float
    cohens_d: float
    overlap: float
    edges: NDArray[Any]
    share_in: NDArray[Any]
    share_out: NDArray[Any]


def compare(of_in: NDArray[Any], of_out: NDArray[Any], background: float, bins: int) -> Comparison:
    """The measures of two non-empty sets of activations [n] and [m], in float64; b_c NaN leaves `mass_above` undefined."""
    a, b = of_in.astype(np.float64), np.sort(of_out.astype(np.float64))
    low, high = min(a.min(), b[0]), max(a.max(), b[-1])
    counts_in, edges = np.histogram(a, bins, (low, high))
    counts_out, _ = np.histogram(b, bins, (low, high))
    share_in, share_out = counts_in / len(a), counts_out / len(b)
    right = (np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")) / 2
    return Comparison(
        float((a > background).mean()) if np.isfinite(background) else float("nan"),
        float(right.mean() / len(b)),
        cohens_d(a, b),
        float(np.minimum(share_in, share_out).sum()),
        edges,
        share_in,
        share_out,
    )


def cohens_d(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The difference of means over the pooled standard deviation (n - 1 each); NaN below two values each or without any spread."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    return float((a.mean() - b.mean()) / np.sqrt(pooled)) if pooled > 0 else float("nan")


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927); (NaN, NaN) without any trial."""
    if n == 0:
        return float("nan"), float("nan")
    share, spread = hits / n, Z * np.sqrt(hits / n * (1 - hits / n) / n + Z**2 / (4 * n**2))
    centre, scale = share + Z**2 / (2 * n), 1 + Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def distributions(group: Group, registry: Any, cache_dir: Path | None, drawing: Drawing, bins: int) -> Report:
    """Every method with concepts: the measures per concept and layer, their means, and the histograms."""
    sources, notes = group.layered()
    rows: list[dict[str, Any]] = []
    histograms: list[dict[str, Any]] = []
    fits: dict[Any, Any] = {}
    with progress() as track:
        for source in sources:
            found, more = again(source, registry, cache_dir, track, fits)
            notes += more
            mine, shapes = measured(see(found, drawing, track), group.concepts, bins)
            rows += [{**source.named, **row} for row in mine]
            histograms += [{**source.named, **row} for row in shapes]
    about = {
        "definition": {
            **SETS,
            "mass_above": "share of D_in strictly above b_c",
            "auroc": "P(a token of D_in > a token of D_out) on test, ties half",
            "cohens_d": "(mean of D_in - mean of D_out) / pooled standard deviation",
            "overlap": f"sum over {bins} equal bins, from the lowest to the highest value of both sets, of the smaller share",
            "macro": "plain mean over the concepts that have a value",
        },
        "options": {"quantile": drawing.q, "max_tokens": drawing.most, "seed": drawing.seed, "bins": bins},
    }
    of_method = {source.run_id: source.label for source in sources}
    shown = [
        [of_method[row["run_id"]], *(row[name] for name in MEASURES)]
        for row in rows
        if (row["concept"], row["layer"]) == ("macro", "chosen")
    ]
    headers = ["method", f"mass above q{drawing.q:g}", "AUROC", "Cohen's d", "overlap"]
    tables = {"distributions": rows, "histograms": histograms}
    return Report(
        group,
        "in-concept against background tokens of test, mean over concepts at their chosen layers",
        tables,
        about,
        (headers, shown),
        lambda: distribution_pictures(group, sources, rows, histograms),
        notes,
    )


def measured(seen: Seen, concepts: Sequence[str], bins: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of the measures, rows of the histograms) of one method."""
    rows, histograms = [], []
    for i, layer in enumerate(seen.layers):
        for c, concept in enumerate(concepts):
            of_in, of_out = seen.inside[c][i].numpy(), seen.outside[c][i].numpy()
            background = float(seen.background[i, c])
            reason = undefined(of_in, of_out)
            found = None if reason else compare(of_in, of_out, background, bins)
            rows.append(
                {
                    "layer": layer,
                    "concept": concept,
                    "chosen": seen.chosen[concept] == layer,
                    "background": None if np.isnan(background) else background,
                    **{name: finite(getattr(found, name)) if found else None for name in MEASURES},
                    "tokens_in": seen.there["in"][c],
                    "tokens_out": seen.there["out"][c],
                    "tokens_background": seen.there["background"][c],
                    "drawn_in": len(of_in),
                    "drawn_out": len(of_out),
                    "drawn_background": seen.drawn[c].shape[1],
                    "reason": reason,
                }
            )
            histograms += list(_bins(layer, concept, found)) if found else []
    means = [_mean(rows, layer) for layer in (*seen.layers, "chosen")]
    return [*rows, *means], histograms


def undefined(of_in: NDArray[Any], of_out: NDArray[Any]) -> str | None:
    """Why two sets cannot be compared; None where they can."""
    if len(of_in) == 0:
        return "no in-concept test token"
    if len(of_out) == 0:
        return "no annotated test sample without the concept"
    return "no vector" if np.isnan(of_in).any() or np.isnan(of_out).any() else None


def _bins(layer: str, concept: str, found: Comparison) -> Iterator[dict[str, Any]]:
    for b in range(len(found.share_in)):
        yield {
            "layer": layer,
            "concept": concept,
            "low": float(found.edges[b]),
            "high": float(found.edges[b + 1]),
            "share_in": float(found.share_in[b]),
            "share_out": float(found.share_out[b]),
        }


def _mean(rows: Sequence[dict[str, Any]], layer: str) -> dict[str, Any]:
    mine = [row for row in rows if (row["chosen"] if layer == "chosen" else row["layer"] == layer)]
    empty = dict.fromkeys(rows[0])
    known = {name: [row[name] for row in mine if row[name] is not None] for name in MEASURES}
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return {**empty, "layer": layer, "concept": "macro", "chosen": layer == "chosen", **means}


def finite(value: float) -> float | None:
    """The value, or None where it is NaN."""
    return None if np.isnan(value) else value


def positives(group: Group, registry: Any, cache_dir: Path | None, drawing: Drawing) -> Report:
    """Every method with concepts: the share of positive (and of negative) test samples with any token above b_c."""
    sources, notes = group.layered()
    metric = registry.create("metrics", "recall")
    rows: list[dict[str, Any]] = []
    fits: dict[Any, Any] = {}
    with progress() as track:
        for source in sources:
            found, more = again(source, registry, cache_dir, track, fits)
            notes += more
            seen = see(found, drawing, track, tokens=False)
            with track(f"intervals of {source.label}", 0, ""):
                mine = counted(seen, group.concepts, metric, bootstrap_of(found))
            rows += [{**source.named, **row} for row in mine]
    about = {
        "definition": {
            "D_out": "annotated tokens of cal samples without the concept",
            "b_c": SETS["b_c"],
            "share": "share of positive test samples (by label) with any token strictly above b_c; a sample without tokens has none",
            "share_negative": "the same among negative test samples: how much of `share` a sample's many tokens give by chance",
            "ci": "Wilson's 95 % interval for a concept; the two-level bootstrap of the results for macro and weighted",
        },
        "options": {"quantile": drawing.q, "max_tokens": drawing.most, "seed": drawing.seed},
    }
    of_method = {source.run_id: source.label for source in sources}
    shown = [
        [of_method[row["run_id"]], row["concept"], *(span(row, name) for name in ("share", "share_negative"))]
        for row in rows
        if row["layer"] == "chosen"
    ]
    headers = ["method", "average", f"positives with a token above q{drawing.q:g}", "negatives with one"]
    return Report(
        group,
        "test samples with any token above the background quantile, at the chosen layers",
        {"positives": rows},
        about,
        (headers, shown),
        lambda: positives_pictures(group, sources, rows),
        notes,
    )


def counted(seen: Seen, concepts: Sequence[str], metric: Metric, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Rows per layer and concept with Wilson's interval, then the averages of every layer and of the chosen ones."""
    above = seen.highest.double() > seen.background[:, None]  # NaN: nothing is above it
    rows = []
    for i, layer in enumerate(seen.layers):
        for c, concept in enumerate(concepts):
            yes = seen.labels[:, c]
            hits, misses = int(above[i, yes, c].sum()), int(above[i, ~yes, c].sum())
            background = finite(float(seen.background[i, c]))
            row = {"layer": layer, "concept": concept, "chosen": seen.chosen[concept] == layer, "background": background}
            of_yes, of_no = (
                _share("", hits, int(yes.sum()), background),
                _share("_negative", misses, int((~yes).sum()), background),
            )
            rows.append({**row, **of_yes, **of_no})
    layers = [seen.chosen[concept] for concept in concepts]
    place = torch.tensor([0 if layer is None else seen.layers.index(layer) for layer in layers])
    without = torch.tensor([layer is None for layer in layers])
    of_chosen = (at_layer(above, place), at_layer(seen.background[:, None], place)[0].masked_fill(without, torch.nan))
    every = [*zip(seen.layers, above, seen.background, strict=True), ("chosen", *of_chosen)]
    for layer, decisions, background in every:
        rows += list(_averages(layer, decisions, background, seen.labels, metric, bootstrap))
    return rows


def _share(suffix: str, hits: int, n: int, background: float | None) -> dict[str, Any]:
    known = background is not None and n > 0
    low, high = wilson(hits, n)
    return {
        f"n{suffix}": n,
        f"above{suffix}": hits if known else None,
        f"share{suffix}": hits / n if known else None,
        f"share{suffix}_low": low if known else None,
        f"share{suffix}_high": high if known else None,
    }


def _averages(
    layer: str, decisions: Tensor, background: Tensor, labels: Tensor, metric: Metric, bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """The share is recall, with b_c as the cutoff; among negatives it is recall of the labels turned round."""
    offsets, known = torch.arange(len(labels) + 1), background.isfinite()
    found: list[dict[str, Score]] = []
    for truth in (labels, ~labels):
        evaluation = Evaluation(decisions.double(), decisions, truth.to(torch.int8), offsets, known)
        found.append({score.concept: score for score in score_rows("recall", metric, evaluation, layer, bootstrap)})
    for average in ("macro", "weighted"):
        row: dict[str, Any] = {"layer": layer, "concept": average, "chosen": layer == "chosen", "background": None}
        for suffix, scores in zip(("", "_negative"), found, strict=True):
            score = scores[average]
            row |= {f"n{suffix}": score.n, f"above{suffix}": None, f"share{suffix}": score.value}
            row |= {f"share{suffix}_low": score.ci_low, f"share{suffix}_high": score.ci_high}
        yield row
