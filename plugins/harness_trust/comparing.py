"""`harness compare A B`: the paired difference of two results, per concept too, and one sentence that says no more than it may."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.api import ALPHA, Evidence, HarnessError, finite, holm, open_result, plain, replicates, unknown
from harness.api import compare as paired
from harness_trust.report import the_result


def compare(a: Path, b: Path, metric: str, average: str) -> dict[str, Any]:
    """A minus B as plain data; raises where the two cannot be compared."""
    one, other = (open_result(the_result(path)) for path in (a, b))
    _refuse(one, other, metric)
    found = paired(one, other, metric, average)
    once = np.ones((1, len(one.ids)))
    values = [_values(result, metric, once) for result in (one, other)]
    higher = bool(one.read["metrics"][metric]["higher_is_better"])
    adjusted = holm(np.array([difference.p for difference in found.concepts.values()]))
    rows = [
        {
            "concept": concept,
            "n": int(one.labels[:, c].sum()),
            "a": finite(float(values[0][c])),
            "b": finite(float(values[1][c])),
            **_plain(found.concepts[concept]),
            "p_holm": float(adjusted[c]),
            "outcome": _outcome(found.concepts[concept].value, float(adjusted[c]), higher),
        }
        for c, concept in enumerate(one.concepts)
    ]
    overall, names = _plain(found.overall), _names(one, other)
    where = [_row_value(result, metric, average) for result in (one, other)]
    made = {
        "a": names[0],
        "b": names[1],
        "folders": [str(one.folder), str(other.folder)],
        "task": one.read["task"]["name"],
        "samples": len(one.ids),
        "concepts": len(one.concepts),
        "metric": metric,
        "average": average,
        "higher_is_better": higher,
        "values": where,
        "difference": overall,
        "notes": _notes(one, other, names),
        "per_concept": rows,
        "counts": {word: sum(row["outcome"] == word for row in rows) for word in ("win", "loss", "tie", "no value")},
    }
    return {**made, "verdict": _verdict(made)}


def _refuse(one: Evidence, other: Evidence, metric: str) -> None:
    """Raises where a difference would mean nothing."""
    a, b = one.read, other.read
    for key, what in (("fingerprint", "task content"), ("limit", "--limit")):
        if a["task"][key] != b["task"][key]:
            said = [str(read["task"][key])[:12] for read in (a, b)]
            raise HarnessError(
                f"cannot compare {one.folder} and {other.folder}; they are of different {what} ({said[0]} and {said[1]}); "
                f"run both on the same task, with the same --limit"
            )
    for result in (one, other):
        if metric not in result.read["metrics"]:
            raise unknown("metric", metric, result.read["metrics"], str(result.folder))
    versions = [read["metrics"][metric]["version"] for read in (a, b)]
    if versions[0] != versions[1]:
        raise HarnessError(
            f"cannot compare {one.folder} and {other.folder}; metric {metric!r} has version {versions[0]} and {versions[1]}; run both again"
        )
    kind, on = a["metrics"][metric]["kind"], [read["method"]["localize_on"] for read in (a, b)]
    if kind != "detection" and on[0] != on[1]:
        raise HarnessError(
            f"cannot compare {one.folder} and {other.folder}; {metric!r} is over {on[0]} and over {on[1]} samples; "
            f"compare two methods that are localized on the same ones"
        )


def _values(result: Evidence, metric: str, once: Any) -> Any:
    found = replicates(result, metric, "chosen", once)
    assert found is not None  # noqa: S101 - `paired` refused it before
    return found[0]


def _row_value(result: Evidence, metric: str, average: str) -> float | None:
    rows = (row for row in result.read["scores"] if (row["metric"], row["concept"]) == (metric, average))
    return next((row["value"] for row in rows if row["layer"] in ("chosen", None)), None)


def _names(one: Evidence, other: Evidence) -> tuple[str, str]:
    """What tells the two apart: the method, else the backbone, else the run id."""
    for words in (("method", "name"), ("backbone", "name")):
        a, b = (str(result.read[words[0]][words[1]]) for result in (one, other))
        if a != b:
            return a, b
    method = one.read["method"]["name"]
    return f"{method} ({one.read['run_id'][:6]})", f"{method} ({other.read['run_id'][:6]})"


def _notes(one: Evidence, other: Evidence, names: tuple[str, str]) -> list[str]:
    said = [
        f"{name} is a ceiling: its cutoff and layer were picked on test"
        for name, result in zip(names, (one, other), strict=True)
        if result.read["method"]["choose_on"] == "test"
    ]
    if one.read["task"]["limit"] is not None:
        said.append(f"both runs are limited to {one.read['task']['limit']} samples per split")
    said += ["both are the same run"] if one.read["run_id"] == other.read["run_id"] else []
    return said


def _outcome(value: float, p: float, higher: bool) -> str:
    if not math.isfinite(value):
        return "no value"
    if p > ALPHA or value == 0:
        return "tie"
    return "win" if (value > 0) == higher else "loss"


def _verdict(made: dict[str, Any]) -> str:
    """One sentence; a difference that is not established is not called equality."""
    difference, unit = made["difference"], f"{made['metric']} {made['average']}"
    a, b = made["a"], made["b"]
    if difference["value"] is None:
        return f"No difference can be computed: {a} and {b} share no concept with a value of {made['metric']}."
    apart = f"{difference['value']:+.3f}"
    ends = "" if difference["low"] is None else f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    if difference["p"] > ALPHA or difference["low"] is None:
        room = difference["detectable"]
        more = f"; a true difference below {room:.3f} would often be missed with these samples and concepts" if room else ""
        return f"No difference established between {a} and {b} in {unit}: {apart}{ends}, p = {difference['p']:.2g}{more}."
    better = a if (difference["value"] > 0) == made["higher_is_better"] else b
    return (
        f"{better} is better in {unit}: {apart}{ends}, p = {difference['p']:.2g}, "
        f"on this task; another training set or seed is not covered."
    )


def _plain(found: Any) -> dict[str, float | None]:
    return {key: finite(float(value)) for key, value in found._asdict().items()}


def show(made: dict[str, Any]) -> None:
    """The verdict, the numbers, the concepts."""
    difference = made["difference"]
    click.echo(plain(made["verdict"]))
    click.echo()
    values = ", ".join(f"{name} {_cell(value)}" for name, value in zip((made["a"], made["b"]), made["values"], strict=True))
    click.echo(
        plain(
            f"{made['metric']} {made['average']} on {made['task']} ({made['samples']} test samples, {made['concepts']} concepts): {values}"
        )
    )
    ends = f"[{_cell(difference['low'], True)}, {_cell(difference['high'], True)}]"
    click.echo(f"difference {_cell(difference['value'], True)}, 95 % interval {ends}, p {_p(difference['p'])}")
    click.echo(f"smallest true difference found 8 times in 10: {_cell(difference['detectable'])}")
    for note in made["notes"]:
        click.echo(plain(f"note: {note}"))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("concept", overflow="fold")
    for name in ("n", "A", "B", "A - B", "p (Holm)"):
        table.add_column(name, justify="right")
    table.add_column("A is")
    words = {"win": "better", "loss": "worse", "tie": "not established", "no value": "no value"}
    for row in made["per_concept"]:
        cells = (_cell(row["a"]), _cell(row["b"]), _cell(row["value"], True), _p(row["p_holm"]))
        table.add_row(escape(plain(row["concept"])), str(row["n"]), *cells, words[row["outcome"]])
    Console().print(table)
    counts = made["counts"]
    none = f", {counts['no value']} without a value" if counts["no value"] else ""
    said = f"concepts: {counts['win']} wins, {counts['loss']} losses, {counts['tie']} ties{none} for A = {made['a']}"
    click.echo(plain(f"{said}, Holm-corrected over concepts"))


def _cell(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"
