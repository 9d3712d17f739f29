"""`harness submit RUN`: a verified copy of a run that names nothing of this machine, with MANIFEST.json, ready for a pull request.

Options, notes and provenance lose the folders of paths; the name of the user and of the machine become `user` and `machine`. What a
number's identity holds (recipe, backbone) and the ids of samples are not rewritten: a path there is refused.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from harness.api import HarnessError, file_name, plain, read_result, write_atomic
from harness_trust.bundle import ALL, MANIFEST, manifest_of
from harness_trust.checks import verify
from harness_trust.report import said_left, the_result

TOKENS = "tokens.safetensors"
REWRITTEN = ("config", "notes", "provenance")
USUAL = [
    "home",
    "Users",
    "root",
    "tmp",
    "mnt",
    "media",
    "data",
    "opt",
    "var",
    "srv",
    "work",
    "scratch",
    "usr",
    "private",
    "Volumes",
    "content",
    "kaggle",
    "workspace",
]
PATH = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:(?=\\)|(?=/))((?:[/\\][^\s/\\:;,'\"()<>|]+)+)[/\\]?")


def submit(run: Path, to: Path, tokens: bool, force: bool) -> dict[str, Any]:
    """Writes the bundle; raises where the run does not verify, or another bundle is there."""
    folder = the_result(run)
    found = verify(folder)
    if found.finding is not None:
        raise HarnessError(f"{folder} does not follow from its files and is not submitted; {found.finding}; run it again")
    read = read_result(folder)
    target = to.joinpath(*(file_name(read[key]["name"]) for key in ("task", "backbone", "method")), read["run_id"])
    with tempfile.TemporaryDirectory() as work:
        made = Path(work)
        left = _copy(folder, made, tokens)
        changed = _strip(read, made)
        _refuse_paths(made)
        write_atomic(made / MANIFEST, json.dumps(manifest_of(made), indent=1).encode())
        again = verify(made)
        if again.finding is not None:
            raise HarnessError(f"the bundle of {folder} does not follow from its files: {again.finding}; please report this")
        written = _place(made, target, force)
    notes = _notes(read)
    return {
        "bundle": str(target),
        "written": written,
        "compared": again.ledger.compared,
        "left": again.ledger.left,
        "files": sorted(manifest_of(target)["files"]),
        "left_out": left,
        "rewritten": changed,
        "notes": notes,
        "next": commands(target, read),
    }


def _copy(folder: Path, made: Path, tokens: bool) -> list[str]:
    """Copies the files of a bundle, and returns what was left."""
    left = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == MANIFEST:
            continue
        if name not in ALL or (name == TOKENS and not tokens):
            left.append(name)
        else:
            shutil.copyfile(path, made / name)
    return left


def _strip(read: dict[str, Any], made: Path) -> list[str]:
    """Rewrites result.json and config.yaml without this machine's names; returns where something changed."""
    changed: list[str] = []
    for key in REWRITTEN:
        read[key] = _clean(read[key], key, changed)
    write_atomic(made / "result.json", json.dumps(read, indent=1, allow_nan=False).encode())
    text = yaml.safe_dump(read["config"], sort_keys=True, allow_unicode=True)
    write_atomic(made / "config.yaml", text.encode())
    return changed


def _clean(value: Any, where: str, changed: list[str]) -> Any:
    if isinstance(value, dict):
        return {_clean(key, where, changed): _clean(inner, f"{where}.{key}", changed) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner, f"{where}[{i}]", changed) for i, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    text = PATH.sub(lambda found: re.split(r"[/\\]", found[1])[-1] if local(found[0]) else found[0], value)
    for name, instead in private().items():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, text)
    if text != value:
        changed.append(where)
    return text


def local(path: str) -> bool:
    """Whether an absolute path is one of a file system, and no concept id such as `/m/01g317`."""
    if not path.startswith("/"):
        return True
    first = path.split("/")[1]
    return first in USUAL or (Path("/") / first).is_dir()


