"""`harness analyze <what> RESULTS...`: parses, and hands over to `report.py`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.api import HarnessError

if TYPE_CHECKING:
    from harness_analysis.report import Report
    from harness_analysis.sources import Group


@click.group()
def analyze() -> None:
    """Look behind results: data files and figures for papers and slides.

    RESULTS are result folders, or folders above several. Only results of the same task content and backbone stand in one table.

    \b
    Examples:
      harness analyze layers results/clevr
      harness analyze distributions results/clevr/dinov2-s-imgfocus/superactivator
    """


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and the options that every analysis has."""
    plugin = click.option(
        "-p", "--plugin", multiple=True, expose_value=False, help="Load one more plugin, as in `harness run`."
    )
    as_json = click.option("--json", "as_json", is_flag=True, envvar="HARNESS_JSON", help="Print JSON.")
    output = click.option(
        "--output", "-o", type=click.Path(path_type=Path), help="Where files go.  [default: analysis/<this command>]"
    )
    results = click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
    return results(output(as_json(plugin(command))))


def activations(command: Callable[..., None]) -> Callable[..., None]:
    """The options of what needs the tokens again."""
    cache = click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        envvar="HARNESS_CACHE_DIR",
        help="Where embeddings are kept.  [default: ~/.cache/concept-harness]",
    )
    return cache(command)


def background(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the background quantile."""
    quantile = click.option(
        "--quantile",
        "-q",
        type=click.FloatRange(0, 1),
        default=0.98,
        show_default=True,
        help="b_c = this quantile of D_out on cal.",
    )
    most = click.option(
        "--max-tokens",
        type=click.IntRange(0),
        default=100_000,
        show_default=True,
        help="Tokens per concept and set, drawn by --seed; 0 takes all.",
    )
    seed = click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seeds the drawing.")
    return activations(quantile(most(seed(command))))


def produce(what: str, results: tuple[Path, ...], output: Path | None, as_json: bool, make: Callable[[Group], Report]) -> None:
    """Runs one analysis on every group of results."""
    from harness_analysis.report import produce as run

    run(what, results, output or Path("analysis") / what, as_json, make)


@analyze.command()
@shared
@background
@click.option(
    "--bins", type=click.IntRange(2, 1000), default=50, show_default=True, help="Bins of the histograms and the overlap."
)
@click.pass_obj
def distributions(registry: Any, results: Any, output: Any, as_json: bool, cache_dir: Any, bins: int, **how: Any) -> None:
    """In-concept and background token activations of test, per concept and layer: mass above background, AUROC, Cohen's d, overlap.

    \b
    Example:
      harness analyze distributions results/clevr --quantile 0.98
    """
    from harness_analysis.background import Drawing, distributions

    drawing = Drawing(how["quantile"], how["max_tokens"], how["seed"])
    produce("distributions", results, output, as_json, lambda group: distributions(group, registry, cache_dir, drawing, bins))


@analyze.command()
@shared
@click.pass_obj
def sparsity(registry: Any, results: Any, output: Any, as_json: bool) -> None:
    """How many concepts cal gave each sparsity level, at the chosen layers and at every layer.

    \b
    Example:
      harness analyze sparsity results/clevr
    """
    from harness_analysis.choices import sparsity

    produce("sparsity", results, output, as_json, sparsity)


@analyze.command()
@shared
@click.option("--metric", default="f1", show_default=True, help="Any detection metric of the results.")
@click.pass_obj
def layers(registry: Any, results: Any, output: Any, as_json: bool, metric: str) -> None:
    """Detection by layer and method, with 95 % intervals, from the rows of every fixed layer.

    \b
    Example:
      harness analyze layers results/clevr --metric f1
    """
    from harness_analysis.choices import layers

    produce("layers", results, output, as_json, lambda group: layers(group, metric))


@analyze.command()
@shared
@click.pass_obj
def levels(registry: Any, results: Any, output: Any, as_json: bool) -> None:
    """Test F1 by sparsity level at each concept's chosen layer, the level of cal marked. A look at test: it chooses nothing.

    \b
    Example:
      harness analyze levels results/clevr
    """
    from harness_analysis.choices import levels

    produce("levels", results, output, as_json, lambda group: levels(group, registry))


@analyze.command()
@shared
@background
@click.pass_obj
def positives(registry: Any, results: Any, output: Any, as_json: bool, cache_dir: Any, **how: Any) -> None:
    """Share of positive test samples with any token above the background quantile b_c, beside that of negative ones.

    \b
    Example:
      harness analyze positives results/clevr/dinov2-s-imgfocus/superactivator
    """
    from harness_analysis.background import Drawing, positives

    drawing = Drawing(how["quantile"], how["max_tokens"], how["seed"])
    produce("positives", results, output, as_json, lambda group: positives(group, registry, cache_dir, drawing))


@analyze.command()
@shared
@activations
@click.option(
    "--alphas", default="0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1", show_default=True, help="Shares of v_c, from 0 to 1."
)
@click.option(
    "--similarity",
    type=click.Choice(["own", "cosine", "dot"]),
    default="own",
    show_default=True,
    help="How tokens are compared with h; own = as the method compares them with v_c.",
)
@click.option("--unit", is_flag=True, help="Scale v_c and the samples' means to length 1 before they are mixed.")
@click.pass_obj
def hybrid(
    registry: Any, results: Any, output: Any, as_json: bool, cache_dir: Any, alphas: str, similarity: str, unit: bool
) -> None:
    """Detection and token F1 when tokens are scored by alpha v_c + (1 - alpha) (mean of the sample's own super-activators).

    \b
    Example:
      harness analyze hybrid results/clevr/dinov2-s-imgfocus/superactivator-mean --alphas 0,0.5,1
    """
    from harness_analysis.hybrid import Mixing, hybrid

    mixing = Mixing(shares(alphas), similarity, unit)
    produce("hybrid", results, output, as_json, lambda group: hybrid(group, registry, cache_dir, mixing))


def shares(text: str) -> tuple[float, ...]:
    """The values of --alphas, ascending and once each."""
    try:
        found = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or not all(0 <= alpha <= 1 for alpha in found):
        raise HarnessError(f"bad --alphas {text!r}; give numbers from 0 to 1 joined by commas, e.g. --alphas 0,0.5,1")
    return tuple(found)
