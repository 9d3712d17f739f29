"""From samples to token embeddings: one forward pass per batch gives every requested site; token truth comes from regions.

The image transform and the mask transform are ONE function, `apply_view`; the authors' code squashes masks but centre-crops CLIP
images, which misaligns every non-square image (method section 11.B1). What is stored, and where, is `store.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.masks import rle_mask
from harness.numerics import Moments, boxes_hit, segment_max, spans_hit, token_sums
from harness.store import Geometry, Storage, Store
from harness.tasks import Split, Task
from harness.types import SPLITS, Backbone, Embedded, Progress, Sample, Site, TokenEmbeddings, View

if TYPE_CHECKING:
    from numpy.typing import NDArray


def apply_view(pixels: NDArray[Any], view: View, nearest: bool = False) -> NDArray[Any]:
    """[window_height, window_width(, 3)]: the pixels (uint8) or mask (bool) resized and windowed as the view says.

    Pixels are resized bicubically with antialiasing (PIL), masks by nearest neighbour; outside the image is zero.
    """
    image = PIL.Image.fromarray(pixels.astype(np.uint8) if pixels.dtype == bool else pixels)
    how = PIL.Image.Resampling.NEAREST if nearest else PIL.Image.Resampling.BICUBIC
    resized = np.asarray(image.resize((view.width, view.height), how))
    out = np.zeros((view.window_height, view.window_width, *pixels.shape[2:]), resized.dtype)
    top, left = max(view.window_top, 0), max(view.window_left, 0)
    part = resized[top : view.window_top + view.window_height, left : view.window_left + view.window_width]
    row, column = top - view.window_top, left - view.window_left
    out[row : row + part.shape[0], column : column + part.shape[1]] = part
    return out.astype(pixels.dtype)


def square_patches(height: int, width: int, patch: int) -> Tensor:
    """[rows * columns, 4] int64: the boxes (top, left, bottom, right) of a grid of square patches, row by row."""
    top, left = torch.meshgrid(torch.arange(0, height, patch), torch.arange(0, width, patch), indexing="ij")
    return torch.stack([top, left, top + patch, left + patch], dim=-1).reshape(-1, 4)


@contextmanager
def capture(modules: Mapping[Site, torch.nn.Module]) -> Iterator[dict[Site, Tensor]]:
    """A dict that holds, after a forward pass inside the block, each module's output (the first one where it is a tuple).

    The hooks return nothing: a hook that returns a tensor would silently replace the layer's output.
    """
    seen: dict[Site, Tensor] = {}

    def keep(site: Site) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            seen[site] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(site)) for site, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def sample_truth(split: Split, i: int, regions: Tensor, view: View | None) -> Tensor:
    """[T, C] int8 for one sample: 1 where a token's region meets the concept's, 0 where not, -1 where nothing is known.

    Unknown are all tokens of a sample that is not annotated, and those of a positive concept that is left with no token: its
    mask is missing, or lost in the view (cropped, truncated, thinner than a pixel). A mask without a label is not used.
    """
    truth = torch.zeros(len(regions), len(split.concepts), dtype=torch.int8)
    marks = split.regions(i)
    if marks is None:
        return truth - 1
    for c, concept in enumerate(split.concepts):
        if not split.labels[i, c]:
            continue
        mine = [mark for mark in marks if mark["concept"] == concept]
        hit = (
            region_hit(mine, regions, view, split.ids[i])
            if mine and len(regions)
            else torch.zeros(len(regions), dtype=torch.bool)
        )
        truth[:, c] = hit.to(torch.int8) if hit.any() else -1
    return truth


def region_hit(marks: Sequence[Mapping[str, Any]], regions: Tensor, view: View | None, sample_id: str) -> Tensor:
    """[T] bool: the tokens that meet one of the marks, `{start, end}` or `{rle}` as a data set gives them."""
    if view is None:
        return spans_hit(torch.tensor([[mark["start"], mark["end"]] for mark in marks]), regions)
    try:
        mask = rle_mask([mark["rle"] for mark in marks])
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(
            f"bad mask of sample {sample_id!r}, concept {marks[0]['concept']!r}; {error}; give COCO RLE"
        ) from error
    return boxes_hit(torch.from_numpy(apply_view(mask, view, nearest=True)), regions)


class Batching:
    """How many samples go through the model at once: halved for the rest of a run where memory runs out. No number depends on it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._failed: int | None = None

    def shrink(self, backbone: Backbone, failed: Sequence[Sample]) -> None:
        """Half of the batch that failed; raises where that was one sample."""
        if len(failed) == 1:
            raise HarnessError(
                f"out of memory with one sample at a time; sample {failed[0].id!r}, backbone {backbone.name}; try --dtype bfloat16, "
                f"fewer --layers, a smaller --image-size or max_length, or device_map=auto for a model of hf:"
            )
        self.size, self._failed = len(failed) // 2, self._failed or len(failed)

    def worked(self) -> None:
        """Says on stderr, once memory has sufficed, how many samples that was."""
        if self._failed is not None:
            sys.stderr.write(f"out of memory with {self._failed} samples at a time; going on with {self.size} (--batch-size)\n")
            self._failed = None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device: torch has one exception for CUDA, and a RuntimeError by its words elsewhere."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    by_words = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or by_words


