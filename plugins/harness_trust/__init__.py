"""The commands `harness verify`, `submit`, `compare` and `diff`: does a result follow from its own files, and what may be said of two."""

from __future__ import annotations

import click

from harness.api import hookimpl


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """Adds the four."""
    from harness_trust.commands import compare, diff, submit, verify

    for command in (verify, submit, compare, diff):
        cli.add_command(command)
