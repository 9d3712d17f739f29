"""The straight pipe: RunSpec -> Results. One (task, backbone), all layers in one forward pass, all methods on the same tokens.

Follows arXiv 2512.05038: fit on `train`, calibrate cutoffs in the tail of in-concept `cal` activations, choose level and layer per
concept on `cal`, touch `test` once. Where the authors' code differs, the function that differs says so (section numbers are those
of docs/method.md).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from harness import guards, results
from harness.calibration import (
    Calibrated,
    Chosen,
    at_layer,
    at_level,
    calibrate,
    choose,
    in_concept,
    sample_cutoffs,
    token_cutoffs,
)
from harness.embed import NORMALIZATIONS, Plan, PlanOptions, SplitBlocks, Tokens, plan
from harness.errors import HarnessError, unknown
from harness.localize import Explanation, Located, locate, merge
from harness.metrics import NO_CUTOFF, NO_VECTOR, Bootstrap, all_rows
from harness.provenance import provenance
from harness.registry import Registry
from harness.sites import choose_sites, pick_device, pick_dtype
from harness.store import Storage, StorageOverflowError, free_bytes
from harness.tasks import Task, load_task, task_file
from harness.types import (
    Backbone,
    Choice,
    ConceptMethod,
    Concepts,
    Detector,
    Evaluation,
    Localizer,
    Method,
    Metric,
    Progress,
    Result,
    RunSpec,
    Score,
    Scorer,
    Setup,
    Site,
    finite,
)

BATCH = 16


@dataclass(frozen=True)
class Parts:
    """A recipe with its parts built."""

    method: Method
    concepts: ConceptMethod | None
    detector: Detector | None
    localizer: Localizer | None
    scorer: Scorer | None


@dataclass(frozen=True)
class Bench:
    """Everything a run needs, checked before anything is computed."""

    spec: RunSpec
    task: Task
    backbone: Backbone
    sites: tuple[Site, ...]
    parts: tuple[Parts, ...]
    metrics: dict[str, Metric]
    plan: Plan
    device: str
    dtype: str
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Kept:
    """What is kept of one method, layer group by layer group: pooled scores [L, S, C], cutoffs [P, L, C], what was fitted."""

    cal: list[Tensor] = field(default_factory=list)
    test: list[Tensor] = field(default_factory=list)
    cutoffs: list[Tensor] = field(default_factory=list)
    token_cutoffs: list[Tensor] = field(default_factory=list)
    concepts: list[Concepts] = field(default_factory=list)


@dataclass(frozen=True)
class Decided:
    """One method after cal has spoken: pooled scores [L, S, C] of cal and test, cutoffs and choices. Level and layer are indices."""

    cal: Tensor
    test: Tensor
    calibrated: Calibrated
    chosen: Chosen
    layers: tuple[str | None, ...]
    token_cutoffs: Tensor | None = None

    def cutoff(self) -> Tensor:
        """[C]: the cutoff at each concept's chosen layer and level."""
        return at_layer(at_level(self.calibrated.cutoffs, self.chosen.level), self.chosen.layer)

    def detected(self, scores: Tensor) -> Tensor:
        """[S, C]: score >= cutoff at the chosen layer; a NaN score or cutoff detects nothing."""
        return at_layer(scores, self.chosen.layer).double() >= self.cutoff()


def prepare(spec: RunSpec, registry: Registry, storage: Storage | None = None) -> Bench:
    """The bench of a run; every mistake a user can make is found here, before the first forward pass."""
    if spec.normalization not in NORMALIZATIONS:
        raise unknown("normalization", spec.normalization, NORMALIZATIONS, "--normalization")
    declared = task_file(registry, spec.task)
    cache_dir = spec.cache_dir.expanduser()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, device)
    parts = tuple(build(registry, method) for method in spec.methods)
    metrics = {name: registry.create("metrics", name) for name in registry.entries("metrics")}
    setup = Setup(device, dtype, spec.image_size or declared.image_size, cache_dir)
    backbone = registry.create("backbones", spec.backbone, setup)
    if declared.modality != backbone.modality:
        raise HarnessError(
            f"task {declared.task!r} is made of {declared.modality}s; backbone {spec.backbone!r} takes {backbone.modality}s"
        )
    task = load_task(registry, spec.task, spec.limit, cache_dir)
    sites = choose_sites(spec.layers, spec.streams, backbone)
    arithmetic = device if device.startswith("cuda") else "cpu"  # float64 is needed, and not to be had elsewhere
    batch = spec.batch_size or BATCH
    how = PlanOptions(cache_dir, spec.cache_bytes, batch, spec.block_tokens, spec.normalization, spec.seed, arithmetic, storage)
    bench = Bench(spec, task, backbone, tuple(sites), parts, metrics, plan(task, backbone, sites, how), arithmetic, dtype)
    _refuse(bench, registry)
    return bench


