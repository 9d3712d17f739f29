"""Bag of words: which words are in a text, weighted by tf-idf, and one logistic regression per concept.

Fitted on train labels of samples. What it reaches needs no transformer; a method of tokens that does not beat it has shown little.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np

from harness.api import HarnessError, Sample, Setup

NEVER, ALWAYS = -50.0, 50.0
"""The log-odds given for a concept that train never, or always, has."""


class BagOfWords:
    """A score is the log-odds of the concept; the cutoff is calibrated on cal.

    c: inverse strength of the L2 penalty · pairs: count pairs of neighbouring words, too · min_samples: of train a word must be in.
    """

    calibrate_on = "samples"

    def __init__(self, c: float = 10.0, pairs: bool = True, min_samples: int = 2) -> None:
        if not c > 0 or min_samples < 1:
            raise HarnessError(f"bag-of-words needs c > 0 and min_samples >= 1; got c={c}, min_samples={min_samples}")
        self.c, self.pairs, self.min_samples = c, pairs, min_samples
        self._words: Any = None
        self._models: list[Any] = []

    def open(self, setup: Setup, modality: str) -> BagOfWords:
        """Itself, for a task of texts."""
        if modality != "text":
            raise HarnessError(f"bag-of-words reads texts; this task's samples are of modality {modality!r}; leave it out")
        return self

    def fit(self, samples: Sequence[Sample], labels: np.ndarray[Any, Any], seed: int) -> BagOfWords:
        """One regression per concept; lbfgs draws nothing, so the seed decides nothing."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        fitted = copy(self)
        texts = [sample.text or "" for sample in samples]
        fitted._words = TfidfVectorizer(
            ngram_range=(1, 2 if self.pairs else 1), min_df=min(self.min_samples, len(texts)), sublinear_tf=True
        )
        try:
            counts = fitted._words.fit_transform(texts)
        except ValueError:  # no word at all, or none in enough samples
            fitted._words, counts = None, None
        fitted._models = []
        for column in np.asarray(labels, bool).T:
            if not 0 < column.sum() < len(column):
                fitted._models.append(ALWAYS if column.any() else NEVER)
            elif counts is None:
                fitted._models.append(0.0)
            else:
                model = LogisticRegression(C=self.c, class_weight="balanced", max_iter=1000, random_state=seed)
                fitted._models.append(model.fit(counts, column))
        return fitted

    def score(self, samples: Sequence[Sample], concepts: Sequence[str]) -> np.ndarray[Any, Any]:
        """[S, C] float64."""
        scores = np.zeros((len(samples), len(concepts)))
        counts = self._words.transform([sample.text or "" for sample in samples]) if self._words is not None else None
        for c, model in enumerate(self._models):
            scores[:, c] = model if isinstance(model, float) else model.decision_function(counts)
        return scores
