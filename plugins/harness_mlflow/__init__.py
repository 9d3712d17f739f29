"""The option `harness run --mlflow WHERE`: every result also as a run of MLflow, once it is on disk.

Nothing is imported, written or asked before the option is given. `tracker.py` talks to MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.api import hookimpl

if TYPE_CHECKING:
    import click

    from harness.api import Result


@hookimpl
def harness_add_commands(cli: click.Group) -> None:
    """The option `--mlflow` of `run`."""
    import click

    if "run" in cli.commands:
        cli.commands["run"].params.append(
            click.Option(
                ["--mlflow"],
                metavar="WHERE",
                envvar="HARNESS_MLFLOW",
                show_envvar=True,
                help="Also log every result to MLflow: a folder, or the address of a tracking server.",
            )
        )


@hookimpl
def harness_on_start(options: Mapping[str, Any]) -> None:
    """Raises where MLflow, the folder or the server is not there."""
    if options.get("mlflow"):
        from harness_mlflow.tracker import opened

        opened(options["mlflow"])


@hookimpl
def harness_on_result(result: Result, options: Mapping[str, Any]) -> None:
    """Logs the result."""
    if options.get("mlflow"):
        from harness_mlflow.tracker import log, opened

        log(opened(options["mlflow"]), result)
