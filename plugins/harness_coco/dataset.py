"""The data set `coco`: which images are in which split, what must be fetched, and the tables the harness reads.

Official layout below one folder: train2017/ val2017/ annotations/{instances,panoptic}_{train,val}2017.json and, for panoptic,
annotations/panoptic_{train,val}2017/*.png. No image is opened here. Splits, labels and downloads are described in README.md.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from rich.console import Console
from rich.progress import track

from harness.api import SPLITS, HarnessError, unknown, unpack
from harness_coco.download import ARCHIVES, IMAGE_BYTES, Downloads
from harness_coco.masks import Rle, instance_masks, panoptic_masks, panoptic_record
from harness_coco.reading import PAPER, Listing, Picture, read_listing, read_paper_split

FOLDERS = ("train2017", "val2017")
FEATURES = Features(
    {
        "id": Value("string"),
        "image": Image(),
        "concepts": List(Value("string")),
        "regions": List({"concept": Value("string"), "rle": {"size": List(Value("int32")), "counts": Value("string")}}),
    }
)

Listings = Mapping[str, Listing]
Chosen = dict[str, list[Picture]]
Masks = Callable[[Picture], dict[str, Rle]]


def load(
    folder: str | None = None,
    annotations: str = "instances",
    split: str = "official",
    metadata: str | None = None,
    train_limit: int = 4000,
    download: str | None = None,
) -> DatasetDict:
    """COCO 2017 with splits train, cal and test.

    folder: the official layout; default `$HARNESS_DATA/coco`.
    annotations: "instances" (80 categories and their super-categories) or "panoptic" (133 things and stuff, official names).
    split: "official" (train = up to `train_limit` train2017 images in order of sha256(id); cal, test = first and second half
    of val2017 by id, an odd one goes to test) or "paper" (`metadata`, the authors' file, default `<folder>/metadata.csv`).
    download: "ask", "always" or "never"; default `$HARNESS_DOWNLOAD`, else ask. "always" also completes a partial data set.
    """
    download = download or os.environ.get("HARNESS_DOWNLOAD") or "ask"
    _check(annotations, split, train_limit, download)
    root = _root(folder)
    paper = read_paper_split(Path(metadata).expanduser() if metadata else root / "metadata.csv") if split == "paper" else None
    downloads = Downloads(root, download)
    _agree_on_whole_parts(downloads, annotations, 500 if paper else train_limit)
    _need_annotations(downloads, annotations)
    listings = {
        name: read_listing(root / "annotations" / f"{annotations}_{name}.json", name, with_super=annotations == "instances")
        for name in FOLDERS
    }
    chosen = _official(downloads, listings, train_limit) if paper is None else _paper(downloads, listings, paper)
    masks = _panoptic(downloads, listings, chosen) if annotations == "panoptic" else _instances(listings)
    return _tables(chosen, root, masks)


def _check(annotations: str, split: str, train_limit: int, download: str) -> None:
    for what, value, allowed in (
        ("annotations", annotations, ("instances", "panoptic")),
        ("split", split, ("official", "paper")),
        ("download", download, ("ask", "always", "never")),
    ):
        if value not in allowed:
            raise unknown(what, str(value), allowed, where="data set coco")
    if not isinstance(train_limit, int) or train_limit < 1:
        raise HarnessError(f"train_limit is {train_limit!r} in data set coco; a whole number of at least 1 is allowed")


def _root(folder: str | None) -> Path:
    if folder is None and not os.environ.get("HARNESS_DATA"):
        raise HarnessError(
            "data set coco has no folder; neither the option `folder` nor the environment variable HARNESS_DATA is set; "
            "set HARNESS_DATA to a folder that has, or is to have, the official COCO 2017 layout in coco/"
        )
    path = Path(folder) if folder is not None else Path(os.environ["HARNESS_DATA"]) / "coco"
    return path.expanduser().absolute()


# --- what is there, and what must be fetched


def _agree_on_whole_parts(downloads: Downloads, annotations: str, train_images: int) -> None:
    """Asks once for everything that is missing as a whole, so that a fresh machine gets one question, not three."""
    parts = dict(_absent_annotations(downloads.folder, annotations))
    if not _files(downloads.folder / "train2017"):
        parts["images in train2017"] = train_images * IMAGE_BYTES
    if not _files(downloads.folder / "val2017"):
        parts["images in val2017"] = ARCHIVES["val2017"].size
    if parts:
        downloads.allow("no " + ", no ".join(parts), sum(parts.values()))


def _absent_annotations(root: Path, annotations: str) -> list[tuple[str, int]]:
    """The JSON files that are not there, and how much must be fetched for them (one zip has both)."""
    names = [f"annotations/{annotations}_{name}.json" for name in FOLDERS]
    absent = [name for name in names if not (root / name).is_file()]
    return [(name, 0 if position else ARCHIVES[annotations].size) for position, name in enumerate(absent)]


def _need_annotations(downloads: Downloads, annotations: str) -> None:
    """The JSON files, and for panoptic the zips of PNGs beside them."""
    if _absent_annotations(downloads.folder, annotations):
        kinds = ("json", "zip") if annotations == "panoptic" else ("json",)
        names = {f"annotations/{annotations}_{name}.{kind}" for name in FOLDERS for kind in kinds}
        downloads.archive(annotations, names.__contains__)


def _need_images(downloads: Downloads, pictures: Sequence[Picture], split: str) -> None:
    """Fetches the images that are not there: val2017.zip if more than 1,000 of them are absent, else one by one by coco_url."""
    for name in FOLDERS:
        of_folder = [p for p in pictures if p.folder == name]
        there = _files(downloads.folder / name)
        absent = [p for p in of_folder if p.file_name not in there]
        if not absent:
            continue
        zipped = name == "val2017" and len(absent) > 1000
        downloads.allow(
            f"{len(absent):,} of the {len(of_folder):,} images of {name} in split {split} (first: {absent[0].file_name})",
            ARCHIVES["val2017"].size if zipped else len(absent) * IMAGE_BYTES,
        )
        if zipped:
            downloads.archive("val2017", lambda member: member.startswith("val2017/"))
        else:
            downloads.images(name, [(p.url, p.file_name) for p in absent])


def _need_pngs(downloads: Downloads, listing: Listing, pictures: Sequence[Picture], name: str) -> None:
    """Panoptic PNGs of the chosen images: unpacked from annotations/panoptic_*.zip, which is fetched if need be."""
    folder, inner = listing.path.parent, listing.path.with_suffix(".zip")
    absent = {panoptic_record(listing, p)[0] for p in pictures} - _files(folder / inner.stem)
    if not absent:
        return
    if not inner.is_file():
        downloads.allow(f"{len(absent):,} PNGs (first: annotations/{inner.stem}/{min(absent)})", ARCHIVES["panoptic"].size)
        downloads.archive("panoptic", lambda member: member.startswith("annotations/panoptic_"))
    unpack(inner, folder, {f"{inner.stem}/{file}" for file in absent}.__contains__)
    if left := absent - _files(folder / inner.stem):
        raise HarnessError(f"{inner} lacks {len(left):,} PNGs of {listing.path} (first: {min(left)}); fetch both again")


def _files(folder: Path) -> set[str]:
    """Names of the files in a folder; empty if there is no folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file() and not entry.name.endswith(".part")}


