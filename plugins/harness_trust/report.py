"""What `verify` found, as plain data and in words; and the one result that a path means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.api import HarnessError, find_results, plain


def found_in(roots: Sequence[Path]) -> list[Path]:
    """Every bundle at or below the paths, each once; a path without one is an error."""
    found: dict[Path, None] = {}
    for root in roots:
        below = list(find_results(root))  # a bundle does not hide those below it
        mine = (root / "STATUS").is_file() or (root / "config.yaml").is_file()
        here = [root, *below] if mine else below
        if not here:
            raise HarnessError(f"no result in {root}; name a folder that `harness run` or `harness submit` wrote, or one above")
        found.update(dict.fromkeys(here))
    return list(found)


def the_result(path: Path) -> Path:
    """The one result at or below a path."""
    found = found_in([path])
    if len(found) > 1:
        some = ", ".join(str(folder) for folder in found[:3])
        raise HarnessError(f"{path} holds {len(found)} results: {some}{', ...' if len(found) > 3 else ''}; name one of them")
    return found[0]


def verdict_of(folder: Path) -> dict[str, Any]:
    """One bundle's verdict: `follows`, `does not follow` or `unreadable`, with what was compared and what could not be."""
    from harness_trust.checks import verify

    made: dict[str, Any] = {"bundle": str(folder), "verdict": "unreadable", "compared": 0, "left": {}, "manifest": False}
    try:
        found = verify(folder)
    except HarnessError as error:
        return {**made, "cause": str(error)}
    verdict = "follows" if found.finding is None else "does not follow"
    made.update(verdict=verdict, compared=found.ledger.compared, left=found.ledger.left, manifest=found.manifest)
    if found.finding is not None:
        made.update(cause=str(found.finding), **vars(found.finding))
    return made


def show_verdicts(rows: Sequence[dict[str, Any]]) -> None:
    """One bundle in sentences, several as a table."""
    if len(rows) == 1:
        for line in sentences(rows[0]):
            click.echo(plain(line))
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("bundle", overflow="fold")
    table.add_column("verdict")
    table.add_column("compared", justify="right")
    table.add_column("first that does not follow", overflow="fold")
    for row in rows:
        name = "/".join(Path(row["bundle"]).parts[-4:])
        cause = row.get("cause", row.get("rerun", {}).get("said", ""))
        table.add_row(*(escape(plain(x)) for x in (name, row["verdict"], f"{row['compared']:,}", cause)))
    Console().print(table)
    bad = sum(row["verdict"] != "follows" for row in rows)
    click.echo(f"{len(rows) - bad} of {len(rows)} bundles follow from their files")
    left: dict[str, int] = {}
    for row in rows:
        for what, count in row["left"].items():
            left[what] = left.get(what, 0) + count
    click.echo(said_left(left)) if left else None
    without = sum(not row["manifest"] for row in rows if row["verdict"] == "follows")
    click.echo(f"{without} without MANIFEST.json: {UNSEALED}") if without else None


UNSEALED = "numbers were recomputed, but words such as notes and provenance were not checked"


def sentences(row: dict[str, Any]) -> list[str]:
    """What is to be said of one bundle."""
    if row["verdict"] == "unreadable":
        return [f"unreadable: {row['cause']}"]
    if row["verdict"] == "does not follow":
        return [f"does not follow: {row['cause']}", f"in {row['bundle']}"]
    lines = [f"follows: {row['compared']:,} numbers and words of {row['bundle']} were compared"]
    lines += [said_left(row["left"])] if row["left"] else []
    lines.append("MANIFEST.json: every file has its sha256" if row["manifest"] else f"no MANIFEST.json: {UNSEALED}")
    return lines + ([row["rerun"]["said"]] if "rerun" in row else [])


def said_left(left: dict[str, int]) -> str:
    """What could not be recomputed."""
    return "not recomputed: " + "; ".join(f"{what} ({count} numbers)" for what, count in left.items())
