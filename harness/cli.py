"""The command line: parses, asks the pipe, prints. stdout is the answer, stderr the progress. No torch until a command needs it.

Every option is also an environment variable `HARNESS_<OPTION>`, `_` and `-` are the same in flags, and a user's mistake is one line
and exit code 2.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from harness import __version__
from harness.errors import HarnessError, unknown
from harness.registry import KINDS, Reference, Registry, load
from harness.types import STREAMS, Method, RunSpec

if TYPE_CHECKING:
    from harness.bench import Bench
    from harness.types import Progress, Result

LISTABLE = ("tasks", "methods", *KINDS)


class Option(click.Option):
    """An option that is also an environment variable, shown in the help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.envvar is None and self.name and self.name != "help":
            self.envvar = f"HARNESS_{self.name.upper()}"


def option(*names: str, **kwargs: Any) -> Callable[[Any], Any]:
    """`click.option` with an environment variable."""
    return click.option(*names, cls=Option, **kwargs)


plugin_option = option(
    "-p",
    "--plugin",
    multiple=True,
    expose_value=False,
    help="Load one more plugin (file.py or package), or leave one out (no:NAME).",
)


class Lists(click.ParamType[tuple[str, ...]]):
    """A comma-separated list; with `multiple=True` flags add up."""

    name = "list"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        """The non-empty words."""
        if isinstance(value, tuple):
            return value
        return tuple(word.strip() for word in str(value).split(",") if word.strip())


class Size(click.ParamType[int | None]):
    """A positive number, or `auto` (None)."""

    name = "number|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        """None for `auto`."""
        return None if value == "auto" else click.IntRange(1).convert(value, param, ctx)


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 120,
    }
)
@click.version_option(__version__, prog_name="harness")
@plugin_option
def cli() -> None:
    """Measure how well a method detects and localizes concepts in a transformer's tokens.

    \b
    Examples:
      harness run --task toy --method all
      harness run --task clevr --method detection
      harness list methods
    """


def several(name: str, *more: str, **kwargs: Any) -> Callable[[Any], Any]:
    """An option that may be repeated, or hold a comma-separated list."""
    return option(name, *more, type=Lists(), multiple=True, **kwargs)


@cli.command()
@several(
    "--task",
    "-t",
    help="Task name(s), `name:option=value`, or path of a task YAML. Default: the backbone's own, if it has one.",
)
@several(
    "--backbone", "--model", "-b", help="Backbone(s): a name, hf:<id or folder>, embeddings:<folder>. Default: the task's."
)
@several(
    "--method",
    "-m",
    help="Recipe name(s), a scorer's with its argument (prompt:smollm2), a tag, or `all`.  [default: superactivator]",
)
@option("--concept-method", help="Compose a method: its concepts, e.g. mean or linear:estimator=logistic.")
@option("--detector", help="Compose a method: its detector.")
@option("--localizer", help="Compose a method: its localizer, e.g. superactivator:vector=sample-mean.")
@option("--scorer", help="Compose a method: a scorer alone, e.g. prompt:smollm2:locate=true.")
@option(
    "--fit-on", type=click.Choice(["tokens", "summary"]), help="Compose a method: fit and score on tokens, or on summaries."
)
@option(
    "--match", type=click.Choice(["best", "one-to-one"]), help="Compose a method: how units without names find their concept."
)
@option("--layers", "-l", default="all", show_default=True, help="all, last, final, 50%, 0,3,-1 or 0:12:3.")
@several("--streams", default=("residual",), help=f"One or several of {', '.join(STREAMS)}.  [default: residual]")
@option("--image-size", type=click.IntRange(1), help="Pixels of the model's view.  [default: the task's]")
@option("--normalization", default="train", show_default=True, help="train (the paper's), standardize or none.")
@option("--limit", "-L", type=click.IntRange(1), help="At most so many samples per split, spread over concepts.")
@option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
@option("--dtype", default="auto", show_default=True, help="float32, bfloat16 or float16, for the forward pass.")
@option("--batch-size", type=Size(), help="Samples per forward pass; halved where memory runs out.  [default: auto]")
@option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seeds every random choice.")
@option("--bootstrap", type=click.IntRange(0), default=1000, show_default=True, help="Bootstrap replicates for the intervals.")
@option(
    "--guards",
    type=click.Choice(["off", "cheap", "full"]),
    default="cheap",
    show_default=True,
    help="full adds shuffled labels.",
)
@option("--log-tokens", is_flag=True, help="Keep the test tokens' scores, for `harness show-tokens`.")
@option(
    "--explain-limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Attribution: positives per concept explained, in cal and in test.",
)
@option("--output", "-o", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Where results go.")
@option("--cache-dir", type=click.Path(path_type=Path), help="Where embeddings are kept.  [default: ~/.cache/concept-harness]")
@option(
    "--cache-bytes",
    default=8_000_000_000,
    show_default=True,
    type=click.IntRange(0),
    help="Room for embeddings; 0 stores none.",
)
@option("--block-tokens", default=8192, show_default=True, type=click.IntRange(1), help="Tokens per block of arithmetic.")
@option("--dry-run", is_flag=True, help="Print the plan: passes, bytes, what is cached. Compute nothing.")
@option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print results as JSON.")
@option(
    "--config",
    "-C",
    type=click.Path(path_type=Path),
    callback=lambda c, p, v: read_config(c, v),
    is_eager=True,
    expose_value=False,
    help="A config.yaml that a run wrote; flags and environment win over it.",
)
@plugin_option
@click.pass_obj
def run(registry: Registry, /, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Fit on train, choose on cal, report on test: detection and localization, with intervals.

    \b
    Examples:
      harness run --task clevr --method detection
      harness run --task coco --method superactivator --layers 0:12:3
      harness run --task coco --concept-method mean --detector max --localizer direct
      harness run --backbone embeddings:my_folder --method all
    """
    mine = {parameter.name for parameter in run.params}
    of_plugins = {name: options.pop(name) for name in list(options) if name not in mine}
    wanted = list(specs(registry, options))
    from harness import bench, pipeline

    if dry_run:
        plans = [plan(bench.prepare(spec, registry)) for spec in wanted]
        click.echo(json.dumps(plans, indent=1) if as_json else "\n\n".join(map(plan_text, plans)))
        return
    registry.call("harness_on_start", specs=wanted, options=of_plugins)
    done: list[Result] = []
    problems: list[str] = []
    for spec in wanted:
        with progress() as track:
            made = pipeline.run(spec, registry, track, lambda bench: click.echo(plan_text(plan(bench)), err=True))
        for result in made:
            told = registry.tell("harness_on_result", result=result, options=of_plugins)
            problems += [f"{problem}; the result is complete in {result.path}" for problem in told]
        done += made
    if as_json:
        from harness.results import to_json

        click.echo(json.dumps([to_json(result) for result in done], indent=1, allow_nan=False))
    else:
        from harness.tables import print_results

        print_results(done)
    for problem in problems:
        click.echo(f"not told: {problem}", err=True)
    if problems:
        click.get_current_context().exit(1)


