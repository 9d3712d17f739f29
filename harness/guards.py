"""Guards that run in production: silent faults of a backbone stop the run, and the message says which sample and layer.

Each names a fault that shipped in a library of this field: padding that leaks into tokens, masks that miss the image they label,
tokens that are not where their regions say, the wrong tensor captured. Width and non-finite values are checked on every batch in
`embed.py`. docs/models.md lists which fault is caught by which guard, and which by none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from harness.embed import Batching, apply_view, embed_samples
from harness.errors import HarnessError
from harness.numerics import boxes_hit, spans_hit
from harness.tasks import Task
from harness.types import Backbone, Embedded, Sample, Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

GUARDS = ("batch", "layers", "view", "regions", "place")
"""The cheap guards, in the order in which they run."""
TOLERANCE = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 8e-2}
"""Largest allowed ||alone - batched|| / ||alone|| of a token, by forward dtype: kernels may differ, masks may not."""
ALONE = 2
SENTENCE = ("river", "stone", "paper", "light", "green", "house")
"""A text whose words can be replaced, one at a time, by others of the same length."""
OTHERS = ("cloud", "birds", "music", "plant")
PLACES = 4
"""Patches that are lit up one at a time."""


def check_backbone(task: Task, backbone: Backbone, sites: Sequence[Site], dtype: str) -> dict[str, str]:
    """Runs the cheap guards; guard -> what was found. Raises where one fails."""
    if task.modality == "tokens":
        return dict.fromkeys(GUARDS, "skipped: stored embeddings")
    batch, layers = check_batch(task, backbone, sites, dtype)
    view, size = check_view(task, backbone), _size(task)
    return {
        "batch": batch,
        "layers": layers,
        "view": view,
        "regions": check_regions(backbone, size),
        "place": check_place(backbone, size),
    }


def _size(task: Task) -> tuple[int, int] | None:
    """(height, width) of the first train image; None for text."""
    if task.modality != "image":
        return None
    image = task.splits["train"].sample(0).image
    assert image is not None  # noqa: S101 - the task's modality is image
    return image.height, image.width


def check_batch(task: Task, backbone: Backbone, sites: Sequence[Site], dtype: str) -> tuple[str, str]:
    """k samples alone against the same in one batch, at every site; for text the shortest and the longest, so that padding counts.

    Also whether every site has values of its own: (verdict on the batch, verdict on the layers).
    """
    train = task.splits["train"]
    places = [0, len(train) - 1]
    if task.modality == "text":
        lengths = [len(sample.text or "") for sample in train.samples(range(min(len(train), 64)))]
        places = [int(np.argmin(lengths)), int(np.argmax(lengths))]
    samples = train.samples(sorted(set(places))[:ALONE])
    batching = Batching(len(samples))
    batched = embed_samples(backbone, samples, sites, batching)
    layers = check_layers(batched.values, backbone, sites)
    if batching.size < len(samples):
        return f"skipped: memory holds {batching.size} of {len(samples)} samples at a time", layers
    worst = 0.0
    for s, sample in enumerate(samples):
        alone = embed_samples(backbone, [sample], sites, Batching(1))
        start, end = int(batched.offsets[s]), int(batched.offsets[s + 1])
        if alone.values.shape[1] != end - start:
            raise HarnessError(
                f"guard 'batch' failed: sample {sample.id!r} has {alone.values.shape[1]} tokens alone and {end - start} in a batch; "
                f"backbone {backbone.name} counts padding as tokens"
            )
        theirs = torch.cat([batched.values[:, start:end], batched.summary[:, s : s + 1]], 1)
        mine = torch.cat([alone.values, alone.summary], 1)
        gap = (mine - theirs).norm(dim=-1) / mine.norm(dim=-1).clamp(min=1e-6)
        worst = max(worst, float(gap.max()))
        if worst > TOLERANCE[dtype]:
            layer = sites[int(gap.amax(1).argmax())].label
            raise HarnessError(
                f"guard 'batch' failed: sample {sample.id!r} at layer {layer} differs by {worst:.2g} (relative) alone and in a batch; "
                f"allowed {TOLERANCE[dtype]:g} for {dtype}; padding or attention masks of backbone {backbone.name} are wrong"
            )
    return f"passed: largest relative difference {worst:.1e} over {len(samples)} samples and {len(sites)} sites", layers


def check_layers(values: Tensor, backbone: Backbone, sites: Sequence[Site]) -> str:
    """No two sites of the blocks [L, T, d] are the same tensor; after the final norm they may be, in a model that has none."""
    blocks = [i for i, site in enumerate(sites) if site.layer < backbone.n_layers]
    for earlier, later in pairwise(blocks):
        if values.shape[1] and torch.equal(values[earlier], values[later]):
            raise HarnessError(
                f"guard 'layers' failed: layers {sites[earlier].label} and {sites[later].label} of backbone {backbone.name} are the "
                f"same values; one tensor was captured for both"
            )
    return f"passed: {len(blocks)} sites of the blocks differ"


def check_view(task: Task, backbone: Backbone) -> str:
    """The mask transform is the image transform: a bright box drawn on the first image's canvas must be where its mask says."""
    if task.modality != "image":
        return "skipped: not images"
    first = task.splits["train"].sample(0)
    assert first.image is not None  # noqa: S101 - the task's modality is image
    width, height = first.image.size
    mask = np.zeros((height, width), bool)
    mask[height // 8 : height // 2, width // 2 : width - width // 8] = True
    canvas = Sample("guard", image=PIL.Image.fromarray(np.repeat((mask * 255).astype(np.uint8)[:, :, None], 3, 2)))
    inputs = backbone.inputs([canvas])
    pixels = inputs.tensors.get("pixel_values")
    if inputs.views is None:
        raise HarnessError(
            f"guard 'view' failed: backbone {backbone.name} takes images but gives no views; masks cannot be placed"
        )
    view = inputs.views[0]
    if pixels is None or pixels.shape[-2:] != (view.window_height, view.window_width):
        return "skipped: the model's pixels are not laid out as the view"
    moved = torch.from_numpy(apply_view(mask, view, nearest=True))
    regions = inputs.regions
    bright = torch.stack([pixels[0, :, r[0] : r[2], r[1] : r[3]].float().mean().cpu() for r in regions.tolist()])
    inside, outside = ~boxes_hit(~moved, regions), ~boxes_hit(moved, regions)
    if inside.any() and outside.any() and not bright[inside].min() > bright[outside].max():
        raise HarnessError(
            f"guard 'view' failed: the masks of sample {first.id!r} do not lie where backbone {backbone.name} sees their pixels; "
            f"its `inputs` must make pixels with `apply_view` and the view that it returns"
        )
    return f"passed: {int(inside.sum())} patches inside the box are brighter than all {int(outside.sum())} outside"


def check_regions(backbone: Backbone, size: tuple[int, int] | None) -> str:
    """Content and nothing else has a region: on a made-up text or image, no part is left out and none is covered twice.

    A dropped token leaves a hole; a special token or padding that counts as content has a region that is empty or lies outside.
    """
    if size is not None:
        return _check_boxes(backbone, Sample("guard", image=_noise(*size)))
    text = " ".join(SENTENCE)
    regions = _regions(backbone, text)
    _need_order(backbone, text, regions)
    bare = [i for i, char in enumerate(text) if char != " " and not _covers(regions, i)]
    if bare and _is_cut(backbone, text):
        bare = [i for i in bare if i < max((end for _, end in regions), default=0)]
    if bare:
        raise HarnessError(
            f"guard 'regions' failed: no token of backbone {backbone.name} covers {text[bare[0]]!r}, character {bare[0]} of {text!r}; "
            f"it drops a content token, or gives it another's region"
        )
    return f"passed: {len(regions)} tokens cover a sentence of {len(SENTENCE)} words"


def _regions(backbone: Backbone, text: str) -> list[tuple[int, int]]:
    return [(start, end) for start, end in backbone.inputs([Sample("guard", text=text)]).regions.tolist()]


def _covers(regions: Sequence[tuple[int, int]], place: int) -> bool:
    return any(start <= place < end for start, end in regions)


def _is_cut(backbone: Backbone, text: str) -> bool:
    """Whether the backbone reads no more tokens of a longer text."""
    return len(_regions(backbone, f"{text} {text}")) <= len(_regions(backbone, text))


def _need_order(backbone: Backbone, text: str, regions: Sequence[tuple[int, int]]) -> None:
    for i, (start, end) in enumerate(regions):
        if not 0 <= start < end <= len(text) or (i and start < regions[i - 1][0]):
            raise HarnessError(
                f"guard 'regions' failed: token {i} of backbone {backbone.name} covers characters {start}..{end} of a text of {len(text)}; "
                f"content tokens are in the text's order and cover at least one character: is a special token or padding among them?"
            )


def _check_boxes(backbone: Backbone, sample: Sample) -> str:
    inputs = backbone.inputs([sample])
    assert inputs.views is not None  # noqa: S101 - `check_view` comes first
    view, boxes = inputs.views[0], inputs.regions.tolist()
    height, width = view.window_height, view.window_width
    covered = np.zeros((height, width), np.int64)
    for i, (top, left, bottom, right) in enumerate(boxes):
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise HarnessError(
                f"guard 'regions' failed: patch {i} of backbone {backbone.name} is ({top}, {left}, {bottom}, {right}) in a window of "
                f"{height} x {width}; is a special token among the patches, or a box transposed?"
            )
        covered[top:bottom, left:right] += 1
    # a rest smaller than a patch, right or below, may be ignored by the model
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    shown = covered[: view.height - view.window_top, : view.width - view.window_left][: rows.max() + 1, : columns.max() + 1]
    patch = max(bottom - top for top, _, bottom, _ in boxes)
    rest = (
        min(height, view.height - view.window_top) - shown.shape[0],
        min(width, view.width - view.window_left) - shown.shape[1],
    )
    if covered.max() > 1 or not shown.all() or max(rest) >= patch:
        what = "covers a pixel twice" if covered.max() > 1 else "leaves out a part of the image"
        raise HarnessError(f"guard 'regions' failed: the patches of backbone {backbone.name} are no grid: one {what}")
    return f"passed: {len(boxes)} patches cover the image, none of it twice"


def check_place(backbone: Backbone, size: tuple[int, int] | None) -> str:
    """What changes in one place changes, at the first layer, the token whose region covers that place more than any other."""
    changes = list(_text_changes(backbone) if size is None else _image_changes(backbone, *size))
    changes = [change for change in changes if change.size.max() > 0]  # two words may be one to a small vocabulary
    if not changes:
        return "skipped: no change keeps the tokens where they are and reaches them"
    shifts = range(-2, 3)
    # [shifts]: how much of the change the regions explain, were they moved by so many tokens
    explained = {shift: sum(change.explained(shift) for change in changes) for shift in shifts}
    hits = sum(change.hit for change in changes)
    if 2 * hits <= len(changes) or max(explained, key=lambda shift: (explained[shift], -abs(shift))) != 0:
        what = "words of a text" if size is None else "patches of an image"
        raise HarnessError(
            f"guard 'place' failed: {len(changes)} {what} were changed, and in {len(changes) - hits} the token of backbone {backbone.name} "
            f"that changed most covers another place; its tokens are not in the order of its regions (shifted, or rows for columns)"
        )
    return f"passed: in {hits} of {len(changes)} changes the token that changed most is the one that covers it"


@dataclass(frozen=True)
class _Change:
    """size [T]: how much each token changed; inside [T] bool: whether its region says that it should."""

    size: Tensor
    inside: Tensor

    @property
    def hit(self) -> bool:
        """Whether the token that changed most is inside."""
        return bool(self.inside[self.size.argmax()])

    def explained(self, shift: int) -> float:
        """The change of the tokens that would be inside, were the regions moved by `shift` tokens."""
        moved = torch.zeros_like(self.inside)
        if shift >= 0:
            moved[shift:] = self.inside[: len(moved) - shift]
        else:
            moved[:shift] = self.inside[-shift:]
        return float(self.size[moved].sum())


def _changes(
    backbone: Backbone, first: Sample, changed: Sequence[Sample], inside: Callable[[int, Tensor], Tensor]
) -> list[_Change]:
    """How each of the changed samples differs from the first; those whose tokens lie elsewhere are left out."""
    layer = getattr(backbone, "layers", range(backbone.n_layers))[0]
    done: Embedded = embed_samples(backbone, [first, *changed], [Site(layer)], Batching(ALONE))
    starts = done.offsets.tolist()
    parts = [slice(start, end) for start, end in pairwise(starts)]
    made = []
    for i, part in enumerate(parts[1:]):
        regions, values = done.regions[part], done.values[0, part].float()
        if not torch.equal(regions, done.regions[parts[0]]) or not len(regions):
            continue
        before = done.values[0, parts[0]].float()
        size = (values - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-6)
        where = inside(i, regions)
        if where.any() and not where.all():
            made.append(_Change(size, where))
    return made


def _text_changes(backbone: Backbone) -> list[_Change]:
    """Every word in turn replaced by another of the same length; the first replacement that keeps the tokens where they are."""
    first = Sample("guard", text=" ".join(SENTENCE))
    texts, words = [], []
    for i in range(len(SENTENCE)):
        for other in OTHERS:
            texts.append(Sample(f"guard {i} {other}", text=" ".join([*SENTENCE[:i], other, *SENTENCE[i + 1 :]])))
            words.append(i)
    length = len(SENTENCE[0]) + 1
    keeps = [_regions(backbone, sample.text or "") == _regions(backbone, first.text or "") for sample in texts]
    chosen = {word: sample for keep, word, sample in reversed(list(zip(keeps, words, texts, strict=True))) if keep}

    def inside(i: int, regions: Tensor) -> Tensor:
        start = list(chosen)[i] * length
        hit: Tensor = spans_hit(torch.tensor([[start, start + length - 1]]), regions)
        return hit

    return _changes(backbone, first, list(chosen.values()), inside)


def _image_changes(backbone: Backbone, height: int, width: int) -> list[_Change]:
    """Patches off the diagonal, lit up in turn on an image of that size, through the view."""
    plain = _noise(height, width)
    inputs = backbone.inputs([Sample("guard", image=plain)])
    assert inputs.views is not None  # noqa: S101 - `check_view` comes first
    view, boxes = inputs.views[0], inputs.regions
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = sorted([t for t in order if boxes[t, 0] != boxes[t, 1]][:PLACES]) or order[:1]
    lit = []
    for token in tokens:
        top, left, bottom, right = boxes[token].tolist()
        rows = slice((top + view.window_top) * height // view.height, -(-(bottom + view.window_top) * height // view.height))
        columns = slice((left + view.window_left) * width // view.width, -(-(right + view.window_left) * width // view.width))
        pixels = np.array(plain)
        pixels[rows, columns] = 255 * (pixels[rows, columns].mean() < 128)
        lit.append(Sample(f"guard {token}", image=PIL.Image.fromarray(pixels)))

    def inside(i: int, regions: Tensor) -> Tensor:
        return torch.arange(len(regions)).eq(tokens[i])

    return _changes(backbone, Sample("guard", image=plain), lit, inside)


def _noise(height: int, width: int) -> PIL.Image.Image:
    """A dark image that is nowhere flat."""
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 64, (height, width, 3), dtype=np.uint8))


def check_shuffled(scores: NDArray[Any], labels: NDArray[Any], method: str) -> str:
    """`--guards full`: scores [S, C] of a run on permuted labels [S, C]; the mean AUROC over concepts must be at chance.

    The bound is 4 standard errors of one AUROC under the null, sqrt((n+1) / (12 p (n-p))), averaged over concepts as if their
    AUROCs were the same number: generous, and still far below what a leak of labels gives.
    """
    n = len(labels)
    mixed = [c for c in range(labels.shape[1]) if 0 < labels[:, c].sum() < n]
    if not mixed:
        return "skipped: no concept has both positives and negatives"
    known = np.nan_to_num(scores, neginf=float(np.finfo(np.float32).min))
    mean = float(np.mean([roc_auc_score(labels[:, c], known[:, c]) for c in mixed]))
    positives = labels[:, mixed].sum(0)
    bound = 4 * float(np.mean(np.sqrt((n + 1) / (12 * positives * (n - positives)))))
    if abs(mean - 0.5) > bound:
        raise HarnessError(
            f"guard 'shuffled' failed: with permuted labels the mean AUROC is {mean:.3f}, allowed 0.5 ± {bound:.3f}; "
            f"method {method!r} reads labels it must not see"
        )
    return f"passed: mean AUROC {mean:.3f} with permuted labels, allowed 0.5 ± {bound:.3f}"
