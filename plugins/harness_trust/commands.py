"""`harness verify`, `submit`, `compare`, `diff`: they parse and print. Nothing heavy is imported before one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print JSON.")
PLUGIN = click.option("-p", "--plugin", multiple=True, expose_value=False, help="Load one more plugin, as in `harness run`.")


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=FOLDER)
@click.option(
    "--rerun", type=click.IntRange(1), metavar="K", help="Also make K random test samples' scores again from the raw data."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which samples --rerun draws.")
@click.option(
    "--cache-dir",
    type=FOLDER,
    envvar="HARNESS_CACHE_DIR",
    help="Where --rerun keeps embeddings.  [default: ~/.cache/concept-harness]",
)
@JSON
@PLUGIN
@click.pass_context
def verify(
    context: click.Context, bundles: tuple[Path, ...], rerun: int | None, seed: int, cache_dir: Path | None, as_json: bool
) -> None:
    """Recompute every number of BUNDLES (result folders, or folders above several) from their own files.

    Needs no torch, data or model; exit code 1 = a number does not follow, 2 = a bundle cannot be read.

    \b
    Examples:
      harness verify results/toy/toy/superactivator
      harness verify leaderboards/results
      harness verify results/toy/toy/superactivator --rerun 5
    """
    from harness_trust.report import found_in, show_verdicts, verdict_of

    rows = [verdict_of(folder) for folder in found_in(bundles)]
    if rerun:
        from harness_trust.rerun import rerun as again

        for row in rows:
            if row["verdict"] == "follows":
                again(row, context.obj, rerun, seed, cache_dir)
    _print(rows, as_json, show_verdicts)
    verdicts = {row["verdict"] for row in rows}
    context.exit(2 if "unreadable" in verdicts else 1 if "does not follow" in verdicts else 0)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--to", type=FOLDER, default=Path("leaderboards/results"), show_default=True, help="Where submitted bundles are.")
@click.option("--tokens", is_flag=True, help="Take tokens.safetensors too (large).")
@click.option("--force", is_flag=True, help="Replace another bundle of the same run.")
@JSON
@PLUGIN
def submit(run: Path, to: Path, tokens: bool, force: bool, as_json: bool) -> None:
    """Verify a RUN folder and copy it as a bundle, with a manifest and without paths of this machine.

    \b
    Example:
      harness submit results/toy/toy/superactivator/*
    """
    from harness_trust.submit import show
    from harness_trust.submit import submit as write

    _print(write(run, to, tokens, force), as_json, show)


@click.command()
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--metric", default="f1", show_default=True, help="A metric of both results.")
@click.option(
    "--average", type=click.Choice(["weighted", "macro"]), default="weighted", show_default=True, help="Over concepts."
)
@JSON
@PLUGIN
def compare(a: Path, b: Path, metric: str, average: str, as_json: bool) -> None:
    """The paired difference A minus B on the same test samples, and what may be said of it.

    \b
    Example:
      harness compare results/toy/toy/superactivator/* results/toy/toy/max/*
    """
    from harness_trust.comparing import compare as pair
    from harness_trust.comparing import show

    _print(pair(a, b, metric, average), as_json, show)


@click.command()
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@JSON
@PLUGIN
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Why do A and B differ? What differs between the runs, by how many decisions it flips.

    \b
    Example:
      harness diff results/toy/toy/superactivator/* other/toy/toy/superactivator/*
    """
    from harness_trust.differing import diff as explain
    from harness_trust.differing import show

    _print(explain(a, b), as_json, show)


def _print(found: Any, as_json: bool, show: Any) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=1, allow_nan=False))
    else:
        show(found)
