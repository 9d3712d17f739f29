"""The data set `clevr`: one coloured object on a grey plane, its colour, its shape and its mask.

`load()` reads the renders packed beside this file; `load(folder=...)` reads the folder published
with arXiv 2512.05038 (metadata.csv and images), whose masks are a rule on colour. Nothing is
cached and nothing is downloaded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Picture
from pycocotools import mask as coco

from harness.api import SPLITS, HarnessError

CONCEPTS = (
    "color::blue",
    "color::green",
    "color::red",
    "shape::cube",
    "shape::cylinder",
    "shape::sphere",
)
SPREAD = 20  # the authors' rule: a pixel is the object's if two of its channels differ by more


def load(folder: str | None = None) -> DatasetDict:
    """Splits train, cal and test with columns id, image, concepts and regions.

    Each present concept has one region, the object's mask: its colour and its shape share it.
    """
    bundled = Path(__file__).with_name("clevr.parquet")
    rows = packed_rows(bundled) if folder is None else published_rows(Path(folder).expanduser())
    parts: dict[str, list[dict]] = {split: [] for split in SPLITS}
    for split, row in rows:
        parts[split].append(row)
    for split in SPLITS:
        if not parts[split]:
            raise HarnessError(
                f"no image has split {split!r}; {folder}; {', '.join(SPLITS)} must each have one; correct the `split` column"
            )
    return DatasetDict({split: as_dataset(parts[split]) for split in SPLITS})


def features() -> Features:
    """The columns; a null `regions` would mean not annotated, and does not occur here."""
    rle = {"size": List(Value("int32")), "counts": Value("string")}
    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "concepts": List(Value("string")),
            "regions": List({"concept": Value("string"), "rle": rle}),
        }
    )


def as_dataset(rows: list[dict]) -> Dataset:
    """Rows as a data set held in memory."""
    columns = features()
    return Dataset.from_dict({name: [row[name] for row in rows] for name in columns}, columns)


def sample(name: str, content: bytes, concepts: Iterable[str], rle: dict) -> dict:
    """One row."""
    present = sorted(concepts)
    regions = [{"concept": concept, "rle": rle} for concept in present]
    image = {"bytes": content, "path": None}
    return {"id": name, "image": image, "concepts": present, "regions": regions}


def packed_rows(path: Path) -> Iterable[tuple[str, dict]]:
    """(split, row) for every render in a file written by pack.py."""
    for row in pq.read_table(path).to_pylist():
        concepts = (f"color::{row['color']}", f"shape::{row['shape']}")
        rle = {"size": row["size"], "counts": row["counts"]}
        yield row["split"], sample(row["id"], row["image"], concepts, rle)


def published_rows(folder: Path) -> Iterable[tuple[str, dict]]:
    """(split, row) for every line of the authors' metadata.csv; an image's id is its path there."""
    table = folder / "metadata.csv"
    if not table.is_file():
        raise HarnessError(
            f"no metadata.csv; {folder}; expected the published CLEVR folder, metadata.csv beside "
            "its images; correct `folder`, or leave it out to use the bundled renders"
        )
    with table.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, restval="")
        check_columns(reader.fieldnames or [], table)
        seen: set[str] = set()
        for line in reader:
            where = f"{table}, line {reader.line_num}"
            if line["image_path"] in seen:
                raise HarnessError(
                    f"image_path {line['image_path']!r} occurs twice; {where}; each image stands once; remove one of the lines"
                )
            seen.add(line["image_path"])
            yield published_row(folder, line, where)


def check_columns(found: Iterable[str], table: Path) -> None:
    """Raise HarnessError unless every column that is read is there."""
    found = list(found)
    missing = [name for name in ("image_path", "split", *CONCEPTS) if name not in found]
    if missing:
        raise HarnessError(
            f"missing columns {', '.join(missing)}; {table}; found {', '.join(found) or 'none'}; "
            "rename the columns to image_path, split and the six concepts"
        )


def published_row(folder: Path, line: dict[str, str], where: str) -> tuple[str, dict]:
    """(split, row) of one line of metadata.csv; `where` names that line in errors."""
    check_value("split", line["split"], SPLITS, where)
    for concept in CONCEPTS:
        check_value(concept, line[concept], ("0", "1"), where)
    content = read_inside(folder, line["image_path"], where)
    present = [concept for concept in CONCEPTS if line[concept] == "1"]
    try:
        rle = run_lengths(object_mask(content))
    except (OSError, SyntaxError) as error:
        raise HarnessError(
            f"image {line['image_path']!r} cannot be decoded ({error}); {where}; "
            "any format Pillow reads is allowed; copy the image again"
        ) from error
    return line["split"], sample(line["image_path"], content, present, rle)


def check_value(column: str, value: str, allowed: Iterable[str], where: str) -> None:
    """Raise HarnessError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise HarnessError(f"{column} is {value!r}; {where}; allowed: {', '.join(allowed)}; correct the cell")


def read_inside(folder: Path, relative: str, where: str) -> bytes:
    """The bytes of an image in `folder`; a path that leaves the folder, links included, is refused."""
    root = folder.resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise HarnessError(
            f"image_path {relative!r} leads outside the folder; {where}; "
            f"only paths inside {folder} are read; make it relative to the folder"
        )
    if not path.is_file():
        raise HarnessError(
            f"image {relative!r} is not there; {where}; paths are relative to {folder}; copy the images beside metadata.csv"
        )
    return path.read_bytes()


def object_mask(content: bytes) -> np.ndarray:
    """[height, width] bool: max(|R-G|, |G-B|, |R-B|) > 20, the authors' foreground rule.

    The largest of the three differences is the largest channel minus the smallest.
    """
    with Picture.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    return pixels.max(axis=2) - pixels.min(axis=2) > SPREAD


def run_lengths(mask: np.ndarray) -> dict:
    """A bool mask as COCO run lengths with ASCII counts."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
