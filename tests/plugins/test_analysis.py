"""The analyses: every number against loops and outside oracles, every figure readable, every mistake one line."""

from __future__ import annotations

import hashlib
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
import ragged_world
import torch
from harness_analysis import background, figures, hybrid, pictures
from harness_analysis.background import Drawing, compare, wilson
from harness_analysis.sources import Group, Source, collect, file_name
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score

from harness.api import Entry, Refit, TokenEmbeddings, hookimpl, read_result, read_tokens, refit
from harness.cli import main

METHODS = "superactivator,superactivator-mean,max,mean,summary,coin"
SAMPLE_MEAN = "mean+superactivator+superactivator:vector=sample-mean"


@contextmanager
def quiet(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress that shows nothing."""
    yield lambda n: None


@dataclass(frozen=True)
class Said:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Done:
    """The ragged world after its runs: the folder of results, the cache, the task file."""

    folder: Path
    cache: Path
    task: str

    def of(self, name: str) -> Path:
        """The one result folder of a method."""
        (found,) = (
            path.parent for path in self.folder.rglob("result.json") if read_result(path.parent)["method"]["name"] == name
        )
        return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Six methods on the ragged world, and the sample-mean localizer with its tokens logged."""
    made = tmp_path_factory.mktemp("ragged")
    task = ragged_world.write_task(made)
    common = ["-p", "ragged_world", "run", "--task", task, "--cache-dir", made / "cache", "--output", made / "out"]
    few = ["--bootstrap", "25", "--block-tokens", "24"]
    for more in (
        ["--method", METHODS],
        ["--concept-method", "mean", "--localizer", SAMPLE_MEAN.partition("+")[2].partition("+")[2], "--log-tokens"],
    ):
        main([str(word) for word in (*common, *few, *more)])
    return Done(made / "out", made / "cache", task)


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Runs a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code: Any = 0
        try:
            main(["-p", "ragged_world", *(str(argument) for argument in arguments)])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return Said(code or 0, said.out, said.err)

    return call


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"{name}.parquet")
    return pq.read_table(path).to_pylist()


def again(done: Done, registry: Any, name: str, **how: Any) -> Refit:
    return refit(done.of(name), registry, quiet, done.cache, **how)


def rows_of(split: str) -> tuple[ragged_world.One, ...]:
    return ragged_world.made(split, 0)


# --- two sets of numbers


values = st.lists(st.integers(-6, 6).map(float), min_size=2, max_size=40)


@settings(max_examples=60, deadline=None)
@given(values, values, st.integers(2, 9), st.floats(-7, 7))
def test_the_measures_of_two_sets_are_those_of_loops_and_of_scikit_learn(
    a: list[float], b: list[float], bins: int, cutoff: float
):
    found = compare(np.array(a, np.float32), np.array(b, np.float32), cutoff, bins)
    assert found.auroc == pytest.approx(roc_auc_score([1] * len(a) + [0] * len(b), a + b), abs=1e-12)
    assert found.auroc == pytest.approx(np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b]))
    assert found.mass_above == sum(x > cutoff for x in a) / len(a)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    squares = sum((x - mean_a) ** 2 for x in a) + sum((x - mean_b) ** 2 for x in b)
    pooled = (squares / (len(a) + len(b) - 2)) ** 0.5
    assert found.cohens_d == pytest.approx((mean_a - mean_b) / pooled, abs=1e-9) if pooled else np.isnan(found.cohens_d)
    low, high = min(a + b), max(a + b)
    if high > low:
        shares = []
        for k in range(bins):
            edges = found.edges[k], found.edges[k + 1]
            inside = [[edges[0] <= x < edges[1] or (k == bins - 1 and x == high) for x in part] for part in (a, b)]
            shares.append(min(sum(part) / len(part) for part in inside))
        assert (found.edges[0], found.edges[-1]) == (low, high)
        assert found.overlap == pytest.approx(sum(shares))
    else:
        assert found.overlap == 1


def test_bins_span_both_sets_so_that_no_in_concept_mass_is_lost():
    found = compare(np.array([9.0, 10.0]), np.array([0.0, 1.0]), 1.0, 10)
    assert (found.share_in.sum(), found.share_out.sum(), found.overlap) == (1, 1, 0)
    assert found.share_in[-1] == 1  # the authors' bins end at 1, where this mass would fall out


def test_sets_without_spread_or_without_a_background_quantile_have_no_such_measure():
    found = compare(np.array([1.0, 1.0]), np.array([1.0, 1.0]), float("nan"), 5)
    assert np.isnan([found.cohens_d, found.mass_above]).all()
    assert (found.auroc, found.overlap) == (0.5, 1)
    assert np.isnan(compare(np.array([1.0]), np.array([0.0, 2.0]), 0.0, 5).cohens_d)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 7), (50, 200), (999, 1000)])
def test_the_interval_of_a_share_is_wilsons(hits: int, n: int):
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_no_trial_is_undefined():
    assert np.isnan(wilson(0, 0)).all()


# --- which tokens: a world in which every activation says where it is


@dataclass(frozen=True)
class Telltale:
    """Concepts whose activation is 1000 x (place of the sample in its split) + place of the token in its sample."""

    vectors = None
    sparse = False

    def activate(self, block: TokenEmbeddings) -> torch.Tensor:
        places = [
            1000.0 * int(name.partition("/")[2]) + t
            for name, n in zip(block.ids, block.offsets.diff().tolist(), strict=True)
            for t in range(n)
        ]
        column = torch.tensor(places)[None, :, None]
        return column.expand(len(block.sites), -1, len(ragged_world.CONCEPTS)).clone()


def telling(done: Done, registry: Any) -> Refit:
    found = again(done, registry, "superactivator")
    return replace(found, groups=tuple((tokens, Telltale(), detector) for tokens, _, detector in found.groups))


def expected_codes(split: str, c: int, inside: bool) -> list[float]:
    """By the world's own definition: the tokens of a set, in any split, whatever its size."""
    codes = []
    for i, one in enumerate(rows_of(split)):
        for t in range(one.values.shape[1]):
            wanted = (
                one.truth[t, c] == 1 if inside else (one.truth[t, c] == 0 and not one.labels[c] and one.regions is not None)
            )
            codes += [1000.0 * i + t] if wanted else []
    return codes


