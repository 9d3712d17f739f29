"""Contract checks for plugin authors: `check_detector(MyDetector())` raises an AssertionError that says what is wrong.

They run a part on a small made-up world, on the CPU, as the pipe would: blocks of any size, samples without tokens, no label of cal
or test in sight. They say nothing about how good a part is. The command line never imports this module.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness import types
from harness.embed import Affine
from harness.errors import HarnessError
from harness.explain import Function, SampleProbe, Subject
from harness.guards import check_layers, check_place, check_regions
from harness.localize import Explanation
from harness.masks import rle_mask
from harness.numerics import segment_max
from harness.types import SPLITS, STREAMS, Embedded, Evaluation, Inputs, Opened, Sample, Site, TokenEmbeddings

T = TypeVar("T")
LENGTHS = (4, 1, 0, 6, 3, 5, 2, 4, 3, 6, 2, 4)
CONCEPTS, SITES, WIDTH = ("red", "round", "rare"), (Site(0), Site(2)), 8
S, C = len(LENGTHS), len(CONCEPTS)
TOLERANCE = 1e-4


class MadeUp:
    """`Blocks` of planted concepts; sample 2 has no tokens, the last is not annotated. `places`: which samples, in which order."""

    def __init__(
        self, per_block: int = S, places: Sequence[int] = range(S), positives: bool = True, shown: bool = False
    ) -> None:
        g = torch.Generator().manual_seed(11)
        self.concepts: tuple[str, ...] = CONCEPTS
        self.sites: tuple[Site, ...] = SITES
        self.width, self.seed, self._per_block, self._shown = WIDTH, 5, per_block, shown
        member = torch.repeat_interleave(torch.arange(S), torch.tensor(LENGTHS))
        labels = torch.rand(S, C, generator=g) < 0.5
        labels[:2], labels[:, -1] = torch.tensor([[True], [False]]), labels[:, -1] & positives
        truth = (labels[member] & (torch.rand(len(member), C, generator=g) < 0.7)).to(torch.int8)
        values = torch.randn(len(SITES), len(member), WIDTH, generator=g)
        values[:, :, :C] += 3.0 * truth
        truth[member == S - 1] = -1
        rows = torch.cat([(member == place).nonzero()[:, 0] for place in places])
        self.values, self.truth, self.labels = values[:, rows], truth[rows], labels[list(places)]
        self.backbone: Any = None
        self.centre, self.scale = torch.zeros(len(SITES), 1, WIDTH), torch.ones(len(SITES), 1, WIDTH)
        self.offsets = torch.tensor([0, *(LENGTHS[place] for place in places)]).cumsum(0)
        self.ids = tuple(f"sample-{place}" for place in places)

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        for first in range(0, len(self.ids), self._per_block):
            offsets = self.offsets[first : first + self._per_block + 1]
            here, samples = slice(int(offsets[0]), int(offsets[-1])), slice(first, first + self._per_block)
            given = self.values[:, here].clone(), offsets - offsets[0], self.ids[samples], self.sites
            yield TokenEmbeddings(*given, self.labels[samples].clone(), self.truth[here].clone())

    def blind(self) -> Iterator[TokenEmbeddings]:
        """The blocks as cal and test give them: without labels and truth, unless they are to be shown."""
        return (block if self._shown else replace(block, labels=None, truth=None) for block in self)

    def rows(self, index: Tensor) -> Tensor:
        """[L, N, d]."""
        return self.values[:, index]


class Axes:
    """Concepts whose vectors are the planted axes."""

    vectors = torch.eye(C, WIDTH).expand(len(SITES), -1, -1)

    def activate(self, block: TokenEmbeddings) -> Tensor:
        """[L, T, C]."""
        return block.values @ self.vectors.transpose(1, 2)


def check_detector(detector: types.Detector) -> None:
    """Raises where a score has a wrong shape, depends on anything but the sample's own tokens, or falls as all of these rise."""
    name = _named(detector, "pool", calibrate_on=("tokens", "samples"))
    concepts, mine = Axes(), _fitted(detector, MadeUp(), Axes())

    def pool(blocks: MadeUp, shift: float = 0.0) -> Tensor:
        return torch.cat([mine.pool(concepts.activate(block) + shift, block) for block in blocks.blind()], 1)

    scores = _same_everywhere(f"{name}.pool", pool, (len(SITES), S, C))
    there = torch.tensor(LENGTHS) > 0
    _need((scores[:, ~there] == -torch.inf).all(), f"{name}.pool gives a sample without tokens a score; it must be -inf")
    _need(scores[:, there].isfinite().all(), f"{name}.pool gives a sample with tokens a score that is not finite")
    raised = pool(MadeUp(), 1.0)[:, there] - scores[:, there]
    _need((raised > -TOLERANCE).all(), f"{name}.pool is not monotone: a score falls when every activation rises by 1")
    block = next(MadeUp().blind())
    given = concepts.activate(block)
    mine.pool(given, block)
    _need(torch.equal(given, concepts.activate(block)), f"{name}.pool changes the activations that other detectors read too")


