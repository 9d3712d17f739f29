"""A result's method fitted and decided again, for analyses that need activations; and whether it still chooses what the result says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.api import Progress, Refit, refit
from harness_analysis.sources import Source


def again(
    source: Source, registry: Any, cache_dir: Path | None, progress: Progress, fits: dict[Any, Any]
) -> tuple[Refit, list[str]]:
    """(the refit, notes): a note where a choice is no longer the result's, because code of the method or arithmetic differs."""
    found = refit(source.folder, registry, progress, cache_dir, fits)
    moved = [concept for concept, layer in chosen_layers(found).items() if source.choices[concept].layer != layer]
    if not moved:
        return found, []
    return found, [f"{source.label}: fitted again, cal chooses another layer for {', '.join(moved)}; the new choice is used"]


def chosen_layers(found: Refit) -> dict[str, str | None]:
    """Concept -> the site label that cal chose in the refit; None for a concept without a cutoff."""
    decided, concepts = found.decided, found.bench.task.concepts
    known = decided.cutoff().isfinite().tolist()
    return {c: decided.layers[int(i)] if k else None for c, i, k in zip(concepts, decided.chosen.layer, known, strict=True)}
