"""The data set `table`: every kind of source, every kind of region, and one line for every malformed row. Offline."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import datasets
import harness_table
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from harness_table import dataset, hub
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from stub_server import address, listening

from harness.api import SPLITS, HarnessError

ROOT = Path(__file__).parents[2]
TEXT = "so glad, so sad"
FRACTIONS = {"train": 0.6, "cal": 0.2, "test": 0.2}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6), color: Any = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def texts(**changes: Any) -> list[dict[str, Any]]:
    """One row per split; `changes` go into the first."""
    rows: list[dict[str, Any]] = [{"text": TEXT, "split": split, "concepts": ["joy"], "regions": None} for split in SPLITS]
    rows[0].update(changes)
    return rows


def rows_of(split: Any) -> list[dict[str, Any]]:
    return split.with_format("arrow")[:].to_pylist()


def message(**options: Any) -> str:
    with pytest.raises(HarnessError) as error:
        dataset.load(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def decoded(rle: dict[str, Any]) -> np.ndarray:
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})


def test_the_plugin_registers_one_dataset() -> None:
    [entry] = harness_table.harness_register_datasets()
    assert (entry.name, entry.target) == ("table", "harness_table.dataset:load")


# --- texts


def test_jsonl_with_spans_gives_ids_concepts_and_spans(tmp_path: Path) -> None:
    span = {"concept": "joy", "start": 3, "end": 7}
    path = jsonl(tmp_path / "a.jsonl", texts(regions=[span], concepts=["sadness", "joy", "joy"]))
    splits = dataset.load(str(path))
    [row] = rows_of(splits["train"])
    assert row == {"id": "1", "text": TEXT, "concepts": ["joy", "sadness"], "regions": [span]}
    assert TEXT[3:7] == "glad"
    assert rows_of(splits["cal"])[0]["regions"] is None


def test_not_annotated_and_annotated_with_nothing_there_stay_apart(tmp_path: Path) -> None:
    splits = dataset.load(str(jsonl(tmp_path / "a.jsonl", texts(regions=[], concepts=[]))))
    assert rows_of(splits["train"])[0]["regions"] == []
    assert rows_of(splits["test"])[0]["regions"] is None


def test_parquet_csv_and_tsv_hold_the_same_as_jsonl(tmp_path: Path) -> None:
    rows = [{**row, "id": f"r{i}"} for i, row in enumerate(texts(regions=[{"concept": "joy", "start": 0, "end": 2}]))]
    known = dataset.load(str(jsonl(tmp_path / "a.jsonl", rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"a{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            for row in rows:
                regions = json.dumps(row["regions"]) if row["regions"] is not None else ""
                writer.writerow({**row, "concepts": ";".join(row["concepts"]), "regions": regions})
    for suffix in (".parquet", ".csv", ".tsv"):
        found = dataset.load(str(tmp_path / f"a{suffix}"))
        assert {split: rows_of(found[split]) for split in found} == {split: rows_of(known[split]) for split in known}


def test_columns_may_have_other_names_and_0_1_columns_are_concepts(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "part": split, "joy": 1, "anger": "0", "key": i} for i, split in enumerate(SPLITS)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    columns = {"text": "sentence", "split": "part", "id": "key"}
    [row] = rows_of(dataset.load(str(path), columns=columns, concept_columns=["joy", "anger"])["cal"])
    assert row == {"id": "1", "text": "a", "concepts": ["joy"], "regions": None}


def test_without_a_concepts_column_the_regions_say_what_is_present(tmp_path: Path) -> None:
    rows = [{"text": TEXT, "split": split, "regions": [{"concept": "joy", "start": 0, "end": 2}]} for split in SPLITS]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert rows_of(dataset.load(str(path))["test"])[0]["concepts"] == ["joy"]
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "b", "split": "train", "regions": None}])
    assert message(path=str(path)) == (
        f"{path}, line 4, column 'regions': null, so nothing says which concepts are present; add a column `concepts`"
    )


# --- images


MASKS: list[tuple[str, str, Any]] = [
    ("train", "L", 255),
    ("train", "1", 1),
    ("train", "P", 3),
    ("train", "RGB", (0, 0, 9)),
    ("train", "RGBA", (7, 0, 0, 0)),
    ("train", "RGBA", (0, 0, 0, 255)),
    ("train", "LA", (0, 255)),
    ("cal", "I;16", 300),
    ("test", "L", 0),
]


def masked(folder: Path) -> Path:
    """A folder of images with mask images, one of every kind PIL may give."""
    rows = []
    for number, (split, mode, color) in enumerate(MASKS):
        picture(folder / "images" / f"{number}.jpg")
        mask = Image.new(mode, (8, 6))
        mask.paste(color, (2, 1, 5, 4))
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / "masks" / f"{number}.png")
        masks = [{"concept": "rose", "mask": f"masks/{number}.png"}]
        rows.append({"file_name": f"images/{number}.jpg", "split": split, "concepts": ["rose"], "masks": masks})
    jsonl(folder / "metadata.jsonl", rows)
    return folder


def test_mask_images_of_every_mode_are_in_the_concept_where_a_pixel_is_not_zero(tmp_path: Path) -> None:
    splits = dataset.load(str(masked(tmp_path / "flowers")))
    shape = np.zeros((6, 8), np.uint8)
    shape[1:4, 2:5] = 1
    found = [decoded(row["regions"][0]["rle"]) for split in SPLITS for row in rows_of(splits[split])]
    for mask, empty in zip(found, [0, 0, 0, 0, 0, 1, 1, 0, 1], strict=True):
        assert (mask == (0 if empty else shape)).all()


def test_image_ids_come_from_the_file_names_and_images_stay_paths(tmp_path: Path) -> None:
    folder = masked(tmp_path / "flowers")
    (folder / "images" / "0.jpg").write_bytes(b"not an image")
    row = rows_of(dataset.load("flowers")["train"])[0]
    assert row["id"] == "images/0.jpg"
    assert row["image"] == {"bytes": None, "path": str(folder / "images" / "0.jpg")}


def test_class_folders_give_one_concept_each_and_no_annotation(tmp_path: Path) -> None:
    for split in SPLITS:
        for concept in ("rose", "tulip"):
            picture(tmp_path / "f" / split / concept / "1.png")
    splits = dataset.load("f")
    assert [(row["id"], row["concepts"], row["regions"]) for row in rows_of(splits["cal"])] == [
        ("cal/rose/1.png", ["rose"], None),
        ("cal/tulip/1.png", ["tulip"], None),
    ]


def test_split_folders_may_each_have_metadata_and_equal_file_names(tmp_path: Path) -> None:
    for split in SPLITS:
        picture(tmp_path / "f" / split / "1.png")
        (tmp_path / "f" / split / "metadata.csv").write_text("file_name,concepts\n1.png,rose;tulip\n")
    splits = dataset.load("f")
    assert [rows_of(splits[split])[0]["id"] for split in splits] == [f"{split}/1.png" for split in SPLITS]
    assert rows_of(splits["cal"])[0]["concepts"] == ["rose", "tulip"]


def test_images_inside_a_parquet_file_keep_their_bytes(tmp_path: Path) -> None:
    data = picture(tmp_path / "x.png").read_bytes()
    rows = [{"image": {"bytes": data, "path": "x.png"}, "split": split, "concepts": []} for split in SPLITS]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "a.parquet")
    [row] = rows_of(dataset.load("a.parquet")["test"])
    assert row["image"] == {"bytes": data, "path": None}
    assert row["id"] == "3"


SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("split", pa.string()),
        ("concepts", pa.list_(pa.string())),
    ]
)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0.01, 0.99))
def test_rle_with_string_or_list_counts_gives_the_mask(
    tmp_path_factory: pytest.TempPathFactory, seed: int, density: float
) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((6, 8)) < density, dtype=np.uint8)
    flat = mask.flatten(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    folder = tmp_path_factory.mktemp("rle")
    picture(folder / "1.png")
    for counts in (coco_mask.encode(mask)["counts"].decode(), [0, *runs] if flat[0] else runs):
        rle = {"size": [6, 8], "counts": counts}
        rows = [
            {"id": s, "image": "1.png", "split": s, "concepts": ["a"], "regions": [{"concept": "a", "rle": rle}]}
            for s in SPLITS
        ]
        [row] = rows_of(dataset.load(str(jsonl(folder / "a.jsonl", rows)))["cal"])
        assert (decoded(row["regions"][0]["rle"]) == mask).all()


# --- splits


def test_splits_may_be_files_of_different_kinds(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "a", "concepts": ["x"]}])
    (tmp_path / "b.csv").write_text("text,concepts\nb,\n")
    pq.write_table(pa.Table.from_pylist([{"text": "c", "concepts": ["x"]}]), tmp_path / "c.parquet")
    parts = {"train": "a.jsonl", "cal": "b.csv", "test": "c.parquet"}
    for splits in (dataset.load(splits=parts), dataset.load(str(tmp_path), splits=parts)):
        assert [(row["id"], row["text"], row["concepts"]) for split in SPLITS for row in rows_of(splits[split])] == [
            ("train/1", "a", ["x"]),
            ("cal/1", "b", []),
            ("test/1", "c", ["x"]),
        ]


def test_a_folder_with_a_file_per_split_needs_no_option(tmp_path: Path) -> None:
    for split in SPLITS:
        jsonl(tmp_path / "f" / f"{split}.jsonl", [{"text": split, "concepts": []}])
    assert [rows_of(part)[0]["text"] for part in dataset.load("f").values()] == list(SPLITS)


def test_other_split_names_are_mapped_and_what_is_not_named_is_left_out(tmp_path: Path) -> None:
    rows = [{"text": "a", "concepts": [], "split": name} for name in ("train", "dev", "eval", "unused")]
    path = str(jsonl(tmp_path / "a.jsonl", rows))
    splits = dataset.load(path, splits={"train": "train", "cal": "dev", "test": "eval"})
    assert [len(split) for split in splits.values()] == [1, 1, 1]
    assert message(path=path) == (
        f"unknown split 'dev' in {path}, line 2, column 'split'; there are: cal, test, train; "
        f"map other names with `splits: {{train: ..., cal: ..., test: ...}}`"
    )


def test_fractions_cut_by_sha256_of_seed_and_id_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": "a", "concepts": []} for i in range(10)]
    path = str(jsonl(tmp_path / "a.jsonl", rows))
    order = sorted((row["id"] for row in rows), key=lambda i: hashlib.sha256(f"0:{i}".encode()).hexdigest())
    splits = dataset.load(path, fractions=FRACTIONS)
    assert [splits[split]["id"][:] for split in SPLITS] == [order[:6], order[6:8], order[8:]]
    jsonl(tmp_path / "a.jsonl", rows[::-1])
    assert dataset.load(path, fractions=FRACTIONS)["cal"]["id"][:] == order[6:8]
    assert dataset.load(path, fractions=FRACTIONS, split_seed=1)["train"]["id"][:] != order[:6]


def test_class_folders_without_splits_can_be_cut(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / "f" / "rose" / f"{number}.png")
    splits = dataset.load("f", fractions=FRACTIONS)
    assert [len(split) for split in splits.values()] == [3, 1, 1]


def test_there_is_no_random_split_unless_asked_for(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", [{"text": "a", "concepts": []}]))
    assert message(path=path) == (
        f"{path} does not say which rows are train, cal and test: it has no column `split`; name them with `splits` or "
        f"`columns: {{split: ...}}`, or cut it with `fractions: {{train: 0.6, cal: 0.2, test: 0.2}}`"
    )
    jsonl(tmp_path / "f" / "train.jsonl", [{"text": "a", "concepts": []}])
    assert message(path="f").startswith(
        f"{tmp_path / 'f'} does not say which rows are train, cal and test: its only splits are train;"
    )


def test_missing_splits_are_named(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", [{"text": "a", "concepts": [], "split": "cal"}]))
    assert (
        message(path=path)
        == f"{path} has no rows for train, test; train, cal and test each need some; add them or see `splits`"
    )
    assert message(path=path, splits={"train": "a", "cal": "b"}) == (
        "`splits` of data set table lacks test; train, cal and test are all needed; add it"
    )
    assert message(path=path, fractions=FRACTIONS) == (
        f"{path} already tells its splits, and `fractions` would cut it anew; remove one of the two"
    )
    assert message(path=str(tmp_path), splits={"train": "a.jsonl", "cal": "b", "test": "c"}) == (
        f"there is no {tmp_path / 'b'}; `splits` of data set table names it; {tmp_path} has a.jsonl"
    )


# --- options


def test_options_of_the_wrong_kind_are_one_line_each(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", texts()))
    assert message() == "data set table has no source; give `path`, or `splits` with a file for each of train, cal and test"
    assert message(path=path, columns=["text"]) == "`columns` of data set table is ['text']; a mapping is allowed"
    assert message(path=path, concept_columns="joy") == "`concept_columns` of data set table is 'joy'; a list is allowed"
    assert message(path=path, splits={"trian": "a"}) == (
        "unknown split 'trian' in `splits` of data set table; did you mean train?; there are: cal, test, train"
    )
    for fractions in ({"train": 0.5, "cal": 0.2, "test": 0.2}, {"train": 1.2, "cal": -0.1, "test": -0.1}):
        assert message(path=path, fractions=fractions) == (
            f"`fractions` of data set table is {fractions}; three numbers above 0 that add up to 1 are allowed"
        )
    assert message(path=path, revision="main") == (
        f"`revision` and `subset` are for Hub data sets; {path} is on this machine; remove them"
    )


def test_columns_that_are_not_there_get_the_nearest(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", texts()))
    assert message(path=path, columns={"texts": "text"}).startswith(
        "unknown key 'texts' in `columns` of data set table; did you mean text?; there are: concepts, id, image, masks, "
    )
    assert message(path=path, columns={"text": "txt"}) == (
        f"unknown column 'txt' in {path}; did you mean text?; there are: concepts, regions, split, text; "
        f"`columns` names it for text"
    )
    assert message(path=path, concept_columns=["joy"]).endswith("`concept_columns` names it")


def test_a_table_without_content_or_concepts_or_with_both_kinds_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "a.jsonl")
    for row, problem in (
        ({"a": 1}, "neither an image nor a text column; name one with `columns: {image: ...}` or `columns: {text: ...}`"),
        (
            {"text": "", "image": ""},
            "both an image and a text column; name one with `columns: {image: ...}` or `columns: {text: ...}`",
        ),
        ({"text": ""}, "none says which concepts are present; name one with `columns: {concepts: ...}` or `concept_columns`"),
        ({"text": "", "masks": []}, "mask images (column 'masks') and a text do not go together; drop one"),
        (
            {"image": "", "masks": [], "regions": []},
            "mask images (column 'masks') and column 'regions' do not go together; drop one",
        ),
    ):
        jsonl(Path(path), [row])
        assert message(path=path, fractions=FRACTIONS) == f"{path} has the columns {', '.join(row)}: {problem}"
    jsonl(Path(path), texts(joy=1))
    assert message(path=path, concept_columns=["joy"]) == (
        f"{path} has the columns text, split, concepts, regions, joy: concepts come from column 'concepts' or from "
        f"`concept_columns`, not both; drop one"
    )


def test_naming_one_of_image_and_text_decides_between_them(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "a.jsonl", texts(image="caption of nothing")))
    assert "text" in dataset.load(path, columns={"text": "text"})["train"].column_names


def test_sources_that_cannot_be_read_are_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(path="none.jsonl") == (
        f"data set table finds no 'none.jsonl'; looked for {tmp_path / 'none.jsonl'}; "
        f"give a file, a folder or a Hub id (owner/name)"
    )
    monkeypatch.setenv("HARNESS_DATA", "/data")
    assert message(path="a/b.jsonl").startswith(
        f"data set table finds no 'a/b.jsonl'; looked for {tmp_path / 'a/b.jsonl'} and /data/a/b.jsonl;"
    )
    (tmp_path / "a.xlsx").write_bytes(b"")
    assert message(path="a.xlsx") == (
        f"{tmp_path / 'a.xlsx'} has a suffix that data set table does not read; "
        f"it reads .parquet, .jsonl, .csv, .tsv and folders"
    )
    (tmp_path / "a.jsonl").write_text("\n")
    assert message(path="a.jsonl") == f"{tmp_path / 'a.jsonl'} has no rows; it needs at least one per split"
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n{"text"\n')
    assert message(path="a.jsonl").startswith(f"{tmp_path / 'a.jsonl'}, line 2 is not JSON: Expecting ':' delimiter")
    (tmp_path / "a.jsonl").write_text("[]\n")
    assert message(path="a.jsonl") == f"{tmp_path / 'a.jsonl'}, line 1 is not a JSON object; one object a line is allowed"
    (tmp_path / "a.csv").write_text("text,concepts\na,b,c\n")
    assert message(path="a.csv") == f"{tmp_path / 'a.csv'}, line 2 does not have 2 cells as the header; quote or add cells"
    (tmp_path / "a.csv").write_bytes(b"text\n\xff\xfe\n")
    assert message(path="a.csv").startswith(f"{tmp_path / 'a.csv'} is not a UTF-8 CSV file: ")
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    assert message(path="a.parquet").startswith(f"{tmp_path / 'a.parquet'} is not a parquet file: ")
    (tmp_path / "empty").mkdir()
    assert message(path="empty") == (
        f"{tmp_path / 'empty'} has no data that data set table knows; it looks for metadata.parquet|.jsonl|.csv|.tsv, "
        f"for train, cal and test (files or folders), and for images in one folder per concept; see the plugin's README"
    )


def test_a_path_is_also_looked_for_in_harness_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "data" / "a.jsonl", texts())
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    assert len(dataset.load("a.jsonl")["train"]) == 1


# --- malformed rows

SPAN = "a list of {concept, start, end} with 0 <= start < end <= 15 (characters of the text) is allowed"
RLE = "a list of {concept, rle: {size: [height, width], counts: COCO RLE string or run lengths}} is allowed"
MASK = "a list of {concept, mask: path of an image whose nonzero pixels are the concept} is allowed"

BAD_TEXTS = {
    "no text": ({"text": None}, "text", "None is no text; a string is allowed"),
    "concepts null": ({"concepts": None}, "concepts", 'None is no list of names; a list of strings, or "a;b", is allowed'),
    "concepts numbers": ({"concepts": [1]}, "concepts", '[1] is no list of names; a list of strings, or "a;b", is allowed'),
    "concepts not JSON": (
        {"concepts": "[a"},
        "concepts",
        "not JSON (Expecting value: line 1 column 2 (char 1)); a string in this column must be JSON",
    ),
    "regions mapping": ({"regions": {}}, "regions", f"{{}} is no list; {SPAN}"),
    "no concept": ({"regions": [{"start": 0, "end": 1}]}, "regions", f"{{'start': 0, 'end': 1}} names no concept; {SPAN}"),
    "typo": (
        {"regions": [{"concept": "joy", "start": 0, "stop": 1}]},
        "regions",
        f"{{'concept': 'joy', 'start': 0, 'stop': 1}} is no span; {SPAN}",
    ),
    "too long": (
        {"regions": [{"concept": "joy", "start": 0, "end": 16}]},
        "regions",
        f"{{'concept': 'joy', 'start': 0, 'end': 16}} is no span; {SPAN}",
    ),
    "empty": (
        {"regions": [{"concept": "joy", "start": 4, "end": 4}]},
        "regions",
        f"{{'concept': 'joy', 'start': 4, 'end': 4}} is no span; {SPAN}",
    ),
    "fraction": (
        {"regions": [{"concept": "joy", "start": 0.5, "end": 4}]},
        "regions",
        f"{{'concept': 'joy', 'start': 0.5, 'end': 4}} is no span; {SPAN}",
    ),
    "id": ({"id": 1.5}, "id", "1.5 is no id; a string or a whole number is allowed"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_a_malformed_text_row_is_named_with_line_column_and_what_is_allowed(tmp_path: Path, name: str) -> None:
    changes, column, problem = BAD_TEXTS[name]
    path = jsonl(tmp_path / "a.jsonl", texts(**changes))
    assert message(path=str(path)) == f"{path}, line 1, column '{column}': {problem}"


def test_a_flag_that_is_neither_0_nor_1_is_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "split": split, "joy": value} for split, value in zip(SPLITS, (True, 1.0, 2), strict=True)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert message(path=str(path), concept_columns=["joy"]) == (
        f"{path}, line 3, column 'joy': 2 is neither 0 nor 1; 0, 1, true or false is allowed"
    )


def test_the_first_id_that_is_there_twice_is_named_with_both_places(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{**row, "id": "same"} for row in texts()])
    assert message(path=str(path)) == (
        f"id 'same' is there twice: {path}, line 1 and {path}, line 2; ids must be unique over all splits"
    )


def region(rle: Any) -> dict[str, Any]:
    return {"regions": [{"concept": "a", "rle": rle}]}


BAD_IMAGES = {
    "no image": (
        {"image": None},
        "image",
        "None is no image; a path, or {bytes, path} as the datasets library writes it, is allowed",
    ),
    "no rle": ({"regions": [{"concept": "a"}]}, "regions", f"a mask cannot be decoded (KeyError: 'rle'); {RLE}"),
    "size": (
        region({"size": [6], "counts": [6]}),
        "regions",
        f"a mask cannot be decoded (ValueError: size [6] is not [height, width]); {RLE}",
    ),
    "short": (
        region({"size": [6, 8], "counts": [6]}),
        "regions",
        f"a mask cannot be decoded (ValueError: the run lengths do not fill the size); {RLE}",
    ),
    "empty string": (
        region({"size": [6, 8], "counts": ""}),
        "regions",
        f"a mask cannot be decoded (ValueError: the run lengths do not fill the size); {RLE}",
    ),
    "no string of RLE": (
        region({"size": [6, 8], "counts": "\x01"}),
        "regions",
        f"a mask cannot be decoded (ValueError: counts is not a COCO RLE string); {RLE}",
    ),
    "truncated": (
        region({"size": [6, 8], "counts": "P"}),
        "regions",
        f"a mask cannot be decoded (ValueError: counts is a truncated COCO RLE string); {RLE}",
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_malformed_image_row_is_named_with_line_column_and_what_is_allowed(tmp_path: Path, name: str) -> None:
    changes, column, problem = BAD_IMAGES[name]
    picture(tmp_path / "1.png")
    rows = [{"id": split, "image": "1.png", "split": split, "concepts": ["a"], "regions": None} for split in SPLITS]
    rows[0].update(changes)
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert message(path=str(path)) == f"{path}, line 1, column '{column}': {problem}"


def test_a_mask_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    folder = masked(tmp_path / "f")
    metadata = folder / "metadata.jsonl"
    (folder / "masks" / "1.png").write_bytes(b"nothing")
    assert message(path="f").startswith(
        f"{metadata}, line 2, column 'masks': mask 'masks/1.png' cannot be read (cannot identify image"
    )
    assert message(path="f").endswith(f"; {MASK}")
    (folder / "masks" / "1.png").unlink()
    assert message(path="f") == (
        f"{metadata}, line 2, column 'masks': there is no file {folder / 'masks' / '1.png'}; "
        f"a path relative to the folder of the file is allowed"
    )


@pytest.mark.parametrize("hostile", ["../secret.png", "{outside}/secret.png", "link.png", "linked/secret.png"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, hostile: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    picture(outside / "secret.png")
    picture(tmp_path / "secret.png")
    inside.mkdir()
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "linked").symlink_to(outside)
    value = hostile.format(outside=outside)
    path = jsonl(inside / "a.jsonl", [{"id": s, "image": value, "split": s, "concepts": []} for s in SPLITS])
    assert message(path=str(path)) == (
        f"{path}, line 1, column 'image': {value!r} leads out of {inside}; "
        f"a path inside the folder of the file is allowed, links included"
    )


def test_an_absolute_path_inside_the_folder_is_fine(tmp_path: Path) -> None:
    inside = picture(tmp_path / "1.png")
    path = jsonl(tmp_path / "a.jsonl", [{"id": s, "image": str(inside), "split": s, "concepts": []} for s in SPLITS])
    assert rows_of(dataset.load(str(path))["cal"])[0]["image"]["path"] == str(inside)


# --- the Hub, without a network


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The datasets library's cache, empty; the Hub does not answer."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return cache


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, names: list[str], texts: str = "ab") -> None:
    """A Hub data set `owner/flowers` as the library caches it: text, class labels, splits `names`."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["rose", "tulip"])})
    columns = {"text": [*texts], "label": [0, 1] * (len(texts) // 2)}
    parts = {name: datasets.Dataset.from_dict(columns, features) for name in names}
    for name, part in parts.items():
        part.to_parquet(cache.parent / f"{name}.parquet")
    files = {name: str(cache.parent / f"{name}.parquet") for name in names}
    built = datasets.load_dataset("parquet", data_files=files, features=features, cache_dir=str(cache.parent / "built"))
    folder = Path(next(iter(built.values())).cache_files[0]["filename"]).parent
    target = cache / "owner___flowers" / "default" / "0.0.0" / COMMIT
    target.mkdir(parents=True)
    for file in folder.iterdir():
        target.joinpath(file.name.replace("parquet-", "flowers-")).write_bytes(file.read_bytes())
    info = target / "dataset_info.json"
    content = json.loads(info.read_text())
    content.update(builder_name="parquet", dataset_name="flowers", config_name="default")
    info.write_text(json.dumps(content))


def test_a_hub_data_set_without_a_network_is_refused_at_once(no_hub: Path) -> None:
    assert message(path="owner/flowers") == (
        f"Hub data set 'owner/flowers' is not in the cache {no_hub}, and http://127.0.0.1:9 cannot be reached "
        f"(<urlopen error [Errno 111] Connection refused>); connect once, or give a folder with its files as `path`"
    )
    assert not datasets.config.HF_HUB_OFFLINE


def test_with_hf_hub_offline_nothing_is_tried(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "unreachable", lambda url: pytest.fail("a request was made"))
    assert "cannot be reached (HF_HUB_OFFLINE is set); connect once" in message(path="owner/flowers")


def test_a_cached_hub_data_set_is_read_and_class_labels_become_names(no_hub: Path) -> None:
    cached(no_hub, ["train", "validation", "test"])
    parts = {"train": "train", "cal": "validation", "test": "test"}
    splits = dataset.load("owner/flowers", splits=parts, columns={"concepts": "label"}, revision=COMMIT)
    assert rows_of(splits["cal"]) == [
        {"id": "cal/1", "text": "a", "concepts": ["rose"], "regions": None},
        {"id": "cal/2", "text": "b", "concepts": ["tulip"], "regions": None},
    ]
    assert message(path="owner/flowers", splits={**parts, "cal": "valid"}) == (
        "unknown split 'valid' in Hub data set owner/flowers; did you mean validation?; there are: test, train, validation"
    )
    assert message(path="owner/flowers", columns={"concepts": "label"}).startswith(
        "owner/flowers does not say which rows are train, cal and test: its only splits are train, validation, test;"
    )
    assert message(path="owner/flowers", splits=parts, revision="main") == (
        f"without a network, revision 'main' of Hub data set 'owner/flowers' cannot be had; the cache has {COMMIT}; "
        f"ask for that commit, or connect"
    )


def test_a_hub_data_set_with_one_split_can_be_cut(no_hub: Path) -> None:
    cached(no_hub, ["train"], "abcdefghij")
    splits = dataset.load("owner/flowers", columns={"concepts": "label"}, fractions=FRACTIONS)
    assert [len(split) for split in splits.values()] == [6, 2, 2]
    assert {key for split in splits.values() for key in split["id"][:]} == {f"train/{number}" for number in range(1, 11)}


class Guarded(BaseHTTPRequestHandler):
    """A Hub that gives nothing: `tiny/gated` asks for terms, everything else is unknown. Writes down the tokens it is shown."""

    tokens: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.tokens.append(self.headers.get("Authorization"))
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


ASK = """
import sys, time
from harness_table import dataset
for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        dataset.load(name)
    except Exception as error:
        print(f"{time.monotonic() - started:.1f}", type(error).__name__, error)
"""


def ask(tmp_path: Path, endpoint: str, *names: str) -> list[list[str]]:
    """[seconds, kind of error, message] for each Hub id, in a process of its own with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment.update(HF_HOME=str(tmp_path / "home"), HF_ENDPOINT=endpoint, HF_TOKEN="hf_mine")  # noqa: S106 - no secret
    words = [sys.executable, "-c", ASK, *names]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    return [line.split(" ", 2) for line in done.stdout.splitlines()]


def test_a_gated_data_set_says_what_to_accept_and_where_and_the_token_is_shown_to_the_hub(tmp_path: Path) -> None:
    with listening(Guarded) as server:
        endpoint = address(server)
        gated, absent = ask(tmp_path, endpoint, "tiny/gated", "tiny/none")
    assert gated[1:] == [
        "HarnessError",
        "Hub data set 'tiny/gated' is gated: accept its terms at https://huggingface.co/datasets/tiny/gated, then set HF_TOKEN to "
        "that account's token",
    ]
    assert absent[1] == "HarnessError"
    assert absent[2].startswith("no data set 'tiny/none': not in ")
    assert absent[2].endswith(f"not at {endpoint}; check the spelling, or set HF_TOKEN where it is private")
    assert "Bearer hf_mine" in Guarded.tokens


def test_offline_with_an_empty_cache_answers_within_five_seconds(tmp_path: Path) -> None:
    ((seconds, kind, said),) = ask(tmp_path, "http://127.0.0.1:9", "owner/flowers")
    assert float(seconds) < 5
    assert kind == "HarnessError"
    assert "cannot be reached" in said


# --- the README


def examples() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The README's examples: a row of the data, and the task."""
    text = (ROOT / "plugins" / "harness_table" / "README.md").read_text()
    rows = [json.loads(row) for row in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    tasks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert all(len(task.splitlines()) <= 15 for task in tasks)
    return list(zip(rows, [yaml.safe_load(task) for task in tasks], strict=True))


def test_the_readme_example_of_images_with_masks_loads(tmp_path: Path) -> None:
    row, task = examples()[0]
    folder = tmp_path / "flowers"
    rows = [json.loads(json.dumps({**row, "split": split}).replace("/1.", f"/{i}.")) for i, split in enumerate(SPLITS)]
    for made in rows:
        picture(folder / made["file_name"])
        picture(folder / made["masks"][0]["mask"], "L", color=255)
    jsonl(folder / "metadata.jsonl", rows)
    options = {key: value for key, value in task["dataset"].items() if key != "name"}
    [found] = rows_of(dataset.load(**options)["test"])
    assert found["concepts"] == ["rose"]
    assert decoded(found["regions"][0]["rle"]).all()


def test_the_readme_example_of_texts_with_spans_loads(tmp_path: Path) -> None:
    row, task = examples()[1]
    jsonl(tmp_path / "reviews.jsonl", [{**row, "part": part} for part in ("train", "dev", "test")])
    options = {key: value for key, value in task["dataset"].items() if key != "name"}
    [found] = rows_of(dataset.load(**options)["cal"])
    [span] = found["regions"]
    assert found["text"][span["start"] : span["end"]] == "Lovely"


GOEMOTIONS = Path(os.environ["HARNESS_DATA"]) / "goemotions" if os.environ.get("HARNESS_DATA") else None


@pytest.mark.skipif(not (GOEMOTIONS and GOEMOTIONS.is_dir()), reason="needs HARNESS_DATA with goemotions/ in it")
def test_a_real_table_of_thousands_of_texts_loads(tmp_path: Path) -> None:
    assert GOEMOTIONS is not None
    names = (GOEMOTIONS / "emotions.txt").read_text().split()
    sizes = {}
    for split, file in zip(SPLITS, ("train", "dev", "test"), strict=True):
        rows = list(csv.reader(io.StringIO((GOEMOTIONS / f"{file}.tsv").read_text()), delimiter="\t", quoting=csv.QUOTE_NONE))
        sizes[split] = len(rows)
        jsonl(
            tmp_path / "g" / f"{split}.jsonl",
            [
                {"id": f"{split}-{key}", "text": text, "concepts": [names[int(i)] for i in labels.split(",")]}
                for text, labels, key in rows
            ],
        )
    splits = dataset.load("g")
    assert {split: len(table) for split, table in splits.items()} == sizes
