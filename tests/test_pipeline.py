"""The whole pipe on small worlds: decisions and metrics by hand, no leak, no dependence on batches, blocks or storage, resumption."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow.parquet as pq
import pytest
import ragged_world
import torch
from conftest import quiet
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score
from small_worlds import COSINE, DETECTION, METHODS, UNNAMED, Measured

from harness import pipeline
from harness.errors import HarnessError
from harness.registry import Registry
from harness.types import Method, Result, RunSpec

every_detection = pytest.mark.parametrize("method", DETECTION, ids=lambda m: f"{m.detector}-{m.concepts}-{m.fit_on}")
Spec = Callable[..., RunSpec]
RECIPES = (METHODS[1], METHODS[6], METHODS[8], METHODS[11])
"""The super-activator with its own map, max, mean, summary."""


def rows_of(result: Result, name: str = "per_sample") -> list[dict[str, Any]]:
    assert result.path is not None
    return pq.read_table(result.path / f"{name}.parquet").to_pylist()


def bytes_of(result: Result, name: str = "per_sample") -> bytes:
    assert result.path is not None
    return (result.path / f"{name}.parquet").read_bytes()


def test_a_ceiling_is_no_lower_than_any_choice_on_cal_and_its_recipe_says_what_it_is(
    run_toy: Callable[..., list[Result]],
) -> None:
    honest, ceiling = run_toy("superactivator", "oracle")
    assert ceiling.method.choose_on == "test"
    for row in honest.scores:
        other = ceiling.score(row.metric, row.layer, row.concept) if row.metric == "f1" else None
        if other is not None and row.value is not None:
            assert other.value is not None
            assert other.value >= row.value


# --- by hand


@every_detection
def test_every_sample_has_the_score_decision_and_label_by_hand(world: Measured, method: Method) -> None:
    expected, rows = world.expected(method), world.table(method, "per_sample")
    at = iter(rows)
    for split, scores in (("cal", expected.cal), ("test", expected.test)):
        decisions = [expected.decisions(split, c) for c in range(len(world.concepts))]
        mine = world.rows[method.fit_on][split]
        for s, sample_id in enumerate(mine.ids):
            for c, concept in enumerate(world.concepts):
                row = next(at)
                assert (row["split"], row["id"], row["concept"]) == (split, sample_id, concept)
                assert row["label"] == bool(mine.labels[s][c])
                assert row["detected"] == decisions[c][s]
                if expected.layer[c] is not None:
                    score = scores[s][expected.layer[c]][c]
                    assert row["layer"] == world.layers[expected.layer[c]]
                    assert row["score"] == (score if np.isfinite(score) else None)
    assert next(at, None) is None


@every_detection
def test_every_unit_without_a_name_is_matched_as_by_hand_and_the_result_names_it(world: Measured, method: Method) -> None:
    choices, units = world.choices(method), world.of(method).units
    if method.concepts not in UNNAMED:
        assert units is None
        assert all(choice.unit is None for choice in choices)
        return
    assert units is not None
    for c, choice in enumerate(choices):
        assert choice.unit == (None if choice.layer is None else units[world.layers.index(choice.layer)][c])
    rows = {(row["layer"], row["concept"]): row for row in world.table(method, "match")}
    for layer, row in zip(world.layers, units, strict=True):
        assert [rows[layer, concept]["unit"] for concept in world.concepts] == row


def scikit(true: np.ndarray[Any, Any], scores: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """Each metric where it is defined; a sample that scores -inf ranks last."""
    finite = scores[np.isfinite(scores)]
    scores = np.where(np.isfinite(scores), scores, finite.min() - 1 if len(finite) else 0.0)
    return {
        "f1": f1_score(true, found),
        "precision": precision_score(true, found) if found.any() else None,
        "recall": recall_score(true, found),
        "average_precision": average_precision_score(true, scores),
        "auroc": roc_auc_score(true, scores) if not true.all() else None,
    }


@every_detection
def test_scikit_learn_gives_the_same_metrics_at_the_chosen_layer_and_at_every_layer(world: Measured, method: Method) -> None:
    expected, result = world.expected(method), world.results[method.name]
    labels = np.array(world.rows[method.fit_on]["test"].labels)
    every = np.array(expected.test)  # S, L, C
    for layer in ["chosen", *world.layers]:
        for c, concept in enumerate(world.concepts):
            place = expected.layer[c] if layer == "chosen" else world.layers.index(layer)
            level = None if place is None else expected.level[place][c]
            if place is None or level is None:
                for metric in ("f1", "precision", "recall", "average_precision", "auroc"):
                    row = result.score(metric, layer, concept)
                    assert row is not None
                    assert row.value is None
                    assert row.reason
                continue
            scores = every[:, place, c]
            found = np.array([oracle.reaches(x, expected.cutoffs[level][place][c]) for x in scores])
            for metric, wanted in scikit(labels[:, c], scores, found).items():
                row = result.score(metric, layer, concept)
                assert row is not None
                assert row.value == (None if wanted is None else pytest.approx(wanted, abs=1e-9)), (metric, layer, concept)
                assert row.n == labels[:, c].sum()


@every_detection
def test_macro_is_the_plain_mean_and_weighted_the_mean_by_test_positives(world: Measured, method: Method) -> None:
    result = world.results[method.name]
    positives = np.array(world.rows[method.fit_on]["test"].labels).sum(0)
    for metric in ("f1", "precision", "recall", "average_precision", "auroc"):
        rows = [result.score(metric, concept=concept) for concept in world.concepts]
        pairs = [(row.value, n) for row, n in zip(rows, positives, strict=True) if row is not None and row.value is not None]
        macro, weighted = result.score(metric, concept="macro"), result.score(metric, concept="weighted")
        assert macro is not None
        assert weighted is not None
        assert macro.value == pytest.approx(sum(value for value, _ in pairs) / len(pairs), abs=1e-12)
        assert weighted.value == pytest.approx(sum(v * n for v, n in pairs) / sum(n for _, n in pairs), abs=1e-12)
        assert (macro.n, weighted.n) == (len(pairs), len(pairs))


@every_detection
def test_from_raw_values_to_decisions_float64_throughout_differs_only_at_the_cutoff(world: Measured, method: Method) -> None:
    """Nothing but the fitted vectors is taken from the pipe: normalisation, activations and all that follows are made again."""
    rows, seen = world.rows[method.fit_on], world.of(method)
    vectors = seen.vectors.astype(np.float64)
    activations = {}
    for split in ("cal", "test"):
        activations[split] = [
            np.einsum("ltd,lcd->ltc", e, vectors) for e in oracle.normalise("train", rows["train"], rows[split])
        ]
        if method.concepts in COSINE:
            for a, e in zip(activations[split], oracle.normalise("train", rows["train"], rows[split]), strict=True):
                a /= np.linalg.norm(e, axis=-1)[..., None] * np.linalg.norm(vectors, axis=-1)[:, None]
    exact = oracle.detect(method.detector or "", activations, rows, world.spec.seed)
    got = {(row["split"], row["id"], row["concept"]): row for row in world.table(method, "per_sample")}
    close = 0
    for c, choice in enumerate(world.choices(method)):
        assert choice.layer == (None if exact.layer[c] is None else world.layers[exact.layer[c]])
        if choice.layer is None:
            continue
        assert choice.cutoff == pytest.approx(exact.cutoff(c), rel=1e-5, abs=1e-5)
        for split, scores in (("cal", exact.cal), ("test", exact.test)):
            for name, sample, found in zip(rows[split].ids, scores, exact.decisions(split, c), strict=True):
                if got[split, name, choice.concept]["detected"] != found:
                    assert abs(sample[exact.layer[c]][c] - exact.cutoff(c)) < 1e-5  # type: ignore[operator, index]
                    close += 1
    assert close <= 2


def test_a_single_layer_run_gives_the_rows_that_the_full_run_gives_at_that_layer(run_toy: Callable[..., list[Result]]) -> None:
    (full,) = run_toy("superactivator")
    (alone,) = run_toy("superactivator", layers="1")
    for metric in ("f1", "precision", "recall", "average_precision", "auroc"):
        for concept in ("circle", "square", "star", "macro", "weighted"):
            wanted, got = full.score(metric, "1", concept), alone.score(metric, "chosen", concept)
            assert wanted is not None
            assert got is not None
            assert got.value == pytest.approx(wanted.value, abs=1e-6)


def test_the_toy_world_shows_the_finding_it_was_made_for(run_toy: Callable[..., list[Result]]) -> None:
    by_name = {
        result.method.name: result.score("f1") for result in run_toy("superactivator", "mean", "last", "random", layers="last")
    }
    values = {name: row.value for name, row in by_name.items() if row is not None and row.value is not None}
    assert values["superactivator"] > 0.95
    assert values["superactivator"] > max(values["mean"], values["last"], values["random"]) + 0.03


@pytest.mark.parametrize("how", ["none", "standardize"])
def test_the_other_normalisations_are_what_they_say(how: str, make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    spec = make_spec(ragged_world.write_task(tmp_path), "ragged", RECIPES[:1], normalization=how)
    bench = pipeline.prepare(spec, registry)
    bench.plan.groups[0].fill(quiet)
    tokens = bench.plan.groups[0].open(summaries=False)
    rows = {
        split: oracle.Rows([one.id for one in made], [], [], [one.values for one in made])
        for split in ("train", "cal")
        for made in [ragged_world.made(split, 0)]
    }
    got = np.concatenate([block.values.numpy() for block in tokens.cal], 1)
    wanted = np.concatenate(oracle.normalise(how, rows["train"], rows["cal"]), 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-6)


def test_dividing_by_one_scalar_changes_no_decision(
    run_toy: Callable[..., list[Result]], make_spec: Spec, registry: Registry
) -> None:
    """A bias-free separator scales with its tokens; the paper's scale is a convention."""
    from harness import embed

    before = run_toy("superactivator", "max", layers="2")
    original = embed.normalization

    def doubled(how: str, moments: Any) -> embed.Affine:
        made = original(how, moments)
        return embed.Affine(made.centre, made.scale * 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "normalization", doubled)
        after = run_toy("superactivator", "max", layers="2", seed=0, output=make_spec().output / "doubled")
    for one, two in zip(before, after, strict=True):
        assert [row["detected"] for row in rows_of(one)] == [row["detected"] for row in rows_of(two)]