def build(registry: Registry, method: Method) -> Parts:
    """The recipe's parts, by registered name."""
    made = {
        kind: registry.create(kind, reference) if reference else None
        for kind, reference in (
            ("concept_methods", method.concepts),
            ("detectors", method.detector),
            ("localizers", method.localizer),
            ("scorers", method.scorer),
        )
    }
    return Parts(method, made["concept_methods"], made["detectors"], made["localizers"], made["scorers"])


def _refuse(bench: Bench, registry: Registry) -> None:
    """Raises where a method cannot work on this task, or the disk cannot hold the plan."""
    on_tokens = [parts for parts in bench.parts if parts.detector is not None and parts.method.fit_on == "tokens"]
    if on_tokens and not bench.task.splits["train"].annotated.any():
        others = [name for name, method in registry.methods().items() if method.fit_on == "summary"]
        raise HarnessError(
            f"method {on_tokens[0].method.name!r} is fitted on annotated tokens; train of task {bench.task.name!r} has none; "
            f"methods fitted on samples: {', '.join(others)}"
        )
    tails = [parts for parts in on_tokens if parts.detector and parts.detector.calibrate_on == "tokens"]
    if tails and not bench.task.splits["cal"].annotated.any():
        built = (build(registry, method) for method in registry.methods().values() if method.detector)
        others = [parts.method.name for parts in built if parts.detector and parts.detector.calibrate_on == "samples"]
        raise HarnessError(
            f"method {tails[0].method.name!r} is calibrated on annotated tokens; cal of task {bench.task.name!r} has none; "
            f"methods calibrated on samples: {', '.join(others)}"
        )
    need = bench.plan.bytes * bench.plan.missing // max(bench.plan.samples, 1)
    free = free_bytes(bench.spec.cache_dir.expanduser())
    if need > free:
        raise HarnessError(
            f"embeddings need {need / 1e9:.1f} GB and {bench.spec.cache_dir} has {free / 1e9:.1f} GB free; "
            f"lower --cache-bytes (fewer layers at a time), choose fewer --layers or another --cache-dir"
        )


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
    embedded = 0
    groups = bench.plan.groups if any(parts.concepts is not None for parts in bench.parts) else ()
    for group in groups:  # usually one; one forward pass per group
        embedded += group.fill(progress)
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
    made = {"started": started, "samples embedded": embedded}
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
        kept: dict[str, Any] = json.loads(verdict.read_text())
        if labels <= set(kept["sites"]):
            return dict(kept["found"])
    found = guards.check_backbone(bench.task, bench.backbone, bench.sites, bench.dtype)
    if verdict:
        results.write_atomic(verdict, json.dumps({"sites": sorted(labels), "found": found}).encode())
    return found


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
    for g, group in enumerate(bench.plan.groups if wanted else ()):
        group.fill(progress)
        tokens = group.open(summaries=False)
        for parts in wanted:
            name = parts.method.name
            this, layer = decided[name], decided[name].chosen.layer - first
            mine = (layer >= 0) & (layer < len(group.extraction.sites))
            if mine.any() and this.token_cutoffs is not None:
                with progress(f"localizing with {name}", 0, ""):
                    tau = at_layer(at_level(this.token_cutoffs, this.chosen.level), this.chosen.layer)
                    explained = Explanation(kept[name].concepts[g], layer.clamp(0, len(group.extraction.sites) - 1), tau)
                    level = at_layer(this.chosen.level, this.chosen.layer) if parts.detector.calibrate_on == "tokens" else None  # type: ignore[union-attr]
                    detected = (this.detected(this.cal), this.detected(this.test))
                    part = locate(tokens, parts.localizer, explained, detected, bench.task.file.levels, level)  # type: ignore[arg-type]
                    found[name].append((mine, part))
        first += len(group.extraction.sites)
    return {name: merge(parts) for name, parts in found.items() if parts}


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


