"""f_c against the detector's own scores, perturbation and curves against loops, and attribution from end to end on tiny random models."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from harness import explain, pipeline
from harness.api import HarnessError, Method, segment_max
from harness.cli import main
from harness.explain import SampleProbe, curves, pairs, price
from harness.registry import Registry
from harness.results import read_tokens
from harness.tasks import load_task
from harness.testing import MadeUpModel, made_up_probe
from harness.types import Result, RunSpec

WORDS = ("[PAD]", "[MASK]", "glad", "sad", *(f"w{i}" for i in range(20)))
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CHEAP = {
    "lime": "lime:masks=12",
    "rise": "rise:masks=12",
    "kernel-shap": "kernel-shap:masks=6",
    "occlusion": "occlusion",
    "shap-iq": "shap-iq:budget=8",
    "integrated-gradients": "integrated-gradients:steps=3",
    "saliency": "saliency",
    "input-x-gradient": "input-x-gradient",
    "grad-cam": "grad-cam",
    "fullgrad": "fullgrad",
    "mfaba": "mfaba:steps=2",
}
EXPLAINED = {
    **CHEAP,
    **{f"{name}-superactivator": f"{reference}:vector=superactivator" for name, reference in CHEAP.items()},
}


def method(name: str, localizer: str, **more: Any) -> Method:
    return Method(name, "", "linear", "superactivator", localizer, **more)


ALL = (
    *(method(name, localizer) for name, localizer in EXPLAINED.items()),
    *(method(f"explained-{name}", name, localize_on="explained") for name in ("direct", "superactivator", "noise")),
)


def scrambled(model: Any, folder: Path) -> Path:
    """The model saved, away from its small initial weights."""
    g = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=g)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A vision model with four patches, a text model with a mask token, and one without."""
    root = tmp_path_factory.mktemp("models")
    vision = tf.Dinov2Config(**SHAPE, mlp_ratio=2, patch_size=8, image_size=16)
    masked = tf.BertConfig(**SHAPE, intermediate_size=32, vocab_size=len(WORDS), max_position_embeddings=32)
    plain = tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0)
    made = {
        "vision": scrambled(tf.Dinov2Model(vision), root / "vision"),
        "bert": scrambled(tf.BertModel(masked), root / "bert"),
        "gpt2": scrambled(tf.GPT2Model(plain), root / "gpt2"),
    }
    for name in ("bert", "gpt2"):
        words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))  # noqa: S106
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        more = {"mask_token": "[MASK]"} if name == "bert" else {}
        tf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", **more).save_pretrained(root / name)  # noqa: S106
    return made


@pytest.fixture
def texts(give: Callable[..., str], tmp_path: Path) -> str:
    """Sentences of three to seven words, `glad` in half and `sad` in a third of them; `lost` is annotated nowhere in train."""

    def rows(split: str) -> list[dict[str, Any]]:
        g, made = np.random.default_rng(len(split)), []
        for i in range(12):
            words = [f"w{k}" for k in g.integers(0, 20, 3 + i % 5)]
            present = [name for name, there in (("glad", i % 2 == 0), ("sad", i % 3 == 0), ("lost", i % 4 == 1)) if there]
            if "glad" in present:
                words[i % 3] = "glad"
            if "sad" in present:
                words[(i + 1) % 3] = "sad"
            text = " ".join(words)
            marks = [(c, text.find(c)) for c in ("glad", "sad") if c in present]
            marks += [("lost", 0)] if "lost" in present else []
            regions: Any = [{"concept": c, "start": at, "end": at + 2} for c, at in marks]
            if split == "train" and "lost" in present:
                regions = [region for region in regions if region["concept"] != "lost"]
            made.append({"id": f"{split}{i}", "text": text, "concepts": present, "regions": regions})
        return made

    key = give("text", **{split: rows(split) for split in ("train", "cal", "test")})
    path = tmp_path / "texts.yaml"
    path.write_text(
        f"task: texts\nmodality: text\ndataset: {{name: given, key: {key}}}\nconcepts: [glad, sad, lost]\nbackbone: words\n"
    )
    return str(path)


@pytest.fixture
def spec(make_spec: Callable[..., RunSpec], folders: dict[str, Path], texts: str) -> Callable[..., RunSpec]:
    """A run of `methods` on the named model, two positives explained per concept."""

    def build(kind: str, methods: tuple[Method, ...], **changes: Any) -> RunSpec:
        task = "clevr" if kind == "vision" else texts
        size = {"limit": 12, "image_size": 16} if kind == "vision" else {}
        options = {"explain_limit": 2, "log_tokens": True, "bootstrap": 5, "guards": "off", **size, **changes}
        return make_spec(task, f"hf:{folders[kind]}", methods, **options)

    return build


