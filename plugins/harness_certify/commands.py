"""`harness init` and `harness certify`: what is asked, what is printed, the exit code: 1 = not certified."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from harness.api import KINDS, HarnessError, load, unknown

MADE = ("detector", "concept-method", "backbone", "localizer", "task")


@click.command()
@click.argument("kind", type=click.Choice(MADE))
@click.argument("name")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A folder that is empty or not there.  [default: NAME]")
@click.pass_obj
def init(registry: Any, kind: str, name: str, output: Path | None) -> None:
    """Make a small working plugin to begin with: code, a test that passes, a README with the commands; or a task with data.

    \b
    Examples:
      harness init detector top3
      harness init task weather -o my_tasks/weather
    """
    from harness_certify.begin import begin

    folder = output or Path(name)
    for path in begin(registry, kind, name, folder):
        click.echo(path)
    click.echo(f"next: see {folder / 'README.md'}", err=True)


@click.command()
@click.argument("plugin", required=False)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Folder of certificate.json and badge.svg; with --all a file."
)
@click.option(
    "--board",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also put it among a board's: leaderboards/certificates.json.",
)
@click.option("--part", multiple=True, help="Certify this reference in place of the bare name: `sae:my_folder`. Repeatable.")
@click.option(
    "--check", type=click.Path(path_type=Path), metavar="CERTIFICATE", help="Only say whether this certificate still holds."
)
@click.option("--all", "every", is_flag=True, help="Certify every installed plugin.")
@click.option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print the certificate.")
@click.pass_obj
def certify(
    registry: Any, plugin: str | None, output: Path | None, part: tuple[str, ...], check: Path | None, **how: Any
) -> None:
    """Check that a plugin keeps its contracts, and write that down: certificate.json and badge.svg.

    PLUGIN is a file, a package, an installed plugin or the name of one part. It says nothing about how good a method is. Exit code 1
    where it is not certified, or where --check does not hold.

    \b
    Examples:
      harness certify my_plugin.py
      harness certify pooling -o certificates/pooling --board my_boards/certificates.json
      harness certify --check certificates/pooling/certificate.json pooling
    """
    if how["every"] == bool(plugin):
        raise HarnessError("name one plugin, or give --all; see `harness plugins` for those there are")
    if how["every"]:
        if part or check or how["board"]:
            raise HarnessError(
                "--all takes no --part, --check or --board; certify one plugin at a time with them, or name a file with -o"
            )
        ok = _all(registry, output or Path("certificates.json"), how["as_json"])
    else:
        if how["board"]:
            from harness.api import read_certificates

            read_certificates(how["board"])  # refused now, not when all is checked
        registry, name, requests, only = _find(registry, str(plugin))
        ok = _held(registry, name, check) if check else _one(registry, name, requests, part, only, output, **how)
    if not ok:
        sys.exit(1)


def _find(registry: Any, words: str) -> tuple[Any, str, list[str], str | None]:
    """(registry, plugin, what to load beside the installed ones, the one part asked for)."""
    known = {plugin.name: plugin for plugin in registry.plugins}
    by_package = {plugin.origin: name for name, plugin in known.items()}
    for name in (words, by_package.get(words)):
        if name in known:
            if known[name].cause:
                raise HarnessError(f"plugin {name} is broken; {known[name].cause}; see `harness plugins`")
            given = [known[name].origin] if known[name].distribution is None else []
            return registry, str(name), given, None
    owners = {part: (kind, part) for kind in KINDS for part in registry.entries(kind)}
    if words in owners:
        return registry, registry.owner(*owners[words]), [], words
    if words.endswith(".py") or "/" in words:
        return load([words]), Path(words).stem, [str(Path(words).absolute())], None
    try:
        return load([words]), words, [words], None
    except HarnessError as error:
        raise unknown("plugin or part", words, {*known, *owners}, hint="a file ends in .py") from error


def _held(registry: Any, plugin: str, path: Path) -> bool:
    from harness_certify.certificate import holds, read

    made = read(path)
    why = holds(made, registry.source(plugin))
    part = f" (of its part {made['only']!r} alone)" if made["only"] else ""
    made_with = f"certified with harness {made['harness']}{part}"
    click.echo(
        f"does not hold: {why}; certify it again" if why else f"holds: {plugin}, {made_with}, source {made['sha256'][:12]}"
    )
    return why is None


def _one(
    registry: Any, plugin: str, requests: list[str], part: tuple[str, ...], only: str | None, output: Path | None, **how: Any
) -> bool:
    from harness.api import merge_certificates
    from harness_certify.certificate import certificate, short, verdict, write
    from harness_certify.examine import examine

    started = time.perf_counter()
    found = examine(registry, plugin, requests, part, only)
    made = certificate(registry, plugin, found, time.perf_counter() - started, only)
    folder = output or Path("certificates") / plugin
    write(made, folder)
    if how["board"]:
        merge_certificates(how["board"], {plugin: short(made, found)})
    if how["as_json"]:
        click.echo(json.dumps(made, indent=1))
    else:
        for one in found:
            for check in one.checks:
                click.echo(f"{check.verdict:<5} {one.part or plugin:<34} {check.name:<20} {check.reason}".rstrip())
        click.echo(verdict(made, found))
    click.echo(f"wrote {folder / 'certificate.json'} and badge.svg in {made['seconds']} s", err=True)
    return bool(made["certified"])


def _all(registry: Any, path: Path, as_json: bool) -> bool:
    """Puts the certificate of every installed plugin among those of a file; False where one failed, not where none could be checked."""
    from harness.api import merge_certificates, read_certificates
    from harness_certify.certificate import certificate, short, verdict
    from harness_certify.examine import examine_all

    read_certificates(path)
    plugins = sorted(one.name for one in registry.plugins if one.distribution and not one.cause)
    click.echo(f"certifying {len(plugins)} plugins: a minute or two", err=True)
    board = {}
    for one in examine_all(registry, plugins, []):
        made = certificate(registry, one.plugin, one.all, one.seconds, None)
        board[one.plugin] = short(made, one.all)
        click.echo(f"{verdict(made, one.all)} ({made['seconds']} s)", err=as_json)
    every = merge_certificates(path, board)
    click.echo(json.dumps({name: asdict(one) for name, one in every.items()}, indent=1) if as_json else f"wrote {path}")
    return all(one.certified is not False for one in board.values())
