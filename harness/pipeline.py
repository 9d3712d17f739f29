"""The straight pipe: RunSpec -> Results. One (task, backbone), all layers in one forward pass, all methods on the same tokens.

Follows arXiv 2512.05038: fit on `train`, calibrate cutoffs in the tail of in-concept `cal` activations, choose level and layer per
concept on `cal`, touch `test` once. Where the authors' code differs, the function that differs says so (section numbers are those
of docs/method.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import guards, results
from harness.bench import Bench, Decided, Kept, Parts, prepare
from harness.calibration import at_layer, at_level, calibrate, choose, in_concept, sample_cutoffs, token_cutoffs
from harness.embed import SplitBlocks, Tokens
from harness.localize import Explanation, Located, locate, merge
from harness.metrics import Bootstrap
from harness.publish import Finished, lost, publish
from harness.registry import Registry
from harness.store import StorageOverflowError
from harness.types import Concepts, Detector, Progress, Result, RunSpec, Scorer


def run(
    spec: RunSpec, registry: Registry, progress: Progress, announce: Callable[[Bench], None] = lambda bench: None
) -> list[Result]:
    """One result per method, each on disk when it is returned; `announce` is told the plan before anything is computed."""
    bench = prepare(spec, registry)
    results.check_output(spec.output.expanduser())
    announce(bench)
    try:
        return measure(bench, progress)
    except StorageOverflowError:
        return measure(prepare(spec, registry, storage="bfloat16"), progress)


def measure(bench: Bench, progress: Progress) -> list[Result]:
    """The pipe itself."""
    started = time.time()
    found = check(bench)
    kept = {parts.method.name: Kept() for parts in bench.parts}
    groups = bench.plan.groups if any(parts.concepts is not None for parts in bench.parts) else ()
    for group in groups:  # usually one; one forward pass per group
        group.fill(progress)
        for (_, fit_on), methods in same_concepts(bench.parts):
            tokens = group.open(summaries=fit_on == "summary")
            concepts = fit(methods[0], tokens, progress)
            sweep(methods, tokens, concepts, bench, kept, progress)
        if len(groups) > 1:
            group.forget()
    labels = torch.from_numpy(bench.task.splits["cal"].labels).to(bench.device)
    decided = {p.method.name: decide(p, kept[p.method.name], labels, bench) for p in bench.parts}
    located = localize(bench, kept, decided, progress)
    if bench.spec.guards == "full":
        found["shuffled"] = shuffled(bench, progress)
    bench.notes.update(guards=found, **lost(bench))
    if bench.plan.storage == "bfloat16":
        bench.notes["storage"] = "bfloat16: a value does not fit float16"
    made = {"started": started, "samples embedded": sum(group.embedded for group in bench.plan.groups)}
    bootstrap = Bootstrap(
        torch.from_numpy(bench.task.splits["test"].labels), bench.task.concepts, bench.spec.bootstrap, bench.spec.seed
    )
    return [
        publish(Finished(bench, p, decided[p.method.name], located.get(p.method.name)), bootstrap, made, progress)
        for p in bench.parts
    ]


def check(bench: Bench) -> dict[str, str]:
    """The cheap guards' findings. A verdict is kept beside the blocks it speaks for: a run that embeds nothing asks for no forward."""
    if bench.spec.guards == "off":
        return {"batch": "off", "view": "off"}
    store = bench.plan.groups[0].extraction.store
    verdict = store.folder / f"guards-{results.file_name(bench.task.name)}.json" if store else None
    labels = {site.label for site in bench.sites}
    if verdict and bench.plan.missing == 0 and verdict.is_file():
        kept = _verdict(verdict)
        if labels <= set(kept.get("sites", ())):
            return dict(kept["found"])
    found = guards.check_backbone(bench.task, bench.backbone, bench.sites, bench.dtype)
    if verdict:
        results.write_atomic(verdict, json.dumps({"sites": sorted(labels), "found": found}).encode())
    return found


