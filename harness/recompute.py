"""Every published number again, from a result's own files: no model, no data set, no torch.

Written from the definitions in docs/method.md beside the code that made the numbers (`pipeline.py`, `metrics.py`, the metric plugins), so
that each checks the other. `Evidence` is a result folder as arrays; `replicates` is a metric under weightings of its test samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError
from harness.results import read_result
from harness.statistics import Floats, sample_weights

Bools = NDArray[np.bool_]


class Swept(NamedTuple):
    """A calibration: cutoffs [P, ..., C], and what they gave on cal, TP, FP, FN [3, P, ..., C] and F1 [P, ..., C]."""

    levels: tuple[float | None, ...]
    cutoffs: Floats
    counts: Floats
    f1: Floats


@dataclass(frozen=True)
class Evidence:
    """A result and its files: C concepts, S test samples in the order of `ids`, L layers (one, None, for a scorer)."""

    folder: Path
    read: Mapping[str, Any]

    def table(self, name: str) -> dict[str, Any]:
        """The columns of one of the folder's parquet files, as numpy arrays; words as (places, names)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / name
        if not path.is_file():
            raise HarnessError(f"cannot read {path}; it is not there; the result is not whole; run it again")
        try:
            found = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise HarnessError(
                f"cannot read {path}; {' '.join(str(error).split())}; the result is not whole; run it again"
            ) from error
        return {key: _column(found.column(key)) for key in found.column_names}

    @cached_property
    def concepts(self) -> list[str]:
        """The task's concepts."""
        return list(self.read["task"]["positives"])

    @cached_property
    def layers(self) -> list[str | None]:
        """The sites of the run; [None] for a scorer."""
        return [None] if self.read["method"]["scorer"] else list(self.read["backbone"]["sites"])

    @cached_property
    def samples(self) -> dict[str, Any]:
        """per_sample.parquet by split: {split: (ids, labels [S, C] bool, detected [S, C] bool, scores [S, C], layers [C])}."""
        table = self.table("per_sample.parquet")
        splits, named = table["split"]
        made = {}
        for s, split in enumerate(named):
            rows = {
                key: (value[0][splits == s], value[1]) if isinstance(value, tuple) else value[splits == s]
                for key, value in table.items()
            }
            ids = _order(rows["id"])
            place = self._places(rows, {"id": ids, "concept": self.concepts}, "per_sample.parquet")
            made[split] = (
                ids,
                *(place(rows[key], kind) for key, kind in (("label", bool), ("detected", bool), ("score", float))),
            )
        return made

    def _places(self, rows: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], name: str) -> Callable[[Any, type], Any]:
        """(column, dtype) -> the column laid out over the axes; raises where a cell is missing or there twice."""
        at = []
        for key, names in axes.items():
            column = rows[key]
            codes, words = (
                column if isinstance(column, tuple) else (np.unique(column, return_inverse=True)[1], list(np.unique(column)))
            )
            known = {word: i for i, word in enumerate(names)}
            used = np.unique(codes).tolist()
            lost = [words[i] for i in used if words[i] not in known]
            if lost:
                raise HarnessError(
                    f"{self.folder / name} has {key} {lost[0]!r}, which the result does not; the files are not of one run"
                )
            table = np.zeros(len(words), np.int64)
            table[used] = [known[words[i]] for i in used]
            at.append(table[codes])
        shape = tuple(len(names) for names in axes.values())
        flat = np.ravel_multi_index(at, shape) if len(at[0]) else np.zeros(0, np.int64)
        cells = int(np.prod(shape))
        if len(flat) != cells or not (np.bincount(flat, minlength=cells) == 1).all():
            raise HarnessError(
                f"{self.folder / name} has {len(flat)} rows for {' x '.join(f'{n} {key}' for key, n in zip(axes, shape, strict=True))}; "
                "every cell is needed once; the files are not whole"
            )

        def lay(column: Any, kind: type) -> Any:
            out: NDArray[Any] = np.empty(shape, kind)
            out.ravel()[flat] = column
            return out

        return lay

    def _level(self, column: Any, levels: tuple[float | None, ...], name: str) -> tuple[NDArray[np.int64], list[float | None]]:
        """A column of levels as (places, levels); raises where one is not among them."""
        given, known = _sortable(column), _sortable(levels)
        places = np.searchsorted(known, given).clip(max=len(known) - 1)
        lost = given[known[places] != given]
        if len(lost):
            raise HarnessError(
                f"{self.folder / name} has level {lost[0]:g}, which the result does not; the files are not of one run"
            )
        return places, list(levels)

    @property
    def ids(self) -> list[str]:
        """The test samples."""
        return self.samples["test"][0]  # type: ignore[no-any-return]

    @property
    def labels(self) -> Bools:
        """[S, C] of test."""
        return self.samples["test"][1]  # type: ignore[no-any-return]

    @cached_property
    def test_digest(self) -> str:
        """A hash of the test samples, concepts and labels, whatever the order of the samples: results can be paired where it is equal."""
        order = sorted(range(len(self.ids)), key=self.ids.__getitem__)
        plain = [[self.ids[i] for i in order], self.concepts, self.labels[order].astype(int).tolist()]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    @cached_property
    def scores(self) -> dict[str, Floats]:
        """Split -> pooled scores [L, S, C]; NaN where there is none."""
        table = self.table("scores.parquet")
        splits, named = table["split"]
        made = {}
        for s, split in enumerate(named):
            rows = {
                key: (value[0][splits == s], value[1]) if isinstance(value, tuple) else value[splits == s]
                for key, value in table.items()
            }
            ids = self.samples[split][0]
            made[split] = self._places(rows, {"layer": self.layers, "id": ids, "concept": self.concepts}, "scores.parquet")(
                rows["score"], float
            )
        return made

    @cached_property
    def calibration(self) -> Swept:
        """calibration.parquet as [P, L, C]."""
        return self._swept("calibration.parquet", {"layer": self.layers})

    @cached_property
    def map_calibration(self) -> Swept:
        """map_calibration.parquet as [P, C]."""
        return self._swept("map_calibration.parquet", {})

    def _swept(self, name: str, more: Mapping[str, Sequence[Any]]) -> Swept:
        table = self.table(name)
        levels = _levels(table["level"])
        rows = {**table, "level": self._level(table["level"], levels, name)}
        lay = self._places(rows, {"level": levels, **more, "concept": self.concepts}, name)
        counts = np.stack([lay(table[key], float) for key in ("tp", "fp", "fn")])
        return Swept(levels, lay(table["cutoff"], float), counts, lay(table["f1"], float))

    @cached_property
    def cutoffs(self) -> Floats:
        """[L, C]: at every layer the cutoff of its own best level (ties: the smallest); NaN = none."""
        found = self.calibration
        return _at(found.cutoffs, first_best(found.f1))

    @cached_property
    def layer(self) -> NDArray[np.int64]:
        """[C]: the chosen layer, the best cal F1 at its own level; ties: the earliest."""
        found = self.calibration
        return first_best(_at(found.f1, first_best(found.f1)))

    def at(self, layer: str | None) -> tuple[Floats, Bools, Bools]:
        """(test scores, decisions [S, C], whether there is a cutoff [C]) at a layer, or with `chosen` at each concept's own."""
        every, cutoffs = self.scores["test"], self.cutoffs
        place = self.layer if layer == "chosen" or layer is None else np.full(len(self.concepts), self.layers.index(layer))
        scores, cutoff = _at(every, place[None]), _at(cutoffs, place)
        return scores, scores >= cutoff, np.isfinite(cutoff)

    @property
    def localized(self) -> bool:
        """Whether the result has token masks."""
        return (self.folder / "localization.parquet").is_file()

    @cached_property
    def token_counts(self) -> Floats:
        """[3, P, S, C]: TP, FP, FN of every test sample's tokens at every level."""
        table = self.table("localization.parquet")
        levels = self.map_calibration.levels
        rows = {**table, "level": self._level(table["level"], levels, "localization.parquet")}
        lay = self._places(rows, {"level": levels, "id": self.ids, "concept": self.concepts}, "localization.parquet")
        return np.stack([lay(table[key], float) for key in ("tp", "fp", "fn")])

    @cached_property
    def masks(self) -> Floats:
        """[3, S, C]: the token counts at each concept's map level."""
        return np.take_along_axis(self.token_counts, self.map_level[None, None, None], 1)[:, 0]

    @cached_property
    def map_level(self) -> NDArray[np.int64]:
        """[C]: the map level with the best cal token F1; ties: the smallest."""
        return first_best(self.map_calibration.f1)

    @cached_property
    def has_map(self) -> Bools:
        """[C]: whether the map has a cutoff."""
        return np.isfinite(_at(self.map_calibration.cutoffs, self.map_level))

    @cached_property
    def sample_values(self) -> dict[str, Floats]:
        """Metric -> one number per test sample [S, C], NaN = none, for metrics that are means over samples."""
        table = self.table("sample_values.parquet")
        (which, metrics), (sample, ids), (concept, concepts) = (_words(table[key]) for key in ("metric", "id", "concept"))
        row, column = ({name: i for i, name in enumerate(names)} for names in (self.ids, self.concepts))
        made = {name: np.full((len(self.ids), len(self.concepts)), np.nan) for name in metrics}
        for k, value in enumerate(table["value"]):
            try:
                made[metrics[which[k]]][row[ids[sample[k]]], column[concepts[concept[k]]]] = value
            except KeyError as error:
                raise HarnessError(
                    f"{self.folder / 'sample_values.parquet'} names {error}, which the result does not; the files are not of one run"
                ) from None
        return made


