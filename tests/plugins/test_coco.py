"""The data set `coco` on small generated folders in the official layout; downloads from a server on 127.0.0.1. Offline."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness_coco
import numpy as np
import pytest
import yaml
from harness_coco import dataset, download
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from stub_server import Server, serving

from harness.api import HarnessError, fetch, unpack, unreachable

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 30, 40
CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 3, "name": "car", "supercategory": "vehicle"},
    {"id": 6, "name": "bus", "supercategory": "vehicle"},
    {"id": 44, "name": "bottle", "supercategory": "kitchen"},
]
POLYGONS = [[2.0, 2.0, 20.5, 3.0, 18.0, 22.0, 3.0, 19.0], [30.0, 5.0, 38.0, 5.0, 34.0, 12.0]]
CAR = [[5.0, 1.0, 25.0, 1.0, 25.0, 14.0, 5.0, 14.0]]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    return mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths as COCO's crowd annotations have them: columns first, beginning with zeros."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": runs if flat[0] == 0 else [0, *runs]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()}


def annotation(key: int, image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"id": key, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd, "area": 1.0}


def write_json(
    folder: Path, name: str, ids: list[int], annotations: list[dict[str, Any]], host: str = "http://127.0.0.1:9"
) -> Path:
    images = [
        {
            "id": i,
            "file_name": f"{i:012}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "coco_url": f"{host}/{name.split('_')[1]}/{i:012}.jpg",
        }
        for i in ids
    ]
    path = folder / "annotations" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return path


def write_images(folder: Path, ids: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in ids:
        (folder / f"{i:012}.jpg").write_bytes(jpeg(i))


def jpeg(i: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (i % 256, 10, 20)).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARNESS_DATA", "HARNESS_DOWNLOAD", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six train and five val images; image 101 has polygons, an uncompressed crowd and a compressed RLE."""
    root = tmp_path / "coco"
    crowd = box(10, 10, 28, 30)
    val = [
        annotation(11, 101, 1, POLYGONS),
        annotation(12, 101, 1, uncompressed(crowd), crowd=1),
        annotation(13, 101, 3, CAR),
        annotation(14, 101, 6, compressed(box(20, 0, 30, 8))),
        annotation(15, 103, 44, []),
    ]
    write_json(root, "instances_train2017", [1, 2, 3, 4, 5, 6], [annotation(1, 4, 3, CAR)])
    write_json(root, "instances_val2017", [105, 103, 101, 102, 104], val)
    write_images(root / "train2017", [1, 2, 3, 4, 5, 6])
    write_images(root / "val2017", [101, 102, 103, 104, 105])
    return root


def load(folder: Path, **options: Any) -> Any:
    return dataset.load(str(folder), **options)


def row(split: Any, sample_id: str) -> dict[str, Any]:
    rows = split.with_format("arrow")[:].to_pylist()
    return next(r for r in rows if r["id"] == sample_id)


def mask_of(row: dict[str, Any], concept: str) -> np.ndarray:
    [rle] = [region["rle"] for region in row["regions"] if region["concept"] == concept]
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(HarnessError) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- labels and masks


def test_the_plugin_registers_one_dataset_that_resolves() -> None:
    [entry] = harness_coco.harness_register_datasets()
    assert (entry.name, entry.target) == ("coco", "harness_coco.dataset:load")


def test_masks_are_the_union_that_pycocotools_itself_makes_of_polygons_crowd_and_compressed_rle(folder: Path) -> None:
    oracle = COCO(str(folder / "annotations" / "instances_val2017.json"))
    found = row(load(folder)["cal"], "101")
    masks = {key: oracle.annToMask(oracle.anns[key]) for key in (11, 12, 13, 14)}
    assert (mask_of(found, "person") == (masks[11] | masks[12])).all()
    assert (mask_of(found, "car") == masks[13]).all()
    assert (mask_of(found, "bus") == masks[14]).all()
    assert (mask_of(found, "vehicle") == (masks[13] | masks[14])).all()


def test_concepts_are_categories_and_super_categories_and_a_name_that_is_both_is_there_once(folder: Path) -> None:
    found = row(load(folder)["cal"], "101")
    assert found["concepts"] == ["bus", "car", "person", "vehicle"]
    assert [region["concept"] for region in found["regions"]] == found["concepts"]