@pytest.fixture
def run(spec: Callable[..., RunSpec], registry: Registry, progress: Any) -> Callable[..., dict[str, Result]]:
    def go(kind: str, methods: tuple[Method, ...], **changes: Any) -> dict[str, Result]:
        return {r.method.name: r for r in pipeline.run(spec(kind, methods, **changes), registry, progress)}

    return go


# --- which samples


def test_the_pairs_are_the_first_annotated_positives_in_an_order_of_the_seed_and_the_ids_alone(registry: Registry) -> None:
    split = load_task(registry, "clevr", 40).splits["test"]
    three, two = pairs(split, 3, 0), pairs(split, 2, 0)
    assert three.shape == split.labels.shape
    assert not bool((two & ~three).any())
    assert not bool((three & ~torch.from_numpy(split.labels)).any())
    assert three.sum(0).tolist() == [min(3, n) for n in split.labels.sum(0)]
    assert not torch.equal(three, pairs(split, 3, 1))
    split.annotated[:] = False
    assert not bool(pairs(split, 3, 0).any())


# --- f_c and the perturbed samples


class Counted(MadeUpModel):
    """Notes how many samples each forward pass has."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, inputs: Any, sites: Any) -> Any:
        self.batches.append(len(inputs.positions))
        return super().forward(inputs, sites)


def counted(directions: torch.Tensor | None = None) -> tuple[SampleProbe, list[int]]:
    probe, model = made_up_probe(directions), Counted()
    function = replace(probe.function, backbone=model)  # type: ignore[type-var]
    return SampleProbe(function, probe.subject._replace(opened=model.opened(model.inputs([]))), probe.kind), model.batches


def test_a_mask_is_run_once_per_sample_whoever_asks_and_in_batches() -> None:
    probe, batches = counted()
    keep = (torch.arange(11)[:, None] >> torch.arange(probe.tokens) & 1).bool()
    first = probe.masked(keep)
    assert batches == [4, 4, 3]
    assert torch.equal(probe.masked(keep.flip(0)), first.flip(0))
    assert batches == [4, 4, 3]
    twice = torch.ones(2, probe.tokens, dtype=torch.bool)
    assert torch.equal(probe.masked(twice)[0], probe.masked(twice)[1])
    assert batches == [4, 4, 3, 1]
    assert first.dtype == torch.float64


def test_lime_after_rise_costs_nothing_and_neither_does_another_kind_of_vector(registry: Registry) -> None:
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    probe, batches = counted(directions)
    other = SampleProbe(probe.function, probe.subject, 0)
    registry.create("localizers", "rise:masks=30").explain(probe, [0, 1, 2])
    paid = sum(batches)
    assert paid <= 30
    for asked in (probe, other):
        registry.create("localizers", "lime:masks=30").explain(asked, [1])
    assert sum(batches) == paid


def test_the_random_masks_depend_on_the_run_and_the_sample_alone() -> None:
    probe = made_up_probe()
    assert torch.equal(probe.random_masks(5), made_up_probe().random_masks(5))
    elsewhere = SampleProbe(probe.function, probe.subject._replace(id="another"))
    reseeded = SampleProbe(replace(probe.function, seed=6), probe.subject)
    for changed in (elsewhere, reseeded):
        assert not torch.equal(probe.random_masks(5), changed.random_masks(5))
    assert probe.random_masks(4000, 0.2).double().mean() == pytest.approx(0.2, abs=0.01)


def test_a_kind_of_vector_is_known_again_also_where_a_concept_has_none() -> None:
    function = made_up_probe().function
    first = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    place = function.kind_of(first)
    assert (function.kind_of(None), function.kind_of(first), function.kind_of(first.clone())) == (0, place, place)
    assert function.kind_of(first + 1) == place + 1


def test_the_score_of_another_vector_is_the_pooled_cosine_at_the_concepts_layer() -> None:
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    probe = made_up_probe(directions)
    model, inputs = probe.function.backbone, probe.opened.inputs
    got = probe.f(probe.leaf[None])[0]
    values = model.forward(inputs, probe.function.sites).values.double()
    for c, site in enumerate((0, 1, 1)):
        cosines = [float(x @ directions[c] / (x.norm() * directions[c].norm())) for x in values[site]]
        assert float(got[c]) == pytest.approx(max(cosines), abs=1e-5)
    assert float(made_up_probe().f(probe.leaf[None])[0, 1]) == pytest.approx(float(values[1, :, 1].max()), abs=1e-5)


@pytest.mark.parametrize("kind", ["vision", "bert", "gpt2"])
def test_removed_tokens_are_the_baseline_and_nothing_else_changes(
    kind: str, spec: Callable[..., RunSpec], registry: Registry
) -> None:
    bench = pipeline.prepare(spec(kind, (method("saliency", "saliency"),)), registry)
    backbone: Any = bench.backbone
    sample = bench.task.splits["test"].sample(0)
    opened = backbone.opened(backbone.inputs([sample]))
    probe = SampleProbe(made_up_probe().function, explain.Subject("one", opened, {}))
    tokens, leaf = probe.tokens, probe.leaf
    keep = torch.rand(3, tokens, generator=torch.Generator().manual_seed(0)) < 0.5
    got = probe.mask(keep)
    for row, kept in zip(got, keep.tolist(), strict=True):
        for t, there in enumerate(kept):
            if kind == "vision":
                top, left, bottom, right = opened.inputs.regions[t].tolist()
                box = (slice(None), slice(top, bottom), slice(left, right))
                wanted = leaf[box] if there else torch.zeros_like(leaf[box])
                assert torch.equal(row[box], wanted)
            else:
                table = backbone.frozen.model.get_input_embeddings().weight
                gone = table[WORDS.index("[MASK]")] if kind == "bert" else torch.zeros_like(table[0])
                ids = backbone.inputs([sample]).tensors["input_ids"][0]
                torch.testing.assert_close(row[t], table[ids[t]] if there else gone)
    half = probe.mask(torch.full((1, tokens), 0.5))[0]
    torch.testing.assert_close(half, (probe.mask(torch.zeros(1, tokens))[0] + leaf) / 2)
    ones = torch.ones_like(leaf)[None]
    size = 8 * 8 * 3 if kind == "vision" else 16
    assert probe.per_token(ones).tolist() == [[size] * tokens]


def test_a_concept_without_a_vector_spoils_no_other_concepts_gradient() -> None:
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    wanted = made_up_probe(directions)
    leaf = wanted.leaf[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wanted.f(leaf)[0, 2], leaf)
    probe = made_up_probe(torch.cat([directions[:1], torch.full((1, 8), torch.nan), directions[2:]]))
    scores = probe.f(leaf)
    assert scores.isnan().tolist() == [[False, True, False]]
    assert torch.equal(torch.autograd.grad(scores[0, 2], leaf)[0], gradient)


# --- curves


def naive_area(f: Callable[[set[int]], float], scores: list[float], insert: bool) -> float:
    tokens = len(scores)
    order = sorted(range(tokens), key=lambda t: (-scores[t], t))
    empty, whole = f(set()), f(set(range(tokens)))
    points = []
    for step in range(11):
        strongest = set(order[: round(tokens * step / 10)])
        now = f(strongest if insert else set(range(tokens)) - strongest)
        points.append(min(1.0, max(0.0, (now - empty) / (whole - empty))))
    return sum((a + b) / 20 for a, b in pairwise(points))


def test_the_areas_are_those_of_a_loop_over_tokens_strongest_first() -> None:
    probe = made_up_probe()
    scores = torch.randn(probe.tokens, 3, generator=torch.Generator().manual_seed(1))
    scores[[1, 4], 0] = 9.0  # a tie: the first one first
    got = curves(probe, scores[:, [2, 0]], [2, 0])
    for k, c in enumerate([2, 0]):

        def f(kept: set[int], c: int = c) -> float:
            mask = torch.tensor([[t in kept for t in range(probe.tokens)]])
            return float(probe.f(probe.mask(mask))[0, c])

        assert float(got.insertion[k]) == pytest.approx(naive_area(f, scores[:, c].tolist(), True), abs=1e-6)
        assert float(got.deletion[k]) == pytest.approx(naive_area(f, scores[:, c].tolist(), False), abs=1e-6)


def test_a_sample_that_scores_no_more_than_an_empty_one_has_no_area() -> None:
    probe = made_up_probe()
    lowest = type("Lowest", (), {"pool": lambda self, activations, block: -segment_max(activations, block.offsets)})()
    lower = replace(probe.function, detector=lowest)
    found = curves(SampleProbe(lower, probe.subject._replace(memo={})), torch.rand(probe.tokens, 3), [0, 1, 2])
    assert bool(found.insertion.isnan().all() and found.deletion.isnan().all())


def test_a_price_is_the_explainers_own_and_both_curves_of_every_concept(registry: Registry) -> None:
    assert price(registry.create("localizers", "lime"), 256, 2) == 1000 + 2 * 22
    assert price(registry.create("localizers", "direct"), 256, 3) == 3 * 22


# --- end to end


@pytest.mark.parametrize("kind", ["vision", "bert", "gpt2"])
def test_attribution_from_end_to_end(
    kind: str, run: Callable[..., dict[str, Result]], spec: Callable[..., RunSpec], registry: Registry
) -> None:
    results = run(kind, ALL)
    bench = pipeline.prepare(spec(kind, ALL), registry)
    there, concepts = bench.pairs[1], bench.task.concepts
    assert there.sum(0).tolist() == [min(2, n) for n in bench.task.splits["test"].labels.sum(0)]
    for name, result in results.items():
        assert result.method.localize_on == "explained"
        tensors, about = read_tokens(result.path or Path())
        sample = torch.repeat_interleave(torch.arange(len(about["ids"])), tensors["offsets"].diff())
        explained = there[sample]
        if name in EXPLAINED:
            assert bool(tensors["map"][~explained].isnan().all()), name
            known = [c for c, concept in enumerate(concepts) if concept != "lost"]
            assert bool(tensors["map"][:, known][explained[:, known]].isfinite().all()), name
        for c, concept in enumerate(concepts):
            counted = [s for s in range(len(there)) if there[s, c] and (tensors["truth"][sample == s, c] == 1).any()]
            hits = [bool(tensors["truth"][sample == s, c][tensors["map"][sample == s, c].argmax()] == 1) for s in counted]
            value = result.score("pointing_game", concept=concept).value
            assert value is None if concept == "lost" else value == pytest.approx(np.mean(hits)), (name, concept)
        for metric in ("token_f1", "token_average_precision", "pointing_game", "insertion_auc", "deletion_auc"):
            row = result.score(metric, concept="weighted")
            assert row is not None, (name, metric)
            assert row.value is not None, (name, metric)
            assert 0 <= row.value <= 1
            lost = result.score(metric, concept="lost")
            assert lost is None or lost.value is None
    f1 = {result.score("f1", concept="weighted").value for result in results.values()}
    assert len(f1) == 1  # one detection


@pytest.mark.parametrize("kind", ["vision", "bert"])
def test_a_model_in_bfloat16_is_explained_in_float32(kind: str, run: Callable[..., dict[str, Result]]) -> None:
    names = ("rise", "integrated-gradients", "mfaba", "fullgrad")
    for name, result in run(kind, tuple(method(name, EXPLAINED[name]) for name in names), dtype="bfloat16").items():
        assert result.score("insertion_auc", concept="weighted").value is not None, name
        drawn = read_tokens(result.path or Path())[0]["map"]
        assert bool((drawn[drawn.isfinite()] != 0).any()), name


@pytest.mark.parametrize("kind", ["vision", "gpt2"])
def test_f_is_the_score_that_the_detector_gave_the_sample(
    kind: str, spec: Callable[..., RunSpec], registry: Registry, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the model again, at each concept's chosen layer, in the normalised space."""
    seen: dict[tuple[str, int], float] = {}

    class Watch:
        needs, calibrate_on = frozenset({"inputs"}), "detected"

        def forwards(self, tokens: int, concepts: int) -> int:
            return 1

        def explain(self, probe: Any, concepts: Any) -> torch.Tensor:
            scores = probe.f(probe.leaf[None])[0]
            seen.update({(probe.subject.id, c): float(scores[c]) for c in concepts})
            return torch.zeros(probe.tokens, len(concepts))

    original = pipeline.prepare
    watched = spec(kind, (method("watch", "saliency"),))

    def prepare(*given: Any) -> Any:
        bench = original(*given)
        return replace(bench, parts=(replace(bench.parts[0], localizer=Watch()),))

    monkeypatch.setattr(pipeline, "prepare", prepare)
    (result,) = pipeline.run(watched, registry, progress)
    import pyarrow.parquet as pq

    rows = pq.read_table((result.path or Path()) / "per_sample.parquet").to_pylist()
    concepts = original(watched, registry).task.concepts
    scores = {(row["id"], concepts.index(row["concept"])): row["score"] for row in rows}
    assert len(seen) >= 6
    for key, score in seen.items():
        assert score == pytest.approx(scores[key], rel=1e-3, abs=1e-3)