def check_concept_method(method: types.ConceptMethod) -> None:
    """Raises where units have a wrong shape, are not repeatable, or where a token's activation depends on other tokens."""
    name, train = _named(method, "fit"), MadeUp()
    fitted = _once(f"{name}.fit", lambda: method.fit(train))
    _need(torch.equal(train.values, MadeUp().values), f"{name}.fit changes the tokens it is given")
    if isinstance(fitted, types.Units):
        _check_units(fitted, name)
    concepts = _concepts(fitted)
    _named(concepts, "vectors", "activate")

    def activate(blocks: MadeUp, fitted: types.Concepts = concepts) -> Tensor:
        return torch.cat([fitted.activate(block) for block in blocks.blind()], 1)

    found = _same_everywhere(f"{type(concepts).__name__}.activate", activate, (len(SITES), sum(LENGTHS), C))
    _need(found.dtype == torch.float32, f"{name}: activations are {found.dtype}; they must be float32")
    if concepts.vectors is not None:
        _shaped(f"{name}: vectors", concepts.vectors, (len(SITES), C, WIDTH))
    again = activate(train, _concepts(_once(f"{name}.fit", lambda: method.fit(train))))
    _need(_close(found, again), f"{name}.fit gives other units each time; derive every random choice from train.seed")
    blocks = activate(train, _concepts(method.fit(MadeUp(per_block=3))))
    _need(_close(found, blocks, 1e-2), f"{name}.fit depends on the block size; accumulate over blocks, in float64")
    lonely = activate(train, _concepts(method.fit(MadeUp(positives=False))))[..., :-1]
    unread = found[..., :-1].isnan().flatten(1).all(1)  # NaN at a whole site: the method does not read it
    _need(not unread.all(), f"{name}: every activation is NaN")
    _need(lonely[~unread].isfinite().all(), f"{name}.fit: one concept without positives spoils the others; give it NaN alone")


def _concepts(fitted: types.Concepts | types.Units) -> types.Concepts:
    """The concepts, or the first units as if they had been matched."""
    if not isinstance(fitted, types.Units):
        return fitted
    return fitted.pick(torch.arange(C).clamp(max=len(fitted.units) - 1).expand(len(SITES), C))


def _check_units(fitted: types.Units, name: str) -> None:
    """Units have one name each, their slices are parts of the whole, and picking one gives its own activations."""
    k, block = len(fitted.units), next(MadeUp().blind())
    _need(len(set(fitted.units)) == k > 0, f"{name}: units must be K > 0 different names")
    whole = fitted.activate(block, slice(0, k))
    _shaped(f"{name}: activations of all units", whole, (len(SITES), block.values.shape[1], k))
    parts = torch.cat([fitted.activate(block, slice(i, i + 1)) for i in range(k)], 2)
    _need(_close(whole, parts), f"{name}: a unit's activations depend on the other units of its slice")
    index = torch.stack([torch.arange(C) % k, (torch.arange(C) + 1) % k])
    picked = fitted.pick(index).activate(block)
    own = torch.stack([layer[:, i] for layer, i in zip(whole, index, strict=True)])
    _need(_close(picked, own), f"{name}: pick must give the activations of the picked units")
    index[1, 0] = -1
    picked = fitted.pick(index).activate(block)
    alone = picked[1, :, 0].isnan().all() and _close(picked[0], own[0])
    _need(alone, f"{name}: an index of -1 must give NaN, and that alone")


def _explained() -> Explanation:
    """What is explained of a detection by the planted axes."""
    return Explanation(Axes(), torch.tensor([0, 1, 1]), torch.full((C,), 2.0, dtype=torch.float64))


def check_localizer(localizer: types.Localizer) -> None:
    """Raises where a map has a wrong shape, is not repeatable, or depends on labels or on other samples."""
    name = _named(localizer, "score", calibrate_on=("tokens", "detected"))
    explained = _explained()

    def score(blocks: MadeUp) -> Tensor:
        mine = _fitted(localizer, MadeUp(), explained)
        return torch.cat([mine.score(block, explained) for block in blocks.blind()])

    found = _same_everywhere(f"{name}.score", score, (sum(LENGTHS), C))
    _need(found.isfinite().all(), f"{name}.score gives a token a score that is not finite")


