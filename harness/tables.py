"""Tables for the terminal (rich): results with their intervals, and a task's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.tasks import Task
from harness.types import Result

COLUMNS = (
    ("f1", "weighted", "F1 weighted"),
    ("f1", "macro", "F1 macro"),
    ("average_precision", "macro", "AP"),
    ("auroc", "macro", "AUROC"),
    ("token_f1", "weighted", "token F1"),
    ("token_iou", "weighted", "token IoU"),
    ("token_average_precision", "weighted", "token AP"),
)
EXPLAINED = (
    ("token_f1", "weighted", "token F1"),
    ("token_iou", "weighted", "token IoU"),
    ("token_average_precision", "weighted", "token AP"),
    ("pointing_game", "weighted", "pointing game"),
    ("insertion_auc", "weighted", "insertion AUC"),
    ("deletion_auc", "weighted", "deletion AUC"),
)
"""Columns of the methods that were localized on explained samples alone: their numbers stand in a table of their own."""
INTERVALS = {"F1 weighted", "F1 macro", "token F1"}
CEILING = "ceiling: picked on test"


def cell(result: Result, metric: str, average: str, interval: bool) -> str:
    """`.912 [.880, .941]`, or a dash where the method has no such score."""
    score = result.score(metric, concept=average)
    if score is None or score.value is None:
        return "–"
    text = f"{score.value:.3f}"
    if interval and score.ci_low is not None and score.ci_high is not None:
        text += f" [{score.ci_low:.3f}, {score.ci_high:.3f}]"
    return text


def layers_of(result: Result) -> str:
    """The chosen layers, lowest to highest."""
    chosen = sorted({choice.layer for choice in result.choices if choice.layer is not None}, key=lambda x: (len(x), x))
    return "–" if not chosen else chosen[0] if len(chosen) == 1 else f"{chosen[0]}–{chosen[-1]}"


def levels_of(result: Result) -> str:
    """The chosen levels, lowest to highest."""
    chosen = sorted({choice.level for choice in result.choices if choice.level is not None})
    return "–" if not chosen else f"{chosen[0]:g}" if len(chosen) == 1 else f"{chosen[0]:g}–{chosen[-1]:g}"


def print_results(results: Sequence[Result]) -> None:
    """One table per (task, backbone), best weighted F1 first, ceilings last; then what was left out, then where the files are."""
    console = Console(width=None if Console().is_terminal else 170)
    for _, group in groupby(results, key=lambda r: (r.task["name"], r.task["fingerprint"], r.backbone["name"])):
        every = list(group)
        first = every[0]
        sizes = "/".join(str(n) for n in first.task["samples"].values())
        limited = f", LIMITED to {first.task['limit']} per split" if first.task["limit"] else ""
        where = f"{first.task['name']} on {first.backbone['name']}"
        plainly = [r for r in every if r.method.localize_on == "all"]
        if plainly:
            title = f"{where}: test, {sizes} train/cal/test{limited}; layer and level per concept from cal"
            console.print(_table(title, plainly, COLUMNS))
        explained = [r for r in every if r.method.localize_on == "explained"]
        if explained:
            title = f"{where}: tokens of at most {first.spec.explain_limit} explained positives per concept{limited}"
            console.print(_table(title, explained, EXPLAINED))
        boot = first.spec.bootstrap
        click.echo(
            f"95 % intervals: two-level bootstrap (concepts x samples), {boot} replicates. AP and AUROC are macro averages."
        )
        for note, value in first.notes.items():
            if note not in ("guards", "no answer"):
                click.echo(plain(f"note: {note}: {short(value)}"))
    for result in results:
        click.echo(f"wrote {result.path}")


def _table(title: str, results: Sequence[Result], columns: Sequence[tuple[str, str, str]]) -> Table:
    """The results by the first column, ceilings last."""
    metric, average, _ = columns[0]
    value = {id(r): s.value or 0.0 if (s := r.score(metric, concept=average)) else 0.0 for r in results}
    table = Table(title=escape(plain(title)), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("method")
    for *_, name in columns:
        table.add_column(name, justify="right")
    table.add_column("layers", justify="right")
    table.add_column("levels", justify="right")
    for row in sorted(results, key=lambda r: (r.method.choose_on == "test", -value[id(r)])):
        cells = [cell(row, metric, average, name in INTERVALS) for metric, average, name in columns]
        note = f" ({CEILING})" if row.method.choose_on == "test" else ""
        table.add_row(escape(plain(row.method.name + note)), *cells, layers_of(row), levels_of(row))
    return table


def plain(text: str) -> str:
    """The text without control characters: names come from data and plugins, and a terminal obeys escapes."""
    return "".join(c if c.isprintable() else "�" for c in text)


def short(value: object) -> str:
    """A note in one line: names and counts, cut after a few."""
    if isinstance(value, dict) and "count" in value:
        shown = ", ".join(map(str, value["ids"][:3]))
        return f"{value['count']} ({shown}{', ...' if value['count'] > 3 else ''})"
    if isinstance(value, dict):
        words = [
            f"{k} ({', '.join(f'{s} {n}' for s, n in v.items())})" if isinstance(v, dict) else f"{k} {v}"
            for k, v in value.items()
        ]
        return "; ".join(words[:5]) + (f"; and {len(words) - 5} more" if len(words) > 5 else "")
    return str(value)


def print_task(task: Task) -> None:
    """Samples and positives per split, and what was left out."""
    described = task.describe()
    title = escape(plain(f"task {task.name}, version {task.file.version}, {task.modality}"))
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("concept")
    for name, n in described["samples"].items():
        table.add_column(f"{name} ({n})", justify="right")
    for concept, counts in described["positives"].items():
        table.add_row(escape(plain(concept)), *(str(n) for n in counts.values()))
    Console().print(table)
    for note, value in task.notes.items():
        click.echo(plain(f"note: {note}: {short(value)}"))
    click.echo(f"fingerprint {task.fingerprint}")
