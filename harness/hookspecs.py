"""The hooks a plugin may implement. Registration hooks return data, so that listing imports nothing heavy.

A hook exists because a bundled plugin uses it. Names of one kind are unique over all plugins: two plugins that offer the same
name are an error that names both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from harness.types import Entry, Method, Result, RunSpec

if TYPE_CHECKING:
    import click

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def harness_register_task_dirs() -> Iterable[Path]:
    """Folders with task YAML files. Called once when tasks are listed; a missing folder is an error that names the plugin."""
    raise NotImplementedError


@hookspec
def harness_register_datasets() -> Iterable[Entry]:
    """Datasets. Target: `load(**options) -> datasets.DatasetDict`, the options being those of the task YAML's `dataset`."""
    raise NotImplementedError


@hookspec
def harness_register_backbones() -> Iterable[Entry]:
    """Backbones. Target: `(setup: Setup, argument: str | None = None, **options) -> Backbone`; `hf:gpt2` has argument "gpt2"."""
    raise NotImplementedError


@hookspec
def harness_register_concept_methods() -> Iterable[Entry]:
    """Concept methods. Target: `(argument: str | None = None, **options) -> ConceptMethod`; without `argument` none is taken."""
    raise NotImplementedError


@hookspec
def harness_register_detectors() -> Iterable[Entry]:
    """Detectors. Target: `(**options) -> Detector`."""
    raise NotImplementedError


@hookspec
def harness_register_scorers() -> Iterable[Entry]:
    """Scorers. Target: `(argument: str | None = None, **options) -> Scorer`; without `argument` none is taken."""
    raise NotImplementedError


@hookspec
def harness_register_models() -> Iterable[Entry]:
    """Pretrained models for parts that need one of another plugin: `setup.weights("smollm2")`.

    Target: `(setup: Setup, argument: str | None = None, **options) -> Weights`.
    """
    raise NotImplementedError


@hookspec
def harness_register_localizers() -> Iterable[Entry]:
    """Localizers. Target: `(**options) -> Localizer`."""
    raise NotImplementedError


@hookspec
def harness_register_metrics() -> Iterable[Entry]:
    """Metrics. Target: `() -> Metric`; every registered metric is computed for every method it applies to."""
    raise NotImplementedError


@hookspec
def harness_register_methods() -> Iterable[Method]:
    """Named recipes (`superactivator`, ...). A recipe tagged `core` is part of `--method all`; any tag can be asked for by name."""
    raise NotImplementedError


@hookspec
def harness_add_commands(cli: click.Group) -> None:
    """Adds commands to the command line: `@cli.command()`, also to its groups, and options to `run` and `leaderboard build`.

    Called at every start: import anything heavy inside the command.
    """
    raise NotImplementedError


@hookspec
def harness_on_start(specs: Sequence[RunSpec], options: Mapping[str, Any]) -> None:
    """Before `harness run` computes anything; not for a --dry-run. Raises `HarnessError` where what is asked for cannot be done.

    options: the values of the options that plugins added to the command.
    """
    raise NotImplementedError


@hookspec
def harness_on_result(result: Result, options: Mapping[str, Any]) -> None:
    """A result of `harness run`, complete on disk at `result.path`; for trackers. Options as in `harness_on_start`.

    Whatever is raised becomes one line on stderr and exit code 1; the other listeners, results and runs go on.
    """
    raise NotImplementedError


@hookspec
def harness_on_leaderboard(built: Any, output: Path, options: Mapping[str, Any], registry: Any) -> Iterable[str]:
    """What it did, line by line, after `harness leaderboard build` wrote README.md into `output`: pages, files for others.

    built: `leaderboard.Built`, the boards with their tables and the results behind them. options: the values of the options that
    plugins added to the command. The same results must give the same bytes.
    """
    raise NotImplementedError
