"""RLE masks: equal to pycocotools on good ones, an error instead of a crash on bad ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from harness.masks import checked_rle, rle_mask, run_lengths


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 10_000))
def test_a_mask_comes_back_as_it_went(height: int, width: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = packed["counts"].decode()
    assert checked_rle([height, width], text) == {"size": [height, width], "counts": text}
    assert sum(run_lengths(packed["counts"])) == height * width
    assert (rle_mask([{"size": [height, width], "counts": text}]) == mask).all()


def test_masks_of_one_concept_are_joined() -> None:
    one, two = [0, 1, 5], [5, 1]
    joined = rle_mask([{"size": [2, 3], "counts": one}, {"size": [2, 3], "counts": two}])
    assert joined.tolist() == [[True, False, False], [False, False, True]]


@pytest.mark.parametrize(
    ("size", "counts", "said"),
    [
        ([2, 3], "", "do not fill the size"),
        ([2, 3], [7], "do not fill the size"),
        ([2, 3], [-1, 7], "do not fill the size"),
        ([2, 3], [True, 5], "do not fill the size"),
        ([2], [2], "is not [height, width]"),
        ([0, 3], [0], "is not [height, width]"),
        ([1 << 20, 1 << 20], [1 << 40], "is not [height, width]"),
        ([2, 3], "\x7f\x7f", "is not a COCO RLE string"),
        ([2, 3], "o", "is a truncated COCO RLE string"),
    ],
)
def test_a_malformed_mask_is_refused(size: list[int], counts: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"size|RLE") as error:
        checked_rle(size, counts)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        rle_mask([{"size": [1, 2], "counts": [2]}, {"size": [2, 1], "counts": [2]}])