def embed_samples(backbone: Backbone, samples: Sequence[Sample], sites: Sequence[Site], batching: Batching) -> Embedded:
    """The samples' embeddings on the CPU, in order, from forward passes of at most `batching.size` samples of similar length."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].text or ""))
    batches: list[list[int]] = []
    done: list[Embedded] = []
    start = 0
    with torch.inference_mode():
        while start < len(order):
            batch = order[start : start + batching.size]
            made = _or_none(lambda: _forward(backbone, [samples[i] for i in batch], sites))  # noqa: B023 - called at once
            if made is None:
                batching.shrink(backbone, [samples[i] for i in batch])
                continue
            batching.worked()
            batches.append(batch)
            done.append(made)
            start += len(batch)
    at = {i: (b, j) for b, batch in enumerate(batches) for j, i in enumerate(batch)}
    places = [at[i] for i in range(len(samples))]
    if order == list(range(len(samples))):
        values, regions = torch.cat([b.values for b in done], 1), torch.cat([b.regions for b in done])
    else:
        parts = [(done[b], int(done[b].offsets[j]), int(done[b].offsets[j + 1])) for b, j in places]
        values = torch.cat([part.values[:, start:end] for part, start, end in parts], 1)
        regions = torch.cat([part.regions[start:end] for part, start, end in parts])
    lengths = torch.stack([done[b].offsets[j + 1] - done[b].offsets[j] for b, j in places])
    summary = torch.stack([done[b].summary[:, j] for b, j in places], 1)
    views = tuple(done[b].views[j] for b, j in places if done[b].views is not None)  # type: ignore[index]
    return Embedded(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), regions, summary, views or None)


def _or_none(forward: Callable[[], Embedded]) -> Embedded | None:
    """What it gives, or None where memory ran out; what the failed pass held is free again on return."""
    try:
        return forward()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _forward(backbone: Backbone, samples: Sequence[Sample], sites: Sequence[Site]) -> Embedded:
    """One batch, on the CPU, refused where the captured width is not the declared one or a value is not finite."""
    done = backbone.forward(backbone.inputs(samples), sites)
    if done.values.shape[-1] != backbone.width or len(done.values) != len(sites):
        raise HarnessError(
            f"backbone {backbone.name} gave {len(done.values)} sites of width {done.values.shape[-1]}; it declares width "
            f"{backbone.width} and {len(sites)} were asked for; first seen at sample {samples[0].id!r}, layer {sites[0].label}; "
            f"the wrong tensor was captured"
        )
    if not done.values.isfinite().all():
        layer, token = (~done.values.isfinite()).any(-1).nonzero()[0].tolist()
        sample = samples[int(torch.searchsorted(done.offsets, token, right=True)) - 1]
        raise HarnessError(
            f"non-finite token of sample {sample.id!r} at layer {sites[layer].label}; backbone {backbone.name}; try --dtype float32"
        )
    return replace(
        done, values=done.values.cpu(), offsets=done.offsets.cpu(), regions=done.regions.cpu(), summary=done.summary.cpu()
    )


@dataclass(frozen=True)
class Extraction:
    """Where a group's blocks come from: the store, or (store None) a new forward pass each time they are asked for."""

    task: Task
    backbone: Backbone
    sites: tuple[Site, ...]
    store: Store | None
    batching: Batching
    samples_per_block: int
    device: str

    def blocks(self, split: str) -> list[range]:
        """The places of each block's samples in the split."""
        n = len(self.task.splits[split])
        return [range(start, min(start + self.samples_per_block, n)) for start in range(0, n, self.samples_per_block)]

    def content(self, split: str, block: range) -> list[str]:
        """The content hashes of a block's samples."""
        return [self.task.splits[split].hashes[i] for i in block]

    def missing(self) -> list[tuple[str, range]]:
        """The blocks that a forward pass has still to fill; none where nothing is stored."""
        store = self.store
        if store is None:
            return []
        every = [(split, block) for split in SPLITS for block in self.blocks(split)]
        return [(split, block) for split, block in every if not store.has(self.content(split, block), self.sites)]

    def fill(self, progress: Progress) -> int:
        """Embeds what is missing, block by block, and returns how many samples that were; a killed run goes on where it stopped."""
        missing = self.missing()
        total = sum(len(block) for _, block in missing)
        with progress(f"embedding {self.task.name} with {self.backbone.name}", total, "samples") as advance:
            for split, block in missing:
                self.store.write(self.content(split, block), self.sites, self._embed(split, block))  # type: ignore[union-attr]
                advance(len(block))
        return total

    def _embed(self, split: str, block: range) -> Embedded:
        return embed_samples(self.backbone, self.task.splits[split].samples(block), self.sites, self.batching)

    def geometry(self, split: str, block: range) -> Geometry:
        """A block's offsets, regions and views."""
        if self.store is not None:
            return self.store.geometry(self.content(split, block))
        inputs = self.backbone.inputs(self.task.splits[split].samples(block))
        lengths = inputs.positions.sum(1).cpu()
        return Geometry(torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), inputs.regions.cpu(), inputs.views)

    def tokens(self, split: str, block: range) -> Tensor:
        """[L, T, d] float32: a block's raw token values on the device."""
        if self.store is not None:
            return self.store.tokens(self.content(split, block), self.sites).to(self.device)
        return (
            self._embed(split, block).values.float().to(self.device).clone()
        )  # what inference mode made is not normalised in place

    def summary(self, split: str, block: range) -> Tensor:
        """[L, S, d] float32: a block's raw summaries on the device; no token is read for them."""
        if self.store is not None:
            return self.store.summary(self.content(split, block), self.sites).to(self.device)
        return self._embed(split, block).summary.float().to(self.device).clone()

    def sums(self, split: str, block: range) -> Tensor:
        """[2, L, d] float64: the `token_sums` of a block, on the device."""
        if self.store is not None:
            return self.store.sums(self.content(split, block), self.sites).to(self.device)
        return token_sums(self.tokens(split, block))

    def forget(self) -> None:
        """Removes the group's values from the store: the next group needs the room."""
        for split in SPLITS if self.store is not None else ():
            for block in self.blocks(split):
                self.store.remove(self.content(split, block), self.sites)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Affine:
    """e = (x - centre) / scale, per site; fitted on train tokens only. centre, scale: [L, 1, d] float32."""

    centre: Tensor
    scale: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """The normalised values, in place."""
        return values.sub_(self.centre).div_(self.scale)


