"""What a bundle is: a result's files, their columns, and MANIFEST.json with the sha256 of every one. Nothing is recomputed here.

A `Ledger` counts what was compared and stops at the first thing that does not follow (`Mismatch`). What cannot be read at all is a
`HarnessError`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.api import Choice, HarnessError, Method, RunSpec, Score, json_of, read_result

MANIFEST = "MANIFEST.json"
REQUIRED = ("STATUS", "calibration.parquet", "config.yaml", "per_sample.parquet", "result.json", "scores.parquet")
LOCALIZED = ("localization.parquet", "map_calibration.parquet", "sample_values.parquet", "token_ranking.parquet")
OPTIONAL = ("match.parquet", "tokens.safetensors")
ALL = (*REQUIRED, *LOCALIZED, *OPTIONAL)

COUNTS = {"tp": "count", "fp": "count", "fn": "count"}
SWEPT = {"concept": "word", "cutoff": "number?", **COUNTS, "f1": "number?"}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "per_sample.parquet": {
        "split": "word",
        "id": "word",
        "concept": "word",
        "layer": "word?",
        "score": "number?",
        "detected": "yes or no",
        "label": "yes or no",
    },
    "calibration.parquet": {"level": "number?", "layer": "word?", **SWEPT},
    "scores.parquet": {"split": "word", "layer": "word?", "id": "word", "concept": "word", "score": "number?"},
    "match.parquet": {"layer": "word?", "concept": "word", "unit": "word?", "cal_f1": "number?"},
    "localization.parquet": {"level": "number?", "id": "word", "concept": "word", **COUNTS},
    "map_calibration.parquet": {"level": "number?", **SWEPT},
    "token_ranking.parquet": {"concept": "word", "score": "number?", "positives": "count", "negatives": "count"},
    "sample_values.parquet": {"metric": "word", "id": "word", "concept": "word", "value": "number"},
}
"""The columns of every table; `?` = may be null."""

RESULT: Mapping[str, type | tuple[type, ...]] = {
    "schema_version": int,
    "status": str,
    "run_id": str,
    "task": dict,
    "backbone": dict,
    "method": dict,
    "config": dict,
    "metrics": dict,
    "choices": list,
    "scores": list,
    "notes": dict,
    "provenance": dict,
}
TASK = {"name": str, "version": (int, str), "fingerprint": str, "modality": str, "samples": dict, "positives": dict}
BACKBONE = {"name": str, "revision": str, "n_layers": int, "width": int, "sites": list, "normalization": str}
METRIC = {"kind": str, "unit": str, "range": list, "chance": str, "higher_is_better": bool, "version": int}


@dataclass(frozen=True)
class Finding:
    """The first thing that does not follow: in which file, where, as published, and as it should be."""

    file: str
    where: str
    published: str
    recomputed: str

    def __str__(self) -> str:
        at = f"{self.file}: {self.where}" if self.where else self.file
        return f"{at}: published {self.published}, recomputed {self.recomputed}"


class Mismatch(Exception):  # noqa: N818 - a finding, no error of the program
    """Something that does not follow."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass
class Ledger:
    """What was compared: how many numbers and words; and what was left, with how many numbers."""

    compared: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def same(self, file: str, where: str, published: Any, recomputed: Any) -> None:
        """Raises where the two differ; numbers that are not whole may differ by rounding."""
        self.compared += 1
        if not equal(published, recomputed):
            raise Mismatch(Finding(file, where, shown(published), shown(recomputed)))

    def cells(self, file: str, where: Callable[[tuple[int, ...]], str], published: Any, recomputed: Any) -> None:
        """The same of two arrays; NaN equals NaN."""
        import numpy as np

        one, other = np.asarray(published, float), np.asarray(recomputed, float)
        self.compared += one.size
        close = np.abs(one - other) <= 1e-9 * (1 + np.abs(other))
        wrong = ~(close | (one == other) | (np.isnan(one) & np.isnan(other)))
        if wrong.any():
            at = tuple(int(i[0]) for i in np.nonzero(wrong))
            raise Mismatch(Finding(file, where(at), shown(float(one[at])), shown(float(other[at]))))

    def holds(self, file: str, where: str, true: bool, published: Any, needed: str) -> None:
        """Raises where what is needed does not hold."""
        self.compared += 1
        if not true:
            raise Mismatch(Finding(file, where, shown(published), needed))

    def leave(self, what: str, numbers: int = 1) -> None:
        """Counts what cannot be recomputed."""
        self.left[what] = self.left.get(what, 0) + numbers