def test_every_set_holds_the_tokens_of_its_own_split_and_no_others(done: Done, registry: Any):
    """Trap 11.B8: places in the whole data set, and positives of another split, cannot get in; unannotated tokens do not."""
    seen = background.see(telling(done, registry), Drawing(most=0), quiet)
    for c in range(len(ragged_world.CONCEPTS)):
        for split, inside, found in (
            ("test", True, seen.inside[c]),
            ("test", False, seen.outside[c]),
            ("cal", False, seen.drawn[c]),
        ):
            for layer in found:
                assert layer.tolist() == expected_codes(split, c, inside)
        codes = expected_codes("cal", c, False)
        assert seen.background[:, c].tolist() == [pytest.approx(np.quantile(codes, 0.98), rel=1e-12)] * len(seen.layers)
        assert seen.there["in"][c] == len(expected_codes("test", c, True))
    unannotated = [1000.0 * i for i, one in enumerate(rows_of("test")) if one.regions is None]
    assert unannotated
    assert not set(unannotated) & {x - x % 1000 for column in seen.outside for x in column[0].tolist()}


def test_the_strongest_token_of_every_test_sample_is_its_own(done: Done, registry: Any):
    seen = background.see(telling(done, registry), Drawing(), quiet, tokens=False)
    last = [1000.0 * i + one.values.shape[1] - 1 if one.values.shape[1] else -np.inf for i, one in enumerate(rows_of("test"))]
    assert seen.highest[0, :, 0].tolist() == last
    assert seen.inside == seen.outside == []


def test_a_drawing_takes_so_many_by_its_seed_from_the_set(done: Done, registry: Any):
    found = telling(done, registry)
    drawn = [background.see(found, Drawing(most=5, seed=seed), quiet) for seed in (0, 0, 1)]
    for c in range(len(ragged_world.CONCEPTS)):
        codes = [one.outside[c][0].tolist() for one in drawn]
        assert codes[0] == codes[1] == sorted(codes[0])
        assert len(codes[0]) == 5
        assert set(codes[0]) <= set(expected_codes("test", c, False))
        assert drawn[0].there["out"][c] == len(expected_codes("test", c, False))
    assert any(drawn[0].outside[c][0].tolist() != drawn[2].outside[c][0].tolist() for c in range(3))


def test_the_draws_of_two_sets_and_two_concepts_are_not_the_same():
    every = torch.ones(1000, 2, dtype=torch.bool)
    first, second = (Drawing(most=10).draw(every, which) for which in (0, 1))
    assert len({tuple(places.tolist()) for places in (*first, *second)}) == 4


# --- distributions and positives against loops


def naive_tokens(found: Refit, split: str) -> list[Any]:
    """Per sample the activations [L, T, C], from the concepts that were fitted again."""
    ((tokens, concepts, _),) = found.groups
    blocks = list(getattr(tokens, split).blind())
    return [part for block in blocks for part in concepts.activate(block).split(block.offsets.diff().tolist(), 1)]


def split_tokens(found: Refit, split: str, layer: int, c: int, inside: bool) -> list[float]:
    picked = []
    for one, activations in zip(rows_of(split), naive_tokens(found, split), strict=True):
        for t in range(one.values.shape[1]):
            wanted = one.truth[t, c] == 1 if inside else (one.truth[t, c] == 0 and not one.labels[c])
            picked += [float(activations[layer, t, c])] if wanted else []
    return picked


@pytest.mark.parametrize("name", ["superactivator", "superactivator-mean"])
def test_distributions_are_those_of_loops_over_the_samples(name: str, done: Done, registry: Any, harness: Any, tmp_path: Path):
    said = harness(
        "analyze",
        "distributions",
        done.of(name),
        "-o",
        tmp_path / "a",
        "--cache-dir",
        done.cache,
        "--quantile",
        "0.9",
        "--bins",
        "7",
    )
    assert said.code == 0, said.err
    rows = table(tmp_path / "a", "distributions")
    shapes = table(tmp_path / "a", "histograms")
    found = again(done, registry, name)
    for row in rows:
        if row["concept"] == "macro":
            continue
        layer, c = found.decided.layers.index(row["layer"]), ragged_world.CONCEPTS.index(row["concept"])
        a, b, cal = (
            split_tokens(found, *which)
            for which in (("test", layer, c, True), ("test", layer, c, False), ("cal", layer, c, False))
        )
        if row["concept"] == "hidden":  # annotated nowhere in train
            assert (row["reason"], row["auroc"], row["chosen"]) == ("no vector", None, False)
            continue
        cutoff = float(np.quantile(cal, 0.9))
        assert row["background"] == pytest.approx(cutoff, rel=1e-12)
        assert row["mass_above"] == sum(x > cutoff for x in a) / len(a)
        assert row["auroc"] == pytest.approx(roc_auc_score([1] * len(a) + [0] * len(b), a + b), abs=1e-12)
        d = (np.mean(a) - np.mean(b)) / np.sqrt(
            ((len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)) / (len(a) + len(b) - 2)
        )
        assert row["cohens_d"] == pytest.approx(d, abs=1e-9)
        assert (row["drawn_in"], row["drawn_out"], row["drawn_background"]) == (len(a), len(b), len(cal))
        mine = [shape for shape in shapes if (shape["layer"], shape["concept"]) == (row["layer"], row["concept"])]
        assert (mine[0]["low"], mine[-1]["high"]) == (min(a + b), max(a + b))
        assert row["overlap"] == pytest.approx(sum(min(shape["share_in"], shape["share_out"]) for shape in mine))
        assert sum(shape["share_in"] for shape in mine) == pytest.approx(1)
    for layer in ("0", "1", "2"):
        known = [row["auroc"] for row in rows if row["layer"] == layer and row["concept"] in "abc"]
        (mean,) = [row["auroc"] for row in rows if (row["layer"], row["concept"]) == (layer, "macro")]
        assert mean == pytest.approx(np.mean(known))
    chosen = {choice["concept"]: choice["layer"] for choice in read_result(done.of(name))["choices"]}
    assert {row["concept"]: row["layer"] for row in rows if row["chosen"] and row["concept"] != "macro"} == {
        concept: layer for concept, layer in chosen.items() if layer is not None
    }