NORMALIZATIONS = {
    "train": "centre by the train mean, divide by the RMS norm of the uncentred train tokens (the paper's, method section 2)",
    "none": "raw values",
    "standardize": "centre and divide every dimension by its own train standard deviation: a few dimensions of huge variance "
    "otherwise decide every cosine (Timkey and van Schijndel 2021, 'All bark and no bite')",
}


def normalization(how: str, moments: Moments) -> Affine:
    """The named normalisation from the train moments."""
    mean, square = moments.mean, moments.mean_square
    if how == "none":
        centre, scale = torch.zeros_like(mean), torch.ones_like(mean)
    elif how == "train":
        centre, scale = mean, square.sum(-1, keepdim=True).sqrt().expand_as(mean)
    else:
        centre, scale = mean, (square - mean.square()).clamp(min=0).sqrt()
    scale = torch.where(scale > 1e-12 * scale.amax(-1, keepdim=True).clamp(min=1e-30), scale, torch.ones_like(scale))
    return Affine(centre.float()[:, None], scale.float()[:, None])


class SplitBlocks:
    """One split of one group as `Blocks`: tokens, or (summaries=True) the summary as each sample's only token."""

    def __init__(self, extraction: Extraction, split: str, seed: int, geometry: Sequence[Geometry], summaries: bool) -> None:
        rows = extraction.task.splits[split]
        self._extraction, self.name, self._summaries = extraction, split, summaries
        self._blocks = extraction.blocks(split)
        self.concepts, self.sites, self.width = extraction.task.concepts, extraction.sites, extraction.backbone.width
        self.backbone = extraction.backbone
        self.seed, self.ids = seed, rows.ids
        self.labels = torch.from_numpy(rows.labels).to(extraction.device)
        lengths = torch.cat([g.offsets[1:] - g.offsets[:-1] for g in geometry])
        self._present = lengths > 0
        lengths = self._present.long() if summaries else lengths
        self.offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(extraction.device)
        self.regions = torch.cat([g.regions for g in geometry])
        self.views = [view for g in geometry for view in g.views or ()]
        self.truth = self._truth().to(extraction.device)
        self.normalize: Affine | None = None

    def _truth(self) -> Tensor:
        rows = self._extraction.task.splits[self.name]
        if self._summaries:
            return self.labels[self._present].to(torch.int8)
        starts = self.offsets.tolist()
        parts = [
            sample_truth(rows, i, self.regions[starts[i] : starts[i + 1]], self.views[i] if self.views else None)
            for i in range(len(rows))
        ]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.concepts), dtype=torch.int8)

    @property
    def centre(self) -> Tensor:
        """[L, 1, d]: what was subtracted from the model's values."""
        return self._affine().centre

    @property
    def scale(self) -> Tensor:
        """[L, 1, d]: what they were then divided by."""
        return self._affine().scale

    def _affine(self) -> Affine:
        assert self.normalize is not None  # noqa: S101 - `Tokens.open` sets it before anyone may ask
        return self.normalize

    @property
    def widest(self) -> int:
        """The tokens of the largest block."""
        return max((int(self.offsets[block.stop] - self.offsets[block.start]) for block in self._blocks), default=0)

    def raw(self) -> Iterator[tuple[range, Tensor]]:
        """(places of the samples, values [L, T, d]) of every block, not normalised."""
        for block in self._blocks:
            if self._summaries:
                summary = self._extraction.summary(self.name, block)
                yield block, summary[:, self._present[block.start : block.stop].to(summary.device)]
            else:
                yield block, self._extraction.tokens(self.name, block)

    def sums(self) -> Iterator[tuple[int, Tensor]]:
        """(tokens, their `token_sums`) of every block."""
        if self._summaries:
            yield from ((values.shape[1], token_sums(values)) for _, values in self.raw())
            return
        for block in self._blocks:
            n = int(self.offsets[block.stop] - self.offsets[block.start])
            yield n, self._extraction.sums(self.name, block)

    def __iter__(self) -> Iterator[TokenEmbeddings]:
        normalize = self._affine()
        for block, values in self.raw():
            offsets = self.offsets[block.start : block.stop + 1]
            here = slice(int(offsets[0]), int(offsets[-1]))
            yield TokenEmbeddings(
                values=normalize(values),
                offsets=offsets - offsets[0],
                ids=self.ids[block.start : block.stop],
                sites=self.sites,
                labels=self.labels[block.start : block.stop],
                truth=self.truth[here],
            )

    def sample(self, i: int) -> Sample:
        """The sample at place i as a backbone sees it."""
        return self._extraction.task.splits[self.name].sample(i)

    def blind(self) -> Iterator[TokenEmbeddings]:
        """The blocks without labels and truth: all that a method sees of cal and test."""
        for block in self:
            yield replace(block, labels=None, truth=None)

    def lost(self) -> dict[str, int]:
        """Concept -> positives of annotated samples that have no token in the concept."""
        annotated = torch.from_numpy(self._extraction.task.splits[self.name].annotated)
        has = segment_max((self.truth == 1).float()[None], self.offsets)[0] > 0
        gone = (self.labels & ~has & annotated.to(has.device)[:, None]).sum(0).tolist()
        return {concept: n for concept, n in zip(self.concepts, gone, strict=True) if n}

    def shuffled(self) -> SplitBlocks:
        """The same tokens with labels and truth permuted among samples (a guard's null); truth is repeated or cut to fit."""
        order = torch.randperm(len(self.ids), generator=torch.Generator().manual_seed(self.seed)).to(self.labels.device)
        mixed = copy(self)
        mixed.labels = self.labels[order]
        starts = self.offsets.tolist()
        parts = []
        for i, donor in enumerate(order.tolist()):
            wanted, given = starts[i + 1] - starts[i], self.truth[starts[donor] : starts[donor + 1]]
            index = torch.arange(wanted, device=given.device) % max(len(given), 1)
            parts.append(given[index] if len(given) else given.new_full((wanted, given.shape[1]), -1))
        mixed.truth = torch.cat(parts)
        return mixed

    def rows(self, index: Tensor) -> Tensor:
        """[L, N, d]: the tokens at the given places of the split (ascending), in one pass."""
        parts, start = [], 0
        for block in self:
            end = start + block.values.shape[1]
            first, last = torch.searchsorted(index, torch.tensor([start, end], device=index.device)).tolist()
            parts.append(block.values[:, index[first:last] - start])
            start = end
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class Tokens:
    """A group of sites with its three splits, ready to iterate."""

    sites: tuple[Site, ...]
    train: SplitBlocks
    cal: SplitBlocks
    test: SplitBlocks


