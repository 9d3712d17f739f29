"""The commands `harness init` and `harness certify`: a working plugin to begin with, and whether one keeps its contract.

It says nothing about how good a method is.
"""

from __future__ import annotations

import click

from harness.api import hookimpl


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """Adds both."""
    from harness_certify.commands import certify, init

    cli.add_command(init)
    cli.add_command(certify)
