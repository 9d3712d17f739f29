"""From raw rows to the columns of the harness: id, image or text, concepts, regions. Every malformed value is one line.

RLE is checked before pycocotools sees it: on a string that does not fill the image it crashes the interpreter.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from harness.api import HarnessError, checked_rle, unknown
from harness_table.reading import Row

COLUMNS = ("id", "image", "text", "concepts", "regions", "masks", "split")


@dataclass(frozen=True)
class Columns:
    """Which column of the source holds what; None = no such column. `flags`: the 0/1 columns, each named as its concept."""

    id: str | None
    image: str | None
    text: str | None
    concepts: str | None
    regions: str | None
    masks: str | None
    split: str | None
    flags: tuple[str, ...]


def find_columns(rows: Sequence[Row], renamed: Mapping[str, str], flags: Iterable[str], source: str) -> Columns:
    """The columns by our names, or by the names `renamed` gives (ours -> theirs); `file_name` also serves as image."""
    there = list(dict.fromkeys(name for row in rows for name in row.values))
    for ours, theirs in renamed.items():
        if ours not in COLUMNS:
            raise unknown("key", str(ours), COLUMNS, where="`columns` of data set table")
        if theirs not in there:
            raise unknown("column", str(theirs), there, where=source, hint=f"`columns` names it for {ours}")
    for name in flags:
        if name not in there:
            raise unknown("column", str(name), there, where=source, hint="`concept_columns` names it")
    found = {ours: renamed.get(ours, ours if ours in there else None) for ours in COLUMNS}
    if found["image"] is None and "file_name" in there:
        found["image"] = "file_name"
    if found["image"] and found["text"] and ("image" in renamed) != ("text" in renamed):
        found["text" if "image" in renamed else "image"] = None
    columns = Columns(**found, flags=tuple(flags))
    _check_columns(columns, there, source)
    return columns


def _check_columns(columns: Columns, there: Sequence[str], source: str) -> None:
    has = f"{source} has the columns {', '.join(there)}"
    if (columns.image is None) == (columns.text is None):
        which = "neither an image nor a text column" if columns.image is None else "both an image and a text column"
        raise HarnessError(f"{has}: {which}; name one with `columns: {{image: ...}}` or `columns: {{text: ...}}`")
    if columns.concepts and columns.flags:
        raise HarnessError(
            f"{has}: concepts come from column {columns.concepts!r} or from `concept_columns`, not both; drop one"
        )
    if not (columns.concepts or columns.flags or columns.regions or columns.masks):
        raise HarnessError(
            f"{has}: none says which concepts are present; name one with `columns: {{concepts: ...}}` or `concept_columns`"
        )
    if columns.masks and (columns.regions or columns.text):
        other = f"column {columns.regions!r}" if columns.regions else "a text"
        raise HarnessError(f"{has}: mask images (column {columns.masks!r}) and {other} do not go together; drop one")


def parse(row: Row, columns: Columns) -> dict[str, Any]:
    """One row as the harness reads it."""
    out: dict[str, Any] = {"id": _id(row, columns)}
    if columns.image:
        out["image"] = _image(row, columns.image)
        out["regions"] = _mask_images(row, columns.masks) if columns.masks else _rles(row, columns.regions)
    else:
        out["text"] = _text(row, columns)
        out["regions"] = _spans(row, columns.regions, out["text"])
    out["concepts"] = _concepts(row, columns, out["regions"])
    return out


def _fail(row: Row, column: str | None, problem: str, allowed: str) -> HarnessError:
    return HarnessError(f"{row.where}, column {column!r}: {problem}; {allowed}")


def _id(row: Row, columns: Columns) -> str:
    """The id column, else the image's path or the row's number, behind its split where each split has a source of its own."""
    if columns.id:
        value = row.values.get(columns.id)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise _fail(row, columns.id, f"{value!r} is no id", "a string or a whole number is allowed")
        return str(value)
    image = row.values.get(columns.image) if columns.image else None
    name = image if isinstance(image, str) else str(row.number)
    return f"{row.split}/{name}" if row.split else name


def _text(row: Row, columns: Columns) -> str:
    value = row.values.get(columns.text or "")
    if not isinstance(value, str):
        raise _fail(row, columns.text, f"{_short(value)} is no text", "a string is allowed")
    return value


def _image(row: Row, column: str) -> dict[str, Any]:
    """{bytes, path}: bytes where the row has them, else the absolute path of a file that exists."""
    value = row.values.get(column)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return {"bytes": value["bytes"], "path": None}
    path = value.get("path") if isinstance(value, dict) else value
    return {"bytes": None, "path": str(_file(row, column, path))}


def _file(row: Row, column: str, value: Any) -> Path:
    """An existing file inside the row's folder, links followed."""
    if not isinstance(value, str) or not value:
        raise _fail(
            row,
            column,
            f"{_short(value)} is no image",
            "a path, or {bytes, path} as the datasets library writes it, is allowed",
        )
    if row.folder is None:
        if Path(value).is_absolute() and Path(value).is_file():
            return Path(value)  # the library's own cache
        raise _fail(row, column, f"{value!r} is a path, and a Hub row has no folder", "images inside the rows are allowed")
    folder = row.folder.resolve()
    path = (folder / value).resolve()
    if not path.is_relative_to(folder):
        raise _fail(
            row, column, f"{value!r} leads out of {folder}", "a path inside the folder of the file is allowed, links included"
        )
    if not path.is_file():
        raise _fail(row, column, f"there is no file {path}", "a path relative to the folder of the file is allowed")
    return path


