"""What a run is made of: the bench, checked before anything is computed, and what each method leaves on it. No arithmetic here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from harness.calibration import Calibrated, Chosen, at_layer, at_level
from harness.embed import NORMALIZATIONS, Batching, Plan, PlanOptions, plan
from harness.errors import HarnessError, unknown
from harness.explain import pairs, price
from harness.match import Match
from harness.precision import choose_dtype, first_taken
from harness.registry import KIND_OF, Registry
from harness.sites import choose_sites, pick_device, pick_dtypes
from harness.store import Storage, free_bytes
from harness.tasks import Task, load_task, task_file
from harness.types import (
    Backbone,
    ConceptMethod,
    Concepts,
    Detector,
    Explainer,
    Localizer,
    Method,
    Metric,
    Modality,
    Price,
    RunSpec,
    Scorer,
    Setup,
    Site,
    Weights,
)

BATCH, BATCH_ON_GPU = 16, 64
"""Samples per forward pass to begin with; where memory runs out they are halved."""


@dataclass(frozen=True)
class Parts:
    """A recipe with its parts built; `plugins`: recipe field -> whose code that part is."""

    method: Method
    concepts: ConceptMethod | None
    detector: Detector | None
    localizer: Localizer | Explainer | None
    scorer: Scorer | None
    plugins: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    @property
    def explained(self) -> bool:
        """Whether it is localized on the samples that attribution explains, and no others."""
        return self.localizer is not None and self.method.localize_on == "explained"


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
    plugins: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The (sample, concept) pairs that attribution explains, of cal and of test: [S, C] bool each."""
        cal, test = (pairs(self.task.splits[name], self.spec.explain_limit, self.spec.seed) for name in ("cal", "test"))
        return cal, test

    def prices(self) -> dict[str, int]:
        """Method -> the forward passes its explanations cost at most: perturbed forwards shared between methods count for each."""
        found, tokens = {}, 0
        for parts in self.parts:
            if parts.explained:
                tokens = tokens or round(self.plan.tokens / max(self.plan.samples, 1))
                counts = [split.sum(1) for split in self.pairs]
                each = [n for split in counts for n in split[split > 0].tolist()]
                found[parts.method.name] = sum(price(parts.localizer, tokens, n) for n in each)
        return found

    def asking(self) -> dict[str, Price]:
        """Method -> what its scorer's answers cost, where they cost something."""
        found = {}
        for parts in self.parts:
            price = getattr(parts.scorer, "price", None)
            if price is not None:
                splits = [self.task.splits[name] for name in asked_splits(parts.scorer)]
                samples = chain.from_iterable(map(split.sample, range(len(split))) for split in splits)
                found[parts.method.name] = price(samples, self.task.concepts)
        return found


def asked_splits(scorer: Scorer | None) -> tuple[str, ...]:
    """The splits that a scorer scores: a costly one with a fixed cutoff leaves cal out."""
    return ("test",) if getattr(scorer, "only_test", False) else ("cal", "test")


@dataclass
class Kept:
    """What is kept of one method, layer group by layer group: pooled scores [L, S, C], cutoffs [P, L, C], what was fitted, matched."""

    cal: list[Tensor] = field(default_factory=list)
    test: list[Tensor] = field(default_factory=list)
    cutoffs: list[Tensor] = field(default_factory=list)
    token_cutoffs: list[Tensor] = field(default_factory=list)
    concepts: list[Concepts] = field(default_factory=list)
    detectors: list[Detector] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)


@dataclass(frozen=True)
class Decided:
    """One method after cal has spoken: pooled scores [L, S, C] of cal and test, cutoffs and choices. Level and layer are indices.

    scorer: the one that gave the scores, fitted.
    """

    cal: Tensor
    test: Tensor
    calibrated: Calibrated
    chosen: Chosen
    layers: tuple[str | None, ...]
    token_cutoffs: Tensor | None = None
    matches: tuple[Match, ...] = ()
    scorer: Scorer | None = None

    def match(self, layer: int) -> tuple[Match, int] | None:
        """The match that covers a layer (index), and the layer's place in it; None for a supervised method."""
        for found in self.matches:
            if layer < len(found.unit):
                return found, layer
            layer -= len(found.unit)
        return None

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
    dtypes = pick_dtypes(spec.dtype, device)
    parts = tuple(build(registry, method) for method in spec.methods)
    metrics = {name: registry.create("metrics", name) for name in registry.entries("metrics")}
    size = spec.image_size or declared.image_size
    setup = Setup(device, dtypes[0], size, cache_dir, size_asked=spec.image_size is not None)
    setup = replace(setup, weights=partial(_weights, registry, setup))

    def make(dtype: str) -> Backbone:
        made: Backbone = registry.create("backbones", spec.backbone, replace(setup, dtype=dtype))
        return made

    backbone, left = first_taken(dtypes, make)
    setup = replace(setup, dtype=left[0])
    if declared.modality != backbone.modality:
        raise HarnessError(
            f"task {declared.task!r} has modality {declared.modality!r}; backbone {spec.backbone!r} takes {backbone.modality!r}; "
            f"choose another backbone, see `harness list backbones`"
        )
    task = load_task(registry, spec.task, spec.limit, cache_dir)
    notes = {}
    if len(dtypes) > 1 and task.modality != "tokens":
        backbone, dtype, notes["dtype"] = choose_dtype(backbone, left, make, task, cache_dir)
        setup = replace(setup, dtype=dtype)
    parts = tuple(replace(p, scorer=_opened(p.scorer, setup, declared.modality)) for p in parts)
    sites = choose_sites(spec.layers, spec.streams, backbone)
    arithmetic = device if device.startswith("cuda") else "cpu"  # float64 is needed, and not to be had elsewhere
    batching = Batching(spec.batch_size or (BATCH_ON_GPU if device.startswith("cuda") else BATCH))
    how = PlanOptions(
        cache_dir, spec.cache_bytes, batching, spec.block_tokens, spec.normalization, spec.seed, arithmetic, storage
    )
    planned = plan(task, backbone, sites, how)
    makers = {
        "backbone": registry.maker("backbones", spec.backbone),
        "dataset": registry.maker("datasets", declared.dataset["name"]),
    }
    bench = Bench(spec, task, backbone, tuple(sites), parts, metrics, planned, arithmetic, setup.dtype, notes, makers)
    _refuse(bench, registry)
    return bench


