"""Paragraphs around one labelled comment: spans are exact, splits share no text, draws repeat, every bad file gets one line."""

from __future__ import annotations

import csv
import os
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from harness_paragraphs import goemotions, isarcasm, sarcasm
from harness_paragraphs.authors import align, read_authors
from harness_paragraphs.compose import LONGEST, SHORTEST, Comment, Fillers, compose, draw, normalised, once, paragraph_of
from harness_paragraphs.goemotions import NINETEEN
from hypothesis import given
from hypothesis import strategies as st

from harness.api import SPLITS, HarnessError, load_task
from harness.registry import load as load_registry

DATA = Path(os.environ.get("HARNESS_DATA", "nowhere"))
texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() != "")


@given(texts, st.lists(texts, min_size=0, max_size=5), st.integers(0, 5))
def test_the_span_is_exactly_the_comments_characters(text: str, others: list[str], place: int) -> None:
    made = compose(
        Comment("a", text, ("joy", "love")), [Comment(str(i), other) for i, other in enumerate(others)], min(place, len(others))
    )
    assert made.spans is not None
    assert [concept for concept, *_ in made.spans] == ["joy", "love"]
    for _, start, end in made.spans:
        assert made.text[start:end] == text
    assert sorted(made.text) == sorted(" ".join([text, *others]))


def test_a_paragraph_has_three_to_six_comments_at_every_place_and_depends_on_seed_and_id_alone() -> None:
    pool = [Comment(f"f{i}", f"filler {i}") for i in range(40)]
    made = [paragraph_of(Comment(f"c{i}", "TARGET", ("joy",)), Fillers(pool, 0, "x"), 0) for i in range(200)]
    counts = [1 + paragraph.text.count("filler") for paragraph in made]
    assert set(counts) == set(range(SHORTEST, LONGEST + 1))
    first = [paragraph.text.startswith("TARGET") for paragraph in made]
    last = [paragraph.text.endswith("TARGET") for paragraph in made]
    assert 20 < sum(first) < 90
    assert 20 < sum(last) < 90
    again = paragraph_of(Comment("c7", "TARGET", ("joy",)), Fillers(pool, 0, "x"), 0)
    assert again == made[7]
    assert draw(0, "a", "b") != draw(1, "a", "b") != draw(0, "ab")


def test_fillers_are_dealt_evenly_and_never_twice_in_a_paragraph() -> None:
    fillers = Fillers([Comment(str(i), f"t{i}") for i in range(7)], 3, "x")
    dealt = [[c.id for c in fillers.deal(5)] for _ in range(14)]
    assert all(len(set(ids)) == 5 for ids in dealt)
    used = [i for ids in dealt for i in ids]
    assert {used.count(str(i)) for i in range(7)} == {10}
    with pytest.raises(HarnessError, match="2 filler comments in x; a paragraph needs 5 others"):
        Fillers([Comment("a", "a"), Comment("b", "b")], 0, "x")


def test_a_text_in_two_splits_stays_in_the_later_one_and_is_counted() -> None:
    splits = {
        "train": [Comment("1", "Same  text"), Comment("2", "own"), Comment("5", "  ")],
        "cal": [Comment("3", "same TEXT")],
        "test": [Comment("4", "other"), Comment("6", "OTHER")],
    }
    kept, left = once(splits)
    assert {split: [c.id for c in comments] for split, comments in kept.items()} == {
        "train": ["2"],
        "cal": ["3"],
        "test": ["4"],
    }
    assert left == 3


# --- the real data


def rows(found: Any, split: str) -> list[dict[str, Any]]:
    return list(found[split])


def sentences(found: Any, split: str) -> set[str]:
    return {normalised(row["text"][r["start"] : r["end"]]) for row in found[split] for r in row["regions"]}


needs_goemotions = pytest.mark.skipif(not (DATA / "goemotions").is_dir(), reason="HARNESS_DATA has no goemotions/")
needs_isarcasm = pytest.mark.skipif(not (DATA / "isarcasm").is_dir(), reason="HARNESS_DATA has no isarcasm/")


