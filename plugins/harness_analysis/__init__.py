"""What lies behind the numbers: the commands `harness analyze <what>`, with data files and figures (method section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """`analyze`."""
    from harness_analysis.commands import analyze

    cli.add_command(analyze)
