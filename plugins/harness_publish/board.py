"""A built board as it is published: its files, after every result was verified and README.md was made again from the results.

What is not part of a board (notes, caches, links) stays where it is, and is counted.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from harness.api import HarnessError, find_results
from harness.api import build as build_boards
from harness_publish.publishing import plain_file

PARTS = ("README.md", "index.html", "certificates.json", "*.yaml", "pages/**/*.html")
"""The files of a board beside its results."""


@dataclass(frozen=True)
class Published:
    """The files of a board by their name in it, the folders of its results, and how many other files were left out."""

    folder: Path
    files: Mapping[str, Path]
    results: tuple[Path, ...]
    left: int


def read_board(folder: Path) -> Published:
    """The files of a board; raises where it is not built, or holds no results."""
    missing = [name for name in ("README.md", "index.html") if not (folder / name).is_file()]
    if missing:
        raise HarnessError(f"{folder} is no built board: it has no {' and no '.join(missing)}; run {_again(folder)}")
    results = tuple(find_results(folder / "results"))
    if not results:
        raise HarnessError(
            f"{folder} holds no results below results/; a board is published with what it is made of: put them there with "
            f"`harness submit RUN --to {folder / 'results'}`, then run {_again(folder)}"
        )
    found = [path for pattern in PARTS for path in folder.glob(pattern)]
    found += [path for result in results for path in result.rglob("*")]
    files = {path.relative_to(folder).as_posix(): path for path in sorted(found) if plain_file(path)}
    every = sum(path.is_symlink() or path.is_file() for path in folder.rglob("*"))
    return Published(folder, files, results, every - len(files))


def _again(folder: Path) -> str:
    return f"`harness leaderboard build {folder / 'results'} --output {folder}`"


def check(board: Published, context: click.Context) -> int:
    """How many numbers and words of the results were compared; raises where one does not follow, or README.md is of other results."""
    rows = verdicts(context, board.folder / "results")
    bad = [row for row in rows if row["verdict"] != "follows"]
    if bad:
        name = Path(bad[0]["bundle"]).relative_to(board.folder).as_posix()
        raise HarnessError(
            f"{len(bad)} of {len(rows)} results do not follow from their files; the first is {name}: {bad[0].get('cause')}; "
            f"nothing is published; see `harness verify {board.folder / 'results'}`"
        )
    bare = [Path(row["bundle"]).relative_to(board.folder).as_posix() for row in rows if not row["manifest"]]
    if bare:
        raise HarnessError(
            f"{len(bare)} of {len(rows)} results have no MANIFEST.json and may name paths of this machine; the first is {bare[0]}; "
            f"put the runs there with `harness submit RUN --to {board.folder / 'results'}`"
        )
    with tempfile.TemporaryDirectory() as work:
        for path in (*board.folder.glob("*.yaml"), board.folder / "certificates.json"):
            if path.is_file():
                shutil.copyfile(path, Path(work) / path.name)
        build_boards([board.folder / "results"], Path(work))
        if (Path(work) / "README.md").read_bytes() != (board.folder / "README.md").read_bytes():
            raise HarnessError(
                f"{board.folder / 'README.md'} is not what the results below it give; nothing is published; "
                f"run {_again(board.folder)}"
            )
    return sum(int(row["compared"]) for row in rows)


def verdicts(context: click.Context, results: Path) -> list[dict[str, Any]]:
    """What the command `harness verify --json` says of every result: the plugin that offers it is reached by the command's name."""
    group = context.find_root().command
    command = group.commands.get("verify") if isinstance(group, click.Group) else None
    if command is None:
        raise HarnessError(
            "publishing needs the command `harness verify`, which is not there; is the plugin that offers it left out or broken? "
            "see `harness plugins`"
        )
    said = io.StringIO()
    with redirect_stdout(said):
        command.main(["--json", "--", str(results)], prog_name="harness verify", obj=context.obj, standalone_mode=False)
    found: list[dict[str, Any]] = json.loads(said.getvalue())
    return found
