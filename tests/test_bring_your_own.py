"""docs/own-data.md taken at its word: its YAML files, as printed, on a folder of images with masks and on a JSONL with spans.

Each is validated and run with `--method superactivator`, on a tiny random backbone in place of the one that the page names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
import yaml
from PIL import Image
from test_docs import blocks, the
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from harness.cli import main

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = [
    "the",
    "a",
    "shop",
    "was",
    "lovely",
    "just",
    "awful",
    "slow",
    "staff",
    "and",
    "my",
    "order",
    "came",
    "late",
    "quick",
    "kind",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints on stdout."""

    def call(*words: str) -> str:
        main(list(words))
        return capsys.readouterr().out

    return call


def printed(name: str) -> str:
    """The page's YAML of a task, written beside its data."""
    (text,) = [b.text for b in blocks("yaml") if b.page == "own-data.md" and b.text.startswith(f"task: {name}\n")]
    assert len(text.splitlines()) < 15
    Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    return f"{name}.yaml"


def run(said: Callable[..., str], task: str, backbone: Path) -> list[dict[str, Any]]:
    """The score rows of a small run with the paper's method."""
    words = ["run", "--task", task, "--backbone", f"hf:{backbone}", "--method", "superactivator", "--bootstrap", "20"]
    said(*words, "--cache-dir", "cache", "--device", "cpu")
    (result,) = Path("results").rglob("result.json")
    rows: list[dict[str, Any]] = json.loads(result.read_text())["scores"]
    return rows


def value(rows: list[dict[str, Any]], metric: str) -> float:
    (found,) = [row["value"] for row in rows if (row["metric"], row["layer"], row["concept"]) == (metric, "chosen", "macro")]
    return float(found)


def write_flowers() -> None:
    """Sixteen pictures a split: a red or a yellow square on grey, with its mask, in the page's own line of metadata."""
    shown = json.loads(the("own-data.md", "json", "flowers/metadata.jsonl"))
    generator = np.random.default_rng(0)
    lines = []
    for i in range(48):
        concept, colour = (("rose", (220, 20, 40)), ("tulip", (230, 210, 30)))[i % 2]
        top, left = generator.integers(0, 40, 2)
        pixels = generator.integers(90, 130, (64, 64, 3), dtype=np.uint8)
        pixels[top : top + 20, left : left + 20] = colour
        mask = np.zeros((64, 64), np.uint8)
        mask[top : top + 20, left : left + 20] = 255
        for name, array in ((f"images/{i}.png", pixels), (f"masks/{i}.png", mask)):
            path = Path("flowers") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        masks = [{"concept": concept, "mask": f"masks/{i}.png"}]
        row = {
            "file_name": f"images/{i}.png",
            "split": ("train", "cal", "test")[i // 2 % 3],
            "concepts": [concept],
            "masks": masks,
        }
        assert row.keys() == shown.keys()
        assert masks[0].keys() == shown["masks"][0].keys()
        lines.append(json.dumps(row))
    Path("flowers/metadata.jsonl").write_text("\n".join(lines) + "\n")


def tiny_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    tf.ViTModel(tf.ViTConfig(**SIZES, image_size=32, patch_size=8)).save_pretrained(folder)
    return folder


def test_images_with_masks_are_validated_and_measured(said: Callable[..., str], tmp_path: Path) -> None:
    write_flowers()
    task = printed("flowers")
    table = [line.split() for line in said("validate", task).splitlines()]
    assert ["concept", "train", "(16)", "cal", "(16)", "test", "(16)"] in table
    assert ["rose", "8", "8", "8"] in table
    rows = run(said, task, tiny_vit(tmp_path / "vit"))
    assert value(rows, "f1") > 0.6
    assert {row["metric"] for row in rows} >= {"f1", "token_f1"}


def write_reviews() -> None:
    """Thirty reviews a part: one glad or angry word among others, its span in the page's own line."""
    shown = json.loads(the("own-data.md", "json", "reviews.jsonl"))
    generator = np.random.default_rng(0)
    lines = []
    for i in range(90):
        concept, word = (("joy", "lovely"), ("anger", "awful"))[i % 2]
        others = list(generator.choice([other for other in WORDS if other not in ("lovely", "awful")], 8))
        place = int(generator.integers(0, 9))
        text = " ".join([*others[:place], word, *others[place:]])
        start = text.index(word)
        regions = [{"concept": concept, "start": start, "end": start + len(word)}]
        row = {"review": text, "part": ("train", "dev", "test")[i // 2 % 3], "concepts": [concept], "regions": regions}
        assert row.keys() == shown.keys()
        assert regions[0].keys() == shown["regions"][0].keys()
        lines.append(json.dumps(row))
    Path("reviews.jsonl").write_text("\n".join(lines) + "\n")


def tiny_bert(folder: Path) -> Path:
    torch.manual_seed(0)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*names, *WORDS, *letters]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), names, strict=True))
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles).save_pretrained(folder)
    tf.BertModel(tf.BertConfig(**SIZES, vocab_size=len(vocabulary), max_position_embeddings=64)).save_pretrained(folder)
    return folder


def test_texts_with_spans_are_validated_and_measured(said: Callable[..., str], tmp_path: Path) -> None:
    write_reviews()
    task = printed("reviews")
    table = [line.split() for line in said("validate", task).splitlines()]
    assert ["concept", "train", "(30)", "cal", "(30)", "test", "(30)"] in table
    assert ["joy", "15", "15", "15"] in table
    rows = run(said, task, tiny_bert(tmp_path / "bert"))
    assert value(rows, "f1") > 0.9
    assert value(rows, "token_f1") > 0.6  # random weights: well above the share of tokens, 1 in 9


def test_every_task_of_the_page_says_whose_data_it_is() -> None:
    for block in blocks("yaml"):
        if block.page == "own-data.md" and block.text.startswith("task:"):
            assert {"source", "license", "citation"} <= set(yaml.safe_load(block.text)["metadata"])
