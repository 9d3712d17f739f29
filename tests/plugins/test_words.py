"""Bag of words: the contract, what it learns, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from harness_words.scorer import ALWAYS, NEVER, BagOfWords

from harness.api import HarnessError, Sample, Setup
from harness.testing import check_scorer

TEXTS = [
    Sample(str(i), text=text) for i, text in enumerate(["a good day", "a bad day", "good food", "bad food", "good", "bad"])
]
LABELS = np.array([[i % 2 == 0, False, True] for i in range(6)])


def test_it_keeps_the_contract_of_a_scorer():
    check_scorer(BagOfWords())


def test_it_finds_the_word_that_matters_and_knows_never_and_always():
    fitted = BagOfWords(pairs=False).fit(TEXTS, LABELS, 0)
    scores = fitted.score([Sample("x", text="good day"), Sample("y", text="bad day"), Sample("z", text="")], ["a", "b", "c"])
    assert scores[0, 0] > 0 > scores[1, 0]
    assert (scores[:, 1] == NEVER).all()
    assert (scores[:, 2] == ALWAYS).all()
    assert np.isfinite(scores).all()


def test_train_without_a_word_gives_every_sample_the_same_score():
    fitted = BagOfWords().fit([Sample(str(i), text="") for i in range(4)], LABELS[:4], 0)
    assert (fitted.score(TEXTS, ["a", "b", "c"])[:, 0] == 0).all()


def test_it_is_refused_for_images_in_one_line():
    with pytest.raises(
        HarnessError, match=r"^bag-of-words reads texts; this task's samples are of modality 'image'; leave it out$"
    ):
        BagOfWords().open(Setup(), "image")


def test_bad_options_are_refused():
    with pytest.raises(HarnessError, match="bag-of-words needs c > 0 and min_samples >= 1; got c=0, min_samples=2"):
        BagOfWords(c=0)
