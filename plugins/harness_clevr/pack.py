"""Packs a folder written by render.py into one parquet file; the same folder gives the same bytes.

Images become JPEG (4:4:4, so that colours keep their edges), masks COCO run lengths. Draws the
train/cal/test split, stratified over the nine colour-shape pairs. It renders nothing.

    python plugins/harness_clevr/pack.py FOLDER plugins/harness_clevr/clevr.parquet
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco

SPLITS = {"train": 634, "cal": 200, "test": 166}  # the paper's sizes
QUALITY = 94
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "image": pa.binary(),
        "size": pa.list_(pa.int32()),
        "counts": pa.string(),
        "color": pa.string(),
        "shape": pa.string(),
        "material": pa.string(),
        "size_name": pa.string(),
        "split": pa.string(),
    }
)


def split_of(scenes: list[dict[str, str]], seed: int) -> dict[str, str]:
    """id -> split. Within a split no two colour-shape pairs differ by more than one in number.

    The pairs are dealt in turn, like suits into one pile, and the pile is cut at the split sizes.
    """
    rng = np.random.default_rng(seed)
    pairs = defaultdict(list)
    for scene in scenes:
        pairs[scene["color"], scene["shape"]].append(scene["id"])
    dealt = []
    for number, pair in enumerate(sorted(pairs)):
        rng.shuffle(pairs[pair])
        dealt += [(turn, number, name) for turn, name in enumerate(pairs[pair])]
    names = [split for split, size in SPLITS.items() for _ in range(size)]
    ids = [name for _, _, name in sorted(dealt)]
    return dict(zip(ids, names, strict=True))


def jpeg(path: Path) -> bytes:
    """The image as JPEG bytes."""
    packed = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(packed, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return packed.getvalue()


def run_lengths(path: Path) -> tuple[list[int], str]:
    """COCO size (height, width) and compressed counts of a black-and-white mask."""
    with Image.open(path) as image:
        rle = coco.encode(np.asfortranarray(np.asarray(image.convert("L")) > 127, dtype=np.uint8))
    return [int(side) for side in rle["size"]], rle["counts"].decode("ascii")


def rows(folder: Path, seed: int) -> list[dict[str, object]]:
    """One row a scene, in the order of scenes.jsonl."""
    lines = (folder / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
    scenes = [json.loads(line) for line in lines]
    splits = split_of(scenes, seed)
    packed = []
    for scene in scenes:
        size, counts = run_lengths(folder / "masks" / f"{scene['id']}.png")
        row = {key: scene[key] for key in ("id", "color", "shape", "material")}
        row |= {"image": jpeg(folder / "images" / f"{scene['id']}.png"), "size": size}
        packed.append(row | {"counts": counts, "size_name": scene["size"], "split": splits[scene["id"]]})
    return packed


def main() -> None:
    """Write the parquet file and print its size."""
    parser = argparse.ArgumentParser(description="pack rendered scenes into one parquet file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    options = parser.parse_args()
    table = pa.Table.from_pylist(rows(options.folder, options.seed), schema=SCHEMA)
    pq.write_table(table, options.output, compression="zstd")
    sys.stdout.write(f"{options.output}: {table.num_rows} rows, {options.output.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
