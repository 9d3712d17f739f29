"""The data set `broden`: which images of one source are in which split, and the masks of its labels.

A label has one concept, `<category>::<name>`. A label that stands in several of the asked categories is named after the rarest of them,
as the authors of arXiv 2512.05038 name it (`tree` is `part::tree`), and its mask covers it wherever it stands. Differences from
their code are in README.md.
"""

from __future__ import annotations

import csv
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track

from harness.api import SPLITS, HarnessError, unknown
from harness_broden.download import SIZES, layout
from harness_broden.layout import CATEGORIES, Picture, enlarged, label_maps, read_index, read_labels

FOLDERS = {"pascal": "Broden-Pascal", "opensurfaces": "Broden-OpenSurfaces"}
"""Source -> the authors' folder name, where their metadata.csv lies."""
PAPER = "https://github.com/BrachioLab/SuperActivators (Data/<name>/metadata.csv)"
SHARES = (60, 80)
"""Percent where train and cal end."""
FEATURES = Features(
    {
        "id": Value("string"),
        "image": Image(),
        "concepts": List(Value("string")),
        "regions": List({"concept": Value("string"), "rle": {"size": List(Value("int32")), "counts": Value("string")}}),
    }
)

Masks = dict[str, dict[str, Any]]


def load(
    source: str = "pascal",
    categories: list[str] | None = None,
    folder: str | None = None,
    size: int = 224,
    split: str = "auto",
    metadata: str | None = None,
    seed: int = 0,
    download: str | None = None,
    sha256: str | None = None,
) -> DatasetDict:
    """One source of Broden with splits train, cal and test.

    source: pascal, opensurfaces, ade20k or dtd. categories: those whose labels are concepts; default object and part.
    folder: the official layout, or where broden1_<size> lies; default `$HARNESS_DATA/broden`. size: 224 (the paper's), 227 or 384.
    split: "paper" (the authors' metadata.csv; default `<folder>/Broden-Pascal/metadata.csv`), "seeded" (60/20/20 by a hash of
    seed and image) or "auto": the paper's where the file is there.
    download: "ask", "always" or "never"; default `$HARNESS_DOWNLOAD`, else ask. sha256: what the archive must hash to.
    """
    wanted = tuple(categories or ("object", "part"))
    policy = download or os.environ.get("HARNESS_DOWNLOAD") or "ask"
    _check(wanted, size, split, policy)
    root = layout(folder, policy, size, sha256)
    pictures = read_index(root / "index.csv", source)
    concepts = _names(root / "label.csv", wanted)
    for category in wanted:
        if not any(category in picture.cells for picture in pictures):
            there = {name for picture in pictures for name in picture.cells}
            raise unknown("category", category, there, where=f"source {source} of {root / 'index.csv'}")
    paper = _paper_file(root, source, split, metadata)
    told = _read_paper(paper, pictures) if paper else None
    chosen = [picture for picture in pictures if told is None or picture.image in told]
    masks = _all_masks(root, chosen, wanted, concepts)
    return _split(root, chosen, masks, told, seed, paper)


def _check(categories: Sequence[str], size: int, split: str, policy: str) -> None:
    asked: list[tuple[str, str, Sequence[str]]] = [("category", each, CATEGORIES) for each in categories]
    asked += [("size", str(size), tuple(map(str, SIZES))), ("split", split, ("auto", "paper", "seeded"))]
    asked.append(("download", policy, ("ask", "always", "never")))
    for what, value, allowed in asked:
        if value not in allowed:
            raise unknown(what, str(value), allowed, where="data set broden")


# --- concepts and masks


def _names(path: Path, wanted: Sequence[str]) -> dict[int, str]:
    """Label number -> concept, for the labels that stand in one of the wanted categories; 0 is none, whatever the file calls it."""
    found = {}
    for number, (name, categories) in read_labels(path).items():
        among = [category for category in categories if category in wanted]
        if among and number:
            found[number] = f"{among[-1]}::{name}"
    return found


def _all_masks(
    root: Path, pictures: Sequence[Picture], wanted: Sequence[str], concepts: Mapping[int, str]
) -> dict[str, Masks | None]:
    """Image -> its masks by concept; None where no pixel of the wanted categories has any label: not annotated."""
    work = partial(_masks, root, wanted=wanted, concepts=concepts)
    stderr = Console(stderr=True)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = track(
            pool.map(work, pictures), "masks", len(pictures), console=stderr, transient=True, disable=not sys.stderr.isatty()
        )
        return {picture.image: masks for picture, masks in zip(pictures, found, strict=True)}


