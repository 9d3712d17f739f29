"""Leaderboards: a pure function of definitions, result files and certificates -> README.md, the same bytes every time; pages are a
plugin's.

Rows are compared only within one table: same task content (fingerprint), same limit, same backbone weights, same versions of the
metrics. They are ranked by the first column, with ties (`ranking.py`): a rank is an interval, and all that may be first are bold. A
ceiling, a limited run and a row without every concept are shown and not ranked. Plugin names are untrusted: they are escaped and cut.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from harness.certificates import CERTIFICATES, Code, code_of, read_certificates
from harness.errors import HarnessError, unknown
from harness.ranking import Pair, Standing, rank
from harness.recompute import Evidence
from harness.results import file_name, find_results, read_result, scores_of, write_atomic
from harness.types import Score

LONGEST = 300
"""Characters of a name or a cause that are shown."""
SAID = ("task", "method", "metrics", "choices", "scores")
"""What two results of one run must have in common to be the same."""
MEANING = ("kind", "higher_is_better", "version")
"""What a metric's numbers must have in common to stand in one column."""


@dataclass(frozen=True)
class Column:
    """One number of a row: metric, average (macro or weighted), heading, whether its interval is printed, and the layer it is from."""

    metric: str
    average: str
    name: str
    interval: bool = False
    layer: str = "chosen"