def test_block_size_moves_no_number(done: Done, harness: Any, tmp_path: Path):
    task, cache = done.task, tmp_path / "cache"
    found = []
    for tokens in (5, 4000):
        out = tmp_path / f"out{tokens}"
        run = ("run", "--task", task, "--cache-dir", cache, "--output", out, "--bootstrap", "0", "--block-tokens", tokens)
        assert harness(*run, "--method", "superactivator-mean").code == 0
        assert harness("analyze", "distributions", out, "-o", out / "a", "--cache-dir", cache).code == 0
        found.append([{**row, "run_id": ""} for row in table(out / "a", "distributions")])
    for one, other in zip(*found, strict=True):
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key


@pytest.mark.parametrize("name", ["superactivator", "mean"])
def test_positives_are_those_of_loops_over_the_samples(name: str, done: Done, registry: Any, harness: Any, tmp_path: Path):
    said = harness("analyze", "positives", done.of(name), "-o", tmp_path / "a", "--cache-dir", done.cache, "-q", "0.8")
    assert said.code == 0, said.err
    rows = {(row["layer"], row["concept"]): row for row in table(tmp_path / "a", "positives")}
    found = again(done, registry, name)
    activations = naive_tokens(found, "test")
    shares: dict[tuple[int, int], float] = {}
    for layer in range(3):
        for c, concept in enumerate(ragged_world.CONCEPTS[:3]):
            cutoff = float(np.quantile(split_tokens(found, "cal", layer, c, False), 0.8))
            hit = [any(float(x) > cutoff for x in sample[layer, :, c]) for sample in activations]
            row = rows[str(layer), concept]
            for suffix, wanted in (("", True), ("_negative", False)):
                mine = [h for h, one in zip(hit, rows_of("test"), strict=True) if bool(one.labels[c]) is wanted]
                assert (row[f"n{suffix}"], row[f"above{suffix}"]) == (len(mine), sum(mine))
                assert row[f"share{suffix}"] == sum(mine) / len(mine)
                expected = binomtest(sum(mine), len(mine)).proportion_ci(0.95, method="wilson")
                assert (row[f"share{suffix}_low"], row[f"share{suffix}_high"]) == pytest.approx((expected.low, expected.high))
            shares[layer, c] = row["share"]
        assert rows[str(layer), "macro"]["share"] == pytest.approx(np.mean([shares[layer, c] for c in range(3)]))
        positives = [sum(bool(one.labels[c]) for one in rows_of("test")) for c in range(3)]
        assert rows[str(layer), "weighted"]["share"] == pytest.approx(
            np.average([shares[layer, c] for c in range(3)], weights=positives)
        )
        assert rows[str(layer), "hidden"]["share"] is None
    place = {choice["concept"]: choice["layer"] for choice in read_result(done.of(name))["choices"]}
    at_chosen = [shares[int(place[concept]), c] for c, concept in enumerate(ragged_world.CONCEPTS[:3])]
    row = rows["chosen", "macro"]
    assert row["share"] == pytest.approx(np.mean(at_chosen))
    assert row["share_low"] <= row["share"] <= row["share_high"]


def test_a_method_of_summaries_compares_samples(done: Done, harness: Any, tmp_path: Path):
    said = harness("analyze", "distributions", done.of("summary"), "-o", tmp_path / "a", "--cache-dir", done.cache)
    assert said.code == 0, said.err
    (row,) = [row for row in table(tmp_path / "a", "distributions") if (row["layer"], row["concept"]) == ("1", "a")]
    there = [one for one in rows_of("test") if one.values.shape[1]]
    assert row["tokens_in"] == sum(bool(one.labels[0]) for one in there)
    assert row["tokens_out"] == sum(not one.labels[0] for one in there)


# --- from result files alone


def test_layers_are_the_rows_of_the_results(done: Done, harness: Any, tmp_path: Path):
    said = harness("analyze", "layers", done.folder, "-o", tmp_path / "a", "--metric", "recall", "--json")
    assert said.code == 0, said.err
    (group,) = json.loads(said.out)
    rows = table(tmp_path / "a", "layers")
    assert rows == group["rows"]
    for name in ("superactivator", "max", "summary"):
        published = {
            (score["layer"], score["concept"]): (score["value"], score["ci_low"], score["ci_high"], score["n"])
            for score in read_result(done.of(name))["scores"]
            if score["metric"] == "recall"
        }
        mine = {
            (row["layer"], row["concept"]): (row["value"], row["value_low"], row["value_high"], row["n"])
            for row in rows
            if row["method"] == name
        }
        assert mine == published
    assert not [row for row in rows if row["method"] == "coin"]
    assert "note: coin: a scorer, which has no layers and no tokens" in said.err


def test_sparsity_counts_the_levels_of_cal(done: Done, harness: Any, tmp_path: Path):
    said = harness("analyze", "sparsity", done.folder, "-o", tmp_path / "a")
    assert said.code == 0, said.err
    assert "note: coin: no level was chosen on cal" in said.err
    rows = table(tmp_path / "a", "sparsity")
    for name in ("superactivator", "mean"):
        read = read_result(done.of(name))
        calibration = pq.read_table(done.of(name) / "calibration.parquet").to_pylist()
        for level in (*oracle.LEVELS, None):
            for layer in ("chosen", "0", "1", "2"):
                (row,) = [r for r in rows if (r["method"], r["layer"], r["level"]) == (name, layer, level)]
                if layer == "chosen":
                    expected = sum(choice["level"] == level for choice in read["choices"])
                else:
                    best = []
                    for concept in ragged_world.CONCEPTS:
                        f1 = [r["f1"] for r in calibration if (r["layer"], r["concept"]) == (layer, concept)]
                        place = oracle.first_best(f1)
                        best.append(None if place is None else oracle.LEVELS[place])
                    expected = best.count(level)
                assert row["concepts"] == expected, (name, layer, level)


