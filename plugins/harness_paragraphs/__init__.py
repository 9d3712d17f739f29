"""The paper's text sets as paragraphs with one labelled comment among others: `goemotions`, `isarcasm`, `sarcasm`.

Composition is seeded by hashes alone, so that everybody gets the same paragraphs; see README.md for sources, licences and statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.api import Entry, hookimpl


@hookimpl
def harness_register_datasets() -> Iterable[Entry]:
    """Three datasets."""
    return [
        Entry(
            "goemotions",
            "harness_paragraphs.goemotions:load",
            "an emotional comment among neutral ones, from the official GoEmotions",
            needs=("data:train.tsv", "data:dev.tsv", "data:test.tsv", "data:emotions.txt"),
            bring="put these files of github.com/google-research/google-research/tree/master/goemotions/data there",
        ),
        Entry(
            "isarcasm",
            "harness_paragraphs.isarcasm:load",
            "a sarcastic tweet, or its literal rephrase, among others (iSarcasmEval)",
            needs=("data:train/train.En.csv", "data:test/task_A_En_test.csv"),
            bring="clone https://github.com/iabufarha/iSarcasmEval there",
        ),
        Entry("sarcasm", "harness_paragraphs.sarcasm:load", "sarcastic and literal remarks: synthetic, or the authors' folder"),
    ]
