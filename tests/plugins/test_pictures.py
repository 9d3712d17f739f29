"""`harness show-tokens`: every modality in every format, hostile text harmless, the numbers those of the log, one line for every mistake."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
from harness_pictures.logged import Logged, Panel
from harness_pictures.marks import HEAT, NIGHT, PAPER, ink, line, step, visible
from harness_pictures.page import page
from harness_pictures.pieces import of_places, of_text
from harness_pictures.seen import outline
from harness_pictures.terminal import shaded
from hypothesis import given
from hypothesis import strategies as st

from harness.api import HarnessError, Sample, View, read_tokens
from harness.cli import main

HOSTILE = "<script>alert(1)</script>\" onload='x' $x^2$ {{ 7*7 }}\u202egnp\x1b[31m"
FORMATS = ("png", "svg", "pdf", "html")


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def harness(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process."""

    def call(*arguments: object) -> Said:
        capfd.readouterr()
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        said = capfd.readouterr()
        return Said(code or 0, said.out, said.err)

    return call


def run(root: Path, *arguments: str) -> Path:
    """A result with logged tokens, made by a run."""
    main(
        [
            "run",
            *arguments,
            "--log-tokens",
            "--bootstrap",
            "2",
            "--cache-dir",
            str(root / "cache"),
            "--output",
            str(root / "out"),
        ]
    )
    return next((root / "out").rglob("STATUS")).parent


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("toy"), "--task", "toy", "--limit", "12", "--method", "superactivator")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose concept is the word `joy`; test has a hostile one, one that is not annotated and one right-to-left."""
    root = tmp_path_factory.mktemp("texts")
    rows = []
    for split, n in (("train", 12), ("cal", 8), ("test", 6)):
        for i in range(n):
            text = f"{split} number {i} of " + ("joy and rest" if i % 2 else "work and rest")
            rows.append({"id": f"{split}-{i}", "text": text, "split": split, **marked(text)})
    for name, text in ((HOSTILE, f"joy {HOSTILE}"), ("rtl", "שלום joy 🙂 עולם"), ("long", "joy " + "b" * 100_000)):
        rows.append({"id": name, "text": text, "split": "test", **marked(text)})
    rows.append({"id": "open", "text": "joy not annotated", "split": "test", "concepts": ["joy"], "regions": None})
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "task.yaml").write_text(
        f"task: texts\nmodality: text\ndataset: {{name: table, path: {root / 'rows.jsonl'}}}\nconcepts: [joy]\nbackbone: words\n"
    )
    return run(root, "-p", "small_backbones", "--task", str(root / "task.yaml"), "--method", "superactivator")


def marked(text: str) -> dict[str, Any]:
    at = text.find("joy")
    return {"concepts": ["joy"][at < 0 :], "regions": [{"concept": "joy", "start": at, "end": at + 3}] if at >= 0 else []}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images with a red square, 48 wide and 32 high; the model sees them squashed."""
    root, g = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for split, n in (("train", 8), ("cal", 6), ("test", 4)):
        for i in range(n):
            pixels, mask = np.full((32, 48, 3), 120, np.uint8), np.zeros((32, 48), np.uint8)
            top, left = g.integers(0, 20, 2)
            mask[top : top + 12, left : left + 12] = 255 * (i % 2 == 0)
            pixels[mask > 0] = (220, 30, 30)
            pixels[0, 0] = g.integers(0, 256, 3)
            PIL.Image.fromarray(pixels).save(root / f"{split}{i}.png")
            PIL.Image.fromarray(mask).save(root / f"{split}{i}-mask.png")
            own = {"concepts": ["red"], "masks": [{"concept": "red", "mask": f"{split}{i}-mask.png"}]}
            none = {"concepts": [], "masks": []}
            rows.append({"file_name": f"{split}{i}.png", "id": f"{split}{i}", "split": split, **(none if i % 2 else own)})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "task.yaml").write_text(
        f"task: images\nmodality: image\ndataset: {{name: table, path: {root}}}\nconcepts: [red]\nbackbone: pixels\n"
    )
    return run(root, "-p", "small_backbones", "--task", str(root / "task.yaml"), "--method", "superactivator")


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text by element."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.elements[-1][0], data))

    def tokens(self) -> list[dict[str, str | None]]:
        """The attributes of everything that stands for a token."""
        return [attributes for _, attributes in self.elements if "t" in (attributes.get("class") or "").split()]


