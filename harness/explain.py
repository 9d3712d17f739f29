"""f_c(x), the score that attribution explains: forward, train normalisation, activation and the detector's pooling, differentiable.

f_c is the concept's sample score as the detector sees it, at the concept's chosen layer and in the space its vector was fitted in; the
authors compare raw embeddings with normalised vectors (section 11.B7). One perturbed forward serves every concept and every kind of
vector. Which samples are explained depends on labels and seed alone, never on a detection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from harness.calibration import at_layer
from harness.embed import Affine, SplitBlocks
from harness.localize import Explanation, Job
from harness.tasks import Split
from harness.types import Backbone, Detector, Inputs, Opened, Progress, Site, TokenEmbeddings

STEPS = 10
"""Equal steps of an insertion or deletion curve."""
TINY = 1e-8


def pairs(split: Split, limit: int, seed: int) -> Tensor:
    """[S, C] bool: the (sample, concept) pairs to explain: per concept at most `limit` annotated positives, in a seeded order."""
    chosen = torch.zeros(split.labels.shape, dtype=torch.bool)
    order = sorted(range(len(split)), key=lambda i: hashlib.sha256(f"{seed}:{split.ids[i]}".encode()).digest())
    for c in range(split.labels.shape[1]):
        positives = [i for i in order if split.labels[i, c] and split.annotated[i]]
        chosen[positives[:limit], c] = True
    return chosen


@dataclass(frozen=True)
class Function:
    """f_c for every concept and every kind of vector at once: all of it that does not depend on the sample.

    kinds: None = the concept's own activation, as the detector sees it (always the first); a tensor [C, d] = cosine to its rows.
    """

    backbone: Backbone
    explained: Explanation
    detector: Detector
    normalize: Affine
    sites: tuple[Site, ...]
    batch_size: int
    seed: int
    kinds: list[Tensor | None] = field(default_factory=lambda: [None])

    def kind_of(self, directions: Tensor | None) -> int:
        """The place of a kind of vector, added where it is new."""
        for i, kind in enumerate(self.kinds):
            if kind is directions:
                return i
            if kind is not None and directions is not None and torch.equal(kind.nan_to_num(), directions.nan_to_num()):
                return i  # NaN: no vector
        self.kinds.append(directions)
        return len(self.kinds) - 1

    def __call__(self, inputs: Inputs, ids: tuple[str, ...]) -> Tensor:
        """[kinds, n, C]: the pooled scores of n inputs; differentiable."""
        layers = self.explained.layers
        needed = sorted(set(layers.tolist()))
        embedded = self.backbone.forward(inputs, [self.sites[i] for i in needed])
        device = self.normalize.centre.device
        raw = embedded.values.to(device)
        normal = (raw - self.normalize.centre[needed]) / self.normalize.scale[needed]
        nothing = torch.zeros_like(normal[0])
        place = {layer: i for i, layer in enumerate(needed)}
        values = torch.stack([normal[place[i]] if i in place else nothing for i in range(len(self.sites))])
        block = TokenEmbeddings(values, embedded.offsets.to(device), ids, self.sites)
        pooled = [self.detector.pool(self._activations(block, kind), block) for kind in self.kinds]
        return torch.stack([at_layer(scores, layers) for scores in pooled])

    def _activations(self, block: TokenEmbeddings, kind: Tensor | None) -> Tensor:
        if kind is None:
            return self.explained.concepts.activate(block)
        layers, units = self.explained.layers, torch.nn.functional.normalize(kind.nan_to_num(), dim=1).to(block.values.dtype)
        missing = kind.isnan().any(1)  # a NaN in a product would make every concept's gradient NaN
        columns: list[Tensor] = [torch.empty(0)] * len(layers)
        for layer in sorted(set(layers.tolist())):
            tokens = block.values[layer] / block.values[layer].norm(dim=1, keepdim=True).clamp(min=TINY)
            for c in (layers == layer).nonzero()[:, 0].tolist():
                columns[c] = tokens @ units[c]
        return torch.stack(columns, 1).masked_fill(missing, torch.nan).expand(len(block.values), -1, -1)


class Subject(NamedTuple):
    """What the probes of one sample share: its id, its opened inputs, and every masked score that was computed."""

    id: str
    opened: Opened
    memo: dict[bytes, Tensor]


@dataclass(frozen=True)
class SampleProbe:
    """`types.Probe`: one sample, and f_c of one kind of vector."""

    function: Function
    subject: Subject
    kind: int = 0

    @property
    def opened(self) -> Opened:
        """The sample's inputs."""
        return self.subject.opened

    @property
    def tokens(self) -> int:
        """How many tokens the sample has."""
        return int(self.opened.inputs.positions.sum())

    @property
    def leaf(self) -> Tensor:
        """The whole sample as the model's float input, in float32 whatever the model computes in."""
        return self.opened.inputs.tensors[self.opened.name][0].float()

    @property
    def batch_size(self) -> int:
        """The run's samples per forward pass."""
        return self.function.batch_size

    @property
    def generator(self) -> torch.Generator:
        """Seeded by the run's seed and the sample's id."""
        digest = hashlib.sha256(f"{self.function.seed}:{self.subject.id}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def layer(self, concept: int) -> int:
        """The block whose output the concept's score is read from."""
        return self.function.sites[int(self.function.explained.layers[concept])].layer

    def f(self, leaves: Tensor) -> Tensor:
        """[n, C]; differentiable."""
        return self._forward(leaves)[self.kind]

    def mask(self, keep: Tensor) -> Tensor:
        """[n, ...]: removed tokens are replaced with the baseline."""
        opened, leaf = self.opened, self.leaf
        every = torch.cat([keep.float().cpu(), torch.ones(len(keep), 1)], 1)  # -1 is the last column: no token, kept
        share = every[:, opened.cells.flatten().cpu()].reshape(len(keep), *opened.cells.shape).unsqueeze(opened.channel)
        share = share.to(leaf.device)
        return leaf * share + opened.baseline.to(leaf) * (1 - share)

    def masked(self, keep: Tensor) -> Tensor:
        """[n, C] float64 on the CPU, each mask once per sample."""
        keys = [row.numpy().tobytes() for row in keep.to(torch.uint8).cpu()]
        memo = self.subject.memo
        todo = [i for key, i in {key: i for i, key in enumerate(keys)}.items() if key not in memo]
        with torch.no_grad():
            for start in range(0, len(todo), self.batch_size):
                part = todo[start : start + self.batch_size]
                found = self._forward(self.mask(keep[part])).double().cpu()
                memo.update({keys[i]: found[:, j] for j, i in enumerate(part)})
        return torch.stack([memo[key][self.kind] for key in keys])

    def per_token(self, values: Tensor) -> Tensor:
        """[n, T]: sums over each token's places and channels."""
        flat = values.sum(self.opened.channel).flatten(1)
        cells = self.opened.cells.flatten().to(flat.device)
        out = flat.new_zeros(len(flat), self.tokens + 1)
        return out.index_add_(1, torch.where(cells < 0, self.tokens, cells), flat)[:, :-1]

    def random_masks(self, n: int, share: float = 0.5) -> Tensor:
        """[n, T] bool."""
        return torch.rand(n, self.tokens, generator=self.generator) < share

    def _forward(self, leaves: Tensor) -> Tensor:
        inputs, n = self.opened.inputs, len(leaves)
        tensors = {name: tensor.expand(n, *tensor.shape[1:]) for name, tensor in inputs.tensors.items()}
        tensors[self.opened.name] = leaves.to(inputs.tensors[self.opened.name].dtype)
        views = None if inputs.views is None else inputs.views * n
        many = Inputs(tensors, inputs.positions.expand(n, -1), inputs.regions.repeat(n, 1), views)
        return self.function(many, (self.subject.id,) * n)


class Curves(NamedTuple):
    """Areas under the insertion and the deletion curve, each [k] float64."""

    insertion: Tensor
    deletion: Tensor


def curves(probe: SampleProbe, scores: Tensor, concepts: Sequence[int]) -> Curves:
    """The areas for token maps [T, k] of the given concepts: tokens are inserted into, or deleted from, the sample strongest first.

    A curve is (f - f(empty)) / (f(whole) - f(empty)), clipped to [0, 1], at 11 equally spaced shares of the tokens; its area is the
    trapezoid's. NaN where the whole sample scores no more than the empty one. f is the detector's, whatever vector drew the map.
    After Petsiuk et al. 2018 (RISE); ours, not a reproduction: the paper's code has no such measure.
    """
    tokens, device = len(scores), scores.device
    order = scores.argsort(dim=0, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(tokens, device=device)[:, None].expand_as(order))
    counts = torch.tensor([round(tokens * step / STEPS) for step in range(STEPS + 1)], device=device)
    inserted = rank.T[:, None] < counts[None, :, None]  # [k, steps, T]
    detector = SampleProbe(probe.function, probe.subject)
    areas = []
    for keep in (inserted, ~inserted):
        found = detector.masked(keep.reshape(-1, tokens)).reshape(len(concepts), STEPS + 1, -1)
        f = found[torch.arange(len(concepts)), :, torch.tensor(list(concepts))]
        whole, empty = (f[:, -1], f[:, 0]) if keep is inserted else (f[:, 0], f[:, -1])
        gain = (whole - empty)[:, None]
        curve = ((f - empty[:, None]) / gain).clamp(0, 1)
        areas.append(torch.trapezoid(curve, dx=1 / STEPS, dim=1).masked_fill(~(gain[:, 0] > TINY), torch.nan))
    return Curves(*areas)


def price(localizer: object, tokens: int, concepts: int) -> int:
    """The forward passes that explaining one test sample costs: the explainer's own, and both curves of every concept."""
    own = getattr(localizer, "forwards", None)
    return (0 if own is None else own(tokens, concepts)) + 2 * (STEPS + 1) * concepts


@dataclass(frozen=True)
class Explanations:
    """What explaining a split gave: method -> map [T, C] (NaN where not explained), and method -> curve name -> [S, C]."""

    maps: dict[str, Tensor]
    curves: Mapping[str, Mapping[str, Tensor]]


def explain(
    split: SplitBlocks,
    which: int,
    jobs: Sequence[Job],
    functions: Mapping[str, Function],
    given: Mapping[str, Tensor],
    progress: Progress,
) -> Explanations:
    """Explains the pairs of a split (which = 0 for cal, 1 for test), sample by sample: all methods share its perturbed forwards.

    given: the maps of the methods that need no model. On test the curves of every method's map are drawn as well.
    """
    shape = (len(split.truth), len(split.concepts))
    maps = {
        job.name: given[job.name] if job.name in given else torch.full(shape, torch.nan, device=split.truth.device)
        for job in jobs
    }
    names = Curves._fields if which else ()
    areas = {job.name: {name: torch.full(split.labels.shape, torch.nan, dtype=torch.float64) for name in names} for job in jobs}
    wanted = torch.stack([job.pairs[which] for job in jobs if job.pairs is not None]).any(0)
    places = wanted.any(1).nonzero()[:, 0].tolist()
    with progress(f"explaining {split.name}", len(places), "samples") as advance:
        for i in places:
            here = slice(int(split.offsets[i]), int(split.offsets[i + 1]))
            if here.stop > here.start:
                _explain_sample(split, i, here, jobs, functions, maps, areas if which else {})
            advance(1)
    return Explanations(maps, areas)


def _explain_sample(
    split: SplitBlocks,
    i: int,
    here: slice,
    jobs: Sequence[Job],
    functions: Mapping[str, Function],
    maps: dict[str, Tensor],
    areas: Mapping[str, dict[str, Tensor]],
) -> None:
    """One sample, for every method whose pairs hold it; what is computed goes into `maps` and `areas`."""
    backbone = split.backbone
    opened = backbone.opened(backbone.inputs([split.sample(i)]))  # type: ignore[attr-defined]
    subjects: dict[int, Subject] = {}
    for job in jobs:
        concepts = [] if job.pairs is None else job.pairs[split.name == "test"][i].nonzero()[:, 0].tolist()
        if not concepts:
            continue
        function = functions[job.name]
        subject = subjects.setdefault(id(function), Subject(split.ids[i], opened, {}))
        if job.explains:
            probe = SampleProbe(function, subject, function.kind_of(getattr(job.localizer, "directions", None)))
            scored = probe.masked(torch.ones(1, probe.tokens, dtype=torch.bool))[0].isfinite()
            known = [c for c in concepts if scored[c]]
            if known:
                maps[job.name][here, known] = job.localizer.explain(probe, known).to(maps[job.name])
        if areas:
            drawn = curves(SampleProbe(function, subject), maps[job.name][here][:, concepts].cpu(), concepts)
            for name, values in drawn._asdict().items():
                areas[job.name][name][i, concepts] = values
