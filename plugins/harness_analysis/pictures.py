"""Which figures belong to which analysis, and what each of them leaves out. Drawn by `figures.py` when asked for, never before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness_analysis.figures import Axis, Cells, Dots, Line, Picture, Shape, bars, curves, dots, heat, histograms
from harness_analysis.sources import Group, Source, file_name

PANELS, ROWS, DOTS, EACH = 24, 40, 80, 12
"""At most so many histograms, rows of a table, rows of dots in one figure, and figures of one kind (one per method)."""

Rows = Sequence[dict[str, Any]]
NAN = float("nan")
AVERAGES = ("weighted", "macro")
NAMES = {"f1": "F1", "auroc": "AUROC", "average_precision": "average precision"}


def number(value: float | None) -> float:
    """NaN for None."""
    return NAN if value is None else float(value)


def first_of(group: Group, names: Sequence[str], most: int, what: str) -> tuple[list[str], str | None]:
    """(at most so many concepts, what to say of the others): those with the most positive test samples, in the order given."""
    if len(names) <= most:
        return list(names), None
    kept = set(sorted(names, key=lambda name: (-group.positives.get(name, 0), name))[:most])
    shown = [name for name in names if name in kept]
    return shown, f"{most} of {len(names)} concepts are shown, those with the most positive test samples; all are in {what}"


def each(sources: Sequence[Source]) -> Iterator[tuple[Source, str | None]]:
    """The first methods, and at the last of them what to say of the others."""
    for i, source in enumerate(sources[:EACH]):
        rest = [other.label for other in sources[EACH:]]
        yield (
            source,
            f"one figure per method, for the first {EACH}; none for {', '.join(rest)}" if rest and i == EACH - 1 else None,
        )


def said(*notes: str | None) -> str | None:
    """The notes there are, in one."""
    return "; ".join(note for note in notes if note) or None


def picked(rows: Rows, source: Source, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of one result with these values."""
    return [row for row in rows if row["run_id"] == source.run_id and all(row[key] == value for key, value in wanted.items())]


def streams(group: Group) -> dict[str, list[str]]:
    """Stream -> its site labels: a figure has the layers of one stream."""
    found: dict[str, list[str]] = {}
    for label in group.layers:
        found.setdefault(label.rpartition(".")[0] or "residual", []).append(label)
    return found


def along_layers(group: Group, stem: str, y: str, apart: bool) -> Iterator[tuple[str, list[str], Axis]]:
    """(name, site labels, axes) of a figure per stream."""
    every = streams(group)
    for stream, labels in every.items():
        many = f" of the {stream} stream" if len(every) > 1 or stream != "residual" else ""
        ticks = [label.rpartition(".")[2] for label in labels]
        name = stem if len(every) == 1 else f"{stem}-{file_name(stream)}"
        yield name, labels, Axis(f"layer{many}", y, ticks, "chosen" if apart else None)


def layer_pictures(group: Group, sources: Sequence[Source], rows: Rows, metric: str) -> Iterator[Picture]:
    """`layers-weighted` and `layers-macro`: a metric by layer, a line per method."""
    for average in AVERAGES:
        for name, labels, axis in along_layers(
            group, f"layers-{average}", f"{NAMES.get(metric, metric)} on test, {average}", True
        ):
            lines = []
            for source in sources:
                at = {row["layer"]: row for row in picked(rows, source, concept=average)}
                columns = ([number(at[label][key]) if label in at else NAN for label in labels] for key in _span("value"))
                last = at.get("chosen")
                lines.append(Line(source.label, *columns, tuple(number(last[k]) for k in _span("value")) if last else None))
            yield Picture(name, curves(lines, axis))


