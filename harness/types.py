"""The words of the project as types: frozen dataclasses for data, Protocols for behaviour. No torch at import.

Shape letters, everywhere: L sites (layers) · S samples in a block · T tokens in a block (ragged, packed, never padded) ·
d width · C concepts of the task · K units of a concept method (K = C when supervised) · P sparsity levels · B bootstrap weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from torch import Tensor

LEVELS: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The paper's sparsity levels: the fraction of in-concept calibration tokens (or positive samples) at or above the cutoff."""

STREAMS = ("residual", "attention", "mlp")
SPLITS = ("train", "cal", "test")
Modality = Literal["image", "text", "tokens"]
CalibrateOn = Literal["tokens", "samples", "fixed"]
FitOn = Literal["tokens", "summary"]


@dataclass(frozen=True)
class Entry:
    """One thing a plugin offers; `target` ("module:attribute") is imported on first use, `extra` is the pip extra it needs.

    needs: what must be on the machine beside the plugin, so that `harness doctor` can say whether it is: `data:<path>`, a file below
    `$HARNESS_DATA/<name>` (or the option `folder`; wildcards, `|` for other places, `{option}` of the task's data set),
    `package:<import name>`, `hub:<model id>`. bring: what to do where it is not.
    """

    name: str
    target: str
    summary: str
    extra: str | None = None
    needs: tuple[str, ...] = ()
    bring: str = ""


@dataclass(frozen=True)
class Method:
    """A named recipe: either concepts + detector (+ localizer), or a scorer alone. Parts are referred to by registered name.

    A part may carry an argument and options: `linear:estimator=adam`. `fit_on="summary"` fits and scores on the sample's
    summary embedding (CLS, or the mean token where a model has none) instead of its tokens. `match` names how units without
    names find their concept: `best` (best cal F1 each, the paper's) or `one-to-one` (Hungarian). `choose_on="test"` picks the
    cutoff and the layer on test: a ceiling, marked, never ranked. `localize_on="explained"` localizes the samples that
    attribution explains and no others.
    """

    name: str
    summary: str = ""
    concepts: str | None = None
    detector: str | None = None
    localizer: str | None = None
    scorer: str | None = None
    fit_on: FitOn = "tokens"
    match: Literal["best", "one-to-one"] = "best"
    choose_on: Literal["cal", "test"] = "cal"
    localize_on: Literal["all", "explained"] = "all"
    tags: tuple[str, ...] = ()


class Site(NamedTuple):
    """Where in the model: the output of block `layer` (0..n-1, before any final norm); layer n = after the final norm."""

    layer: int
    stream: str = "residual"

    @property
    def label(self) -> str:
        """`11` for the residual stream, `attention.11` for another."""
        return str(self.layer) if self.stream == "residual" else f"{self.stream}.{self.layer}"


class View(NamedTuple):
    """The one geometry of pixels and masks: resize to `height` x `width`, then take the window (zeros outside the image)."""

    height: int
    width: int
    window_top: int
    window_left: int
    window_height: int
    window_width: int


@dataclass(frozen=True)
class Sample:
    """One sample as a backbone or scorer sees it: no labels."""

    id: str
    image: PIL.Image.Image | None = None
    text: str | None = None


@dataclass(frozen=True)
class Weights:
    """A pretrained model on this machine: its name in results, its folder, and what identifies its weights (commit or hash)."""

    name: str
    folder: Path
    revision: str


@dataclass(frozen=True)
class Setup:
    """What a run asks of a backbone, or of a scorer that has a model; None = the backbone's own default.

    weights: finds a registered model, such as `hf:<id or folder>`, whichever plugin offers it.
    size_asked: False where `image_size` is the task's default alone; a model of one fixed size then keeps its own.
    """

    device: str = "cpu"
    dtype: str = "float32"
    image_size: int | None = None
    cache_dir: Path = Path(".cache")
    weights: Callable[[str], Weights] | None = field(default=None, compare=False)
    size_asked: bool = True


@dataclass(frozen=True)
class Inputs:
    """A batch ready for the model.

    tensors: keyword arguments of the model (float tensors or ids, on the device).
    positions [B, N] bool: which positions of the model's output are content tokens, by position: never padding, never special tokens.
    regions [T, 4] int (top, left, bottom, right in window pixels) or [T, 2] int (start, end characters), packed in sample order.
    views: one per image; None for text.
    """

    tensors: Mapping[str, Tensor]
    positions: Tensor
    regions: Tensor
    views: tuple[View, ...] | None = None


@dataclass(frozen=True)
class Embedded:
    """What one forward pass gives: values [L, T, d], offsets [S+1] int64, regions as in `Inputs`, summary [L, S, d], views."""

    values: Tensor
    offsets: Tensor
    regions: Tensor
    summary: Tensor
    views: tuple[View, ...] | None = None