def _at(values: Floats, index: NDArray[np.int64]) -> Floats:
    """values [N, ...] at an index [...] along the first axis."""
    found: Floats = np.take_along_axis(values, index[None], 0)[0]
    return found


def _column(column: Any) -> Any:
    """A column as an array; words as (places, names), a null word as None."""
    import pyarrow as pa

    whole = column.combine_chunks()
    if pa.types.is_string(whole.type) or pa.types.is_dictionary(whole.type) or pa.types.is_null(whole.type):
        encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        places = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
        return places, ([*names, None] if (places == len(names)).any() else names)
    if whole.null_count or pa.types.is_floating(whole.type):
        return whole.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return whole.to_numpy(zero_copy_only=False)


def _words(column: Any) -> tuple[Any, list[Any]]:
    return column if isinstance(column, tuple) else (np.zeros(0, np.int64), [])


def _order(column: tuple[Any, list[str]]) -> list[str]:
    """The words of a column, each once, in the order of its rows."""
    places, names = column
    first = np.unique(places, return_index=True)
    return [names[places[i]] for i in sorted(first[1])]


def _levels(column: Any) -> tuple[float | None, ...]:
    if isinstance(column, tuple):  # only nulls
        return (None,)
    found = np.unique(column)
    return tuple(None if np.isnan(x) else float(x) for x in found)