def _weights(registry: Registry, setup: Setup, reference: str) -> Weights:
    """A registered model's folder, found or fetched by the plugin that offers it, which may name another one in turn."""
    found: Weights = registry.create("models", reference, replace(setup, weights=partial(_weights, registry, setup)))
    return found


def _opened(scorer: Scorer | None, setup: Setup, modality: Modality) -> Scorer | None:
    """The scorer on this run's device and cache, where it wants to know them; it raises where it cannot work."""
    open_it = getattr(scorer, "open", None)
    return scorer if open_it is None else open_it(setup, modality)


def build(registry: Registry, method: Method) -> Parts:
    """The recipe's parts, by registered name."""
    asked = {name: getattr(method, name) for name in KIND_OF}
    made = {name: registry.create(KIND_OF[name], reference) if reference else None for name, reference in asked.items()}
    if hasattr(made["localizer"], "needs"):
        method = replace(method, localize_on="explained")
    makers = {name: registry.maker(KIND_OF[name], reference) for name, reference in asked.items() if reference}
    return Parts(method, **made, plugins=makers)


def _needs_truth(concepts: ConceptMethod | None, detector: Detector | None) -> bool:
    """Whether something of a method reads the truth of train tokens: concepts unless they say no, a detector where it says so."""
    return getattr(concepts, "needs_truth", True) or getattr(detector, "needs_truth", False)


def _fits_samples(method: Method, registry: Registry) -> bool:
    """Whether a recipe of concepts is fitted without annotated tokens; False where its parts cannot be built here."""
    if method.fit_on == "summary" or not method.concepts:
        return method.fit_on == "summary"
    try:
        parts = build(registry, method)
    except HarnessError:
        return False
    return not _needs_truth(parts.concepts, parts.detector)


def _refuse(bench: Bench, registry: Registry) -> None:
    """Raises where a method cannot work on this task, or the disk cannot hold the plan."""
    on_tokens = [parts for parts in bench.parts if parts.detector is not None and parts.method.fit_on == "tokens"]
    taught = [parts for parts in on_tokens if _needs_truth(parts.concepts, parts.detector)]
    if taught and not bench.task.splits["train"].annotated.any():
        others = [name for name, method in registry.methods().items() if _fits_samples(method, registry)]
        raise HarnessError(
            f"method {taught[0].method.name!r} is fitted on annotated tokens; train of task {bench.task.name!r} has none; "
            f"methods fitted on samples: {', '.join(others)}"
        )
    tails = [parts for parts in on_tokens if parts.detector and parts.detector.calibrate_on == "tokens"]
    if tails and not bench.task.splits["cal"].annotated.any():
        pooled = {name: method.detector for name, method in registry.methods().items() if method.detector}
        others = [name for name, part in pooled.items() if registry.create("detectors", part).calibrate_on == "samples"]
        raise HarnessError(
            f"method {tails[0].method.name!r} is calibrated on annotated tokens; cal of task {bench.task.name!r} has none; "
            f"methods calibrated on samples: {', '.join(others)}"
        )
    for parts in bench.parts:
        check = getattr(parts.concepts, "check", None)
        if check is not None:
            check(bench.backbone, bench.sites)
    asked = next((parts for parts in bench.parts if parts.explained), None)
    if asked is not None and not hasattr(bench.backbone, "opened"):
        raise HarnessError(
            f"method {asked.method.name!r} perturbs the inputs of the model; backbone {bench.backbone.name} gives no access to them; "
            f"leave it out, or choose a backbone with `opened` (every vision or text model of hf:)"
        )
    need = bench.plan.bytes * bench.plan.missing // max(bench.plan.samples * len(bench.plan.groups), 1)
    free = free_bytes(bench.spec.cache_dir.expanduser())
    if need > free:
        raise HarnessError(
            f"embeddings need {need / 1e9:.1f} GB and {bench.spec.cache_dir} has {free / 1e9:.1f} GB free; "
            f"lower --cache-bytes (fewer layers at a time), choose fewer --layers or another --cache-dir"
        )
