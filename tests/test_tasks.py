"""Task files and what is read through them: every message a user can see, the fingerprint, the limit, and what is left out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import small_backbones
import yaml
from pycocotools import mask as coco_mask

from harness.errors import HarnessError
from harness.registry import Registry
from harness.tasks import Task, find_tasks, load_task, read_task, task_file
from harness.types import LEVELS, SPLITS

Give = Callable[..., str]
Rows = dict[str, list[dict[str, Any]]]
GOOD = {"task": "mine", "modality": "text", "dataset": {"name": "given", "key": "none"}}


def written(folder: Path, **changes: Any) -> Path:
    """A task file; a change to `...` takes the key away."""
    values = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def refused(act: Callable[[], Any]) -> str:
    """The one line that a mistake gets."""
    with pytest.raises(HarnessError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def words(split: str, n: int = 4) -> list[dict[str, Any]]:
    """Texts that are glad and sad in turn."""
    made = []
    for i in range(n):
        concept = ("glad", "sad")[i % 2]
        text = f"{split} {i} is {concept}"
        region = {"concept": concept, "start": len(text) - len(concept), "end": len(text)}
        made.append({"id": f"{split}{i}", "text": text, "concepts": [concept], "regions": [region]})
    return made


def texts(**changes: list[dict[str, Any]]) -> Rows:
    return {**{split: words(split) for split in SPLITS}, **changes}


def picture(seed: int, size: tuple[int, int] = (6, 8), kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(sink, kind)
    return sink.getvalue()


def region(concept: str, size: tuple[int, int] = (6, 8)) -> dict[str, Any]:
    mask = np.zeros(size, np.uint8)
    mask[1:3, 2:5] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"concept": concept, "rle": {"size": list(size), "counts": rle["counts"].decode()}}


def images(**changes: list[dict[str, Any]]) -> Rows:
    made: Rows = {}
    for s, split in enumerate(SPLITS):
        made[split] = [
            {
                "id": f"{split}{i}",
                "image": {"bytes": picture(10 * s + i), "path": None},
                "concepts": ["cat"] if i % 2 else ["dog"],
                "regions": [region("cat" if i % 2 else "dog")],
            }
            for i in range(4)
        ]
    return {**made, **changes}


@pytest.fixture
def load(give: Give, registry: Registry, tmp_path: Path) -> Callable[..., Task]:
    """The task of given rows, through a task file."""

    def make(rows: Rows, limit: int | None = None, cache_dir: Path | None = None, **changes: Any) -> Task:
        kind = changes.pop("modality", "image" if "image" in rows["train"][0] else "text")
        key = give(kind, **rows)
        path = written(tmp_path, modality=kind, dataset={"name": "given", "key": key}, **changes)
        return load_task(registry, str(path), limit, cache_dir)

    return make


# --- the file


def test_a_good_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    read = read_task(written(tmp_path, concepts=["glad"], min_positive={"cal": 3}, levels=[0.1, 0.5]))
    assert (read.task, read.modality, read.version, read.concepts) == ("mine", "text", 1, ("glad",))
    assert read.min_positive == {"train": 1, "cal": 3, "test": 1}
    assert read.levels == (0.1, 0.5)
    assert read_task(written(tmp_path)).levels == LEVELS


def test_a_misspelt_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, concpets=["glad"])
    message = refused(lambda: read_task(path))
    assert message.startswith(f"unknown key 'concpets' in task file {path}; did you mean concepts")
    assert "; there are: backbone, concepts, dataset, " in message


@pytest.mark.parametrize("key", ["task", "dataset", "modality"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    path = written(tmp_path, **{key: ...})
    assert refused(lambda: read_task(path)) == f"task file {path} has no key {key!r}; it is required"


BAD: list[tuple[str, Any, str]] = [
    ("task", "", "a name"),
    ("task", 5, "a name"),
    ("modality", "images", "image, text, tokens"),
    ("modality", None, "image, text, tokens"),
    ("dataset", "toy", "a mapping with `name` and options"),
    ("dataset", {"split": "paper"}, "a mapping with `name` and options"),
    ("dataset", {"name": 5}, "a mapping with `name` and options"),
    ("concepts", "glad", "a list of names (quote yes, no, on, off), or null"),
    ("concepts", [], "a list of names (quote yes, no, on, off), or null"),
    ("concepts", [True, "off"], "a list of names (quote yes, no, on, off), or null"),
    ("concepts", [""], "a list of names (quote yes, no, on, off), or null"),
    ("version", 0, "a whole number from 1"),
    ("version", "1.0", "a whole number from 1"),
    ("version", True, "a whole number from 1"),
    ("min_positive", 4, "a mapping of split to a whole number from 1"),
    ("min_positive", {"cal": 0}, "a mapping of split to a whole number from 1"),
    ("min_positive", {"cal": 2.5}, "a mapping of split to a whole number from 1"),
    ("levels", [], "rising fractions between 0 and 1"),
    ("levels", [0.5, 0.1], "rising fractions between 0 and 1"),
    ("levels", [0.1, 0.1], "rising fractions between 0 and 1"),
    ("levels", [0.1, 1.0], "rising fractions between 0 and 1"),
    ("levels", [0.0, 0.5], "rising fractions between 0 and 1"),
    ("levels", [2], "rising fractions between 0 and 1"),
    ("levels", 0.1, "rising fractions between 0 and 1"),
    ("image_size", 0, "a whole number of pixels"),
    ("image_size", "224", "a whole number of pixels"),
    ("image_size", True, "a whole number of pixels"),
    ("backbone", 3, ""),
    ("backbone", ["toy"], ""),
    ("description", ["long"], ""),
    ("metadata", "CC0", ""),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD, ids=[f"{key}: {value!r}" for key, value, _ in BAD])
def test_a_bad_value_is_named_with_its_key_its_file_and_what_is_allowed(
    key: str, value: Any, allowed: str, tmp_path: Path
) -> None:
    path = written(tmp_path, **{key: value})
    message = refused(lambda: read_task(path))
    assert message.startswith(f"task file {path}: bad value for key {key!r}: {value!r}; allowed: {allowed}")


def test_a_concept_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, concepts=["glad", "sad", "glad"])
    assert refused(lambda: read_task(path)) == f"task file {path}: key 'concepts' names 'glad' twice; every concept once"


def test_a_misspelt_split_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, min_positive={"tset": 3})
    message = refused(lambda: read_task(path))
    assert message.startswith(f"unknown split 'tset' in task file {path}, key 'min_positive'; did you mean test?")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refused(lambda: read_task(path)) == f"cannot read task file {path}; No such file or directory"


@pytest.mark.parametrize("text", ["task: [a", "task: a\n  b: c\n : d", b"\xff\xfe\x00"], ids=str)
def test_a_file_that_is_not_yaml_is_named_in_one_line(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert refused(lambda: read_task(path)).startswith(f"task file {path} is not YAML; ")


@pytest.mark.parametrize("text", ["- a", "word", ""])
def test_a_file_without_a_mapping_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(text)
    assert f"task file {path} holds " in refused(lambda: read_task(path))


# --- names


def test_an_unknown_task_is_named_with_the_nearest(registry: Registry) -> None:
    message = refused(lambda: task_file(registry, "toi"))
    assert message.startswith(
        "unknown task 'toi'; did you mean toy?; there are: broden-opensurfaces, broden-pascal, clevr, coco"
    )
    assert message.endswith("see `harness list tasks`, or give the path of a task file")


def test_an_unknown_data_set_is_named_with_the_nearest(registry: Registry, tmp_path: Path) -> None:
    path = written(tmp_path, dataset={"name": "tabel"})
    assert refused(lambda: load_task(registry, str(path))).startswith(
        "unknown dataset 'tabel' in task 'mine'; did you mean table?; there are: "
    )


def test_an_unknown_option_of_a_data_set_is_named_with_the_nearest(registry: Registry, tmp_path: Path) -> None:
    path = written(tmp_path, dataset={"name": "toy", "sede": 3}, modality="tokens")
    assert refused(lambda: load_task(registry, str(path))).startswith(
        "unknown option 'sede' in data set 'toy' of task 'mine'; did you mean seed?"
    )
    assert refused(lambda: load_task(registry, "toy:sede=3")).startswith(
        "unknown option 'sede' in data set 'toy' of task 'toy'"
    )


def test_options_in_a_reference_join_those_of_the_file(registry: Registry) -> None:
    assert task_file(registry, "toy:seed=5").dataset == {"name": "toy", "seed": 5}
    assert load_task(registry, "toy:seed=5").fingerprint != load_task(registry, "toy").fingerprint


def test_every_bundled_task_file_is_good_and_names_a_backbone(registry: Registry) -> None:
    found = find_tasks(registry)
    assert {"toy", "clevr", "coco", "coco-80", "coco-panoptic"} <= set(found)
    for name, path in found.items():
        read = read_task(path)
        assert read.task == name
        assert read.backbone is not None
        assert {"source", "license", "citation"} <= set(read.metadata)


def test_two_task_files_of_one_name_are_an_error_that_names_both(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("task: toy\n")

    class More:
        def task_dirs(self) -> list[Path]:
            return [tmp_path]

    message = refused(lambda: find_tasks(More()))  # type: ignore[arg-type]
    assert message.startswith("two tasks are named 'toy'; ")
    assert str(tmp_path / "toy.yaml") in message
    assert message.endswith("rename one of the files")


# --- what the data set must give


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_split_is_named(split: str, give: Give, registry: Registry, tmp_path: Path) -> None:
    rows = texts()
    del rows[split]
    path = written(tmp_path, dataset={"name": "given", "key": give("text", **rows)})
    has = ", ".join(rows)
    assert refused(lambda: load_task(registry, str(path))) == (
        f"data set 'given' of task 'mine' has no split {split!r}; it has {has}"
    )


def test_an_empty_split_is_named(load: Callable[..., Task]) -> None:
    assert refused(lambda: load(texts(cal=[]))) == "split 'cal' of task 'mine' is empty; every split needs samples"


@pytest.mark.parametrize("column", ["id", "concepts", "regions", "text"])
def test_a_missing_column_is_named(column: str, give: Give, registry: Registry, tmp_path: Path) -> None:
    key = give("text", **texts())
    small_backbones.GIVEN[key]["cal"] = small_backbones.GIVEN[key]["cal"].remove_columns(column)
    path = written(tmp_path, dataset={"name": "given", "key": key})
    message = refused(lambda: load_task(registry, str(path)))
    assert message.startswith(f"split 'cal' of task 'mine' has no column {column!r}; it has ")


def test_two_samples_of_one_id_are_refused_also_across_splits(load: Callable[..., Task]) -> None:
    same = words("cal")
    same[2]["id"] = "train1"
    assert refused(lambda: load(texts(cal=same))) == (
        "sample id 'train1' is there twice (1 such ids); every sample needs an id of its own"
    )


@pytest.mark.parametrize(
    ("concepts", "start"),
    [
        (["glads", "sad"], "unknown concept 'glads' in task 'mine': no sample of the data set has it; did you mean glad"),
        (["angry"], "unknown concept 'angry' in task 'mine': no sample of the data set has it"),
    ],
)
def test_a_declared_concept_that_no_sample_has_is_named(concepts: list[str], start: str, load: Callable[..., Task]) -> None:
    message = refused(lambda: load(texts(), concepts=concepts))
    assert message.startswith(start)
    assert "there are: glad, sad" in message


def test_where_no_concept_has_enough_positives_the_error_says_what_to_do(load: Callable[..., Task]) -> None:
    message = refused(lambda: load(texts(), min_positive={"test": 3}))
    assert message.startswith(
        "no concept of task 'mine' has enough positives in every split; needs {'train': 1, 'cal': 1, 'test': 3}"
    )
    assert "lower `min_positive`" in message


def test_where_no_sample_of_a_split_can_be_read_the_error_names_one(load: Callable[..., Task]) -> None:
    blank = [{**row, "text": " "} for row in words("cal")]
    assert refused(lambda: load(texts(cal=blank))) == "no sample of split 'cal' of task 'mine' can be read; e.g. 'cal0'"


def test_a_mask_of_another_size_than_its_image_is_refused(load: Callable[..., Task]) -> None:
    rows = images()
    rows["cal"][1]["regions"] = [region("cat", (8, 6))]
    message = refused(lambda: load(rows))
    assert message.startswith("a mask of sample 'cal1' of split 'cal' has (height, width) (8, 6), its image has (6, 8)")


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (2, 2), (0, 99)])
def test_a_span_outside_its_text_is_refused_whatever_data_set_gave_it(start: int, end: int, load: Callable[..., Task]) -> None:
    rows = texts()
    rows["cal"][1]["regions"] = [{"concept": "sad", "start": start, "end": end}]
    assert refused(lambda: load(rows)) == (
        f"a region of sample 'cal1' of split 'cal' is outside its text: 'sad' from character {start} to {end}, the text has 12; "
        "0 <= start < end <= length is allowed"
    )


# --- what is left out


def test_concepts_with_too_few_positives_leave_with_their_counts(load: Callable[..., Task]) -> None:
    rare = words("cal")
    rare[0]["concepts"] += ["rare"]
    rows = texts(cal=rare, train=[{**row, "concepts": [*row["concepts"], "rare"]} for row in words("train")])
    task = load(rows, min_positive={"train": 2, "cal": 2, "test": 2})
    assert task.concepts == ("glad", "sad")
    assert task.notes["concepts left out, too few positives"] == {
        "rare": {"cal": "1 positives, needs 2", "test": "0 positives, needs 2"}
    }


def test_a_declared_concept_that_no_sample_has_leaves_like_a_rare_one_when_it_is_no_typo(load: Callable[..., Task]) -> None:
    task = load(texts(), concepts=["glad", "sad", "angry"])
    assert task.concepts == ("glad", "sad")
    assert set(task.notes["concepts left out, too few positives"]["angry"]) == set(SPLITS)


def test_unreadable_images_leave_and_are_named(load: Callable[..., Task]) -> None:
    rows = images()
    rows["train"][1]["image"]["bytes"] = picture(1)[:40]
    rows["train"][2]["image"]["bytes"] = b"no image at all"
    rows["test"][0]["image"]["bytes"] = picture(5, kind="JPEG")[:200]
    task = load(rows)
    assert task.notes["unreadable image in train, left out"] == {"count": 2, "ids": ["train1", "train2"]}
    assert task.notes["unreadable image in test, left out"] == {"count": 1, "ids": ["test0"]}
    assert task.splits["train"].ids == ("train0", "train3")
    assert task.splits["train"].labels.tolist() == [[False, True], [True, False]]
    assert [task.splits["train"].sample(i).id for i in range(2)] == ["train0", "train3"]
    assert len(task.splits["train"].hashes) == 2


@pytest.mark.parametrize("image", [{"bytes": None, "path": "gone.png"}, None], ids=["file gone", "no image"])
def test_an_image_that_is_not_there_leaves_and_is_named_like_any_unreadable_one(
    image: Any, load: Callable[..., Task], tmp_path: Path
) -> None:
    rows = images()
    rows["train"][1]["image"] = image and {**image, "path": str(tmp_path / image["path"])}
    assert load(rows).notes["unreadable image in train, left out"] == {"count": 1, "ids": ["train1"]}


def test_the_verdict_on_images_is_kept_and_does_not_outlive_their_content(
    load: Callable[..., Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = images()
    rows["cal"][3]["image"]["bytes"] = b"broken"
    first = load(rows, cache_dir=tmp_path / "cache")
    from harness import tasks

    def never(image: Any) -> bool:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_readable", never)
        again = load(rows, cache_dir=tmp_path / "cache")
    assert again.notes == first.notes == {"unreadable image in cal, left out": {"count": 1, "ids": ["cal3"]}}
    rows["cal"][3]["image"]["bytes"] = picture(99)
    assert load(rows, cache_dir=tmp_path / "cache").notes == {}


def test_empty_texts_leave_and_are_named_and_the_count_is_whole(load: Callable[..., Task]) -> None:
    many = [{"id": f"blank{i}", "text": ["", "  \n", None][i % 3], "concepts": ["glad"], "regions": []} for i in range(13)]
    task = load(texts(cal=words("cal") + many))
    note = task.notes["empty text in cal, left out"]
    assert note == {"count": 13, "ids": [f"blank{i}" for i in range(10)]}
    assert len(task.splits["cal"]) == 4


def test_labels_and_masks_that_contradict_are_counted_and_the_label_wins(load: Callable[..., Task]) -> None:
    odd = words("cal")
    odd[0]["regions"] = []  # a label without a mask
    odd[1]["regions"] += [{"concept": "glad", "start": 0, "end": 3}]  # a mask without a label
    odd[2]["regions"] = None  # not annotated: no contradiction
    odd[3]["regions"] += [{"concept": "unheard of", "start": 0, "end": 3}]
    task = load(texts(cal=odd))
    assert task.notes == {
        "label without a mask in cal, detection only": {"count": 1, "ids": ["cal0: glad"]},
        "mask without a label in cal, mask not used": {"count": 1, "ids": ["cal1: glad"]},
    }
    assert task.splits["cal"].labels.tolist() == [[True, False], [False, True], [True, False], [False, True]]
    assert task.splits["cal"].annotated.tolist() == [True, True, False, True]


def test_content_that_stands_in_two_splits_is_counted(load: Callable[..., Task]) -> None:
    copied = words("test")
    for i, split in ((1, "train"), (3, "cal")):
        copied[i] = {**words(split)[i], "id": copied[i]["id"]}
    notes = load(texts(test=copied)).notes
    assert notes["same content in train and test"] == {"count": 1, "ids": ["test1"]}
    assert notes["same content in cal and test"] == {"count": 1, "ids": ["test3"]}
    assert "same content in train and cal" not in notes


def test_a_clean_task_has_no_notes(load: Callable[..., Task]) -> None:
    assert load(texts()).notes == {}
    assert load(images()).notes == {}


# --- the fingerprint


def edited(rows: Rows, split: str, i: int, **changes: Any) -> Rows:
    rows[split][i].update(changes)
    return rows


def other_pixel(data: bytes) -> bytes:
    pixels = np.asarray(PIL.Image.open(io.BytesIO(data))).copy()
    pixels[0, 0, 0] ^= 1
    sink = io.BytesIO()
    PIL.Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


CHANGED: Mapping[str, Callable[[], Rows]] = {
    "a pixel": lambda: edited(images(), "test", 2, image={"bytes": other_pixel(picture(22)), "path": None}),
    "a label": lambda: edited(images(), "test", 2, concepts=["dog", "cat"]),
    "a region": lambda: edited(images(), "cal", 1, regions=[{**region("cat"), "rle": _wider()}]),
    "a region less": lambda: edited(images(), "cal", 1, regions=[]),
    "annotated or not": lambda: edited(images(), "cal", 1, regions=None),
    "an id": lambda: edited(images(), "train", 0, id="another"),
    "a sample less": lambda: {**images(), "train": images()["train"][:3]},
    "the order": lambda: {**images(), "train": images()["train"][::-1]},
    "samples in other splits": lambda: {**images(), "cal": images()["test"], "test": images()["cal"]},
}


def _wider() -> dict[str, Any]:
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:6] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [6, 8], "counts": rle["counts"].decode()}


def test_the_same_task_has_the_same_fingerprint(load: Callable[..., Task]) -> None:
    assert load(images()).fingerprint == load(images()).fingerprint
    assert re.fullmatch(r"[0-9a-f]{64}", load(images()).fingerprint)


@pytest.mark.parametrize("what", CHANGED)
def test_the_fingerprint_changes_with_the_content(what: str, load: Callable[..., Task]) -> None:
    assert load(CHANGED[what]()).fingerprint != load(images()).fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"task": "other"}, {"levels": [0.1, 0.5]}, {"concepts": ["cat"]}, {"concepts": ["dog", "cat"]}],
    ids=str,
)
def test_the_fingerprint_changes_with_what_the_file_says(changes: dict[str, Any], load: Callable[..., Task]) -> None:
    assert load(images(), **changes).fingerprint != load(images()).fingerprint


def test_the_fingerprint_changes_when_a_file_changes_behind_the_same_path(
    give: Give, registry: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(500))
    rows = edited(images(), "train", 0, image={"bytes": None, "path": str(file)})
    path = written(tmp_path, modality="image", dataset={"name": "given", "key": give("image", **rows)})
    first = load_task(registry, str(path))
    assert load_task(registry, str(path)).fingerprint == first.fingerprint
    file.write_bytes(other_pixel(file.read_bytes()))
    second = load_task(registry, str(path))
    assert second.fingerprint != first.fingerprint
    assert second.splits["train"].hashes[0] != first.splits["train"].hashes[0]
    assert second.splits["train"].hashes[1:] == first.splits["train"].hashes[1:]


def test_a_text_changes_the_fingerprint_and_the_address_of_its_block(load: Callable[..., Task]) -> None:
    first, second = load(texts()), load(edited(texts(), "cal", 0, text="cal 0 is Glad"))
    assert first.fingerprint != second.fingerprint
    assert first.splits["cal"].hashes[0] != second.splits["cal"].hashes[0]


def test_labels_and_regions_are_no_part_of_a_samples_content(load: Callable[..., Task]) -> None:
    """Two tasks over the same pictures share their embeddings."""
    plain = load(images())
    for what in ("a label", "a region", "an id"):
        other = load(CHANGED[what]())
        assert [split.hashes for split in other.splits.values()] == [split.hashes for split in plain.splits.values()]


# --- the limit


def crowd(n: int = 200) -> Rows:
    """`common` in most samples, `seldom` in some, `none` in the rest."""
    made: Rows = {}
    for split in SPLITS:
        made[split] = []
        for i in range(n):
            concepts = ["common"] * (i % 5 > 0) + ["seldom"] * (i % 20 == 7)
            made[split].append({"id": f"{split}-{i}", "text": f"{split} {i}", "concepts": concepts, "regions": []})
    return made


def test_a_limit_takes_that_many_per_split_and_spreads_them_over_concepts(load: Callable[..., Task]) -> None:
    task = load(crowd(), limit=15)
    for split in task.splits.values():
        assert len(split) == 15
        counts = dict(zip(task.concepts, split.labels.sum(0), strict=True))
        assert counts["common"] >= 5
        assert counts["seldom"] >= 4
        assert (~split.labels.any(1)).sum() >= 4
    assert task.limit == 15


def test_a_limit_takes_the_same_samples_whatever_their_order(load: Callable[..., Task]) -> None:
    rows = crowd()
    first = load(rows, limit=15)
    turned = load({split: made[::-1] for split, made in rows.items()}, limit=15)
    for split in SPLITS:
        assert set(first.splits[split].ids) == set(turned.splits[split].ids)
        assert first.splits[split].ids == load(rows, limit=15).splits[split].ids


def test_a_larger_limit_holds_the_smaller_one(load: Callable[..., Task]) -> None:
    small, large = load(crowd(), limit=9), load(crowd(), limit=18)
    for split in SPLITS:
        assert set(small.splits[split].ids) < set(large.splits[split].ids)


def test_a_limit_beyond_the_samples_takes_all_of_them(load: Callable[..., Task]) -> None:
    assert [len(split) for split in load(texts(), limit=99).splits.values()] == [4, 4, 4]


def test_a_concept_that_the_limit_leaves_without_positives_is_noted(load: Callable[..., Task]) -> None:
    rows = {
        split: [{**row, "concepts": ["a", "b", "c"][i % 3 : i % 3 + 1]} for i, row in enumerate(words(split, 9))]
        for split in SPLITS
    }
    task = load(rows, limit=2)
    assert task.concepts == ("a", "b")
    assert set(task.notes["concepts left out, too few positives"]["c"]) == set(SPLITS)


def test_min_positive_is_asked_of_the_whole_split_before_the_limit(load: Callable[..., Task]) -> None:
    task = load(crowd(), limit=6, min_positive={"train": 5, "cal": 5, "test": 5})
    assert set(task.concepts) == {"common", "seldom"}


def test_the_description_counts_samples_and_positives(load: Callable[..., Task]) -> None:
    described = load(texts(test=words("test", 5)), limit=None).describe()
    assert described["samples"] == {"train": 4, "cal": 4, "test": 5}
    assert described["positives"] == {"glad": {"train": 2, "cal": 2, "test": 3}, "sad": {"train": 2, "cal": 2, "test": 2}}