def test_maps_are_the_same_in_every_run_and_hardly_depend_on_the_batch(run: Callable[..., dict[str, Result]]) -> None:
    names = ("rise", "kernel-shap-superactivator", "shap-iq", "integrated-gradients", "mfaba", "grad-cam-superactivator")
    some = (*(method(name, EXPLAINED[name]) for name in names), method("noise", "noise", localize_on="explained"))

    def maps(**changes: Any) -> dict[str, torch.Tensor]:
        return {name: read_tokens(result.path or Path())[0]["map"] for name, result in run("gpt2", some, **changes).items()}

    first, again, other = maps(), maps(), maps(batch_size=3)
    for name, values in first.items():
        assert torch.equal(values.nan_to_num(nan=-7), again[name].nan_to_num(nan=-7)), name
        if "mfaba" not in name:  # its path follows signs
            torch.testing.assert_close(values, other[name], rtol=1e-3, atol=1e-4, equal_nan=True)


def test_layers_in_several_groups_give_the_maps_and_areas_of_one(run: Callable[..., dict[str, Result]], tmp_path: Path) -> None:
    few = (method("rise", "rise:masks=8"), method("saliency", "saliency"), method("twin", "direct", localize_on="explained"))
    whole = run("gpt2", few)
    parts = run("gpt2", few, cache_bytes=20_000, cache_dir=tmp_path / "other", output=tmp_path / "parts")
    for name, result in whole.items():
        layers = {choice.layer for choice in result.choices}
        same = read_tokens(parts[name].path or Path())[0]["map"]
        torch.testing.assert_close(read_tokens(result.path or Path())[0]["map"], same, rtol=0.02, atol=0.02, equal_nan=True)
        for metric in ("insertion_auc", "deletion_auc"):
            one, many = (r.score(metric, concept="weighted").value for r in (result, parts[name]))
            assert one == pytest.approx(many, abs=0.02), (name, metric, layers)