@dataclass(frozen=True)
class Board:
    """A definition, as `leaderboards/*.yaml` declares it; rows are sorted by the first column, ceilings (picked on test) come last.

    explained: only the methods that were localized on the samples attribution explains; else only the others. each_layer: a column more
    for every layer of the run, of the first column's metric and average. unranked: methods that are shown without a rank.
    """

    board: str
    title: str
    columns: tuple[Column, ...]
    description: str = ""
    explained: bool = False
    each_layer: bool = False
    unranked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A number as shown; value None sorts last."""

    value: float | None
    text: str


@dataclass(frozen=True)
class Row:
    """One result: the method, its cells, where the chosen layers lie, its run id and folder, and its rank, or why it has none."""

    method: str
    summary: str
    cells: tuple[Cell, ...]
    layers: str
    run_id: str
    folder: Path
    ceiling: bool = False
    standing: Standing | None = None
    unranked: str | None = None

    @property
    def rank(self) -> str:
        """As it is printed: `2`, or `1–4` for a tie."""
        if self.standing is None:
            return "–"
        best, worst = self.standing
        return f"{best}" if best == worst else f"{best}–{worst}"


@dataclass(frozen=True)
class Table:
    """Rows that may be compared; pairs: the paired comparisons behind the ranks, by the run ids of both."""

    heading: str
    about: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    pairs: Mapping[tuple[str, str], Pair]


@dataclass(frozen=True)
class Built:
    """What was built: every board with its tables, all results used, and why others were left out; roots: the folders read.

    code: run id -> whose code its parts are and whether it is certified; empty where the boards have no certificates.json.
    """

    boards: tuple[tuple[Board, tuple[Table, ...]], ...]
    results: tuple[Evidence, ...]
    problems: tuple[str, ...]
    roots: tuple[Path, ...]
    code: Mapping[str, tuple[Code, ...]] = dataclasses.field(default_factory=dict)

    @property
    def told(self) -> list[str]:
        """The results used and left out, in words."""
        used = f"{len(self.results)} results from {', '.join(str(root) for root in self.roots)}"
        return [used, *(f"left out: {problem}" for problem in self.problems)]


def build(roots: Sequence[Path], output: Path) -> Built:
    """Writes README.md, and returns what it says."""
    certificates = read_certificates(output / CERTIFICATES)
    results, problems = collect(roots)
    boards = tuple((board, tuple(tables(board, results))) for board in definitions(output))
    code = {} if certificates is None else {r.read["run_id"]: code_of(r.read, certificates) for r in results}
    write_atomic(output / "README.md", markdown(boards, problems, code).encode())
    return Built(boards, tuple(results), tuple(problems), tuple(roots), code)


def collect(roots: Sequence[Path]) -> tuple[list[Evidence], list[str]]:
    """(complete results, each run once, in a fixed order; why others were left out)."""
    found: dict[str, Evidence] = {}
    problems = []
    for root in roots:
        for folder in sorted(find_results(root), key=lambda path: not _in_place(path)):
            try:
                read = read_result(folder)
            except HarnessError as error:
                problems.append(str(error).replace(f"{root}/", ""))
                continue
            why = _unusable(read)
            first = found.setdefault(str(read.get("run_id")), Evidence(folder, read)) if why is None else None
            if first is not None and any(first.read.get(key) != read.get(key) for key in SAID):
                why = f"another result of run {read['run_id']}, which is taken from {first.folder}; remove one of them"
            if why is not None:
                problems.append(f"{folder} is left out; {why}".replace(f"{root}/", ""))
    return sorted(found.values(), key=_order), problems


def _in_place(folder: Path) -> bool:
    """Whether a result stands where a run writes it: it is taken before one of the same run that stands elsewhere."""
    try:
        read = read_result(folder)
        names = [file_name(str(read[key]["name"])) for key in ("task", "backbone", "method")]
    except (HarnessError, KeyError, TypeError):  # said where it is collected
        return False
    return [*names, read.get("run_id")] == list(folder.absolute().parts[-4:])


def _unusable(read: Mapping[str, Any]) -> str | None:
    """What keeps a result from a table; None = nothing."""
    try:
        scores_of(read)
        _key(Board("", "", ()), read)
        _about(read)
        named = [read[key]["name"] for key in ("task", "backbone", "method")]
        words = [read["run_id"], read["method"]["summary"], *(row["layer"] or "" for row in read["choices"])]
    except (KeyError, TypeError, AttributeError) as error:
        return f"its result.json does not have the form of a result: {type(error).__name__} {error}; run it again"
    wrong = [word for word in (*named, *words) if not isinstance(word, str)]
    return f"its result.json has {str(wrong[0])[:40]!r} where a word belongs; run it again" if wrong else None


def _order(result: Evidence) -> tuple[str, ...]:
    read = result.read
    return read["task"]["name"], read["backbone"]["name"], read["method"]["name"], read["run_id"]


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
    columns = tuple(Column(**column) for column in raw["columns"])
    return Board(**{**raw, "columns": columns, "unranked": tuple(raw.get("unranked", ()))})


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


def tables(board: Board, results: Sequence[Evidence]) -> Iterator[Table]:
    """One table per (task content, limit, backbone, meaning of the metrics), full runs before limited ones; rows by rank, then value."""
    groups: dict[tuple[Any, ...], list[Evidence]] = {}
    for result in results:
        if (result.read["method"].get("localize_on") == "explained") == board.explained:
            groups.setdefault(_key(board, result.read), []).append(result)
    for key in sorted(groups):
        first = groups[key][0].read
        columns = board.columns
        if board.each_layer:
            head = columns[0]
            labels = first["backbone"]["sites"]
            columns += tuple(Column(head.metric, head.average, f"layer {label}", layer=label) for label in labels)
        every = [(result, _row(board, columns, result)) for result in groups[key]]
        there = [(result, row) for result, row in every if any(cell.value is not None for cell in row.cells)]
        if there:
            ranked, said, pairs = _ranked(board, there)
            about = " ".join(part for part in (_about(first), said) if part)
            yield Table(_heading(first), about, columns, tuple(sorted(ranked, key=_place)), pairs)


def _key(board: Board, read: Mapping[str, Any]) -> tuple[Any, ...]:
    task, backbone, metrics = read["task"], read["backbone"], read.get("metrics", {})
    meant = [(column.metric, *(metrics.get(column.metric, {}).get(key) for key in MEANING)) for column in board.columns]
    return (
        task["limit"] is not None,
        str(task["limit"]),
        task["name"],
        task["fingerprint"],
        backbone["name"],
        str(sorted(backbone.items())),
        str(meant),
    )


def _place(row: Row) -> tuple[Any, ...]:
    value = row.cells[0].value
    return row.ceiling, value is None, -(value or 0.0), row.method, row.run_id


def _ranked(board: Board, there: Sequence[tuple[Evidence, Row]]) -> tuple[list[Row], str, dict[tuple[str, str], Pair]]:
    """The rows with their ranks, what to say of them, and the comparisons behind them."""
    column, most = board.columns[0], max(_covered(result, board.columns[0]) for result, _ in there)
    why = _same_samples([result for result, _ in there], [_unranked(board, result, row, most) for result, row in there])
    mine = [result for (result, _), reason in zip(there, why, strict=True) if reason is None]
    try:
        better = all(result.read["metrics"][column.metric]["higher_is_better"] for result in mine)
        found = rank(mine, column.metric, column.average, better) if len(mine) > 1 else None
    except (HarnessError, KeyError) as error:
        found, reason = None, f"no paired comparison: {error}"
        why = [old or reason for old in why]
    standings = iter(found.standings if found else ())
    rows = [
        dataclasses.replace(row, standing=next(standings, None) if reason is None else None, unranked=reason)
        for (_, row), reason in zip(there, why, strict=True)
    ]
    if found is None:
        return rows, "", {}
    names = [result.read["run_id"] for result in mine]
    pairs = {(names[pair.a], names[pair.b]): pair for pair in found.pairs}
    size = f"; a true difference of {found.detectable:.3f} would be found 8 times in 10" if found.detectable > 0 else ""
    return rows, f"Ranks from {len(pairs)} paired comparisons of {column.name}, Holm-corrected{size}.", pairs


def _same_samples(results: Sequence[Evidence], why: Sequence[str | None]) -> list[str | None]:
    """The reasons, with one for rows of other test samples than most: a difference is paired, and one such row may not undo all ranks."""
    seen: dict[str, list[int]] = {}
    reasons = list(why)
    asked = [i for i, reason in enumerate(why) if reason is None]
    for i in asked if len(asked) > 1 else ():
        try:
            seen.setdefault(results[i].test_digest, []).append(i)
        except HarnessError as error:
            reasons[i] = f"no paired comparison: {error}"
    most = max(seen.values(), key=len, default=[])
    for i in (i for rows in seen.values() if rows is not most for i in rows):
        reasons[i] = "other test samples, concepts or labels than the other rows"
    return reasons


def _covered(result: Evidence, column: Column) -> int:
    rows = (s for s in result.read["scores"] if (s["metric"], s["concept"]) == (column.metric, column.average))
    return next((s["n"] for s in rows if s["layer"] in ("chosen", None)), 0)


def _unranked(board: Board, result: Evidence, row: Row, most: int) -> str | None:
    """Why a row has no rank."""
    covered = _covered(result, board.columns[0])
    if row.ceiling:
        return "a ceiling, picked on test"
    if result.read["task"]["limit"]:
        return "a limited run"
    if row.cells[0].value is None:
        return f"no value of {board.columns[0].name}"
    if covered < most:
        return f"values for {covered} of {most} concepts"
    return "shown for orientation" if result.read["method"]["name"] in board.unranked else None


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


def _row(board: Board, columns: Sequence[Column], result: Evidence) -> Row:
    read = result.read
    scores = scores_of(read)
    layers = sorted({c["layer"] for c in read["choices"] if c["layer"] is not None}, key=lambda x: (len(x), x))
    span = "–" if not layers else layers[0] if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
    cells = tuple(_cell(column, scores) for column in columns)
    ceiling = read["method"].get("choose_on") == "test"
    name = read["method"]["name"] + (" (ceiling, picked on test: not ranked)" if ceiling else "")
    return Row(name, read["method"]["summary"], cells, span, read["run_id"], result.folder, ceiling)


def _cell(column: Column, scores: Sequence[Score]) -> Cell:
    layers = ("chosen", None) if column.layer == "chosen" else (column.layer,)
    wanted = (s for s in scores if s.metric == column.metric and s.concept == column.average and s.layer in layers)
    score = next(wanted, None)
    if score is None or score.value is None:
        return Cell(None, "–")
    known = column.interval and score.ci_low is not None and score.ci_high is not None
    return Cell(score.value, f"{score.value:.3f}" + (f" [{score.ci_low:.3f}, {score.ci_high:.3f}]" if known else ""))


def markdown(
    boards: Sequence[tuple[Board, Sequence[Table]]], problems: Sequence[str], code: Mapping[str, Sequence[Code]]
) -> str:
    """README.md."""
    parts = [
        "# Leaderboards",
        "Made by `harness leaderboard build`; do not edit. Brackets are 95 % intervals (bootstrap over concepts and samples). A rank "
        "such as 1–4 is a tie: no paired comparison, corrected for their number, tells these methods apart. All that may be first are bold.",
        "Code is certified where `harness certify` passed on the very source that a result states; whoever submits it makes the "
        "certificate, and it says nothing about how good a method is."
        if code
        else "",
    ]
    for board, its_tables in boards:
        parts += [f"## {board.title}", board.description.strip()]
        for table in its_tables:
            headers = ["rank", "method", *(column.name for column in table.columns), "layers"]
            rows = [[_bold(row), _escape(row.method), *(cell.text for cell in row.cells), row.layers] for row in table.rows]
            parts += [f"### {_escape(table.heading)}", _escape(table.about)]
            parts += [
                tabulate(
                    rows,
                    headers,
                    tablefmt="pipe",
                    colalign=["right", "left", *["right"] * (len(headers) - 2)],
                    disable_numparse=True,
                )
            ]
            without = sorted(
                {f"{_escape(row.method)}: {_escape(row.unranked)}" for row in table.rows if row.unranked and not row.ceiling}
            )
            parts += ["Not ranked: " + "; ".join(without) + "."] if without else []
            parts += [_certified(table, code)] if code else []
    if problems:
        parts += ["## Left out", "\n".join(f"- {_escape(problem)}" for problem in problems)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _certified(table: Table, code: Mapping[str, Sequence[Code]]) -> str:
    """One line: what of the code behind a table's rows is not certified, and whose rows these are."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        for plugin, why in sorted({(one.plugin, one.why) for one in code[row.run_id] if one.why}):
            found.setdefault((plugin, why), []).append(_escape(row.method))
    if not found:
        return "All code behind these rows is certified."
    said = [
        f"{_escape(f'plugin {plugin}, {why}' if plugin else why)} ({'all rows' if len(its) == len(table.rows) else ', '.join(its)})"
        for (plugin, why), its in sorted(found.items())
    ]
    return f"Not certified: {'; '.join(said)}."


def _bold(row: Row) -> str:
    return f"**{row.rank}**" if row.standing is not None and row.standing.best == 1 else row.rank


def _escape(text: str) -> str:
    """Plain text in Markdown: no HTML, link, picture or emphasis, no table breaks, nothing invisible or that turns the reading order."""
    text = "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("`", "'"), ("://", "&#58;//"), ("www.", "www&#46;")):
        text = text.replace(character, safe)
    return re.sub(r"([\\|\[\]*~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
