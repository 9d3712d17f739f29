"""Which results an analysis is made of, in groups that may be compared: same task content, limit and backbone, as on a leaderboard."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import Choice, HarnessError, choices_of, find_results, read_result


class NothingError(HarnessError):
    """A group has no result that an analysis can use."""


@dataclass(frozen=True)
class Source:
    """One result: its folder, the JSON that was read, and what it is called beside the others of its group."""

    folder: Path
    read: dict[str, Any]
    label: str

    @property
    def method(self) -> str:
        """The recipe's name."""
        return str(self.read["method"]["name"])

    @property
    def run_id(self) -> str:
        """The run id."""
        return str(self.read["run_id"])

    @property
    def scorer(self) -> bool:
        """Whether it has no concepts in tokens, and so no layers."""
        return self.read["method"]["concepts"] is None

    @property
    def choices(self) -> dict[str, Choice]:
        """Concept -> what cal chose."""
        return {choice.concept: choice for choice in choices_of(self.read)}

    @property
    def named(self) -> dict[str, str]:
        """What every row of a table begins with."""
        return {"method": self.method, "run_id": self.run_id}

    def table(self, name: str) -> dict[str, Any]:
        """Column -> numpy array of a parquet file of the result."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / f"{name}.parquet"
        try:
            read = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise HarnessError(f"cannot read {path}; {str(error).splitlines()[0]}; run again") from error
        return {column: np.asarray(read[column].to_pylist(), dtype=_KINDS.get(column, object)) for column in read.column_names}


_KINDS = {"cutoff": float, "level": float, "f1": float, "score": float, "label": bool, "detected": bool}


@dataclass(frozen=True)
class Group:
    """Results that may stand in one table; `name` is a folder's."""

    name: str
    sources: tuple[Source, ...]

    @property
    def first(self) -> dict[str, Any]:
        """The JSON of one of them: for what they share."""
        return self.sources[0].read

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts, in the task's order."""
        return tuple(self.sources[0].choices)

    @cached_property
    def positives(self) -> dict[str, int]:
        """Concept -> positive test samples."""
        return {name: int(counts["test"]) for name, counts in self.first["task"]["positives"].items()}

    @property
    def layers(self) -> list[str]:
        """The site labels, in order."""
        return list(self.first["backbone"]["sites"])

    def layered(self) -> tuple[list[Source], list[str]]:
        """(results of methods with concepts in tokens, why the others are left out)."""
        found = [source for source in self.sources if not source.scorer]
        left_out = [f"{source.label}: a scorer, which has no layers and no tokens" for source in self.sources if source.scorer]
        if not found:
            names = ", ".join(source.label for source in self.sources)
            raise NothingError(
                f"no method with layers among the results of {self.name}; {names} score samples without tokens; "
                f"choose results of methods with concepts, such as superactivator"
            )
        return found, left_out


def collect(roots: Sequence[Path]) -> tuple[list[Group], list[str]]:
    """(groups in name order, why results were left out); a run that is found twice counts once."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    left_out: list[str] = []
    for root in roots:
        if not root.is_dir():
            raise HarnessError(
                f"no folder {root}; give a result folder or a folder above results, such as `harness run` writes"
            )
        for folder in find_results(root):
            try:
                read = read_result(folder)
            except HarnessError as error:
                if folder == root:
                    raise
                left_out.append(str(error))
                continue
            found[read["run_id"]] = (folder, read)
    if not found:
        names = ", ".join(str(root) for root in roots)
        raise HarnessError(
            left_out[0] if left_out else f"no result in or below {names}; run `harness run` first, or name its --output"
        )
    return _groups(found.values()), left_out


def _groups(found: Any) -> list[Group]:
    kinds: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for folder, read in found:
        task = read["task"]
        same = [task["name"], task["fingerprint"], task["limit"], read["backbone"]]
        kinds.setdefault(json.dumps(same, sort_keys=True), []).append((folder, read))
    plain = {key: file_name(f"{rows[0][1]['task']['name']}-{rows[0][1]['backbone']['name']}") for key, rows in kinds.items()}
    often = Counter(plain.values())
    made = []
    for key, rows in kinds.items():
        digest = hashlib.sha256(key.encode()).hexdigest()[:6]
        name = plain[key] if often[plain[key]] == 1 else f"{plain[key]}-{digest}"
        rows.sort(key=lambda row: (row[1]["method"]["name"], row[1]["run_id"]))
        names = Counter(read["method"]["name"] for _, read in rows)
        labels = [read["method"]["name"] if names[read["method"]["name"]] == 1 else _long(read) for _, read in rows]
        made.append(Group(name, tuple(Source(f, r, label) for (f, r), label in zip(rows, labels, strict=True))))
    return sorted(made, key=lambda group: group.name)


def _long(read: dict[str, Any]) -> str:
    return f"{read['method']['name']} ({read['run_id'][:6]})"


def file_name(text: str) -> str:
    """A name as one path component."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "_", text.replace("/", "__")).strip("._") or "_"
