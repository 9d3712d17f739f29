"""The pages of `harness leaderboard build`: index.html with every board, and below pages/ the evidence behind every cell.

They open from disk and from any web host, and ask the network for nothing. Written from result files; a picture or a text of a
sample comes from its data set, at build time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """The options `--samples` and `--no-samples` of `leaderboard build`."""
    import click

    board = cli.commands.get("leaderboard")
    if not isinstance(board, click.Group):  # a command line of its own
        return
    board.commands["build"].params += [
        click.Option(
            ["--samples"],
            type=click.IntRange(0, 10),
            default=0,
            show_default=True,
            envvar="HARNESS_SAMPLES",
            help="Pages: pictures of so many samples per concept and outcome. Mind the images' licence.",
        ),
        click.Option(
            ["--no-samples"],
            is_flag=True,
            envvar="HARNESS_NO_SAMPLES",
            help="Pages: read no data set; texts and pictures stay out.",
        ),
    ]


@hookimpl
def harness_on_leaderboard(built: Any, output: Path, options: Mapping[str, Any], registry: Any) -> Iterable[str]:
    """Writes index.html and pages/."""
    from harness_site.site import write_site

    return write_site(built, output, registry, options.get("samples", 0), not options.get("no_samples", False))