def test_an_image_without_annotations_is_annotated_with_nothing_there(folder: Path) -> None:
    found = row(load(folder)["cal"], "102")
    assert (found["concepts"], found["regions"]) == ([], [])


def test_an_annotation_that_covers_no_pixel_is_positive_with_an_empty_mask(folder: Path) -> None:
    found = row(load(folder)["test"], "103")
    assert found["concepts"] == ["bottle", "kitchen"]
    assert mask_of(found, "bottle").sum() == 0


def test_images_stay_paths_that_are_not_opened(folder: Path) -> None:
    (folder / "train2017" / "000000000003.jpg").write_bytes(b"not an image")
    found = row(load(folder)["train"], "3")
    assert found["image"] == {"bytes": None, "path": str(folder / "train2017" / "000000000003.jpg")}


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=40))
def test_a_random_rle_string_is_decoded_or_refused_but_never_crashes(data: bytes) -> None:
    from harness_coco.masks import instance_masks
    from harness_coco.reading import Listing, Picture

    rle = {"size": [HEIGHT, WIDTH], "counts": data.decode("latin-1")}
    listing = Listing(Path("x.json"), {}, {1: [annotation(7, 1, 1, rle)]}, {1: ("person",)})
    picture = Picture(1, "val2017", "1.jpg", HEIGHT, WIDTH, "")
    try:
        masks = instance_masks(listing, picture)
    except HarnessError:
        with pytest.raises(HarnessError, match=r"^annotation 7 \(image 1\) of x.json cannot be decoded: "):
            instance_masks(listing, picture)
    else:
        assert coco_mask.decode(masks["person"]).shape == (HEIGHT, WIDTH)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_all_three_encodings_of_a_random_mask_give_that_mask(seed: int, density: float) -> None:
    from harness_coco.masks import instance_masks
    from harness_coco.reading import Listing, Picture

    mask = np.asfortranarray(np.random.default_rng(seed).random((HEIGHT, WIDTH)) < density, dtype=np.uint8)
    for rle in (uncompressed(mask), compressed(mask)):
        listing = Listing(Path("x.json"), {}, {1: [annotation(7, 1, 1, rle)]}, {1: ("person",)})
        masks = instance_masks(listing, Picture(1, "val2017", "1.jpg", HEIGHT, WIDTH, ""))
        assert (coco_mask.decode(masks["person"]) == mask).all()


BAD = {
    "polygon of letters": ([["a", 1, 2, 3, 4, 5]], "could not convert string to float: 'a'"),
    "odd polygon": ([[1, 2, 3, 4, 5, 6, 7]], "a polygon is not a flat list x1, y1, x2, y2, ..."),
    "not finite": (
        [[1, 2, float("nan"), 4, 5, 6]],
        "a polygon has coordinates that are not finite, or that lie far outside the image",
    ),
    "far away": ([[1, 2, 1e12, 4, 5, 6]], "a polygon has coordinates that are not finite, or that lie far outside the image"),
    "short runs": ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "the run lengths do not fill the size"),
    "negative run": ({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}, "the run lengths do not fill the size"),
    "empty string": ({"size": [HEIGHT, WIDTH], "counts": ""}, "the run lengths do not fill the size"),
    "no string of RLE": ({"size": [HEIGHT, WIDTH], "counts": "\x01"}, "counts is not a COCO RLE string"),
    "truncated": ({"size": [HEIGHT, WIDTH], "counts": "P"}, "counts is a truncated COCO RLE string"),
    "other size": ({"size": [3, 4], "counts": [12]}, "the mask has (height, width) (3, 4), the image has (30, 40)"),
    "nothing": (None, "`segmentation` is neither polygons nor RLE"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_annotation_that_cannot_be_decoded_is_named_with_its_file(folder: Path, name: str) -> None:
    segmentation, cause = BAD[name]
    path = write_json(folder, "instances_train2017", [1, 2], [annotation(99, 2, 1, segmentation)])
    assert message(folder) == f"annotation 99 (image 2) of {path} cannot be decoded: {cause}; mend or remove it"


def test_a_category_that_is_not_listed_is_named_with_its_annotation(folder: Path) -> None:
    path = write_json(folder, "instances_train2017", [1, 2], [annotation(99, 2, 7, CAR)])
    assert message(folder) == (
        f"annotation 99 (image 2) of {path} has category_id 7, which {path} does not list in `categories`; mend it"
    )


def test_a_file_that_is_not_an_annotation_file_is_named(folder: Path) -> None:
    path = folder / "annotations" / "instances_val2017.json"
    end = "images, annotations and categories are needed, as in the official files; fetch it again"
    path.write_text("{}")
    assert message(folder) == f"{path} is not a COCO annotation file: KeyError 'annotations'; {end}"
    path.write_text("{")
    assert message(folder).startswith(f"{path} is not a COCO annotation file: JSONDecodeError ")


def test_a_file_name_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    path = folder / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("000000000101.jpg", "../../secret.jpg", 1))
    assert message(folder) == f"image 101 of {path} has file_name '../../secret.jpg'; only a name without folders is allowed"


