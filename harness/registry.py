"""The plugins and what they offer: lazy lookup (kind, name) -> object, with near-match errors.

A registry is built by `load` and passed down; there is no global one. A plugin that fails to import is listed as broken, with its
cause, and stops nobody else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy
import yaml

from harness import hookspecs
from harness.errors import HarnessError, unknown
from harness.types import Entry, Method

if TYPE_CHECKING:
    import click

KINDS = {
    "datasets": "dataset",
    "backbones": "backbone",
    "concept_methods": "concept method",
    "detectors": "detector",
    "scorers": "scorer",
    "localizers": "localizer",
    "metrics": "metric",
    "models": "model",
}
"""Kind -> its name in messages. The hook of a kind is `harness_register_<kind>`."""
KIND_OF = {"concepts": "concept_methods", "detector": "detectors", "localizer": "localizers", "scorer": "scorers"}
"""The parts of a recipe, and the kind of each."""


class Reference(NamedTuple):
    """A part as written on the command line or in a recipe: `name[:argument][:option=value]...`."""

    name: str
    argument: str | None
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Reference:
        """`hf:org/model` -> argument "org/model"; `linear:estimator=adam:epochs=50` -> two options (values are YAML scalars)."""
        first, *pairs = re.split(r":(?=[A-Za-z_]\w*=)", text)
        name, _, argument = first.partition(":")
        options = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            options[key] = _option(value, name)
        return cls(name, argument or None, options)


def _option(value: str, name: str) -> Any:
    """A value as written, read as YAML: a number, true, false, null, a word or a list."""
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        value = read = ""
    if not value:
        raise HarnessError(f"bad option value for {name!r}; write {name}:option=value with a number, true, false or a word")
    try:
        return float(read) if isinstance(read, str) else read  # YAML takes 1e-3 for a word
    except ValueError:
        return read


@dataclass(frozen=True)
class Plugin:
    """One plugin as `harness plugins` shows it: where it came from, and why it is broken, if it is."""

    name: str
    origin: str
    version: str
    cause: str | None = None
    distribution: str | None = None


class Registry:
    """Every registered thing by kind and name; targets are imported on first use."""

    def __init__(self, manager: pluggy.PluginManager, plugins: Iterable[Plugin], files: Mapping[str, ModuleType]) -> None:
        self._manager, self._files = manager, dict(files)
        self.plugins = list(plugins)
        self._digests: dict[str, str] = {}

    def _collect(self, hook: str) -> Iterable[tuple[str, Any]]:
        """(plugin name, item) of one registration hook; a hook that raises marks its plugin broken."""
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                items = list(implementation.function())
                wrong = [item for item in items if not isinstance(item, Entry | Method | Path)]
                if wrong:
                    raise TypeError(f"{wrong[0]!r} is not an Entry, a Method or a Path")
            except Exception as error:  # a third-party hook may raise anything; it is listed as broken
                self._mark_broken(implementation.plugin_name, f"{hook}: {_cause(error)}")
                continue
            yield from ((implementation.plugin_name, item) for item in items)

    def _mark_broken(self, name: str, cause: str) -> None:
        at = next(i for i, plugin in enumerate(self.plugins) if plugin.name == name)
        self.plugins[at] = replace(self.plugins[at], cause=cause)

    def _named(self, hook: str, what: str) -> dict[str, tuple[str, Any]]:
        found: dict[str, tuple[str, Any]] = {}
        for plugin, item in self._collect(hook):
            if item.name in found:
                raise HarnessError(
                    f"{what} {item.name!r} is offered by two plugins; {found[item.name][0]} and {plugin}; "
                    f"block one of them with `-p no:{plugin}`"
                )
            found[item.name] = (plugin, item)
        return found

    def entries(self, kind: str) -> dict[str, Entry]:
        """Name -> entry of one of `KINDS`."""
        return {name: entry for name, (_, entry) in self._named(f"harness_register_{kind}", KINDS[kind]).items()}

    def methods(self) -> dict[str, Method]:
        """Name -> recipe."""
        return {name: method for name, (_, method) in self._named("harness_register_methods", "method").items()}

    def owner(self, kind: str, name: str) -> str:
        """The plugin that offers a name ("methods" is a kind here)."""
        return self._named(f"harness_register_{kind}", kind)[name][0]

    def source(self, plugin: str) -> dict[str, str | None]:
        """Whose code a plugin is: its name, distribution (None for a file or package given with -p), version and `source_digest`."""
        (found,) = (one for one in self.plugins if one.name == plugin)
        if plugin not in self._digests:  # a recipe's parts are of few plugins, and recipes are many
            self._digests[plugin] = source_digest(self._manager.get_plugin(plugin))
        digest = self._digests[plugin]
        return {"plugin": plugin, "distribution": found.distribution, "version": found.version or None, "sha256": digest}

    def maker(self, kind: str, reference: str) -> dict[str, str | None]:
        """The part as written, and the source of the plugin that offers it."""
        return {"part": reference, **self.source(self.owner(kind, Reference.parse(reference).name))}

    def task_dirs(self) -> list[Path]:
        """The folders with task files that plugins ship; a folder that is not there is an error that names its plugin."""
        dirs = []
        for plugin, folder in self._collect("harness_register_task_dirs"):
            if not Path(folder).is_dir():
                raise HarnessError(f"no task folder {folder}; offered by plugin {plugin}; block it with `-p no:{plugin}`")
            dirs.append(Path(folder))
        return dirs

    def target(self, kind: str, name: str, where: str = "") -> Callable[..., Any]:
        """The object an entry points to, imported now."""
        entries = self.entries(kind)
        if name not in entries:
            raise unknown(KINDS[kind], name, entries, where, hint=f"see `harness list {kind.replace('_', '-')}`")
        module, _, attribute = entries[name].target.partition(":")
        try:
            return getattr(self._files.get(module) or importlib.import_module(module), attribute)  # type: ignore[no-any-return]
        except ModuleNotFoundError as error:
            raise _missing(KINDS[kind], entries[name], error) from error
        except AttributeError as error:
            raise _astray(KINDS[kind], entries[name], error) from error

    def create(self, kind: str, reference: str, *given: Any) -> Any:
        """The named part, built: `target(*given[, argument], **options)`; an option it does not know is an error with near matches."""
        name, argument, options = Reference.parse(reference)
        target = self.target(kind, name)
        check_options(target, options, f"{KINDS[kind]} {name!r}")
        if argument is None:
            return target(*given, **options)
        if "argument" not in inspect.signature(target).parameters:
            raise HarnessError(
                f"{KINDS[kind]} {name!r} takes no argument; got {argument!r} in {reference!r}; write it `{name}`"
            )
        return target(*given, argument, **options)

    def add_commands(self, cli: click.Group) -> None:
        """Lets every plugin add its commands; one that fails is marked broken."""
        for implementation in self._manager.hook.harness_add_commands.get_hookimpls():
            try:
                implementation.function(cli)
            except Exception as error:  # as in _collect
                self._mark_broken(implementation.plugin_name, f"harness_add_commands: {_cause(error)}")

    def call(self, event: str, **given: Any) -> list[Any]:
        """What every plugin that listens to an event returns; what one raises is raised."""
        return list(getattr(self._manager.hook, event)(**given))

    def tell(self, event: str, **given: Any) -> list[str]:
        """Tells every plugin that listens of something already done; what one raises comes back in words, and stops nobody else."""
        problems = []
        for implementation in getattr(self._manager.hook, event).get_hookimpls():
            try:
                implementation.function(*(given[name] for name in implementation.argnames))
            except Exception as error:  # as in _collect
                told = str(error) if isinstance(error, HarnessError) else _cause(error)
                problems.append(f"plugin {implementation.plugin_name}: {told}")
        return problems


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", None: "anything"}


def check_options(target: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Raises where an option is not a named parameter of the target."""
    allowed = [
        name
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in ("setup", "argument")
    ]
    for name, value in options.items():
        if name not in allowed:
            raise unknown("option", name, allowed, where)
        default = inspect.signature(target).parameters[name].default
        kind = next((kind for kind in (bool, int, float, str) if isinstance(default, kind)), None)
        fits = kind is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
        if not fits and not (kind is float and isinstance(value, int)) and value is not None:
            raise HarnessError(
                f"bad value {value!r} for option {name!r} of {where}; allowed: {WORDS[kind]} (default {default!r})"
            )


