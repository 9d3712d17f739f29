"""`harness diff A B`: why two runs differ. What they state differently, by how many decisions flip when its effect is replayed.

Replayed from stored scores: A on the layers or levels that both have, A's cutoffs on B's scores, B's on A's, labels and samples. Causes
that act on scores (weights, seed, normalisation, ...) cannot be told apart without running: they share what their stage flips, and stand
in the order of what is known to matter most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.api import Evidence, open_result, plain
from harness_trust.bundle import equal, shown
from harness_trust.report import the_result

Array = NDArray[Any]


class Cause(NamedTuple):
    """What a difference is called, what it acts on, and the fields (with wildcards) that state it."""

    name: str
    stage: str
    fields: tuple[str, ...]


CAUSES = (
    Cause("task content", "content", ("task.name", "task.version", "task.modality", "task.fingerprint", "concepts")),
    Cause("limit", "content", ("task.limit", "config.limit")),
    Cause("backbone", "scores", ("backbone.name", "backbone.n_layers", "backbone.width", "config.backbone")),
    Cause("weights", "scores", ("backbone.revision",)),
    Cause("layers", "layers", ("backbone.sites", "config.layers", "config.streams*")),
    Cause("levels", "levels", ("levels",)),
    Cause("normalization", "scores", ("backbone.normalization", "config.normalization")),
    Cause("dtype", "scores", ("backbone.dtype", "backbone.*.dtype", "config.dtype", "provenance.dtype")),
    Cause("concept method", "scores", ("method.concepts", "method.fit_on", "config.concept_method", "config.fit_on")),
    Cause("detector", "scores", ("method.detector", "config.detector")),
    Cause("scorer", "scores", ("method.scorer", "config.scorer")),
    Cause("matching of units", "scores", ("method.match", "config.match")),
    Cause("choice on test", "scores", ("method.choose_on",)),
    Cause("geometry and preprocessing", "scores", ("config.image_size", "backbone.*")),
    Cause("seed", "scores", ("config.seed",)),
    Cause("localizer", "masks", ("method.localizer", "method.localize_on", "config.localizer", "config.explain_limit")),
    Cause("storage of embeddings", "scores", ("provenance.storage", "config.cache_bytes")),
    Cause("code of a plugin", "scores", ("provenance.plugins*",)),
    Cause("harness version", "scores", ("provenance.harness",)),
    Cause("version of a metric", "values", ("metrics.*",)),
    Cause("bootstrap", "intervals", ("config.bootstrap",)),
    Cause("packages", "scores", ("provenance.packages*", "provenance.python")),
    Cause(
        "machine",
        "scores",
        ("provenance.*", "config.device", "config.batch_size", "config.block_tokens"),
    ),
    Cause("other options", "none", ("config.*", "method.*", "task.*", "notes")),
)
"""From what is known to matter most to what matters least: the order of causes that flip equally many decisions."""
UNSTATED = Cause("nothing that the results state", "scores", ())
NO_NUMBER = (
    "method.name",
    "method.summary",
    "method.tags*",
    "config.method*",
    "config.task",
    "config.guards",
    "config.log_tokens",
    "task.samples*",
    "task.positives*",
    "provenance.finished",
    "provenance.seconds",
    "provenance.samples embedded",
)
"""What changes no number, or follows from what does."""
FROM_CACHE = "provenance.batch size"
"""Null where a run embedded nothing: the samples came from the cache, and their batch size is not known."""


@dataclass(frozen=True)
class Effects:
    """Decisions flipped by stage, of `decisions` shared ones; and what else differs."""

    decisions: int
    flips: int
    samples: int
    labels: int
    layers: int
    levels: int
    scores: int
    by_scores: int
    by_cutoffs: int
    different: int
    masks: int
    values: int
    intervals: int


def diff(a: Path, b: Path) -> dict[str, Any]:
    """The causes, most flips first, as plain data."""
    one, other = (open_result(the_result(path)) for path in (a, b))
    fields = list(_fields(one, other))
    effects = _effects(one, other)
    causes = _causes(fields, effects)
    made = {
        "a": str(one.folder),
        "b": str(other.folder),
        "decisions": effects.decisions,
        "flips": effects.flips,
        "only_in_one": effects.samples,
        "causes": causes,
    }
    return {**made, "verdict": _verdict(made, effects)}


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}")
    else:
        yield where, value


def _fields(one: Evidence, other: Evidence) -> Iterator[tuple[str, Any, Any]]:
    """(field, A's, B's) of all that is stated differently and may change a number."""
    stated = []
    for result in (one, other):
        read = result.read
        every = dict(
            pair for key in ("task", "backbone", "method", "config", "metrics", "provenance") for pair in _flat(read[key], key)
        )
        stated.append({**every, "levels": list(result.calibration.levels), "concepts": result.concepts})
    for key in dict.fromkeys([*stated[0], *stated[1]]):
        values = [found.get(key) for found in stated]
        known = key != FROM_CACHE or None not in values
        if known and not equal(*values) and not any(fnmatchcase(key, pattern) for pattern in NO_NUMBER):
            yield key, values[0], values[1]


def _causes(fields: list[tuple[str, Any, Any]], effects: Effects) -> list[dict[str, Any]]:
    """Every cause with the fields that state it, by what it flips."""
    mine: dict[str, list[tuple[str, Any, Any]]] = {}
    for field in fields:
        cause = next(cause for cause in CAUSES if any(fnmatchcase(field[0], pattern) for pattern in cause.fields))
        mine.setdefault(cause.name, []).append(field)
    same_samples = effects.samples == 0 and effects.labels == 0
    explained = "limit" in mine or ("levels" in mine and same_samples)
    if explained and {field for field, *_ in mine.get("task content", [])} == {"task.fingerprint"}:
        del mine["task content"]  # a consequence
    found = [cause for cause in CAUSES if cause.name in mine]
    if effects.different and not any(cause.stage in ("scores", "content") for cause in found):
        found.append(UNSTATED)
    order = {cause.name: i for i, cause in enumerate((*CAUSES, UNSTATED))}
    rows = [_row(cause, mine.get(cause.name, []), effects) for cause in found]
    return sorted(rows, key=lambda row: (-row["flips"], order[row["cause"]]))


def _row(cause: Cause, fields: list[tuple[str, Any, Any]], effects: Effects) -> dict[str, Any]:
    flips, how = _said(cause, effects)
    stated = [{"field": field, "a": _json(a), "b": _json(b)} for field, a, b in fields]
    return {"cause": cause.name, "acts_on": cause.stage, "flips": flips, "how": how, "fields": stated}


def _said(cause: Cause, e: Effects) -> tuple[int, str]:
    """(decisions flipped, how that is known)."""
    scores = f"scores: {e.different:,} differ; A's cutoffs on B's scores flip {e.by_scores}, B's cutoffs on A's scores {e.by_cutoffs}"
    if cause.stage == "content":
        parts = [f"{e.samples} decisions are in one run alone"] if e.samples else []
        parts += [f"{e.labels} labels of shared test samples differ"] if e.labels else []
        return e.samples + e.labels + e.scores, "; ".join([*parts, scores])
    if cause.stage in ("layers", "levels"):
        count = e.layers if cause.stage == "layers" else e.levels
        return count, f"replayed: both on the {cause.stage} they share flips {count}"
    if cause.stage == "masks":
        return 0, f"acts on masks alone: the token counts of {e.masks} (sample, concept) pairs differ"
    if cause.stage == "values":
        return 0, f"acts on published values alone: {e.values} differ"
    if cause.stage == "intervals":
        return 0, f"acts on intervals alone: {e.intervals} differ"
    if cause.stage == "none":
        return 0, "not known to change a number"
    return e.scores, scores


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- replaying


def _effects(one: Evidence, other: Evidence) -> Effects:
    """What each stage flips, on the test samples and concepts that both have."""
    concepts = [concept for concept in one.concepts if concept in other.concepts]
    ids = [name for name in one.ids if name in set(other.ids)]
    own = [_Shared(result, ids, concepts) for result in (one, other)]
    a, b = own
    sizes = [len(result.ids) * len(result.concepts) for result in (one, other)]
    shared = len(ids) * len(concepts)
    layers = [layer for layer in one.layers if layer in other.layers]
    levels = [level for level in one.calibration.levels if level in other.calibration.levels]
    whole = [found.decide(None, None) for found in own]
    on_layers = [found.decide(layers, None) for found in own]
    on_both = [found.decide(layers, levels) for found in own]
    common = layers or None
    different = 0
    if common:
        values = [found.scores(common) for found in own]
        close = np.abs(values[0] - values[1]) <= 1e-6 * (1 + np.abs(values[0]))
        different = int((~(close | (np.isnan(values[0]) & np.isnan(values[1])))).sum())
    crossed = [a.decide(layers, levels, scores=b), a.decide(layers, levels, cutoffs=b)] if common else on_both[:1] * 2
    rows = [_published(result) for result in (one, other)]
    keys = rows[0].keys() & rows[1].keys()
    return Effects(
        shared,
        _flips(*whole),
        sum(sizes) - 2 * shared,
        int((a.labels != b.labels).sum()),
        max(_flips(before, after) for before, after in zip(whole, on_layers, strict=True)),
        max(_flips(before, after) for before, after in zip(on_layers, on_both, strict=True)),
        _flips(*on_both),
        _flips(on_both[0], crossed[0]),
        _flips(on_both[0], crossed[1]),
        different,
        _masks(a, b),
        sum(not equal(rows[0][key][0], rows[1][key][0]) for key in keys),
        sum(not equal(rows[0][key][1], rows[1][key][1]) for key in keys),
    )


class _Shared:
    """A result on some of its test samples and concepts."""

    def __init__(self, result: Evidence, ids: list[str], concepts: list[str]) -> None:
        place = {name: i for i, name in enumerate(result.ids)}
        column = {name: i for i, name in enumerate(result.concepts)}
        self.result = result
        self.rows, self.columns = [place[name] for name in ids], [column[name] for name in concepts]
        self.labels = result.labels[np.ix_(self.rows, self.columns)]

    def scores(self, layers: list[str | None]) -> Array:
        """[L, S, C] at some layers."""
        at = [self.result.layers.index(layer) for layer in layers]
        found: Array = self.result.scores["test"][np.ix_(at, self.rows, self.columns)]
        return found

    def chosen(self, layers: list[str | None], levels: list[float | None] | None) -> tuple[Array, Array]:
        """(layer [C], cutoff [C]) that cal would have chosen among some layers and levels."""
        found = self.result.calibration
        at = [self.result.layers.index(layer) for layer in layers]
        of = range(len(found.levels)) if levels is None else [found.levels.index(level) for level in levels]
        f1, cutoffs = (values[np.ix_(list(of), at, self.columns)] for values in (found.f1, found.cutoffs))
        f1 = np.where(np.isnan(f1), -np.inf, f1)
        level = f1.argmax(0)
        best, cutoff = (np.take_along_axis(values, level[None], 0)[0] for values in (f1, cutoffs))
        layer = best.argmax(0)
        return layer, np.take_along_axis(cutoff, layer[None], 0)[0]

    def decide(
        self,
        layers: list[str | None] | None,
        levels: list[float | None] | None,
        scores: _Shared | None = None,
        cutoffs: _Shared | None = None,
    ) -> Array:
        """[S, C] decisions, with another result's scores or cutoffs in place of its own; None or nothing shared = all of its own."""
        among = layers or self.result.layers
        layer, cutoff = (cutoffs or self).chosen(among, levels or None)
        values = (scores or self).scores(among)
        found: Array = np.take_along_axis(values, layer[None, None], 0)[0] >= cutoff
        return found