@needs_goemotions
def test_goemotions_has_the_papers_sizes_spans_of_real_comments_and_no_text_in_two_splits() -> None:
    found = goemotions.load()
    assert {split: len(found[split]) for split in SPLITS} == {"train": 3271, "cal": 1082, "test": 1074}
    originals = {
        normalised(line.split("\t")[0]): line.split("\t")[1]
        for name in goemotions.FILES.values()
        for line in (DATA / "goemotions" / name).read_text(encoding="utf-8").splitlines()
    }
    for split in SPLITS:
        for row in rows(found, split):
            assert row["concepts"] == [region["concept"] for region in row["regions"]]
            assert set(row["concepts"]) <= set(NINETEEN)
            assert len({(r["start"], r["end"]) for r in row["regions"]}) == 1
        assert sentences(found, split) <= set(originals)
    for one, other in combinations(SPLITS, 2):
        assert not sentences(found, one) & sentences(found, other)
    assert found["train"].info.description.startswith("320 comments left out")
    again = goemotions.load()
    assert again["cal"][17] == found["cal"][17]
    assert goemotions.load(seed=1)["cal"][17] != found["cal"][17]


@needs_goemotions
def test_no_filler_of_one_split_stands_in_a_paragraph_of_another() -> None:
    found = goemotions.load()
    kept, _ = once({s: goemotions.read(DATA / "goemotions" / f, names()) for s, f in goemotions.FILES.items()})
    neutral = {
        split: [c.text for c in kept[split] if c.concepts == ("neutral",) and len(c.text) > 40][:300] for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        every = "\n".join(row["text"] for row in rows(found, other))
        assert not [text for text in neutral[one] if text in every]


def names() -> list[str]:
    return (DATA / "goemotions" / "emotions.txt").read_text().split()


@needs_isarcasm
def test_isarcasm_keeps_a_tweet_and_its_rephrase_in_one_context_of_one_split() -> None:
    found = isarcasm.load()
    seen: dict[str, str] = {}
    for split in SPLITS:
        by_id = {row["id"]: row for row in rows(found, split)}
        assert len(by_id) % 2 == 0
        for name, row in by_id.items():
            if name.endswith("-rephrased"):
                assert row["concepts"] == row["regions"] == []
                continue
            twin = by_id[f"{name}-rephrased"]
            (region,) = row["regions"]
            assert row["concepts"] == ["sarcastic"]
            before, after = row["text"][: region["start"]], row["text"][region["end"] :]
            assert twin["text"].startswith(before)
            assert twin["text"].endswith(after)
            assert twin["text"] != row["text"]
            tweet = normalised(row["text"][region["start"] : region["end"]])
            assert seen.setdefault(tweet, split) == split
    sizes = {split: len(found[split]) for split in SPLITS}
    assert sum(sizes.values()) > 1700
    assert 0.55 < sizes["train"] / sum(sizes.values()) < 0.65


@needs_isarcasm
def test_isarcasm_official_is_single_tweets_with_the_official_test_set_and_types_are_concepts() -> None:
    found = isarcasm.load(official=True)
    assert 1380 < len(found["test"]) <= 1400
    assert all(row["regions"] in ([], [{"concept": "sarcastic", "start": 0, "end": len(row["text"])}]) for row in found["test"])
    texts = {split: {normalised(row["text"]) for row in found[split]} for split in SPLITS}
    assert not any(texts[one] & texts[other] for one, other in combinations(SPLITS, 2))
    typed = {concept for row in isarcasm.load(types=True)["train"] for concept in row["concepts"]}
    assert typed == {"sarcastic", *isarcasm.TYPES}


# --- the synthetic set


def test_the_synthetic_set_is_balanced_repeats_and_shares_no_sentence_between_splits() -> None:
    found = sarcasm.load()
    assert {split: len(found[split]) for split in SPLITS} == {"train": 240, "cal": 80, "test": 80}
    for split in SPLITS:
        assert sum(bool(row["concepts"]) for row in found[split]) == len(found[split]) / 2
        assert "synthetic" in found[split].info.description
    said = {split: {normalised(part) for row in found[split] for part in row["text"].split(". ")} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not {part for part in said[one] & said[other] if len(part.split()) > 3}
    assert sarcasm.load()["test"][3] == found["test"][3]
    assert sarcasm.load(seed=1)["test"][3] != found["test"][3]
    for count in (19, 501, "many"):
        with pytest.raises(HarnessError, match="a whole number from 20 to 500 is allowed"):
            sarcasm.load(paragraphs=count)  # type: ignore[arg-type]


def test_praise_is_sarcastic_after_bad_news_alone() -> None:
    from harness_paragraphs.grammar import sentences

    kinds = [sentences(f"x{i}", i, 0)[1] for i in range(4)]
    assert [comment.concepts for comment in kinds] == [("sarcasm",), (), (), ("sarcasm",)]


# --- the authors' folder


def write_authors(folder: Path, texts: list[str], words: list[list[tuple[str, int]]]) -> Path:
    (folder / "paragraphs").mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as opened:
        made = csv.writer(opened)
        made.writerow(["sarcasm", "text_path", "split"])
        for i, row in enumerate(words, 1):
            made.writerow([int(any(label for _, label in row)), f"paragraphs/paragraph_{i:06d}.txt", SPLITS[(i - 1) % 3]])
    with (folder / "word_level_sarcasm.csv").open("w", newline="") as opened:
        made = csv.writer(opened)
        made.writerow(["paragraph_id", "word", "sarcasm"])
        made.writerows([i, word, label] for i, row in enumerate(words, 1) for word, label in row)
    for i, text in enumerate(texts, 1):
        (folder / "paragraphs" / f"paragraph_{i:06d}.txt").write_text(text)
    return folder


def test_the_authors_words_are_paired_by_text_and_not_by_position(tmp_path: Path) -> None:
    words = [[("Oh", 1), ("great,", 1), ("rain.", 0)], [("Nice", 1), ("day", 0)], [("Fine", 0)]]
    folder = write_authors(tmp_path, ["An extra word. Oh great, rain.", "Nice  day", "Fine"], words)
    found = read_authors(folder, "sarcasm")
    (row,) = found["train"]
    assert [row["text"][r["start"] : r["end"]] for r in row["regions"]] == ["Oh great,"]
    assert row["concepts"] == ["sarcasm"]
    assert found["test"][0]["regions"] == []
    assert found["train"].info.description == ""


def test_a_labelled_word_that_is_not_in_the_text_leaves_the_paragraph_unannotated_and_counted(tmp_path: Path) -> None:
    words = [[("Oh", 0), ("wonderful", 1)], [("a", 0)], [("a", 0)]]
    found = read_authors(write_authors(tmp_path, ["Oh great", "a", "a"], words), "sarcasm")
    assert found["train"][0]["regions"] is None
    assert found["train"].info.description == "1 paragraphs whose labelled words are not in their text are not annotated"


def test_runs_of_labelled_words_are_one_span_each() -> None:
    rows = [("a", ("x",)), ("b", ("x", "y")), ("c", ()), ("d", ("x",))]
    assert align("a b  c d", rows) == (("x", 0, 3), ("x", 7, 8), ("y", 2, 3))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "metadata.csv").unlink(), "cannot read .*metadata.csv"),
        (
            lambda f: (f / "word_level_sarcasm.csv").write_text("paragraph_id,word,sarcasm\n1,a,2\n"),
            "'2' in column 'sarcasm', line 2",
        ),
        (lambda f: (f / "word_level_sarcasm.csv").write_text("paragraph_id,word,sarcasm\n1,a\n"), "has 2 fields, its header 3"),
        (lambda f: (f / "word_level_sarcasm.csv").write_text("id,word\n1,a\n"), "has no column 'paragraph_id'"),
        (
            lambda f: (f / "metadata.csv").write_text("sarcasm,text_path,split\n1,../secret_1.txt,train\n"),
            r"no file '\.\./secret_1.txt' below",
        ),
        (
            lambda f: (f / "metadata.csv").write_text("sarcasm,text_path,split\n1,paragraphs/paragraph_000001.txt,dev\n"),
            "split 'dev' in line 2",
        ),
    ],
)
def test_a_malformed_authors_folder_gets_one_line(tmp_path: Path, break_it: Any, said: str) -> None:
    folder = write_authors(tmp_path / "set", ["a", "a", "a"], [[("a", 0)]] * 3)
    (tmp_path / "secret_1.txt").write_text("secret")
    break_it(folder)
    with pytest.raises(HarnessError, match=said):
        read_authors(folder, "sarcasm")


