"""Result files: small schema-versioned JSON with provenance, per-sample scores in parquet, and a STATUS file written last.

Layout: <output>/<task>/<backbone>/<method>/<run id>/{per_sample.parquet, calibration.parquet, config.yaml, result.json, STATUS}.
The run id is a hash of everything a number depends on: the same run lands in the same folder, another one never does. Every file
is written to a temporary name and renamed; a folder without STATUS `complete` is not a result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness import __version__
from harness.errors import HarnessError
from harness.types import Choice, Method, Result, RunSpec, Score

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 2
COMPLETE = "complete"
NO_NUMBER = ("output", "cache_dir", "guards", "log_tokens", "task", "backbone", "layers", "streams", "method", "methods")
"""Options that change no number, or whose meaning is in the identity already: content, weights and sites, the recipe's parts."""


def write_atomic(path: Path, data: bytes) -> None:
    """Writes the whole file or nothing: temporary file in the same folder, then rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(data)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HarnessError(
            f"cannot write {path}; {error.strerror or error}; free some space or choose another folder"
        ) from error


def check_output(folder: Path) -> None:
    """Raises where nothing can be written below a folder: before a run computes anything."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HarnessError(f"cannot write to {folder.absolute()}; {error.strerror}; choose another folder") from error


def file_name(text: str) -> str:
    """A name as one path component: `/` becomes `__`, as on the Hub; anything unusual `_`."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", text.replace("/", "__")).strip(".") or "_"


def run_folder(spec: RunSpec, method: Method, task: Mapping[str, Any], backbone: Mapping[str, Any]) -> Path:
    """Where the result of one method goes: absolute, and determined by what the numbers depend on."""
    digest = run_id(dataclasses.asdict(spec), dataclasses.asdict(method), task["fingerprint"], backbone)
    parts = (file_name(task["name"]), file_name(backbone["name"]), file_name(method.name), digest)
    return spec.output.expanduser().absolute().joinpath(*parts)


def run_id(
    options: Mapping[str, Any],
    method: Mapping[str, Any],
    fingerprint: str,
    backbone: Mapping[str, Any],
    version: str = __version__,
) -> str:
    """A hash of what the numbers depend on: options, recipe, the task's content, the backbone, the harness's major version."""
    plain = {key: value for key, value in options.items() if key not in NO_NUMBER}
    recipe = {key: value for key, value in method.items() if key not in ("summary", "tags")}
    identity = [SCHEMA_VERSION, version.split(".")[0], plain, recipe, fingerprint, dict(backbone)]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


def run_id_of(read: Mapping[str, Any]) -> str:
    """The run id that follows from what a result says of itself."""
    options = {f.name: read["config"].get(f.name, f.default) for f in dataclasses.fields(RunSpec)}
    return run_id(options, read["method"], read["task"]["fingerprint"], read["backbone"], read["provenance"]["harness"])


def config(spec: RunSpec, method: Method) -> dict[str, Any]:
    """The options that repeat this run: what `harness run --config` reads."""
    plain = dataclasses.asdict(spec)
    del plain["methods"]
    del plain["output"], plain["cache_dir"]  # where files go decides no number, and names a machine
    plain.update(streams=list(spec.streams))
    if "composed" in method.tags:
        parts = {"concept_method": method.concepts, "detector": method.detector, "localizer": method.localizer}
        parts.update(fit_on=method.fit_on, match=method.match)
        parts = {"scorer": method.scorer} if method.scorer else parts
        plain.update({key: value for key, value in parts.items() if value})
    else:
        plain["method"] = [method.name]
    return {key: value for key, value in plain.items() if value is not None}


def write_samples(folder: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """`per_sample.parquet`, one row per (split, sample, concept): on disk before any metric is computed."""
    if (folder / "STATUS").is_file():
        (folder / "STATUS").unlink()
    write_atomic(folder / "per_sample.parquet", _parquet(columns))


def write_columns(folder: Path, name: str, columns: Mapping[str, Any]) -> None:
    """One more parquet file of a result."""
    write_atomic(folder / name, _parquet(columns))


def _parquet(columns: Mapping[str, Sequence[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink, compression="zstd")
    return sink.getvalue()


def write_tokens(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """`tokens.safetensors`: the test tokens at each concept's chosen layer (`--log-tokens`).

    activations, map [T, C] float32 · mask [T, C] uint8: the decisions · truth [T, C] int8 · offsets [S+1] · regions [T, 4 or 2] ·
    views [S, 6] (see `types.View`; empty but for images) · detected [S, C] uint8; metadata `about`: JSON with ids, concepts, cutoffs.
    """
    from safetensors.torch import save

    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / "tokens.safetensors", save(plain, metadata={"about": json.dumps(about, allow_nan=False)}))


def read_tokens(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, about) of a result's logged test tokens."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / "tokens.safetensors"
    if not path.is_file():
        raise HarnessError(f"no logged tokens in {folder}; run again with --log-tokens (embeddings are read from the cache)")
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            return tensors, json.loads(opened.metadata()["about"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"cannot read {path}; {error}; run again with --log-tokens") from error


def write_result(folder: Path, result: Result) -> Result:
    """`config.yaml`, `result.json`, then STATUS; the result with its path."""
    done = dataclasses.replace(result, path=folder)
    text = yaml.safe_dump(config(result.spec, result.method), sort_keys=True, allow_unicode=True)
    write_atomic(folder / "config.yaml", text.encode())
    write_atomic(folder / "result.json", json.dumps(to_json(done), indent=1, allow_nan=False).encode())
    write_atomic(folder / "STATUS", COMPLETE.encode())
    return done


def to_json(result: Result) -> dict[str, Any]:
    """The result as JSON data; None is null, NaN does not occur."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": COMPLETE,
        "run_id": result.path.name if result.path else None,
        "task": dict(result.task),
        "backbone": dict(result.backbone),
        "method": dataclasses.asdict(result.method),
        "config": config(result.spec, result.method),
        "metrics": {name: dict(about) for name, about in result.metrics.items()},
        "choices": [dataclasses.asdict(choice) for choice in result.choices],
        "scores": [dataclasses.asdict(score) for score in result.scores],
        "notes": dict(result.notes),
        "provenance": dict(result.provenance),
    }