# --- nothing of test decides


def vectors_of(spec: RunSpec, registry: Registry) -> list[torch.Tensor]:
    bench = pipeline.prepare(spec, registry)
    bench.plan.groups[0].fill(quiet)
    return [
        parts.concepts.fit(bench.plan.groups[0].open(parts.method.fit_on == "summary").train).vectors
        for parts in bench.parts
        if parts.concepts is not None
    ]


def test_permuting_the_test_labels_changes_no_cutoff_level_layer_vector_or_map_cutoff(
    make_spec: Spec, registry: Registry, tmp_path: Path
) -> None:
    methods = (*METHODS[:2], *METHODS[3:4], METHODS[6], METHODS[10], METHODS[11])
    (tmp_path / "plain").mkdir()
    (tmp_path / "mixed").mkdir()
    plain = make_spec(ragged_world.write_task(tmp_path / "plain"), "ragged", methods)
    other = make_spec(ragged_world.write_task(tmp_path / "mixed", options="mixed: 1"), "ragged", methods)
    before, after = pipeline.run(plain, registry, quiet), pipeline.run(other, registry, quiet)
    moved = 0
    for one, two in zip(before, after, strict=True):
        assert bytes_of(one, "calibration") == bytes_of(two, "calibration")
        assert one.choices == two.choices
        for a, b in zip(rows_of(one), rows_of(two), strict=True):
            assert {**a, "label": None} == {**b, "label": None}
            moved += a["label"] != b["label"]
        assert one.score("f1") != two.score("f1")
    assert moved
    for a, b in zip(vectors_of(plain, registry), vectors_of(other, registry), strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_a_detector_and_a_localizer_see_labels_and_truth_of_train_alone(
    make_spec: Spec, registry: Registry, tmp_path: Path
) -> None:
    nosy = ragged_world.Nosy
    nosy.seen.clear()
    method = Method("nosy", concepts="linear", detector="nosy", localizer="nosy")
    pipeline.run(make_spec(ragged_world.write_task(tmp_path), "ragged", (method,)), registry, quiet)
    by_split: dict[str, list[bool]] = {}
    for split, labels, truth in nosy.seen:
        by_split.setdefault(split, []).append(labels is None and truth is None)
    assert set(by_split) == {"train", "cal", "test"}
    assert not any(by_split["train"])
    assert all(by_split["cal"])
    assert all(by_split["test"])


# --- batches, blocks and storage


TWO = "2,3"


@pytest.fixture(scope="module")
def plain(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Two layers of the toy task with the defaults."""
    folder = tmp_path_factory.mktemp("plain")
    spec = RunSpec("toy", "toy", RECIPES, cache_dir=folder / "cache", output=folder / "out", bootstrap=0, layers=TWO)
    return pipeline.run(spec, registry, quiet)


def compare(before: list[Result], after: list[Result], tolerance: float, few: int) -> None:
    """Choices are alike and decisions equal, except those nearer to the cutoff than the tolerance: few, and counted."""
    for one, two in zip(before, after, strict=True):
        cutoffs = {choice.concept: choice.cutoff or 0.0 for choice in one.choices}
        assert [(c.layer, c.level) for c in one.choices] == [(c.layer, c.level) for c in two.choices]
        for a, b in zip(one.choices, two.choices, strict=True):
            assert b.cutoff == pytest.approx(a.cutoff, abs=tolerance)
        flipped = 0
        for a, b in zip(rows_of(one), rows_of(two), strict=True):
            assert (a["id"], a["concept"]) == (b["id"], b["concept"])
            assert b["score"] == pytest.approx(a["score"], abs=tolerance)
            if a["detected"] != b["detected"]:
                assert abs(a["score"] - cutoffs[a["concept"]]) <= 2 * tolerance
                flipped += 1
        assert flipped <= few, f"{one.method.name}: {flipped} decisions at the cutoff"
        for name in ("token_f1", "token_iou", "token_average_precision"):
            wanted, got = one.score(name), two.score(name)
            assert (wanted is None) == (got is None)
            if wanted is not None and got is not None:
                assert got.value == pytest.approx(wanted.value, abs=max(50 * tolerance, 1e-6))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1},
        {"batch_size": 7},
        {"batch_size": 16, "block_tokens": 64},
        {"block_tokens": 1},
        {"cache_bytes": 0, "block_tokens": 256, "batch_size": 7},
    ],
    ids=str,
)
def test_batch_size_block_size_and_caching_change_no_decision(
    changes: dict[str, int], plain: list[Result], make_spec: Spec, registry: Registry
) -> None:
    after = pipeline.run(make_spec(methods=RECIPES, bootstrap=0, layers=TWO, **changes), registry, quiet)
    compare(plain, after, tolerance=1e-5, few=0)
    assert after[0].provenance["storage"] == ("none" if "cache_bytes" in changes else "float32")


HALF, QUARTER = 1_300_000, 350_000
"""Bytes: four layers of the toy task fit the first in 16 bits and one group, and the second one layer at a time."""


def test_sixteen_bit_storage_is_said_and_moves_only_decisions_at_the_cutoff(
    plain: list[Result], make_spec: Spec, registry: Registry
) -> None:
    after = pipeline.run(make_spec(methods=RECIPES, bootstrap=0, layers=TWO, cache_bytes=HALF // 2), registry, quiet)
    assert after[0].provenance["storage"] == "float16"
    compare(plain, after, tolerance=4e-3, few=3)


def test_several_layer_groups_give_what_one_group_gives(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    specs = [
        make_spec(methods=RECIPES[::3], bootstrap=0, cache_bytes=size, cache_dir=tmp_path / str(size))
        for size in (HALF, QUARTER)
    ]
    assert [len(pipeline.prepare(spec, registry).plan.groups) for spec in specs] == [1, 4]
    one, four = (pipeline.run(spec, registry, quiet) for spec in specs)
    assert {result.provenance["storage"] for result in (*one, *four)} == {"float16"}
    assert [results[0].provenance["samples embedded"] for results in (one, four)] == [280, 5 * 280]  # the chosen layer again
    compare(one, four, tolerance=1e-6, few=0)


# --- the cache


def test_a_second_run_embeds_nothing_and_repeats_every_byte(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    spec = make_spec(ragged_world.write_task(tmp_path), "ragged", RECIPES)
    first = pipeline.run(spec, registry, quiet)
    before = [(bytes_of(result), bytes_of(result, "calibration"), result.scores) for result in first]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged_world.Ragged, "forward", None)
        again = pipeline.run(spec, registry, quiet)
    assert first[0].provenance["samples embedded"] == sum(ragged_world.SIZES.values())
    assert again[0].provenance["samples embedded"] == 0
    assert [(bytes_of(result), bytes_of(result, "calibration"), result.scores) for result in again] == before


def test_a_second_method_reads_what_the_first_one_stored(run_ragged: Callable[..., list[Result]]) -> None:
    (first,) = run_ragged("superactivator")
    (second,) = run_ragged("summary")
    assert (first.provenance["samples embedded"], second.provenance["samples embedded"]) == (114, 0)


def test_a_method_gives_the_same_alone_and_beside_others(run_ragged: Callable[..., list[Result]]) -> None:
    """Its numbers come from its own arrays, whatever else runs in the same pass."""
    (alone,) = run_ragged("max")
    wanted = rows_of(alone), alone.choices, alone.scores
    beside = next(result for result in run_ragged("superactivator", "max", "summary", "coin") if result.method.name == "max")
    assert (rows_of(beside), beside.choices, beside.scores) == wanted


def test_no_cache_stores_nothing(run_ragged: Callable[..., list[Result]], tmp_path: Path) -> None:
    run_ragged("max", cache_bytes=0)
    assert list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("*.safetensors"))


KILLED = """
import sys
sys.path[:0] = [{tests!r}]
from contextlib import contextmanager
from pathlib import Path
from harness import pipeline
from harness.registry import load
from harness.types import Method, RunSpec

@contextmanager
def quiet(what, total, unit):
    yield lambda n: None

method = Method("max linear direct", concepts="linear", detector="max", localizer="direct")
spec = RunSpec({task!r}, "ragged:die_after=5", (method,), bootstrap=0, batch_size=4, block_tokens=40,
               cache_dir=Path({folder!r}) / "cache", output=Path({folder!r}) / "out")
pipeline.run(spec, load(["ragged_world"]), quiet)
"""


def test_a_run_killed_while_embedding_goes_on_where_it_stopped(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    task = ragged_world.write_task(tmp_path)
    script = KILLED.format(tests=str(Path(__file__).parent), task=task, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list((tmp_path / "out").rglob("STATUS"))
    method = Method("max linear direct", concepts="linear", detector="max", localizer="direct")
    spec = make_spec(task, "ragged", (method,), bootstrap=0, batch_size=4, block_tokens=40)
    bench = pipeline.prepare(spec, registry)
    total = sum(ragged_world.SIZES.values())
    assert 0 < bench.plan.missing < total
    (resumed,) = pipeline.run(spec, registry, quiet)
    assert resumed.provenance["samples embedded"] == bench.plan.missing
    (clean,) = pipeline.run(replace(spec, cache_dir=tmp_path / "clean", output=tmp_path / "clean"), registry, quiet)
    assert clean.provenance["samples embedded"] == total
    assert bytes_of(resumed) == bytes_of(clean)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".")]


SIXTEEN = 25_000
"""Bytes into which the ragged world fits in 16 bits only."""


def test_a_value_beyond_float16_ends_in_bfloat16_with_a_note(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    task = ragged_world.write_task(tmp_path)
    spec = make_spec(task, "ragged:big=70000.0", RECIPES[:1], cache_bytes=SIXTEEN)
    (result,) = pipeline.run(spec, registry, quiet)
    assert result.provenance["storage"] == "bfloat16"
    assert "float16" in result.notes["storage"]
    (small,) = pipeline.run(make_spec(task, "ragged", RECIPES[:1], cache_bytes=SIXTEEN), registry, quiet)
    assert small.provenance["storage"] == "float16"
    assert "storage" not in small.notes
    (roomy,) = pipeline.run(make_spec(task, "ragged:big=70000.0", RECIPES[:1]), registry, quiet)
    assert roomy.provenance["storage"] == "float32"
    assert "storage" not in roomy.notes


def test_a_second_run_after_an_overflow_makes_no_forward_pass_either(
    make_spec: Spec, registry: Registry, tmp_path: Path
) -> None:
    spec = make_spec(ragged_world.write_task(tmp_path), "ragged:big=70000.0", RECIPES[:1], cache_bytes=SIXTEEN)
    (first,) = pipeline.run(spec, registry, quiet)
    calls = []
    kind = ragged_world.Ragged
    forward = kind.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", lambda self, *given: calls.append(1) or forward(self, *given))
        (second,) = pipeline.run(spec, registry, quiet)
    assert rows_of(first) == rows_of(second)
    assert calls == []


# --- what is refused, noted and written


def test_a_task_without_annotated_tokens_refuses_token_methods_in_one_line_that_names_another(
    make_spec: Spec, registry: Registry, tmp_path: Path
) -> None:
    task = ragged_world.write_task(tmp_path, options="annotated: false")
    methods = registry.methods()
    with pytest.raises(HarnessError, match="annotated tokens") as caught:
        pipeline.run(make_spec(task, "ragged", (methods["superactivator"], methods["summary"])), registry, quiet)
    assert "\n" not in str(caught.value)
    assert "summary" in str(caught.value)
    (result,) = pipeline.run(make_spec(task, "ragged", (methods["summary"],)), registry, quiet)
    row = result.score("f1")
    assert row is not None
    assert row.value is not None


@pytest.mark.parametrize("world", ["ragged"], indirect=True)
def test_what_was_left_out_is_counted_in_the_result(world: Measured) -> None:
    notes, splits = next(iter(world.results.values())).notes, world.rows["tokens"]
    for split, rows in splits.items():
        empty = [name for name, values in zip(rows.ids, rows.values, strict=True) if values.shape[1] == 0]
        assert notes[f"without tokens in {split}, scored -inf"] == {"count": len(empty), "ids": empty[:10]}
        made = ragged_world.made(split, world.spec.seed)
        lost = {
            concept: sum(one.regions is not None and bool(one.labels[c]) and not (one.truth[:, c] == 1).any() for one in made)
            for c, concept in enumerate(world.concepts)
        }
        assert notes[f"annotated positives without a token in {split}, detection only"] == {k: n for k, n in lost.items() if n}


def test_a_fixed_scorer_is_cut_at_one_half_has_no_level_and_counts_its_silence(
    make_spec: Spec, registry: Registry, tmp_path: Path
) -> None:
    method = Method("hints", scorer="hints:on=fixed")
    (result,) = pipeline.run(make_spec(ragged_world.write_task(tmp_path), "ragged", (method,)), registry, quiet)
    hints, test = ragged_world.Hints("fixed"), ragged_world.made("test", 0)
    silent = sum(np.isnan(hints.one(one.id, concept)) for one in test for concept in ragged_world.CONCEPTS)
    assert silent > 0
    assert result.notes["no answer"] == silent
    assert [(c.layer, c.level, c.cutoff) for c in result.choices] == [(None, None, 0.5)] * 4
    for c, concept in enumerate(ragged_world.CONCEPTS):
        found = [hints.one(one.id, concept) >= 0.5 for one in test]
        row = result.score("f1", None, concept)
        assert row is not None
        assert row.layer is None
        assert row.value == pytest.approx(f1_score([one.labels[c] for one in test], found), abs=1e-12)
    assert result.provenance["samples embedded"] == 0


def test_a_sample_calibrated_scorer_goes_through_the_same_levels(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    method = Method("hints", scorer="hints")
    (result,) = pipeline.run(make_spec(ragged_world.write_task(tmp_path), "ragged", (method,)), registry, quiet)
    hints = ragged_world.Hints()
    rows = {
        split: oracle.Rows([one.id for one in made], [one.labels for one in made], [np.zeros((1, 4), np.int8)] * len(made), [])
        for split in ("cal", "test")
        for made in [ragged_world.made(split, 0)]
    }
    scores = {
        split: [np.array([[[hints.one(name, concept) for concept in ragged_world.CONCEPTS]]]) for name in rows[split].ids]
        for split in rows
    }
    expected = oracle.detect("max", scores, rows, 0)
    for c, choice in enumerate(result.choices):
        assert choice.layer is None
        assert choice.level == oracle.LEVELS[expected.level[0][c]]  # type: ignore[index]
        assert choice.cutoff == pytest.approx(expected.cutoff(c), abs=1e-12)
        labels = [one.labels[c] for one in ragged_world.made("test", 0)]
        row = result.score("f1", None, ragged_world.CONCEPTS[c])
        assert row is not None
        assert row.value == pytest.approx(f1_score(labels, expected.decisions("test", c)), abs=1e-12)


def test_always_yes_scores_two_p_over_one_plus_p(run_toy: Callable[..., list[Result]]) -> None:
    (result,) = run_toy("always-yes")
    for choice in result.choices:
        row = result.score("f1", None, choice.concept)
        assert row is not None
        prevalence = row.n / 80
        assert row.value == pytest.approx(2 * prevalence / (1 + prevalence), abs=1e-12)


def test_per_sample_scores_are_on_disk_before_metrics_are_computed(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    spec = make_spec(ragged_world.write_task(tmp_path), "ragged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.publish.score", None)
        with pytest.raises(TypeError):
            pipeline.run(spec, registry, quiet)
    (folder,) = {path.parent for path in spec.output.rglob("*.parquet")}
    assert (folder / "per_sample.parquet").is_file()
    assert not (folder / "STATUS").exists()
    (result,) = pipeline.run(spec, registry, quiet)
    assert result.path == folder
    assert (folder / "STATUS").read_text() == "complete"


def test_an_unknown_normalisation_is_one_line_with_the_nearest(make_spec: Spec, registry: Registry) -> None:
    with pytest.raises(HarnessError, match="unknown normalization 'trian' in --normalization; did you mean train"):
        pipeline.prepare(make_spec(normalization="trian"), registry)


def test_a_backbone_of_another_modality_is_refused(make_spec: Spec, registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "texts.yaml"
    path.write_text("task: texts\nmodality: text\ndataset: {name: toy}\n")
    with pytest.raises(HarnessError, match="task 'texts' has modality 'text'; backbone 'toy' takes 'tokens'"):
        pipeline.prepare(make_spec(str(path)), registry)
