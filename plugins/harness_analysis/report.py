"""What an analysis leaves: data files first, then a short table, then figures; so that without matplotlib the data are there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from harness.api import Bootstrap, HarnessError, Refit, check_output, plain, write_atomic
from harness_analysis.sources import Group, NothingError, collect

if TYPE_CHECKING:
    from harness_analysis.figures import Picture


@dataclass(frozen=True)
class Report:
    """One analysis of one group of results.

    tables: file name -> rows, the main one first. about: definition and options. shown: headings and rows for the terminal.
    pictures: draws them. notes: what is not in it and why, and what differs from the results.
    """

    group: Group
    title: str
    tables: dict[str, list[dict[str, Any]]]
    about: dict[str, Any]
    shown: tuple[Sequence[str], Sequence[Sequence[Any]]]
    pictures: Callable[[], Iterable[Picture]]
    notes: Sequence[str] = field(default_factory=list)


def produce(what: str, roots: Sequence[Path], output: Path, as_json: bool, make: Callable[[Group], Report]) -> None:
    """Writes an analysis of every group of results to `output/<group>/`, and prints it."""
    groups, left_out = collect(roots)
    check_output(output)
    reports, empty = [], []
    for group in groups:
        try:
            reports.append(make(group))
        except NothingError as error:
            empty.append(error)
            continue
        _write_tables(what, reports[-1], output)
    if not reports:
        raise empty[0]
    drawn = find_spec("matplotlib") is not None
    files = {report.group.name: _drawn(what, report, output) if drawn else [] for report in reports}
    for line in (*left_out, *map(str, empty), *(line for report in reports for line in report.notes)):
        click.echo(plain(f"note: {line}"), err=True)
    if as_json:
        click.echo(json.dumps([_as_json(what, report, output, files) for report in reports], indent=1, allow_nan=False))
    else:
        for report in reports:
            _print(report, output / report.group.name)
    if not drawn:
        raise HarnessError(
            f"figures need matplotlib, which is not installed; the data files are in {output.absolute()}; "
            f"run: pip install 'concept-harness[pictures]'"
        )


def _write_tables(what: str, report: Report, output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = output / report.group.name
    for name, rows in report.tables.items():
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
        write_atomic(folder / f"{name}.parquet", sink.getvalue())
    write_atomic(folder / f"{what}.json", json.dumps(about(what, report), indent=1, allow_nan=False).encode())


def about(what: str, report: Report) -> dict[str, Any]:
    """What the data files mean, and which runs they come from; `<what>.json`."""
    first = report.group.first
    return {
        "analysis": what,
        "title": report.title,
        **report.about,
        "files": {f"{name}.parquet": list(rows[0]) if rows else [] for name, rows in report.tables.items()},
        "task": {key: first["task"][key] for key in ("name", "version", "fingerprint", "limit", "samples")},
        "backbone": first["backbone"],
        "results": [{**source.named, "folder": str(source.folder)} for source in report.group.sources],
        "notes": list(report.notes),
        "harness": version("concept-harness"),
    }


def _drawn(what: str, report: Report, output: Path) -> list[str]:
    from harness_analysis.figures import FORMATS, saved, style

    written = []
    with style():
        for picture in report.pictures():
            for form in FORMATS:
                path = output / report.group.name / f"{picture.name}.{form}"
                write_atomic(path, saved(picture.figure, form))
                written.append(str(path.absolute()))
            if picture.note:
                click.echo(plain(f"{picture.name}: {picture.note}"), err=True)
    return written


def _as_json(what: str, report: Report, output: Path, files: dict[str, list[str]]) -> dict[str, Any]:
    folder = (output / report.group.name).absolute()
    data_files = [str(folder / f"{name}.parquet") for name in report.tables] + [str(folder / f"{what}.json")]
    rows = next(iter(report.tables.values()))
    return {**about(what, report), "rows": rows, "written": [*data_files, *files[report.group.name]]}


def _print(report: Report, folder: Path) -> None:
    headers, rows = report.shown
    first = report.group.first
    click.echo(plain(f"{first['task']['name']} on {first['backbone']['name']}: {report.title}"))
    clean = [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    click.echo(tabulate(clean, headers, floatfmt=".3f", missingval="–", tablefmt="simple"))
    click.echo(f"wrote {folder.absolute()}\n")


def span(row: dict[str, Any], name: str) -> str | None:
    """`.912 [.880, .941]` from the columns name, name_low and name_high; None where there is no value."""
    value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return None
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")


def bootstrap_of(found: Refit) -> Bootstrap:
    """The weightings of the test samples that the result's own intervals come from."""
    import torch

    bench = found.bench
    labels = torch.from_numpy(bench.task.splits["test"].labels)
    return Bootstrap(labels, bench.task.concepts, bench.spec.bootstrap, bench.spec.seed)
