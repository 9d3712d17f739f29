"""The straight pipe: RunSpec -> Results. One (task, backbone), all layers in one forward pass, all methods on the same tokens.

Follows arXiv 2512.05038: fit on `train`, calibrate cutoffs in the tail of in-concept `cal` activations, choose level and layer per
concept on `cal`, touch `test` once. Where the authors' code differs, the function that differs says so (section numbers are those
of docs/method.md).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import guards, results
from harness.bench import BATCH, Bench, Decided, Kept, Parts, asked_splits, prepare
from harness.calibration import at_layer, best_cutoffs, calibrate, choose, in_concept, sample_cutoffs, token_cutoffs
from harness.embed import SplitBlocks, Tokens
from harness.errors import HarnessError
from harness.match import match, select
from harness.metrics import Bootstrap
from harness.publish import Finished, describe, lost, publish
from harness.registry import Registry
from harness.store import StorageOverflowError
from harness.types import Concepts, Detector, Method, Progress, Result, RunSpec, Units
from harness.where import localize


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
            fitted = fit(methods[0], tokens, progress)
            for concepts, mine in named(fitted, methods, tokens, bench, kept, progress):
                sweep(mine, tokens, concepts, bench, kept, progress)
        if len(groups) > 1:
            group.forget()
    labels = torch.from_numpy(bench.task.splits["cal"].labels).to(bench.device)
    decided = {
        p.method.name: ask(p, bench, progress) if p.scorer is not None else decide(p, kept[p.method.name], labels, bench)
        for p in bench.parts
    }
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


@dataclass(frozen=True)
class Refit:
    """One method of an earlier result, fitted and decided again from its embeddings; `groups` as `visit` gives them."""

    bench: Bench
    parts: Parts
    groups: tuple[tuple[Tokens, Concepts, Detector], ...]
    decided: Decided

    def visit(self, progress: Progress) -> Iterator[tuple[Tokens, Concepts, Detector]]:
        """(tokens, concepts, detector) of each layer group, its embeddings there: where several do not fit the cache, embedded anew."""
        for group, opened in zip(self.bench.plan.groups, self.groups, strict=True):
            group.fill(progress)
            yield opened
            if len(self.groups) > 1:
                group.forget()


Fits = dict[tuple[Any, ...], Concepts | Units]
"""What concept methods fitted, by all that it depends on: methods that share concepts share their fit."""


def refit(
    folder: Path, registry: Registry, progress: Progress, cache_dir: Path | None = None, fits: Fits | None = None
) -> Refit:
    """What lies behind a result, for analyses that need activations; raises where the data or the backbone are no longer those it names.

    fits: given to several calls, it keeps what was fitted for the next.
    """
    method = results.read_result(folder)["method"]
    if method["concepts"] is None:
        raise HarnessError(
            f"method {method['name']!r} of result {folder} has no concepts in tokens; choose a result of another method"
        )
    bench = bench_of(folder, registry, cache_dir)
    try:
        return _fitted_again(bench, progress, {} if fits is None else fits)
    except StorageOverflowError:
        return _fitted_again(prepare(bench.spec, registry, storage="bfloat16"), progress, {})


def bench_of(folder: Path, registry: Registry, cache_dir: Path | None = None) -> Bench:
    """The bench of an earlier result; raises where the data or the backbone are no longer those it names."""
    read = results.read_result(folder)
    method = Method(**{**read["method"], "tags": tuple(read["method"]["tags"])})
    fields = {f.name for f in dataclasses.fields(RunSpec)}
    plain = {key: value for key, value in read["config"].items() if key in fields}
    plain.update(methods=(method,), streams=tuple(plain["streams"]), cache_dir=cache_dir or RunSpec.cache_dir)
    overflowed = read["provenance"].get("storage") == "bfloat16"
    bench = prepare(RunSpec(**plain), registry, "bfloat16" if overflowed else None)
    _refuse_changes(bench, read, folder)
    return bench


def rescore(folder: Path, registry: Registry, progress: Progress, ids: Sequence[str], cache_dir: Path | None = None) -> Tensor:
    """[L, S, C]: the pooled scores of some test samples of an earlier result, in the order of the test split, made again from raw data.

    The method is fitted again on train, and its units matched on cal; no other test sample is embedded. A scorer is asked anew.
    """
    bench = bench_of(folder, registry, cache_dir)
    splits, wanted = dict(bench.task.splits), set(ids)
    splits["test"] = splits["test"].only([i for i, name in enumerate(splits["test"].ids) if name in wanted])
    if bench.parts[0].scorer is not None:
        splits["cal"] = splits["cal"].only([0])
    task = replace(bench.task, splits=splits)
    bench = replace(bench, task=task, plan=replace(bench.plan, groups=tuple(group.of(task) for group in bench.plan.groups)))
    if bench.parts[0].scorer is not None:
        return ask(bench.parts[0], bench, progress).test
    return _fitted_again(bench, progress, {}).decided.test


def _refuse_changes(bench: Bench, read: dict[str, Any], folder: Path) -> None:
    now = json.loads(json.dumps(describe(bench), default=str))
    changed = [key for key in {**read["backbone"], **now} if read["backbone"].get(key) != now.get(key)]
    what = f"backbone {bench.backbone.name!r} ({', '.join(changed)})" if changed else None
    if read["task"]["fingerprint"] != bench.task.fingerprint:
        what = f"data of task {bench.task.name!r}"
    if what is not None:
        raise HarnessError(f"the {what} changed since result {folder} was made; run again")


def _fitted_again(bench: Bench, progress: Progress, fits: Fits) -> Refit:
    (parts,) = bench.parts
    own, opened = Kept(), []
    depends_on = (*_concept_key(parts), bench.spec.seed, bench.task.fingerprint, json.dumps(describe(bench), default=str))
    for group in bench.plan.groups:
        group.fill(progress)
        tokens = group.open(summaries=parts.method.fit_on == "summary")
        opened.append(tokens)
        key = (*depends_on, group.sites)
        fits[key] = fits[key] if key in fits else fit(parts, tokens, progress)
        for concepts, mine in named(fits[key], [parts], tokens, bench, {parts.method.name: own}, progress):
            sweep(mine, tokens, concepts, bench, {parts.method.name: own}, progress)
        if len(bench.plan.groups) > 1:
            group.forget()
    labels = torch.from_numpy(bench.task.splits["cal"].labels).to(bench.device)
    groups = tuple(zip(opened, own.concepts, own.detectors, strict=True))
    return Refit(bench, parts, groups, decide(parts, own, labels, bench))


def check(bench: Bench) -> dict[str, str]:
    """The cheap guards' findings. A verdict is kept beside the blocks it speaks for: a run that embeds nothing asks for no forward."""
    if bench.spec.guards == "off":
        return dict.fromkeys(guards.GUARDS, "off")
    store = bench.plan.groups[0].extraction.store
    verdict = store.folder / f"guards-{results.file_name(bench.task.name)}.json" if store else None
    labels = {site.label for site in bench.sites}
    if verdict and bench.plan.missing == 0 and verdict.is_file():
        kept = _verdict(verdict)
        if labels <= set(kept.get("sites", ())) and set(guards.GUARDS) <= set(kept.get("found", ())):
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


