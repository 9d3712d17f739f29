"""From COCO annotations to one RLE mask per concept of an image.

Rasterisation is pycocotools'. On some malformed input it crashes the interpreter or eats all memory (an RLE string that does
not fill the image, a coordinate that is not finite), so everything is checked here first: what cannot be decoded is one line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from harness.api import HarnessError, checked_rle
from harness_coco.reading import Listing, Picture

Rle = dict[str, Any]


def instance_masks(listing: Listing, picture: Picture) -> dict[str, Rle]:
    """concept -> union of its annotations, crowd included.

    A concept is present iff an annotation of it exists, whatever its area: one that covers no pixel gives an empty mask.
    """
    parts: dict[str, list[Rle]] = defaultdict(list)
    for annotation in listing.annotations.get(picture.id, ()):
        where = f"annotation {annotation.get('id')} (image {picture.id}) of {listing.path}"
        rle = _decoded(annotation, picture, where)
        for name in listing.names(annotation, where):
            parts[name].append(rle)
    return {name: _as_text(coco_mask.merge(rles)) for name, rles in parts.items()}


def panoptic_masks(listing: Listing, picture: Picture, folder: Path) -> dict[str, Rle]:
    """concept -> the pixels of its segments, crowd included; segment id = R + 256 G + 65536 B, and 0 is no segment."""
    png, segments = panoptic_record(listing, picture)
    where = f"{folder / png} (image {picture.id} of {listing.path})"
    pixels = _segment_ids(folder / png, picture, where)
    known = np.array(sorted({0, *segments}), dtype=np.uint32)
    position = np.searchsorted(known, pixels).clip(max=len(known) - 1)
    if (stray := pixels[known[position] != pixels]).size:
        raise HarnessError(
            f"{where} has pixels of segment {stray[0]}, which segments_info does not list; fetch both files again"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for segment, info in segments.items():
        for name in listing.names(info, f"segment {segment} of {where}"):
            members[name].append(segment)
    layers = np.zeros((*pixels.shape, len(members)), dtype=np.uint8, order="F")
    for layer, ids in enumerate(members.values()):
        layers[..., layer] = np.isin(known, ids)[position]
    return {name: _as_text(rle) for name, rle in zip(members, coco_mask.encode(layers), strict=True)}


def panoptic_record(listing: Listing, picture: Picture) -> tuple[str, dict[int, dict[str, Any]]]:
    """The name of a picture's PNG, and its segments by id."""
    try:
        record = listing.annotations[picture.id][0]
        name, segments = record["file_name"], {int(info["id"]): info for info in record["segments_info"]}
    except (KeyError, TypeError, ValueError) as cause:
        raise HarnessError(
            f"{listing.path} has no panoptic annotation of image {picture.id}: {type(cause).__name__} {cause}; "
            f"file_name and segments_info are needed, as in the official files; fetch it again"
        ) from cause
    if Path(name).name != name or not all(0 < segment < 1 << 24 for segment in segments):
        raise HarnessError(
            f"{listing.path} has a PNG name with a folder, or a segment id beyond 1 to 2^24 - 1, at image {picture.id}"
        )
    return name, segments


def _segment_ids(png: Path, picture: Picture, where: str) -> np.ndarray:
    """[height, width] uint32."""
    try:
        with Image.open(png) as image:
            channels = np.asarray(image.convert("RGB"), dtype=np.uint32)
    except (OSError, SyntaxError, ValueError) as cause:
        raise HarnessError(f"{where} cannot be read as a PNG: {cause}; fetch it again") from cause
    if channels.shape[:2] != (picture.height, picture.width):
        raise HarnessError(f"{where} has (height, width) {channels.shape[:2]}, the image has {(picture.height, picture.width)}")
    ids: np.ndarray = channels[..., 0] + (channels[..., 1] << 8) + (channels[..., 2] << 16)
    return ids


def _decoded(annotation: dict[str, Any], picture: Picture, where: str) -> Rle:
    """One annotation as compressed RLE: polygons, uncompressed RLE (list counts) or compressed RLE."""
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, list):
            return _from_polygons(segmentation, picture)
        if isinstance(segmentation, dict):
            return _from_rle(segmentation, picture)
        raise ValueError("`segmentation` is neither polygons nor RLE")
    except (ValueError, TypeError, KeyError) as cause:
        raise HarnessError(f"{where} cannot be decoded: {cause}; mend or remove it") from cause


def _from_polygons(polygons: Sequence[Sequence[float]], picture: Picture) -> Rle:
    """Polygons of fewer than three points enclose nothing; coordinates far outside the image would exhaust memory."""
    kept = []
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or points.size % 2:
            raise ValueError("a polygon is not a flat list x1, y1, x2, y2, ...")
        if not (np.abs(points) <= 10 * max(picture.height, picture.width)).all():
            raise ValueError("a polygon has coordinates that are not finite, or that lie far outside the image")
        if points.size >= 6:
            kept.append(points.tolist())
    if not kept:
        return checked_rle([picture.height, picture.width], [picture.height * picture.width])
    return dict(coco_mask.merge(coco_mask.frPyObjects(kept, picture.height, picture.width)))


def _from_rle(rle: Rle, picture: Picture) -> Rle:
    if list(rle["size"]) != [picture.height, picture.width]:
        raise ValueError(f"the mask has (height, width) {tuple(rle['size'])}, the image has {(picture.height, picture.width)}")
    return checked_rle(rle["size"], rle["counts"])


def _as_text(rle: Rle) -> Rle:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
    }
