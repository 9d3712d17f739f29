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
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
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
    """One thing a plugin offers; `target` ("module:attribute") is imported on first use, `extra` is the pip extra it needs."""

    name: str
    target: str
    summary: str
    extra: str | None = None


@dataclass(frozen=True)
class Method:
    """A named recipe: either concepts + detector (+ localizer), or a scorer alone. Parts are referred to by registered name.

    A part may carry an argument and options: `linear:estimator=adam`. `fit_on="summary"` fits and scores on the sample's
    summary embedding (CLS, or the mean token where a model has none) instead of its tokens.
    """

    name: str
    summary: str = ""
    concepts: str | None = None
    detector: str | None = None
    localizer: str | None = None
    scorer: str | None = None
    fit_on: FitOn = "tokens"
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
class Setup:
    """What a run asks of a backbone; None = the backbone's own default."""

    device: str = "cpu"
    dtype: str = "float32"
    image_size: int | None = None
    cache_dir: Path = Path(".cache")


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
    choice of a method derives from it.
    """

    concepts: tuple[str, ...]
    sites: tuple[Site, ...]
    width: int
    seed: int
    ids: tuple[str, ...]
    labels: Tensor
    truth: Tensor
    offsets: Tensor

    def __iter__(self) -> Iterator[TokenEmbeddings]: ...

    def rows(self, index: Tensor) -> Tensor:
        """[L, N, d]: the tokens at the given positions of the split (int64, ascending), in one pass."""
        ...


class Progress(Protocol):
    """Shows work that may take longer than two seconds: `with progress("embedding", 100, "samples") as advance: advance(8)`."""

    def __call__(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]: ...


class Backbone(Protocol):
    """A frozen model that turns samples into token embeddings at every requested site in one forward pass.

    `revision` identifies the weights (a hash or commit); `identity` is everything else that changes a value (geometry,
    dtype, preprocessing) as plain JSON data: both are part of the cache key and of the result.
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
    """Fitted units. `vectors` [L, K, d], one direction per unit in the normalised space, or None where a unit is no direction."""

    @property
    def vectors(self) -> Tensor | None: ...

    def activate(self, block: TokenEmbeddings) -> Tensor:
        """[L, T, K] float32."""
        ...


class ConceptMethod(Protocol):
    """Fits units on train tokens only."""

    def fit(self, train: Blocks) -> Concepts: ...


class Detector(Protocol):
    """How a sample's token activations become one score, and what its cutoff is calibrated on. Nothing else.

    `calibrate_on = "tokens"`: the cutoff is a quantile of the in-concept calibration tokens' activations.
    `calibrate_on = "samples"`: of the pooled scores of the positive calibration samples.
    An optional `fit(train, concepts)` returns the fitted detector; without it the detector is used as it is.
    """

    @property
    def calibrate_on(self) -> CalibrateOn: ...

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, T, K] -> [L, S, K]; a sample without tokens pools to -inf."""
        ...


class Scorer(Protocol):
    """Gives sample scores with no embeddings (prompting, bag of words, guessing). `calibrate_on` is "samples" or "fixed".

    fixed: detected iff score >= 0.5, NaN = no answer; no level is chosen. An optional `fit(train, labels, seed)` comes first.
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


class Metric(Protocol):
    """One number per concept from scores, decisions and truth, under B weightings of the samples (1 weighting of ones = the value).

    A metric of kind "detection" sees samples, one of kind "localization" tokens; see `Evaluation`.
    """

    kind: ClassVar[Literal["detection", "localization"]]
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
    """What was chosen on cal for one concept: site label, level (delta), cutoff, cal F1; and for localization its own level."""

    concept: str
    layer: str | None
    level: float | None
    cutoff: float | None
    cal_f1: float | None
    map_level: float | None = None
    map_cutoff: float | None = None
    map_cal_f1: float | None = None
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
    path: Path | None = None

    def score(self, metric: str, layer: str | None = "chosen", concept: str = "macro") -> Score | None:
        """The score row, or None where there is none."""
        found = (s for s in self.scores if s.metric == metric and s.concept == concept and s.layer in (layer, None))
        return next(found, None)


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite: JSON has neither."""
    return value if math.isfinite(value) else None
