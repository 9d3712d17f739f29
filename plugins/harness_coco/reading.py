"""Reads COCO annotation files and the authors' metadata.csv, and checks their form. It decodes no mask and opens no image."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.api import SPLITS, HarnessError, unknown
from harness_coco.download import HOST

PAPER = "https://github.com/BrachioLab/SuperActivators (Data/Coco/metadata.csv)"


class Picture(NamedTuple):
    """One entry of `images`; `folder` is train2017 or val2017."""

    id: int
    folder: str
    file_name: str
    height: int
    width: int
    url: str


@dataclass(frozen=True)
class Listing:
    """One annotation file: pictures and annotations by image id, and the concepts that each category id stands for."""

    path: Path
    pictures: dict[int, Picture]
    annotations: dict[int, list[dict[str, Any]]]
    concepts: dict[int, tuple[str, ...]]

    def names(self, annotation: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """The concepts of an annotation or panoptic segment."""
        category = annotation.get("category_id")
        if category not in self.concepts:
            raise HarnessError(
                f"{where} has category_id {category!r}, which {self.path} does not list in `categories`; mend it"
            )
        return self.concepts[category]


def read_listing(path: Path, folder: str, with_super: bool) -> Listing:
    """One annotation file, its annotations grouped by image; `with_super`: a category also stands for its super-category."""
    try:
        content = json.loads(path.read_bytes())
        grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            grouped[annotation["image_id"]].append(annotation)
        pictures = {picture.id: picture for picture in (_picture(image, folder, path) for image in content["images"])}
        concepts = {category["id"]: _concepts(category, with_super) for category in content["categories"]}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise HarnessError(
            f"{path} is not a COCO annotation file: {type(cause).__name__} {cause}; "
            f"images, annotations and categories are needed, as in the official files; fetch it again"
        ) from cause
    return Listing(path, pictures, dict(grouped), concepts)


def _picture(image: Mapping[str, Any], folder: str, path: Path) -> Picture:
    file_name, height, width = image["file_name"], int(image["height"]), int(image["width"])
    if Path(file_name).name != file_name:
        raise HarnessError(f"image {image['id']} of {path} has file_name {file_name!r}; only a name without folders is allowed")
    if not (0 < height < 1 << 15 and 0 < width < 1 << 15):
        raise HarnessError(f"image {image['id']} of {path} has height {height} and width {width}; 1 to 32767 is allowed")
    return Picture(int(image["id"]), folder, file_name, height, width, image.get("coco_url") or f"{HOST}/{folder}/{file_name}")


def _concepts(category: Mapping[str, Any], with_super: bool) -> tuple[str, ...]:
    """A category's name and its super-category's: once where they are equal (person)."""
    names = (category["name"], category.get("supercategory") if with_super else None)
    return tuple(dict.fromkeys(name for name in names if name))


def read_paper_split(path: Path) -> dict[int, str]:
    """Image id -> split, in file order, from the authors' metadata.csv: of its columns only image_path and split are read."""
    if not path.is_file():
        raise HarnessError(
            f"split: paper needs the authors' metadata.csv; there is no {path}; get it from {PAPER}, or set `metadata`"
        )
    rows: dict[int, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if lacking := {"image_path", "split"} - set(reader.fieldnames or ()):
            raise HarnessError(f"{path} has no column {' and '.join(sorted(lacking))}; get the file from {PAPER}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            stem = Path((row["image_path"] or "").replace("\\", "/")).stem
            if not stem.isdecimal() or int(stem) in rows:
                raise HarnessError(
                    f"{where}: image_path {row['image_path']!r} does not end in a new image id, as in 000000000139.jpg"
                )
            if row["split"] not in SPLITS:
                raise unknown("split", str(row["split"]), SPLITS, where=where)
            rows[int(stem)] = row["split"]
    return rows