def test_an_image_of_impossible_size_is_refused(folder: Path) -> None:
    path = folder / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace('"height": 30', '"height": 99999999', 1))
    assert message(folder) == f"image 105 of {path} has height 99999999 and width 40; 1 to 32767 is allowed"


# --- splits


def test_cal_and_test_are_the_halves_of_val2017_by_id_and_an_odd_image_goes_to_test(folder: Path) -> None:
    splits = load(folder)
    assert splits["cal"]["id"][:] == ["101", "102"]
    assert splits["test"]["id"][:] == ["103", "104", "105"]


def test_train_is_in_order_of_sha256_of_the_id_and_stops_at_the_limit(folder: Path) -> None:
    order = sorted("123456", key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    assert load(folder)["train"]["id"][:] == order
    assert load(folder, train_limit=4)["train"]["id"][:] == order[:4]


def test_images_that_are_listed_but_not_there_are_passed_over(folder: Path) -> None:
    for name in ("train2017/000000000002.jpg", "val2017/000000000104.jpg"):
        (folder / name).unlink()
    splits = load(folder)
    assert "2" not in splits["train"]["id"][:]
    assert (splits["cal"]["id"][:], splits["test"]["id"][:]) == (["101", "102"], ["103", "105"])


def test_no_listed_image_at_all_is_one_line(folder: Path) -> None:
    for path in (folder / "train2017").iterdir():
        path.rename(path.with_name("x" + path.name))
    lists = " and ".join(str(folder / "annotations" / f"instances_{name}2017.json") for name in ("train", "val"))
    assert message(folder) == (
        f"too few COCO images: of those listed in {lists}, {folder} has 0 in train2017 and 5 in val2017; "
        f"at least 1 and 2 are needed; put images and annotations of the same release there"
    )


def test_an_id_in_both_folders_is_refused(folder: Path) -> None:
    write_json(folder, "instances_train2017", [1, 101], [])
    write_images(folder / "train2017", [101])
    assert message(folder) == f"image id 101 is both in train2017 and in val2017 of {folder}; give each image its own id"


def metadata(folder: Path, text: str) -> Path:
    path = folder / "metadata.csv"
    path.write_text(text)
    return path


def test_the_paper_split_follows_the_authors_file_and_labels_still_come_from_the_annotations(folder: Path) -> None:
    metadata(
        folder,
        "car,image_path,split\n1,val2017/000000000102.jpg,train\n0,/home/x/Coco/val2017/000000000101.jpg,train\n"
        "1,000000000104.jpg,test\n0,train2017\\000000000004.jpg,cal\n",
    )
    splits = load(folder, split="paper")
    assert {name: splits[name]["id"][:] for name in splits} == {"train": ["102", "101"], "cal": ["4"], "test": ["104"]}
    assert row(splits["train"], "102")["concepts"] == []
    assert row(splits["cal"], "4")["image"]["path"] == str(folder / "train2017" / "000000000004.jpg")


def test_mistakes_in_the_authors_file_are_one_line_each(folder: Path, tmp_path: Path) -> None:
    source = "https://github.com/BrachioLab/SuperActivators (Data/Coco/metadata.csv)"
    absent = tmp_path / "none.csv"
    assert message(folder, split="paper", metadata=str(absent)) == (
        f"split: paper needs the authors' metadata.csv; there is no {absent}; get it from {source}, or set `metadata`"
    )
    path = metadata(folder, "image_path\n1.jpg\n")
    assert message(folder, split="paper") == f"{path} has no column split; get the file from {source}"
    metadata(folder, "image_path,split\n101.jpg,train\nval2017/cat.jpg,test\n")
    assert message(folder, split="paper") == (
        f"{path}, line 3: image_path 'val2017/cat.jpg' does not end in a new image id, as in 000000000139.jpg"
    )
    metadata(folder, "image_path,split\n101.jpg,trian\n")
    assert (
        message(folder, split="paper")
        == f"unknown split 'trian' in {path}, line 2; did you mean train?; there are: cal, test, train"
    )
    metadata(folder, "image_path,split\n101.jpg,train\n102.jpg,test\n")
    assert message(folder, split="paper") == f"split paper has no image in cal; get the authors' metadata.csv from {source}"
    metadata(folder, "image_path,split\n999.jpg,train\n102.jpg,test\n")
    lists = " or ".join(str(folder / "annotations" / f"instances_{name}2017.json") for name in ("train", "val"))
    assert message(folder, split="paper") == (
        f"split paper names 1 of 2 images that the annotations lack (first: 999); not in {lists}; "
        f"put the official annotation files there (https://cocodataset.org/#download)"
    )


def test_the_paper_split_is_complete_or_refused(folder: Path) -> None:
    metadata(folder, "image_path,split\n101.jpg,train\n102.jpg,test\n4.jpg,cal\n")
    (folder / "val2017" / "000000000102.jpg").unlink()
    assert message(folder, split="paper") == (
        f"COCO 2017 is incomplete: 1 of the 2 images of val2017 in split paper (first: 000000000102.jpg); looked in {folder}; "
        f"set HARNESS_DOWNLOAD=always to let the harness download about 0.2 MB; {OTHERWISE}"
    )


# --- panoptic


@pytest.fixture
def panoptic(folder: Path) -> Path:
    """Panoptic annotations for the images of `folder`: a person, a crowd of persons and a bus in every image."""
    ids = {1: (7, 1, 0), 258: (30, 1, 1), 65539: (9, 6, 0)}
    pixels = np.zeros((HEIGHT, WIDTH), np.uint32)
    pixels[:7], pixels[10:20, 5:9], pixels[25:] = 1, 258, 65539
    for name, numbers in (("train2017", [1, 2, 3, 4, 5, 6]), ("val2017", [101, 102, 103, 104, 105])):
        segments = [{"id": key, "category_id": category, "iscrowd": crowd} for key, (_, category, crowd) in ids.items()]
        records = [{"image_id": i, "file_name": f"{i:012}.png", "segments_info": segments} for i in numbers]
        pngs = write_json(folder, f"panoptic_{name}", numbers, records).with_suffix("")
        pngs.mkdir()
        for i in numbers:
            write_png(pngs / f"{i:012}.png", pixels)
    return folder


def write_png(path: Path, ids: np.ndarray) -> None:
    Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)).save(path)


