"""The data set `broden` on a small generated folder in the official layout; downloads from a server on 127.0.0.1. Offline."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broden_folder
import numpy as np
import pytest
import yaml
from harness_broden import dataset, download
from harness_broden.layout import enlarged
from PIL import Image
from pycocotools import mask as coco_mask
from stub_server import Server, serving

from harness.api import SPLITS, HarnessError, load_task
from harness.registry import load as load_registry

MATERIAL = ["material"]
IMAGES = 40


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HARNESS_DATA", "HARNESS_DOWNLOAD", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated folder, which no test changes."""
    return broden_folder.write(tmp_path_factory.mktemp("made") / "broden", IMAGES)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(made, tmp_path / "broden" / "broden1_224"))


def message(**options: Any) -> str:
    with pytest.raises(HarnessError) as error:
        dataset.load(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def everything(found: Any) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for split in SPLITS for row in found[split].with_format("arrow").to_pandas().to_dict("records")}


def masks(row: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        r["concept"]: coco_mask.decode({"size": list(r["rle"]["size"]), "counts": r["rle"]["counts"].encode()}).astype(bool)
        for r in row["regions"]
    }


def numbers_of(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path)).astype(int)
    return pixels[..., 0] + 256 * pixels[..., 1]


# --- labels and masks


def test_a_label_covers_the_same_pixels_as_in_its_pngs_each_label_pixel_two_by_two(made: Path) -> None:
    rows = everything(dataset.load(folder=str(made)))
    known = broden_folder.numbers()
    for name in ("pascal/0003.jpg", "pascal/0037.jpg"):
        stem = made / "images" / name.removesuffix(".jpg")
        layers = [numbers_of(Path(f"{stem}_{kind}.png")) for kind in ("object", "part_1", "part_2")]
        found = masks(rows[name])
        for concept in broden_folder.concepts("broden-pascal"):
            number = known[concept.partition("::")[2]]
            small = np.any([layer == number for layer in layers], axis=0)
            assert (concept in found) == small.any()
            if small.any():
                assert np.array_equal(found[concept], np.kron(small, np.ones((2, 2), bool)))
        assert sorted(found) == list(rows[name]["concepts"])


def test_a_label_of_two_categories_is_named_after_the_rarest_of_those_asked_for_and_covers_both(made: Path) -> None:
    pascal = everything(dataset.load(folder=str(made)))
    there = {concept for row in pascal.values() for concept in row["concepts"]}
    assert there == set(broden_folder.concepts("broden-pascal"))
    objects = everything(dataset.load(folder=str(made), categories=["object"]))
    named = {concept for row in objects.values() for concept in row["concepts"]}
    first = broden_folder.concepts("broden-pascal")[40]  # a part that is more often an object
    assert first.startswith("part::")
    assert first not in named
    assert all(concept.startswith("object::") for concept in named)


def test_a_number_in_a_cell_is_a_label_of_the_whole_image(made: Path, folder: Path) -> None:
    number = broden_folder.numbers()["brick"]
    broden_folder.rewrite(folder, "index.csv", {"opensurfaces/0005.jpg": {"material": str(number)}}, "image")
    row = everything(dataset.load("opensurfaces", MATERIAL, str(folder)))["opensurfaces/0005.jpg"]
    assert list(row["concepts"]) == ["material::brick"]
    assert masks(row)["material::brick"].shape == broden_folder.SIZE
    assert masks(row)["material::brick"].all()


def test_the_green_channel_counts_256(made: Path) -> None:
    numbers = broden_folder.numbers()
    assert max(numbers.values()) > 300
    rows = everything(dataset.load("opensurfaces", MATERIAL, str(made)))
    assert {c for row in rows.values() for c in row["concepts"]} == set(broden_folder.concepts("broden-opensurfaces"))


