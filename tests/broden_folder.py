"""A small folder in the official Broden layout, made from a seed: images, half-size label PNGs (R + 256 G), index.csv, label.csv.

Every label of the two bundled tasks is there, in blocks; ten of them stand in two categories, as `tree` does in Broden.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
HEADER = ["image", "split", "ih", "iw", "sh", "sw", "color", "object", "part", "material", "scene", "texture"]
SIZE, LABELS, BLOCK = (32, 48), (16, 24), 4
"""(height, width) of images and of label PNGs; side of a block of one label."""
FIRST = 250
"""Number of the first label: most need the green channel."""


def concepts(task: str) -> list[str]:
    """The concepts of a bundled task, `category::name`."""
    found: list[str] = yaml.safe_load((ROOT / "tasks" / f"{task}.yaml").read_text())["concepts"]
    return found


def numbers() -> dict[str, int]:
    """Label name -> its number. A name that is both a material and an object or part is one label, as in Broden."""
    names = [each.partition("::")[2] for task in ("broden-pascal", "broden-opensurfaces") for each in concepts(task)]
    return {name: FIRST + i for i, name in enumerate(dict.fromkeys([*names, "red-c", "striped", "street-s"]))}


def write(root: Path, images: int = 150, seed: int = 0) -> Path:
    """broden1_224 below `root`: `images` of pascal and of opensurfaces, two of dtd."""
    folder, generator = root / "broden1_224", np.random.default_rng(seed)
    known = numbers()
    rows = []
    for source, names in (("pascal", concepts("broden-pascal")), ("opensurfaces", concepts("broden-opensurfaces"))):
        rows += [_image(folder, f"{source}/{i:04d}", names, known, generator) for i in range(images)]
    whole = {"texture": str(known["striped"]), "scene": str(known["street-s"])}
    rows += [_row(_picture(folder, f"dtd/{i}", generator), **whole) for i in range(2)]
    _table(folder / "index.csv", HEADER, rows)
    _table(folder / "label.csv", ["number", "name", "category", "frequency", "coverage", "syns"], _labels(known))
    return folder


def _labels(known: dict[str, int]) -> list[dict[str, Any]]:
    """Ten labels stand in a second, more frequent category before the one that names the concept."""
    categories: dict[str, list[str]] = {name: [] for name in known}
    for i, each in enumerate(concepts("broden-pascal")):
        category, _, name = each.partition("::")
        other = "part" if category == "object" else "object"
        categories[name] += [f"{other}(90)", f"{category}(8)"] if i % 8 == 0 else [f"{category}(40)"]
    for each in concepts("broden-opensurfaces"):
        categories[each.partition("::")[2]].append("material(30)")
    for name, category in (("red-c", "color"), ("striped", "texture"), ("street-s", "scene")):
        categories[name].append(f"{category}(5)")
    return [
        {"number": known[name], "name": name, "category": ";".join(found), "frequency": 1, "coverage": 0.5, "syns": ""}
        for name, found in categories.items()
    ]


def _image(folder: Path, name: str, names: list[str], known: dict[str, int], generator: np.random.Generator) -> dict[str, Any]:
    """A picture whose blocks have labels drawn from `names`, about a third of the blocks none."""
    image = _picture(folder, name, generator)
    if name.startswith("opensurfaces"):
        return _row(image, material=png(folder, f"{name}_material.png", _blocks(names, known, generator)))
    objects = [each for each in names if each.startswith("object")]
    parts = [each for each in names if each.startswith("part")]
    layers = [png(folder, f"{name}_part_{k}.png", _blocks(parts, known, generator)) for k in (1, 2)]
    return _row(image, object=png(folder, f"{name}_object.png", _blocks(objects, known, generator)), part=";".join(layers))


def _blocks(names: list[str], known: dict[str, int], generator: np.random.Generator) -> np.ndarray:
    shape = (LABELS[0] // BLOCK, LABELS[1] // BLOCK)
    drawn = np.array([known[each.partition("::")[2]] for each in names])[generator.integers(len(names), size=shape)]
    drawn[generator.random(shape) < 0.3] = 0
    return np.kron(drawn, np.ones((BLOCK, BLOCK), int))


def png(folder: Path, name: str, labels: np.ndarray) -> str:
    """Writes a label PNG below images/; its name as a cell has it."""
    pixels = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / name)
    return name


def _picture(folder: Path, name: str, generator: np.random.Generator) -> str:
    path = folder / "images" / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 256, (*SIZE, 3), np.uint8)).save(path)
    return f"{name}.jpg"


def _row(image: str, **cells: str) -> dict[str, Any]:
    sizes = dict(zip(HEADER[2:6], (*SIZE, *LABELS), strict=True))
    return {**dict.fromkeys(HEADER, ""), "image": image, "split": "train", **sizes, **cells}


def rewrite(folder: Path, name: str, change: dict[str, dict[str, str]], key: str) -> None:
    """Changes cells of a CSV file, row by row: {value of `key`: {column: new value}}."""
    with (folder / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    _table(folder / name, list(rows[0]), [{**row, **change.get(row[key], {})} for row in rows])


def _table(path: Path, header: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