def _sortable(levels: Any) -> Floats:
    """Levels as numbers that sort, null last."""
    if isinstance(levels, tuple) and levels and isinstance(levels[0], np.ndarray):
        return np.full(len(levels[0]), np.inf)
    found = np.array(levels, np.float64)  # None becomes NaN
    return np.where(np.isnan(found), np.inf, found)


def first_best(values: Floats) -> NDArray[np.int64]:
    """The index of the largest value along the first axis, the first among equals; NaN is never chosen over a number."""
    best: NDArray[np.int64] = np.where(np.isnan(values), -np.inf, values).argmax(0)
    return best


def open_result(folder: Path) -> Evidence:
    """A complete result folder; raises where it is none."""
    return Evidence(Path(folder), read_result(folder))


# --- metrics


def replicates(result: Evidence, metric: str, layer: str | None, weights: Floats) -> Floats | None:
    """[B, C]: a metric under weightings [B, S] of the test samples, NaN where undefined; None where the files do not give it.

    Weightings of ones, [1, S], give the value itself.
    """
    if metric in COUNTED or metric in RANKED:
        scores, decisions, calibrated = result.at(layer)
        if metric in COUNTED:
            found = COUNTED[metric](*_counts(decisions, result.labels, weights))
        else:
            found = RANKED[metric](scores, result.labels, weights)
    elif metric in TOKENS and result.localized:
        calibrated = result.has_map
        found = TOKENS[metric](*(weights @ count for count in result.masks))
    elif result.localized and metric in result.sample_values:
        values = result.sample_values[metric]
        known = np.isfinite(values)
        any_sample: Bools = np.asarray(known.any(0))
        calibrated = result.has_map if result.read["metrics"][metric]["kind"] == "localization" else any_sample
        found = _share(weights @ np.where(known, values, 0.0), weights @ known)
    else:
        return None
    return np.where(calibrated, found, np.nan)