def fit(parts: Parts, tokens: Tokens, progress: Progress) -> Concepts | Units:
    """The concepts, or units without names, from train only."""
    assert parts.concepts is not None  # noqa: S101 - `same_concepts` leaves scorers out
    on = "samples" if parts.method.fit_on == "summary" else "tokens"
    with progress(f"fitting {parts.method.concepts} on {on}", 0, ""):
        return parts.concepts.fit(tokens.train)


def named(
    fitted: Concepts | Units, methods: Sequence[Parts], tokens: Tokens, bench: Bench, kept: dict[str, Kept], progress: Progress
) -> Iterator[tuple[Concepts, Sequence[Parts]]]:
    """(concepts, the methods they serve): what was fitted, or its units matched on cal, once per detector and way of matching."""
    if not isinstance(fitted, Units):
        yield fitted, methods
        return
    what = methods[0].method.concepts
    with progress(f"selecting units of {what} on cal", 0, ""):
        units = select(fitted, tokens.cal)
    pruned = 0 < len(units.units) < len(fitted.units)  # 0: a dictionary's site lies in another layer group
    said = [f"{len(units.units)} of {len(fitted.units)} kept"] if pruned else []
    said += [note] if (note := getattr(units, "note", "")) else []
    if said:
        bench.notes.setdefault("units", {})[what] = "; ".join(said)
    for (_, how), group in groupby(sorted(methods, key=_match_key), _match_key):
        mine = list(group)
        detector = fitted_detector(mine[0], tokens, units)
        with progress(f"matching {len(units.units)} units of {what} for {mine[0].method.detector}", 0, ""):
            found = match(units, tokens.cal, detector, bench.task.file.levels, how)
        for parts in mine:
            kept[parts.method.name].matches.append(found)
        yield units.pick(found.unit), mine