def _masks(root: Path, picture: Picture, wanted: Sequence[str], concepts: Mapping[int, str]) -> Masks | None:
    covered: dict[str, Any] = {}
    labelled = False
    for numbers in (each for category in wanted for each in label_maps(root, picture, category)):
        for number in np.unique(numbers).tolist():
            labelled = labelled or number != 0
            if number in concepts:
                name = concepts[number]
                covered[name] = covered.get(name, False) | (numbers == number)
    if not labelled:
        return None
    if not covered:
        return {}
    names = sorted(covered)
    large = enlarged(np.stack([covered[name] for name in names]), picture.size)
    rles = coco_mask.encode(np.asfortranarray(large.transpose(1, 2, 0), np.uint8))
    return {
        name: {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
        for name, rle in zip(names, rles, strict=True)
    }


# --- splits


def _paper_file(root: Path, source: str, split: str, metadata: str | None) -> Path | None:
    """The authors' metadata.csv where the split is theirs; None where it is seeded."""
    if split == "seeded":
        return None
    name = FOLDERS.get(source, source)
    places = [Path(metadata).expanduser()] if metadata else [root / name / "metadata.csv", root.parent / name / "metadata.csv"]
    found = next((place for place in places if place.is_file()), None)
    if found is None and (split == "paper" or metadata):
        looked = " and ".join(str(place) for place in places)
        raise HarnessError(
            f"split: paper needs the authors' metadata.csv; looked for {looked}; get it from {PAPER.replace('<name>', name)}, "
            f"or set `metadata`, or `split: seeded`"
        )
    return found


def _read_paper(path: Path, pictures: Sequence[Picture]) -> dict[str, str]:
    """Image -> split. Of the file only image_path and split are read; an image is found by its file name in the source."""
    by_name = {Path(picture.image).name: picture.image for picture in pictures}
    told: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if lacking := [name for name in ("image_path", "split") if name not in (reader.fieldnames or ())]:
            raise HarnessError(f"{path} has no column {lacking[0]!r}; get the file from {PAPER}, or use `split: seeded`")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            image = by_name.get((row["image_path"] or "").replace("\\", "/").rpartition("/")[2])
            if image is None or image in told:
                problem = "is there twice" if image else f"is none of the {len(by_name):,} images of index.csv"
                raise HarnessError(f"{where}: image_path {row['image_path']!r} {problem}; use the file of the same source")
            if row["split"] not in SPLITS:
                raise unknown("split", str(row["split"]), SPLITS, where=where)
            told[image] = row["split"]
    return told


def seeded(image: str, seed: int) -> str:
    """60/20/20 by sha256("<seed>:<image>")."""
    place = int.from_bytes(hashlib.sha256(f"{seed}:{image}".encode()).digest()[:7], "big") % 100
    return SPLITS[sum(place >= end for end in SHARES)]


def _split(
    root: Path,
    pictures: Sequence[Picture],
    masks: Mapping[str, Masks | None],
    told: Mapping[str, str] | None,
    seed: int,
    paper: Path | None,
) -> DatasetDict:
    """The three tables. Without the authors' split, images that nobody labelled are left out: their negatives would be guesses."""
    bare = sum(masks[picture.image] is None for picture in pictures)
    if told is None:
        pictures = [picture for picture in pictures if masks[picture.image] is not None]
        about = f"split 60/20/20 by sha256 of {seed}:image; {bare} images without any label left out"
    else:
        about = f"split of the authors' metadata.csv; {bare} images without any label are not annotated"
    parts: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for picture in pictures:
        parts[told[picture.image] if told else seeded(picture.image, seed)].append(picture)
    if empty := [split for split in SPLITS if not parts[split]]:
        raise HarnessError(f"{paper or root / 'index.csv'} gives no image to {', '.join(empty)}; every split needs some")
    made = {split: _table(root, rows, masks) for split, rows in parts.items()}
    for table in made.values():
        table.info.description = about
    return DatasetDict(made)


def _table(root: Path, pictures: Sequence[Picture], masks: Mapping[str, Masks | None]) -> Dataset:
    found = [masks[picture.image] for picture in pictures]
    columns = {
        "id": [picture.image for picture in pictures],
        "image": [{"bytes": None, "path": str(root / "images" / picture.image)} for picture in pictures],
        "concepts": [list(each or ()) for each in found],
        "regions": [None if each is None else [{"concept": name, "rle": rle} for name, rle in each.items()] for each in found],
    }
    return Dataset.from_dict(columns, features=FEATURES)
