"""Hybrid vectors: h_{c,i} = alpha v_c + (1 - alpha) m_{c,i}, m the mean of sample i's own super-activators (method sections 7.3 and 9).

A sample without super-activators of c keeps v_c. Super-activators, layer and v_c are the method's; for every alpha the level of
detection and that of localization are chosen anew on cal, by the core. The authors' sweep fixes one level and leaves detection out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.api import (
    Blocks,
    Concepts,
    Detector,
    Evaluation,
    Explanation,
    Job,
    Progress,
    Refit,
    TokenEmbeddings,
    at_layer,
    at_level,
    calibrate,
    choose,
    in_concept,
    locate,
    progress,
    sample_cutoffs,
    score_rows,
    segment_ids,
    segment_sum,
    token_cutoffs,
)
from harness_analysis.pictures import hybrid_pictures
from harness_analysis.refits import again
from harness_analysis.report import Report, bootstrap_of
from harness_analysis.sources import Group, NothingError, Source

TINY = 1e-8
METRICS = {"f1": "detection F1", "token_f1": "token F1"}


@dataclass(frozen=True)
class Mixing:
    """The alphas (1 = v_c alone); how tokens are compared with h: own, cosine or dot; unit = v_c and m scaled to length 1 first."""

    alphas: tuple[float, ...]
    similarity: str = "own"
    unit: bool = False


class Parts(NamedTuple):
    """What every alpha's scores are made of: own, local [T, C] float32, the similarity of each token to v_c and to its sample's m.

    long, both [S, C] float64: |m| and v_c . m. plain [S, C]: the sample has no super-activator. sample [T]: whose a token is.
    """

    own: Tensor
    local: Tensor
    long: Tensor
    both: Tensor
    plain: Tensor
    sample: Tensor

    def scores(self, alpha: float, length: Tensor | None) -> Tensor:
        """[T, C] float32: e . h, or with length [C] = |v_c| cos(e, h); by linearity no token is read again. Where h = v_c: `own`."""
        if alpha == 1:
            return self.own
        columns = []
        for c in range(self.own.shape[1]):  # one concept at a time: float64 of a whole split would not fit
            own, local, long, both = self.own[:, c].double(), self.local[:, c].double(), self.long[:, c], self.both[:, c]
            if length is None:
                mixed = alpha * own + (1 - alpha) * local
            else:
                square = (alpha * length[c]).square() + 2 * alpha * (1 - alpha) * both + ((1 - alpha) * long).square()
                norm = square.clamp(min=0).sqrt().clamp(min=TINY)
                mixed = (alpha * length[c] * own + ((1 - alpha) * long)[self.sample] * local) / norm[self.sample]
            columns.append(torch.where(self.plain[:, c][self.sample], self.own[:, c], mixed.float()))
        return torch.stack(columns, 1)


@dataclass(frozen=True)
class Fitted:
    """One layer group of a refit; layers [C] counted within it, tau [C] = tau_c(delta*); own: tokens are compared as the method does."""

    concepts: Concepts
    detector: Detector
    layers: Tensor
    tau: Tensor
    cosine: bool
    own: bool
    unit: bool

    @property
    def vectors(self) -> Tensor:
        """[C, d] float64: v_c at each concept's layer."""
        assert self.concepts.vectors is not None  # noqa: S101 - `own_similarity` has refused concepts without
        found = self.concepts.vectors[self.layers, torch.arange(len(self.layers), device=self.layers.device)].double()
        return found / found.norm(dim=1, keepdim=True).clamp(min=TINY) if self.unit else found

    @property
    def length(self) -> Tensor | None:
        """[C]: |v_c| where tokens are compared by cosine; None for dot products."""
        return self.vectors.norm(dim=1) if self.cosine else None

    def parts(self, block: TokenEmbeddings) -> Parts:
        """Everything about a block's tokens; one concept at a time, in float64."""
        activations = at_layer(self.concepts.activate(block), self.layers)
        sample = segment_ids(block.offsets)
        columns = []
        for c, vector in enumerate(self.vectors):
            tokens = block.values[int(self.layers[c])].double()
            strong = (activations[:, c].double() >= self.tau[c]).double()
            count = segment_sum(strong[None, :, None], block.offsets)[0]
            mean = segment_sum((tokens * strong[:, None])[None], block.offsets)[0] / count.clamp(min=1)
            if self.unit:
                mean = mean / mean.norm(dim=1, keepdim=True).clamp(min=TINY)
            own = activations[:, c] if self.own else self._similar(tokens, vector)
            local = self._similar(tokens, mean[sample])
            columns.append((own.float(), local.float(), mean.norm(dim=1), mean @ vector, count[:, 0] == 0))
        return Parts(*(torch.stack(column, 1) for column in zip(*columns, strict=True)), sample)

    def _similar(self, tokens: Tensor, target: Tensor) -> Tensor:
        dot = (tokens * target).sum(1)
        return dot / (tokens.norm(dim=1) * target.norm(dim=-1)).clamp(min=TINY) if self.cosine else dot

    def pool(self, scores: Tensor, block: TokenEmbeddings) -> Tensor:
        """[S, C]: the detector's score of every sample, the same scores given at every layer."""
        return at_layer(self.detector.pool(scores.expand(len(block.sites), -1, -1), block), self.layers)