class Strongest:
    """The detector of the made-up score: the strongest token."""

    calibrate_on = "tokens"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K]."""
        return segment_max(activations, block.offsets)


PLANTED = (4, 0, 5)
"""The content token of the made-up sample that carries each concept."""


class MadeUpModel:
    """A backbone whose inputs can be opened: three blocks that add a bias to every token; the first and last positions are special."""

    name, revision, modality, n_layers, width = "made-up", "1", "text", 3, WIDTH

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {}
        self.blocks = [torch.nn.Linear(WIDTH, WIDTH, device="meta").to_empty(device="cpu") for _ in range(3)]  # draws nothing
        for block in self.blocks:
            block.requires_grad_(False)
            block.weight.copy_(torch.eye(WIDTH))
            block.bias.copy_(0.1 * torch.eye(WIDTH)[-1])

    def inputs(self, samples: Sequence[Sample]) -> Inputs:
        """Noise, and at each concept's planted token three times its axis; the sample itself is not looked at."""
        leaf = 0.1 * torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(2))
        for c, token in enumerate(PLANTED):
            leaf[0, token + 1, c] += 3.0
        positions = torch.ones(1, 9, dtype=torch.bool)
        positions[:, [0, -1]] = False
        return Inputs({"leaf": leaf}, positions, torch.stack([torch.arange(7), torch.arange(1, 8)], 1))

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """The blocks' outputs."""
        states, here = [], inputs.tensors["leaf"]
        for block in self.blocks:
            here = block(here)
            states.append(here)
        values = torch.stack([states[site.layer][inputs.positions] for site in sites])
        offsets = torch.nn.functional.pad(inputs.positions.sum(1).cumsum(0), (1, 0))
        return Embedded(values, offsets, inputs.regions, torch.zeros(len(sites), len(here), WIDTH))

    def opened(self, inputs: Inputs) -> Opened:
        """A removed token is zero."""
        cells = torch.tensor([-1, *range(7), -1])
        return Opened(inputs, "leaf", cells, 2, torch.zeros(1, 1, 1), self.blocks)


def made_up_probe(directions: Tensor | None = None) -> SampleProbe:
    """A sample of seven tokens; f_c is the strongest activation of concept c, or its cosine to directions [C, d]."""
    model = MadeUpModel()
    zero, one = torch.zeros(len(SITES), 1, WIDTH), torch.ones(len(SITES), 1, WIDTH)
    function = Function(model, _explained(), Strongest(), Affine(zero, one), SITES, 4, 5)  # type: ignore[arg-type]
    subject = Subject("sample-0", model.opened(model.inputs([])), {})
    return SampleProbe(function, subject, function.kind_of(directions))


def check_explainer(explainer: types.Explainer) -> None:
    """Raises where an attribution has a wrong shape, is not repeatable, depends on what else is asked, or misses a planted token.

    The planted token is the one that the concept's score is read from; where the explainer compares by directions of its own it is
    not asked for: a cosine has no gradient along a token.
    """
    name = _named(explainer, "needs", "forwards", "explain", calibrate_on=("tokens", "detected"))
    unknown = set(explainer.needs) - {"inputs", "gradients"}
    _need(explainer.needs and not unknown, f"{name}.needs is {set(explainer.needs)}; allowed: inputs, gradients")
    mine, concepts = _fitted(explainer, MadeUp(), _explained()), [2, 0]
    directions = getattr(mine, "directions", None)
    if directions is not None:
        _shaped(f"{name}.directions", directions, (C, WIDTH))
    probe = made_up_probe(directions)
    price = mine.forwards(probe.tokens, len(concepts))
    _need(isinstance(price, int) and price > 0, f"{name}.forwards is {price!r}; it must be a number of forward passes")
    found = _once(f"{name}.explain", lambda: mine.explain(probe, concepts))
    _shaped(f"{name}.explain", found, (probe.tokens, len(concepts)))
    _need(found.dtype == torch.float32, f"{name}.explain gives {found.dtype}; it must be float32")
    _need(found.isfinite().all() and not found.requires_grad, f"{name}.explain must give finite numbers without a graph")
    _need(torch.equal(probe.leaf, made_up_probe().leaf), f"{name}.explain changes the sample that other explainers read too")
    again = mine.explain(made_up_probe(directions), concepts)
    _need(_close(found, again), f"{name}.explain gives other values each time; derive every random choice from probe.generator")
    alone = mine.explain(made_up_probe(directions), concepts[1:])
    _need(_close(found[:, 1:], alone), f"{name}.explain of a concept depends on the other concepts it is asked for")
    places = [PLANTED[c] for c in concepts]
    _need(
        directions is not None or found.argmax(0).tolist() == places, f"{name} does not find the token its score is read from"
    )