# --- which images


def _official(downloads: Downloads, listings: Listings, train_limit: int) -> Chosen:
    """The official split over the images that are there; a folder without any, or with "always", is completed first."""
    train = sorted(listings["train2017"].pictures.values(), key=lambda p: hashlib.sha256(str(p.id).encode()).digest())
    val = sorted(listings["val2017"].pictures.values())
    for name, wanted in (("train2017", train[:train_limit]), ("val2017", val)):
        if downloads.policy == "always" or not _files(downloads.folder / name):
            _need_images(downloads, wanted, "official")
    train, val = _there(downloads.folder, train), _there(downloads.folder, val)
    if not train or len(val) < 2:
        lists = " and ".join(str(listing.path) for listing in listings.values())
        raise HarnessError(
            f"too few COCO images: of those listed in {lists}, {downloads.folder} has {len(train)} in train2017 and {len(val)} "
            f"in val2017; at least 1 and 2 are needed; put images and annotations of the same release there"
        )
    return {"train": train[:train_limit], "cal": val[: len(val) // 2], "test": val[len(val) // 2 :]}


def _there(root: Path, pictures: Iterable[Picture]) -> list[Picture]:
    files = {name: _files(root / name) for name in FOLDERS}
    return [p for p in pictures if p.file_name in files[p.folder]]


def _paper(downloads: Downloads, listings: Listings, rows: Mapping[int, str]) -> Chosen:
    """The authors' split, complete or not at all: they took train and test from val2017 and cal from train2017."""
    known = {**listings["train2017"].pictures, **listings["val2017"].pictures}
    if strange := [key for key in rows if key not in known]:
        lists = " or ".join(str(listing.path) for listing in listings.values())
        raise HarnessError(
            f"split paper names {len(strange):,} of {len(rows):,} images that the annotations lack (first: {strange[0]}); "
            f"not in {lists}; put the official annotation files there (https://cocodataset.org/#download)"
        )
    chosen = {split: [known[key] for key, its in rows.items() if its == split] for split in SPLITS}
    if empty := [split for split in SPLITS if not chosen[split]]:
        raise HarnessError(f"split paper has no image in {', '.join(empty)}; get the authors' metadata.csv from {PAPER}")
    _need_images(downloads, [known[key] for key in rows], "paper")
    return chosen


# --- their masks, and the tables


def _instances(listings: Listings) -> Masks:
    return lambda picture: instance_masks(listings[picture.folder], picture)


def _panoptic(downloads: Downloads, listings: Listings, chosen: Chosen) -> Masks:
    for name, listing in listings.items():
        _need_pngs(downloads, listing, [p for split in chosen.values() for p in split if p.folder == name], name)
    folders = {name: listing.path.with_suffix("") for name, listing in listings.items()}
    return lambda picture: panoptic_masks(listings[picture.folder], picture, folders[picture.folder])


def _tables(chosen: Chosen, root: Path, masks: Masks) -> DatasetDict:
    """The three splits: absolute image paths, sorted concepts, one region per concept."""
    pictures = [picture for split in chosen.values() for picture in split]
    folders: dict[int, str] = {}
    for picture in pictures:
        if folders.setdefault(picture.id, picture.folder) != picture.folder:
            raise HarnessError(
                f"image id {picture.id} is both in train2017 and in val2017 of {root}; give each image its own id"
            )
    stderr = Console(stderr=True)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = track(
            pool.map(masks, pictures), "masks", len(pictures), console=stderr, transient=True, disable=not sys.stderr.isatty()
        )
        by_id = {picture.id: its for picture, its in zip(pictures, found, strict=True)}
    return DatasetDict({split: _table(rows, root, by_id) for split, rows in chosen.items()})


def _table(pictures: Sequence[Picture], root: Path, masks: Mapping[int, dict[str, Rle]]) -> Dataset:
    columns = {
        "id": [str(p.id) for p in pictures],
        "image": [{"bytes": None, "path": str(root / p.folder / p.file_name)} for p in pictures],
        "concepts": [sorted(masks[p.id]) for p in pictures],
        "regions": [[{"concept": name, "rle": masks[p.id][name]} for name in sorted(masks[p.id])] for p in pictures],
    }
    return Dataset.from_dict(columns, features=FEATURES)