class Swept(NamedTuple):
    """One split: `parts` of all its tokens, |v_c| [C] for cosines, and per alpha the pooled scores [S, C]."""

    parts: Parts
    length: Tensor | None
    pooled: list[Tensor]

    def where(self, mine: Tensor, new: Swept) -> Swept:
        """With the concepts [C] bool whose layer is in another group taken from there."""
        pairs = zip(new.parts[:-1], self.parts[:-1], strict=True)
        parts = Parts(*(torch.where(mine, a, b) for a, b in pairs), self.parts.sample)
        length = None if self.length is None or new.length is None else torch.where(mine, new.length, self.length)
        return Swept(parts, length, [torch.where(mine, a, b) for a, b in zip(new.pooled, self.pooled, strict=True)])


def sweep(split: Any, fitted: Fitted, alphas: Sequence[float], track: Progress) -> Swept:
    """One pass over a split whose labels are not looked at."""
    kept: list[Parts] = []
    pooled: list[list[Tensor]] = [[] for _ in alphas]
    with track(f"mixing vectors on {split.name}", len(split.ids), "samples") as advance:
        for block in split.blind():
            kept.append(fitted.parts(block))
            for found, alpha in zip(pooled, alphas, strict=True):
                found.append(fitted.pool(kept[-1].scores(alpha, fitted.length)[None], block))
            advance(len(block.ids))
    joined = (torch.cat(column) for column in list(zip(*kept, strict=True))[:-1])
    parts = Parts(*joined, segment_ids(split.offsets))
    return Swept(parts, fitted.length, [torch.cat(found) for found in pooled])


class Mapped:
    """What the core needs to know of a hybrid's map: its cutoffs come from detected cal samples (section 7.3)."""

    calibrate_on = "detected"


