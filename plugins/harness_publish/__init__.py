"""Boards and results in other people's formats: the command `harness leaderboard export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """`leaderboard export`."""
    import click

    from harness_publish.command import export

    board = cli.commands.get("leaderboard")
    if isinstance(board, click.Group):
        board.add_command(export)