@pytest.mark.parametrize("name", ["superactivator", "max", "summary"])
def test_levels_show_the_f1_that_each_cutoff_of_cal_gives_on_test(name: str, done: Done, harness: Any, tmp_path: Path):
    said = harness("analyze", "levels", done.of(name), "-o", tmp_path / "a")
    assert said.code == 0, said.err
    assert "a look at test: the level is chosen on cal, never here" in said.out
    rows = {(row["level"], row["concept"]): row for row in table(tmp_path / "a", "levels")}
    read = read_result(done.of(name))
    samples = [r for r in pq.read_table(done.of(name) / "per_sample.parquet").to_pylist() if r["split"] == "test"]
    cutoffs = {
        (r["level"], r["layer"], r["concept"]): r["cutoff"]
        for r in pq.read_table(done.of(name) / "calibration.parquet").to_pylist()
    }
    with_scores = ragged_world.CONCEPTS if name == "summary" else ragged_world.CONCEPTS[:3]  # no token of `hidden` is annotated
    for level in oracle.LEVELS:
        f1, positives = [], []
        for concept in with_scores:
            mine = [r for r in samples if r["concept"] == concept]
            labels = [r["label"] for r in mine]
            cutoff = cutoffs[level, mine[0]["layer"], concept]
            decisions = [r["score"] is not None and r["score"] >= cutoff for r in mine]
            f1.append(f1_score(labels, decisions))
            positives.append(sum(labels))
            row = rows[level, concept]
            assert (row["f1"], row["cutoff"], row["layer"]) == (pytest.approx(f1[-1]), cutoff, mine[0]["layer"])
            (choice,) = [c for c in read["choices"] if c["concept"] == concept]
            assert row["chosen"] == (choice["level"] == level)
            if row["chosen"]:
                assert decisions == [r["detected"] for r in mine]
        assert rows[level, "macro"]["f1"] == pytest.approx(np.mean(f1))
        assert rows[level, "weighted"]["f1"] == pytest.approx(np.average(f1, weights=positives))
        assert (rows[level, "hidden"]["f1"] is None) == ("hidden" not in with_scores)
    for average in ("macro", "weighted"):
        (published,) = [s for s in read["scores"] if (s["metric"], s["layer"], s["concept"]) == ("f1", "chosen", average)]
        row = rows[None, average]
        assert (row["f1"], row["f1_low"], row["f1_high"]) == (published["value"], published["ci_low"], published["ci_high"])


# --- hybrid vectors


@pytest.mark.parametrize("name", ["superactivator", "superactivator-mean", "max", "mean"])
def test_alpha_1_is_the_methods_own_detection(name: str, done: Done, harness: Any, tmp_path: Path):
    said = harness("analyze", "hybrid", done.of(name), "-o", tmp_path / "a", "--cache-dir", done.cache, "--alphas", "0.5,1")
    assert said.code == 0, said.err
    rows = {row["concept"]: row for row in table(tmp_path / "a", "hybrid") if (row["alpha"], row["metric"]) == (1, "f1")}
    read = read_result(done.of(name))
    for score in read["scores"]:
        if (score["metric"], score["layer"]) == ("f1", "chosen"):
            row = rows[score["concept"]]
            assert (row["value"], row["value_low"], row["value_high"]) == (score["value"], score["ci_low"], score["ci_high"])
    assert {concept: rows[concept]["level"] for concept in ragged_world.CONCEPTS} == {
        c["concept"]: c["level"] for c in read["choices"]
    }


def swept(done: Done, registry: Any, name: str, mixing: hybrid.Mixing) -> tuple[Refit, hybrid.Fitted, list[hybrid.Swept]]:
    """The parts of cal and test, as the command makes them."""
    found = again(done, registry, name)
    ((tokens, concepts, detector),) = found.groups
    decided = found.decided
    source = Source(done.of(name), read_result(done.of(name)), name)
    kind = hybrid.own_similarity(concepts, tokens.cal, source)
    tau = decided.token_cutoffs.gather(0, decided.chosen.level[None])[0].gather(0, decided.chosen.layer[None])[0]
    fitted = hybrid.Fitted(concepts, detector, decided.chosen.layer, tau, kind == "cosine", True, mixing.unit)
    return found, fitted, [hybrid.sweep(split, fitted, mixing.alphas, quiet) for split in (tokens.cal, tokens.test)]


def test_alpha_0_is_the_map_of_the_sample_mean_localizer(done: Done, registry: Any):
    found, fitted, (_, test) = swept(done, registry, "superactivator-mean", hybrid.Mixing((0.0,)))
    tensors, about = read_tokens(done.of(SAMPLE_MEAN))
    assert about["layers"] == [found.decided.layers[int(i)] for i in found.decided.chosen.layer]
    scores = test.parts.scores(0.0, fitted.length)
    torch.testing.assert_close(scores, tensors["map"], rtol=0, atol=1e-6, equal_nan=True)
    strong = (tensors["activations"].double() >= fitted.tau).any(0)
    assert strong[:3].all()  # the map is not v_c's everywhere
    assert not torch.allclose(scores[:, :3], tensors["activations"][:, :3], atol=1e-3)


def naive_hybrid(found: Refit, kind: str, alpha: float, unit: bool) -> dict[str, list[Any]]:
    """Per split and sample the scores [T, C], from the definition."""
    ((tokens, concepts, _),) = found.groups
    decided = found.decided
    scores: dict[str, list[Any]] = {}
    for split in ("cal", "test"):
        blocks = list(getattr(tokens, split).blind())
        values = [
            part.numpy().astype(np.float64) for block in blocks for part in block.values.split(block.offsets.diff().tolist(), 1)
        ]
        scores[split] = []
        for sample, activations in zip(values, naive_tokens(found, split), strict=True):
            made = np.full((sample.shape[1], len(ragged_world.CONCEPTS)), np.nan)
            for c in range(len(ragged_world.CONCEPTS)):
                layer = int(decided.chosen.layer[c])
                level = int(decided.chosen.level[layer, c])
                tau, v = float(decided.token_cutoffs[level, layer, c]), concepts.vectors[layer, c].numpy().astype(np.float64)
                strong = [e for e, s in zip(sample[layer], activations[layer, :, c], strict=True) if float(s) >= tau]
                h = v / np.linalg.norm(v) if unit else v
                if strong:
                    m = sum(strong) / len(strong)
                    h = alpha * h + (1 - alpha) * (m / np.linalg.norm(m) if unit else m)
                for t, e in enumerate(sample[layer]):
                    made[t, c] = e @ h / (np.linalg.norm(e) * np.linalg.norm(h) if kind == "cosine" else 1)
            scores[split].append(made)
    return scores