def read_result(folder: Path) -> dict[str, Any]:
    """The JSON of a complete result; a folder without STATUS or of another schema is an error."""
    folder = Path(folder)
    status, path = folder / "STATUS", folder / "result.json"
    if not (status.is_file() and status.read_text() == COMPLETE and path.is_file()):
        raise HarnessError(f"no complete result in {folder}; STATUS is missing, so the run was cut short; run it again")
    try:
        read = json_of(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{path} is not JSON; {error}") from error
    if not isinstance(read, dict):
        raise HarnessError(f"{path} holds {type(read).__name__}, not a result; run `harness run` again")
    if read.get("schema_version") != SCHEMA_VERSION:
        raise HarnessError(f"{path} has schema version {read.get('schema_version')!r}; this harness reads {SCHEMA_VERSION}")
    return read


def json_of(text: str) -> Any:
    """JSON whose every number is finite and fits a float; ValueError or RecursionError where it is not."""
    return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)


def _number(word: str) -> int | float:
    found = float(word)
    if not math.isfinite(found):
        raise ValueError(f"{word[:20]} is no JSON number, or too large for one")
    return int(word) if word.lstrip("-").isdecimal() else found


def find_results(root: Path) -> Iterator[Path]:
    """Every folder below `root` that holds a result.json, in name order."""
    yield from sorted(path.parent for path in Path(root).rglob("result.json"))


def scores_of(read: Mapping[str, Any]) -> list[Score]:
    """The score rows of a result that was read."""
    return [Score(**{**row, "sample_ci": tuple(row["sample_ci"]) if row["sample_ci"] else None}) for row in read["scores"]]


def choices_of(read: Mapping[str, Any]) -> list[Choice]:
    """The choices of a result that was read."""
    return [Choice(**row) for row in read["choices"]]