def wrote(harness: Callable[..., Said], output: Path, *arguments: object) -> bytes:
    """The bytes of a picture that was asked for."""
    said = harness("show-tokens", "-p", "small_backbones", *arguments, "--output", output)
    assert said.code == 0, said.err
    assert said.out == f"wrote {output}\n"
    return output.read_bytes()


def panel(text: str | None = "so happy", truth: list[int] | None = None, **changes: Any) -> Panel:
    """Two tokens, the second a super-activator."""
    made = Panel(
        Sample("one", text=text),
        "joy",
        "3",
        "true positive",
        2.0,
        0.0,
        "median test token",
        np.array([0.5, 2.5]),
        np.array([0, 1] if truth is None else truth, np.int8),
        np.array([[0, 2], [3, 8]]),
        None,
    )
    return dataclasses.replace(made, **changes)


# ------------------------------------------------------------------------------------------------------- every format


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("modality", ["toy", "texts", "images"])
def test_every_modality_is_drawn_in_every_format(
    modality: str, kind: str, harness: Callable[..., Said], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    result = request.getfixturevalue(modality)
    one = wrote(harness, tmp_path / f"one.{kind}", result)
    if kind == "png":
        assert min(PIL.Image.open(io.BytesIO(one)).size) > 100
    elif kind == "pdf":
        assert one.startswith(b"%PDF")
        assert b"CreationDate" not in one
    elif kind == "svg":
        assert ElementTree.fromstring(one).tag.endswith("svg")  # noqa: S314 - our own file
        assert b"<dc:date>" not in one
    else:
        assert one.startswith(b"<!doctype html>")


def test_the_same_panels_are_the_same_bytes_in_another_process(harness: Callable[..., Said], toy: Path, tmp_path: Path) -> None:
    names = [f"{{}}.{kind}" for kind in ("svg", "html")]
    words = [["show-tokens", str(toy), "--concept", "star", "--output", str(tmp_path / name.format("there"))] for name in names]
    code = f"from harness.cli import main; [main(words) for words in {words!r}]"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    for name in names:
        here = wrote(harness, tmp_path / name.format("here"), toy, "--concept", "star")
        assert here == (tmp_path / name.format("there")).read_bytes()


def test_a_suffix_in_capitals_is_the_same_format(harness: Callable[..., Said], toy: Path, tmp_path: Path) -> None:
    assert wrote(harness, tmp_path / "A.HTML", toy) == wrote(harness, tmp_path / "a.html", toy)


def test_the_log_is_what_a_page_says_token_by_token(harness: Callable[..., Said], images: Path, tmp_path: Path) -> None:
    shown = Page(wrote(harness, tmp_path / "a.html", images, "--sample", "test2").decode())
    tensors, about = read_tokens(images)
    i, cutoff = about["ids"].index("test2"), about["super_activator_cutoffs"][0]
    own = slice(int(tensors["offsets"][i]), int(tensors["offsets"][i + 1]))
    every = tensors["activations"][:, 0].double().numpy()
    titles = [text for tag, text in shown.text if tag == "title"][1:]
    assert len(titles) == 64
    for token, title in enumerate(titles):
        value, truth = every[own][token], int(tensors["truth"][own][token, 0])
        share = (value - np.median(every)) / (cutoff - np.median(every))
        assert title.startswith(
            f"row {token // 8 + 1}, column {token % 8 + 1}: activation {value:.4g}, {share:.2f} of the cutoff"
        )
        assert ("super-activator" in title) == (value >= cutoff)
        assert title.endswith(["not in the concept", "in the concept", "truth unknown"][truth ^ 1 if truth < 0 else truth])
    assert sum("s" in (attributes["class"] or "").split() for attributes in shown.tokens()) == (every[own] >= cutoff).sum()
    rows = [attributes for tag, attributes in shown.elements if tag == "tr"]
    assert len(rows) == 65  # the table of all numbers


def test_an_image_is_embedded_as_the_model_saw_it_and_shown_in_its_own_shape(
    harness: Callable[..., Said], images: Path, tmp_path: Path
) -> None:
    shown = Page(wrote(harness, tmp_path / "a.html", images, "--sample", "test0").decode())
    (image,) = [attributes for tag, attributes in shown.elements if tag == "image"]
    assert (image["href"] or "").startswith("data:image/png;base64,")
    (picture,) = [attributes for _, attributes in shown.elements if attributes.get("class") == "picture"]
    assert picture["viewbox"] == "0 0 1000 666.67"
    boxes = [[float(token[key] or "") for key in ("x", "y", "width", "height")] for token in shown.tokens()]
    assert boxes[0] == pytest.approx([0, 0, 125, 83.33], abs=0.02)
    assert boxes[-1] == pytest.approx([875, 583.33, 125, 83.33], abs=0.02)


# ----------------------------------------------------------------------------------------------------- hostile content


def test_a_page_holds_nothing_from_the_data_but_text(harness: Callable[..., Said], texts: Path, tmp_path: Path) -> None:
    source = wrote(harness, tmp_path / "a.html", texts, "--sample", HOSTILE, "--sample", "long").decode()
    shown = Page(source)
    assert [tag for tag, _ in shown.elements].count("script") == 1
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    links = [attributes[name] or "" for _, attributes in shown.elements for name in ("href", "src") if name in attributes]
    assert all(link.startswith("data:") for link in links)
    assert "http:" not in source
    assert "https:" not in source
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x09\x0b-\x1f\x7f-\x9f]", source)
    assert "[U+202E]" in source
    assert "{{ 7*7 }}" in "".join(text for _, text in shown.text)
    assert len(source) < 40_000  # 100,000 letters of one token are not all shown