CLOSE = 1e-6
"""The command's scores are float32: one that equals its cutoff may lie beside it in float64."""


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [("superactivator-mean", "own"), ("superactivator", "own"), ("superactivator", "cosine"), ("max", "dot")]
)
def test_detection_and_token_f1_are_those_of_loops(
    name: str, kind: str, unit: bool, done: Done, registry: Any, harness: Any, tmp_path: Path
):
    alpha = 0.3
    flags = ["--unit"] if unit else []
    said = harness(
        "analyze",
        "hybrid",
        done.of(name),
        "-o",
        tmp_path / "a",
        "--cache-dir",
        done.cache,
        "--alphas",
        alpha,
        "--similarity",
        kind,
        *flags,
    )
    assert said.code == 0, said.err
    rows = {(row["metric"], row["concept"]): row for row in table(tmp_path / "a", "hybrid")}
    found = again(done, registry, name)
    own = {"superactivator-mean": "cosine", "superactivator": "dot", "max": "dot"}[name]
    scores = naive_hybrid(found, own if kind == "own" else kind, alpha, unit)
    for c, concept in enumerate(ragged_world.CONCEPTS[:3]):
        pooled = {split: [max(map(float, s[:, c]), default=-np.inf) for s in found_in] for split, found_in in scores.items()}
        labels = {split: [bool(one.labels[c]) for one in rows_of(split)] for split in scores}
        truth = {split: [one.truth[:, c] for one in rows_of(split)] for split in scores}
        inside = [
            float(x)
            for s, true in zip(scores["cal"], truth["cal"], strict=True)
            for x, t in zip(s[:, c], true, strict=True)
            if t == 1
        ]
        positive = [p for p, yes in zip(pooled["cal"], labels["cal"], strict=True) if yes and p > -np.inf]
        cutoffs = [oracle.quantile(positive if name == "max" else inside, level) for level in oracle.LEVELS]

        def detect(split: str, cutoff: float, pooled: Any = pooled) -> list[bool]:
            return [p >= cutoff - CLOSE for p in pooled[split]]

        level = oracle.first_best([oracle.f1(*oracle.count(detect("cal", cutoff), labels["cal"])) for cutoff in cutoffs])
        assert rows["f1", concept]["level"] == oracle.LEVELS[level]
        detected = {split: detect(split, cutoffs[level]) for split in scores}
        assert rows["f1", concept]["value"] == pytest.approx(oracle.f1(*oracle.count(detected["test"], labels["test"])))
        in_detected = [
            float(x)
            for s, true, yes in zip(scores["cal"], truth["cal"], detected["cal"], strict=True)
            for x, t in zip(s[:, c], true, strict=True)
            if t == 1 and yes
        ]
        map_cutoffs = [oracle.quantile(in_detected, level) for level in oracle.LEVELS]

        def mark(split: str, cutoff: float, detected: Any = detected, c: int = c) -> list[bool]:
            return [
                yes and float(x) >= cutoff - CLOSE
                for s, yes in zip(scores[split], detected[split], strict=True)
                for x in s[:, c]
            ]

        flat = {split: [int(t) for true in truth[split] for t in true] for split in scores}
        map_level = oracle.first_best([oracle.f1(*oracle.count(mark("cal", cutoff), flat["cal"])) for cutoff in map_cutoffs])
        assert rows["token_f1", concept]["level"] == oracle.LEVELS[map_level]
        assert rows["token_f1", concept]["value"] == pytest.approx(
            oracle.f1(*oracle.count(mark("test", map_cutoffs[map_level]), flat["test"]))
        )
    assert rows["f1", "hidden"]["value"] is None


def test_layer_groups_give_what_one_group_gives(done: Done, harness: Any, tmp_path: Path):
    found: dict[str, list[list[dict[str, Any]]]] = {"hybrid": [], "positives": [], "distributions": []}
    for room in (8_000_000_000, 10_000):
        out = tmp_path / f"out{room}"
        run = ("run", "--task", done.task, "--cache-dir", tmp_path / f"cache{room}", "--output", out, "--bootstrap", "5")
        assert harness(*run, "--method", "superactivator", "--cache-bytes", room).code == 0
        for what, tables in found.items():
            more = ("--alphas", "0,0.4,1") if what == "hybrid" else ()
            said = harness("analyze", what, out, "-o", out / what, "--cache-dir", tmp_path / f"cache{room}", *more)
            assert said.code == 0, said.err
            tables.append([{**row, "run_id": ""} for row in table(out / what, what)])
    for one, other in (pair for tables in found.values() for pair in zip(*tables, strict=True)):
        for key, value in one.items():  # 16 bit where room is short; a histogram of few tokens moves most
            room = 0.1 if key == "overlap" else 0.05
            assert other[key] == (pytest.approx(value, abs=room) if isinstance(value, float) else value), (key, one)


# --- figures


def source(name: str, scorer: bool = False, concepts: Sequence[str] = ("a",)) -> Source:
    choices = [{"concept": c, "layer": "0", "level": 0.1, "cutoff": 0.0, "cal_f1": 0.5} for c in concepts]
    run_id = hashlib.sha256(name.encode()).hexdigest()[:12]
    read = {"method": {"name": name, "concepts": None if scorer else "mean"}, "run_id": run_id, "choices": choices}
    return Source(Path(name), read, name)


def group(methods: int, concepts: int, layers: Sequence[str], long: bool = True) -> Group:
    """A group of made-up results, with names as long as they get."""
    names = [f"{'supercategory of things ' if long and i % 7 == 0 else 'concept'} {i}" for i in range(concepts)]
    labels = [
        ("superactivator-of-separators-per-cluster-" if long and i % 3 == 0 else "method-") + str(i) for i in range(methods)
    ]
    made = [source(label, concepts=names) for label in labels]
    made[0].read["task"] = {"positives": {name: {"test": 100 - i} for i, name in enumerate(names)}}
    made[0].read["backbone"] = {"sites": list(layers)}
    return Group("group", tuple(made))


