"""Boards and results elsewhere: `harness leaderboard export` for other people's formats, `harness publish` for other places."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """`leaderboard export` and `publish`."""
    import click

    from harness_publish.command import export, publish

    cli.add_command(publish)
    board = cli.commands.get("leaderboard")
    if isinstance(board, click.Group):
        board.add_command(export)