def hybrid(group: Group, registry: Any, cache_dir: Path | None, mixing: Mixing) -> Report:
    """Every method with directions: detection and token F1 by alpha."""
    sources, notes = group.layered()
    usable = [source for source in sources if source.read["method"]["fit_on"] == "tokens"]
    notes += [
        f"{source.label}: fitted on summaries, whose tokens are no super-activators"
        for source in sources
        if source not in usable
    ]
    usable, ceilings = _apart(usable)
    notes += [f"{source.label}: its cutoff is chosen on test" for source in ceilings]
    if not usable:
        raise NothingError(f"no result of {group.name} can be mixed; {'; '.join(notes)}; choose a method fitted on tokens")
    rows: list[dict[str, Any]] = []
    kinds: dict[str, str] = {}
    fits: dict[Any, Any] = {}
    with progress() as track:
        for source in usable:
            found, more = again(source, registry, cache_dir, track, fits)
            notes += more
            try:
                kind, mine = mixed(found, source, registry, mixing, track)
            except NothingError as error:
                notes.append(str(error))
                continue
            kinds[source.label] = kind
            rows += [{**source.named, **row} for row in mine]
    usable = [source for source in usable if source.label in kinds]
    if not usable:
        raise NothingError(notes[-1])
    at = {(row["run_id"], row["alpha"], row["metric"]): row for row in rows if row["concept"] == "weighted"}
    shown = [
        [
            source.label,
            kinds[source.label],
            METRICS[metric],
            *(at[source.run_id, alpha, metric]["value"] for alpha in mixing.alphas),
        ]
        for source in usable
        for metric in METRICS
    ]
    about = {
        "definition": {
            "h": "alpha v_c + (1 - alpha) m, m = mean of the sample's tokens with s_c >= tau_c(delta*_c); v_c where there is none",
            "f1": "test F1 of detection from the tokens' similarity to h; the level chosen on cal anew for every alpha",
            "token_f1": "test F1 of tokens; map = the similarity to h, cutoff from in-concept tokens of detected cal samples, level from cal",
            "layer": "the one that cal chose for the method itself, at every alpha",
            "value_low, value_high": "95 %: two-level bootstrap for averages, samples alone for a concept",
        },
        "options": {"alphas": list(mixing.alphas), "similarity": mixing.similarity, "unit": mixing.unit},
        "similarity": kinds,
    }
    headers = ["method", "similarity", "weighted", *(f"{alpha:g}" for alpha in mixing.alphas)]
    return Report(
        group,
        "hybrid vectors on test, by alpha (1 = the concept's vector alone, 0 = the sample's own super-activators)",
        {"hybrid": rows},
        about,
        (headers, shown),
        lambda: hybrid_pictures(group, usable, rows),
        notes,
    )


