"""Which layers, streams, device and dtype the words of the command line mean (docs/method.md section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.api import HarnessError, Site
from harness.sites import choose_sites, pick_device, pick_dtypes


@dataclass
class Model:
    """As much of a backbone as a site needs."""

    n_layers: int
    name: str = "some-model"


@dataclass
class Stored(Model):
    """A folder that holds only some layers."""

    layers: tuple[int, ...] = (0, 5, 11)


def layers(words: str, n: int = 12, streams: tuple[str, ...] = ("residual",), model: Any = None) -> list[int]:
    return [site.layer for site in choose_sites(words, streams, model or Model(n))]


def message(words: str, n: int = 12, streams: tuple[str, ...] = ("residual",), model: Any = None) -> str:
    with pytest.raises(HarnessError) as caught:
        choose_sites(words, streams, model or Model(n))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("all", list(range(12))),
        ("last", [11]),
        ("final", [12]),
        ("50%", [5]),
        ("0%", [0]),
        ("100%", [11]),
        ("12.5%", [0]),
        ("99.9%", [10]),
        ("0", [0]),
        ("3", [3]),
        ("11", [11]),
        ("-1", [11]),
        ("-12", [0]),
        ("0,3,-1", [0, 3, 11]),
        ("-1,3,0", [0, 3, 11]),
        ("0:12:3", [0, 3, 6, 9]),
        (":", list(range(12))),
        ("::4", [0, 4, 8]),
        ("2:5", [2, 3, 4]),
        ("-3:", [9, 10, 11]),
        (":-9", [0, 1, 2]),
        ("5:2:-1", [3, 4, 5]),
        ("0:99", list(range(12))),
        ("all,final", list(range(13))),
        ("final,last,50%", [5, 11, 12]),
        ("3,3,03", [3]),
        (" 1 , 2 ", [1, 2]),
        ("last,-1,100%,11", [11]),
    ],
)
def test_every_spelling_of_layers_gives_true_indices_ascending_and_once_each(words: str, expected: list[int]):
    assert layers(words) == expected


def test_layers_that_a_model_skips_are_left_out_of_all_and_refused_by_what_there_is():
    model = Stored(6, layers=(0, 1, 2, 4, 5, 6))
    assert layers("all", model=model) == [0, 1, 2, 4, 5]
    assert layers("final", model=model) == [6]
    assert message("3", model=model) == "no layer 3 in backbone some-model; it has 0..2, 4..6 (--layers 3)"


@pytest.mark.parametrize(
    ("n", "table"),
    [
        (24, {4: 0, 25: 5, 46: 10, 67: 15, 88: 20, 92: 21, 100: 23}),
        (40, {2: 0, 15: 5, 28: 10, 40: 15, 52: 19, 65: 25, 78: 30, 90: 35, 100: 39}),
        (32, {3: 0, 19: 5, 34: 9, 50: 15, 66: 20, 81: 24, 97: 30}),
        (42, {4: 0, 21: 7, 39: 15, 57: 22, 75: 30, 81: 33, 93: 38}),
    ],
    ids=["clip", "llama-vision", "llama-text", "gemma"],
)
def test_a_percentage_is_the_block_of_the_papers_tables(n: int, table: dict[int, int]):
    assert {percent: layers(f"{percent}%", n)[0] for percent in table} == table


@given(st.integers(1, 200), st.integers(0, 100))
def test_a_percentage_always_names_a_block_of_the_model(n: int, percent: int):
    (layer,) = layers(f"{percent}%", n)
    assert layer == min(max(int(percent / 100 * n) - 1, 0), n - 1)


@given(st.integers(1, 40), st.integers(-40, 39))
def test_an_index_is_python_indexing_of_the_blocks(n: int, index: int):
    if -n <= index < n:
        assert layers(str(index), n) == [range(n)[index]]
    else:
        assert f"bad layer '{index}'" in message(str(index), n)


@pytest.mark.parametrize(
    "word",
    [
        "12",
        "-13",
        "101%",
        "-5%",
        "%",
        "half",
        "fnal",
        "",
        "0,,3",
        "1:1",
        "5:2",
        "0:12:0",
        "1.5",
        "0-3",
        "all:",
        "1e2",
        "0:3:1:1",
    ],
)
def test_any_other_word_is_refused_with_the_blocks_there_are_and_what_is_allowed(word: str):
    said = message(word)
    bad = "" if word == "0,,3" else word
    assert said == (
        f"bad layer {bad!r} in --layers; the model has blocks 0..11; allowed: all, last, final, a percentage (50%), an index "
        "(3, -1), a slice (0:12:3), paper-clip, paper-llama-vision, paper-llama-text, paper-qwen, paper-gemma, or several joined "
        "by commas"
    )


@pytest.mark.parametrize(
    ("preset", "depth", "blocks"),
    [
        ("paper-clip", 24, [0, 5, 10, 15, 20, 23]),
        ("paper-llama-vision", 40, [0, 5, 10, 15, 19, 25, 30, 35, 39]),
        ("paper-llama-text", 32, [0, 5, 9, 15, 20, 24, 30, 32]),
        ("paper-qwen", 36, [0, 5, 11, 17, 22, 28, 33, 36]),
        ("paper-gemma", 42, [0, 7, 15, 22, 30, 38, 42]),
    ],
)
def test_a_preset_gives_the_papers_layers_as_shares_of_the_true_depth(preset: str, depth: int, blocks: list[int]):
    """The authors' own lists (method section 2), where the depth is what they assumed; `final` is the depth itself."""
    assert layers(preset, depth) == blocks
    assert layers(f"{preset},1", depth) == sorted({1, *blocks})


