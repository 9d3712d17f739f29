"""`harness leaderboard export` and `harness publish`: they parse, check and print. Formats are `formats.py`, rules `publishing.py`."""

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


@click.command()
@click.argument("board", type=click.Path(path_type=Path), default=Path("leaderboards"))
@click.option(
    "--to",
    "target",
    required=True,
    metavar="PLACE",
    envvar="HARNESS_TO",
    help="PATH or folder:PATH, pages:URL, or hub:OWNER/NAME.",
)
@click.option("--branch", default="gh-pages", show_default=True, envvar="HARNESS_BRANCH", help="pages: the branch.")
@click.option("--private", is_flag=True, envvar="HARNESS_PRIVATE", help="hub: a repository that is made now is private.")
@click.option("--license", "licence", metavar="ID", envvar="HARNESS_LICENSE", help="hub: for the card, e.g. cc-by-4.0.")
@click.option("--overwrite", is_flag=True, help="Also where others' files are; replace files that others wrote or changed.")
@click.option(
    "--dry-run", is_flag=True, help="Check the board, look at the place, and list what would be written. Write nothing."
)
@click.option("-p", "--plugin", multiple=True, expose_value=False, help="Load one more plugin, as in `harness run`.")
@click.pass_context
def publish(
    context: click.Context,
    board: Path,
    target: str,
    branch: str,
    private: bool,
    licence: str | None,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Put a built BOARD (README.md, pages, results) where others see it.

    Every result is verified first, and nothing is published where one does not follow. Other files at the place stay.

    \b
    Examples:
      harness publish leaderboards --to ../site
      harness publish leaderboards --to pages:git@github.com:OWNER/NAME.git --dry-run
      harness publish leaderboards --to hub:OWNER/NAME --license cc-by-4.0
    """
    from contextlib import ExitStack

    from harness.api import plain
    from harness_publish.board import check, read_board
    from harness_publish.places import Folder, place_of
    from harness_publish.publishing import compare, some

    with ExitStack() as stack:
        place = place_of(target, branch, private, licence, stack)
        if isinstance(place, Folder) and place.path.resolve().is_relative_to(board.resolve()):
            raise HarnessError(f"{place.path} lies in the board {board} itself; choose a folder beside it")
        found = read_board(board)
        click.echo(plain(f"to: {place.shown}"))
        click.echo(f"verifying {len(found.results)} results")
        compared = check(found, context)
        click.echo(f"verified: {len(found.results)} results, {compared:,} numbers and words follow; README.md is theirs")
        if found.left:
            click.echo(f"left out: {found.left} other files of {board}")
        files = place.files(found.files)
        change = compare(files, place.look(files), place.shown, overwrite)
        if change.others:
            click.echo(plain(f"stays: {some(change.others)} of others"))
        if change.nothing:
            click.echo(f"nothing to do: all {change.same} files are there")
            return
        for name in change.replaced:
            click.echo(plain(f"replaces what others wrote or changed: {name}"))
        size = f"{change.size() / 1e6:.1f} MB"
        click.echo(f"to write: {len(change.write)} files, {size}; to remove: {len(change.remove)}; unchanged: {change.same}")
        if dry_run:
            for name in change.write:
                click.echo(plain(f"  write {name}"))
            for name in change.remove:
                click.echo(plain(f"  remove {name}"))
            click.echo("nothing was written: this is a dry run")
            return
        said = place.write(change, f"Publish the leaderboards: {len(found.results)} results")
        click.echo(plain(f"published: {said}"))
