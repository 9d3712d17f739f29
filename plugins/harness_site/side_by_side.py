"""The data of the page that sets two methods side by side: every decision of every method as a bit, and shared samples with their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.api import Column, Evidence, HarnessError, Table, compare
from harness_site.evidence import Filler
from harness_site.tokens import lit, packed
from harness_site.words import line, number

SHARED = 2
"""Samples per concept and label that every method is shown on: those the methods disagree on most."""
EVERY_PAIR = 8
"""Tables of so many rows compare all pairs where ranking did not; larger ones compare with the first row."""


def differences(table: Table, of: Mapping[str, Evidence]) -> dict[tuple[str, str], list[float | None]]:
    """(a, b) -> [a minus b, low, high, p] of the table's first column; p is Holm-corrected where the pair was ranked.

    Raises nothing: pairs whose files give no comparison are left out.
    """
    made = {
        key: [number(x) for x in (pair.difference.value, pair.difference.low, pair.difference.high, pair.p)]
        for key, pair in table.pairs.items()
    }
    column, rows = table.columns[0], table.rows
    wanted = [
        (a.run_id, b.run_id)
        for i, a in enumerate(rows)
        for b in rows[i + 1 :]
        if (i == 0 or len(rows) <= EVERY_PAIR) and not {(a.run_id, b.run_id), (b.run_id, a.run_id)} & made.keys()
    ]
    for a, b in wanted:
        found = _compared(of[a], of[b], column)
        if found is not None:
            made[a, b] = found
    return made


def _compared(a: Evidence, b: Evidence, column: Column) -> list[float | None] | None:
    try:
        found = compare(a, b, column.metric, column.average).overall
    except HarnessError:  # the evidence page of the result says which file is missing
        return None
    return [number(x) for x in (found.value, found.low, found.high, found.p)]


class Duel:
    """Methods on the same test samples; `data` is for the page's script."""

    def __init__(self, results: Sequence[Evidence], links: Mapping[str, str]) -> None:
        self.results = self._alike(results)
        self.apart = len(results) - len(self.results)
        self.data: dict[str, Any] = {"methods": [], "samples": {}, "shapes": [], "concepts": [], "boards": []}
        if not self.results:
            return
        first = self.results[0]
        self.labels = first.labels
        self.data |= {
            "concepts": [line(name) for name in first.concepts],
            "ids": [line(name, 40) for name in first.ids],
            "labels": packed(self.labels.T),
        }
        found = []
        for result in self.results:
            place = {name: i for i, name in enumerate(result.ids)}
            order = [place[name] for name in first.ids]
            scores, decisions, _ = result.at("chosen")
            found.append((scores[order], decisions[order]))
        self.scores = np.stack([scores for scores, _ in found])
        self.decisions = np.stack([decisions for _, decisions in found])
        names = [line(result.read["method"]["name"]) for result in self.results]
        self.data["methods"] = [
            {
                "name": f"{name} ({result.read['run_id'][:6]})" if names.count(name) > 1 else name,
                "href": links[result.read["run_id"]],
                "bits": packed(self.decisions[m].T),
                "layers": [result.layers[k] for k in result.layer.tolist()],
            }
            for m, (name, result) in enumerate(zip(names, self.results, strict=True))
        ]
        self.shared = self._shared()

    def _alike(self, results: Sequence[Evidence]) -> list[Evidence]:
        """Those with files, on the samples, concepts and labels of the first of them."""
        made: list[Evidence] = []
        for result in results:
            try:
                ids, labels = result.ids, result.labels
                result.at("chosen")
            except HarnessError:  # counted, and its evidence page says why
                continue
            if made and (set(ids) != set(made[0].ids) or result.concepts != made[0].concepts):
                continue
            place = {name: i for i, name in enumerate(ids)}
            order = [place[name] for name in made[0].ids] if made else []
            if not made or np.array_equal(labels[order], made[0].labels):
                made.append(result)
        return made

    def _shared(self) -> list[list[int]]:
        """Per concept the samples on which the methods' decisions are most divided, positives before negatives."""
        share = self.decisions.mean(0)
        divided = np.minimum(share, 1 - share)
        made = []
        for c in range(share.shape[1]):
            sides = [np.flatnonzero(self.labels[:, c] == side) for side in (True, False)]
            made.append([int(i) for side in sides for i in side[np.argsort(-divided[side, c], kind="stable")][:SHARED]])
        return made

    def compare(self, board: str, column: Column, table: Table, found: Mapping[tuple[str, str], list[float | None]]) -> None:
        """Adds a table's paired differences."""
        at = {result.read["run_id"]: m for m, result in enumerate(self.results)}
        pairs = {f"{at[a]},{at[b]}": values for (a, b), values in found.items() if a in at and b in at}
        corrected = bool(table.pairs)
        self.data["boards"].append({"name": board, "column": column.name, "pairs": pairs, "corrected": corrected})

    def fill(self, filler: Filler) -> list[str]:
        """Adds shared samples with scores and tokens; what to say of what is not there."""
        lights: list[dict[tuple[int, int], str | None]] = []
        self.data["shared"] = [[] for _ in self.data["concepts"]]
        samples = {
            str(i): {"id": line(self.results[0].ids[i]), "name": self.results[0].ids[i]} for at in self.shared for i in at
        }
        wanted = [(k, c) for k in range(2 * SHARED) for c in range(len(self.shared)) if k < len(self.shared[c])]
        for result in self.results:
            logged = lit(result)  # one at a time: they may be large
            lights.append({})
            for k, c in wanted:
                sample = samples[str(self.shared[c][k])]
                if logged is not None:
                    lights[-1][k, c] = logged.bytes(sample["name"], c)
                filler.add(sample, self.data["shapes"], logged, k % SHARED < filler.raw.pictures)
        for k, c in wanted:
            i = self.shared[c][k]
            lit_by = [filler.took(one.get((k, c))) for one in lights]
            scores = [number(x) for x in self.scores[:, i, c].tolist()]
            self.data["shared"][c].append([str(i), scores, *([lit_by] if any(lit_by) else [])])
        for sample in samples.values():
            sample.pop("name")
        self.data["samples"] = samples
        said = [] if all(lights) else ["Methods whose tokens were not logged (--log-tokens) show none."]
        said += [f"{self.apart} results without files, or of other samples or labels, are not here."] if self.apart else []
        said += [filler.raw.why] if filler.raw.why else []
        cut = f"To keep the page small, {filler.left_out} texts, pictures and token maps are left out."
        return said + ([cut] if filler.left_out else [])