def check_backbone(
    backbone: types.Backbone,
    samples: Sequence[Sample] = (),
    tolerance: float = 2e-3,
    own: Callable[[Inputs], Mapping[int, Tensor]] | None = None,
) -> None:
    """Raises where a token is not where its region says, is not the same alone and in a batch, or a site is not the one asked for.

    own: layer -> [B, N, d], what the model's own library gives as the outputs of its blocks. Nothing else can tell that layers are off
    by one, or that a norm was applied to all of them.
    """
    members = ("name", "revision", "n_layers", "width", "identity", "inputs", "forward")
    name, samples = _named(backbone, *members, modality=("image", "text", "tokens")), samples or made_up_samples(4)
    json.dumps(dict(backbone.identity))
    sites = [Site(i) for i in getattr(backbone, "layers", range(backbone.n_layers + 1))]
    inputs, images = backbone.inputs(samples), backbone.modality == "image"
    lengths = inputs.positions.sum(1).cpu()
    _shaped(f"{name}.inputs: regions", inputs.regions, (int(lengths.sum()), 4 if images else 2))
    _need((inputs.views is not None) == images, f"{name}.inputs: one view per image, and None for anything else")

    def embed(batch: Sequence[Sample], wanted: Sequence[Site] = sites) -> tuple[Tensor, Tensor, Tensor]:
        with torch.inference_mode():
            done = backbone.forward(backbone.inputs(batch), wanted)
        return done.values.float().cpu(), done.offsets.cpu(), done.summary.float().cpu()

    values, offsets, summary = _once(f"{name}.forward", lambda: embed(samples))
    _shaped(f"{name}.forward: values", values, (len(sites), int(lengths.sum()), backbone.width))
    _shaped(f"{name}.forward: summary", summary, (len(sites), len(samples), backbone.width))
    _need(values.isfinite().all(), f"{name}.forward gives a value that is not finite")
    _need(offsets.tolist() == [0, *lengths.cumsum(0).tolist()], f"{name}.forward: offsets do not fit the inputs' positions")
    _need(_close(values, embed(samples)[0], tolerance), f"{name}.forward gives other values each time; is it in eval mode?")
    for s, sample in enumerate(samples):
        alone, _, its = embed([sample])
        same = _close(alone, values[:, offsets[s] : offsets[s + 1]], tolerance) and _close(its[:, 0], summary[:, s], tolerance)
        _need(same, f"{name}: sample {sample.id!r} differs alone and in a batch; padding or attention masks are wrong")
    if own is not None:
        _check_own(name, own(inputs), inputs, values, sites, tolerance)
    if backbone.modality != "tokens":
        image = samples[0].image if images else None
        size = None if image is None else (image.height, image.width)
        try:
            check_layers(values, backbone, sites)
            check_regions(backbone, size)
            check_place(backbone, size)
        except HarnessError as error:
            raise AssertionError(str(error)) from error
    for i in (0, len(sites) - 1):
        same = _close(embed(samples, sites[i : i + 1])[0][0], values[i], tolerance)
        _need(same, f"{name}.forward gives site {sites[i].label} other values alone than among others")
    backward = embed(samples, sites[::-1])[0].flip(0)
    _need(_close(backward, values, tolerance), f"{name}.forward does not give the sites in the order they are asked for")
    for stream in STREAMS[1:]:
        try:
            other = embed(samples, [Site(sites[0].layer, stream)])[0][0]
        except HarnessError:
            continue
        _need(not torch.equal(other, values[0]), f"{name} answers stream {stream!r} with the residual one; refuse it")


def _check_own(
    name: str, own: Mapping[int, Tensor], inputs: Inputs, values: Tensor, sites: Sequence[Site], tolerance: float
) -> None:
    for site, mine in zip(sites, values, strict=True):
        if site.layer in own:
            theirs = own[site.layer].float().cpu()[inputs.positions.cpu()]
            what = f"{name}.forward: layer {site.label} is not the output of block {site.layer} as the library gives it"
            _need(theirs.shape == mine.shape and _close(theirs, mine, tolerance), what)


def check_dataset(load: Callable[..., Any], modality: types.Modality, rows: int = 50, **options: Any) -> None:
    """Raises where a split or column is missing, an id repeated, a region misplaced, or a second reading differs."""
    first, second = load(**options), load(**options)
    needed = ["id", "concepts", "regions", *([] if modality == "tokens" else [modality])]
    for split in SPLITS:
        _need(split in first and len(first[split]) > 0, f"split {split!r} is missing or empty")
        lacks = [column for column in needed if column not in first[split].column_names]
        _need(not lacks, f"split {split!r} has no column {', '.join(lacks)}")
        head, again = (found[split].select(range(min(rows, len(found[split])))) for found in (first, second))
        _need(all(head[c][:] == again[c][:] for c in needed[:3]), f"split {split!r} is not the same when it is loaded again")
        for row in head:
            for region in row["regions"] or ():
                problem = _misplaced(region, row, modality)
                _need(not problem, f"split {split!r}, sample {row['id']!r}, concept {region['concept']!r}: {problem}")
    ids = [name for split in SPLITS for name in first[split]["id"]]
    _need(
        len(set(ids)) == len(ids) and all(ids), "an id is empty or there twice; a sample needs one of its own, over all splits"
    )