def _span(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def sparsity_pictures(group: Group, sources: Sequence[Source], rows: Rows, levels: Sequence[float]) -> Iterator[Picture]:
    """`sparsity`: bars per method, or one table above eight methods; `sparsity-by-layer-<method>`: layers x levels."""
    ticks = [f"{100 * level:g}" for level in levels]
    x, count = "sparsity level / %", "number of concepts"

    def counts(source: Source, layer: str) -> list[float]:
        at = {row["level"]: row["concepts"] for row in picked(rows, source, layer=layer)}
        return [float(at.get(level, 0)) for level in levels]

    chosen = {source.label: counts(source, "chosen") for source in sources}
    top = max(1.0, float(len(group.concepts)))
    if len(chosen) <= 8:
        yield Picture("sparsity", bars(chosen, ticks, x, count))
    else:
        most = max(1.0, max(max(row) for row in chosen.values()))
        yield Picture("sparsity", heat(Cells(list(chosen.values()), list(chosen), ticks, x, "", count, "{:g}", most)))
    layered = [source for source in sources if not source.scorer]
    for source, note in each(layered):
        cells = Cells(
            [counts(source, layer) for layer in group.layers],
            group.layers,
            ticks,
            x,
            "layer",
            count,
            "{:g}",
            top,
            title=source.label,
        )
        yield Picture(f"sparsity-by-layer-{file_name(source.label)}", heat(cells), note)


def level_pictures(group: Group, sources: Sequence[Source], rows: Rows, levels: Sequence[float]) -> Iterator[Picture]:
    """`levels-weighted` and `levels-macro`: F1 by level, a line per method; `levels-<method>`: concepts x levels, cal's outlined."""
    ticks, x = [f"{100 * level:g}" for level in levels], "sparsity level / %"
    for average in AVERAGES:
        lines = []
        for source in sources:
            at = {row["level"]: row for row in picked(rows, source, concept=average)}
            columns = ([number(at[level][key]) if level in at else NAN for level in levels] for key in _span("f1"))
            lines.append(Line(source.label, *columns, tuple(number(at[None][key]) for key in _span("f1"))))
        axis = Axis(x, f"F1 on test, {average}", ticks, "chosen")
        yield Picture(f"levels-{average}", curves(lines, axis))
    for source, more in each(sources):
        mine = {(row["concept"], row["level"]): row for row in picked(rows, source) if row["level"] is not None}
        best = {row["concept"]: number(row["f1"]) for row in mine.values() if row["chosen"]}
        order = sorted(
            group.concepts, key=lambda name: (np.isnan(best.get(name, NAN)), -np.nan_to_num(best.get(name, NAN)), name)
        )
        names, note = first_of(group, order, ROWS, "levels.parquet")
        values = [[number(mine[name, level]["f1"]) if (name, level) in mine else NAN for level in levels] for name in names]
        outlined = [
            (i, j)
            for i, name in enumerate(names)
            for j, level in enumerate(levels)
            if (row := mine.get((name, level))) and row["chosen"]
        ]
        cells = Cells(
            values, names, ticks, x, "", "F1 on test", outlined=outlined, outline="level chosen on cal", title=source.label
        )
        yield Picture(f"levels-{file_name(source.label)}", heat(cells), said(note, more))


def distribution_pictures(group: Group, sources: Sequence[Source], rows: Rows, shapes: Rows) -> Iterator[Picture]:
    """`distributions-<measure>`: means by layer, with quartiles; `histograms-<method>`: a panel per concept at its chosen layer."""
    for measure, y in {
        "mass_above": "share of in-concept tokens above b",
        "auroc": "AUROC of tokens",
        "cohens_d": "Cohen's d",
        "overlap": "overlap of histograms",
    }.items():
        for name, labels, axis in along_layers(group, f"distributions-{measure}", f"{y}, macro", True):
            lines = []
            for source in sources:
                at = {row["layer"]: row for row in picked(rows, source, concept="macro")}
                mean = [number(at[label][measure]) for label in labels]
                quartiles = np.array([_quartiles(picked(rows, source, layer=label), measure) for label in labels])
                lines.append(Line(source.label, mean, *quartiles.T, (number(at["chosen"][measure]), NAN, NAN)))
            note = "lines: mean over concepts; bands: quartiles over concepts" if measure == "mass_above" else None
            yield Picture(name, curves(lines, axis), note)
    for source, more in each(sources):
        chosen = {row["concept"]: row for row in picked(rows, source) if row["chosen"] and row["concept"] != "macro"}
        usable = [name for name in group.concepts if name in chosen and chosen[name]["reason"] is None]
        names, note = first_of(group, usable, PANELS, "histograms.parquet")
        panels = [
            _shape(name, chosen[name], picked(shapes, source, concept=name, layer=chosen[name]["layer"])) for name in names
        ]
        if panels:
            labels = ("in-concept tokens", "background tokens", "b: background quantile, from cal")
            drawn = histograms(panels, f"activation ({words_of(source)})", "share of tokens per bin", labels)
            yield Picture(f"histograms-{file_name(source.label)}", drawn, said(note, more))


def words_of(source: Source) -> str:
    """The method's name, as the unit of its activations."""
    return f"unit of {source.label}"


def _quartiles(rows: Rows, measure: str) -> tuple[float, float]:
    values = [row[measure] for row in rows if row["concept"] != "macro" and row[measure] is not None]
    return (float(np.quantile(values, 0.25)), float(np.quantile(values, 0.75))) if values else (NAN, NAN)


def _shape(name: str, row: dict[str, Any], bins: Rows) -> Shape:
    edges = [bins[0]["low"], *(b["high"] for b in bins)]
    shares = ([b[key] for b in bins] for key in ("share_in", "share_out"))
    return Shape(f"{name}, layer {row['layer']}", edges, *shares, row["background"])


def positives_pictures(group: Group, sources: Sequence[Source], rows: Rows) -> Iterator[Picture]:
    """`positives-<method>`: a row per concept at its chosen layer, the highest share first."""
    for source, more in each(sources):
        mine = {row["concept"]: row for row in picked(rows, source, chosen=True)}
        order = [name for name in group.concepts if name in mine and mine[name]["share"] is not None]
        order.sort(key=lambda name: (-mine[name]["share"], group.concepts.index(name)))
        names, note = first_of(group, order, DOTS, "positives.parquet")
        if not names:
            continue
        series = [
            Dots(label, [tuple(number(mine[name][key]) for key in _span(column)) for name in names])
            for label, column in (("positive samples", "share"), ("negative samples", "share_negative"))
        ]
        mean = mine["macro"]["share"]
        line = None if mean is None else ("mean of positive", mean)
        figure = dots(names, series, "share of test samples with a token above b", source.label, line)
        yield Picture(f"positives-{file_name(source.label)}", figure, said(note, more))


def hybrid_pictures(group: Group, sources: Sequence[Source], rows: Rows) -> Iterator[Picture]:
    """`hybrid-<metric>-<average>`: a line per method over alpha; `hybrid-<metric>-<method>`: concepts x alphas."""
    alphas = sorted({row["alpha"] for row in rows})
    ticks, x = [f"{alpha:g}" for alpha in alphas], "alpha (share of the concept's vector)"
    kinds = {"f1": "detection F1 on test", "token_f1": "token F1 on test"}
    for metric, y in kinds.items():
        for average in AVERAGES:
            lines = []
            for source in sources:
                at = {row["alpha"]: row for row in picked(rows, source, metric=metric, concept=average)}
                lines.append(Line(source.label, *([number(at[alpha][key]) for alpha in alphas] for key in _span("value"))))
            yield Picture(f"hybrid-{metric}-{average}", curves(lines, Axis(x, f"{y}, {average}", ticks)))
        for source, more in each(sources):
            mine = {(row["concept"], row["alpha"]): number(row["value"]) for row in picked(rows, source, metric=metric)}
            last = {name: mine[name, alphas[-1]] for name in group.concepts}
            order = sorted(last, key=lambda name: (np.isnan(last[name]), -np.nan_to_num(last[name]), name))
            names, note = first_of(group, order, ROWS, "hybrid.parquet")
            cells = Cells(
                [[mine[name, alpha] for alpha in alphas] for name in names], names, ticks, x, "", y, title=source.label
            )
            yield Picture(f"hybrid-{metric}-{file_name(source.label)}", heat(cells), said(note, more))