def _apart(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """(methods that choose on cal, ceilings)."""
    on_test = [source for source in sources if source.read["method"].get("choose_on", "cal") == "test"]
    return [source for source in sources if source not in on_test], on_test


def mixed(found: Refit, source: Source, registry: Any, mixing: Mixing, track: Progress) -> tuple[str, list[dict[str, Any]]]:
    """(how tokens are compared, rows per alpha, metric and concept) of one method."""
    decided, levels = found.decided, found.bench.task.file.levels
    tau = at_layer(at_level(decided.token_cutoffs, decided.chosen.level), decided.chosen.layer)
    first, merged = 0, ()
    for tokens, concepts, detector in found.visit(track):
        layers = decided.chosen.layer - first
        mine = (layers >= 0) & (layers < len(tokens.sites))
        first += len(tokens.sites)
        own = own_similarity(concepts, tokens.cal, source)
        kind = own if mixing.similarity == "own" else mixing.similarity
        same = kind == own and not (mixing.unit and kind == "dot")
        fitted = Fitted(concepts, detector, layers.clamp(0, len(tokens.sites) - 1), tau, kind == "cosine", same, mixing.unit)
        swept = tuple(sweep(split, fitted, mixing.alphas, track) for split in (tokens.cal, tokens.test))
        merged = tuple(old.where(mine, new) for old, new in zip(merged, swept, strict=True)) if merged else swept
    rows = []
    metrics = {name: registry.create("metrics", name) for name in METRICS}
    bootstrap = bootstrap_of(found)
    for i, alpha in enumerate(mixing.alphas):
        with track(f"levels and intervals of alpha {alpha:g}", 0, ""):
            maps = tuple(each.parts.scores(alpha, each.length) for each in merged)
            pooled = tuple(each.pooled[i] for each in merged)
            evaluations = evaluated(maps, pooled, fitted, (tokens.cal, tokens.test), levels)
            for name, (evaluation, level) in evaluations.items():
                scores = score_rows(name, metrics[name], evaluation, None, bootstrap)
                rows += [_row(alpha, score, level, levels, found.bench.task.concepts) for score in scores]
    return kind, rows


Pair = tuple[Tensor, ...]


def evaluated(
    maps: Pair, pooled: Pair, fitted: Fitted, splits: tuple[Any, Any], levels: tuple[float, ...]
) -> dict[str, tuple[Evaluation, Tensor]]:
    """Metric -> (evaluation on test, level [C] as a place, -1 = none), decided as the core decides.

    maps [T, C] and pooled [S, C] are of cal and of test.
    """
    cal, test = splits
    if fitted.detector.calibrate_on == "tokens":
        cutoffs = token_cutoffs(in_concept(maps[0][None], cal.truth), levels)
    else:
        cutoffs = sample_cutoffs(pooled[0][None], cal.labels, levels)
    chosen = choose(calibrate(pooled[0][None], cal.labels, cutoffs))
    cutoff = at_level(cutoffs, chosen.level)[0]
    detected = (pooled[0].double() >= cutoff, pooled[1].double() >= cutoff)
    truth, offsets = test.labels.cpu().to(torch.int8), torch.arange(len(test.ids) + 1)
    samples = Evaluation(pooled[1].double().cpu(), detected[1].cpu(), truth, offsets, cutoff.isfinite().cpu())
    explained = Explanation(fitted.concepts, fitted.layers, fitted.tau)
    found = locate(Job("hybrid", Mapped(), explained, fitted.detector, detected, None, None), maps, splits, levels)
    known = found.cutoff.isfinite()
    tokens = Evaluation(found.map.double().cpu(), found.decisions.cpu(), test.truth.cpu(), test.offsets.cpu(), known.cpu())
    level = chosen.level[0].masked_fill(~cutoff.isfinite(), -1)
    return {"f1": (samples, level), "token_f1": (tokens, found.level.masked_fill(~known, -1))}


def _row(alpha: float, score: Any, level: Tensor, levels: tuple[float, ...], concepts: Sequence[str]) -> dict[str, Any]:
    place = int(level[concepts.index(score.concept)]) if score.concept in concepts else -1
    return {
        "alpha": alpha,
        "metric": score.metric,
        "concept": score.concept,
        "level": levels[place] if place >= 0 else None,
        "value": score.value,
        "value_low": score.ci_low,
        "value_high": score.ci_high,
        "n": score.n,
    }


def own_similarity(concepts: Concepts, blocks: Blocks, source: Source) -> str:
    """cosine or dot: how the method's activations come from its vectors, as seen on the first tokens; an error where they do not."""
    vectors = concepts.vectors
    if vectors is None:
        raise NothingError(
            f"the concepts of method {source.method!r} are no directions, so there is no v_c to mix; result {source.folder}; "
            f"choose a method with vectors, such as superactivator-mean"
        )
    block = next(block for block in blocks.blind() if block.values.shape[1])  # type: ignore[attr-defined]
    values, wide = block.values[:, :256].double(), vectors.double()
    few = concepts.activate(block)[:, :256].double()
    dot = values @ wide.transpose(1, 2)
    cosine = dot / (values.norm(dim=-1, keepdim=True) * wide.norm(dim=-1)[:, None]).clamp(min=TINY)
    known = few.isfinite()
    for name, expected in (("cosine", cosine), ("dot", dot)):
        if torch.allclose(
            few[known], expected[known], rtol=1e-3, atol=1e-4 * float(few[known].abs().max() if known.any() else 1)
        ):
            return name
    raise NothingError(
        f"the activations of method {source.method!r} are neither cosines nor dot products with its vectors; result {source.folder}; "
        f"choose a method with such vectors, such as superactivator-mean"
    )