def _misplaced(region: dict[str, Any], row: dict[str, Any], modality: str) -> str | None:
    if modality == "image":
        try:
            shape = rle_mask([region["rle"]]).shape
        except (ValueError, KeyError, TypeError) as error:
            return f"bad mask; {error}"
        size = row["image"].size[::-1]
        return None if shape == size else f"the mask is {shape}, the image {size} (height, width)"
    end = len(row["text"]) if modality == "text" else float("inf")
    good = 0 <= region["start"] < region["end"] <= end
    return None if good else f"bad span {region['start']}..{region['end']}"


def check_scorer(scorer: types.Scorer, samples: Sequence[Sample] = ()) -> None:
    """Raises where scores have a wrong shape, are not repeatable, or depend on the other samples of a call."""
    name, samples = _named(scorer, "score", calibrate_on=("samples", "fixed")), samples or made_up_samples(S)
    labels = MadeUp().labels.numpy()[[i % S for i in range(len(samples))]]
    mine = _fitted(scorer, samples, labels, 5)
    scores = _once(f"{name}.score", lambda: mine.score(samples, CONCEPTS))
    good = scores.shape == (len(samples), C) and scores.dtype == np.float64
    _need(good, f"{name}.score is {scores.dtype} {list(scores.shape)}; it must be float64 [S, C] = {[len(samples), C]}")
    answered = scorer.calibrate_on == "fixed" or not np.isnan(scores).any()
    _need(answered, f"{name}.score is NaN, which means no answer, and only a scorer with a fixed cutoff may give none")
    again = mine.score(samples, CONCEPTS)
    _need(np.array_equal(scores, again, equal_nan=True), f"{name}.score gives other scores each time")
    apart = np.concatenate([mine.score([sample], CONCEPTS) for sample in reversed(samples)])[::-1]
    _need(np.allclose(scores, apart, equal_nan=True), f"{name}.score of a sample depends on the other samples or their order")


def check_metric(metric: types.Metric) -> None:
    """Raises where a metric leaves its range, counts what is unknown, misreads weights, or gives a number where there is none."""
    members = ("unit", "range", "chance", "higher_is_better", "version", "compute")
    name = _named(metric, *members, kind=("detection", "localization", "insertion", "deletion"))
    g, blocks, tokens = torch.Generator().manual_seed(3), MadeUp(), metric.kind == "localization"
    curves = metric.kind in ("insertion", "deletion")  # a sample was explained, or nothing is known of it
    truth = blocks.truth if tokens else blocks.labels.to(torch.int8) * (2 if curves else 1) - int(curves)
    truth[:, -1] = truth[:, -1].clamp(max=-int(curves))
    offsets = blocks.offsets if tokens else torch.arange(S + 1)
    scores = torch.rand(truth.shape, generator=g, dtype=torch.float64)
    weights = torch.randint(0, 4, (5, S), generator=g).float()
    weights[:, :2] += 1

    def compute(scores: Tensor, weights: Tensor = weights, places: Sequence[int] = range(S)) -> Tensor:
        rows = torch.cat([torch.arange(int(offsets[s]), int(offsets[s + 1])) for s in places])
        ends = torch.tensor([0, *(int(offsets[s + 1] - offsets[s]) for s in places)]).cumsum(0)
        decisions = scores >= 0.5
        return metric.compute(Evaluation(scores[rows], decisions[rows], truth[rows], ends, torch.ones(C).bool()), weights)

    found = _once(f"{name}.compute", lambda: compute(scores))
    _shaped(f"{name}.compute", found, (len(weights), C))
    _need(found.dtype == torch.float64, f"{name}.compute gives {found.dtype}; it must be float64")
    _need(found[:, -1].isnan().all(), f"{name} gives a concept without positives a value; it must be NaN, never 0 or -1")
    right, wrong = (compute(torch.where(truth == value, 0.9, 0.1).double())[:, 0] for value in (1, 0))
    if curves and not metric.higher_is_better:
        right, wrong = wrong, right
    every = torch.cat([found.flatten(), right, wrong])
    low, high = metric.range
    _need(not ((every < low - TOLERANCE) | (every > high + TOLERANCE)).any(), f"{name} leaves its range {metric.range}")
    better = (right > wrong) if metric.higher_is_better else (right < wrong)
    _need((better | wrong.isnan()).all(), f"{name}: all right is not better than all wrong; is higher_is_better right?")
    _need(_close(found, compute(scores)), f"{name}.compute gives other values each time")
    each = torch.cat([compute(scores, row[None]) for row in weights])
    _need(_close(found, each), f"{name}: a weighting's value depends on the other weightings")
    drawn = [place for place in range(S) for _ in range(int(weights[0, place]))]
    copied = compute(scores, torch.ones(1, len(drawn)), drawn)
    _need(_close(found[:1], copied), f"{name}: weight 2 must be the sample twice, weight 0 the sample left out")
    _need(_close(found, compute(scores, weights.flip(1), range(S)[::-1])), f"{name} depends on the order of the samples")
    for other in (1 - scores, torch.full_like(scores, torch.nan)):
        hidden = compute(torch.where(truth < 0, other, scores))
        _need(_close(found, hidden), f"{name} counts items whose truth is unknown (-1)")


