"""Where the data is, and how its files are read: one clear line for whatever is missing or malformed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.api import HarnessError


def root_of(folder: str | None, name: str, want: str) -> Path:
    """The data folder: the option, else `$HARNESS_DATA/<name>`; `want` says what must lie in it and where it comes from."""
    if folder is None and not os.environ.get("HARNESS_DATA"):
        raise HarnessError(
            f"data set {name} has no folder; set HARNESS_DATA to a folder with {name}/, which holds {want}; or give `folder`"
        )
    path = (Path(folder) if folder is not None else Path(os.environ["HARNESS_DATA"]) / name).expanduser().absolute()
    if not path.is_dir():
        raise HarnessError(f"no folder {path} for data set {name}; it must hold {want}")
    return path


def lines(path: Path, want: str, quoted: bool = True, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a CSV or TSV file; `want` says where it comes from."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            reader = csv.reader(opened, delimiter=separator, quoting=quoting)
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HarnessError(f"cannot read {path}; {getattr(error, 'strerror', None) or error}; it is {want}") from error


def columns(path: Path, want: str, need: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> value) of a CSV file with a header that has the columns in `need`."""
    rows = lines(path, want)
    _, header = next(rows, (0, []))
    missing = [name for name in need if name not in header]
    if missing:
        raise HarnessError(f"{path} has no column {missing[0]!r}; it is {want}")
    for number, row in rows:
        if len(row) != len(header):
            raise HarnessError(f"line {number} of {path} has {len(row)} fields, its header {len(header)}; it is {want}")
        yield number, dict(zip(header, row, strict=True))


def yes(value: str, column: str, number: int, path: Path) -> bool:
    """A 0/1 cell."""
    if value.strip() not in ("0", "1", "0.0", "1.0"):
        raise HarnessError(f"{value!r} in column {column!r}, line {number} of {path}; 0 or 1 is allowed")
    return value.strip().startswith("1")