def _verdict(path: Path) -> dict[str, Any]:
    """A kept verdict; empty where the file is damaged, and the guards run again."""
    try:
        read = json.loads(path.read_text())
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def same_concepts(parts: Sequence[Parts]) -> Iterator[tuple[tuple[str, str], list[Parts]]]:
    """Methods that share a concept method, fitted once and activated once: ((concepts, fit_on), methods)."""
    trained = [p for p in parts if p.concepts is not None]
    for key, group in groupby(sorted(trained, key=_concept_key), _concept_key):
        yield key, list(group)


def _concept_key(parts: Parts) -> tuple[str, str]:
    return parts.method.concepts or "", parts.method.fit_on


def fit(parts: Parts, tokens: Tokens, progress: Progress) -> Concepts:
    """The concepts, from train only."""
    assert parts.concepts is not None  # noqa: S101 - `same_concepts` leaves scorers out
    on = "samples" if parts.method.fit_on == "summary" else "tokens"
    with progress(f"fitting {parts.method.concepts} on {on}", 0, ""):
        return parts.concepts.fit(tokens.train)


def sweep(
    methods: Sequence[Parts], tokens: Tokens, concepts: Concepts, bench: Bench, kept: dict[str, Kept], progress: Progress
) -> None:
    """Pools cal and test for every detector from one activation of the shared concepts; keeps in-concept cal activations' cutoffs.

    No method sees a label of cal or test: the blocks are blind, and truth is used here, by the core.
    """
    detectors = {p.method.name: fitted_detector(p, tokens, concepts) for p in methods}
    inside: list[list[Tensor]] = [[] for _ in bench.task.concepts]
    for split in (tokens.cal, tokens.test):
        pooled: dict[str, list[Tensor]] = {name: [] for name in detectors}
        with progress(f"scoring {methods[0].method.concepts} on {split.name}", len(split.ids), "samples") as advance:
            start = 0
            for block in split.blind():
                activations = concepts.activate(block)
                for name, detector in detectors.items():
                    pooled[name].append(detector.pool(activations, block))
                if split is tokens.cal:
                    here = in_concept(activations, split.truth[start : start + activations.shape[1]])
                    inside = [[*old, new] for old, new in zip(inside, here, strict=True)]
                start += activations.shape[1]
                advance(len(block.ids))
        for name, parts in pooled.items():
            (kept[name].cal if split is tokens.cal else kept[name].test).append(torch.cat(parts, 1))
    on_tokens = token_cutoffs([torch.cat(parts) for parts in inside], bench.task.file.levels)
    for name, detector in detectors.items():
        mine = kept[name]
        by_samples = detector.calibrate_on == "samples"
        cutoffs = sample_cutoffs(mine.cal[-1], tokens.cal.labels, bench.task.file.levels) if by_samples else on_tokens
        mine.cutoffs.append(cutoffs)
        mine.token_cutoffs.append(on_tokens)
        mine.concepts.append(concepts)


def fitted_detector(parts: Parts, tokens: Tokens, concepts: Concepts) -> Detector:
    """The detector, fitted on train where it has something to fit."""
    assert parts.detector is not None  # noqa: S101 - a recipe with concepts has a detector
    fit_it: Callable[[SplitBlocks, Concepts], Detector] | None = getattr(parts.detector, "fit", None)
    return parts.detector if fit_it is None else fit_it(tokens.train, concepts)


def decide(parts: Parts, kept: Kept, labels: Tensor, bench: Bench) -> Decided:
    """Level and layer per concept, by F1 on the cal labels [S, C]."""
    if parts.scorer is not None:
        return ask(parts.scorer, bench)
    cal, test = torch.cat(kept.cal), torch.cat(kept.test)
    calibrated = calibrate(cal, labels, torch.cat(kept.cutoffs, 1))
    layers = tuple(site.label for site in bench.sites)
    return Decided(cal, test, calibrated, choose(calibrated), layers, torch.cat(kept.token_cutoffs, 1))