def made_up_samples(count: int) -> list[Sample]:
    """Samples with an image and a text, of different sizes."""
    g = np.random.default_rng(7)
    images = [PIL.Image.fromarray(g.integers(0, 256, (24 + 8 * (i % 3), 40, 3), dtype=np.uint8)) for i in range(count)]
    return [Sample(f"sample-{i}", image, " ".join(["a red cube"] * (i % 4 + 1))) for i, image in enumerate(images)]


def _same_everywhere(what: str, run: Callable[[MadeUp], Tensor], shape: tuple[int, ...]) -> Tensor:
    """What `run` gives for the made-up split, after checking that calls, block sizes and the order of samples change nothing."""
    try:
        whole = _once(what, lambda: run(MadeUp()))
    except (TypeError, AttributeError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise AssertionError(f"{what} fails on a block without labels and truth, as cal and test give it; {cause}") from error
    _shaped(what, whole, shape)
    _need(_close(whole, run(MadeUp())), f"{what} gives other values each time; derive every random choice from the run's seed")
    _need(_close(whole, run(MadeUp(shown=True))), f"{what} looks at labels or truth, which cal and test do not show")
    for size in (1, 5):
        _need(_close(whole, run(MadeUp(size))), f"{what} of a sample depends on the other samples of its block")
    mixed, axis = [*range(1, S, 2), *range(0, S, 2)], len(shape) - 2
    lengths = LENGTHS if shape[axis] == sum(LENGTHS) else (1,) * S
    parts = torch.split(whole, list(lengths), axis)
    same = _close(torch.cat([parts[place] for place in mixed], axis), run(MadeUp(places=mixed)))
    _need(same, f"{what} depends on the order of the samples")
    return whole


def _once(what: str, run: Callable[[], T]) -> T:
    """What `run` returns; raises where it draws from a global random generator of torch, numpy or Python."""

    def luck() -> list[object]:
        return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]

    before, done = luck(), run()
    _need(before == luck(), f"{what} draws from a global random generator; derive one of its own from the run's seed")
    return done


def _fitted(part: T, *given: Any) -> T:
    """The part, fitted where it has something to fit."""
    fit: Callable[..., T] = getattr(part, "fit", lambda *_: part)
    done = _once(f"{type(part).__name__}.fit", lambda: fit(*given))
    _need(done is not None, f"{type(part).__name__}.fit returns nothing; it must return the fitted part")
    return done


def _named(part: Any, *members: str, **choices: tuple[str, ...]) -> str:
    """The part's class name, after checking that it has the members of its Protocol."""
    name = type(part).__name__
    lacks = [member for member in (*members, *choices) if not hasattr(part, member)]
    _need(not lacks, f"{name} has no {', '.join(lacks)}; see its Protocol in harness.types")
    for member, allowed in choices.items():
        value = getattr(part, member)
        _need(value in allowed, f"{name}.{member} is {value!r}; allowed: {', '.join(allowed)}")
    return name