def test_a_model_of_one_block_has_one_layer_by_every_name():
    assert layers("all", 1) == layers("last", 1) == layers("50%", 1) == layers("0:1", 1) == layers("-1", 1) == [0]
    assert layers("final", 1) == [1]


def test_streams_multiply_the_layers_and_keep_the_order_they_are_asked_for():
    found = choose_sites("0,2", ["mlp", "residual"], Model(3))
    assert found == [Site(0, "mlp"), Site(2, "mlp"), Site(0), Site(2)]


def test_a_stream_that_is_named_twice_counts_once():
    assert choose_sites("0", ["residual", "residual"], Model(3)) == [Site(0)]


def test_only_the_residual_stream_has_a_final_layer():
    assert choose_sites("2,final", ["residual", "attention"], Model(3)) == [Site(2), Site(3), Site(2, "attention")]


def test_the_final_layer_of_another_stream_alone_is_refused_and_not_an_empty_run():
    assert "final" in message("final", 3, ("attention",))


def test_an_unknown_stream_gets_the_nearest():
    assert message("all", 3, ("residul",)).startswith(
        "unknown stream 'residul' in --streams; did you mean residual?; there are: attention, mlp, residual"
    )


def test_a_site_is_labelled_by_its_layer_and_by_its_stream_where_that_is_not_the_residual_one():
    assert [site.label for site in choose_sites("1", ["residual", "mlp"], Model(3))] == ["1", "mlp.1"]


def test_all_layers_of_a_folder_are_those_it_holds():
    assert layers("all", model=Stored(12)) == [0, 5, 11]
    assert layers("last", model=Stored(12)) == [11]
    assert layers("5,-1", model=Stored(12)) == [5, 11]


@pytest.mark.parametrize(("words", "missing"), [("3", 3), ("0:12:3", 3), ("final", 12), ("0,5,7", 7)])
def test_a_layer_that_a_folder_does_not_hold_is_refused_with_those_it_does(words: str, missing: int):
    said = message(words, model=Stored(12))
    assert said == f"no layer {missing} in backbone some-model; it has 0, 5, 11 (--layers {words})"


def test_a_folder_of_neighbouring_layers_names_them_as_a_range():
    assert message("final", model=Stored(4, layers=(0, 1, 2, 3))).startswith("no layer 4 in backbone some-model; it has 0..3")


# Device and dtype


def test_auto_is_the_first_cuda_device_else_the_cpu():
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["cud", "cuda:99", "tpu", "cpu:banana", ""])
def test_a_device_that_cannot_be_used_is_refused_in_one_line_with_one_that_can(device: str):
    with pytest.raises(HarnessError) as caught:
        pick_device(device)
    said = str(caught.value)
    assert said.startswith(f"device {device!r} cannot be used; ")
    assert said.endswith("; try --device cpu")
    assert "\n" not in said


def test_a_device_that_computes_nothing_is_refused():
    with pytest.raises(HarnessError, match="device 'meta' cannot be used"):
        pick_device("meta")


def test_auto_is_float32_where_there_is_no_gpu():
    assert pick_dtypes("auto", "cpu") == pick_dtypes("auto", "mps") == ("float32",)


@pytest.mark.parametrize(
    ("native", "dtypes"),
    [(True, ("bfloat16", "float16", "float32")), (False, ("float16", "float32"))],
    ids=["native", "emulated"],
)
def test_auto_on_a_gpu_tries_16_bit_before_float32(native: bool, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_dtypes("auto", "cuda") == pick_dtypes("auto", "cuda:1") == dtypes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_is_taken_at_its_word(dtype: str):
    assert pick_dtypes(dtype, "cpu") == pick_dtypes(dtype, "cuda") == (dtype,)


def test_float16_is_refused_on_a_cpu_with_what_to_use_instead():
    assert pick_dtypes("float16", "cuda") == ("float16",)
    with pytest.raises(HarnessError, match="use bfloat16 or float32"):
        pick_dtypes("float16", "cpu")


@pytest.mark.parametrize(("dtype", "near"), [("flaot32", "float32"), ("bf16", "bfloat16"), ("float23", "float32")])
def test_an_unknown_dtype_gets_the_nearest(dtype: str, near: str):
    with pytest.raises(HarnessError) as caught:
        pick_dtypes(dtype, "cpu")
    said = str(caught.value)
    assert said.startswith(f"unknown dtype {dtype!r} in --dtype; ")
    assert near in said.split("there are")[0] or "there are" in said
    assert said.endswith("there are: auto, bfloat16, float16, float32")