def specs(registry: Registry, options: dict[str, Any]) -> Iterator[RunSpec]:
    """One spec per (task, backbone), all methods inside."""
    from harness.tasks import task_file

    tasks, backbones = flat(options.pop("task")), flat(options.pop("backbone"))
    methods = chosen_methods(registry, flat(options.pop("method")), options)
    options["streams"] = tuple(flat(options["streams"]))
    options["cache_dir"] = options["cache_dir"] or RunSpec.cache_dir
    if not tasks and not backbones:
        raise HarnessError("nothing to run; give --task (see `harness list tasks`); e.g. `harness run --task toy --method all`")
    pairs = [(task, backbone) for task in tasks for backbone in backbones or [""]]
    for task, backbone in pairs or [(own_task(registry, backbone), backbone) for backbone in backbones]:
        declared = task_file(registry, task)
        name = backbone or declared.backbone
        if name is None:
            raise HarnessError(
                f"task {declared.task!r} names no default backbone; give --backbone; see `harness list backbones`"
            )
        known = registry.entries("backbones")
        if Reference.parse(name).name not in known:
            raise unknown("backbone", name, known, hint="see `harness list backbones`")
        yield RunSpec(task=task, backbone=name, methods=methods, **options)


def flat(lists: Sequence[Sequence[str]]) -> list[str]:
    """The words of repeated list options, once each, in order."""
    words = [word for words in lists for word in ([words] if isinstance(words, str) else words)]
    return list(dict.fromkeys(words))


def own_task(registry: Registry, backbone: str) -> str:
    """The task that comes with a backbone of the form `<data set>:<folder>`; for any other an error that asks for one."""
    name, argument, _ = Reference.parse(backbone)
    if argument is None or name not in registry.entries("datasets"):
        raise HarnessError(f"no task for backbone {backbone!r}; give --task; see `harness list tasks`")
    return backbone