def detection(result: Evidence, layer: str | None, weights: Floats) -> dict[str, Floats]:
    """Every metric of detection that `replicates` gives, by name, at one layer: what they share is computed once."""
    scores, decisions, calibrated = result.at(layer)
    counts = _counts(decisions, result.labels, weights)
    found = {name: metric(*counts) for name, metric in COUNTED.items()}
    found |= ranked(scores, result.labels, weights)._asdict()
    return {name: np.where(calibrated, values, np.nan) for name, values in found.items()}


def drawn(result: Evidence) -> Floats:
    """[B, S]: the weightings that the result's intervals come from."""
    config = result.read["config"]
    return sample_weights(len(result.ids), int(config["bootstrap"]), int(config["seed"]))


def _counts(decisions: Bools, labels: Bools, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """(TP, FP, FN), each [B, C]."""
    return weights @ (decisions & labels), weights @ (decisions & ~labels), weights @ (~decisions & labels)


def _share(above: Floats, below: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _with_positives(above: Floats, below: Floats, positives: Floats) -> Floats:
    return np.where(positives > 0, _share(above, below), np.nan)


COUNTED: Mapping[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "f1": lambda tp, fp, fn: _with_positives(2 * tp, 2 * tp + fp + fn, tp + fn),
    "precision": lambda tp, fp, fn: _with_positives(tp, tp + fp, tp + fn),
    "recall": lambda tp, fp, fn: _with_positives(tp, tp + fn, tp + fn),
}
TOKENS: Mapping[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "token_f1": COUNTED["f1"],
    "token_iou": lambda tp, fp, fn: _with_positives(tp, tp + fp + fn, tp + fn),
}


class RankedValues(NamedTuple):
    """Average precision and AUROC, [B, C] each."""

    average_precision: Floats
    auroc: Floats


def ranked(scores: Floats, labels: Bools, weights: Floats) -> RankedValues:
    """Both from one product per concept: the weight of positives and of all at or above each positive.

    Average precision: the sum over positives of their weight times the precision among all at or above them, over the weight of
    positives. AUROC: the share of (positive, negative) pairs in the right order, ties counting half.
    """
    whole = float(weights.sum(1).max(initial=0)) < 2**24 and bool((weights == np.floor(weights)).all())
    light = weights.astype(np.float32) if whole else weights  # sums of whole numbers this small are exact in float32
    ap, area = np.full((2, len(weights), labels.shape[1]), np.nan)
    whole_weight = weights.sum(1)
    for c, (score, label) in enumerate(zip(_ranks(scores).T, labels.T, strict=True)):
        above = (score[:, None] >= score[label]).astype(light.dtype)
        mine = weights[:, label]
        positives = mine.sum(1)
        negatives = whole_weight - positives
        every = (light @ above).astype(np.float64)
        found = (mine.astype(light.dtype) @ above[label]).astype(np.float64)
        ap[:, c] = _share((mine * np.divide(found, every, out=np.zeros_like(found), where=every > 0)).sum(1), positives)
        wrong = every - found
        equal = score[~label, None] == score[label]
        tied = (light[:, ~label] @ equal.astype(light.dtype)).astype(np.float64) if equal.any() else 0.0
        area[:, c] = _share((mine * (negatives[:, None] - wrong + 0.5 * tied)).sum(1), positives * negatives)
    return RankedValues(ap, area)


def average_precision(scores: Floats, labels: Bools, weights: Floats) -> Floats:
    """[B, C]."""
    return ranked(scores, labels, weights).average_precision


def auroc(scores: Floats, labels: Bools, weights: Floats) -> Floats:
    """[B, C]."""
    return ranked(scores, labels, weights).auroc


def _ranks(scores: Floats) -> Floats:
    """No score, no token and no answer rank below every number, and are equal."""
    return np.where(np.isfinite(scores), scores, -np.inf)


RANKED: Mapping[str, Callable[[Floats, Bools, Floats], Floats]] = {"average_precision": average_precision, "auroc": auroc}