@dataclass(frozen=True)
class TokenEmbeddings:
    """A block of whole samples at every requested site, normalised as the run names it.

    values [L, T, d] float32 · offsets [S+1] int64 · ids S strings. Where a method works on summaries, the summary is the
    sample's only token, with its own centre and scale.
    labels [S, C] bool: from the data set, never from the backbone; None where a method may not look (cal, test).
    truth [T, C] int8: 1 in the concept, 0 not, -1 unknown (the sample is not annotated, or its mask was lost in the view).
    """

    values: Tensor
    offsets: Tensor
    ids: tuple[str, ...]
    sites: tuple[Site, ...]
    labels: Tensor | None = None
    truth: Tensor | None = None


class Blocks(Protocol):
    """One split as a re-iterable sequence of `TokenEmbeddings`, with what is known before any value is read.

    truth [T, C] int8, labels [S, C] bool and offsets [S+1] are those of the whole split. `seed` is the run's; every random
    choice of a method derives from it. A value is (x - centre) / scale, x being the model's own, centre and scale [L, 1, d]; the
    backbone is there for methods that need another part of the model, such as a text tower.
    """

    concepts: tuple[str, ...]
    sites: tuple[Site, ...]
    width: int
    seed: int
    backbone: Backbone

    @property
    def centre(self) -> Tensor: ...

    @property
    def scale(self) -> Tensor: ...

    ids: tuple[str, ...]
    labels: Tensor
    truth: Tensor
    offsets: Tensor

    def __iter__(self) -> Iterator[TokenEmbeddings]: ...

    def rows(self, index: Tensor) -> Tensor:
        """[L, N, d]: the tokens at the given positions of the split (int64, ascending), in one pass."""
        ...


@dataclass(frozen=True)
class Opened:
    """One sample's inputs, opened for perturbation and gradients: a float leaf, and the token that each part of it belongs to.

    name: the leaf's in `inputs.tensors`, shape [1, ...]. cells: int64, the leaf's shape without its batch and channel axes; the
    token (0..T-1) of each place, -1 = none. channel: the leaf's channel axis, counted with the batch axis. baseline: what a removed
    token is replaced with, broadcastable to the leaf. blocks: the model's blocks; the content positions of their outputs are
    `inputs.positions`.
    """

    inputs: Inputs
    name: str
    cells: Tensor
    channel: int
    baseline: Tensor
    blocks: Sequence[Any]


class Progress(Protocol):
    """Shows work that may take longer than two seconds: `with progress("embedding", 100, "samples") as advance: advance(8)`."""

    def __call__(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]: ...


class Backbone(Protocol):
    """A frozen model that turns samples into token embeddings at every requested site in one forward pass.

    `revision` identifies the weights (a hash or commit); `identity` is everything else that changes a value (geometry,
    dtype, preprocessing) as plain JSON data: both are part of the cache key and of the result. An optional
    `opened(inputs) -> Opened` opens the inputs of one sample for attribution; without it attribution is refused in one line.
    """

    name: str
    revision: str
    modality: Modality
    n_layers: int
    width: int
    identity: Mapping[str, Any]

    def inputs(self, samples: Sequence[Sample]) -> Inputs: ...

    def forward(self, inputs: Inputs, sites: Sequence[Site]) -> Embedded:
        """Differentiable; the core calls it under `torch.inference_mode`."""
        ...


class Concepts(Protocol):
    """Fitted units, one per concept. `vectors` [L, C, d], one direction per unit in the normalised space, or None for no directions.

    An optional `sparse = True` says that an activation of 0 means off: only activations above 0 then enter a cutoff (section 8).
    """

    @property
    def vectors(self) -> Tensor | None: ...

    def activate(self, block: TokenEmbeddings) -> Tensor:
        """[L, T, C] float32."""
        ...


@runtime_checkable
class Units(Protocol):
    """Fitted units without names (clusters, dictionary atoms): the core matches them to concepts on cal, slice by slice.

    units: K names, the same at every layer. Never activated all at once on all tokens: K may be 65,536. An optional
    `select(cal, positives) -> Units` prunes on blind cal blocks, positives [C] being the in-concept cal tokens of each concept.
    `sparse` as in `Concepts`; an optional `note` says what the fit left out, for the result.
    """

    @property
    def units(self) -> Sequence[str]: ...

    def activate(self, block: TokenEmbeddings, units: slice) -> Tensor:
        """[L, T, k] float32."""
        ...

    def pick(self, index: Tensor) -> Concepts:
        """The units index [L, C] int64 as concepts; NaN for an index of -1."""
        ...