def load(requests: Iterable[str] = ()) -> Registry:
    """A registry of every installed plugin (entry-point group `harness`), plus or minus what `-p` asks for.

    A request is a file (`my_detector.py`), an importable package, or `no:<name>` to leave one out.
    """
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    requests = list(requests)
    blocked = {request.removeprefix("no:") for request in requests if request.startswith("no:")}
    wanted: dict[str, str] = {}
    for request in (request for request in requests if not request.startswith("no:")):
        name = Path(request).stem if request.endswith(".py") else request
        if name in wanted:
            raise HarnessError(f"plugin {name!r} is given twice with -p; {wanted[name]} and {request}; give it once")
        wanted[name] = request
    installed = sorted(entry_points(group="harness"))
    names = [*(point.name for point in installed), *wanted]
    for name in sorted(blocked - set(names)):
        raise unknown("plugin", name, names, f"-p no:{name}", hint="see `harness plugins`")
    plugins, files = [], {}
    for point in installed:
        if point.name not in blocked:
            version, distribution = (point.dist.version, point.dist.name) if point.dist else ("", None)
            plugin, _ = _register(manager, point.name, point.value, version, point.load)
            plugins.append(replace(plugin, distribution=distribution))
    for name, request in wanted.items():
        if name in blocked:
            continue
        _check_request(request)
        plugin, module = _register(manager, name, request, "", partial(_import, request))
        if plugin.cause or module is None:
            raise HarnessError(f"plugin {request} (given with -p) cannot be used; {plugin.cause}")
        plugins.append(plugin)
        files.update({name: module} if request.endswith(".py") else {})
    return Registry(manager, plugins, files)


