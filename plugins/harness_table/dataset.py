"""The data set `table`: finds the source, gives every row its split and checks ids. Options and examples: README.md.

There is no random split unless `fractions` asks for one; a file's paths never leave the file's folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from rich.console import Console
from rich.progress import track

from harness.api import SPLITS, HarnessError, unknown
from harness_table.hub import read_hub
from harness_table.parsing import Columns, find_columns, parse
from harness_table.reading import READERS, Row, read_folder, read_path

IMAGE_REGION = {"concept": Value("string"), "rle": {"size": List(Value("int32")), "counts": Value("string")}}
TEXT_REGION = {"concept": Value("string"), "start": Value("int32"), "end": Value("int32")}


def load(
    path: str | None = None,
    splits: dict[str, str] | None = None,
    columns: dict[str, str] | None = None,
    concept_columns: list[str] | None = None,
    fractions: dict[str, float] | None = None,
    split_seed: int = 0,
    revision: str | None = None,
    subset: str | None = None,
) -> DatasetDict:
    """Any data with splits train, cal and test.

    path: a parquet, JSONL, CSV or TSV file, a folder, or a Hub id; relative to the current folder, else to `$HARNESS_DATA`.
    splits: ours -> theirs: files or folders (below `path` if that is a folder), values of a file's split column, or Hub splits.
    columns: ours (id image text concepts regions masks split) -> theirs. concept_columns: 0/1 columns named as their concepts.
    fractions: {train: 0.6, cal: 0.2, test: 0.2}: cut the rows in order of sha256("<split_seed>:<id>").
    revision, subset: of a Hub data set.
    """
    _check_options(splits, columns, concept_columns, fractions)
    rows, source = _source(path, splits, revision, subset)
    found = find_columns(rows, columns or {}, concept_columns or (), source)
    parsed = _parsed(_with_splits(rows, found, splits, fractions, source), found)
    if fractions:
        parsed = _cut(parsed, fractions, split_seed)
    return _tables(parsed, found, source)


def _check_options(splits: Any, columns: Any, concept_columns: Any, fractions: Any) -> None:
    options = {"splits": splits, "columns": columns, "fractions": fractions, "concept_columns": concept_columns}
    for option, value in options.items():
        kind, words = (list, "list") if option == "concept_columns" else (dict, "mapping")
        if value is not None and not isinstance(value, kind):
            raise HarnessError(f"`{option}` of data set table is {value!r}; a {words} is allowed")
    for option in ("splits", "fractions"):
        for key in options[option] or ():
            if key not in SPLITS:
                raise unknown("split", str(key), SPLITS, where=f"`{option}` of data set table")
        if options[option] is not None and len(options[option]) < len(SPLITS):
            lacking = ", ".join(split for split in SPLITS if split not in options[option])
            raise HarnessError(f"`{option}` of data set table lacks {lacking}; train, cal and test are all needed; add it")
    numbers = [value for value in (fractions or {}).values() if isinstance(value, int | float) and value > 0]
    if fractions is not None and (len(numbers) < len(SPLITS) or abs(sum(numbers) - 1) > 1e-6):
        raise HarnessError(f"`fractions` of data set table is {fractions}; three numbers above 0 that add up to 1 are allowed")


# --- where the rows come from


def _source(
    path: str | None, splits: Mapping[str, str] | None, revision: str | None, subset: str | None
) -> tuple[list[Row], str]:
    """The rows, with their split where the source tells it, and the source's name for messages."""
    if path is None:
        if splits is None:
            raise HarnessError(
                "data set table has no source; give `path`, or `splits` with a file for each of train, cal and test"
            )
        parts = {split: _local(str(name)) or _absent(str(name)) for split, name in splits.items()}
        return _each(parts), "`splits`"
    local = _local(path)
    if local is None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or Path(path).suffix in READERS:
            _absent(path)
        return read_hub(path, subset, revision, splits), path
    if revision is not None or subset is not None:
        raise HarnessError(f"`revision` and `subset` are for Hub data sets; {local} is on this machine; remove them")
    if local.is_dir() and splits:
        parts = {split: local / str(name) for split, name in splits.items()}
        for part in parts.values():
            if not part.exists():
                raise HarnessError(f"there is no {part}; `splits` of data set table names it; {_listing(local)}")
        return _each(parts), str(local)
    return (read_folder(local) if local.is_dir() else read_path(local)), str(local)