def equal(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, numbers up to rounding."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or abs(one - other) <= 1e-9 * (1 + abs(other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return bool(one == other)


def shown(value: Any) -> str:
    """A value in a few words."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def manifest_of(folder: Path) -> dict[str, Any]:
    """MANIFEST.json as it should be: every file but itself."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {"schema_version": 1, "files": {name: digest(folder / name) for name in names if name != MANIFEST}}


def read_json(path: Path) -> Any:
    """JSON that is not whole is unreadable."""
    try:
        return json_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HarnessError(f"{path} is not JSON; {error}; the bundle is damaged") from error


def readable(folder: Path) -> dict[str, Any]:
    """The result, after every file was opened once; raises where one cannot be."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    links = [name for name in (*ALL, MANIFEST) if (folder / name).is_symlink()]
    if links:
        raise HarnessError(f"{folder / links[0]} is a link; a bundle holds its own files; put a copy there")
    read = read_result(folder)
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    there = [name for name in LOCALIZED if (folder / name).is_file()]
    missing += [name for name in LOCALIZED if there and name not in there]
    if missing:
        raise HarnessError(f"{folder} has no {', '.join(missing)}; a bundle holds all the files of its run; run it again")
    for name in COLUMNS:
        if (folder / name).is_file():
            try:
                pq.read_schema(folder / name)
            except (OSError, pa.ArrowException) as error:
                raise HarnessError(
                    f"cannot read {folder / name}; {' '.join(str(error).split())}; the bundle is damaged"
                ) from error
    try:
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise HarnessError(
            f"cannot read {folder / 'config.yaml'}; {' '.join(str(error).split())}; the bundle is damaged"
        ) from error
    return read


def check_columns(folder: Path, ledger: Ledger) -> None:
    """Every table has its columns and no other, of the right kind, null only where that means something."""
    import pyarrow.parquet as pq

    for name, columns in COLUMNS.items():
        if not (folder / name).is_file():
            continue
        table = pq.read_table(folder / name)
        ledger.same(name, "columns", table.column_names, list(columns))
        for column, kind in columns.items():
            found = kind_of(table.column(column), kind)
            ledger.holds(name, f"column {column}", found is None, found, f"a column of {kind.rstrip('?')}s")


def kind_of(column: Any, kind: str) -> str | None:
    """What is wrong with a column; None = nothing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sort = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if column.null_count and not kind.endswith("?"):
        return f"{column.null_count} nulls"
    words = pa.types.is_string(sort) or pa.types.is_large_string(sort)
    numbers = pa.types.is_floating(sort) or pa.types.is_integer(sort)
    right = {"word": words, "number": numbers, "count": numbers, "yes or no": pa.types.is_boolean(sort)}[kind.rstrip("?")]
    if not right and not (pa.types.is_null(sort) and (kind.endswith("?") or not len(column))):
        return str(sort)
    if numbers and pa.types.is_floating(sort) and len(column):
        finite = pc.is_finite(column)
        if not pc.all(finite, skip_nulls=True).as_py() and column.null_count < len(column):
            return "a number that is not finite"
    if kind == "count" and len(column):
        least = pc.min(column).as_py()
        if least < 0 or not pc.all(pc.equal(pc.floor(column), column)).as_py():
            return f"{least}, negative or not whole"
    return None


def check_shape(read: Mapping[str, Any], ledger: Ledger) -> None:
    """result.json has its keys, and values of their kinds: all later checks rely on it."""
    _keys(read, RESULT, "", ledger, exact=True)
    task, concepts = read["task"], list(read["task"].get("positives") or {})
    _keys(task, TASK, "task.", ledger)
    splits = {"train": int, "cal": int, "test": int}
    limit = task.get("limit", ...)
    ledger.holds(
        "result.json", "task.limit", limit is None or (_is(limit, int) and limit > 0), limit, "samples per split, or null"
    )
    _keys(task["samples"], splits, "task.samples.", ledger, exact=True)
    for concept in concepts:
        ledger.holds(
            "result.json",
            f"task.positives.{concept}",
            isinstance(task["positives"][concept], dict),
            task["positives"][concept],
            "counts",
        )
        _keys(task["positives"][concept], splits, f"task.positives.{concept}.", ledger, exact=True)
    ledger.holds("result.json", "task.positives", bool(concepts), concepts, "at least one concept")
    _keys(read["backbone"], BACKBONE, "backbone.", ledger)
    sites = read["backbone"]["sites"]
    good = bool(sites) and all(isinstance(site, str) for site in sites) and len(set(sites)) == len(sites)
    ledger.holds("result.json", "backbone.sites", good, sites, "different site labels")
    for name, about in read["metrics"].items():
        ledger.holds("result.json", f"metrics.{name}", isinstance(about, dict), about, "what the metric is")
        _keys(about, METRIC, f"metrics.{name}.", ledger, exact=True)
        low, high = (*about["range"], None, None)[:2]
        good = len(about["range"]) == 2 and all(x is None or _is(x, float) for x in (low, high))
        ledger.holds("result.json", f"metrics.{name}.range", good, about["range"], "the least and the largest value")
    _options(read, ledger)
    _records(read["choices"], Choice, "choices", ledger)
    _records(read["scores"], Score, "scores", ledger)
    version = read["provenance"].get("harness")
    ledger.holds("result.json", "provenance.harness", isinstance(version, str), version, "a version")


def _options(read: Mapping[str, Any], ledger: Ledger) -> None:
    method, config = read["method"], read["config"]
    ledger.same("result.json", "keys of method", sorted(method), sorted(f.name for f in dataclasses.fields(Method)))
    for key, value in method.items():
        tags = isinstance(value, list) and all(isinstance(tag, str) for tag in value)
        good = tags if key == "tags" else value is None or isinstance(value, str)
        ledger.holds("result.json", f"method.{key}", good, value, "words" if key == "tags" else "a word or null")
    defaults = {f.name: f.default for f in dataclasses.fields(RunSpec)}
    for key in ("seed", "bootstrap", "explain_limit", "block_tokens", "cache_bytes"):
        value = config.get(key, defaults[key])
        ledger.holds("result.json", f"config.{key}", _is(value, int) and value >= 0, value, "a whole number")


def _records(rows: Any, kind: type, name: str, ledger: Ledger) -> None:
    fields = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    for i, row in enumerate(rows):
        ledger.holds("result.json", f"{name}[{i}]", isinstance(row, dict), row, "a row")
        ledger.holds("result.json", f"keys of {name}[{i}]", row.keys() == fields.keys(), sorted(row), ", ".join(sorted(fields)))
        for key, of in fields.items():
            ledger.holds("result.json", f"{name}[{i}].{key}", _fits(row[key], of), row[key], of)


def _fits(value: Any, of: str) -> bool:
    if value is None:
        return "None" in of
    if of.startswith("tuple"):
        return isinstance(value, list) and len(value) == 2 and all(_is(x, float) for x in value)
    return _is(value, {"str": str, "int": int, "float": float}[of.split(" ")[0]])


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _keys(value: Mapping[str, Any], kinds: Mapping[str, Any], where: str, ledger: Ledger, exact: bool = False) -> None:
    for key, kind in kinds.items():
        name = " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
        ledger.holds(
            "result.json", f"{where}{key}", key in value and _is(value[key], kind), value.get(key), f"a value of type {name}"
        )
    if exact:
        more = sorted(set(value) - set(kinds))
        ledger.holds("result.json", where.rstrip(".") or "keys", not more, ", ".join(more), f"only {', '.join(kinds)}")


def check_manifest(folder: Path, ledger: Ledger) -> bool:
    """Whether there is a MANIFEST.json; raises where it does not say what the folder holds."""
    if not (folder / MANIFEST).is_file():
        return False
    stated, there = read_json(folder / MANIFEST), manifest_of(folder)
    good = isinstance(stated, dict) and set(stated) == set(there) and isinstance(stated["files"], dict)
    ledger.holds(MANIFEST, "keys", good, stated if not isinstance(stated, dict) else sorted(stated), ", ".join(there))
    ledger.same(MANIFEST, "schema_version", stated["schema_version"], there["schema_version"])
    missing = sorted(set(stated["files"]) - set(there["files"]))
    extra = sorted(set(there["files"]) - set(stated["files"]))
    ledger.holds(MANIFEST, "files", not missing, ", ".join(missing), "files that are there")
    ledger.holds(MANIFEST, "files", not extra, f"nothing of {', '.join(extra)}", "every file of the folder")
    more = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.name not in (*ALL, MANIFEST)]
    ledger.holds(MANIFEST, "files", not more, ", ".join(path.name for path in more), "the files of a result, and no links")
    for name, found in there["files"].items():
        ledger.same(name, "sha256", stated["files"][name], found)
    return True