def test_panoptic_masks_come_from_the_segment_ids_crowd_included_and_without_super_categories(panoptic: Path) -> None:
    found = row(load(panoptic, annotations="panoptic")["test"], "104")
    assert found["concepts"] == ["bus", "person"]
    assert (mask_of(found, "person") == (box(0, 0, 7, WIDTH) | box(10, 5, 20, 9))).all()
    assert (mask_of(found, "bus") == box(25, 0, HEIGHT, WIDTH)).all()


def test_panoptic_files_that_contradict_each_other_are_one_line(panoptic: Path) -> None:
    listing = panoptic / "annotations" / "panoptic_val2017.json"
    png = panoptic / "annotations" / "panoptic_val2017" / "000000000101.png"
    where = f"{png} (image 101 of {listing})"
    write_png(png, np.full((HEIGHT, WIDTH), 5, np.uint32))
    assert message(panoptic, annotations="panoptic") == (
        f"{where} has pixels of segment 5, which segments_info does not list; fetch both files again"
    )
    write_png(png, np.zeros((3, 4), np.uint32))
    assert message(panoptic, annotations="panoptic") == f"{where} has (height, width) (3, 4), the image has (30, 40)"
    png.write_bytes(b"nothing")
    assert message(panoptic, annotations="panoptic").startswith(f"{where} cannot be read as a PNG: ")
    content = json.loads(listing.read_text())
    content["annotations"][0]["file_name"] = "../x.png"
    listing.write_text(json.dumps(content))
    assert message(panoptic, annotations="panoptic") == (
        f"{listing} has a PNG name with a folder, or a segment id beyond 1 to 2^24 - 1, at image 101"
    )
    content["annotations"] = content["annotations"][1:]
    listing.write_text(json.dumps(content))
    assert message(panoptic, annotations="panoptic") == (
        f"{listing} has no panoptic annotation of image 101: KeyError 101; "
        f"file_name and segments_info are needed, as in the official files; fetch it again"
    )