def private() -> dict[str, str]:
    """The names of this user and machine, and what stands for them; `root`, `user` and very short names name nobody."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name
        user = ""
    names = {str(Path.home()): "~", user: "user", platform.node(): "machine"}
    return {
        name: instead for name, instead in names.items() if len(name) > 2 and name not in ("root", "user", "localhost", "/root")
    }


def strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(where, text) of every text of a JSON value, keys too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{where}.{key}".lstrip("."), str(key)
            yield from strings(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from strings(inner, f"{where}[{i}]")
    elif isinstance(value, str):
        yield where, value


def _refuse_paths(made: Path) -> None:
    """Raises where a path of a file system is left: in the identity of the numbers, or in the ids of samples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [("result.json", where, text) for where, text in strings(json.loads((made / "result.json").read_text()))]
    for path in sorted(made.glob("*.parquet")):
        table = pq.read_table(path)
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            words = column.dictionary if pa.types.is_dictionary(column.type) else column
            if pa.types.is_string(words.type):
                found += [(path.name, f"column {name}", word) for word in set(words.to_pylist()) if word]
    if (made / TOKENS).is_file():
        from safetensors import safe_open

        with safe_open(made / TOKENS, framework="numpy") as opened:
            found += [
                (TOKENS, where, text) for where, text in strings(json.loads((opened.metadata() or {}).get("about", "{}")))
            ]
    for file, where, text in found:
        path = next((match[0] for match in PATH.finditer(text) if local(match[0])), None)
        if path is not None:
            raise HarnessError(
                f"{file}: {where} names a path of this machine, {path!r}, and is part of what the run is; "
                f"run again with a registered name or a relative path"
            )


def _place(made: Path, target: Path, force: bool) -> bool:
    """Puts the bundle where it belongs; False where the same one is there already. Another one is never replaced silently."""
    if target.exists():
        if manifest_of(target) == manifest_of(made) and (target / MANIFEST).is_file():
            return False
        if not force:
            raise HarnessError(
                f"{target} holds another bundle of this run; it is not overwritten; remove it, choose another --to, or use --force"
            )
        shutil.rmtree(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, target)
    except OSError as error:
        raise HarnessError(f"cannot write {target}; {error.strerror or error}; choose another --to") from error
    return True


def _notes(read: dict[str, Any]) -> list[str]:
    """Why a board will show the row without a rank."""
    said = []
    if read["task"]["limit"] is not None:
        said.append(f"limited to {read['task']['limit']} samples per split (--limit): shown, not ranked")
    if read["method"]["choose_on"] == "test":
        said.append("a ceiling, picked on test: shown, not ranked")
    without = [row["concept"] for row in read["choices"] if row["cutoff"] is None]
    if without:
        some = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        said.append(f"{len(without)} of {len(read['choices'])} concepts have no cutoff ({some}): shown, not ranked")
    return said


def commands(target: Path, read: dict[str, Any]) -> list[str]:
    """How to open the pull request: from the root of the checkout that `target` is in, to which the first line goes; empty outside one."""
    place = target.absolute()
    root = next((folder for folder in place.parents if (folder / ".git").exists()), None)
    if root is None:
        return []
    bundle, results = place.relative_to(root), place.parents[3].relative_to(root)
    branch = "-".join(["submit", file_name(read["method"]["name"]), file_name(read["task"]["name"]), read["run_id"]])
    subject = f"Submit {read['method']['name']} on {read['task']['name']} with {read['backbone']['name']}"
    added = " ".join(shlex.quote(str(path)) for path in (bundle, results.parent / "README.md", results.parent / "index.html"))
    return [
        f"cd {shlex.quote(os.path.relpath(root))}",
        f"git switch -c {shlex.quote(branch)}",
        f"harness leaderboard build {shlex.quote(str(results))} --output {shlex.quote(str(results.parent))}",
        f"git add {added}",
        f"git commit -m {shlex.quote(subject)}",
        f"git push -u origin {shlex.quote(branch)}",
    ]


def show(made: dict[str, Any]) -> None:
    """What was written, what a board will do with it, and what to do next."""
    click.echo(plain(f"verified: {made['compared']:,} numbers and words follow from the files"))
    if made["left"]:
        click.echo(plain(said_left(made["left"])))
    click.echo(
        plain(
            f"{'wrote' if made['written'] else 'already there, the same:'} {made['bundle']} ({len(made['files'])} files and {MANIFEST})"
        )
    )
    if made["left_out"]:
        hint = f"; --tokens takes {TOKENS}" if TOKENS in made["left_out"] else ""
        click.echo(plain(f"left out: {', '.join(made['left_out'])}{hint}"))
    if made["rewritten"]:
        click.echo(plain(f"without names of this machine: {', '.join(made['rewritten'])}"))
    for note in made["notes"]:
        click.echo(plain(f"note: {note}"))
    if not made["next"]:
        click.echo(
            "\nThis folder is in no git checkout: give the --to of a clone, or copy the bundle to its leaderboards/results."
        )
        return
    click.echo("\nTo open the pull request:")
    for line in made["next"]:
        click.echo(plain(f"  {line}"))
    click.echo("then open it on the page that `git push` names; its checks verify the bundle and rebuild the boards")