@pytest.mark.parametrize("name", ["goemotions", "isarcasm"])
def test_without_data_one_line_says_what_is_wanted_and_where_it_comes_from(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load = {"goemotions": goemotions.load, "isarcasm": isarcasm.load}[name]
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    with pytest.raises(
        HarnessError, match=f"data set {name} has no folder; set HARNESS_DATA to a folder with {name}/.*github.com"
    ):
        load()
    with pytest.raises(HarnessError, match=f"no folder .*/absent for data set {name}; it must hold "):
        load(folder=str(tmp_path / "absent"))
    with pytest.raises(HarnessError, match=r"cannot read .*; No such file or directory; it is "):
        load(folder=str(tmp_path))


def test_a_malformed_goemotions_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "emotions.txt").write_text("\n".join([*NINETEEN, "neutral"]))
    (tmp_path / "train.tsv").write_text("fine\t0\ta\nbad label\t99\tb\n")
    with pytest.raises(HarnessError, match=r"line 2 of .*train.tsv is not text, label numbers below 20, id"):
        goemotions.load(folder=str(tmp_path))
    with pytest.raises(HarnessError, match="unknown number of emotions '14'"):
        goemotions.load(folder=str(tmp_path), emotions=14)
    (tmp_path / "emotions.txt").write_text("joy\n")
    with pytest.raises(HarnessError, match="lacks 'admiration'"):
        goemotions.load(folder=str(tmp_path))