class ConceptMethod(Protocol):
    """Fits units on train tokens only: one per concept (`Concepts`), or units that have no names yet (`Units`).

    An optional `check(backbone, sites)` raises, before anything is computed, where the method cannot work on a run.
    An optional `needs_truth = False` says that it reads no token truth, and so fits a train split without annotated tokens.
    """

    def fit(self, train: Blocks) -> Concepts | Units: ...


class Detector(Protocol):
    """How a sample's token activations become one score, and what its cutoff is calibrated on. Nothing else.

    `calibrate_on = "tokens"`: the cutoff is a quantile of the in-concept calibration tokens' activations.
    `calibrate_on = "samples"`: of the pooled scores of the positive calibration samples.
    An optional `fit(train, concepts)` returns the fitted detector; without it the detector is used as it is. An optional
    `needs_truth = True` says that this fit reads the truth of train tokens.
    """

    @property
    def calibrate_on(self) -> CalibrateOn: ...

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, T, K] -> [L, S, K]; a sample without tokens pools to -inf."""
        ...


class Price(NamedTuple):
    """What a scorer's answers cost: questions, those already answered by an earlier run, and at most so many more to localize."""

    questions: int
    answered: int
    localizing: int = 0


class Scorer(Protocol):
    """Gives sample scores with no embeddings (prompting, bag of words, guessing). `calibrate_on` is "samples" or "fixed".

    fixed: detected iff score >= 0.5, NaN = no answer; no level is chosen. It is given a few samples at a time.
    Optional, in this order: `open(setup, modality) -> Scorer` before anything is computed, which raises where it cannot work;
    `only_test = True`: cal is left out, since a fixed cutoff chooses nothing on it; `price(samples, concepts) -> Price`, which the
    plan prints; `fit(train, labels, seed) -> Scorer`; `notes`, a mapping of what was asked and dropped, for the result; and
    `locate(samples, detected [S, C], concepts)`: per sample the regions `{concept, start, end}` or `{concept, rle}` of the detected
    concepts, as a data set gives them. The core turns these into token masks as it does with the truth; None = it does not locate.
    """

    @property
    def calibrate_on(self) -> CalibrateOn: ...

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray:
        """[S, C] float64."""
        ...


class Explained(Protocol):
    """What a localizer may use of the detection it explains: everything at each concept's chosen layer.

    layers [C] int64: index into the block's sites · cutoffs [C] float64: the detection cutoff of a super-activator token,
    calibrated on tokens at the chosen level · vectors [C, d] or None.
    """

    @property
    def layers(self) -> Tensor: ...

    @property
    def cutoffs(self) -> Tensor: ...

    @property
    def vectors(self) -> Tensor | None: ...

    def activations(self, block: TokenEmbeddings) -> Tensor:
        """[T, C] float32."""
        ...

    def embeddings(self, block: TokenEmbeddings, concept: int) -> Tensor:
        """[T, d] float32: the block's tokens at that concept's layer."""
        ...


class Localizer(Protocol):
    """Scores tokens at each concept's chosen layer; the core turns scores into masks and token metrics.

    `calibrate_on = "tokens"`: the map cutoff is a quantile of the scores of all in-concept calibration tokens, and levels below
    the detection level are not tried when the detector is calibrated on the same tokens (method section 7.1).
    `calibrate_on = "detected"`: of those in detected calibration samples (section 7.3).
    An optional `fit(train, explained)` returns the fitted localizer.
    """

    @property
    def calibrate_on(self) -> Literal["tokens", "detected"]: ...

    def score(self, block: TokenEmbeddings, explained: Explained) -> Tensor:
        """[T, C] float32."""
        ...


class Probe(Protocol):
    """One sample as an explainer sees it: T tokens that can be removed, and f_c, the score of every concept, of what is left.

    f_c is the concept's sample score as the detector sees it, at the concept's chosen layer. leaf: the whole sample as the model's
    float input, without a batch axis; `batch_size` leaves at a time are a good number.
    """

    @property
    def tokens(self) -> int: ...

    @property
    def leaf(self) -> Tensor: ...

    @property
    def opened(self) -> Opened: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator, the same for every explainer of this sample in this run."""
        ...

    def layer(self, concept: int) -> int:
        """The block whose output the concept's score is read from."""
        ...

    def f(self, leaves: Tensor) -> Tensor:
        """[n, C]: f_c of n leaves [n, ...]; differentiable."""
        ...

    def mask(self, keep: Tensor) -> Tensor:
        """[n, ...]: the sample with its tokens scaled towards the baseline by 1 - keep [n, T] in [0, 1]; places without a token stay."""
        ...

    def masked(self, keep: Tensor) -> Tensor:
        """[n, C] float64 on the CPU: f_c with the tokens of keep [n, T] bool alone; each mask is run once per sample, whoever asks."""
        ...

    def per_token(self, values: Tensor) -> Tensor:
        """[n, T]: values shaped like leaves [n, ...], summed over every token's part of the leaf."""
        ...

    def random_masks(self, n: int, share: float = 0.5) -> Tensor:
        """[n, T] bool: every token kept with probability `share`; the same for every explainer, so that their forwards are shared."""
        ...