@pytest.mark.parametrize(("small", "large"), [((2, 3), (4, 6)), ((2, 3), (5, 7)), ((113, 113), (227, 227)), ((4, 4), (4, 4))])
def test_masks_grow_by_the_nearest_pixel_as_pillow_does(small: tuple[int, int], large: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(small) < 0.5
    expected = Image.fromarray(mask.astype(np.uint8)).resize((large[1], large[0]), Image.Resampling.NEAREST)
    assert np.array_equal(enlarged(mask[None], large)[0], np.asarray(expected).astype(bool))


def test_an_empty_cell_beside_a_labelled_one_means_that_nothing_of_it_is_there(folder: Path) -> None:
    broden_folder.rewrite(folder, "index.csv", {"pascal/0009.jpg": {"part": ""}}, "image")
    row = everything(dataset.load(folder=str(folder)))["pascal/0009.jpg"]
    assert len(row["concepts"]) == len(row["regions"]) > 0


def unlabel(folder: Path) -> None:
    """One image without a cell, one whose PNG has no label at all."""
    broden_folder.rewrite(folder, "index.csv", {"opensurfaces/0001.jpg": {"material": ""}}, "image")
    broden_folder.png(folder, "opensurfaces/0002_material.png", np.zeros(broden_folder.LABELS, int))


def test_images_that_nobody_labelled_are_left_out_of_the_seeded_split_and_counted(folder: Path) -> None:
    unlabel(folder)
    found = dataset.load("opensurfaces", MATERIAL, str(folder))
    assert not {"opensurfaces/0001.jpg", "opensurfaces/0002.jpg"} & set(everything(found))
    assert found["train"].info.description == "split 60/20/20 by sha256 of 0:image; 2 images without any label left out"


def test_images_that_nobody_labelled_are_not_annotated_where_the_authors_split_has_them(folder: Path) -> None:
    unlabel(folder)
    paper(folder, "Broden-OpenSurfaces", "opensurfaces", 30)
    found = dataset.load("opensurfaces", MATERIAL, str(folder))
    assert everything(found)["opensurfaces/0001.jpg"]["regions"] is None
    assert everything(found)["opensurfaces/0002.jpg"]["regions"] is None
    assert everything(found)["opensurfaces/0003.jpg"]["regions"] is not None
    assert found["train"].info.description == "split of the authors' metadata.csv; 2 images without any label are not annotated"


# --- splits


def paper(folder: Path, name: str, source: str, images: int) -> Path:
    """The authors' metadata.csv for the first images of a source; every fifth is in cal, every sixth in test."""
    path = folder / name / "metadata.csv"
    path.parent.mkdir()
    splits = ["cal" if i % 5 == 0 else "test" if i % 6 == 0 else "train" for i in range(images)]
    lines = [f"images/{source}/{i:04d}.jpg,{i % 2},{split}" for i, split in enumerate(splits)]
    path.write_text("image_path,object::dog,split\n" + "\n".join(lines) + "\n")
    return path


def test_the_authors_split_is_taken_where_their_file_is_and_holds_their_images_alone(folder: Path) -> None:
    assert sum(len(part) for part in dataset.load(folder=str(folder)).values()) == IMAGES
    paper(folder, "Broden-Pascal", "pascal", 30)
    found = dataset.load(folder=str(folder))
    assert set(found["cal"]["id"]) == {f"pascal/{i:04d}.jpg" for i in range(0, 30, 5)}
    assert sum(len(part) for part in found.values()) == 30
    assert sum(len(part) for part in dataset.load(folder=str(folder), split="seeded").values()) == IMAGES


def test_the_seeded_split_depends_on_seed_and_image_alone_and_is_about_60_20_20(made: Path) -> None:
    found, other = dataset.load(folder=str(made)), dataset.load(folder=str(made), seed=1)
    assert {split: set(found[split]["id"]) for split in SPLITS} != {split: set(other[split]["id"]) for split in SPLITS}
    drawn = [dataset.seeded(f"pascal/{i}.jpg", 0) for i in range(5000)]
    assert [round(drawn.count(split) / 5000, 1) for split in SPLITS] == [0.6, 0.2, 0.2]
    assert [dataset.seeded("pascal/2008_000008.jpg", seed) for seed in range(4)] == ["test", "cal", "cal", "test"]


def test_mistakes_in_the_authors_file_are_one_line_each(folder: Path) -> None:
    assert message(folder=str(folder), split="paper") == (
        f"split: paper needs the authors' metadata.csv; looked for {folder}/Broden-Pascal/metadata.csv and "
        f"{folder.parent}/Broden-Pascal/metadata.csv; get it from https://github.com/BrachioLab/SuperActivators "
        f"(Data/Broden-Pascal/metadata.csv), or set `metadata`, or `split: seeded`"
    )
    path = paper(folder, "Broden-Pascal", "pascal", 30)
    good = path.read_text()
    for text, said in (
        (good.replace("0007.jpg", "9999.jpg"), "line 9: image_path 'images/pascal/9999.jpg' is none of the 40 images"),
        (good.replace("0007.jpg", "0006.jpg"), "line 9: image_path 'images/pascal/0006.jpg' is there twice"),
        (good.replace("train", "tarin"), "unknown split 'tarin' in "),
        (good.replace("image_path", "path"), "has no column 'image_path'"),
        ("image_path,split\nimages/pascal/0001.jpg,train\n", "gives no image to cal, test; every split needs some"),
    ):
        path.write_text(text)
        assert said in message(folder=str(folder))


# --- what is wrong with a folder or an option


def test_options_that_are_not_known_get_the_nearest(made: Path) -> None:
    where = str(made)
    assert message(folder=where, source="pascel").startswith(
        f"unknown source 'pascel' in {made}/index.csv; did you mean pascal?"
    )
    assert message(folder=where, categories=["objects"]).startswith(
        "unknown category 'objects' in data set broden; did you mean object?"
    )
    assert message(folder=where, split="papers").startswith("unknown split 'papers' in data set broden; did you mean paper?")
    assert message(folder=where, size=225).startswith("unknown size '225' in data set broden; did you mean 227 or 224?")
    assert message(folder=where, download="allways").startswith(
        "unknown download 'allways' in data set broden; did you mean always?"
    )


def test_a_category_that_a_source_does_not_annotate_is_refused(made: Path) -> None:
    assert message(folder=str(made), categories=["material"]) == (
        f"unknown category 'material' in source pascal of {made}/index.csv; there are: object, part"
    )


def test_a_damaged_folder_is_one_line_that_names_the_place(folder: Path) -> None:
    where = str(folder)
    index = (folder / "index.csv").read_text()
    (folder / "images" / "pascal" / "0004_object.png").unlink()
    assert message(folder=where) == (
        f"cannot read {folder}/images/pascal/0004_object.png, named in {folder}/index.csv, line 6; No such file or directory; "
        f"unpack the archive again"
    )
    broden_folder.png(folder, "pascal/0004_object.png", np.zeros((3, 3), int))
    assert "0004_object.png has (height, width) (3, 3)" in message(folder=where)
    for old, new, said in (
        ("pascal/0004_object.png", "../../secret.png", "line 6: '../../secret.png' is no path below images/"),
        ("pascal/0004.jpg,train,32", "pascal/0004.jpg,train,-1", "line 6: ih, iw, sh, sw are -1, 48, 16, 24"),
        ("image,split", "picture,split", "index.csv has no column 'image'"),
        ("pascal/0004.jpg,train,", "pascal/0004.jpg,", "line 6 has not as many cells as the header"),
    ):
        (folder / "index.csv").write_text(index.replace(old, new))
        assert said in message(folder=where)
    (folder / "index.csv").write_text(index)
    (folder / "label.csv").write_text("number,name,category\nx,dog,object(3)\n")
    assert f"{folder}/label.csv, line 2: number 'x' and category 'object(3)'" in message(folder=where)


@pytest.mark.parametrize("mode", ["L", "1", "I;16"])
def test_a_label_png_that_is_not_rgb_is_refused_since_its_numbers_would_be_wrong(mode: str, folder: Path) -> None:
    path = folder / "images" / "pascal" / "0004_object.png"
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.convert(mode).save(path)
    assert message(folder=str(folder)) == (
        f"{path}, named in {folder}/index.csv, line 6, has pixels of mode {mode}; label numbers are R + 256 G of RGB"
    )


def test_hostile_labels_are_one_line_each(folder: Path) -> None:
    labels = (folder / "label.csv").read_text()
    (folder / "label.csv").write_text(f"{labels}250,other,object(3),1,1,\n")
    assert ": label 250 is there twice, as " in message(folder=str(folder))
    (folder / "label.csv").write_text(f"{labels}0,nothing,object(3),1,1,\n")
    assert not any("object::nothing" in row["concepts"] for row in everything(dataset.load(folder=str(folder))).values())
    broden_folder.rewrite(folder, "index.csv", {"pascal/0004.jpg": {"object": "9" * 30}}, "image")
    assert f"index.csv, line 6: '{'9' * 30}' is no label number" in message(folder=str(folder))
    broden_folder.rewrite(folder, "index.csv", {"pascal/0004.jpg": {"object": "pascal/0004_object.png"}}, "image")
    Image.new("1", (20_000, 20_000)).save(folder / "images" / "pascal" / "0004_object.png")
    assert "could be decompression bomb" in message(folder=str(folder))


def test_an_image_that_is_gone_is_left_out_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(folder.parent.parent))
    (folder / "images" / "opensurfaces" / "0001.jpg").write_bytes(b"cut")
    notes = load_task(load_registry(), "broden-opensurfaces").notes
    (note,) = [value for key, value in notes.items() if key.startswith("unreadable image")]
    assert note == {"count": 1, "ids": ["opensurfaces/0001.jpg"]}


