"""The command `harness doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import click

from harness.api import hookimpl


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """Adds `harness doctor`."""
    from harness_doctor.command import doctor

    cli.add_command(doctor)