def drawn_text(figure: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every text that is drawn, with its box in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    seen: dict[int, Any] = {}
    draw = Text.draw

    def noted(self: Any, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            seen[id(self)] = self
        draw(self, renderer)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    monkeypatch.setattr(Text, "draw", noted)
    canvas.draw()
    monkeypatch.setattr(Text, "draw", draw)
    return [(text, text.get_window_extent(canvas.get_renderer())) for text in seen.values()]


def readable(figure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fonts of 8 points, every text inside the figure, and no two on each other."""
    texts = drawn_text(figure, monkeypatch)
    assert texts
    width, height = figure.canvas.get_width_height()
    for text, box in texts:
        assert text.get_fontsize() >= 8, text
        assert box.x0 > -2, text
        assert box.y0 > -2, text
        assert box.x1 < width + 2, text
        assert box.y1 < height + 2, text
    for i, (text, box) in enumerate(texts):
        for other, far in texts[i + 1 :]:
            across = min(box.x1, far.x1) - max(box.x0, far.x0)
            down = min(box.y1, far.y1) - max(box.y0, far.y0)
            assert across < 1.5 or down < 1.5, (text, other)


def outside_the_axes(figure: Any) -> None:
    figure.canvas.draw()
    for legend in figure.legends:
        box = legend.get_window_extent()
        for axes in figure.axes:
            assert not box.overlaps(axes.get_window_extent()), "a legend lies on the data"


LEVELS = oracle.LEVELS


def rows_at(made: Group, keys: dict[str, Sequence[Any]], columns: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    from itertools import product

    g = np.random.default_rng(0)
    return [
        {**one.named, **dict(zip(keys, place, strict=True)), **columns(g)}
        for one in made.sources
        for place in product(*keys.values())
    ]


def spread(name: str) -> Callable[[Any], dict[str, Any]]:
    def columns(g: Any) -> dict[str, Any]:
        value = float(g.uniform(0.2, 0.9))
        return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1, "n": 5, "chosen": False}

    return columns


def all_pictures(made: Group) -> Iterator[figures.Picture]:
    """Every figure of every analysis, from made-up rows."""
    names, layers = list(made.concepts), made.layers
    rows = rows_at(made, {"layer": [*layers, "chosen"], "concept": ["macro", "weighted"]}, spread("value"))
    yield from pictures.layer_pictures(made, made.sources, rows, "f1")
    counts = rows_at(made, {"layer": ["chosen", *layers], "level": LEVELS}, lambda g: {"concepts": int(g.integers(0, 9))})
    yield from pictures.sparsity_pictures(made, made.sources, counts, LEVELS)
    rows = rows_at(made, {"level": [*LEVELS, None], "concept": [*names, "macro", "weighted"]}, spread("f1"))
    rows = [{**row, "chosen": row["level"] == 0.1} for row in rows]
    yield from pictures.level_pictures(made, made.sources, rows, LEVELS)
    rows = rows_at(made, {"layer": [*layers, "chosen"], "concept": [*names, "macro"]}, measures)
    rows = [{**row, "chosen": row["layer"] == layers[-1] and row["concept"] != "macro"} for row in rows]
    shapes = rows_at(
        Group("g", made.sources[:13]), {"layer": [layers[-1]], "concept": names, "low": np.linspace(-5, 4, 10)}, bins
    )
    shapes = [{**row, "high": row["low"] + 1} for row in shapes]
    yield from pictures.distribution_pictures(made, made.sources, rows, shapes)
    shares = rows_at(
        made,
        {"layer": [layers[-1]], "concept": [*names, "macro"]},
        lambda g: {**spread("share")(g), **spread("share_negative")(g)},
    )
    yield from pictures.positives_pictures(made, made.sources, [{**row, "chosen": True} for row in shares])
    alphas = [i / 10 for i in range(11)]
    rows = rows_at(
        made, {"alpha": alphas, "metric": ["f1", "token_f1"], "concept": [*names, "macro", "weighted"]}, spread("value")
    )
    yield from pictures.hybrid_pictures(made, made.sources, rows)


def measures(g: Any) -> dict[str, Any]:
    return {**{name: float(g.uniform(0, 3)) for name in background.MEASURES}, "reason": None, "background": 1.5}


def bins(g: Any) -> dict[str, Any]:
    return {"share_in": float(g.uniform(0, 0.2)), "share_out": float(g.uniform(0, 0.2))}


@pytest.mark.parametrize(
    ("methods", "concepts", "layers"),
    [
        (1, 1, ["3"]),
        (2, 6, [str(i) for i in range(12)]),
        (7, 29, [str(i) for i in range(40)]),
        (9, 44, [str(i) for i in range(24)]),
    ],
    ids=["one of each", "a task", "many layers", "many of each"],
)
def test_every_figure_is_readable(methods: int, concepts: int, layers: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "EACH", 2)
    names = []
    kinds = set()
    with figures.style():
        for picture in all_pictures(group(methods, concepts, layers)):
            names.append(picture.name)
            kind = picture.name.partition("-superactivator-of")[0].partition("-method")[0]
            if kind in kinds:  # one figure of a kind is enough
                continue
            kinds.add(kind)
            readable(picture.figure, monkeypatch)
            outside_the_axes(picture.figure)
            assert picture.figure.get_figwidth() <= figures.PAGE
            if concepts == 44 and picture.name.startswith("levels-superactivator"):
                assert picture.note is not None
                assert picture.note.startswith(
                    "40 of 44 concepts are shown, those with the most positive test samples; all are in levels.parquet"
                )
    assert len(set(names)) == len(names)


def test_what_many_methods_leave_out_is_said():
    with figures.style():
        found = {picture.name: picture.note for picture in all_pictures(group(14, 2, ["0", "1"], long=False))}
    by_layer = {name: note for name, note in found.items() if name.startswith("sparsity-by-layer-")}
    assert len(by_layer) == 12
    assert [note for note in by_layer.values() if note] == [
        "one figure per method, for the first 12; none for method-12, method-13"
    ]


def test_layers_of_several_streams_are_figures_of_their_own():
    made = group(2, 2, ["0", "1", "attention.0", "attention.1"], long=False)
    rows = rows_at(made, {"layer": [*made.layers, "chosen"], "concept": ["macro", "weighted"]}, spread("value"))
    with figures.style():
        found = {picture.name: picture.figure for picture in pictures.layer_pictures(made, made.sources, rows, "f1")}
    assert list(found) == [
        f"layers-{average}-{stream}" for average in ("weighted", "macro") for stream in ("residual", "attention")
    ]
    (axes,) = found["layers-macro-attention"].axes
    assert axes.get_xlabel() == "layer of the attention stream"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "chosen"]


def test_names_with_dollars_and_control_characters_are_drawn_as_plain_text(monkeypatch: pytest.MonkeyPatch):
    with figures.style():
        lines = [figures.Line("a $x^2$ \x1b[31m b", [0.1, 0.2]), figures.Line("$", [0.3, float("nan")])]
        figure = figures.curves(lines, figures.Axis("layer", "F1", ["0", "1"]))
        readable(figure, monkeypatch)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [r"a \$x^2\$ �[31m b", r"\$"]


def test_colours_have_markers_and_dashes_of_their_own():
    assert len(set(figures.COLORS)) == len(set(figures.MARKERS)) == len(set(map(str, figures.DASHES))) == len(figures.COLORS)


def test_the_files_of_every_analysis_are_whole_and_the_same_every_time(done: Done, harness: Any, tmp_path: Path):
    for what in ("layers", "sparsity", "levels", "distributions", "positives", "hybrid"):
        more = ("--cache-dir", done.cache) if what in ("distributions", "positives", "hybrid") else ()
        more = (*more, "--alphas", "0,1") if what == "hybrid" else more
        folders = [tmp_path / what / place for place in ("one", "two")]
        names = [done.of("superactivator"), done.of("superactivator-mean")]
        for folder in folders:
            said = harness("analyze", what, *names, "-o", folder, *more)
            assert said.code == 0, said.err
        first, second = ({p.relative_to(f): p.read_bytes() for p in sorted(f.rglob("*")) if p.is_file()} for f in folders)
        assert first == second
        stems = {path.stem for path in first if path.suffix == ".svg"}
        assert stems
        for path, content in first.items():
            assert content
            if path.suffix == ".svg":
                assert ET.fromstring(content).tag.endswith("svg")  # noqa: S314 - written here
            elif path.suffix in (".png", ".pdf"):
                assert content.startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
                assert path.stem in stems
        described = json.loads(next(content for path, content in first.items() if path.suffix == ".json"))
        assert {row["method"] for row in described["results"]} == {"superactivator", "superactivator-mean"}
        assert described["definition"]
        for name, columns in described["files"].items():
            assert pq.read_schema(next(folders[0].rglob(name))).names == columns


# --- groups


def test_results_of_other_data_or_another_backbone_are_never_mixed(done: Done, harness: Any, tmp_path: Path):
    out = tmp_path / "out"
    for options in ((), ("--limit", "10"), ("--layers", "1")):
        run = (
            "run",
            "--task",
            "toy",
            "--output",
            out,
            "--cache-dir",
            tmp_path / "cache",
            "--bootstrap",
            "0",
            "--method",
            "max",
        )
        assert harness(*run, "--guards", "off", *options).code == 0
    groups, left_out = collect([out, done.folder, out])
    assert not left_out
    assert [len(group.sources) for group in groups] == [7, 1, 1, 1]
    assert groups[0].name == "ragged-ragged"
    assert len({group.name for group in groups}) == 4
    said = harness("analyze", "layers", out, done.folder, "-o", tmp_path / "a", "--json")
    found = json.loads(said.out)
    assert [len({row["run_id"] for row in one["rows"]}) for one in found] == [6, 1, 1, 1]
    assert {path.parent.name for path in (tmp_path / "a").rglob("layers.parquet")} == {group.name for group in groups}
    assert all(Path(path).is_file() for one in found for path in one["written"])


def test_two_runs_of_a_method_are_told_apart_by_run_id(harness: Any, tmp_path: Path):
    for seed in (0, 1):
        run = ("run", "--task", "toy", "--limit", "12", "--output", tmp_path / "out", "--cache-dir", tmp_path / "cache")
        assert harness(*run, "--bootstrap", "0", "--guards", "off", "--method", "random", "--seed", seed).code == 0
    ((found,), _) = collect([tmp_path / "out"])
    assert [one.label for one in found.sources] == [f"random ({one.run_id[:6]})" for one in found.sources]
    said = harness("analyze", "levels", tmp_path / "out", "-o", tmp_path / "a")
    assert all(one.label in said.out for one in found.sources)


@pytest.mark.parametrize(("text", "name"), [("a/b", "a__b"), ("hf:x y", "hf_x_y"), ("..", "_"), ("", "_")])
def test_a_name_is_one_path_component(text: str, name: str):
    assert file_name(text) == name


# --- mistakes


def refused(said: Said) -> str:
    assert said.code == 2, said.out
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said.err
    return lines[0].removeprefix("error: ")


def test_a_folder_that_is_not_there(harness: Any, tmp_path: Path):
    assert refused(harness("analyze", "layers", "nowhere")) == (
        "no folder nowhere; give a result folder or a folder above results, such as `harness run` writes"
    )


def test_a_folder_without_results(harness: Any, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert refused(harness("analyze", "sparsity", "empty")) == (
        "no result in or below empty; run `harness run` first, or name its --output"
    )


def test_no_folder_at_all(harness: Any):
    assert "Missing argument 'RESULTS...'" in refused(harness("analyze", "layers"))


@pytest.mark.parametrize("what", ["layers", "distributions", "positives", "hybrid"])
def test_scorers_have_no_layers(what: str, done: Done, harness: Any):
    assert refused(harness("analyze", what, done.of("coin"))) == (
        "no method with layers among the results of ragged-ragged; coin score samples without tokens; "
        "choose results of methods with concepts, such as superactivator"
    )


@pytest.mark.parametrize("what", ["sparsity", "levels"])
def test_a_fixed_cutoff_has_no_levels(what: str, done: Done, harness: Any):
    assert refused(harness("analyze", what, done.of("coin"))) == (
        "no result of ragged-ragged has sparsity levels; choose results whose cutoffs were calibrated on cal"
    )


def test_a_metric_that_has_no_rows_at_fixed_layers(done: Done, harness: Any):
    said = refused(harness("analyze", "layers", done.folder, "--metric", "token_f1"))
    assert said.startswith("unknown metric 'token_f1' in the fixed-layer rows of ragged-ragged; there are: auroc, ")


@pytest.mark.parametrize("alphas", ["", "0,x", "1.5", "-0.1"])
def test_alphas_that_are_no_shares(alphas: str, done: Done, harness: Any):
    assert refused(harness("analyze", "hybrid", done.folder, "--alphas", alphas)) == (
        f"bad --alphas {alphas!r}; give numbers from 0 to 1 joined by commas, e.g. --alphas 0,0.5,1"
    )


def test_summaries_cannot_be_mixed(done: Done, harness: Any):
    assert refused(harness("analyze", "hybrid", done.of("summary"), "--cache-dir", done.cache)) == (
        "no result of ragged-ragged can be mixed; summary: fitted on summaries, whose tokens are no super-activators; "
        "choose a method fitted on tokens"
    )


@dataclass(frozen=True)
class Distances:
    """A concept method whose activations are no cosines and no dot products; without vectors where `bare`."""

    bare: bool = False

    def fit(self, train: Any) -> Any:
        return replace_vectors(torch.ones(len(train.sites), len(train.concepts), train.width), self.bare)


def replace_vectors(directions: torch.Tensor, bare: bool) -> Any:
    class Fitted:
        vectors = None if bare else directions

        def activate(self, block: TokenEmbeddings) -> torch.Tensor:
            return -torch.cdist(block.values, directions)

    return Fitted()


@hookimpl
def harness_register_concept_methods() -> list[Entry]:
    """Found when this file is loaded as a plugin."""
    return [Entry("distances", f"{__name__}:Distances", "minus the distance to ones")]


@pytest.mark.parametrize(
    ("concepts", "said"),
    [
        (
            "distances",
            "the activations of method 'distances+max' are neither cosines nor dot products with its vectors; result ",
        ),
        (
            "distances:bare=true",
            "the concepts of method 'distances:bare=true+max' are no directions, so there is no v_c to mix; result ",
        ),
    ],
)
def test_concepts_that_are_no_directions_cannot_be_mixed(concepts: str, said: str, harness: Any, tmp_path: Path):
    plugin = ("-p", __name__)
    run = ("run", *plugin, "--task", "toy", "--limit", "12", "--cache-dir", "cache", "--output", "out", "--bootstrap", "0")
    assert harness(*run, "--concept-method", concepts, "--detector", "max").code == 0
    message = refused(harness("analyze", "hybrid", *plugin, "out", "--cache-dir", "cache"))
    assert message.startswith(said)
    assert (
        message.endswith("choose a method with such vectors, such as superactivator-mean")
        or "choose a method with vectors" in message
    )
    assert harness(*run, "--method", "max").code == 0
    beside = harness("analyze", "hybrid", *plugin, "out", "--cache-dir", "cache", "--alphas", "0,1")
    assert beside.code == 0, beside.err
    assert f"note: {said}" in beside.err


def test_an_unfinished_result_is_an_error_by_itself_and_a_note_among_others(harness: Any, tmp_path: Path):
    for name in ("max", "mean"):
        run = ("run", "--task", "toy", "--limit", "12", "--cache-dir", "cache", "--output", "out", "--bootstrap", "0")
        assert harness(*run, "--guards", "off", "--method", name).code == 0
    (folder,) = (path.parent for path in Path("out").rglob("mean/*/result.json"))
    (folder / "STATUS").unlink()
    assert refused(harness("analyze", "layers", folder)).startswith(f"no complete result in {folder}; STATUS is missing")
    said = harness("analyze", "layers", "out")
    assert said.code == 0
    assert f"note: no complete result in {folder}" in said.err


def test_a_result_without_its_parquet_file(harness: Any, done: Done, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(done.of("max"), copy)
    (copy / "per_sample.parquet").write_bytes(b"PAR1 no")
    said = refused(harness("analyze", "levels", copy))
    assert said.startswith(f"cannot read {copy / 'per_sample.parquet'}; ")
    assert said.endswith("; run again")
    (copy / "calibration.parquet").unlink()
    assert refused(harness("analyze", "sparsity", copy)).startswith(f"cannot read {copy / 'calibration.parquet'}; ")


@pytest.mark.parametrize("what", ["distributions", "positives", "hybrid"])
def test_data_that_changed_since_the_result(what: str, done: Done, harness: Any, tmp_path: Path):
    task = ragged_world.write_task(tmp_path)
    run = (
        "run",
        "--task",
        task,
        "--method",
        "superactivator-mean",
        "--cache-dir",
        done.cache,
        "--output",
        "out",
        "--bootstrap",
        "0",
    )
    assert harness(*run).code == 0
    ragged_world.write_task(tmp_path, options="mixed: 3")
    (folder,) = (path.parent for path in Path("out").rglob("result.json"))
    assert refused(harness("analyze", what, "out", "--cache-dir", done.cache)) == (
        f"the data of task 'ragged' changed since result {folder} was made; run again"
    )


def test_a_choice_that_is_no_longer_the_results_is_said(done: Done, harness: Any, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(done.of("superactivator-mean"), copy)
    read = json.loads((copy / "result.json").read_text())
    read["choices"][1]["cutoff"] += 1
    (copy / "result.json").write_text(json.dumps(read))
    said = harness("analyze", "positives", copy, "--cache-dir", done.cache)
    assert said.code == 0
    assert "note: superactivator-mean: fitted again, cal chooses otherwise for b; the new choice is used" in said.err


def test_without_matplotlib_the_data_files_are_written(
    done: Done, harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = harness("analyze", "layers", done.folder, "-o", tmp_path / "a")
    assert refused(said) == (
        f"figures need matplotlib, which is not installed; the data files are in {tmp_path / 'a'}; "
        f"run: pip install 'concept-harness[pictures]'"
    )
    assert "superactivator" in said.out
    assert {path.name for path in (tmp_path / "a").rglob("*.*")} == {"layers.parquet", "layers.json"}


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(done: Done, harness: Any, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert refused(harness("analyze", "hybrid", done.folder, "-o", tmp_path / "file" / "a")).startswith("cannot write to ")


@pytest.mark.parametrize("what", ["distributions", "sparsity", "layers", "levels", "positives", "hybrid"])
def test_the_help_of_every_analysis_has_an_example(what: str, harness: Any):
    said = harness("analyze", what, "--help")
    assert said.code == 0
    assert f"harness analyze {what} results/clevr" in said.out
    assert "[default: analysis/<this command>]" in " ".join(said.out.split())


def test_files_go_to_a_folder_of_the_command_by_default(done: Done, harness: Any, tmp_path: Path):
    assert harness("analyze", "sparsity", done.folder).code == 0
    assert (tmp_path / "analysis" / "sparsity" / "ragged-ragged" / "sparsity.parquet").is_file()


def test_a_group_without_usable_results_does_not_stop_the_others(done: Done, harness: Any, tmp_path: Path):
    assert (
        harness(
            "run",
            "--task",
            "toy",
            "--limit",
            "12",
            "--cache-dir",
            "cache",
            "--output",
            "out",
            "--bootstrap",
            "0",
            "--method",
            "coin",
        ).code
        == 0
    )
    said = harness("analyze", "layers", "out", done.folder)
    assert said.code == 0
    assert "note: no method with layers among the results of toy-toy" in said.err