def test_a_page_allows_its_own_script_and_style_alone_by_hash(harness: Callable[..., Said], toy: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    source = wrote(harness, tmp_path / "a.html", toy).decode()
    (policy,) = [a["content"] or "" for _, a in Page(source).elements if a.get("http-equiv") == "Content-Security-Policy"]
    for kind in ("script", "style"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", source, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "style=" not in source


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_hostile_texts_are_drawn_and_what_no_font_has_is_counted(
    kind: str, harness: Callable[..., Said], texts: Path, tmp_path: Path
) -> None:
    samples = [word for name in (HOSTILE, "rtl", "long") for word in ("--sample", name)]
    said = harness("show-tokens", "-p", "small_backbones", texts, *samples, "-o", tmp_path / f"a.{kind}")
    assert said.code == 0, said.err
    assert said.err.endswith(" characters are in no font of this machine and drawn as boxes; .html shows them\n")
    assert said.err.count("\n") == 1  # and no warning of matplotlib's own


def test_the_terminal_gets_no_control_characters_from_a_text(harness: Callable[..., Said], texts: Path) -> None:
    said = harness("show-tokens", "-p", "small_backbones", texts, "--sample", HOSTILE)
    assert said.code == 0
    assert "\x1b" not in said.out
    assert "\u202e" not in said.out
    assert "‹[joy]› <script>alert(1)</script>" in said.out.replace("‹joy›", "‹[joy]›")


def test_names_with_dollars_and_newlines_are_no_mathematics(tmp_path: Path) -> None:
    from harness_pictures.figure import picture

    odd = panel("a $\\frac$ b", sample=Sample("$\\bad{\n$", text="a $\\frac$ b"), concept="$x_1^")
    for kind in ("png", "svg", "pdf"):
        assert picture([odd], kind).data


# ------------------------------------------------------------------------------------------------------------ the marks


def test_the_truth_of_a_text_is_marked_and_unknown_truth_is_said(harness: Callable[..., Said], texts: Path) -> None:
    known = harness("show-tokens", "-p", "small_backbones", texts, "--sample", "rtl").out
    assert re.search(r"‹\[?joy\]?›", known)
    assert "in the concept 1;" in known
    unknown = harness("show-tokens", "-p", "small_backbones", texts, "--sample", "open").out
    assert "truth unknown" in unknown
    assert "‹joy" not in unknown
    assert "in the concept 1;" not in unknown


def test_a_token_is_outlined_from_the_cutoff_on_and_not_by_its_rounded_share() -> None:
    shown = panel(activations=np.array([np.nextafter(2.0, 0), 2.0]))
    assert shown.super_activators.tolist() == [False, True]
    assert shown.shares.tolist() == pytest.approx([1, 1])


def test_the_zero_of_the_scale_is_below_the_cutoff_whatever_the_tokens_are(toy: Path) -> None:
    from harness_pictures.logged import _zero

    assert _zero(np.array([0.0, 1.0, 5.0]), 2.0) == (1.0, "median test token")
    assert _zero(np.array([0.0, 3.0, 5.0]), 2.0) == (0.0, "lowest test token")
    assert _zero(np.array([3.0, 4.0]), 2.0) == (1.0, "cutoff minus one")
    assert _zero(np.array([]), 2.0) == (1.0, "cutoff minus one")


def test_colours_are_steps_of_a_tenth_from_zero_to_one_and_a_half() -> None:
    shares = [float("nan"), -3.0, 0.0, 0.0999, 0.1, 0.3, 0.7, 1.0, 1.4, 1.5, 99.0, float("inf"), -float("inf")]
    assert [step(share) for share in shares] == [0, 0, 0, 0, 1, 3, 7, 10, 14, 15, 15, 15, 0]
    assert len(HEAT) == len(PAPER) == len(NIGHT) == 16


def lightness(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("ramp", "way"), [(HEAT, 1), (PAPER, -1), (NIGHT, 1)])
def test_a_ramp_can_be_read_without_colour_and_words_on_it_too(ramp: tuple[str, ...], way: int) -> None:
    """Lightness runs one way, and the ink has a contrast of at least 4.5 (WCAG AA) on every step."""
    values = [lightness(colour) for colour in ramp]
    assert values == sorted(values, reverse=way < 0)
    for colour, value in zip(ramp, values, strict=True):
        low, high = sorted((value, lightness(ink(colour))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_outline_of_patches_is_that_of_their_union() -> None:
    corner = np.array([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2]], float)
    edges = outline(corner)
    assert len(edges) == 8
    assert ((1.0, 0.0), (1.0, 1.0)) not in edges
    assert ((1.0, 1.0), (2.0, 1.0)) in edges
    assert outline(np.zeros((0, 4))) == []


def test_the_heat_of_a_pixel_is_that_of_its_strongest_token_and_clear_without_one() -> None:
    from harness_pictures.image_figure import heat
    from harness_pictures.seen import Seen

    image = PIL.Image.new("L", (8, 4), 100)
    shown = panel(
        None,
        sample=Sample("one", image=image),
        regions=np.array([[0, 0, 4, 4], [0, 2, 4, 6]]),
        view=View(4, 8, 0, 0, 4, 8),
    )
    veil = heat(shown, Seen.of(shown))
    assert veil.shape == (4, 8, 4)
    assert [tuple(pixel[:3]) == tuple(bytes.fromhex(HEAT[12][1:])) for pixel in veil[0]] == [
        i in (2, 3, 4, 5) for i in range(8)
    ]
    assert (veil[:, 6:, 3] == 0).all()


# --------------------------------------------------------------------------------------------------------------- pieces


def test_every_character_is_shown_once_and_every_token_has_its_piece() -> None:
    pieces = of_text("So 🙂!  tail", [(0, 2), (2, 4), (3, 4), (3, 4), (4, 5)])
    assert [(piece.text, piece.tokens) for piece in pieces] == [
        ("So", (0,)),
        (" ", ()),
        ("🙂", (1, 2, 3)),
        ("!", (4,)),
        ("  tail", ()),
    ]


def test_tokens_of_space_or_of_nothing_are_seen() -> None:
    pieces = of_text("\n a", [(0, 0), (0, 1), (1, 2), (2, 3)])
    assert [(piece.text, piece.tokens) for piece in pieces] == [("∅", (0,)), ("↵\n", (1,)), ("␣", (2,)), ("a", (3,))]


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8))
def test_any_spans_on_any_text_show_each_token_once(text: str, spans: list[tuple[int, int]]) -> None:
    pieces = of_text(text, spans)
    assert sorted(token for piece in pieces for token in piece.tokens) == list(range(len(spans)))
    assert all(piece.text for piece in pieces)


def test_what_is_too_long_to_show_says_how_much_is_left_out() -> None:
    (piece, gap) = of_text("a" * 1000 + " " + "b" * 100_000, [(0, 1000)])
    assert "[700 characters]" in piece.text
    assert "[99,701 characters]" in gap.text


def test_stored_embeddings_show_the_places_of_their_tokens() -> None:
    assert "".join(piece.text for piece in of_places(3)) == "0 1 2"
    assert of_places(0) == []


def test_control_and_reordering_characters_become_signs() -> None:
    assert visible("a\x1b\x07\x7f\x9b\u202eb\r\n\u2028\ud800") == "a␛␇␡[U+009B][U+202E]b\n\n\ufffd"
    assert visible("\u200d\u200f\t") == "\u200d\u200f\t"
    assert line("a\n b  c") == "a b c"
    assert len(line("x" * 1000)) == 120


# ------------------------------------------------------------------------------------------------------------- layout


def test_no_line_is_wider_than_the_page_and_no_token_is_lost() -> None:
    from harness_pictures.sheet import Font
    from harness_pictures.text_figure import _atoms, lines

    text = " ".join(["short", "a" * 90, "middling"] * 8)
    spans = [(found.start(), found.end()) for found in re.finditer(r"\S+", text)]
    pieces = of_text(text, spans)
    placed = list(lines(_atoms(Font(text), pieces, 200.0), 200.0))
    assert all(sum(atom.width for atom in atoms) <= 200.5 for atoms in placed)
    assert "".join(atom.text for atoms in placed for atom in atoms if atom.piece is not None) == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two three", "one two three"),
        ("say אבג דהו now", "say דהו אבג now"),
        ("אבג one two דהו", "דהו one two אבג"),
        ("אבג 20 24 דהו", "דהו 24 20 אבג"),
    ],
)
def test_words_stand_in_the_order_in_which_they_are_read(text: str, shown: str) -> None:
    """As the Unicode bidirectional algorithm places words; the letters of a word are the font's affair."""
    from harness_pictures.text_figure import Atom, direction, ordered

    atoms = [Atom(word, 1.0, None) for word in re.findall(r"\s|\S+", text)]
    assert "".join(atom.text for atom in ordered(atoms, direction(text) == "R")) == shown


