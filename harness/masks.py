"""COCO run-length masks, checked before pycocotools sees them: a malformed one would crash the interpreter, not raise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_SIDE = 1 << 15


def checked_rle(size: Sequence[int], counts: str | bytes | Sequence[int]) -> dict[str, Any]:
    """`{size: [height, width], counts: ASCII}` from a compressed string or a list of run lengths, column by column.

    Raises ValueError where size is no [height, width] or the runs do not fill it exactly.
    """
    shape = list(size)
    if len(shape) != 2 or not all(_whole(side) and 0 < side < LARGEST_SIDE for side in shape):
        raise ValueError(f"size {shape} is not [height, width]")
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    runs = run_lengths(text) if isinstance(text, bytes) else list(text)
    if not all(_whole(run) and run >= 0 for run in runs) or sum(runs) != shape[0] * shape[1]:
        raise ValueError("the run lengths do not fill the size")
    packed = coco_mask.frPyObjects({"size": shape, "counts": runs}, *shape)
    return {"size": [int(side) for side in shape], "counts": packed["counts"].decode("ascii")}


def rle_mask(rles: Sequence[dict[str, Any]]) -> NDArray[Any]:
    """[height, width] bool: the union of masks of one size. Raises ValueError for a malformed one."""
    packed = [checked_rle(rle["size"], rle["counts"]) for rle in rles]
    if len({tuple(rle["size"]) for rle in packed}) != 1:
        raise ValueError("masks of one concept differ in size")
    merged = coco_mask.merge([{**rle, "counts": rle["counts"].encode("ascii")} for rle in packed])
    mask: NDArray[Any] = coco_mask.decode(merged).astype(bool)
    return mask


def run_lengths(counts: bytes) -> list[int]:
    """The run lengths of a compressed string (maskApi.c): five bits a character; from the fourth run on, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("counts is not a COCO RLE string")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("counts is a truncated COCO RLE string")
    return runs


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
