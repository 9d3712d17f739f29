"""`harness validate`: what passes, the statistics it prints, and one line for each thing that is wrong with a task."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from harness.api import SPLITS
from harness.cli import main
from harness.registry import load
from harness.tasks import find_tasks, read_task

STATED = {"source": "a test", "license": "CC0-1.0", "citation": "none"}
Rows = list[dict[str, Any]]


def texts() -> Rows:
    """Four a split, glad and sad in turn."""
    rows = []
    for split in SPLITS:
        for i in range(4):
            word = ("glad", "sad")[i % 2]
            text = f"{split} {i} is {word}"
            region = {"concept": word, "start": len(text) - len(word), "end": len(text)}
            rows.append({"id": f"{split}{i}", "text": text, "split": split, "concepts": [word], "regions": [region]})
    return rows


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_DATA", raising=False)


def write(rows: Rows, **changes: Any) -> str:
    """mine.yaml and the rows it reads; a change to None takes a key away."""
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "task": "mine",
        "modality": "text",
        "dataset": {"name": "table", "path": "mine.jsonl"},
        "metadata": STATED,
        **changes,
    }
    Path("mine.yaml").write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return "mine.yaml"


@pytest.fixture
def validate(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """What the command prints where it passes."""

    def call(task: str) -> str:
        main(["validate", task])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """The one line on stderr of a task that fails, with exit code 2."""

    def call(task: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["validate", task])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def test_a_sound_task_passes_with_the_positives_of_every_concept_in_every_split(validate: Callable[[str], str]) -> None:
    said = validate(write(texts()))
    rows = [line.split() for line in said.splitlines()]
    assert ["concept", "train", "(4)", "cal", "(4)", "test", "(4)"] in rows
    assert ["glad", "2", "2", "2"] in rows
    assert ["sad", "2", "2", "2"] in rows
    assert "fingerprint " in said


def test_a_wrong_key_is_named_with_the_nearest(refused: Callable[[str], str]) -> None:
    line = refused(write(texts(), concpets=["glad"]))
    assert line.startswith("error: unknown key 'concpets' in task file mine.yaml; did you mean concepts")


@pytest.mark.parametrize("key", ["source", "license", "citation"])
def test_a_task_that_does_not_say_whose_data_it_is_fails(key: str, refused: Callable[[str], str]) -> None:
    line = refused(write(texts(), metadata={name: value for name, value in STATED.items() if name != key}))
    assert line == (
        f"error: task 'mine' states no {key} in `metadata`; add `metadata: {{{key}: ...}}`, with `none` where there is none"
    )


def test_no_metadata_at_all_is_a_missing_source_and_a_misspelt_licence_is_told_its_name(refused: Callable[[str], str]) -> None:
    assert "task 'mine' states no source in `metadata`" in refused(write(texts(), metadata=None))
    line = refused(write(texts(), metadata={"source": "a", "licence": "CC0", "citation": "none"}))
    assert line == "error: task 'mine' states no license in `metadata`; it has 'licence'; write 'license'"


def test_splits_that_overlap_fail_also_where_only_case_and_space_differ(refused: Callable[[str], str]) -> None:
    rows = texts()
    rows[9]["text"], rows[9]["regions"] = "Train  1 is SAD", []
    rows[10]["text"] = rows[2]["text"]
    rows[10]["regions"] = rows[2]["regions"]
    line = refused(write(rows))
    assert line == (
        "error: splits train and test of task 'mine' overlap: 2 samples have the same content, such as 'train1' and 'test1'; "
        "a sample may stand in one split alone; leave out the others"
    )


def test_a_duplicate_id_is_named_with_both_places(refused: Callable[[str], str]) -> None:
    rows = texts()
    rows[5]["id"] = "train2"
    line = refused(write(rows))
    assert line.startswith("error: id 'train2' is there twice: ")
    assert "mine.jsonl, line 3 and " in line
    assert "mine.jsonl, line 6; ids must be unique over all splits" in line


def test_an_unknown_concept_is_named_with_the_nearest(refused: Callable[[str], str]) -> None:
    line = refused(write(texts(), concepts=["glad", "sadd"]))
    assert line.startswith("error: unknown concept 'sadd' in task 'mine': no sample of the data set has it; did you mean sad")


def test_a_concept_that_is_nowhere_and_no_typo_is_named_with_its_counts(validate: Callable[[str], str]) -> None:
    said = " ".join(validate(write(texts(), concepts=["glad", "sad", "bewildered"])).split())
    assert "note: concepts left out, too few positives: bewildered (train 0 positives, needs 1" in said


def test_a_span_outside_its_text_is_named_with_its_line(refused: Callable[[str], str]) -> None:
    rows = texts()
    rows[5]["regions"][0]["end"] = 99
    line = refused(write(rows))
    assert "mine.jsonl, line 6, column 'regions': {'concept': 'sad', 'start': 9, 'end': 99} is no span; " in line
    assert "0 <= start < end <= 12" in line


def test_a_mask_that_does_not_fit_its_image_is_named_with_both_sizes(refused: Callable[[str], str]) -> None:
    rows = []
    for k, split in enumerate(SPLITS):
        Image.fromarray(np.full((6, 8, 3), 40 * k, np.uint8)).save(f"{split}.png")
        rle = coco_mask.encode(np.asfortranarray(np.ones((6, 8) if k else (8, 6), np.uint8)))
        region = {"concept": "glad", "rle": {"size": rle["size"], "counts": rle["counts"].decode()}}
        rows.append({"image": f"{split}.png", "split": split, "concepts": ["glad"], "regions": [region]})
    line = refused(write(rows, modality="image"))
    assert "a mask of sample 'train.png' of split 'train' has (height, width) (8, 6), its image has (6, 8)" in line


def test_a_missing_file_an_empty_split_and_a_wrong_data_set_fail_in_one_line(refused: Callable[[str], str]) -> None:
    assert "data set table finds no 'gone.jsonl'" in refused(write(texts(), dataset={"name": "table", "path": "gone.jsonl"}))
    assert "has no rows for cal" in refused(write([row for row in texts() if row["split"] != "cal"]))
    assert "unknown dataset 'tabel' in task 'mine'; did you mean table?" in refused(write(texts(), dataset={"name": "tabel"}))


def test_the_command_as_a_person_runs_it_gives_exit_code_2_and_one_line_and_no_traceback() -> None:
    rows = texts()
    rows[10]["text"], rows[10]["regions"] = rows[2]["text"], rows[2]["regions"]
    words = [sys.executable, "-c", "from harness.cli import main; main()", "validate", write(rows)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: splits train and test of task 'mine' overlap: 1 samples")
    assert len(done.stderr.splitlines()) == 1
    assert "glad" in done.stdout


def test_every_bundled_task_says_whose_data_it_is() -> None:
    for path in find_tasks(load()).values():
        assert all(read_task(path).metadata.get(key) for key in STATED), path


@pytest.mark.parametrize("name", ["toy", "clevr", "sarcasm"])
def test_bundled_tasks_that_need_no_data_pass(name: str, validate: Callable[[str], str]) -> None:
    assert f"task {name}, version 1" in validate(name)