def _flips(one: Array, other: Array) -> int:
    return int((one != other).sum())


def _masks(a: _Shared, b: _Shared) -> int:
    if not (a.result.localized and b.result.localized):
        return 0
    one, other = (found.result.masks[np.ix_(range(3), found.rows, found.columns)] for found in (a, b))
    return int((one != other).any(0).sum())


def _published(result: Evidence) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    rows = result.read["scores"]
    return {(r["metric"], r["layer"], r["concept"]): (r["value"], [r["ci_low"], r["ci_high"], r["sample_ci"]]) for r in rows}


# --- in words


def _verdict(made: dict[str, Any], effects: Effects) -> str:
    causes, flips = made["causes"], effects.flips
    share = f"{flips} of {effects.decisions:,} shared decisions differ"
    if not causes:
        return f"No difference: {share}, and the runs state the same."
    first = causes[0]
    if first["flips"] == 0:
        return f"First cause: {first['cause']}. {share}; {first['how']}."
    ties = [row["cause"] for row in causes[1:] if row["flips"] == first["flips"] and row["acts_on"] == first["acts_on"]]
    others = f" Stored scores cannot tell it from: {', '.join(ties)}." if ties and first["acts_on"] == "scores" else ""
    return f"First cause: {first['cause']}, {first['flips']} decisions. {share}.{others}"


def show(made: dict[str, Any]) -> None:
    """The verdict, then every cause with what states it."""
    click.echo(plain(made["verdict"]))
    for name in ("a", "b"):
        click.echo(plain(f"{name.upper()} {made[name]}"))
    if not made["causes"]:
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("cause")
    table.add_column("flips", justify="right")
    table.add_column("how it is known", overflow="fold", ratio=2)
    table.add_column("stated: A, B", overflow="fold", ratio=3)
    for row in made["causes"]:
        stated = [f"{f['field']}: {shown(f['a'])}, {shown(f['b'])}" for f in row["fields"][:4]]
        stated += [f"and {len(row['fields']) - 4} more"] if len(row["fields"]) > 4 else []
        table.add_row(*(escape(x) for x in (row["cause"], str(row["flips"]), row["how"], "\n".join(map(plain, stated)))))
    Console().print(table)
