"""The authors' published text folders: paragraph files, word-level labels, and the split of metadata.csv.

paragraphs/paragraph_XXXXXX.txt · word_level_*.csv (paragraph_id from 1, word, one 0/1 column per concept) · metadata.csv (concepts 0/1,
text_path, split). The authors pair the k-th row with the k-th word by position, with no look at the text (method section 1.4); here
rows and words are aligned by their text, and a paragraph whose labelled words cannot be found is not annotated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

from datasets import DatasetDict

from harness.api import SPLITS, HarnessError
from harness_paragraphs.compose import Paragraph, table
from harness_paragraphs.folders import columns, yes

WANT = "the authors' folder: metadata.csv, paragraphs/paragraph_XXXXXX.txt and word_level_*.csv"
Word = tuple[str, tuple[str, ...]]
"""A row of the word-level file: the word, and the concepts it is labelled with."""


def read_authors(folder: Path, kind: str) -> DatasetDict:
    """The three splits of the folder; kind names its word-level file (`emotion`, `sarcasm`)."""
    folder = folder.expanduser().absolute()
    metadata = folder / "metadata.csv"
    words = _words(folder / f"word_level_{kind}.csv")
    splits: dict[str, list[Paragraph]] = {split: [] for split in SPLITS}
    astray = 0
    for number, row in columns(metadata, WANT, ("text_path", "split")):
        path = _inside(folder, row["text_path"], metadata, number)
        concepts = tuple(c for c, value in row.items() if c not in ("text_path", "split") and yes(value, c, number, metadata))
        if row["split"] not in splits:
            raise HarnessError(f"split {row['split']!r} in line {number} of {metadata}; train, cal and test are allowed")
        found = re.search(r"\d+", path.stem)
        if found is None:
            raise HarnessError(f"text_path {row['text_path']!r} in line {number} of {metadata} has no paragraph number")
        text = path.read_text(encoding="utf-8")
        spans = align(text, words.get(int(found.group()), ()))
        astray += spans is None
        splits[row["split"]].append(Paragraph(path.stem, text, concepts, spans))
    about = f"{astray} paragraphs whose labelled words are not in their text are not annotated" if astray else ""
    return DatasetDict({split: table(rows, about) for split, rows in splits.items()})


def _inside(folder: Path, name: str, metadata: Path, number: int) -> Path:
    """The paragraph's file, which lies below the folder."""
    path = (folder / name).resolve()
    path = path if path.is_file() else (folder / "paragraphs" / Path(name).name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise HarnessError(f"no file {name!r} below {folder}, named in line {number} of {metadata}; it is {WANT}")
    return path


def _words(path: Path) -> dict[int, list[Word]]:
    """Paragraph number -> its rows in order."""
    found: dict[int, list[Word]] = {}
    for number, row in columns(path, WANT, ("paragraph_id", "word")):
        if not row["paragraph_id"].strip().isdigit():
            raise HarnessError(f"paragraph_id {row['paragraph_id']!r} in line {number} of {path} is no number; it is {WANT}")
        paragraph, word = int(row["paragraph_id"]), row["word"]
        concepts = tuple(c for c in row if c not in ("paragraph_id", "word") and yes(row[c], c, number, path))
        found.setdefault(paragraph, []).append((word, concepts))
    return found


def align(text: str, rows: Sequence[Word]) -> tuple[tuple[str, int, int], ...] | None:
    """(concept, start, end) of every run of labelled words; None where a labelled word is not found in its turn."""
    words = list(re.finditer(r"\S+", text))
    matcher = SequenceMatcher(None, [word for word, _ in rows], [m.group() for m in words], autojunk=False)
    place = {a + i: b + i for a, b, size in matcher.get_matching_blocks() for i in range(size)}
    if any(concepts and i not in place for i, (_, concepts) in enumerate(rows)):
        return None
    spans: list[tuple[str, int, int]] = []
    for concept in sorted({c for _, concepts in rows for c in concepts}):
        places = sorted(place[i] for i, (_, concepts) in enumerate(rows) if concept in concepts)
        runs: list[list[int]] = []
        for p in places:
            if runs and p == runs[-1][-1] + 1:
                runs[-1].append(p)
            else:
                runs.append([p])
        spans += [(concept, words[run[0]].start(), words[run[-1]].end()) for run in runs]
    return tuple(spans)
