"""From a file or a folder to raw rows: what stands in each column, where it stands, and what its paths are relative to.

Nothing is checked here but that the source can be read; what a value means is parsing.py.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness.api import SPLITS, HarnessError


@dataclass(frozen=True)
class Row:
    """values: column -> value as read. where: file and line, for messages. number: from 1 in its source.

    folder: what paths in the row are relative to and must stay inside; None = the Hub, whose images are in the row.
    split: known from the source (a file or folder per split), else None.
    """

    values: dict[str, Any]
    where: str
    number: int
    folder: Path | None
    split: str | None = None


def read_path(path: Path) -> list[Row]:
    """The rows of a file, or of a folder with metadata.* or with one folder per concept."""
    if path.is_dir():
        metadata = metadata_file(path)
        rows = read_path(metadata) if metadata else list(_class_folders(path))
    elif path.suffix in READERS:
        rows = list(READERS[path.suffix](path))
    else:
        raise HarnessError(f"{path} has a suffix that data set table does not read; it reads {', '.join(READERS)} and folders")
    if not rows:
        raise HarnessError(f"{path} has no rows; it needs at least one per split")
    return rows


def read_folder(folder: Path) -> list[Row]:
    """The rows of a folder: of its metadata.*, of its train, cal and test (files or folders), or of its class folders."""
    if metadata_file(folder):
        return read_path(folder)
    parts = {split: part for split in SPLITS if (part := split_part(folder, split))}
    if not parts:
        return read_path(folder)
    return [replace(row, split=split) for split, part in parts.items() for row in read_path(part)]


def split_part(folder: Path, split: str) -> Path | None:
    """`folder/split` or `folder/split.jsonl` (or another suffix), if there is one."""
    return next((path for suffix in ("", *READERS) if (path := folder / f"{split}{suffix}").exists()), None)


def metadata_file(folder: Path) -> Path | None:
    """`metadata.parquet`, `.jsonl` or `.csv` with a column `file_name`, as in the datasets library's image folders."""
    return next((path for suffix in READERS if (path := folder / f"metadata{suffix}").is_file()), None)


def _class_folders(folder: Path) -> Iterator[Row]:
    """One row per image in `folder/<concept>/`; the folder's name is its only concept."""
    suffixes = set(Image.registered_extensions())
    images = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in suffixes)
    if not images:
        raise HarnessError(
            f"{folder} has no data that data set table knows; it looks for metadata{'|'.join(READERS)}, for train, cal and "
            f"test (files or folders), and for images in one folder per concept; see the plugin's README"
        )
    for number, path in enumerate(images, start=1):
        values = {"image": path.relative_to(folder).as_posix(), "concepts": [path.parent.name]}
        yield Row(values, str(path), number, folder)


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as cause:
        raise HarnessError(f"{path} is not a parquet file: {_line(cause)}; write it again") from cause
    for number, values in enumerate(rows, start=1):
        yield Row(values, f"{path}, row {number}", number, path.parent)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except ValueError as cause:
                raise HarnessError(
                    f"{path}, line {number} is not JSON: {_line(cause)}; one object a line is allowed"
                ) from cause
            if not isinstance(values, dict):
                raise HarnessError(f"{path}, line {number} is not a JSON object; one object a line is allowed")
            yield Row(values, f"{path}, line {number}", number, path.parent)


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            for number, values in enumerate(reader, start=1):
                where = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise HarnessError(
                        f"{where} does not have {len(reader.fieldnames or ())} cells as the header; quote or add cells"
                    )
                yield Row(values, where, number, path.parent)
    except (csv.Error, UnicodeDecodeError) as cause:
        raise HarnessError(f"{path} is not a UTF-8 CSV file: {_line(cause)}; write it again") from cause


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}


def _line(cause: BaseException) -> str:
    return " ".join(str(cause).split())
