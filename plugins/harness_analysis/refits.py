"""A result's method fitted and decided again, for analyses that need activations; and whether it still chooses what the result says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from harness.api import Choice, Progress, Refit, refit
from harness_analysis.sources import Source


def again(
    source: Source, registry: Any, cache_dir: Path | None, progress: Progress, fits: dict[Any, Any]
) -> tuple[Refit, list[str]]:
    """(the refit, notes): a note where a choice is no longer the result's, because code of the method or arithmetic differs."""
    found = refit(source.folder, registry, progress, cache_dir, fits)
    cutoffs = dict(zip(found.bench.task.concepts, found.decided.cutoff().tolist(), strict=True))
    moved = [name for name, layer in chosen_layers(found).items() if not _same(source.choices[name], layer, cutoffs[name])]
    if not moved:
        return found, []
    return found, [f"{source.label}: fitted again, cal chooses otherwise for {', '.join(moved)}; the new choice is used"]


def _same(then: Choice, layer: str | None, cutoff: float) -> bool:
    if layer is None or then.layer is None or then.cutoff is None:
        return then.layer == layer
    return then.layer == layer and math.isclose(then.cutoff, cutoff, rel_tol=1e-4, abs_tol=1e-9)


def chosen_layers(found: Refit) -> dict[str, str | None]:
    """Concept -> the site label that cal chose in the refit; None for a concept without a cutoff."""
    decided, concepts = found.decided, found.bench.task.concepts
    known = decided.cutoff().isfinite().tolist()
    return {c: decided.layers[int(i)] if k else None for c, i, k in zip(concepts, decided.chosen.layer, known, strict=True)}