def _concepts(row: Row, columns: Columns, regions: list[dict[str, Any]] | None) -> list[str]:
    """Names present, sorted: from the list column, the 0/1 columns, or else the annotated regions."""
    if columns.flags:
        return sorted(name for name in columns.flags if _flag(row, name))
    if not columns.concepts:
        if regions is None:
            raise _fail(
                row,
                columns.regions or columns.masks,
                "null, so nothing says which concepts are present",
                "add a column `concepts`",
            )
        return sorted({region["concept"] for region in regions})
    value = row.values.get(columns.concepts)
    if isinstance(value, str):
        value = _json(row, columns.concepts) if value.lstrip().startswith("[") else [name.strip() for name in value.split(";")]
        value = [name for name in value if name != ""]
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _fail(row, columns.concepts, f"{_short(value)} is no list of names", 'a list of strings, or "a;b", is allowed')
    return sorted(set(value))


def _flag(row: Row, column: str) -> bool:
    value = row.values.get(column)
    text = str(int(value) if isinstance(value, bool | float) and value in (0, 1) else value).strip().lower()
    if text not in {"0", "1", "true", "false"}:
        raise _fail(row, column, f"{_short(value)} is neither 0 nor 1", "0, 1, true or false is allowed")
    return text in {"1", "true"}


# --- regions


def _spans(row: Row, column: str | None, text: str) -> list[dict[str, Any]] | None:
    """Character spans; None = not annotated."""
    allowed = f"a list of {{concept, start, end}} with 0 <= start < end <= {len(text)} (characters of the text) is allowed"
    spans = _records(row, column, allowed)
    if spans is None:
        return None
    for span in spans:
        start, end = span.get("start"), span.get("end")
        if not (_whole(start) and _whole(end) and 0 <= start < end <= len(text)):  # type: ignore[operator]
            raise _fail(row, column, f"{_short(span)} is no span", allowed)
    return [{"concept": span["concept"], "start": span["start"], "end": span["end"]} for span in spans]


def _rles(row: Row, column: str | None) -> list[dict[str, Any]] | None:
    """COCO RLE, its counts compressed (a string) or not (a list); None = not annotated."""
    allowed = "a list of {concept, rle: {size: [height, width], counts: COCO RLE string or run lengths}} is allowed"
    regions = _records(row, column, allowed)
    if regions is None:
        return None
    try:
        return [
            {"concept": region["concept"], "rle": checked_rle(region["rle"]["size"], region["rle"]["counts"])}
            for region in regions
        ]
    except (KeyError, TypeError, ValueError) as cause:
        raise _fail(row, column, f"a mask cannot be decoded ({type(cause).__name__}: {cause})", allowed) from cause


def _mask_images(row: Row, column: str) -> list[dict[str, Any]] | None:
    """One image file per concept, any nonzero pixel in it (transparency is not looked at); None = not annotated."""
    allowed = "a list of {concept, mask: path of an image whose nonzero pixels are the concept} is allowed"
    regions = _records(row, column, allowed)
    if regions is None:
        return None
    return [{"concept": region["concept"], "rle": _mask_image(row, column, region.get("mask"), allowed)} for region in regions]


def _mask_image(row: Row, column: str, value: Any, allowed: str) -> dict[str, Any]:
    inside = isinstance(value, dict) and isinstance(value.get("bytes"), bytes)
    source = io.BytesIO(value["bytes"]) if inside else _file(row, column, value)
    try:
        with Image.open(source) as image:
            bands = np.atleast_3d(np.asarray(image))[..., : 1 if image.mode == "LA" else 3]
    except (OSError, SyntaxError, ValueError) as cause:
        raise _fail(row, column, f"mask {_short(value)} cannot be read ({' '.join(str(cause).split())})", allowed) from cause
    return _as_text(coco_mask.encode(np.asfortranarray((bands != 0).any(-1), dtype=np.uint8)))


def _records(row: Row, column: str | None, allowed: str) -> list[dict[str, Any]] | None:
    """A list of mappings that each name a concept; a string is read as JSON, and an empty one is null (CSV)."""
    value = row.values.get(column) if column else None
    if isinstance(value, str):
        value = _json(row, column) if value.strip() else None
    if value is None:
        return None
    if not isinstance(value, list):
        raise _fail(row, column, f"{_short(value)} is no list", allowed)
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("concept"), str) or not item["concept"]:
            raise _fail(row, column, f"{_short(item)} names no concept", allowed)
    return value


def _json(row: Row, column: str | None) -> Any:
    try:
        return json.loads(row.values[column or ""])
    except ValueError as cause:
        raise _fail(row, column, f"not JSON ({cause})", "a string in this column must be JSON") from cause


def _as_text(rle: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
