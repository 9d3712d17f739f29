"""Results as CSV (every score row), LaTeX with booktabs (a board's tables), and the model-index of a Hugging Face model card (YAML).

Names are untrusted: CSV cells that a spreadsheet would run get an apostrophe, LaTeX is escaped, YAML is dumped and not pasted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.api import Board, Evidence, Row, Score, Table, definitions, scores_of, tables, unknown

COLUMNS = ("task", "task_version", "fingerprint", "limit", "backbone", "revision", "method", "run_id")
SCORES = ("metric", "layer", "concept", "value", "ci_low", "ci_high", "sample_ci_low", "sample_ci_high", "n", "reason")
LONGEST = 120
TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "·": r"\textperiodcentered{}",
}


def csv_rows(results: Sequence[Evidence]) -> str:
    """One line per score of every result; an undefined number is empty, with its reason."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*COLUMNS, *SCORES))
    for result in results:
        read = result.read
        task, backbone = read["task"], read["backbone"]
        about = (task["name"], task["version"], task["fingerprint"], task["limit"], backbone["name"], backbone["revision"])
        head = [*about, read["method"]["name"], read["run_id"]]
        for score in scores_of(read):
            low, high = score.sample_ci or (None, None)
            ends = (score.ci_low, score.ci_high, low, high, score.n, score.reason)
            writer.writerow([_cell(x) for x in (*head, score.metric, score.layer, score.concept, score.value, *ends)])
    return out.getvalue()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is marked as text."""
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def latex(results: Sequence[Evidence], name: str) -> str:
    """A board's tables: bold where the rank may be 1; needs `\\usepackage{booktabs}`."""
    boards = {board.board: board for board in definitions(Path("leaderboards"))}
    if name not in boards:
        raise unknown("board", name, boards, "--board")
    parts = [_tabular(boards[name], table, results) for table in tables(boards[name], results)]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(parts)


def _tabular(board: Board, table: Table, results: Sequence[Evidence]) -> str:
    first = next(result.read for result in results if result.read["run_id"] == table.rows[0].run_id)
    n = first["task"]["samples"].get("test", "?")
    head = " & ".join(["Rank", "Method", *(tex(column.name) for column in table.columns)])
    body = [_line(row) for row in table.rows]
    why = sorted({f"{row.method}: {row.unranked}" for row in table.rows if row.unranked and not row.ceiling})
    caption = (
        f"{tex(board.title)}, {tex(table.heading)}: {n} test samples, {len(first['task']['positives'])} concepts. Brackets are 95\\,\\% "
        "bootstrap intervals over samples and concepts. A rank such as 1--4 is a tie; all that may be first are bold."
        + (f" Not ranked: {tex('; '.join(why), 600)}." if why else "")
    )
    rows = "\n".join(body)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{rl{'r' * len(table.columns)}}}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{rows}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def _line(row: Row) -> str:
    cells = [tex(row.rank), tex(row.method), *(tex(cell.text) for cell in row.cells)]
    if row.standing is not None and row.standing.best == 1:
        cells = [rf"\textbf{{{cell}}}" for cell in cells[:3]] + cells[3:]
    return " & ".join(cells) + r" \\"


def tex(text: str, longest: int = LONGEST) -> str:
    """The text as LaTeX prints it, one line, cut; what does not print is a question mark."""
    one = " ".join("".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text[: 4 * longest]).split())
    one = one if len(one) <= longest else f"{one[:longest]}..."
    return "".join(TEX.get(character, character) for character in one)


def model_card(results: Sequence[Evidence], source_url: str | None) -> str:
    """The YAML head of a model card: a model-index entry per backbone and method, with its averages.

    The schema is the Hub's: model-index > results > task, dataset, metrics, source.
    """
    made = []
    for result in results:
        read = result.read
        averages = [
            s
            for s in scores_of(read)
            if s.concept in ("macro", "weighted") and s.layer in ("chosen", None) and s.value is not None
        ]
        limit = f", limited to {read['task']['limit']} samples per split" if read["task"]["limit"] else ""
        entry: dict[str, Any] = {
            "task": {"type": "other", "name": "concept detection and localization"},
            "dataset": {
                "type": str(read["task"]["name"]),
                "name": f"{read['task']['name']}, version {read['task']['version']}{limit}",
                "split": "test",
                "revision": str(read["task"]["fingerprint"]),
            },
            "metrics": [_metric(score) for score in averages],
        }
        if source_url is not None:
            entry["source"] = {"name": "concept-harness", "url": source_url}
        made.append({"name": f"{read['backbone']['name']} · {read['method']['name']}", "results": [entry]})
    return "---\n" + yaml.safe_dump({"model-index": made}, sort_keys=False, allow_unicode=False, width=1000) + "---\n"


def _metric(score: Score) -> dict[str, Any]:
    made: dict[str, Any] = {"type": score.metric, "name": f"{score.metric}, {score.concept}", "value": score.value}
    if score.ci_low is not None and score.ci_high is not None:
        made["args"] = {"ci_95": [score.ci_low, score.ci_high]}
    return made