def test_the_parts_of_a_number_are_not_turned_round() -> None:
    from harness_pictures.text_figure import Atom, ordered

    atoms = [Atom(part, 1.0, i) for i, part in enumerate(["אב", "202", "4", "גד"])]
    assert [atom.text for atom in ordered(atoms, True)] == ["גד", "202", "4", "אב"]


def test_a_sample_without_tokens_is_an_empty_picture() -> None:
    from harness_pictures.figure import picture

    none = panel("", [], activations=np.zeros(0), regions=np.zeros((0, 2), int))
    assert picture([none], "svg").data
    assert "no tokens" in page("t", [none])
    assert shaded(none, True).plain == ""


def test_a_figure_too_tall_for_a_png_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness_pictures import figure

    monkeypatch.setattr(figure, "TALLEST", 1000)
    with pytest.raises(HarnessError) as error:
        figure.picture([panel()], "png")
    assert str(error.value) == (
        "1 pictures of 2 tokens are too tall for one PNG; name fewer with --sample and --concept, or give --output tokens.html"
    )
    assert figure.picture([panel()], "svg").data


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sample", "test-00x"], "unknown sample 'test-00x' in the test split of result"),
        (["--sample", "test-00x"], "; did you mean test-0"),
        (["--sample", "test-00x"], "there are 12, such as test-"),
        (["--concept", "cirle"], "unknown concept 'cirle' in result"),
        (["--concept", "cirle"], "did you mean circle?; there are: circle, square, star"),
        (["--output", "a.jpg"], "unknown picture format '.jpg' in --output a.jpg; did you mean"),
        (["--output", "a.jpg"], "there are: .html, .pdf, .png, .svg; the suffix decides the format"),
        (["--output", "tokens"], "unknown picture format '' in --output tokens"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, harness: Callable[..., Said], toy: Path) -> None:
    done = harness("show-tokens", toy, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_an_image_without_a_file_and_a_result_without_tokens_are_one_line(
    harness: Callable[..., Said], images: Path, tmp_path: Path
) -> None:
    done = harness("show-tokens", "-p", "small_backbones", images)
    assert (done.code, done.err) == (
        2,
        "error: an image needs a file to be drawn to; give --output tokens.png, or .svg, .pdf, .html\n",
    )
    for name in ("STATUS", "result.json"):
        (tmp_path / name).write_bytes((images / name).read_bytes())
    done = harness("show-tokens", tmp_path, "-o", "a.html")
    assert (done.code, "no logged tokens in" in done.err, "run again with --log-tokens" in done.err) == (2, True, True)
    done = harness("show-tokens", tmp_path / "nothing")
    assert (done.code, "no complete result in" in done.err) == (2, True)


def test_without_matplotlib_a_figure_is_refused_and_a_page_is_made(
    harness: Callable[..., Said], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = harness("show-tokens", toy, "-o", tmp_path / "a.png")
    assert done.code == 2
    assert "needs matplotlib, which is not installed; run: pip install 'concept-harness[pictures]'" in done.err
    assert wrote(harness, tmp_path / "a.html", toy)


def test_a_concept_without_a_cutoff_names_those_that_have_one(registry: Any, toy: Path) -> None:
    logged = Logged.read(registry, toy)
    about = {**logged.about, "super_activator_cutoffs": [None, *logged.about["super_activator_cutoffs"][1:]]}
    without = dataclasses.replace(logged, about=about)
    with pytest.raises(
        HarnessError, match=r"concept 'circle' has no cutoff in result .*; choose another --concept, such as square"
    ):
        without.chosen((), ("circle",))
    assert all(shown.concept != "circle" for name in logged.place for shown in without.chosen((name,), ()))


def test_the_default_is_each_concepts_strongest_true_positive(registry: Any, toy: Path) -> None:
    logged = Logged.read(registry, toy)
    tensors, about = read_tokens(toy)
    for shown in logged.chosen((), ()):
        c = about["concepts"].index(shown.concept)
        assert shown.outcome == "true positive"
        best = max(
            float(tensors["activations"][start:end, c].max())
            for i, (start, end) in enumerate(tensors["offsets"].unfold(0, 2, 1).tolist())
            if tensors["detected"][i, c] and logged.task.splits["test"].labels[i, c] and end > start
        )
        assert float(shown.activations.max()) == pytest.approx(best)
