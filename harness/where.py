"""Where the concepts are: every method's token masks, layer group by layer group, from shared passes over cal and test.

Maps and levels are `localize.py`'s; what needs the model is `explain.py`'s. A method is localized at each concept's chosen layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.bench import BATCH, Bench, Decided, Kept, Parts
from harness.calibration import at_layer, at_level
from harness.embed import Affine, SplitBlocks, Tokens, region_hit
from harness.explain import Function, explain
from harness.localize import Activations, Explanation, Job, Located, locate, merge, score_tokens
from harness.types import Explained, Progress, TokenEmbeddings

MAP_BYTES = 1_000_000_000
"""Room for the maps of the methods that share one pass over cal and test."""


def localize(bench: Bench, kept: dict[str, Kept], decided: dict[str, Decided], progress: Progress) -> dict[str, Located]:
    """Method -> its token masks on test, for every method with a localizer, and every scorer that locates what it finds."""
    wanted = [p for p in bench.parts if p.localizer is not None and p.method.fit_on == "tokens"]
    found: dict[str, list[tuple[Tensor, Located]]] = {p.method.name: [] for p in wanted}
    first = 0
    for g, group in enumerate(bench.plan.groups):
        layers = {p.method.name: decided[p.method.name].chosen.layer - first for p in wanted}
        there = {name: (layer >= 0) & (layer < len(group.sites)) for name, layer in layers.items()}
        first += len(group.sites)
        mine = [p for p in wanted if there[p.method.name].any()]
        if not mine:
            continue
        group.fill(progress)
        tokens, shared = group.open(summaries=False), Activations()
        jobs = []
        for parts in mine:
            name = parts.method.name
            with progress(f"fitting the localizer of {name}", 0, ""):
                inside = layers[name].clamp(0, len(group.sites) - 1)
                job = _job(parts, decided[name], kept[name], g, inside, shared, tokens, bench)
                few = None if job.pairs is None else (job.pairs[0] & there[name].cpu(), job.pairs[1] & there[name].cpu())
                jobs.append(replace(job, pairs=few))
        for name, located in _located(jobs, tokens, bench, progress).items():
            found[name].append((there[name], located))
        if len(bench.plan.groups) > 1:
            group.forget()
    return {name: merge(parts) for name, parts in found.items() if parts} | _pointed_out(bench, decided, progress)


def _pointed_out(bench: Bench, decided: dict[str, Decided], progress: Progress) -> dict[str, Located]:
    """Method -> the test tokens in the regions that its scorer gives. The backbone says only which token covers which region."""
    pointing = {name: this for name, this in decided.items() if getattr(this.scorer, "locate", None) is not None}
    if not pointing:
        return {}
    group = bench.plan.groups[0]
    group.fill(progress)
    test = group.open(summaries=False).test
    found = {name: _in_regions(name, this, test, bench, progress) for name, this in pointing.items()}
    if len(bench.plan.groups) > 1:
        group.forget()
    return found


def _in_regions(name: str, this: Decided, test: SplitBlocks, bench: Bench, progress: Progress) -> Located:
    """The tokens that a scorer's regions meet, by the rule that makes the truth. It has no level, and its map is its decisions."""
    detected, split, step = this.detected(this.test), bench.task.splits["test"], bench.spec.batch_size or BATCH
    decisions, starts = torch.zeros_like(test.truth, dtype=torch.bool), test.offsets.tolist()
    places = detected.any(1).nonzero()[:, 0].tolist()
    with progress(f"asking {name} where in test", len(places), "samples") as advance:
        for start in range(0, len(places), step):
            part = places[start : start + step]
            marked = this.scorer.locate(split.samples(part), detected[part].numpy(), test.concepts)  # type: ignore[union-attr]
            for i, marks in zip(part, marked, strict=True):
                here, view = slice(starts[i], starts[i + 1]), test.views[i] if test.views else None
                for c, concept in enumerate(test.concepts):
                    mine = [mark for mark in marks if mark["concept"] == concept]
                    if mine and here.stop > here.start:
                        decisions[here, c] = region_hit(mine, test.regions[here], view, split.ids[i]).to(decisions.device)
            advance(len(part))
    cutoff = torch.full((len(test.concepts),), 0.5, dtype=torch.float64)
    none = cutoff * torch.nan
    counts = torch.zeros(3, 1, len(cutoff))
    return Located(
        decisions.float(),
        decisions,
        test.truth,
        -torch.ones_like(cutoff).long(),
        cutoff,
        none,
        cutoff[None],
        counts,
        none[None],
    )