def ask(scorer: Scorer, bench: Bench) -> Decided:
    """A scorer's samples through the same calibration, as a method with one layer that is null."""
    task, levels = bench.task, bench.task.file.levels
    train, cal, test = (task.splits[name] for name in ("train", "cal", "test"))
    fit_it = getattr(scorer, "fit", None)
    if fit_it is not None:
        scorer = fit_it(train.samples(range(len(train))), train.labels, bench.spec.seed)
    scored = [torch.from_numpy(scorer.score(split.samples(range(len(split))), task.concepts))[None] for split in (cal, test)]
    labels = torch.from_numpy(cal.labels)
    fixed = torch.full((1, 1, len(task.concepts)), 0.5, dtype=torch.float64)
    cutoffs = fixed if scorer.calibrate_on == "fixed" else sample_cutoffs(scored[0], labels, levels)
    calibrated = calibrate(scored[0].nan_to_num(nan=-torch.inf), labels, cutoffs)
    return Decided(scored[0], scored[1], calibrated, choose(calibrated), (None,))


def localize(bench: Bench, kept: dict[str, Kept], decided: dict[str, Decided], progress: Progress) -> dict[str, Located]:
    """Method -> its token masks on test, for every method with a localizer, where cal has annotated tokens."""
    wanted = [p for p in bench.parts if p.localizer is not None and p.method.fit_on == "tokens"]
    found: dict[str, list[tuple[Tensor, Located]]] = {p.method.name: [] for p in wanted}
    first = 0
    for g, group in enumerate(bench.plan.groups):
        layers = {p.method.name: decided[p.method.name].chosen.layer - first for p in wanted}
        there = {name: (layer >= 0) & (layer < len(group.sites)) for name, layer in layers.items()}
        first += len(group.sites)
        if not any(mine.any() for mine in there.values()):
            continue
        group.fill(progress)
        tokens = group.open(summaries=False)
        for parts in wanted:
            name = parts.method.name
            if there[name].any():
                with progress(f"localizing with {name}", 0, ""):
                    concepts, inside = kept[name].concepts[g], layers[name].clamp(0, len(group.sites) - 1)
                    found[name].append((there[name], _locate(parts, decided[name], concepts, inside, tokens, bench)))
        if len(bench.plan.groups) > 1:
            group.forget()
    return {name: merge(parts) for name, parts in found.items() if parts}


def _locate(parts: Parts, this: Decided, concepts: Concepts, layer: Tensor, tokens: Tokens, bench: Bench) -> Located:
    """One method in one group; `layer` [C] counts the group's sites."""
    assert parts.localizer is not None and parts.detector is not None and this.token_cutoffs is not None  # noqa: S101
    tau = at_layer(at_level(this.token_cutoffs, this.chosen.level), this.chosen.layer)
    level = at_layer(this.chosen.level, this.chosen.layer) if parts.detector.calibrate_on == "tokens" else None
    detected = (this.detected(this.cal), this.detected(this.test))
    return locate(tokens, parts.localizer, Explanation(concepts, layer, tau), detected, bench.task.file.levels, level)


def shuffled(bench: Bench, progress: Progress) -> str:
    """The full guard: every method with concepts, fitted, calibrated and tested on labels permuted within each split."""
    found = {}
    group = bench.plan.groups[0]
    group.fill(progress)
    here = replace(bench, sites=group.sites)
    for (_, fit_on), methods in same_concepts(bench.parts):
        tokens = group.open(summaries=fit_on == "summary")
        mixed = Tokens(tokens.sites, *(split.shuffled() for split in (tokens.train, tokens.cal, tokens.test)))
        kept = {parts.method.name: Kept() for parts in methods}
        sweep(methods, mixed, fit(methods[0], mixed, progress), here, kept, progress)
        for parts in methods:
            decided = decide(parts, kept[parts.method.name], mixed.cal.labels, here)
            scores = at_layer(decided.test, decided.chosen.layer).cpu().numpy()
            found[parts.method.name] = guards.check_shuffled(scores, mixed.test.labels.cpu().numpy(), parts.method.name)
    return "; ".join(f"{verdict} ({name})" for name, verdict in found.items()) or "skipped: no method with concepts"
