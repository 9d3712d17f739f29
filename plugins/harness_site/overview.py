"""The data of index.html: boards and their tables with intervals to draw, what can be filtered, and values at single layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.api import Built, Code, Column, Evidence, Score, Table, scores_of
from harness_site.words import line, number

WIDE = 120
"""Units of an interval's axis."""


def overview(built: Built, links: Mapping[str, str], duels: Mapping[str, str]) -> dict[str, Any]:
    """For the template: boards, the filters' choices, problems, and the data of the script."""
    of = {result.read["run_id"]: result for result in built.results}
    boards: list[dict[str, Any]] = []
    scripted: list[dict[str, Any]] = []
    for board, tables in built.boards:
        drawn = []
        for table in tables:
            results = [of[row.run_id] for row in table.rows]
            drawn.append(_table(len(scripted), table, results, links, duels))
            for row, shown in zip(table.rows, drawn[-1]["rows"], strict=True):
                shown["code"] = marked(built.code[row.run_id]) if built.code else None
            scripted.append(_script(table, results))
        boards.append({"title": board.title, "id": f"board-{len(boards)}", "description": board.description, "tables": drawn})
    return {
        "boards": boards,
        "problems": [line(problem, 300) for problem in built.problems],
        "count": len(built.results),
        "certified": bool(built.code),
        "choices": {
            "task": sorted({table["task"] for table in scripted}),
            "backbone": sorted({table["backbone"] for table in scripted}),
            "layer": sorted({layer for table in scripted for layer in table["layers"]}, key=_layer),
            "family": sorted({tag for table in scripted for tags in table["tags"] for tag in tags}),
        },
        "tables": scripted,
    }


def marked(code: Sequence[Code]) -> dict[str, Any]:
    """A row's mark, its place when sorted, and what it says: which plugins are not certified, and why.

    ✓ all its code is certified; (✓) that of the recipe, but not that of the backbone or the data set; – anything else.
    """
    without = dict.fromkeys((one.plugin, one.why) for one in code if one.why)
    if not without:
        return {"mark": "✓", "order": 2, "said": "all its code is certified"}
    recipe = all(one.place in ("backbone", "dataset") for one in code if one.why)
    said = "; ".join(line(f"{plugin}: {why}" if plugin else why) for plugin, why in without)
    return {"mark": "(✓)" if recipe else "–", "order": int(recipe), "said": f"not certified: {said}"}


def _layer(label: str) -> tuple[str, int, str]:
    stream, _, number = label.rpartition(".")
    return stream, int(number) if number.isdigit() else 0, label


def _axis(columns: Sequence[Column], results: Sequence[Evidence]) -> tuple[float, float]:
    """The range of the first column's metric; where it is unbounded, that of the values."""
    metric = columns[0].metric
    for result in results:
        low, high = result.read.get("metrics", {}).get(metric, {}).get("range", (None, None))
        if all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)) and high > low:
            return float(low), float(high)
    ends = [
        x
        for r in results
        for s in scores_of(r.read)
        if s.metric == metric
        for x in (s.value, s.ci_low, s.ci_high)
        if x is not None
    ]
    return (min([0.0, *ends]), max([1.0, *ends]))


def _score(column: Column, scores: Sequence[Score], layer: str | None = None) -> Score | None:
    wanted = column.layer if layer is None else layer
    layers = ("chosen", None) if wanted == "chosen" else (wanted,)
    found = (s for s in scores if s.metric == column.metric and s.concept == column.average and s.layer in layers)
    return next((s for s in found if s.value is not None), None)


def _table(
    index: int, table: Table, results: Sequence[Evidence], links: Mapping[str, str], duels: Mapping[str, str]
) -> dict[str, Any]:
    axis = _axis(table.columns, results)
    rows = []
    for row, result in zip(table.rows, results, strict=True):
        scores = scores_of(result.read)
        kinds = result.read.get("metrics", {})
        rows.append(
            {
                "method": line(row.method),
                "summary": line(row.summary, 160),
                "href": links[row.run_id],
                "rank": row.rank,
                "best": row.standing is not None and row.standing.best == 1,
                "unranked": line(row.unranked or ""),
                "ceiling": row.ceiling,
                "order": row.standing.best if row.standing else None,
                "bar": bar(_score(table.columns[0], scores), axis),
                "cells": [
                    {"value": cell.value, "text": cell.text, "part": _part(kinds.get(column.metric, {}).get("kind"))}
                    for cell, column in zip(row.cells, table.columns, strict=True)
                ],
                "layers": row.layers,
            }
        )
    columns = [line(column.name) for column in table.columns]
    ticks = [(x, f"{axis[0] + (axis[1] - axis[0]) * x / WIDE:g}") for x in (0, WIDE // 2, WIDE)]
    return {
        "index": index,
        "heading": line(table.heading, 160),
        "about": line(table.about, 600),
        "columns": columns,
        "rows": rows,
        "ticks": ticks,
        "compare": duels[table.rows[0].run_id],
        "unranked": _unranked(rows),
    }


def _unranked(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(why, methods) of rows without a rank, but for ceilings, whose names say it; no names where it is all rows."""
    why = sorted({row["unranked"] for row in rows if row["unranked"] and not row["ceiling"]})
    found = [(reason, [row["method"] for row in rows if row["unranked"] == reason]) for reason in why]
    return [(reason, [] if len(names) == len(rows) else names) for reason, names in found]


def _part(kind: str | None) -> str:
    return {"detection": "concepts", None: "averages"}.get(kind, "averages")


def bar(score: Score | None, axis: tuple[float, float]) -> dict[str, float] | None:
    """Where the value and its interval lie on the axis, in its units."""
    if score is None or score.value is None:
        return None
    ends = [score.value if end is None else end for end in (score.ci_low, score.ci_high)]
    value, low, high = (round(WIDE * min(max((x - axis[0]) / (axis[1] - axis[0]), 0.0), 1.0), 2) for x in (score.value, *ends))
    return {"value": value, "low": low, "high": high}


def _script(table: Table, results: Sequence[Evidence]) -> dict[str, Any]:
    """Tags of every row, and per layer [value, low, high] of every column; null where a metric has none at a layer."""
    first = results[0].read
    layers = [str(site) for site in first["backbone"]["sites"]]
    every = [scores_of(result.read) for result in results]
    own = [column for column in table.columns if column.layer == "chosen"]
    at = {layer: [[_values(_score(column, scores, layer)) for column in own] for scores in every] for layer in layers}
    return {
        "task": line(first["task"]["name"]),
        "backbone": line(first["backbone"]["name"]),
        "layers": layers,
        "tags": [[line(tag, 40) for tag in result.read["method"].get("tags", ())] for result in results],
        "axis": list(_axis(table.columns, results)),
        "at": {layer: rows for layer, rows in at.items() if any(cell for row in rows for cell in row)},
        "own": len(own),
        "intervals": [column.interval for column in own],
    }


def _values(score: Score | None) -> list[float | None] | None:
    return None if score is None else [number(x) for x in (score.value, score.ci_low, score.ci_high)]