def _each(parts: Mapping[str, Path]) -> list[Row]:
    return [replace(row, split=split) for split, part in parts.items() for row in read_path(part)]


def _places(path: str) -> list[Path]:
    roots = [Path.cwd(), *([Path(os.environ["HARNESS_DATA"])] if os.environ.get("HARNESS_DATA") else [])]
    return [(root / Path(path).expanduser()).absolute() for root in roots]


def _local(path: str) -> Path | None:
    return next((place for place in _places(path) if place.exists()), None)


def _absent(path: str) -> Path:
    places = " and ".join(dict.fromkeys(str(place) for place in _places(path)))
    raise HarnessError(f"data set table finds no {path!r}; looked for {places}; give a file, a folder or a Hub id (owner/name)")


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{folder} has {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


# --- which split


def _with_splits(
    rows: Sequence[Row], columns: Columns, splits: Mapping[str, str] | None, fractions: Mapping[str, float] | None, source: str
) -> list[tuple[Row, str | None]]:
    """Every row and its split: its source's, else its column's, else None where `fractions` will cut."""
    told = {row.split for row in rows} == set(SPLITS)
    if fractions:
        if splits or told or columns.split:
            raise HarnessError(f"{source} already tells its splits, and `fractions` would cut it anew; remove one of the two")
        return [(row, None) for row in rows]
    if told:
        return [(row, row.split) for row in rows]
    if columns.split:
        return _by_column(rows, columns.split, splits)
    theirs = ", ".join(dict.fromkeys(str(row.split) for row in rows if row.split))
    raise HarnessError(
        f"{source} does not say which rows are train, cal and test: "
        f"{f'its only splits are {theirs}' if theirs else 'it has no column `split`'}; name them with `splits` or "
        f"`columns: {{split: ...}}`, or cut it with `fractions: {{train: 0.6, cal: 0.2, test: 0.2}}`"
    )


def _by_column(rows: Sequence[Row], column: str, splits: Mapping[str, str] | None) -> list[tuple[Row, str | None]]:
    """Splits from a column; rows with a value that a given `splits` does not name are left out on purpose."""
    ours = {str(theirs): split for split, theirs in splits.items()} if splits else {split: split for split in SPLITS}
    placed: list[tuple[Row, str | None]] = []
    for row in rows:
        value = str(row.values.get(column))
        if value in ours:
            placed.append((row, ours[value]))
        elif not splits:
            hint = "map other names with `splits: {train: ..., cal: ..., test: ...}`"
            raise unknown("split", value, SPLITS, where=f"{row.where}, column {column!r}", hint=hint)
    return placed


def _parsed(rows: Sequence[tuple[Row, str | None]], columns: Columns) -> list[dict[str, Any]]:
    """The rows in the harness's columns, each with its split; ids are checked to be unique."""
    seen: dict[str, str] = {}
    parsed = []
    for row, split in track(rows, "rows", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()):
        out = parse(row, columns)
        if out["id"] in seen:
            raise HarnessError(
                f"id {out['id']!r} is there twice: {seen[out['id']]} and {row.where}; ids must be unique over all splits"
            )
        seen[out["id"]] = row.where
        parsed.append({**out, "split": split})
    return parsed


def _cut(rows: Sequence[dict[str, Any]], fractions: Mapping[str, float], seed: int) -> list[dict[str, Any]]:
    """Rows in order of sha256("<seed>:<id>"), cut at the rounded cumulative fractions: the same rows in any order cut alike."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed}:{row['id']}".encode()).digest())
    ends = [round(len(rows) * fractions["train"]), round(len(rows) * (fractions["train"] + fractions["cal"]))]
    return [{**row, "split": SPLITS[sum(position >= end for end in ends)]} for position, row in enumerate(order)]


def _tables(rows: Sequence[dict[str, Any]], columns: Columns, source: str) -> DatasetDict:
    content, region = ("image", IMAGE_REGION) if columns.image else ("text", TEXT_REGION)
    features = Features(
        {
            "id": Value("string"),
            content: Image() if columns.image else Value("string"),
            "concepts": List(Value("string")),
            "regions": List(region),
        }
    )
    parts = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    if empty := [split for split in SPLITS if not parts[split]]:
        raise HarnessError(
            f"{source} has no rows for {', '.join(empty)}; train, cal and test each need some; add them or see `splits`"
        )
    return DatasetDict(
        {
            split: Dataset.from_dict({name: [row[name] for row in part] for name in features}, features=features)
            for split, part in parts.items()
        }
    )
