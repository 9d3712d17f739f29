"""`harness show-tokens`: what lies behind a number. Parses and checks; the format is that of --output's suffix.

.html is `page.py`; .png, .svg and .pdf are `image_figure.py` or `text_figure.py`; without a file a text goes to `terminal.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.api import HarnessError, unknown, write_atomic

FORMATS = (".png", ".svg", ".pdf", ".html")


@click.command("show-tokens")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--sample", multiple=True, help="Sample id, repeatable.  [default: the strongest true positive of each concept]")
@click.option("--concept", multiple=True, help="Concept, repeatable.  [default: one that the sample has]")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="File to write: .png, .svg, .pdf or .html (one file, opens without a network).  [default for text: the terminal]",
)
@click.option(
    "--plugin", "-p", multiple=True, expose_value=False, help="Load one more plugin: file.py or a package; no:<name>."
)
@click.pass_obj
def show_tokens(registry: Any, result: Path, sample: tuple[str, ...], concept: tuple[str, ...], output: Path | None) -> None:
    """Show the activations of test samples' tokens: super-activators outlined, tokens in the concept dotted.

    RESULT is a folder that `harness run --log-tokens` wrote.

    \b
    Example:
      harness run --task toy --method superactivator --log-tokens
      harness show-tokens results/toy/toy/superactivator/* --concept star
      harness show-tokens results/toy/toy/superactivator/* --concept star --output tokens.html
    """
    kind = None if output is None else output.suffix.lower()
    if kind is not None and kind not in FORMATS:
        raise unknown("picture format", kind, FORMATS, f"--output {output}", "the suffix decides the format")
    from harness_pictures.logged import Logged

    logged = Logged.read(registry, result)
    if logged.modality == "image" and output is None:
        raise HarnessError("an image needs a file to be drawn to; give --output tokens.png, or .svg, .pdf, .html")
    panels = logged.chosen(sample, concept)
    if output is None or kind is None:
        from harness_pictures.terminal import show

        show(panels)
        return
    if kind == ".html":
        from harness_pictures.page import page

        write_atomic(output, page(logged.title, panels).encode())
    else:
        from harness_pictures.figure import picture

        drawn = picture(panels, kind[1:])
        write_atomic(output, drawn.data)
        if drawn.note:
            click.echo(drawn.note, err=True)
    click.echo(f"wrote {output.absolute()}")