class Explainer(Protocol):
    """A localizer that needs the model itself, and explains one sample at a time; it is asked on few samples (`--explain-limit`).

    needs: {"inputs"}, or {"inputs", "gradients"}. `calibrate_on` and an optional `fit` are as in `Localizer`; a fitted explainer may
    carry `directions` [C, d], and its probe's f_c then compares tokens with these by cosine instead of by the concept's activation.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def calibrate_on(self) -> Literal["tokens", "detected"]: ...

    def forwards(self, tokens: int, concepts: int) -> int:
        """The forward passes that one sample costs (a backward pass counts as two): the price that the plan prints."""
        ...

    def explain(self, probe: Probe, concepts: Sequence[int]) -> Tensor:
        """[T, len(concepts)] float32: the attribution of f_c to every token of the probe's sample.

        Asked for are concepts whose score of the whole sample is a number; that of another may be NaN (it has no vector).
        """
        ...


class Metric(Protocol):
    """One number per concept from scores, decisions and truth, under B weightings of the samples (1 weighting of ones = the value).

    A metric of kind "detection" sees samples, one of kind "localization" tokens; see `Evaluation`. Kinds "insertion" and "deletion"
    see, as a sample's score, the area under that curve of f_c; samples that were not explained have truth -1. An optional
    `mean_of_samples = True` says that the number is the mean of one number per sample, over samples that have one.
    """

    kind: ClassVar[Literal["detection", "localization", "insertion", "deletion"]]
    unit: ClassVar[str]
    range: ClassVar[tuple[float, float]]
    chance: ClassVar[str]
    higher_is_better: ClassVar[bool]
    version: ClassVar[int]

    def compute(self, evaluation: Evaluation, weights: Tensor) -> Tensor:
        """[B, S] float -> [B, C] float64; NaN where undefined."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """What a metric is computed from: N items (samples, or tokens) in S samples.

    scores [N, C] float64 · decisions [N, C] bool · truth [N, C] int8 (1, 0, -1 = leave out) · offsets [S+1] int64:
    the items of sample s are offsets[s]:offsets[s+1] (one each for samples) · calibrated [C] bool: a concept without a cutoff
    gets no value, whatever a metric computes.
    """

    scores: Tensor
    decisions: Tensor
    truth: Tensor
    offsets: Tensor
    calibrated: Tensor


@dataclass(frozen=True)
class RunSpec:
    """One (task, backbone) with all its methods: plain, picklable data, and what `config.yaml` holds."""

    task: str
    backbone: str
    methods: tuple[Method, ...]
    layers: str = "all"
    streams: tuple[str, ...] = ("residual",)
    image_size: int | None = None
    normalization: str = "train"
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    block_tokens: int = 8192
    seed: int = 0
    bootstrap: int = 1000
    guards: Literal["off", "cheap", "full"] = "cheap"
    log_tokens: bool = False
    explain_limit: int = 20
    cache_bytes: int = 8_000_000_000
    cache_dir: Path = Path("~/.cache/concept-harness")
    output: Path = Path("results")


@dataclass(frozen=True)
class Score:
    """One published number. `layer` is a site label, "chosen" (per concept, on cal) or None (no layer); `concept` a name or an average.

    value None = undefined, and `reason` says why. ci_low, ci_high: 95 % interval from the two-level bootstrap (concepts x
    samples) for averages, from samples alone for one concept; `sample_ci` is the sample-only interval of an average.
    n: positives in test (for one concept) or concepts averaged.
    """

    metric: str
    layer: str | None
    concept: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    sample_ci: tuple[float, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen on cal for one concept: site label, level (delta), cutoff, cal F1, the matched unit; and localization's level."""

    concept: str
    layer: str | None
    level: float | None
    cutoff: float | None
    cal_f1: float | None
    map_level: float | None = None
    map_cutoff: float | None = None
    map_cal_f1: float | None = None
    unit: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Result:
    """One method on one (task, backbone): what `result.json` holds."""

    spec: RunSpec
    method: Method
    task: Mapping[str, Any]
    backbone: Mapping[str, Any]
    scores: tuple[Score, ...]
    choices: tuple[Choice, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    path: Path | None = None

    def score(self, metric: str, layer: str | None = "chosen", concept: str = "macro") -> Score | None:
        """The score row, or None where there is none."""
        found = (s for s in self.scores if s.metric == metric and s.concept == concept and s.layer in (layer, None))
        return next(found, None)


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite: JSON has neither."""
    return value if math.isfinite(value) else None
