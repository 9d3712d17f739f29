"""Guards that run in production: silent faults of a backbone stop the run, and the message says which sample and layer.

Each names a fault that shipped in a library of this field: padding that leaks into tokens, masks that miss the image they label,
the wrong tensor captured. Width and non-finite values are checked on every batch in `embed.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from sklearn.metrics import roc_auc_score

from harness.embed import apply_view, embed_samples
from harness.errors import HarnessError
from harness.numerics import boxes_hit
from harness.tasks import Task
from harness.types import Backbone, Sample, Site

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 8e-2}
"""Largest allowed ||alone - batched|| / ||alone|| of a token, by forward dtype: kernels may differ, masks may not."""
ALONE = 2


def check_backbone(task: Task, backbone: Backbone, sites: Sequence[Site], dtype: str) -> dict[str, str]:
    """Runs the cheap guards; guard -> what was found. Raises where one fails."""
    if task.modality == "tokens":
        return {"batch": "skipped: stored embeddings", "view": "skipped: stored embeddings"}
    return {"batch": check_batch(task, backbone, sites, dtype), "view": check_view(task, backbone)}


def check_batch(task: Task, backbone: Backbone, sites: Sequence[Site], dtype: str) -> str:
    """k samples alone against the same in one batch, at every site; for text the shortest and the longest, so that padding counts."""
    train = task.splits["train"]
    places = [0, len(train) - 1]
    if task.modality == "text":
        lengths = [len(sample.text or "") for sample in train.samples(range(min(len(train), 64)))]
        places = [int(np.argmin(lengths)), int(np.argmax(lengths))]
    samples = train.samples(sorted(set(places))[:ALONE])
    batched = embed_samples(backbone, samples, sites, len(samples))
    worst = 0.0
    for s, sample in enumerate(samples):
        alone = embed_samples(backbone, [sample], sites, 1)
        start, end = int(batched.offsets[s]), int(batched.offsets[s + 1])
        if alone.values.shape[1] != end - start:
            raise HarnessError(
                f"guard 'batch' failed: sample {sample.id!r} has {alone.values.shape[1]} tokens alone and {end - start} in a batch; "
                f"backbone {backbone.name} counts padding as tokens"
            )
        if end == start:
            continue
        gap = (alone.values - batched.values[:, start:end]).norm(dim=-1) / alone.values.norm(dim=-1).clamp(min=1e-6)
        worst = max(worst, float(gap.max()))
        if worst > TOLERANCE[dtype]:
            layer = sites[int(gap.amax(1).argmax())].label
            raise HarnessError(
                f"guard 'batch' failed: sample {sample.id!r} at layer {layer} differs by {worst:.2g} (relative) alone and in a batch; "
                f"allowed {TOLERANCE[dtype]:g} for {dtype}; padding or attention masks of backbone {backbone.name} are wrong"
            )
    return f"passed: largest relative difference {worst:.1e} over {len(samples)} samples and {len(sites)} sites"


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