def _shaped(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    _need(tensor.shape == shape, f"{what} has shape {list(tensor.shape)}; it must be {list(shape)}")


def _close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Same shape, NaN and infinity in the same places, and everything else within a share of the largest value."""
    size = float(a[a.isfinite()].abs().max()) if a.isfinite().any() else 1.0
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), 0.0, tolerance * max(size, 1e-6), equal_nan=True)


def _need(ok: object, sentence: str) -> None:
    if not ok:
        raise AssertionError(sentence)


# Rules beyond a kind's own check, each on its own, for a certificate


class Sealed:
    """Stands where labels or truth would be: `is None` may be asked of it; whatever else is asked raises."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("reads the labels or the truth of a block of cal or test; both are for fit(train) alone")

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __eq__ = __invert__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __and__ = __rand__ = _refuse
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        cls._refuse(cls())


def answering(kind: str, part: Any, nan: bool = False) -> Callable[[TokenEmbeddings], Tensor]:
    """The part, fitted on the made-up train split, as block -> its answer [L, S, C], [L, T, C] or [T, C].

    nan: every activation of the last concept is NaN, as it is where a concept has no vector.
    """
    concepts = Axes()
    if nan:
        concepts.vectors = concepts.vectors.clone()
        concepts.vectors[:, -1] = torch.nan
    if kind == "detectors":
        detector = _fitted(part, MadeUp(), concepts)
        return lambda block: detector.pool(concepts.activate(block), block)
    if kind == "concept_methods":
        return _concepts(part.fit(MadeUp(positives=not nan))).activate
    explained = Explanation(concepts, torch.tensor([0, 1, 1]), torch.full((C,), 2.0, dtype=torch.float64))
    localizer = _fitted(part, MadeUp(), explained)
    return lambda block: localizer.score(block, explained)


def answers(kind: str, part: Any) -> Tensor:
    """Numbers that a part gives for the made-up world, built and fitted anew: equal in every process, or it is not repeatable.

    Of a data set, the bytes of a hash of its first rows; of an explainer, its attributions.
    """
    if kind == "scorers":
        samples = made_up_samples(S)
        return torch.from_numpy(_fitted(part, samples, MadeUp().labels.numpy(), 5).score(samples, CONCEPTS))
    if kind == "metrics":
        world, tokens = MadeUp(), part.kind == "localization"
        truth = world.truth if tokens else world.labels.to(torch.int8)
        scores = torch.rand(truth.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        seen = Evaluation(scores, scores >= 0.5, truth, world.offsets if tokens else torch.arange(S + 1), torch.ones(C).bool())
        return part.compute(seen, torch.ones(1, S))  # type: ignore[no-any-return]
    if kind == "backbones":
        with torch.inference_mode():
            given = part.inputs(made_up_samples(2))
            return part.forward(given, [Site(0)]).values.float().cpu().clone()  # type: ignore[no-any-return]
    if kind == "datasets":
        rows = [
            [part[split].select(range(min(20, len(part[split]))))[c][:] for c in ("id", "concepts", "regions")]
            for split in SPLITS
        ]
        return torch.tensor(list(hashlib.sha256(json.dumps(rows).encode()).digest()))
    if hasattr(part, "needs"):
        mine = _fitted(part, MadeUp(), _explained())
        return mine.explain(made_up_probe(getattr(mine, "directions", None)), list(range(C)))  # type: ignore[no-any-return]
    answer = answering(kind, part)
    return torch.cat([answer(block) for block in MadeUp().blind()], -2)


def check_sealed(kind: str, part: Any) -> None:
    """Raises where a part looks at labels or truth that it must not see, even if what it gives does not show it."""
    answer, block = answering(kind, part), next(iter(MadeUp()))
    sealed: Any = Sealed()
    answer(replace(block, labels=sealed, truth=sealed))


def check_untouched(kind: str, part: Any) -> None:
    """Raises where a part changes the block it is given: the next method reads the same tensors."""
    answer, block = answering(kind, part), next(MadeUp().blind())
    before = block.values.clone(), block.offsets.clone()
    answer(block)
    same = torch.equal(before[0], block.values) and torch.equal(before[1], block.offsets)
    _need(same, "changes the values or offsets of the block that other methods read too; work on a copy")


def check_nan(kind: str, part: Any) -> None:
    """Raises where one concept without numbers (no vector, no positives) changes what is said of another."""
    block = next(MadeUp().blind())
    plain, broken = (answering(kind, part, nan)(block) for nan in (False, True))
    if kind == "concept_methods":  # another train split: what is asked is that the others have numbers
        there = ~plain[..., :-1].isnan()
        _need(broken[..., :-1][there].isfinite().all(), "one concept without positives spoils the others; give it NaN alone")
        return
    _need(plain.shape == broken.shape, "one concept whose activations are NaN changes the shape of the answer")
    _need(_close(plain[..., :-1], broken[..., :-1]), "one concept whose activations are NaN changes the others' scores")


def check_few(kind: str, part: Any) -> None:
    """Raises where a block of one token, or of a sample without tokens alone, cannot be answered."""
    answer, whole = answering(kind, part), next(MadeUp().blind())
    every = answer(whole)
    for place, what in ((1, "one token alone"), (2, "a sample without tokens alone")):
        here = answer(next(MadeUp(places=[place]).blind()))
        per_sample = kind == "detectors"
        rows = slice(place, place + 1) if per_sample else slice(*whole.offsets[place : place + 2].tolist())
        _need(_close(every[..., rows, :], here), f"answers otherwise for a block of {what} than beside others")


def check_ties(kind: str, part: Any) -> None:
    """Raises where tokens that are all the same, or all zero, give anything but numbers, or not the same to all alike."""
    answer, there = answering(kind, part), torch.tensor(LENGTHS) > 0
    usual = answer(next(MadeUp().blind()))
    read = ~usual.isnan().flatten(1).all(1) if usual.dim() == 3 else torch.tensor(True)
    for value in (0.0, 1.0):
        world = MadeUp()
        world.values.fill_(value)
        found = answer(next(world.blind()))
        found = found[read] if usual.dim() == 3 else found
        found = found[:, there] if kind == "detectors" else found
        _need(found.isfinite().all(), f"gives no number where every token is {value:g}")
        if kind == "concept_methods":
            _need(_close(found, found[:, :1].expand_as(found)), "gives equal tokens different activations")


def check_order(kind: str, part: Any) -> str | None:
    """Raises where an activation depends on where its token stands; for other kinds, which may, says that an answer does."""
    answer, world = answering(kind, part), MadeUp()
    index = torch.cat([torch.arange(int(a), int(b)).flip(0) for a, b in world.offsets.unfold(0, 2, 1)])
    before = answer(next(world.blind()))
    world.values = world.values[:, index]
    after = answer(next(world.blind()))
    if _close(before if kind == "detectors" else before[..., index, :], after):
        return None
    _need(kind != "concept_methods", "a token's activation depends on where the token stands among the others")
    return "its answer depends on the order of a sample's tokens, which this kind may"


def check_planted(kind: str, part: Any) -> str | None:
    """Raises where a supervised method ranks a concept's planted tokens no higher than others; of a localizer it is only said."""
    if kind == "concept_methods" and isinstance(part.fit(MadeUp()), types.Units):
        return "units without names are matched to concepts by the core"
    world, found = MadeUp(), answering(kind, part)(next(MadeUp().blind()))
    for layer in found if found.dim() == 3 else found[None]:
        for c, name in enumerate(CONCEPTS):
            truth = world.truth[:, c]
            above = (layer[truth == 1, c][:, None] > layer[truth == 0, c]).double().mean()
            if not layer[:, c].isnan().all() and above <= 0.7:
                _need(
                    kind == "localizers", f"ranks the planted tokens of {name!r} no higher than others; are concepts swapped?"
                )
                return f"ranks the planted tokens of {name!r} no higher than others: a floor, or tokens or concepts in the wrong place"
    return None


RULES: dict[str, dict[str, Callable[[str, Any], str | None]]] = {
    kind: {
        "labels out of sight": check_sealed,
        "blocks untouched": check_untouched,
        "NaN stays alone": check_nan,
        "few tokens": check_few,
        "ties": check_ties,
        "token order": check_order,
        **({} if kind == "detectors" else {"planted tokens": check_planted}),
    }
    for kind in ("detectors", "concept_methods", "localizers")
}
"""Kind -> name -> a rule beyond the kind's own check: it raises an AssertionError, or returns why it was not asked for."""


def contract(kind: str, part: Any) -> None:
    """The kind's own check. `part`: as built; of a data set, a pair (load, modality)."""
    if kind == "datasets":
        check_dataset(*part)
    elif hasattr(part, "needs") and kind == "localizers":
        check_explainer(part)
    else:
        checks: dict[str, Callable[[Any], None]] = {
            "detectors": check_detector,
            "concept_methods": check_concept_method,
            "localizers": check_localizer,
            "scorers": check_scorer,
            "metrics": check_metric,
            "backbones": check_backbone,
        }
        checks[kind](part)


class Cost(NamedTuple):
    """Seconds of one fit and one answer, and the bytes of the largest tensor made on the way, for so many tokens of width 8."""

    seconds: float
    bytes: int
    tokens: int


class _Largest(TorchFunctionMode):
    """Sees every tensor that a function of torch gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.bytes = max(self.bytes, made.nbytes)
        return made


def cost(kind: str, part: Any, copies: int = 40) -> Cost:
    """What a detector, concept method or localizer costs on copies of the made-up split, in one block."""
    world = MadeUp(places=list(range(S)) * copies, per_block=S * copies)
    block = next(world.blind())

    def once() -> None:
        if kind == "concept_methods":
            _concepts(part.fit(world)).activate(block)
        elif kind == "detectors":
            _fitted(part, world, Axes()).pool(Axes().activate(block), block)
        else:
            _fitted(part, world, _explained()).score(block, _explained())

    with _Largest() as seen:
        once()
    started = time.perf_counter()
    once()
    return Cost(time.perf_counter() - started, seen.bytes, block.values.shape[1])