@dataclass(frozen=True)
class Finished:
    """One method after test: all that its result is made of."""

    bench: Bench
    parts: Parts
    decided: Decided
    located: Located | None


def publish(done: Finished, bootstrap: Bootstrap, made: dict[str, Any], progress: Progress) -> Result:
    """Per-sample scores on disk first, then metrics, then the result and its status."""
    bench, method = done.bench, done.parts.method
    task, backbone = bench.task.describe(), describe(bench)
    folder = results.run_folder(bench.spec, method, task, backbone)
    results.write_samples(folder, sample_columns(bench, done.decided))
    results.write_calibration(folder, calibration_columns(bench, done.decided))
    if bench.spec.log_tokens and done.located is not None:
        results.write_tokens(folder, *token_log(bench, done.decided, done.located))
    with progress(f"intervals of {method.name}", 0, ""):
        scores = score(bench, done.decided, done.located, bootstrap)
    notes = {**bench.task.notes, **bench.notes}
    if done.parts.scorer is not None:
        notes["no answer"] = int(done.decided.test.isnan().sum())
    origin = {
        **provenance(made["started"]),
        "device": bench.device,
        "dtype": bench.dtype,
        "storage": bench.plan.storage,
        "samples embedded": made["samples embedded"],
    }
    chosen = choices(bench, done.decided, done.located)
    return results.write_result(folder, Result(bench.spec, method, task, backbone, tuple(scores), chosen, notes, origin))


def describe(bench: Bench) -> dict[str, Any]:
    """The backbone as a result states it."""
    backbone = bench.backbone
    return {
        "name": backbone.name,
        "revision": backbone.revision,
        "n_layers": backbone.n_layers,
        "width": backbone.width,
        "sites": [site.label for site in bench.sites],
        "normalization": bench.spec.normalization,
        **dict(backbone.identity),
    }


def score(bench: Bench, decided: Decided, located: Located | None, bootstrap: Bootstrap) -> list[Score]:
    """Every metric at the chosen layers and at every fixed layer; localization at the chosen layers."""
    rows = all_rows(bench.metrics, "detection", dict(evaluations(decided, bootstrap.labels)), bootstrap)
    if located is not None:
        tokens = bench.plan.groups[0].open(summaries=False).test
        evaluation = Evaluation(
            scores=located.map.double().cpu(),
            decisions=located.decisions.cpu(),
            truth=tokens.truth.cpu(),
            offsets=tokens.offsets.cpu(),
            calibrated=located.cutoff.isfinite().cpu(),
        )
        rows += all_rows(bench.metrics, "localization", {"chosen": evaluation}, bootstrap)
    return rows


def evaluations(decided: Decided, labels: Tensor) -> Iterator[tuple[str | None, Evaluation]]:
    """(layer, evaluation) of the chosen layers, then of every layer with its own level: the same arrays serve both."""
    offsets = torch.arange(len(labels) + 1)
    truth, test = labels.to(torch.int8), decided.test.double().cpu()
    fixed = at_level(decided.calibrated.cutoffs, decided.chosen.level).cpu()
    layer = decided.chosen.layer.cpu()
    chosen, cutoff = at_layer(test, layer), at_layer(fixed, layer)
    yield (
        "chosen" if decided.layers[0] is not None else None,
        Evaluation(chosen, chosen >= cutoff, truth, offsets, cutoff.isfinite()),
    )
    for i, label in enumerate(decided.layers):
        if label is not None:
            yield label, Evaluation(test[i], test[i] >= fixed[i], truth, offsets, fixed[i].isfinite())


def choices(bench: Bench, decided: Decided, located: Located | None) -> tuple[Choice, ...]:
    """What cal chose, per concept, in words and numbers."""
    levels, made = bench.task.file.levels, []
    cutoff = decided.cutoff().tolist()
    for c, concept in enumerate(bench.task.concepts):
        layer = int(decided.chosen.layer[c])
        known = finite(cutoff[c]) is not None
        one_level = len(decided.calibrated.cutoffs) == 1  # a fixed cutoff has no level
        choice = Choice(
            concept,
            decided.layers[layer] if known else None,
            levels[int(decided.chosen.level[layer, c])] if known and not one_level else None,
            finite(cutoff[c]),
            finite(float(decided.chosen.best_f1[layer, c])),
            reason=None
            if known
            else NO_VECTOR
            if at_layer(decided.cal, decided.chosen.layer)[:, c].isnan().any()
            else NO_CUTOFF,
        )
        if located is not None and finite(float(located.cutoff[c])) is not None:
            found = {"map_level": levels[int(located.level[c])], "map_cutoff": float(located.cutoff[c])}
            choice = replace(choice, **found, map_cal_f1=finite(float(located.cal_f1[c])))  # type: ignore[arg-type]
        made.append(choice)
    return tuple(made)