def _check_request(request: str) -> None:
    if request.endswith(".py") and not Path(request).is_file():
        raise HarnessError(f"no plugin file {request}; given with -p; looked for {Path(request).absolute()}")
    try:
        found = request.endswith(".py") or importlib.util.find_spec(request.partition(".")[0]) is not None
    except (ValueError, ImportError):
        found = False
    if not found:
        raise HarnessError(f"no plugin {request!r} given with -p; it is neither a .py file nor an importable package")


def _register(
    manager: pluggy.PluginManager, name: str, origin: str, version: str, importer: Callable[[], ModuleType]
) -> tuple[Plugin, ModuleType | None]:
    """Imports one plugin and registers it, in its own try: the cause of a failure is kept, not raised."""
    if manager.has_plugin(name):
        return Plugin(name, origin, version, f"another plugin is named {name!r}; rename its entry point or file"), None
    try:
        module = importer()
        if not any(hasattr(getattr(module, attribute), "harness_impl") for attribute in dir(module)):
            return Plugin(name, origin, version, "implements no hook: is @hookimpl missing?"), None
        manager.register(module, name=name)
        manager.check_pending()
    except (Exception, SystemExit) as error:  # a broken plugin may raise anything, and must stop nobody else
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return Plugin(name, origin, version, _cause(error)), None
    return Plugin(name, origin, version), module


def source_digest(module: Any) -> str:
    """sha256 over the Python files of a plugin: names and contents, in the order of their names; data files are no part of it."""
    path = Path(str(module.__file__))
    digest = hashlib.sha256()
    for file in sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]:
        content = file.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{file.relative_to(path.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _import(request: str) -> ModuleType:
    """A package by name, or a file under a module name of its own: a plugin `random.py` does not replace Python's."""
    if not request.endswith(".py"):
        return importlib.import_module(request)
    path = Path(request).absolute()
    name = f"harness_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _cause(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    shown = " ".join(lines) if isinstance(error, pluggy.PluginValidationError) else lines[0]
    return f"{type(error).__name__}: {shown}".rstrip(": ")


def _missing(what: str, entry: Entry, error: ModuleNotFoundError) -> HarnessError:
    own = entry.target.partition(":")[0].partition(".")[0]
    if error.name is None or error.name.partition(".")[0] == own:
        return _astray(what, entry, error)
    pip = f"pip install 'concept-harness[{entry.extra}]'" if entry.extra else f"pip install {error.name.partition('.')[0]}"
    return HarnessError(f"{what} {entry.name!r} needs the package {error.name!r}, which is not installed; run: {pip}")


def _astray(what: str, entry: Entry, error: Exception) -> HarnessError:
    return HarnessError(
        f"{what} {entry.name!r} points to {entry.target!r}, which is not there; {error}; tell its plugin's author"
    )
