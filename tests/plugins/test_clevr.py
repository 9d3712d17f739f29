"""The bundled CLEVR renders and the reader of the authors' published folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import harness_clevr
import numpy as np
import pytest
import yaml
from datasets import DatasetDict
from harness_clevr import dataset, pack
from PIL import Image
from pycocotools import mask as coco

from harness.api import HarnessError

ROOT = Path(__file__).parents[2]
SIZES = {"train": 634, "cal": 200, "test": 166}
COLORS, SHAPES = dataset.CONCEPTS[:3], dataset.CONCEPTS[3:]


@pytest.fixture(scope="module")
def clevr() -> DatasetDict:
    return dataset.load()


def rows(splits: DatasetDict, name: str) -> list[dict]:
    """The rows of a split with undecoded images."""
    return splits[name].with_format("arrow")[:].to_pylist()


def decoded(rle: dict) -> np.ndarray:
    """A region's mask, by the reference implementation."""
    return coco.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def spread(image: bytes) -> np.ndarray:
    """Largest minus smallest channel of every pixel."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    return pixels.max(axis=2) - pixels.min(axis=2)  # never negative, so bytes suffice


# ---- the bundled renders


def test_the_splits_have_the_papers_sizes_in_the_order_of_their_roles(clevr):
    assert {name: len(part) for name, part in clevr.items()} == SIZES
    assert list(clevr) == ["train", "cal", "test"]


def test_every_split_holds_the_nine_combinations_equally_often(clevr):
    for name in SIZES:
        counts = Counter(tuple(row["concepts"]) for row in rows(clevr, name))
        assert len(counts) == 9
        assert max(counts.values()) - min(counts.values()) <= 1


def test_each_image_has_exactly_one_color_and_one_shape_in_sorted_order(clevr):
    for name in SIZES:
        for row in rows(clevr, name):
            color, shape = row["concepts"]
            assert color in COLORS
            assert shape in SHAPES


def test_both_concepts_of_an_image_share_one_mask_of_the_images_size(clevr):
    for name in SIZES:
        for row in rows(clevr, name):
            assert [region["concept"] for region in row["regions"]] == row["concepts"]
            first, second = (region["rle"] for region in row["regions"])
            assert first == second
            width, height = Image.open(io.BytesIO(row["image"]["bytes"])).size
            assert first["size"] == [height, width] == [240, 320]


def test_no_object_is_tiny_or_touches_the_frame(clevr):
    for name in SIZES:
        for row in rows(clevr, name):
            mask = decoded(row["regions"][0]["rle"])
            assert 0.01 <= mask.mean() <= 0.4
            assert not mask[[0, -1]].any()
            assert not mask[:, [0, -1]].any()


def test_the_mask_covers_the_colored_object_and_nothing_else(clevr):
    overlaps = []
    for name in SIZES:
        for row in rows(clevr, name):
            mask, colored = decoded(row["regions"][0]["rle"]), spread(row["image"]["bytes"])
            assert colored[mask].mean() > colored[~mask].mean() + 25, row["id"]
            foreground = colored > dataset.SPREAD
            overlaps.append((mask & foreground).sum() / (mask | foreground).sum())
    assert np.mean(overlaps) > 0.9


def test_the_strongest_channel_inside_the_mask_is_the_named_color(clevr):
    channels = {"color::red": 0, "color::green": 1, "color::blue": 2}
    for name in SIZES:
        for row in rows(clevr, name):
            pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
            mean = pixels[decoded(row["regions"][0]["rle"])].mean(axis=0)
            assert mean.argmax() == channels[row["concepts"][0]], row["id"]


def test_objects_stand_on_every_inner_patch_and_on_none_always(clevr):
    masks = np.stack([decoded(row["regions"][0]["rle"]) for row in rows(clevr, "train")])
    patches = masks.reshape(-1, 16, 15, 16, 20).any(axis=(2, 4)).mean(axis=0)
    assert patches.max() < 0.25
    assert (patches[1:-1, 1:-1] > 0).all()


def test_no_id_and_no_image_occurs_twice(clevr):
    everything = [row for name in SIZES for row in rows(clevr, name)]
    assert len({row["id"] for row in everything}) == 1000
    assert len({hashlib.sha256(row["image"]["bytes"]).digest() for row in everything}) == 1000


def test_the_images_decode_and_the_columns_are_the_contracts(clevr):
    assert clevr["train"].features == dataset.features()
    assert list(clevr["train"].features) == ["id", "image", "concepts", "regions"]
    assert clevr["test"][0]["image"].size == (320, 240)


def test_the_parquet_file_stays_within_15_megabytes():
    assert Path(dataset.__file__).with_name("clevr.parquet").stat().st_size <= 15_000_000


def test_loading_writes_no_cache_file(clevr):
    assert all(part.cache_files == [] for part in clevr.values())


def test_the_entry_and_the_task_name_what_the_plugin_offers():
    (entry,) = harness_clevr.harness_register_datasets()
    task = yaml.safe_load((ROOT / "tasks" / "clevr.yaml").read_text(encoding="utf-8"))
    assert (entry.name, entry.target) == ("clevr", "harness_clevr.dataset:load")
    assert task["dataset"] == {"name": entry.name}
    assert tuple(task["concepts"]) == dataset.CONCEPTS


def test_the_readme_states_the_positives_of_each_split(clevr):
    readme = Path(dataset.__file__).with_name("README.md").read_text(encoding="utf-8")
    for concept in dataset.CONCEPTS:
        counts = [sum(concept in row["concepts"] for row in rows(clevr, name)) for name in SIZES]
        assert f"| `{concept}` | " + " | ".join(map(str, counts)) + " |" in readme


# ---- packing


@pytest.fixture
def renders(tmp_path) -> Path:
    """Nine tiny renders, one a combination."""
    pairs = [(color, shape) for color in ("blue", "green", "red") for shape in ("cube", "cylinder", "sphere")]
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    lines = []
    for number, (color, shape) in enumerate(pairs):
        name = f"clevr-{number}"
        mask = np.zeros((6, 8), dtype=np.uint8)
        mask[2:4, 1 : 2 + number % 3] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "images" / f"{name}.png")
        lines.append(json.dumps({"id": name, "color": color, "shape": shape, "size": "small", "material": "metal"}))
    (tmp_path / "scenes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def packed(monkeypatch, folder: Path, output: Path) -> bytes:
    """What pack.py writes for nine renders."""
    monkeypatch.setattr(pack, "SPLITS", {"train": 5, "cal": 2, "test": 2})
    monkeypatch.setattr("sys.argv", ["pack.py", str(folder), str(output)])
    pack.main()
    return output.read_bytes()


def test_packing_the_same_folder_twice_gives_the_same_bytes(renders, monkeypatch, tmp_path):
    first = packed(monkeypatch, renders, tmp_path / "a.parquet")
    assert first == packed(monkeypatch, renders, tmp_path / "b.parquet")


def test_a_packed_mask_reads_back_as_it_was(renders, monkeypatch, tmp_path):
    packed(monkeypatch, renders, tmp_path / "a.parquet")
    for _, row in dataset.packed_rows(tmp_path / "a.parquet"):
        original = np.asarray(Image.open(renders / "masks" / f"{row['id']}.png")) > 127
        assert (decoded(row["regions"][0]["rle"]) == original).all()


def test_another_seed_draws_another_split_of_the_same_sizes():
    scenes = [{"id": str(n), "color": str(n % 3), "shape": str(n // 3 % 3)} for n in range(1000)]
    first, second = pack.split_of(scenes, 0), pack.split_of(scenes, 1)
    assert first == pack.split_of(scenes, 0) != second
    assert Counter(first.values()) == Counter(second.values()) == SIZES


# ---- the authors' published folder

COLUMNS = ["image_path", "class", *dataset.CONCEPTS, "split"]


def line(path: str, split: str, **changed: str) -> dict[str, str]:
    """One line of metadata.csv: a blue cube."""
    cells = dict.fromkeys(dataset.CONCEPTS, "0") | {"color::blue": "1", "shape::cube": "1"}
    return {"image_path": path, "class": "blue cube", **cells, "split": split, **changed}


@pytest.fixture
def published(tmp_path) -> Path:
    """A folder in the authors' layout: grey images with three pixels around the mask rule's bound."""
    folder = tmp_path / "CLEVR"
    (folder / "images").mkdir(parents=True)
    for split in SIZES:
        pixels = np.full((4, 5, 3), 100, dtype=np.uint8)
        pixels[0, 0] = (100, 120, 100)
        pixels[1, 2] = (100, 100, 121)
        pixels[3, 4] = (90, 105, 111)
        Image.fromarray(pixels).save(folder / "images" / f"{split}.png")
    write(folder, [line(f"images/{split}.png", split) for split in SIZES])
    return folder


def write(folder: Path, lines: list[dict[str, str]], columns: list[str] = COLUMNS) -> None:
    """Write metadata.csv."""
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(lines)


def refusal(folder: Path) -> str:
    """The error that reading the folder gives, which is one line."""
    with pytest.raises(HarnessError) as caught:
        dataset.load(folder=str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_published_folder_gives_the_same_columns_as_the_bundled_renders(published, clevr):
    splits = dataset.load(folder=str(published))
    assert {name: len(part) for name, part in splits.items()} == {"train": 1, "cal": 1, "test": 1}
    assert splits["cal"].features == clevr["cal"].features
    (row,) = rows(splits, "cal")
    assert row["id"] == "images/cal.png"
    assert row["concepts"] == ["color::blue", "shape::cube"]
    assert row["image"]["bytes"] == (published / "images" / "cal.png").read_bytes()


def test_a_pixel_is_the_objects_only_when_two_channels_differ_by_more_than_20(published):
    (row,) = rows(dataset.load(folder=str(published)), "test")
    mask = decoded(row["regions"][1]["rle"])
    assert mask.shape == (4, 5)
    assert [tuple(place) for place in np.argwhere(mask)] == [(1, 2), (3, 4)]


def test_changed_pixels_are_read_afresh(published):
    before = dataset.load(folder=str(published))["train"][0]
    Image.new("RGB", (5, 4), (0, 0, 255)).save(published / "images" / "train.png")
    after = dataset.load(folder=str(published))["train"][0]
    assert decoded(after["regions"][0]["rle"]).all()
    assert before["regions"] != after["regions"]


@pytest.mark.parametrize("path", ["../secret.png", "images/../../secret.png", "/etc/hostname", "link.png"])
def test_a_path_that_leaves_the_folder_is_refused(published, path):
    Image.new("RGB", (2, 2)).save(published.parent / "secret.png")
    (published / "link.png").symlink_to(published.parent / "secret.png")
    write(published, [line(path, "train")])
    message = refusal(published)
    assert f"image_path {path!r} leads outside the folder" in message
    assert "line 2" in message


def test_a_missing_column_is_named_beside_those_that_were_found(published):
    columns = [name.replace("color::blue", "blue") for name in COLUMNS]
    write(published, [line("images/train.png", "train")], columns)
    message = refusal(published)
    assert message.startswith("missing columns color::blue;")
    assert "found image_path, class, blue, color::green" in message


def test_an_unknown_split_is_refused_with_those_that_are_allowed(published):
    write(published, [line("images/train.png", "validation")])
    message = refusal(published)
    assert message.startswith("split is 'validation';")
    assert "allowed: train, cal, test" in message


def test_a_concept_cell_that_is_neither_0_nor_1_is_refused(published):
    write(published, [line("images/train.png", "train", **{"shape::cube": "yes"})])
    assert "shape::cube is 'yes'" in refusal(published)


def test_a_split_without_images_is_refused(published):
    write(published, [line("images/train.png", "train"), line("images/test.png", "test")])
    assert "no image has split 'cal'" in refusal(published)


def test_an_image_that_stands_twice_is_refused(published):
    write(published, [line("images/train.png", "train"), line("images/train.png", "test")])
    assert "image_path 'images/train.png' occurs twice" in refusal(published)


def test_an_image_that_is_not_there_is_refused(published):
    write(published, [line("images/none.png", "train")])
    assert "image 'images/none.png' is not there" in refusal(published)


def test_a_file_that_is_no_image_is_refused(published):
    (published / "images" / "train.png").write_bytes(b"no picture")
    assert "image 'images/train.png' cannot be decoded" in refusal(published)


def test_a_folder_without_metadata_is_refused(tmp_path):
    assert refusal(tmp_path).startswith(f"no metadata.csv; {tmp_path};")
