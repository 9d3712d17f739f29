"""Sparse autoencoders: activations are sae-lens' own, pruning is the authors' by hand, and planted features are found on the toy task."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from harness_sae import finding, pruning, units
from harness_sae.encoder import Encoder, Input
from harness_sae.pruning import Rules, peaks
from harness_sae.reading import Wishes, read
from harness_sae.units import sae
from harness_toy import world as toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.api import HarnessError, Site, TokenEmbeddings, find_results, read_result
from harness.cli import main
from harness.registry import load
from harness.testing import SITES, MadeUp, check_concept_method

DATA = Path(__file__).parent / "tiny_saes"
KINDS = sorted(path.parent.name for path in DATA.glob("*/cfg.json"))
G = torch.Generator().manual_seed


def folder(tmp_path: Path, kind: str = "jumprelu", tensors: dict[str, Tensor] | None = None, **changed: Any) -> Path:
    """A copy of one of the folders with settings changed (None = taken out; metadata__x = inside the metadata)."""
    place = tmp_path / kind
    shutil.copytree(DATA / kind, place, dirs_exist_ok=True)
    config = json.loads((place / "cfg.json").read_text())
    for name, value in changed.items():
        inner = config["metadata"] if name.startswith("metadata__") else config
        inner[name.removeprefix("metadata__")] = value
    (place / "cfg.json").write_text(json.dumps(config))
    if tensors:
        weights = load_file(DATA / kind / "sae_weights.safetensors")
        (place / "sae_weights.safetensors").unlink()
        save_file({**weights, **tensors}, place / "sae_weights.safetensors")
    return place


def block(values: Tensor, sites: tuple[Site, ...] = SITES) -> TokenEmbeddings:
    return TokenEmbeddings(values, torch.tensor([0, values.shape[1]]), ("0",), sites)


def error(call: Any, *given: Any, **options: Any) -> str:
    with pytest.raises(HarnessError) as caught:
        call(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- activations against sae-lens


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_of_sae_lens(kind: str) -> None:
    expected = load_file(DATA / kind / "expected.safetensors")
    encoder = read(kind, DATA / kind, Wishes()).encoder
    found = encoder(expected["x"], slice(None))
    assert torch.allclose(found, expected["activations"], rtol=1e-5, atol=1e-5)
    assert torch.equal(found > 0, expected["activations"] > 0)
    assert 0 < int((found > 0).sum()) < found.numel()
    assert torch.equal(encoder.fired(expected["x"]), (expected["activations"] > 0).sum(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_installed_sae_lens_still_gives_what_is_kept_of_it(kind: str) -> None:
    library = pytest.importorskip("sae_lens")
    expected = load_file(DATA / kind / "expected.safetensors")
    with torch.no_grad():
        found = library.SAE.load_from_disk(DATA / kind).encode(expected["x"])
    assert torch.allclose(found, expected["activations"], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_gives_these_whatever_its_normalisation_and_nothing_at_other_sites(kind: str) -> None:
    expected = load_file(DATA / kind / "expected.safetensors")
    train = MadeUp()
    train.centre, train.scale = 3 * torch.randn(2, 1, 8, generator=G(0)), 2 + torch.rand(2, 1, 8, generator=G(1))
    values = torch.stack([torch.zeros_like(expected["x"]), (expected["x"] - train.centre[1]) / train.scale[1]])
    fitted = sae(str(DATA / kind)).fit(train)
    found = fitted.activate(block(values), slice(0, 24))
    assert torch.allclose(found[1], expected["activations"], atol=2e-4)
    assert found[0].isnan().all()
    assert found.dtype == torch.float32
    some = fitted.activate(block(values), slice(3, 9))
    assert torch.allclose(some[1], expected["activations"][:, 3:9], atol=2e-4)
    picked = fitted.pick(torch.tensor([[-1, -1, -1, -1], [20, 3, 3, -1]]))
    assert picked.vectors is None
    assert torch.allclose(picked.activate(block(values))[1, :, :3], expected["activations"][:, [20, 3, 3]], atol=2e-4)
    assert picked.activate(block(values))[:, :, 3].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_of_concept_methods_is_kept(kind: str) -> None:
    check_concept_method(sae(str(DATA / kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_go_through_in_parts_of_any_size(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sae(str(DATA / kind)).fit(MadeUp()).activate(next(MadeUp().blind()), slice(0, 24))
    monkeypatch.setattr(units, "ROOM", 24 * 4 * 3)
    parts = sae(str(DATA / kind)).fit(MadeUp()).activate(next(MadeUp().blind()), slice(0, 24))
    assert torch.allclose(whole, parts, atol=1e-5, equal_nan=True)


def test_a_block_without_tokens_has_no_activations() -> None:
    fitted = sae(str(DATA / "topk")).fit(MadeUp())
    assert fitted.activate(block(torch.zeros(2, 0, 8)), slice(0, 5)).shape == (2, 0, 5)
    assert fitted.pick(torch.zeros(2, 3, dtype=torch.int64)).activate(block(torch.zeros(2, 0, 8))).shape == (2, 0, 3)


def by_hand(encoder: Encoder, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[t, K] float64, one token and unit at a time."""
    wide = {name: t.double().numpy() for name, t in vars(encoder).items() if isinstance(t, Tensor)}
    found = np.zeros((len(x), encoder.size))
    for t, token in enumerate(x - encoder.input.before.double().numpy()):
        dots = np.array([sum(a * b for a, b in zip(token, column, strict=True)) for column in wide["weight"].T])
        scores = dots + wide["bias"]
        strongest = sorted(range(encoder.size), key=lambda i: -scores[i])[: encoder.k]
        for i in range(encoder.size):
            on = {"standard": True, "gated": scores[i] > 0, "topk": i in strongest}.get(encoder.kind)
            on = scores[i] > wide["threshold"][i] if on is None else on
            value = dots[i] * wide["gain"][i] + wide["lift"][i] if encoder.kind == "gated" else scores[i]
            found[t, i] = max(value, 0) if on else 0
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["standard", "gated", "jumprelu", "topk"]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 10_000),
)
def test_every_kind_is_the_loop_in_float64(kind: Any, size: int, width: int, k: int, seed: int) -> None:
    g = G(seed)
    rand = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    more: dict[str, Any] = {"topk": {"k": k}, "jumprelu": {"threshold": rand(size).abs()}}.get(kind, {})
    if kind == "gated":
        more = {"gain": rand(size).exp(), "lift": rand(size)}
    encoder, x = Encoder(kind, Input(rand(width)), rand(width, size), rand(size), **more), rand(6, width)
    wanted = by_hand(encoder, x.double().numpy())
    assert np.allclose(encoder(x, slice(None)).numpy(), wanted, atol=1e-4)
    columns = torch.randperm(size, generator=g)[: max(1, size // 2)]
    assert np.allclose(encoder(x, columns).numpy(), wanted[:, columns.numpy()], atol=1e-4)


def test_gradients_reach_the_tokens_and_are_finite() -> None:
    for kind in KINDS:
        values = torch.randn(2, 6, 8, generator=G(0)).requires_grad_()
        picked = sae(str(DATA / kind)).fit(MadeUp()).pick(torch.tensor([[0, 1, 2], [0, 1, 2]]))
        picked.activate(block(values))[1].sum().backward()
        assert values.grad is not None and values.grad.isfinite().all()
        assert (values.grad[0] == 0).all()


# ---------------------------------------------------------------------------------------------------------------- pruning


def test_the_thresholds_are_the_authors() -> None:
    positives = torch.tensor([40, 0, 2000, 999])
    assert Rules().limits(positives, topk=False) == pruning.Limits(10, 2500, 60.0)
    assert Rules().limits(positives * 100, topk=False).fewest == 40
    assert Rules().limits(positives, topk=True) == pruning.Limits(30, 2500, 60.0)
    assert Rules().limits(torch.tensor([5]), topk=True) == pruning.Limits(3, 6.25, 50.0)
    assert [Rules().limits(torch.ones(n), True).strength for n in (1, 2, 9, 10, 29, 30, 80)] == [50, 60, 60, 70, 70, 80, 80]
    assert Rules().limits(torch.zeros(3), topk=False) == pruning.Limits(10, torch.inf, 60.0)
    own = Rules(min_share=0.5, min_tokens=3, max_share=2, strength=0).limits(positives, topk=False)
    assert own == pruning.Limits(20, 4000, 0)


@given(st.integers(1, 5), st.integers(0, 700), st.integers(0, 10_000))
def test_p99_is_the_value_at_one_hundredth_from_the_top_of_the_active_tokens(n: int, pairs: int, seed: int) -> None:
    g = G(seed)
    unit = torch.randint(0, n, (pairs,), generator=g)
    value = torch.randint(1, 40, (pairs,), generator=g).float()  # with ties
    cut = pairs // 3
    found = peaks([(unit[:cut], value[:cut]), (unit[cut:], value[cut:])], n)
    for u in range(n):
        own = sorted(value[unit == u].tolist(), reverse=True)
        assert float(found[u]) == (own[min(int(0.01 * len(own)), len(own) - 1)] if own else 0)


def pruned_by_hand(activations: np.ndarray[Any, Any], positives: list[int], topk: bool) -> list[int]:
    """The authors' three rules on [N, K], unit by unit."""
    rarest, most = min(p for p in positives if p), max(positives)
    fewest = max(1, int(0.75 * rarest)) if topk else max(10, int(0.01 * rarest))
    left, tops = [], []
    for unit, column in enumerate(activations.T):
        own = sorted((float(x) for x in column if x > 0), reverse=True)
        if len(own) >= fewest and len(own) / len(activations) <= 1.25 * most / len(activations):
            left.append(unit)
            tops.append(own[int(0.01 * len(own))])
    strength = 50 if len(positives) == 1 else 60 if len(positives) < 10 else 70 if len(positives) < 30 else 80
    return [unit for unit, top in zip(left, tops, strict=True) if top >= np.percentile(tops, strength)]


@pytest.mark.parametrize("kind", ["jumprelu", "standard", "gated", "topk"])
@pytest.mark.parametrize("positives", [[13, 15, 7], [14]])
def test_selection_is_the_authors_by_hand_in_slices_and_parts_of_any_size(
    kind: str, positives: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cal = [block(values) for values in torch.randn(3, 2, 11, 8, generator=G(4))]
    fitted = sae(str(DATA / kind)).fit(MadeUp())
    every = np.concatenate([fitted.activate(b, slice(0, 24))[1].numpy() for b in cal])
    wanted = pruned_by_hand(every, positives, kind == "topk")
    chosen = fitted.select(cal, torch.tensor(positives))
    assert list(chosen.units) == [str(unit) for unit in wanted]
    assert 0 < len(wanted) < 24
    assert re.fullmatch(
        rf"\d+ active on cal, \d+ of them neither too rare nor too common, {len(wanted)} of these strong", chosen.note
    )
    monkeypatch.setattr(units, "ROOM", 24 * 4 * 2)
    monkeypatch.setattr(units, "PAIRS", 40)
    assert fitted.select(cal, torch.tensor(positives)).units == chosen.units
    some = chosen.activate(cal[0], slice(1, 3))[1]
    assert np.allclose(some, every[:11][:, wanted[1:3]], atol=1e-5)
    picked = chosen.pick(torch.tensor([[-1, -1], [len(wanted) - 1, -1]])).activate(cal[0])[1]
    assert np.allclose(picked[:, 0], every[:11, wanted[-1]], atol=1e-5)
    assert picked[:, 1].isnan().all()


def test_of_summaries_the_units_active_at_least_once_are_kept() -> None:
    train = MadeUp()
    train.offsets = torch.arange(len(train.values[0]) + 1)
    fitted = sae(str(DATA / "topk")).fit(train)
    values = torch.randn(2, 3, 8, generator=G(5))
    chosen = fitted.select([block(values)], torch.tensor([1, 2, 2]))
    active = (fitted.activate(block(values), slice(0, 24))[1] > 0).any(0).nonzero()[:, 0]
    assert list(chosen.units) == [str(unit) for unit in active.tolist()]


def test_where_a_part_of_the_run_lacks_the_site_there_is_nothing_to_match() -> None:
    fitted = sae(str(DATA / "topk"), layer=1).fit(MadeUp())
    assert fitted.select([next(MadeUp().blind())], torch.tensor([3, 3, 3])).units == ()
    none = fitted.select([], torch.tensor([3])).pick(torch.full((2, 3), -1))
    assert none.activate(next(MadeUp().blind())).isnan().all()


def test_where_nothing_is_left_one_line_says_which_option_to_change() -> None:
    cal = [next(MadeUp().blind())]
    select = sae(str(DATA / "jumprelu")).fit(MadeUp()).select
    assert "lower min_share or min_tokens" in error(select, cal, torch.tensor([4000]))
    assert re.search(
        r"all \d+ that are frequent enough are active on more than 0.\d+ cal tokens; raise max_share",
        error(sae(str(DATA / "jumprelu"), min_tokens=1, max_share=0.01).fit(MadeUp()).select, cal, torch.tensor([20])),
    )
    silent = [block(torch.full((2, 4, 8), 0.0))]
    dead = sae(str(DATA / "jumprelu"))
    encoder = replace(dead.dictionary.encoder, bias=torch.full((24,), -99.0))
    dead = replace(dead, dictionary=replace(dead.dictionary, encoder=encoder))
    message = error(dead.fit(MadeUp()).select, silent, torch.tensor([4]))
    assert message.endswith("none is active on any cal token; is this the model and the site it was trained on?")
    assert message.startswith(f"no unit of {DATA / 'jumprelu'} is left after pruning on cal")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_share": -1}, "bad value -1 for option 'min_share' of concept method 'sae'; allowed: a number from 0"),
        ({"strength": 101}, "bad value 101 for option 'strength' of concept method 'sae'; allowed: a number from 0 to 100"),
        ({"max_share": "much"}, "bad value 'much' for option 'max_share'"),
        ({"min_tokens": True}, "bad value True for option 'min_tokens'"),
        ({"stream": "mpl"}, "unknown stream 'mpl' in concept method 'sae'; did you mean mlp?"),
        ({"layer": -1}, "bad value -1 for option 'layer' of concept method 'sae'; allowed: the index of a block, from 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    assert said in error(sae, str(DATA / "jumprelu"), **options)


# ---------------------------------------------------------------------------------------------------------------- SAELens


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.8.hook_resid_pre", Site(7)),
        ("blocks.8.hook_resid_post", Site(8)),
        ("blocks.0.hook_mlp_out", Site(0, "mlp")),
        ("blocks.11.hook_attn_out", Site(11, "attention")),
        ("model.layers.12", Site(12)),
        ("transformer.h.3", Site(3)),
    ],
)
def test_a_hook_is_a_site(tmp_path: Path, hook: str, site: Site) -> None:
    assert sae(str(folder(tmp_path, metadata__hook_name=hook))).dictionary.site == site


@pytest.mark.parametrize(
    "hook", ["blocks.3.attn.hook_z", "blocks.3.hook_resid_mid", "blocks.0.hook_resid_pre", "blocks.1.hook_mlp_in"]
)
def test_a_hook_that_is_no_site_is_refused_whatever_the_options_say(tmp_path: Path, hook: str) -> None:
    place = str(folder(tmp_path, metadata__hook_name=hook))
    assert f"reads {hook}, which is no site" in error(sae, place, layer=3, stream="attention")


def test_what_comes_after_gemmas_post_norm_is_refused(tmp_path: Path) -> None:
    place = str(folder(tmp_path, metadata__hook_name="blocks.3.hook_mlp_out", metadata__model_name="gemma-2-2b"))
    assert "after a norm that the stream does not have" in error(sae, place)
    place = str(folder(tmp_path, metadata__hook_name="blocks.3.hook_resid_post", metadata__model_name="gemma-2-2b"))
    assert sae(place).dictionary.site == Site(3)


def test_options_say_the_site_where_the_files_do_not_and_come_first(tmp_path: Path) -> None:
    place = str(folder(tmp_path, metadata__hook_name="encoder"))
    assert "does not say which layer it reads; give it as option layer" in error(sae, place)
    assert "does not say which stream it reads; give it as option stream" in error(sae, place, layer=3)
    assert sae(place, layer=3, stream="mlp").dictionary.site == Site(3, "mlp")
    assert sae(str(DATA / "topk"), layer=0).dictionary.site == Site(0)


def test_writing_weights_that_were_centred_are_undone_for_the_models_own_values(tmp_path: Path) -> None:
    x = load_file(DATA / "jumprelu" / "expected.safetensors")["x"]
    plain = sae(str(DATA / "jumprelu")).dictionary.encoder
    told = sae(str(folder(tmp_path, metadata__model_from_pretrained_kwargs={"center_writing_weights": True})))
    asked = sae(str(DATA / "jumprelu"), centre=True)
    for centred in (told, asked):
        found = centred.dictionary.encoder(x, slice(None))
        assert torch.allclose(found, plain(x - x.mean(1, keepdim=True), slice(None)))
    listed = read("jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre", DATA / "jumprelu", Wishes())
    assert listed.encoder.input.centred and not plain.input.centred


def test_an_expected_norm_needs_its_factor(tmp_path: Path) -> None:
    place = str(folder(tmp_path, "standard", normalize_activations="expected_average_only_in"))
    assert "give it as option input_scale (sae-lens lists it as norm_scaling_factor)" in error(sae, place)
    x = load_file(DATA / "standard" / "expected.safetensors")["x"]
    plain = sae(str(DATA / "standard")).dictionary.encoder
    assert torch.allclose(sae(place, input_scale=0.25).dictionary.encoder(x, slice(None)), plain(x * 0.25, slice(None)))


def test_a_finetuning_scaling_factor_concerns_the_decoder_alone(tmp_path: Path) -> None:
    place = folder(tmp_path, "standard", {"scaling_factor": torch.full((24,), 3.0)}, finetuning_scaling_factor=True)
    expected = load_file(DATA / "standard" / "expected.safetensors")
    assert torch.allclose(sae(str(place)).dictionary.encoder(expected["x"], slice(None)), expected["activations"], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        (
            "standard",
            {"architecture": "transcoder"},
            "has architecture 'transcoder', which is not read; allowed: standard, gated",
        ),
        ("standard", {"activation_fn": "tanh-relu"}, "has activation function 'tanh-relu', which is not read"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "has normalize_activations 'covariance_whitening'"),
        ("topk", {"k": None}, "is a TopK one and its cfg.json gives no k; k is None"),
        ("gated", {"architecture": "jumprelu"}, "has no tensor 'b_enc'; it has"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(tmp_path: Path, kind: str, changed: dict[str, Any], said: str) -> None:
    assert said in error(sae, str(folder(tmp_path, kind, **changed)))


def test_files_that_are_damaged_are_refused_in_one_line(tmp_path: Path) -> None:
    place = folder(tmp_path, tensors={"b_enc": torch.zeros(23)})
    assert "has shape [23]; beside the encoder it must be [24]" in error(sae, str(place))
    place = folder(tmp_path, tensors={"b_enc": torch.full((24,), torch.inf)})
    assert "has a weight that is not finite" in error(sae, str(place))
    (place / "sae_weights.safetensors").write_bytes(b"no tensors")
    assert re.search(r"cannot read .*sae_weights.safetensors; .*copy it again", error(sae, str(place)))
    (place / "cfg.json").write_text("[]")
    assert "it must be the JSON mapping that SAELens writes" in error(sae, str(place))


# --------------------------------------------------------------------------------------------- Gemma Scope and CLIP-Scope


def gemma_scope(place: Path, **more: Any) -> Path:
    place.mkdir(parents=True)
    weights = load_file(DATA / "jumprelu" / "sae_weights.safetensors")
    np.savez(place / "params.npz", **{name: tensor.numpy() for name, tensor in weights.items()}, **more)
    return place


def test_gemma_scope_is_read_with_its_layer_from_the_path(tmp_path: Path) -> None:
    place = gemma_scope(tmp_path / "gemma-scope-9b-pt-res" / "layer_20" / "width_16k" / "average_l0_71")
    expected = load_file(DATA / "jumprelu" / "expected.safetensors")
    for path in (place, place / "params.npz"):
        found = sae(str(path)).dictionary
        assert found.site == Site(20)
        assert torch.allclose(found.encoder(expected["x"], slice(None)), expected["activations"], atol=1e-5)


def test_gemma_scope_whose_release_is_not_in_the_path_needs_its_stream(tmp_path: Path) -> None:
    place = gemma_scope(tmp_path / "layer_3" / "width_16k" / "average_l0_71")
    assert "does not say which stream it reads" in error(sae, str(place))
    assert sae(str(place), stream="residual").dictionary.site == Site(3)


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("gemma-scope-2b-pt-mlp/layer_3", "mlp"),
        ("gemma-scope-2b-pt-att/layer_3", "att"),
        ("gemma-scope-2b-pt-res/embedding", "embedding"),
    ],
)
def test_gemma_scope_of_what_is_no_site_is_refused(tmp_path: Path, path: str, what: str) -> None:
    place = gemma_scope(tmp_path / path / "width_4k")
    assert f"reads {what}, which is no site here; of Gemma Scope the residual ones (-res) are read" in error(sae, str(place))


def test_an_npz_that_holds_a_pickle_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", W_enc=np.array([{"run": "me"}], dtype=object))
    assert "cannot read" in error(sae, str(place))
    (place / "params.npz").write_bytes(b"PK no zip")
    assert "copy it again" in error(sae, str(place))


def clip_scope(place: Path) -> dict[str, Tensor]:
    """A checkpoint as clipscope 0.1.8 reads it, under that name; its tensors."""
    place.parent.mkdir(parents=True)
    enc = 0.4 * torch.randn(8, 40, generator=G(1))
    model = {"pre_b": torch.randn(8, generator=G(2)), "enc": enc, "dec": enc.mT.clone()}
    torch.save({"k": 5, "n_features": 40, "d_in": 8, "model_state_dict": model}, place)
    return model


def test_a_pickle_is_refused_and_the_line_that_refuses_it_converts_it(tmp_path: Path) -> None:
    model = clip_scope(tmp_path / "22_resid" / "1200013184.pt")
    for path in (tmp_path / "22_resid", tmp_path / "22_resid" / "1200013184.pt"):
        message = error(sae, str(path))
        assert "is a pickle, which can run code when read; sae: reads safetensors, npz and JSON; convert it once" in message
    assert "is a pickle" in error(sae, "lewington/CLIP-ViT-L-scope/22_resid/1200013184.pt")
    command = shlex.split(message.partition("where you trust it: ")[2])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path / "22_resid", check=True)
    (tmp_path / "22_resid" / "1200013184.pt").unlink()
    x = torch.randn(6, 8, generator=G(3))
    strongest = ((x - model["pre_b"]) @ model["enc"]).topk(5)
    wanted = torch.zeros(6, 40).scatter(1, strongest.indices, strongest.values).relu()
    for path in (tmp_path / "22_resid", tmp_path / "22_resid" / "1200013184.safetensors"):
        found = sae(str(path)).dictionary
        assert found.site == Site(22)
        assert torch.allclose(found.encoder(x, slice(None)), wanted, atol=1e-6)


def test_clip_scope_without_its_k_asks_for_it(tmp_path: Path) -> None:
    save_file({"enc": torch.randn(8, 40, generator=G(1)), "pre_b": torch.zeros(8)}, tmp_path / "22_resid.safetensors")
    place = str(tmp_path / "22_resid.safetensors")
    assert "give it as option k (CLIP-Scope's is 32)" in error(sae, place)
    assert sae(place, k=32).dictionary.encoder.k == 32


# ----------------------------------------------------------------------------------------------------------------- finding


def test_a_folder_without_a_dictionary_names_those_below_it(tmp_path: Path) -> None:
    assert "no sparse autoencoder in" in error(sae, str(tmp_path))
    folder(tmp_path, "topk")
    folder(tmp_path, "gated")
    assert error(sae, str(tmp_path)).endswith("below it: gated, topk; give one of them")


def test_what_is_neither_here_nor_a_name_on_the_hub_is_refused(tmp_path: Path) -> None:
    assert "no folder or file './nowhere'; sae: takes a folder" in error(sae, "./nowhere")
    assert "no folder or file 'nowhere'" in error(sae, "nowhere")
    assert "is neither a folder nor a repository on the Hub" in error(sae, "or g/re po/path")
    assert error(sae) == "sae needs a sparse autoencoder: sae:<folder>, or sae:<org>/<repo>/<path> on the Hub"
    (tmp_path / "notes.txt").write_text("")
    assert "is no sparse autoencoder; sae: takes a folder" in error(sae, str(tmp_path / "notes.txt"))


def ask(folder: Path, *arguments: str, **environment: str) -> list[str]:
    """What a process of its own says to each argument: huggingface_hub reads its environment at import."""
    code = (
        "import sys\nfrom harness.api import HarnessError\nfrom harness_sae.units import sae\n"
        "for argument in sys.argv[1:]:\n"
        "    try:\n        print(sae(argument).dictionary.site)\n    except HarnessError as error:\n        print(error)"
    )
    names = ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    given = {**kept, "HF_HOME": str(folder), "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=given, timeout=120)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def cached(home: Path, repo: str, path: str) -> Path:
    """A folder of the Hub's cache, as a download leaves it."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    return root / "snapshots" / ("a" * 40) / path


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "refused")],
)
def test_offline_the_hubs_cache_is_read_and_what_is_missing_said_in_one_line(
    tmp_path: Path, environment: dict[str, str], why: str
) -> None:
    path = "layer_20/width_16k/average_l0_71"
    gemma_scope(cached(tmp_path, "google/gemma-scope-9b-pt-res", path))
    shutil.copytree(DATA / "topk", cached(tmp_path, "tiny/saes", "blocks.2"))
    names = (f"google/gemma-scope-9b-pt-res/{path}", "tiny/saes/blocks.2", "tiny/saes/blocks.3")
    gemma, topk, said = ask(tmp_path, *names, **environment)
    assert (gemma, topk) == ("Site(layer=20, stream='residual')", "Site(layer=2, stream='residual')")
    assert said.startswith("no sparse autoencoder of tiny/saes: not in ")
    assert why in said and "`hf download tiny/saes --include 'blocks.3/*'`" in said


def test_a_download_asks_for_the_files_of_one_dictionary_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(repo: str, **options: Any) -> str:
        asked.append(options)
        if options.get("local_files_only"):
            raise finding.LocalEntryNotFoundError("not here")
        shutil.copytree(DATA / "topk", tmp_path / "there")
        return str(tmp_path)

    monkeypatch.setattr(finding, "snapshot_download", download)
    monkeypatch.setattr(finding, "unreachable", lambda url: None)
    monkeypatch.setattr(finding.constants, "HF_HUB_OFFLINE", False)
    assert sae("tiny/saes/there", revision="v2").dictionary.site == Site(2)
    wanted = ["there/cfg.json", "there/sae_weights.safetensors", "there/params.npz"]
    assert asked[-1] == {"revision": "v2", "allow_patterns": wanted}
    shutil.rmtree(tmp_path / "there")
    monkeypatch.setattr(finding, "snapshot_download", lambda repo, **options: str(tmp_path))
    assert "tiny/saes has no sparse autoencoder at 'elsewhere'; looked for elsewhere/cfg.json" in error(
        sae, "tiny/saes/elsewhere"
    )


# -------------------------------------------------------------------------------------------------------------- in a run


def planted(place: Path, layer: int = 3, width: int = toy.WIDTH) -> Path:
    """JumpReLU: units 5, 17 and 40 of 64 are the toy world's directions, the others are random."""
    place.mkdir(parents=True)
    weight = torch.randn(width, 64, generator=G(1))
    weight /= weight.norm(dim=0)
    if width == toy.WIDTH:
        weight[:, [5, 17, 40]] = torch.from_numpy(toy.directions(0)).float().T
    tensors = {"W_enc": weight, "b_enc": torch.zeros(64), "b_dec": torch.zeros(width), "threshold": torch.full((64,), 1.5)}
    save_file(tensors, place / "sae_weights.safetensors")
    (place / "cfg.json").write_text(
        json.dumps({"architecture": "jumprelu", "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}})
    )
    return place


def run(tmp_path: Path, *more: object) -> list[dict[str, Any]]:
    output = tmp_path / "results"
    fixed = ("run", "--task", "toy", "--bootstrap", 10, "--cache-dir", tmp_path / "cache", "--output", output)
    with contextlib.suppress(SystemExit):
        main([str(word) for word in (*fixed, *more)])
    return [read_result(folder) for folder in find_results(output)]


@pytest.mark.parametrize("normalization", ["train", "none"])
@pytest.mark.parametrize("localizer", ["direct", "superactivator"])
def test_planted_features_are_matched_on_cal_and_detect_and_localize(
    tmp_path: Path, normalization: str, localizer: str
) -> None:
    method = ("--concept-method", f"sae:{planted(tmp_path / 'sae')}", "--detector", "superactivator", "--localizer", localizer)
    (result,) = run(tmp_path, *method, "--normalization", normalization)
    assert [(c["concept"], c["unit"], c["layer"]) for c in result["choices"]] == [
        ("circle", "5", "3"),
        ("square", "17", "3"),
        ("star", "40", "3"),
    ]
    said = next(iter(result["notes"]["units"].values()))
    assert re.fullmatch(
        r"\d+ of 64 kept; \d+ active on cal, \d+ of them neither too rare nor too common, \d+ of these strong", said
    )
    scores = {s["metric"]: s["value"] for s in result["scores"] if s["concept"] == "macro" and s["layer"] == "chosen"}
    assert scores["f1"] > 0.95
    assert scores["token_f1"] > 0.5
    match = pq.read_table(next((tmp_path / "results").rglob("match.parquet"))).to_pylist()
    assert {row["unit"] for row in match if row["layer"] != "3"} == {None}


def test_summaries_layer_groups_and_one_to_one_work_too(tmp_path: Path) -> None:
    method = ("--concept-method", f"sae:{planted(tmp_path / 'sae')}:min_tokens=2", "--detector", "max")
    (one,) = run(tmp_path / "summary", *method, "--fit-on", "summary")
    (two,) = run(tmp_path / "groups", *method, "--match", "one-to-one", "--cache-bytes", 400_000)
    assert {c["layer"] for r in (one, two) for c in r["choices"]} == {"3"}
    assert [c["unit"] for c in two["choices"]] == ["5", "17", "40"]
    assert "0 of" not in str(two["notes"]["units"])


def test_a_run_without_the_site_or_of_another_width_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, more, said in (
        (
            planted(tmp_path / "a"),
            ("--layers", "0,1"),
            "reads site 3, which is not in this run; it has 0, 1 (backbone toy, blocks 0..3); use --layers 3",
        ),
        (planted(tmp_path / "b", layer=8), (), "reads site 8, which is not in this run; it has 0, 1, 2, 3"),
        (
            planted(tmp_path / "c", width=16),
            (),
            "reads vectors of width 16; backbone toy has width 32; use the model it was trained on",
        ),
    ):
        assert not run(tmp_path, "--concept-method", f"sae:{place}", *more)
        assert said in capsys.readouterr().err.replace("\n", " ")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_stream_is_named_where_it_is_not_the_residual_one(tmp_path: Path) -> None:
    method = sae(str(DATA / "topk"), layer=1, stream="mlp")
    backbone = type("Backbone", (), {"name": "small", "width": 8, "n_layers": 4})()
    assert error(method.check, backbone, SITES).endswith("use --layers 1 --streams mlp")
    assert method.check(backbone, (Site(1, "mlp"),)) is None


def test_the_registry_passes_the_argument_and_the_options_on() -> None:
    method = load().create("concept_methods", f"sae:{DATA / 'topk'}:layer=0:min_share=0.5")
    assert (method.dictionary.site, method.rules.min_share) == (Site(0), 0.5)
    assert "unknown option 'min_shore' in concept method 'sae'; did you mean min_share" in error(
        load().create, "concept_methods", f"sae:{DATA / 'topk'}:min_shore=1"
    )


@pytest.mark.slow
def test_topk_at_the_width_of_clip_scope_stays_within_a_gigabyte() -> None:
    code = """
import resource, torch
from harness.api import Site, TokenEmbeddings
from harness_sae.encoder import Encoder, Input
from harness_sae.reading import Dictionary
from harness_sae.units import Raw, Rules, SaeUnits
g = torch.Generator().manual_seed(0)
weight = torch.randn(1024, 65536, generator=g) / 32
values = torch.randn(1, 8192, 1024, generator=g)
encoder = Encoder("topk", Input(torch.zeros(1024)), weight, torch.zeros(65536), k=32)
own = SaeUnits(Dictionary("wide", Site(22), encoder), Raw(0, torch.zeros(1024), torch.ones(1024)), Rules())
block = TokenEmbeddings(values, torch.tensor([0, 8192]), ("0",), (Site(22),))
encoder(values[0, :8], slice(0, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
own.activate(block, slice(0, 1000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200)
    assert int(done.stdout) * 1024 < 1e9
