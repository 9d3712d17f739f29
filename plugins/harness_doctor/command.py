"""`harness doctor`: what is asked, and the exit code: 1 where something is broken; what is only missing is no fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from harness.api import RunSpec


@click.command()
@click.option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print JSON.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    envvar="HARNESS_CACHE_DIR",
    help="Where embeddings are kept.  [default: ~/.cache/concept-harness]",
)
@click.pass_context
def doctor(context: click.Context, as_json: bool, cache_dir: Path | None) -> None:
    """Tell what this machine has, and what to do about what it lacks: devices, memory, versions, data, models, plugins.

    It asks nothing over a network and loads no model. Exit code 1 where something is broken; missing data, models and optional packages
    are no fault.

    \b
    Examples:
      harness doctor
      harness doctor --json
    """
    from harness_doctor.report import examine, show

    found = examine(context.obj, cache_dir or RunSpec.cache_dir)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        show(found)
    if found["broken"]:
        sys.exit(1)  # click itself would swallow the code: the group runs without standalone mode
