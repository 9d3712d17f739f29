"""Leaderboards: a pure function of definitions and result files -> README.md and index.html, the same bytes every time.

Rows are compared only within one table: same task content (fingerprint), same limit, same backbone weights. Rows are sorted by the
first column; with overlapping intervals that is no ranking, and nothing is printed in bold. Sample text and plugin names are
untrusted: Markdown is escaped, HTML is autoescaped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from tabulate import tabulate

from harness.errors import HarnessError, unknown
from harness.results import find_results, read_result, scores_of, write_atomic
from harness.types import Score


@dataclass(frozen=True)
class Column:
    """One number of a row: metric, average (macro or weighted), heading, and whether its interval is printed."""

    metric: str
    average: str
    name: str
    interval: bool = False


@dataclass(frozen=True)
class Board:
    """A definition, as `leaderboards/*.yaml` declares it; rows are sorted by the first column, ceilings (picked on test) come last.

    explained: only the methods that were localized on the samples attribution explains; else only the others.
    """

    board: str
    title: str
    columns: tuple[Column, ...]
    description: str = ""
    explained: bool = False


@dataclass(frozen=True)
class Cell:
    """A number as shown; value None sorts last."""

    value: float | None
    text: str


@dataclass(frozen=True)
class Row:
    """One result: the method, its cells, where the chosen layers lie, and its run id."""

    method: str
    summary: str
    cells: tuple[Cell, ...]
    layers: str
    run_id: str
    ceiling: bool = False


@dataclass(frozen=True)
class Table:
    """Rows that may be compared."""

    heading: str
    about: str
    rows: tuple[Row, ...]


def build(roots: Sequence[Path], output: Path) -> list[str]:
    """Writes the pages and returns what to tell: files written, results used and left out."""
    results, problems = collect(roots)
    boards = [(board, list(tables(board, results))) for board in definitions(output)]
    write_atomic(output / "README.md", markdown(boards, problems).encode())
    write_atomic(output / "index.html", html(boards, problems).encode())
    told = [f"{len(results)} results from {', '.join(str(root) for root in roots)}"]
    told += [f"left out: {problem}" for problem in problems]
    return [*told, *(f"wrote {(output / name).absolute()}" for name in ("README.md", "index.html"))]


def collect(roots: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """(complete results, each run once, in a fixed order; why others were left out)."""
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for root in roots:
        for folder in find_results(root):
            try:
                read = read_result(folder)
            except HarnessError as error:
                problems.append(str(error).replace(f"{root}/", ""))
                continue
            found[read["run_id"]] = read
    ordered = sorted(found.values(), key=lambda r: (r["task"]["name"], r["backbone"]["name"], r["method"]["name"], r["run_id"]))
    return ordered, problems


def definitions(output: Path) -> list[Board]:
    """The boards of `output/*.yaml`, else the bundled ones."""
    here = Path(__file__).parent
    folders = [output, here / "_leaderboards", here.parent / "leaderboards"]
    files = next((files for folder in folders if (files := sorted(folder.glob("*.yaml")))), [])
    return [read_board(path) for path in files]


def read_board(path: Path) -> Board:
    """A checked definition."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise HarnessError(f"cannot read leaderboard definition {path}; {' '.join(str(error).split())}") from error
    _check_keys(raw, Board, f"leaderboard definition {path}")
    for column in raw["columns"]:
        _check_keys(column, Column, f"a column of leaderboard definition {path}")
    return Board(**{**raw, "columns": tuple(Column(**column) for column in raw["columns"])})


def _check_keys(raw: Any, kind: type, where: str) -> None:
    if not isinstance(raw, dict):
        raise HarnessError(f"{where} is not a mapping; see leaderboards/detection.yaml for an example")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            raise unknown("key", str(key), fields, where)
    for name, field in fields.items():
        if name not in raw and field.default is dataclasses.MISSING:
            raise HarnessError(f"{where} has no key {name!r}; it is required")