def test_panoptic_pngs_are_unpacked_from_the_zip_beside_them_but_only_those_needed(panoptic: Path) -> None:
    pngs = panoptic / "annotations" / "panoptic_val2017"
    with zipfile.ZipFile(pngs.with_suffix(".zip"), "w") as archive:
        for png in sorted(pngs.iterdir()):
            archive.write(png, f"panoptic_val2017/{png.name}")
            png.unlink()
    (panoptic / "val2017" / "000000000105.jpg").unlink()
    assert len(load(panoptic, annotations="panoptic")["test"]) == 2
    assert sorted(png.name for png in pngs.iterdir()) == [f"{i:012}.png" for i in (101, 102, 103, 104)]
    (pngs / "000000000101.png").unlink()
    with zipfile.ZipFile(pngs.with_suffix(".zip"), "w"):
        pass
    assert message(panoptic, annotations="panoptic") == (
        f"{pngs.with_suffix('.zip')} lacks 1 PNGs of {pngs.with_suffix('.json')} (first: 000000000101.png); fetch both again"
    )


# --- options and missing data

ALWAYS = "set HARNESS_DOWNLOAD=always to let the harness download"
OTHERWISE = (
    "or put the official files (https://cocodataset.org/#download) there, "
    "or name another folder with HARNESS_DATA or the option `folder`"
)


def test_options_that_are_not_known_get_the_nearest(folder: Path) -> None:
    assert message(folder, annotations="panoptics") == (
        "unknown annotations 'panoptics' in data set coco; did you mean panoptic?; there are: instances, panoptic"
    )
    assert message(folder, split="papers").startswith("unknown split 'papers' in data set coco; did you mean paper?")
    assert message(folder, download="allways").startswith("unknown download 'allways' in data set coco; did you mean always?")
    assert message(folder, train_limit=0) == "train_limit is 0 in data set coco; a whole number of at least 1 is allowed"


def test_without_a_folder_and_without_harness_data_one_line_says_so() -> None:
    with pytest.raises(HarnessError) as error:
        dataset.load()
    assert str(error.value) == (
        "data set coco has no folder; neither the option `folder` nor the environment variable HARNESS_DATA is set; "
        "set HARNESS_DATA to a folder that has, or is to have, the official COCO 2017 layout in coco/"
    )


def test_harness_data_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(folder.parent))
    assert len(dataset.load()["train"]) == 6


