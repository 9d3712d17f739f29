"""The hooks a plugin may implement. Registration hooks return data, so that listing imports nothing heavy.

A hook exists because a bundled plugin uses it. Names of one kind are unique over all plugins: two plugins that offer the same
name are an error that names both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from harness.types import Entry, Method

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
    """Adds commands to the command line: `@cli.command()`. Called at every start: import anything heavy inside the command."""