# --- the bundled tasks


@pytest.mark.parametrize(("name", "count"), [("broden-pascal", 83), ("broden-opensurfaces", 26)])
def test_the_bundled_task_reads_the_folder_below_harness_data(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broden_folder.write(tmp_path / "broden", 220)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    task = load_task(load_registry(), name)
    assert len(task.concepts) == len(set(broden_folder.concepts(name))) == count
    assert set(task.notes) == {"data set"}
    assert task.splits["train"].regions(0)


def test_the_papers_lists_are_36_objects_47_parts_and_26_materials() -> None:
    kinds = [each.partition("::")[0] for each in broden_folder.concepts("broden-pascal")]
    assert (kinds.count("object"), kinds.count("part")) == (36, 47)
    assert {each.partition("::")[0] for each in broden_folder.concepts("broden-opensurfaces")} == {"material"}


# --- where the folder is, and how it gets there


def test_without_a_folder_one_line_names_the_archive_and_where_to_unpack_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message() == (
        "data set broden has no folder; neither the option `folder` nor HARNESS_DATA is set; set HARNESS_DATA to a folder with "
        "broden/, where http://netdissect.csail.mit.edu/data/broden1_224.zip is unpacked"
    )
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    start = f"no Broden in {tmp_path}/broden: no index.csv there or in broden/broden1_224; "
    end = (
        f"; or unpack http://netdissect.csail.mit.edu/data/broden1_224.zip in {tmp_path}/broden, or name another folder with "
        "HARNESS_DATA or the option `folder`"
    )
    assert message() == f"{start}set HARNESS_DOWNLOAD=always to let the harness download the archive{end}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message(download="always").startswith(f"{start}HF_HUB_OFFLINE is set: ")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(download, "HOST", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9, which has them (the archive), cannot be reached (" in message(download="always")


def test_another_size_that_is_there_serves(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "broden1_384")
    assert len(dataset.load(folder=str(tmp_path))["train"]) > 15


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as stub:
        monkeypatch.setattr(download, "HOST", stub.url)
        yield stub


def archive(folder: Path, **more: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            made.write(path, f"broden1_224/{path.relative_to(folder)}")
        for name, content in more.items():
            made.writestr(name, content)
    return sink.getvalue()


def test_a_download_resumes_unpacks_once_and_gives_the_same_data(server: Server, made: Path, tmp_path: Path) -> None:
    whole = archive(made)
    path = "/data/broden1_224.zip"
    server.files[path], server.cut[path] = whole, [5000, 0]
    where = str(tmp_path / "fresh")
    said = message(folder=where, download="always")
    assert (
        said
        == f"the download of {server.url}{path} stopped at 5,000 bytes (the connection was cut); run the same command again to resume"
    )
    server.cut[path] = [7000]
    options = {"folder": where, "download": "always", "sha256": hashlib.sha256(whole).hexdigest()}
    found = dataset.load(**options)
    assert [asked for _, asked in server.ranges] == [None, "bytes=5000-", "bytes=5000-", "bytes=12000-"]
    assert everything(found).keys() == everything(dataset.load(folder=str(made))).keys()
    assert not list((tmp_path / "fresh" / ".downloads").iterdir())
    dataset.load(**options)
    assert len(server.ranges) == 4


def test_an_archive_with_another_checksum_is_removed(server: Server, made: Path, tmp_path: Path) -> None:
    server.files["/data/broden1_224.zip"] = archive(made)
    said = message(folder=str(tmp_path), download="always", sha256="0" * 64)
    assert "is not the official file: " in said
    assert f"expected {'0' * 64}; it was removed" in said
    assert not (tmp_path / "broden1_224").exists()


def test_an_archive_that_points_outside_is_refused_before_anything_is_written(
    server: Server, made: Path, tmp_path: Path
) -> None:
    server.files["/data/broden1_224.zip"] = archive(made, **{"broden1_224/../../evil": b"evil"})
    assert "has a member that may point outside: 'broden1_224/../../evil'" in message(folder=str(tmp_path), download="always")
    assert not (tmp_path / "broden1_224").exists()


def test_an_archive_without_an_index_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/data/broden1_224.zip"] = archive(tmp_path / "none", **{"broden1_224/README.txt": b"moved"})
    said = message(folder=str(tmp_path), download="always")
    assert said.endswith("broden1_224.zip holds no broden1_224/index.csv; it is not the official archive; remove it")


def test_the_task_files_name_this_data_set() -> None:
    for name, source in (("broden-pascal", "pascal"), ("broden-opensurfaces", "opensurfaces")):
        task = yaml.safe_load((broden_folder.ROOT / "tasks" / f"{name}.yaml").read_text())
        assert (task["dataset"]["name"], task["dataset"]["source"]) == ("broden", source)