class LayerGroup:
    """Some of the sites, embedded in one forward pass; `open` gives their tokens or summaries once `fill` has run."""

    def __init__(self, extraction: Extraction, normalization: str, seed: int) -> None:
        self.extraction, self.sites = extraction, extraction.sites
        self._normalization, self._seed = normalization, seed
        self._opened: dict[bool, Tokens] = {}
        self.embedded = 0

    def fill(self, progress: Progress) -> None:
        """Runs the forward passes that are missing; `embedded` counts their samples."""
        self.embedded += self.extraction.fill(progress)

    def of(self, task: Task) -> LayerGroup:
        """The same sites of another task's samples."""
        return LayerGroup(replace(self.extraction, task=task), self._normalization, self._seed)

    def forget(self) -> None:
        """Gives the room in the cache to the next group, unless an earlier run stored these blocks: what it paid for stays."""
        if self.embedded:
            self.extraction.forget()

    def open(self, summaries: bool) -> Tokens:
        """The group's splits, normalised by the train moments of tokens or of summaries; truth and moments are made once."""
        if summaries not in self._opened:
            self._opened[summaries] = self._open(summaries)
        return self._opened[summaries]

    def _open(self, summaries: bool) -> Tokens:
        splits = []
        for name in SPLITS:
            geometry = [self.extraction.geometry(name, block) for block in self.extraction.blocks(name)]
            splits.append(SplitBlocks(self.extraction, name, self._seed, geometry, summaries))
        train = splits[0]
        moments = Moments(len(train.sites), train.width, self.extraction.device)
        for n, sums in train.sums():
            moments.add(n, sums)
        for split in splits:
            split.normalize = normalization(self._normalization, moments)
        return Tokens(self.sites, *splits)


