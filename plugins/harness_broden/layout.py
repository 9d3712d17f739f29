"""The official Broden layout as NetDissect wrote it: index.csv, label.csv and the label PNGs below images/.

A cell of index.csv holds PNG names, or label numbers of the whole image, separated by `;`. A PNG's label number is R + 256 G; 0 is
no label. Nothing here decides what a concept is (dataset.py does).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from harness.api import HarnessError, unknown

if TYPE_CHECKING:
    from numpy.typing import NDArray

CATEGORIES = ("color", "object", "part", "material", "scene", "texture")
LONGEST = 9
"""Digits of a label number."""
PLACE = ("image", "ih", "iw", "sh", "sw")


@dataclass(frozen=True)
class Picture:
    """A row of index.csv. sizes are (height, width); cells: category -> what its cell holds, empty ones left out."""

    image: str
    size: tuple[int, int]
    label_size: tuple[int, int]
    cells: Mapping[str, tuple[str, ...]]
    where: str


def read_index(path: Path, source: str) -> list[Picture]:
    """The rows whose image lies in the folder `source`, in file order."""
    sources: set[str] = set()
    found = []
    for row, where in _rows(path, PLACE):
        image = _inside(row["image"], where)
        sources.add(image.partition("/")[0])
        if image.startswith(f"{source}/"):
            found.append(_picture(row, image, where))
    if not found:
        raise unknown("source", source, sources, where=str(path))
    return found


def read_labels(path: Path) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Label number -> its name, and its categories from the most frequent to the rarest, as the file lists them."""
    labels = {}
    for row, where in _rows(path, ("number", "name", "category")):
        categories = tuple(re.sub(r"\(.*", "", part).strip() for part in row["category"].split(";"))
        if not row["number"].isdecimal() or not all(categories):
            raise HarnessError(
                f"{where}: number {row['number']!r} and category {row['category']!r}, not as in `12,dog,object(9)`"
            )
        number = int(row["number"])
        if number in labels:
            raise HarnessError(
                f"{where}: label {number} is there twice, as {labels[number][0]!r} too; unpack the archive again"
            )
        labels[number] = (row["name"], categories)
    return labels


def label_maps(folder: Path, picture: Picture, category: str) -> Iterator[NDArray[Any]]:
    """[height, width] label numbers, in `label_size`, of each PNG or whole-image number of a cell."""
    for part in picture.cells.get(category, ()):
        if part.isdecimal():
            if len(part) > LONGEST:
                raise HarnessError(f"{picture.where}: {part[:40]!r} is no label number; unpack the archive again")
            yield np.full(picture.label_size, int(part), np.int64)
        else:
            yield _png(folder / "images" / _inside(part, picture.where), picture)


def enlarged(masks: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """[n, *size]: masks [n, height, width] at another size; each pixel takes the value of the one its centre falls in."""
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, masks.shape[1:], strict=True))
    large: NDArray[Any] = masks[:, rows[:, None], columns[None]]
    return large


def _rows(path: Path, need: tuple[str, ...]) -> Iterator[tuple[dict[str, str], str]]:
    """(row, its place for messages) of a CSV file that has the needed columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if lacking := [name for name in need if name not in (reader.fieldnames or ())]:
                raise HarnessError(f"{path} has no column {lacking[0]!r}; it must be the file of the official Broden archive")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise HarnessError(f"{where} has not as many cells as the header; unpack the archive again")
                yield row, where
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise HarnessError(
            f"cannot read {path}; {getattr(cause, 'strerror', None) or cause}; unpack the archive again"
        ) from cause


def _picture(row: Mapping[str, str], image: str, where: str) -> Picture:
    sides = [int(row[name]) if row[name].isdecimal() else 0 for name in PLACE[1:]]
    if not all(0 < side < 1 << 15 for side in sides):
        raise HarnessError(f"{where}: ih, iw, sh, sw are {', '.join(row[name] for name in PLACE[1:])}; pixels are allowed")
    cells = {name: tuple(part.strip() for part in (row.get(name) or "").split(";") if part.strip()) for name in CATEGORIES}
    filled = {name: parts for name, parts in cells.items() if parts}
    return Picture(image, (sides[0], sides[1]), (sides[2], sides[3]), filled, where)


def _inside(name: str, where: str) -> str:
    """A path below images/, as written."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise HarnessError(f"{where}: {name!r} is no path below images/; unpack the official archive again")
    return str(path)


def _png(path: Path, picture: Picture) -> NDArray[Any]:
    try:
        with Image.open(path) as image:
            mode = image.mode
            channels = np.asarray(image.convert("RGB"), np.uint16)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise HarnessError(f"cannot read {path}, named in {picture.where}; {why}; unpack the archive again") from cause
    if mode not in ("RGB", "RGBA", "P"):  # a grey g would be read as g + 256 g
        raise HarnessError(f"{path}, named in {picture.where}, has pixels of mode {mode}; label numbers are R + 256 G of RGB")
    if channels.shape[:2] != picture.label_size:
        raise HarnessError(f"{path} has (height, width) {channels.shape[:2]}, {picture.where} says {picture.label_size}")
    numbers: NDArray[Any] = channels[..., 0] + 256 * channels[..., 1]
    return numbers