def chosen_methods(registry: Registry, names: Sequence[str], options: dict[str, Any]) -> tuple[Method, ...]:
    """The recipes: by name, by tag, `all` (tag core), or composed from parts."""
    parts = {key: options.pop(key) for key in ("concept_method", "detector", "localizer", "scorer", "fit_on", "match")}
    known = registry.methods()
    if any(parts.values()):
        return (*_composed(parts), *_expand(names, known))
    return tuple(_expand(names or ["superactivator"], known))


def _composed(parts: dict[str, Any]) -> tuple[Method]:
    if parts["scorer"]:
        other = next((key for key, value in parts.items() if value and key != "scorer"), None)
        if other:
            raise HarnessError(f"a method is a scorer alone, or made of concepts; got --scorer and --{other.replace('_', '-')}")
        return (Method(parts["scorer"], "composed on the command line", scorer=parts["scorer"], tags=("composed",)),)
    concepts = parts["concept_method"] or "linear"
    detector = parts["detector"] or "superactivator"
    more = {key: parts[key] for key in ("fit_on", "match") if parts[key] not in (None, "tokens", "best")}
    named = "+".join(part for part in (concepts, detector, parts["localizer"], *more.values()) if part)
    made = Method(named, "composed on the command line", concepts, detector, parts["localizer"], tags=("composed",))
    return (replace(made, **more),)


def _expand(names: Sequence[str], known: dict[str, Method]) -> list[Method]:
    found: dict[str, Method] = {}
    for name in names:
        recipe, _, more = name.partition(":")
        if more and recipe in known and known[recipe].scorer:
            found[name] = _with_more(known[recipe], name, more)
            continue
        tagged = [m.name for m in known.values() if name in m.tags or (name == "all" and "core" in m.tags)]
        if name not in known and not tagged:
            tags = {tag for method in known.values() for tag in method.tags}
            raise unknown("method", name, {*known, *tags, "all"}, hint="see `harness list methods`")
        found.update({each: known[each] for each in ([name] if name in known else tagged)})
    return list(found.values())


def _with_more(recipe: Method, name: str, more: str) -> Method:
    """A recipe of a scorer, written with the scorer's argument and options; those of the recipe itself stay."""
    scorer, _, own = (recipe.scorer or "").partition(":")
    return replace(recipe, name=name, scorer=":".join(part for part in (scorer, more, own) if part))


def read_config(ctx: click.Context, path: Path | None) -> None:
    """Makes the file's values the defaults of this command; every key must be one of its options."""
    if path is None:
        return
    try:
        read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise HarnessError(f"cannot read config {path}; {' '.join(str(error).split())}") from error
    if not isinstance(read, dict):
        raise HarnessError(f"config {path} holds no mapping; it must be like the config.yaml that a run writes")
    allowed = {parameter.name: parameter.multiple for parameter in ctx.command.params if isinstance(parameter, click.Option)}
    values = {}
    for key, value in read.items():
        name = str(key).replace("-", "_")
        if name not in allowed:
            raise unknown("key", str(key), [str(option) for option in allowed], f"config {path}")
        listed = value if isinstance(value, list) else [value]
        values[name] = [str(word) for word in listed] if allowed[name] else value
    ctx.default_map = {**(ctx.default_map or {}), **values}