def sample_columns(bench: Bench, decided: Decided) -> dict[str, Sequence[Any]]:
    """The columns of `per_sample.parquet`: every cal and test sample's score, decision and label per concept, at the chosen layer."""
    columns: dict[str, Any] = {key: [] for key in ("split", "id", "concept", "layer", "score", "detected", "label")}
    layers = [decided.layers[int(i)] for i in decided.chosen.layer]
    for name, scores in (("cal", decided.cal), ("test", decided.test)):
        split = bench.task.splits[name]
        count = len(layers)
        columns["split"] += [name] * len(split) * count
        columns["id"] += [i for i in split.ids for _ in range(count)]
        columns["concept"] += list(bench.task.concepts) * len(split)
        columns["layer"] += layers * len(split)
        columns["score"] += [finite(x) for x in at_layer(scores, decided.chosen.layer).double().flatten().tolist()]
        columns["detected"] += decided.detected(scores).flatten().tolist()
        columns["label"] += split.labels.flatten().tolist()
    return columns


def calibration_columns(bench: Bench, decided: Decided) -> dict[str, Sequence[Any]]:
    """The columns of `calibration.parquet`: cutoff and cal counts for every (level, layer, concept)."""
    cutoffs, counts = decided.calibrated.cutoffs, decided.calibrated.counts
    shape = cutoffs.shape
    levels = list(bench.task.file.levels) if shape[0] > 1 else [None]
    return {
        "level": [level for level in levels for _ in range(shape[1] * shape[2])],
        "layer": [layer for _ in levels for layer in decided.layers for _ in range(shape[2])],
        "concept": list(bench.task.concepts) * (shape[0] * shape[1]),
        "cutoff": [finite(x) for x in cutoffs.flatten().tolist()],
        **{name: counts._asdict()[name].flatten().tolist() for name in ("tp", "fp", "fn")},
        "f1": [finite(x) for x in decided.calibrated.f1.flatten().tolist()],
    }


def token_log(bench: Bench, decided: Decided, located: Located) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The test tokens' activations and maps at each concept's chosen layer, with what a picture of them needs."""
    tokens = bench.plan.groups[0].open(summaries=False).test
    tau = at_layer(at_level(decided.token_cutoffs, decided.chosen.level), decided.chosen.layer)  # type: ignore[arg-type]
    tensors = {
        "activations": located.activations.cpu(),
        "map": located.map.cpu(),
        "mask": located.decisions.to(torch.uint8).cpu(),
        "truth": tokens.truth.cpu(),
        "offsets": tokens.offsets.cpu(),
        "regions": tokens.regions,
        "views": torch.tensor(tokens.views, dtype=torch.int64).reshape(-1, 6),
        "detected": decided.detected(decided.test).to(torch.uint8).cpu(),
    }
    about = {
        "ids": list(tokens.ids),
        "concepts": list(bench.task.concepts),
        "super_activator_cutoffs": [finite(x) for x in tau.tolist()],
        "map_cutoffs": [finite(x) for x in located.cutoff.tolist()],
        "layers": [decided.layers[int(i)] for i in decided.chosen.layer],
    }
    return tensors, about


def lost(bench: Bench) -> dict[str, Any]:
    """Per split and concept: positives that stay in detection but left token calibration and localization, and samples without tokens."""
    found: dict[str, Any] = {}
    if all(parts.concepts is None for parts in bench.parts):
        return found
    tokens = bench.plan.groups[0].open(summaries=False)
    for split in (tokens.train, tokens.cal, tokens.test):
        empty = [name for name, n in zip(split.ids, split.offsets.diff().tolist(), strict=True) if n == 0]
        if empty:
            found[f"without tokens in {split.name}, scored -inf"] = {"count": len(empty), "ids": empty[:10]}
        gone = split.lost()
        if gone:
            found[f"annotated positives without a token in {split.name}, detection only"] = gone
    return found
