"""`harness leaderboard export`: parses and checks; the formats are `formats.py`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.api import HarnessError

FORMATS = ("csv", "latex", "model-card")


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True, envvar="HARNESS_KIND", help="What to write.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), envvar="HARNESS_EXPORT_OUTPUT", help="A file.  [default: the terminal]"
)
@click.option(
    "--board",
    default="detection",
    show_default=True,
    envvar="HARNESS_BOARD",
    help="latex: which board; `leaderboards/*.yaml` or a bundled one.",
)
@click.option("--source-url", envvar="HARNESS_SOURCE_URL", help="model-card: where the results can be seen.")
def export(results: tuple[Path, ...], kind: str, output: Path | None, board: str, source_url: str | None) -> None:
    """Write results as a table of all numbers, a table for a paper, or metadata of a model card.

    RESULTS are folders with results below them.

    \b
    Example:
      harness leaderboard export results --format csv -o scores.csv
      harness leaderboard export results --format latex --board localization
      harness leaderboard export results --format model-card --source-url https://example.org/board
    """
    from harness.api import collect, write_atomic
    from harness_publish import formats

    for root in results:
        if not root.is_dir():
            raise HarnessError(
                f"no results folder {root.absolute()}; name a folder that holds results, as `harness run` writes them"
            )
    found, problems = collect(results)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    if not found:
        raise HarnessError(f"no complete result below {', '.join(map(str, results))}; run `harness run` first")
    text = {
        "csv": lambda: formats.csv_rows(found),
        "latex": lambda: formats.latex(found, board),
        "model-card": lambda: formats.model_card(found, source_url),
    }[kind]()
    if output is None:
        click.echo(text, nl=False)
        return
    write_atomic(output, text.encode("utf-8", "replace"))
    click.echo(f"wrote {output.absolute()}")