@dataclass(frozen=True)
class Plan:
    """What a run will do, before it does it: sizes from the real geometry of the first samples, and what is cached."""

    groups: tuple[LayerGroup, ...]
    storage: Storage | Literal["none"]
    tokens: int
    bytes: int
    missing: int
    samples: int


def plan(task: Task, backbone: Backbone, sites: Sequence[Site], how: PlanOptions) -> Plan:
    """The layer groups of a run: one, where all sites fit `cache_bytes`; else as many as needed, one forward pass each.

    Storage is float32 where that fits, else 16-bit (float16; bfloat16 after an overflow). With `cache_bytes` 0, or a backbone
    that is itself stored embeddings, nothing is stored and each pass reads or computes the values anew.
    """
    per_sample = _tokens_per_sample(task, backbone)
    samples = sum(len(split) for split in task.splits.values())
    tokens = round(per_sample * samples)
    stored = how.cache_bytes > 0 and getattr(backbone, "store", True)
    full = tokens * len(sites) * backbone.width * 4
    dtype: Storage = how.storage or ("float32" if full <= how.cache_bytes else "float16")
    if dtype == "float16" and Store(how.cache_dir, backbone, dtype).overflowed():
        dtype = "bfloat16"
    size = full if dtype == "float32" else full // 2
    parts = max(1, math.ceil(size / how.cache_bytes)) if stored else 1
    step = max(1, len(sites) // parts)
    block = max(1, how.block_tokens // max(1, round(per_sample))) if task.modality != "text" else 64
    groups = tuple(
        LayerGroup(
            Extraction(
                task,
                backbone,
                tuple(sites[start : start + step]),
                Store(how.cache_dir, backbone, dtype) if stored else None,
                how.batching,
                block,
                how.device,
            ),
            how.normalization,
            how.seed,
        )
        for start in range(0, len(sites), step)
    )
    missing = sum(len(block) for group in groups for _, block in group.extraction.missing())
    return Plan(groups, dtype if stored else "none", tokens, size if stored else 0, missing, samples)


@dataclass(frozen=True)
class PlanOptions:
    """The part of a run that decides how embeddings are made and kept."""

    cache_dir: Path
    cache_bytes: int
    batching: Batching
    block_tokens: int
    normalization: str
    seed: int
    device: str
    storage: Storage | None = None


def _tokens_per_sample(task: Task, backbone: Backbone) -> float:
    """The mean over up to 16 train samples, from the model's own inputs; no forward pass."""
    n = min(1 if task.modality == "image" else 16, len(task.splits["train"]))
    return len(backbone.inputs(task.splits["train"].samples(range(n))).regions) / n