def _job(
    parts: Parts, this: Decided, kept: Kept, group: int, layer: Tensor, shared: Activations, tokens: Tokens, bench: Bench
) -> Job:
    """One method's localization in one group, fitted on train; `layer` [C] counts the group's sites."""
    assert parts.localizer is not None and this.token_cutoffs is not None  # noqa: S101 - `localize` picked such methods
    tau = at_layer(at_level(this.token_cutoffs, this.chosen.level), this.chosen.layer)
    explained = Explanation(kept.concepts[group], layer, tau, shared)
    detector = kept.detectors[group]
    level = at_layer(this.chosen.level, this.chosen.layer) if detector.calibrate_on == "tokens" else None
    fit_it = getattr(parts.localizer, "fit", None)
    fitted = parts.localizer if fit_it is None else fit_it(tokens.train, explained)
    detected = (this.detected(this.cal), this.detected(this.test))
    return Job(parts.method.name, fitted, explained, detector, detected, level, bench.pairs if parts.explained else None)


def _located(jobs: Sequence[Job], tokens: Tokens, bench: Bench, progress: Progress) -> dict[str, Located]:
    """Every job's masks: maps from shared passes, then those that need the model, then the level on cal and the decisions on test."""
    splits, levels = (tokens.cal, tokens.test), bench.task.file.levels
    done: dict[str, Located] = {}
    every = 4 * len(bench.task.concepts) * sum(len(split.truth) for split in splits)
    step = max(1, MAP_BYTES // max(every, 1))
    plain = [job for job in jobs if not job.explains]
    given: list[dict[str, Tensor]] = [{}, {}]
    for start in range(0, len(plain), step):
        part = plain[start : start + step]
        with progress(f"localizing with {', '.join(job.name for job in part)}", 0, ""):
            maps = [score_tokens(split, part) for split in splits]
        for job in part:
            if job.pairs is None:
                done[job.name] = locate(job, (maps[0][job.name], maps[1][job.name]), splits, levels)
            else:
                given = [{**old, job.name: new[job.name]} for old, new in zip(given, maps, strict=True)]
    few = [job for job in jobs if job.pairs is not None]
    if few:
        functions = _functions(few, tokens, bench)
        cal, test = (explain(split, i, few, functions, given[i], progress) for i, split in enumerate(splits))
        for job in few:
            located = locate(job, (cal.maps[job.name], test.maps[job.name]), splits, levels)
            done[job.name] = located._replace(curves=test.curves[job.name])
    if bench.spec.log_tokens:
        logged = score_tokens(tokens.test, [replace(job, localizer=_OwnActivations()) for job in jobs])
        done = {name: located._replace(activations=logged[name]) for name, located in done.items()}
    return {job.name: done[job.name] for job in jobs}


class _OwnActivations:
    """The activations themselves, for the token log."""

    def score(self, block: TokenEmbeddings, explained: Explained) -> Tensor:
        """[T, C]."""
        return explained.activations(block)


def _functions(jobs: Sequence[Job], tokens: Tokens, bench: Bench) -> dict[str, Function]:
    """Method -> its f_c; methods with the same concepts, layers and detector share one, with all their kinds of vectors."""
    made: dict[tuple[Any, ...], Function] = {}
    found = {}
    batch = bench.plan.groups[0].extraction.batching.size
    detectors = {parts.method.name: parts.method.detector for parts in bench.parts}
    for job in jobs:
        key = (id(job.explained.concepts), tuple(job.explained.layers.tolist()), detectors[job.name])
        if key not in made:
            affine = Affine(tokens.train.centre, tokens.train.scale)
            made[key] = Function(bench.backbone, job.explained, job.detector, affine, tokens.sites, batch, bench.spec.seed)
        if job.explains:
            made[key].kind_of(getattr(job.localizer, "directions", None))
        found[job.name] = made[key]
    return found