def test_an_empty_folder_says_what_is_missing_where_and_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = (
        "COCO 2017 is incomplete: no annotations/instances_train2017.json, no annotations/instances_val2017.json, "
        f"no images in train2017, no images in val2017; looked in {tmp_path}; "
    )
    assert message(tmp_path) == f"{missing}{ALWAYS} about 1.7 GB; {OTHERWISE}"
    assert message(tmp_path, download="never") == (f"{missing}downloads are off (`never`): {ALWAYS} about 1.7 GB; {OTHERWISE}")
    monkeypatch.setattr(download, "HOST", "http://127.0.0.1:9")
    assert message(tmp_path, download="always") == (
        f"{missing}http://127.0.0.1:9, which has them (about 1.7 GB), cannot be reached "
        f"(<urlopen error [Errno 111] Connection refused>); {OTHERWISE}"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message(tmp_path, download="always") == (
        f"{missing}HF_HUB_OFFLINE is set: unset it to let the harness download about 1.7 GB; {OTHERWISE}"
    )


def test_in_a_terminal_the_question_names_the_size_and_no_declines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("harness.network.unreachable", lambda url: None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", lambda text, err: asked.append(text))
    assert f"looked in {tmp_path}; the download of about 1.7 GB was declined; " in message(tmp_path)
    assert len(asked) == 1
    assert asked[0].endswith(f"no images in val2017 in {tmp_path}. Download about 1.7 GB there?")


# --- downloads, from a server on this machine


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as stub:
        monkeypatch.setattr(download, "HOST", stub.url)
        yield stub


DATA = bytes(range(256)) * 40


def fetched(server: Server, target: Path) -> bytes:
    fetch(f"{server.url}/x.zip", target, len(DATA), hashlib.sha256(DATA).hexdigest())
    return target.read_bytes()


def test_a_file_is_fetched_whole_and_leaves_no_part(server: Server, tmp_path: Path) -> None:
    server.files["/x.zip"] = DATA
    assert fetched(server, tmp_path / "x.zip") == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_cut_connection_is_taken_up_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/x.zip"], server.cut["/x.zip"] = DATA, [1000, 2000]
    assert fetched(server, tmp_path / "x.zip") == DATA
    assert server.ranges == [("/x.zip", None), ("/x.zip", "bytes=1000-"), ("/x.zip", "bytes=3000-")]


def test_a_connection_that_brings_nothing_more_is_one_line_and_the_next_run_resumes(server: Server, tmp_path: Path) -> None:
    server.files["/x.zip"], server.cut["/x.zip"] = DATA, [1000, 0]
    with pytest.raises(HarnessError) as error:
        fetched(server, tmp_path / "x.zip")
    assert str(error.value) == (
        f"the download of {server.url}/x.zip stopped at 1,000 bytes (the connection was cut); "
        f"run the same command again to resume"
    )
    assert fetched(server, tmp_path / "x.zip") == DATA
    assert server.ranges[-1] == ("/x.zip", "bytes=1000-")


def test_a_complete_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    server.files["/x.zip"] = DATA
    (tmp_path / "x.zip.part").write_bytes(DATA)
    assert fetched(server, tmp_path / "x.zip") == DATA


def test_a_part_that_is_too_long_is_removed(server: Server, tmp_path: Path) -> None:
    server.files["/x.zip"] = DATA
    (tmp_path / "x.zip.part").write_bytes(DATA + b"more")
    with pytest.raises(HarnessError, match="what was there is longer than the file, and was removed"):
        fetched(server, tmp_path / "x.zip")
    assert fetched(server, tmp_path / "x.zip") == DATA


def test_a_wrong_checksum_removes_the_file_and_says_both(server: Server, tmp_path: Path) -> None:
    wrong = DATA[:-1] + b"!"
    server.files["/x.zip"] = wrong
    with pytest.raises(HarnessError) as error:
        fetched(server, tmp_path / "x.zip")
    assert str(error.value) == (
        f"{server.url}/x.zip is not the official file: 10,240 bytes with SHA-256 {hashlib.sha256(wrong).hexdigest()}, expected "
        f"10,240 bytes with {hashlib.sha256(DATA).hexdigest()}; it was removed; try again, or fetch it from another network"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_file_the_server_lacks_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as error:
        fetched(server, tmp_path / "x.zip")
    assert str(error.value) == (
        f"the download of {server.url}/x.zip stopped at 0 bytes (HTTP Error 404: Not Found); "
        f"run the same command again to resume"
    )


def test_no_scheme_but_http_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(HarnessError) as error:
        fetch("file:///etc/passwd", tmp_path / "x")
    assert str(error.value) == ("cannot download 'file:///etc/passwd'; it is not an http address; mend the file that names it")


def test_a_host_that_does_not_answer_is_given_up_within_three_seconds() -> None:
    assert unreachable("http://127.0.0.1:9") == "<urlopen error [Errno 111] Connection refused>"
    with serving() as stub:
        stub.answer = lambda request: threading.Event().wait(5)  # type: ignore[method-assign,assignment]
        assert unreachable(stub.url) in {"no answer in 3 s", "timed out"}


def test_a_host_that_refuses_a_request_is_there_and_a_gateway_that_fails_is_not() -> None:
    with serving() as stub:
        assert unreachable(f"{stub.url}/nothing") is None  # 404
        stub.answer = lambda request: request.send_error(503)  # type: ignore[method-assign,assignment]
        assert unreachable(stub.url) == "HTTP Error 503: Service Unavailable"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:/evil"])
def test_an_archive_with_a_hostile_path_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    path, target = tmp_path / "x.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr(zipfile.ZipInfo(name), "evil")
    with pytest.raises(HarnessError) as error:
        unpack(path, target, lambda member: True)
    assert str(error.value) == f"{path} has a member that may point outside: {name!r}; nothing was unpacked; remove it"
    assert not target.exists()


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(HarnessError, match="has a member that may point outside: 'link'; nothing was unpacked; remove it"):
        unpack(tmp_path / "x.zip", tmp_path / "out", lambda member: True)


@pytest.mark.parametrize(("place", "byte"), [(6, 1), (8, 99)], ids=["encrypted", "unknown method"])
def test_an_archive_that_cannot_be_read_is_one_line(place: int, byte: int, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "A" * 1000)
    data = bytearray(path.read_bytes())
    data[place] = data[data.rfind(b"PK\1\2") + place + 2] = byte
    path.write_bytes(data)
    with pytest.raises(HarnessError, match=r"is not a sound zip archive: .*; remove it and run the command again"):
        unpack(path, tmp_path / "out", lambda member: True)


def test_an_archive_with_damaged_deflate_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "A" * 1000)
    data = bytearray(path.read_bytes())
    data[35:38] = b"\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(HarnessError, match="is not a sound zip archive: Error -3 while decompressing"):
        unpack(path, tmp_path / "out", lambda member: True)


def test_a_damaged_archive_is_one_line_and_leaves_no_member_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "A" * 100)
    path.write_bytes(path.read_bytes().replace(b"A" * 100, b"B" * 100))
    with pytest.raises(HarnessError) as error:
        unpack(path, tmp_path / "out", lambda member: True)
    assert str(error.value) == (
        f"{path} is not a sound zip archive: Bad CRC-32 for file 'a.txt'; remove it and run the command again"
    )
    assert not (tmp_path / "out" / "a.txt").exists()


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture
def release(server: Server, panoptic: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as images.cocodataset.org: the generated folder as the official archives and single images."""
    names = panoptic / "annotations"
    for path in names.glob("*.json"):
        path.write_text(path.read_text().replace("http://127.0.0.1:9", server.url))
    inner = {
        f"annotations/panoptic_{name}2017.zip": zipped(
            {f"panoptic_{name}2017/{png.name}": png.read_bytes() for png in (names / f"panoptic_{name}2017").iterdir()}
        )
        for name in ("train", "val")
    }
    content = {
        kind: {f"annotations/{p.name}": p.read_bytes() for p in names.glob(f"{kind}_*.json")}
        for kind in ("instances", "panoptic")
    }
    archives = {
        "val2017": zipped({f"val2017/{p.name}": p.read_bytes() for p in (panoptic / "val2017").iterdir()}),
        "instances": zipped({**content["instances"], "annotations/captions_val2017.json": b"{}"}),
        "panoptic": zipped({**content["panoptic"], **inner}),
    }
    for part, data in archives.items():
        path = download.ARCHIVES[part].path
        server.files[f"/{path}"] = data
        monkeypatch.setitem(download.ARCHIVES, part, download.Archive(path, len(data), hashlib.sha256(data).hexdigest()))
    for path in (panoptic / "train2017").iterdir():
        server.files[f"/train2017/{path.name}"] = path.read_bytes()
    for path in (panoptic / "val2017").iterdir():
        server.files[f"/val2017/{path.name}"] = path.read_bytes()
    return server


@pytest.mark.parametrize("annotations", ["instances", "panoptic"])
def test_a_fresh_machine_gets_what_it_needs_and_the_result_is_the_same(
    release: Server, folder: Path, tmp_path: Path, annotations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_DOWNLOAD", "always")
    fresh = tmp_path / "fresh"
    splits, known = load(fresh, annotations=annotations, train_limit=4), load(folder, annotations=annotations, train_limit=4)
    for split in splits:
        found = splits[split].with_format("arrow")[:].drop(["image"])
        assert found == known[split].with_format("arrow")[:].drop(["image"])
    assert len(list((fresh / "train2017").iterdir())) == 4
    assert not (fresh / "annotations" / "captions_val2017.json").exists()
    asked = len(release.ranges)
    load(fresh, annotations=annotations, train_limit=4)
    assert len(release.ranges) == asked


def test_with_always_a_partial_data_set_is_completed_and_what_is_there_stays(release: Server, folder: Path) -> None:
    for name in ("train2017/000000000002.jpg", "val2017/000000000104.jpg"):
        (folder / name).unlink()
    (folder / "val2017" / "000000000101.jpg").write_bytes(b"mine")
    assert len(load(folder, download="always")["test"]) == 3
    assert sorted(release.ranges) == [("/train2017/000000000002.jpg", None), ("/val2017/000000000104.jpg", None)]
    assert (folder / "val2017" / "000000000101.jpg").read_bytes() == b"mine"


def test_an_interrupted_download_of_images_does_not_pass_for_a_small_data_set(release: Server, folder: Path) -> None:
    for path in (folder / "train2017").iterdir():
        path.unlink()
    gone = release.files.pop("/train2017/000000000002.jpg")
    assert "000000000002.jpg stopped at 0 bytes (HTTP Error 404: Not Found)" in message(folder, download="always")
    assert "no images in train2017" in message(folder)
    release.files["/train2017/000000000002.jpg"] = gone
    assert len(load(folder, download="always")["train"]) == 6
    assert not list((folder / ".downloads").iterdir())


def test_an_image_that_is_no_jpeg_is_refused(release: Server, folder: Path) -> None:
    (folder / "train2017" / "000000000002.jpg").unlink()
    release.files["/train2017/000000000002.jpg"] = b"<html>log in first</html>"
    assert message(folder, download="always") == (
        f"{release.url}/train2017/000000000002.jpg is not a JPEG image; it was removed; "
        f"try again, or fetch it from another network"
    )


def test_missing_images_of_the_paper_split_are_fetched(release: Server, folder: Path) -> None:
    metadata(folder, "image_path,split\n101.jpg,train\n102.jpg,test\n4.jpg,cal\n")
    (folder / "val2017" / "000000000102.jpg").unlink()
    assert load(folder, split="paper", download="always")["test"]["id"][:] == ["102"]


# --- tasks, README, real data


@pytest.mark.parametrize(("name", "count"), [("coco", 29), ("coco-80", 80), ("coco-panoptic", None)])
def test_the_bundled_tasks_name_this_data_set_and_options_it_has(name: str, count: int | None) -> None:
    task = yaml.safe_load((ROOT / "tasks" / f"{name}.yaml").read_text())
    assert (task["task"], task["modality"], task["dataset"]["name"]) == (name, "image", "coco")
    assert task["min_positive"] == {"train": 8, "cal": 4, "test": 4}
    assert count is None if task["concepts"] is None else len(set(task["concepts"])) == count


def test_the_readme_example_loads(folder: Path) -> None:
    text = (ROOT / "plugins" / "harness_coco" / "README.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    options = yaml.safe_load(example)["dataset"]
    assert len(example.splitlines()) <= 15
    assert options.pop("name") == "coco"
    assert {"car", "bus", "vehicle"} <= set(row(load(folder, **options)["cal"], "101")["concepts"])


REAL = Path(os.environ["HARNESS_DATA"]) / "coco" if os.environ.get("HARNESS_DATA") else None


@pytest.mark.skipif(not (REAL and REAL.is_dir()), reason="needs HARNESS_DATA with coco/ in it")
@pytest.mark.parametrize("annotations", ["instances", "panoptic"])
def test_on_real_images_every_mask_has_the_size_of_its_image_and_every_label_a_mask(annotations: str) -> None:
    splits = dataset.load(str(REAL), annotations=annotations, train_limit=50, download="never")
    for split in splits.values():
        for found in split.with_format("arrow")[:].slice(0, 50).to_pylist():
            with Image.open(found["image"]["path"]) as image:
                size = [image.height, image.width]
            assert [region["concept"] for region in found["regions"]] == found["concepts"]
            assert all(region["rle"]["size"] == size for region in found["regions"])
            assert all(mask_of(found, concept).any() for concept in found["concepts"])


@pytest.mark.skipif(not (REAL and REAL.is_dir()), reason="needs HARNESS_DATA with coco/ in it")
def test_on_real_images_the_mask_of_a_category_is_what_pycocotools_makes_of_its_annotations() -> None:
    assert REAL is not None
    oracle = COCO(str(REAL / "annotations" / "instances_val2017.json"))
    found = dataset.load(str(REAL), train_limit=1, download="never")["cal"].with_format("arrow")[:10].to_pylist()
    names = {key: category["name"] for key, category in oracle.cats.items()}
    for sample in found:
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=int(sample["id"])))
        for concept in {names[a["category_id"]] for a in annotations} - {"person"}:
            union = np.bitwise_or.reduce([oracle.annToMask(a) for a in annotations if names[a["category_id"]] == concept])
            assert (mask_of(sample, concept) == union).all()
