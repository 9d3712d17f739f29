"""iSarcasmEval (Abu Farha et al. 2022), English: tweets their own authors call sarcastic, each with a literal rephrase.

As paragraphs: the tweet (positive) and its rephrase (the hard negative) stand in one and the same context, always in one split; fillers
are tweets that are not sarcastic. `official=true` takes the tweets alone, and the official test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict

from harness.api import SPLITS
from harness_paragraphs.authors import read_authors
from harness_paragraphs.compose import (
    LONGEST,
    SHORTEST,
    Comment,
    Fillers,
    Paragraph,
    compose,
    draw,
    normalised,
    once,
    table,
)
from harness_paragraphs.folders import columns, root_of, yes

TYPES = ("sarcasm", "irony", "satire", "understatement", "overstatement", "rhetorical_question")
SHARES = (60, 80)
"""Percent where train and cal end."""
WANT = "train/train.En.csv and test/task_A_En_test.csv of iSarcasmEval (github.com/iabufarha/iSarcasmEval)"


def load(
    folder: str | None = None, official: bool = False, types: bool = False, seed: int = 0, authors: str | None = None
) -> DatasetDict:
    """iSarcasmEval with splits train, cal and test; concept `sarcastic`, and with `types` the six sub-types as well.

    folder: the official layout; default `$HARNESS_DATA/isarcasm`. official: single tweets, train/train.En.csv cut 75/25 into train
    and cal, test = task A. authors: the authors' published folder instead (paragraph files and word-level labels).
    """
    if authors is not None:
        return read_authors(Path(authors), "sarcasm")
    root = root_of(folder, "isarcasm", WANT)
    tweets, pairs = read(root / "train" / "train.En.csv", types)
    if official:
        return _official(root, [*tweets, *(tweet for tweet, _ in pairs)], seed)
    return _composed(tweets, pairs, seed)


def read(path: Path, types: bool) -> tuple[list[Comment], list[tuple[Comment, Comment]]]:
    """(tweets that are not sarcastic, (sarcastic tweet, its rephrase))."""
    plain, pairs = [], []
    for number, row in columns(path, WANT, ("tweet", "sarcastic", "rephrase", *TYPES)):
        name, text = f"train-{row.get('', number)}", row["tweet"].strip()
        if not yes(row["sarcastic"], "sarcastic", number, path):
            plain.append(Comment(name, text))
            continue
        kinds = tuple(kind for kind in TYPES if types and yes(row[kind] or "0", kind, number, path))
        pairs.append((Comment(name, text, ("sarcastic", *kinds)), Comment(f"{name}-rephrased", row["rephrase"].strip())))
    return plain, pairs


def split_of(name: str, seed: int) -> str:
    """60/20/20 by a hash of the tweet's id."""
    place = draw(seed, "split", name) % 100
    return SPLITS[sum(place >= end for end in SHARES)]


def _composed(plain: Sequence[Comment], pairs: Sequence[tuple[Comment, Comment]], seed: int) -> DatasetDict:
    seen: set[str] = set()
    unique = []
    for tweet, literal in pairs:
        keys = {normalised(tweet.text), normalised(literal.text)}
        if len(keys) == 2 and "" not in keys and not keys & seen:
            seen |= keys
            unique.append((tweet, literal))
    given = {split: [c for c in plain if split_of(c.id, seed) == split and normalised(c.text) not in seen] for split in SPLITS}
    fillers, _ = once(given)
    used = len(unique) * 2 + sum(len(comments) for comments in fillers.values())
    about = f"{len(plain) + 2 * len(pairs) - used} tweets left out: empty, without a rephrase, or standing elsewhere too"
    made = {}
    for split in SPLITS:
        mine = [pair for pair in unique if split_of(pair[0].id, seed) == split]
        deal = Fillers(fillers[split], seed, f"{split} of data set isarcasm")
        made[split] = table([p for pair in mine for p in _twins(pair, deal, seed)], about)
    return DatasetDict(made)


def _twins(pair: tuple[Comment, Comment], fillers: Fillers, seed: int) -> list[Paragraph]:
    """The tweet and its rephrase in the same place of the same context."""
    name = pair[0].id
    count = SHORTEST - 1 + draw(seed, "length", name) % (LONGEST - SHORTEST + 1)
    context, place = fillers.deal(count), draw(seed, "place", name) % (count + 1)
    return [compose(comment, context, place) for comment in pair]


def _official(root: Path, tweets: Sequence[Comment], seed: int) -> DatasetDict:
    path = root / "test" / "task_A_En_test.csv"
    test = [
        Comment(f"test-{i}", row["text"].strip(), ("sarcastic",) if yes(row["sarcastic"], "sarcastic", number, path) else ())
        for i, (number, row) in enumerate(columns(path, WANT, ("text", "sarcastic")))
    ]
    train = [c for c in tweets if draw(seed, "official", c.id) % 4]
    cal = [c for c in tweets if not draw(seed, "official", c.id) % 4]
    kept, left = once(dict(zip(SPLITS, (train, cal, test), strict=True)))
    about = f"{left} tweets left out, empty or standing elsewhere too"
    return DatasetDict({split: table([compose(c, [], 0) for c in kept[split]], about) for split in SPLITS})