def tables(board: Board, results: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """One table per (task content, limit, backbone weights and geometry), full runs before limited ones."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        if (result["method"].get("localize_on") == "explained") != board.explained:
            continue
        task, backbone = result["task"], result["backbone"]
        key = (task["limit"] is not None, task["name"], task["fingerprint"], backbone["name"], str(sorted(backbone.items())))
        groups.setdefault(key, []).append(result)
    for key in sorted(groups):
        every = [_row(board, result) for result in groups[key]]
        rows = [row for row in every if any(cell.value is not None for cell in row.cells)]
        if rows:
            first = groups[key][0]
            yield Table(
                _heading(first),
                _about(first),
                tuple(sorted(rows, key=lambda r: (r.ceiling, -(r.cells[0].value or 0.0), r.method, r.run_id))),
            )


def _heading(result: Mapping[str, Any]) -> str:
    limit = result["task"]["limit"]
    limited = f" (limited to {limit} samples per split)" if limit else ""
    return f"{result['task']['name']} · {result['backbone']['name']}{limited}"


def _about(result: Mapping[str, Any]) -> str:
    task, backbone = result["task"], result["backbone"]
    sizes = ", ".join(f"{n} {split}" for split, n in task["samples"].items())
    return (
        f"{len(task['positives'])} concepts; {sizes}. Task version {task['version']}, fingerprint {task['fingerprint'][:12]}; "
        f"weights {str(backbone['revision'])[:12]}, {len(backbone['sites'])} layers, normalization {backbone['normalization']}."
    )


def _row(board: Board, result: Mapping[str, Any]) -> Row:
    scores = scores_of(result)
    layers = sorted({c["layer"] for c in result["choices"] if c["layer"] is not None}, key=lambda x: (len(x), x))
    span = "–" if not layers else layers[0] if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
    cells = tuple(_cell(column, scores) for column in board.columns)
    ceiling = result["method"].get("choose_on") == "test"
    name = result["method"]["name"] + (" (ceiling, picked on test: not ranked)" if ceiling else "")
    return Row(name, result["method"]["summary"], cells, span, result["run_id"], ceiling)


def _cell(column: Column, scores: Sequence[Score]) -> Cell:
    wanted = (s for s in scores if s.metric == column.metric and s.concept == column.average and s.layer in ("chosen", None))
    score = next(wanted, None)
    if score is None or score.value is None:
        return Cell(None, "–")
    known = column.interval and score.ci_low is not None and score.ci_high is not None
    return Cell(score.value, f"{score.value:.3f}" + (f" [{score.ci_low:.3f}, {score.ci_high:.3f}]" if known else ""))


def markdown(boards: Sequence[tuple[Board, Sequence[Table]]], problems: Sequence[str]) -> str:
    """README.md."""
    parts = [
        "# Leaderboards",
        "Made by `harness leaderboard build`; do not edit. Brackets are 95 % intervals (bootstrap over concepts and samples).",
    ]
    for board, its_tables in boards:
        parts += [f"## {board.title}", board.description.strip()]
        for table in its_tables:
            headers = ["method", *(column.name for column in board.columns), "layers"]
            rows = [[_escape(row.method), *(cell.text for cell in row.cells), row.layers] for row in table.rows]
            parts += [f"### {_escape(table.heading)}", _escape(table.about)]
            parts += [
                tabulate(
                    rows, headers, tablefmt="pipe", colalign=["left", *["right"] * (len(headers) - 1)], disable_numparse=True
                )
            ]
    if problems:
        parts += ["## Left out", "\n".join(f"- {_escape(problem)}" for problem in problems)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _escape(text: str) -> str:
    """Plain text in Markdown: no HTML, no table breaks."""
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("\n", " "), ("`", "'")):
        text = text.replace(character, safe)
    return text


def html(boards: Sequence[tuple[Board, Sequence[Table]]], problems: Sequence[str]) -> str:
    """index.html: one file, no network, sortable by click or key."""
    environment = Environment(loader=PackageLoader("harness", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("leaderboard.html").render(boards=boards, problems=problems)
