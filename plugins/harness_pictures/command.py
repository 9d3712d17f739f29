"""`harness show-tokens`: what lies behind a number. Parses and checks; `draw.py` draws images, `words.py` prints texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.api import HarnessError, unknown

if TYPE_CHECKING:
    from harness_pictures.logged import Logged


@click.command("show-tokens")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--sample", multiple=True, help="Sample id, repeatable.  [default: the strongest true positive of each concept]")
@click.option("--concept", multiple=True, help="Concept, repeatable.  [default: one that the sample has]")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Picture to write: .png, .svg or .pdf (images).")
@click.pass_obj
def show_tokens(registry: Any, result: Path, sample: tuple[str, ...], concept: tuple[str, ...], output: Path | None) -> None:
    """Show the token scores of test samples, super-activators outlined. RESULT: a folder that `harness run --log-tokens` wrote.

    \b
    Example:
      harness run --task clevr --log-tokens
      harness show-tokens results/clevr/dinov2-s-imgfocus/superactivator/<run id> --output tokens.png
    """
    from harness_pictures.logged import Logged

    logged = Logged.read(registry, result)
    panels = chosen(logged, sample, concept)
    if logged.modality != "image":
        from harness_pictures.words import print_tokens

        for name, index in panels:
            print_tokens(logged, name, index)
        return
    if output is None:
        raise HarnessError("an image needs a file to be drawn to; give --output tokens.png")
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise unknown("picture format", output.suffix, [".png", ".svg", ".pdf"], f"--output {output}")
    from harness_pictures.draw import draw

    draw(logged, panels, output)
    click.echo(f"wrote {output.absolute()}")


def chosen(logged: Logged, samples: tuple[str, ...], concepts: tuple[str, ...]) -> list[tuple[str, int]]:
    """(sample id, concept index) of every panel."""
    for name in concepts:
        if name not in logged.concepts:
            raise unknown("concept", name, logged.concepts, f"result {logged.folder}")
    for name in samples:
        if name not in logged.place:
            raise unknown("sample", name, logged.place, f"the test split of result {logged.folder}")
    wanted = [logged.concepts.index(name) for name in concepts] or list(range(len(logged.concepts)))
    if samples:
        own = {name: wanted if concepts else logged.positive(name)[:1] or wanted[:1] for name in samples}
        return [(name, c) for name in samples for c in own[name]]
    found = [(logged.strongest(c), c) for c in wanted]
    panels = [(name, c) for name, c in found if name is not None]
    if not panels:
        raise HarnessError(f"no detected positive sample in result {logged.folder}; name one with --sample")
    return panels