def test_methods_with_one_detection_share_their_forwards(
    run: Callable[..., dict[str, Result]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counts: list[int] = []
    call = explain.Function.__call__

    def counting(self: Any, inputs: Any, ids: Any) -> Any:
        counts.append(len(ids))
        return call(self, inputs, ids)

    monkeypatch.setattr(explain.Function, "__call__", counting)

    def spent(*names: str) -> int:
        counts.clear()
        run("gpt2", tuple(method(name, EXPLAINED[name]) for name in names), output=tmp_path / "-".join(names))
        return sum(counts)

    rise, both = spent("rise"), spent("rise", "rise-superactivator", "lime", "lime-superactivator")
    extra = 4 * 3 * 22  # the other maps have curves of their own on test
    assert rise <= both <= rise + extra
    assert both < 2 * rise + extra / 2


def test_the_plan_prints_what_attribution_costs(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--task", "clevr", "--backbone", f"hf:{folders['vision']}", "--image-size", "16", "--limit", "12"]
    words += ["--method", "lime,explained-direct", "--explain-limit", "1", "--dry-run", "--cache-dir", str(tmp_path)]
    assert main(words) in (0, None)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("attribution"))
    found = re.fullmatch(
        r"attribution at most ([\d,]+) forwards, (\d+) x embedding the task once \(lime ([\d,]+), explained-direct ([\d,]+)\); "
        r"see --explain-limit",
        line,
    )
    assert found is not None, line
    total, times, lime, direct = (int(number.replace(",", "")) for number in found.groups())
    assert total == lime + direct
    assert direct == 12 * 22  # one positive of six concepts in cal and in test
    assert (lime - direct) % 1000 == 0
    assert times == round(total / 36)


def test_a_backbone_whose_inputs_are_closed_is_refused_in_one_line(
    make_spec: Callable[..., RunSpec], registry: Registry
) -> None:
    for name in ("lime", "explained-direct"):
        with pytest.raises(HarnessError) as error:
            pipeline.prepare(make_spec(methods=(registry.methods()[name],)), registry)
        assert f"method '{name}' perturbs the inputs of the model; backbone toy gives no access to them" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_task_without_annotated_cal_tokens_names_other_methods_without_building_their_localizers(
    make_spec: Callable[..., RunSpec], registry: Registry, monkeypatch: pytest.MonkeyPatch, texts: str, folders: dict[str, Path]
) -> None:
    """The packages of an extra may not be there."""
    bench = pipeline.prepare(make_spec(texts, f"hf:{folders['gpt2']}", (method("plain", "direct"),)), registry)
    built: list[str] = []
    create = type(registry).create

    def noting(self: Registry, kind: str, reference: str, *given: Any) -> Any:
        built.append(kind)
        return create(self, kind, reference, *given)

    monkeypatch.setattr(type(registry), "create", noting)
    bench.task.splits["cal"].annotated[:] = False
    from harness.bench import _refuse

    with pytest.raises(HarnessError, match=r"methods calibrated on samples: .*max"):
        _refuse(bench, registry)
    assert set(built) == {"detectors"}