@contextmanager
def progress() -> Iterator[Progress]:
    """rich progress on stderr with rates and time left; plain lines where stderr is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        @contextmanager
        def track(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            task = bars.add_task(escape(what), total=total or None, unit=unit, rate="")
            started = bars.get_time()

            def advance(n: int) -> None:
                bars.advance(task, n)
                spent = bars.get_time() - started
                bars.update(task, rate=f"{bars.tasks[bars.task_ids.index(task)].completed / max(spent, 1e-3):.1f}/s")

            yield advance
            spent = bars.get_time() - started
            bars.remove_task(task)
            if spent > 2:
                rate = f"  {total / spent:.1f} {unit}/s" if total else ""
                console.print(f"{what}: {spent:.1f} s{rate}", highlight=False, markup=False)

        yield track


def plan(bench: Bench) -> dict[str, Any]:
    """What a run will do, as data."""
    plan, task = bench.plan, bench.task
    return {
        "task": task.name,
        "fingerprint": task.fingerprint,
        "samples": {name: len(split) for name, split in task.splits.items()},
        "concepts": len(task.concepts),
        "backbone": bench.backbone.name,
        "sites": [site.label for site in bench.sites],
        "width": bench.backbone.width,
        "device": bench.device,
        "dtype": bench.dtype,
        "methods": [parts.method.name for parts in bench.parts],
        "forward_passes": len(plan.groups),
        "samples_to_embed": plan.missing,
        "explaining": bench.prices(),
        "asking": {name: price._asdict() for name, price in bench.asking().items()},
        "tokens": plan.tokens,
        "storage": plan.storage,
        "bytes": plan.bytes,
        "cache_dir": str(bench.spec.cache_dir.expanduser()),
        "output": str(bench.spec.output.expanduser().absolute()),
    }


def plan_text(plan: dict[str, Any]) -> str:
    """The same in words."""
    sizes = ", ".join(f"{n} {split}" for split, n in plan["samples"].items())
    if plan["storage"] == "none":
        passes, kept = "every pass over the data makes the embeddings anew", "none: nothing is stored"
    else:
        todo = f"{plan['samples_to_embed']} of {sum(plan['samples'].values()) * plan['forward_passes']} sample passes to do"
        passes = f"{plan['forward_passes']} forward pass(es); {todo if plan['samples_to_embed'] else 'all done, embeddings are cached'}"
        kept = f"{plan['storage']}, about {plan['bytes'] / 1e9:.2f} GB for {plan['tokens']} tokens in {plan['cache_dir']}"
    lines = {
        "task": f"{plan['task']} ({sizes}; {plan['concepts']} concepts), fingerprint {plan['fingerprint'][:12]}",
        "backbone": f"{plan['backbone']}, {len(plan['sites'])} sites of width {plan['width']}, {plan['dtype']} on {plan['device']}",
        "methods": ", ".join(plan["methods"]),
        "passes": passes,
        "storage": kept,
        "output": plan["output"],
    }
    if plan["explaining"]:
        total, samples = sum(plan["explaining"].values()), sum(plan["samples"].values())
        each = ", ".join(f"{name} {n:,}" for name, n in plan["explaining"].items())
        lines["attribution"] = (
            f"at most {total:,} forwards, {total / samples:.0f} x embedding the task once ({each}); see --explain-limit"
        )
    for name, price in plan["asking"].items():
        to_do = price["questions"] - price["answered"]
        where = f"; at most {price['localizing']:,} more to localize" if price["localizing"] else ""
        lines[f"asking {name}"] = (
            f"{price['questions']:,} questions, {price['answered']:,} answered before, {to_do:,} to ask{where}"
        )
    return "\n".join(f"{name:<11} {words}" for name, words in lines.items())


@cli.command("list")
@click.argument("kind", required=False)
@option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print JSON.")
@plugin_option
@click.pass_obj
def list_(registry: Registry, kind: str | None, as_json: bool) -> None:
    """Show what there is: tasks, methods, backbones, concept-methods, detectors, scorers, localizers, metrics, datasets.

    \b
    Example:
      harness list backbones
    """
    wanted = kind.replace("-", "_") if kind else None
    if wanted is not None and wanted not in LISTABLE:
        raise unknown("kind", str(kind), [name.replace("_", "-") for name in LISTABLE], "harness list")
    found = {name: listed(registry, name) for name in ([wanted] if wanted else LISTABLE)}
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for name, rows in found.items():
        click.echo(f"{name.replace('_', '-')}")
        width = max((len(row) for row in rows), default=0)
        for row, summary in rows.items():
            click.echo(f"  {row:<{width}}  {summary}")


def listed(registry: Registry, kind: str) -> dict[str, str]:
    """Name -> summary."""
    if kind == "tasks":
        from harness.tasks import find_tasks, read_task

        return {name: read_task(path).description for name, path in sorted(find_tasks(registry).items())}
    if kind == "methods":
        return {name: f"{m.summary} [{', '.join(m.tags)}]" for name, m in sorted(registry.methods().items())}
    return {name: entry.summary for name, entry in sorted(registry.entries(kind).items())}


@cli.command()
@click.argument("name")
@plugin_option
@click.pass_obj
def show(registry: Registry, name: str) -> None:
    """Describe one thing by name: a task's file, a recipe's parts, a plugin class's own words.

    \b
    Example:
      harness show superactivator
    """
    import inspect

    from harness.tasks import find_tasks

    found = False
    tasks = find_tasks(registry)
    if name in tasks:
        click.echo(f"task {name} ({tasks[name]})\n\n{tasks[name].read_text()}")
        found = True
    methods = registry.methods()
    if name in methods:
        method = methods[name]
        parts = ("concepts", "detector", "localizer", "scorer", "fit_on")
        click.echo(f"method {name}: {method.summary}")
        click.echo("".join(f"  {part:<10} {getattr(method, part)}\n" for part in parts if getattr(method, part)))
        found = True
    for kind, what in KINDS.items():
        entries = registry.entries(kind)
        if name in entries:
            target = registry.target(kind, name)
            click.echo(
                f"{what} {name}, from plugin {registry.owner(kind, name)} ({entries[name].target})\n  {entries[name].summary}"
            )
            click.echo(f"  {target.__name__}{inspect.signature(target)}\n\n{inspect.getdoc(target) or ''}\n")
            found = True
    if not found:
        every = {*tasks, *methods, *(entry for kind in KINDS for entry in registry.entries(kind))}
        raise unknown("name", name, every, "harness show")


@cli.command()
@click.argument("task")
@option("--cache-dir", type=click.Path(path_type=Path), help="Where verdicts on images are kept.")
@plugin_option
@click.pass_obj
def validate(registry: Registry, task: str, cache_dir: Path | None) -> None:
    """Check a task (a file, or a name with options) and the data behind it; print its statistics.

    It asks for more than a run does: source, licence and citation, and no content in two splits.

    \b
    Example:
      harness validate tasks/toy.yaml
    """
    from harness.tables import print_task
    from harness.tasks import check_apart, check_stated, load_task, task_file

    check_stated(task_file(registry, task))
    loaded = load_task(registry, task, cache_dir=cache_dir)
    print_task(loaded)
    check_apart(loaded)


@cli.command()
@option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print JSON.")
@plugin_option
@click.pass_obj
def plugins(registry: Registry, as_json: bool) -> None:
    """Show every plugin: where it came from, and why it is broken, if it is.

    \b
    Example:
      harness -p my_detector.py plugins
    """
    for kind in ("methods", *KINDS):
        registry.methods() if kind == "methods" else registry.entries(kind)
    rows = [{"name": p.name, "origin": p.origin, "version": p.version, "broken": p.cause} for p in registry.plugins]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = f"BROKEN: {row['broken']}" if row["broken"] else "ok"
        click.echo(f"{row['name']:<16} {row['origin']:<28} {row['version'] or '':<8} {state}")


@cli.group()
def leaderboard() -> None:
    """Tables from result files."""


@leaderboard.command()
@click.argument("results", nargs=-1, type=click.Path(path_type=Path))
@option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("leaderboards"),
    show_default=True,
    help="Where pages go.",
    envvar="HARNESS_LEADERBOARD_OUTPUT",
)
@plugin_option
@click.pass_obj
def build(registry: Registry, /, results: tuple[Path, ...], output: Path, **options: Any) -> None:
    """Write README.md, and the pages that plugins make, from results.

    RESULTS are folders with results below them (default: OUTPUT/results, else ./results).

    \b
    Example:
      harness leaderboard build results --output leaderboards
    """
    from harness.leaderboard import build as build_board

    roots = results or ((output / "results",) if (output / "results").is_dir() else (Path("results"),))
    for root in roots:
        if not root.is_dir():
            raise HarnessError(
                f"no results folder {root.absolute()}; run `harness run` first, or name a folder that holds results"
            )
    built = build_board(list(roots), output)
    pages = registry.call("harness_on_leaderboard", built=built, output=output, options=options, registry=registry)
    for line in (*built.told, f"wrote {(output / 'README.md').absolute()}", *chain.from_iterable(pages)):
        click.echo(line)


def own(command: Any) -> Any:
    """A copy of a command and all below it: plugins add their commands and options to this call's alone."""
    made = copy(command)
    made.params = list(command.params)
    if isinstance(command, click.Group):
        made.commands = {name: own(below) for name, below in command.commands.items()}
    return made


def requested_plugins(arguments: Sequence[str]) -> list[str]:
    """The values of every -p/--plugin, wherever it stands: plugins add commands, so they load before parsing."""
    found = os.environ.get("HARNESS_PLUGIN", "").split()
    words = iter(arguments)
    for word in words:
        if word in ("-p", "--plugin"):
            found.append(next(words, ""))
        elif word.startswith("--plugin="):
            found.append(word.removeprefix("--plugin="))
        elif word.startswith("-p") and not word.startswith("--") and len(word) > 2:
            found.append(word[2:])
    return [request for request in found if request]


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        registry = load(requested_plugins(words))
        group = own(cli)
        registry.add_commands(group)
        done = group.main(words, prog_name="harness", obj=registry, standalone_mode=False)
    except HarnessError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        told = f"{error.format_message().removesuffix('.')}; see `{context.command_path if context else 'harness'} --help`"
        click.echo(f"error: {told}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; what is computed is kept, run the same command to go on", err=True)
        sys.exit(130)
    else:
        if isinstance(done, int) and done:  # `context.exit(code)` of a command
            sys.exit(done)
