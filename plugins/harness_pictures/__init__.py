"""Pictures of tokens: the command `harness show-tokens`, added through a hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """`show-tokens`."""
    from harness_pictures.command import show_tokens

    cli.add_command(show_tokens)
