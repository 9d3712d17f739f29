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
        ),
        Entry(
            "isarcasm",
            "harness_paragraphs.isarcasm:load",
            "a sarcastic tweet, or its literal rephrase, among others (iSarcasmEval)",
        ),
        Entry("sarcasm", "harness_paragraphs.sarcasm:load", "sarcastic and literal remarks: synthetic, or the authors' folder"),
    ]