def _match_key(parts: Parts) -> tuple[str, str]:
    return parts.method.detector or "", parts.method.match


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
    sparse = getattr(concepts, "sparse", False)
    on_tokens = token_cutoffs([torch.cat(parts) for parts in inside], bench.task.file.levels, sparse)
    for name, detector in detectors.items():
        mine = kept[name]
        by_samples = detector.calibrate_on == "samples"
        of_samples = sample_cutoffs(mine.cal[-1], tokens.cal.labels, bench.task.file.levels, sparse) if by_samples else None
        cutoffs = on_tokens if of_samples is None else of_samples
        mine.cutoffs.append(cutoffs)
        mine.token_cutoffs.append(on_tokens)
        mine.concepts.append(concepts)
        mine.detectors.append(detector)


def fitted_detector(parts: Parts, tokens: Tokens, concepts: Concepts | Units) -> Detector:
    """The detector, fitted on train where it has something to fit."""
    assert parts.detector is not None  # noqa: S101 - a recipe with concepts has a detector
    fit_it: Callable[[SplitBlocks, Concepts | Units], Detector] | None = getattr(parts.detector, "fit", None)
    return parts.detector if fit_it is None else fit_it(tokens.train, concepts)


def decide(parts: Parts, kept: Kept, labels: Tensor, bench: Bench) -> Decided:
    """Level and layer per concept, by F1 on the cal labels [S, C]; for a ceiling, cutoff and layer by F1 on test."""
    cal, test = torch.cat(kept.cal), torch.cat(kept.test)
    if parts.method.choose_on == "test":
        truth = torch.from_numpy(bench.task.splits["test"].labels).to(test.device)
        calibrated = calibrate(test, truth, best_cutoffs(test, truth))
    else:
        calibrated = calibrate(cal, labels, torch.cat(kept.cutoffs, 1))
    layers = tuple(site.label for site in bench.sites)
    return Decided(cal, test, calibrated, choose(calibrated), layers, torch.cat(kept.token_cutoffs, 1), tuple(kept.matches))


def ask(parts: Parts, bench: Bench, progress: Progress) -> Decided:
    """A scorer's samples through the same calibration, as a method with one layer that is null.

    Where the scorer leaves cal out, the scores and the F1 of cal are NaN.
    """
    scorer, task, levels = parts.scorer, bench.task, bench.task.file.levels
    assert scorer is not None  # noqa: S101 - `measure` asks scorers alone
    train, labels = task.splits["train"], torch.from_numpy(task.splits["cal"].labels)
    fit_it = getattr(scorer, "fit", None)
    if fit_it is not None:
        with progress(f"fitting {parts.method.name} on samples", 0, ""):
            scorer = fit_it(train.samples(range(len(train))), train.labels, bench.spec.seed)
    asked, step = asked_splits(scorer), bench.spec.batch_size or BATCH
    scored = {
        name: torch.full((1, *task.splits[name].labels.shape), torch.nan, dtype=torch.float64) for name in ("cal", "test")
    }
    for name in asked:
        split = task.splits[name]
        with progress(f"asking {parts.method.name} about {name}", len(split), "samples") as advance:
            for start in range(0, len(split), step):
                part = range(start, min(start + step, len(split)))
                scored[name][0, part] = torch.from_numpy(scorer.score(split.samples(part), task.concepts))
                advance(len(part))
    fixed = torch.full((1, 1, len(task.concepts)), 0.5, dtype=torch.float64)
    cutoffs = fixed if scorer.calibrate_on == "fixed" else sample_cutoffs(scored["cal"], labels, levels)
    calibrated = calibrate(scored["cal"].nan_to_num(nan=-torch.inf), labels, cutoffs)
    if "cal" not in asked:
        calibrated = calibrated._replace(f1=torch.full_like(calibrated.f1, torch.nan))
    return Decided(scored["cal"], scored["test"], calibrated, choose(calibrated), (None,), scorer=scorer)


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
        for concepts, mine in named(fit(methods[0], mixed, progress), methods, mixed, here, kept, progress):
            sweep(mine, mixed, concepts, here, kept, progress)
        for parts in methods:
            decided = decide(parts, kept[parts.method.name], mixed.cal.labels, here)
            scores = at_layer(decided.test, decided.chosen.layer).cpu().numpy()
            found[parts.method.name] = guards.check_shuffled(scores, mixed.test.labels.cpu().numpy(), parts.method.name)
    return "; ".join(f"{verdict} ({name})" for name, verdict in found.items()) or "skipped: no method with concepts"