# --- the README


def positives_of_the_readme() -> dict[tuple[str, str], str]:
    """(task, concept) -> train/cal/test, from both tables; `-` is left out."""
    text = (Path(__file__).parents[2] / "plugins" / "harness_paragraphs" / "README.md").read_text()
    found = {}
    rows = re.findall(r"^\| (\w+)(?: \((not in `goemotions`)\))? \| ([\d,/-]+) \| ([\d,/-]+) \|$", text, re.M)
    for concept, rare, nineteen, all_of_them in rows:
        for task, counts in (
            ("goemotions-19", nineteen),
            ("goemotions", "-" if rare else nineteen),
            ("goemotions-27", all_of_them),
        ):
            found[task, concept] = counts
    found.update(
        {
            (task, concept): counts
            for task, concept, counts in re.findall(r"^\| `([\w-]+)` \| (\w+) \| ([\d,/]+) \|$", text, re.M)
        }
    )
    return {key: counts.replace(",", "") for key, counts in found.items() if counts != "-"}


@pytest.mark.parametrize(
    "task",
    [
        "sarcasm",
        *(pytest.param(name, marks=needs_isarcasm) for name in ("isarcasm", "isarcasm-types", "isarcasm-official")),
        *(pytest.param(name, marks=needs_goemotions) for name in ("goemotions", "goemotions-19", "goemotions-27")),
    ],
)
def test_the_positives_in_the_readme_are_those_of_the_data(task: str) -> None:
    shown = {concept: counts for (name, concept), counts in positives_of_the_readme().items() if name == task}
    positives = load_task(load_registry(), task).describe()["positives"]
    assert shown == {concept: "/".join(str(n[split]) for split in SPLITS) for concept, n in positives.items()}
