"""The pages of a leaderboard: evidence behind every cell, harmless whatever the names are, small, the same bytes, walked in a browser."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, Browser
from harness_site.tokens import pieces
from safetensors.numpy import save_file

from harness.cli import main

HOSTILE = '<script>alert("1")</script>\'"&\u202e' + "x" * 100_000
LEVELS = (0.1, 0.5, 0.8)


def made(
    root: Path,
    name: str,
    quality: float = 2.0,
    /,
    *,
    concepts: int = 3,
    samples: int = 40,
    layers: int = 2,
    tokens: int = 0,
    **task: Any,
) -> Path:
    """A result with all its files: scores are quality x label + noise."""
    folder = root / re.sub(r"\W", "", name)[:40]
    folder.mkdir(parents=True)
    names, sites = [f"c{c}" for c in range(concepts)], [str(k) for k in range(layers)]
    noise = np.random.default_rng([ord(letter) for letter in name[:20]])
    every, labels = {}, {}
    for split, seed in (("cal", 1), ("test", 2)):
        labels[split] = np.random.default_rng(seed).random((samples, concepts)) < 0.4
        every[split] = quality * labels[split] + noise.normal(size=(layers, samples, concepts))
    ids = {split: [f"{split}-{i:04}" for i in range(samples)] for split in labels}
    cutoffs, f1 = _calibrate(every["cal"], labels["cal"])
    layer = f1.max(0).argmax(0)
    level = f1[:, layer, np.arange(concepts)].argmax(0)
    cutoff = cutoffs[level, layer, np.arange(concepts)]
    _scores(folder, every, labels, ids, names, sites, layer, cutoff)
    _calibration(folder, cutoffs, f1, names, sites)
    own = every["test"][layer, :, np.arange(concepts)].T
    found = own >= cutoff
    truth = labels["test"]
    per = 2 * (found & truth).sum(0) / np.maximum(2 * (found & truth).sum(0) + (found != truth).sum(0), 1)
    ends = {"sample_ci": None, "reason": None}
    rows = [
        {
            "metric": "f1",
            "layer": "chosen",
            "concept": c,
            "value": float(v),
            "ci_low": max(float(v) - 0.1, 0.0),
            "ci_high": min(float(v) + 0.1, 1.0),
            "n": 3,
            **ends,
        }
        for c, v in zip([*names, "macro", "weighted"], [*per, per.mean(), per.mean()], strict=True)
    ]
    rows += [{**rows[-1], "layer": site, "value": 0.25} for site in sites]
    about = {
        "name": "world",
        "version": 1,
        "fingerprint": "f" * 64,
        "modality": "tokens",
        "limit": None,
        "samples": {"test": samples},
    }
    counts = {c: {"test": int(truth[:, i].sum())} for i, c in enumerate(names)}
    read = {
        "schema_version": 2,
        "run_id": f"run-{name}",
        "task": about | {"positives": counts} | task,
        "backbone": {"name": "small", "revision": "1", "sites": sites, "normalization": "train"},
        "method": {"name": name, "summary": name, "scorer": None, "tags": ["core", f"family-{len(name) % 2}"]},
        "config": {"bootstrap": 10, "seed": 0, "task": "world"},
        "metrics": {"f1": {"kind": "detection", "range": [0, 1], "higher_is_better": True, "version": 1}},
        "choices": [{"layer": sites[k]} for k in layer.tolist()],
        "scores": rows,
    }
    if tokens:
        _tokens(folder, noise, ids["test"], names, tokens, found, truth)
    (folder / "result.json").write_text(json.dumps(read))
    (folder / "STATUS").write_text("complete")
    return folder


def _calibrate(scores: Any, labels: Any) -> tuple[Any, Any]:
    cutoffs = np.multiply.outer([2.0, 1.0, 0.0], np.ones((len(scores), labels.shape[1])))
    found = scores[None] >= cutoffs[:, :, None]
    tp, wrong = (found & labels).sum(2), (found != labels).sum(2)
    return cutoffs, 2 * tp / np.maximum(2 * tp + wrong, 1)


def _coded(names: Any, places: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(places).ravel(), pa.int32()), pa.array(names, pa.string()))


def _scores(folder: Path, every: Any, labels: Any, ids: Any, names: Any, sites: Any, layer: Any, cutoff: Any) -> None:
    per, pooled = [], []
    for split, scores in every.items():
        concepts = scores.shape[2]
        k, i, c = np.indices(scores.shape).reshape(3, -1)
        same = pa.array([split] * scores.size).dictionary_encode()
        pooled.append(
            pa.table(
                {
                    "split": same,
                    "layer": _coded(sites, k),
                    "id": _coded(ids[split], i),
                    "concept": _coded(names, c),
                    "score": scores.ravel(),
                }
            )
        )
        own = scores[layer, :, np.arange(concepts)].T
        i, c = np.indices(own.shape).reshape(2, -1)
        same = pa.array([split] * own.size).dictionary_encode()
        per.append(
            pa.table(
                {
                    "split": same,
                    "id": _coded(ids[split], i),
                    "concept": _coded(names, c),
                    "score": own.ravel(),
                    "detected": (own >= cutoff).ravel(),
                    "label": labels[split].ravel(),
                }
            )
        )
    for name, tables in (("per_sample", per), ("scores", pooled)):
        pq.write_table(pa.concat_tables(tables).unify_dictionaries(), folder / f"{name}.parquet")


def _calibration(folder: Path, cutoffs: Any, f1: Any, names: Any, sites: Any) -> None:
    p, k, c = np.indices(cutoffs.shape).reshape(3, -1)
    nothing = np.zeros(cutoffs.size, np.int64)
    columns = {"level": np.array(LEVELS)[p], "layer": _coded(sites, k), "concept": _coded(names, c), "cutoff": cutoffs.ravel()}
    pq.write_table(
        pa.table({**columns, "tp": nothing, "fp": nothing, "fn": nothing, "f1": f1.ravel()}), folder / "calibration.parquet"
    )


def _tokens(folder: Path, noise: Any, ids: Any, names: Any, tokens: int, found: Any, truth: Any) -> None:
    side, n = 8, len(ids) * tokens
    place = np.arange(tokens)
    boxes = np.stack([place // 8 * side, place % 8 * side, place // 8 * side + side, place % 8 * side + side], 1)
    tensors = {
        "activations": noise.normal(size=(n, len(names))).astype(np.float32),
        "truth": np.repeat(truth, tokens, 0).astype(np.int8),
        "detected": found.astype(np.uint8),
        "offsets": np.arange(len(ids) + 1) * tokens,
        "regions": np.tile(boxes, (len(ids), 1)),
        "views": np.tile([64, 64, 0, 0, 64, 64], (len(ids), 1)),
    }
    about = {"ids": ids, "concepts": names, "super_activator_cutoffs": [1.0] * len(names)}
    save_file(tensors, folder / "tokens.safetensors", {"about": json.dumps(about)})


def build(root: Path, output: Path, *options: str) -> dict[str, str]:
    """The pages, by their path below the output."""
    main(["leaderboard", "build", str(root), "--output", str(output), *options])
    return {str(path.relative_to(output)): path.read_text(encoding="utf-8") for path in sorted(output.rglob("*.html"))}


def data(page: str) -> Any:
    """What a page's script reads."""
    return json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("results")
    for name, quality in (("good", 4.0), ("fair", 2.0), ("poor", 0.1)):
        made(root, name, quality, tokens=4 if name == "good" else 0)
    return build(root, tmp_path_factory.mktemp("pages"))


def of(pages: dict[str, str], start: str) -> str:
    return next(page for name, page in pages.items() if name.rpartition("/")[2].startswith(start))


def test_every_cell_of_the_index_leads_to_a_page_that_is_there(world):
    links = re.findall(r'<td[^>]*><a href="([^"#]+)', world["index.html"]) + re.findall(
        r'<th scope="row"[^>]*><a href="([^"#]+)', world["index.html"]
    )
    assert links
    assert set(links) <= set(world)
    assert len(world) == 1 + 3 + 1


def test_a_rank_is_an_interval_and_its_interval_is_drawn(world):
    assert '<path class="range"' in world["index.html"]
    assert 'class="best">1–2<' in world["index.html"] or 'class="best">1<' in world["index.html"]


def test_the_page_of_a_result_counts_as_its_files_do(world):
    for concept in data(of(world, "fair"))["concepts"]:
        tp, fp, fn, tn = concept["counts"]
        assert tp + fp + fn + tn == 40
        assert tp + fn == concept["n"] == sum(concept["scores"]["positive"])
        assert concept["f1"][0] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-3)
        assert [level for level, _ in concept["levels"]] == list(LEVELS)
        assert [layer for layer, *_ in concept["layers"]] == ["0", "1"]
        scores = [row[1] for row in concept["top"].get("tp", [])]
        assert scores == sorted(scores, reverse=True)
        assert all(score >= concept["cutoff"] for score in scores)


def test_tokens_are_lit_where_they_were_logged_and_elsewhere_the_page_says_why_not(world):
    rows = data(of(world, "good"))["concepts"][0]["top"]["tp"]
    assert all(len(base64.b64decode(row[2])) == 4 for row in rows)
    assert "The tokens of this result were not logged (--log-tokens)." in of(world, "fair")
    assert "stored embeddings" in of(world, "good")


def test_a_pair_has_the_same_difference_from_both_sides(world):
    page = data(of(world, "compare"))
    (board,) = page["boards"][:1]
    assert len(board["pairs"]) == 3
    assert board["corrected"]
    good, poor = of(world, "good"), of(world, "poor")
    there, back = (
        re.search(rf">{name}</bdi></a></th><td data-sort=\"([^\"]+)", text) for name, text in (("poor", good), ("good", poor))
    )
    assert there and back
    assert float(there[1]) == -float(back[1]) > 0


def test_decisions_of_every_method_are_in_the_page_side_by_side(world):
    page = data(of(world, "compare"))
    bits = {
        m["name"]: np.unpackbits(np.frombuffer(base64.b64decode(m["bits"]), np.uint8))[:120].reshape(3, 40)
        for m in page["methods"]
    }
    labels = np.unpackbits(np.frombuffer(base64.b64decode(page["labels"]), np.uint8))[:120].reshape(3, 40)
    counts = [c["counts"] for c in data(of(world, "poor"))["concepts"]]
    assert [int((bits["poor"][c] & labels[c]).sum()) for c in range(3)] == [tp for tp, *_ in counts]
    assert page["methods"][0]["name"] == "good"


def test_the_same_results_give_the_same_bytes_and_pages_of_an_earlier_build_go(tmp_path):
    made(tmp_path / "results", "a")
    made(tmp_path / "results", "b", 1.0, tokens=4)
    first = build(tmp_path / "results", tmp_path / "one")
    assert build(tmp_path / "results", tmp_path / "two") == first
    (tmp_path / "one" / "pages" / "world" / "mine.html").write_text("<p>kept</p>")
    for path in (tmp_path / "results" / "b").iterdir():
        path.unlink()
    names = set(build(tmp_path / "results", tmp_path / "one"))
    assert not any(name.startswith("pages/world/b-") for name in names)
    assert "pages/world/mine.html" in names


def test_hostile_names_and_texts_stay_text_and_short(tmp_path):
    made(tmp_path, HOSTILE, name=HOSTILE)
    made(tmp_path, "fine", 1.0, name=HOSTILE)
    pages = build(tmp_path, tmp_path / "pages")
    for name, page in pages.items():
        assert re.fullmatch(r"[\w./-]+", name)
        assert "<script>alert" not in page
        assert "\u202e" not in page
        assert "x" * 1000 not in page
        assert page.count("<script>") == 1 and page.count("<script ") == 1
        assert "default-src &#39;none&#39;" in page
        data(page)


SHA = "a" * 64


def state(folder: Path, **plugins: str) -> None:
    """Lets a result say whose code its parts are: place -> plugin, of the source SHA; its recipe is a detector."""
    read = json.loads((folder / "result.json").read_text())
    read["method"]["detector"] = "max"
    parts = {"detector": "max", "backbone": "small", "dataset": "world"}
    stated = {place: {"part": parts[place], "plugin": name, "version": name, "sha256": SHA} for place, name in plugins.items()}
    (folder / "result.json").write_text(json.dumps(read | {"provenance": {"plugins": stated}}))


def certify(output: Path, *passed: str) -> None:
    one = {"sha256": SHA, "certified": True, "version": None, "parts": ["detector max", "backbone small", "dataset world"]}
    output.mkdir(exist_ok=True)
    (output / "certificates.json").write_text(json.dumps(dict.fromkeys(passed, one)))


def test_every_row_says_whether_its_code_is_certified_and_its_page_says_of_which_source(tmp_path):
    for name, plugins in (
        ("whole", {"detector": "p", "backbone": "p", "dataset": "p"}),
        ("recipe", {"detector": "p", "backbone": "p", "dataset": "q"}),
        ("foreign", {"detector": "q", "backbone": "p", "dataset": "p"}),
        ("silent", {}),
    ):
        state(made(tmp_path / "results", name), **plugins)
    certify(tmp_path / "pages", "p")
    pages = build(tmp_path / "results", tmp_path / "pages")
    shown = re.findall(
        r'<td data-sort="(\d)"><a href="([^"]+)#code" title="([^"]+)"><span aria-hidden="true">(.+?)</span>',
        pages["index.html"],
    )
    marks = {re.sub(r".*/(\w+)-\w+\.html", r"\1", page): (order, mark, said) for order, page, said, mark in shown}
    assert marks == {
        "whole": ("2", "✓", "all its code is certified"),
        "recipe": ("1", "(✓)", "not certified: q: no certificate"),
        "foreign": ("0", "–", "not certified: q: no certificate"),
        "silent": ("0", "–", "not certified: the result does not state its source"),
    }
    assert "Certified: ✓" in pages["index.html"]
    assert of(pages, "whole").count("✓ certified</td>") == 3
    assert SHA in of(pages, "foreign") and "– no certificate</td>" in of(pages, "foreign")


def test_without_certificates_the_pages_say_nothing_of_them(world):
    assert not any("ertified" in page or 'id="code"' in page for page in world.values())


def test_hostile_names_of_plugins_stay_text(tmp_path):
    state(made(tmp_path / "results", "one"), detector=HOSTILE, backbone="p", dataset=HOSTILE)
    certify(tmp_path / "pages", HOSTILE, "p")
    state(made(tmp_path / "results", "two"), detector=HOSTILE + "2", backbone="p", dataset="p")
    pages = build(tmp_path / "results", tmp_path / "pages")
    assert "✓ certified" in of(pages, "one") and "– no certificate" in of(pages, "two")
    for page in pages.values():
        assert "<script>alert" not in page and "\u202e" not in page and "x" * 1000 not in page
        assert page.count("<script>") == 1 and page.count("<script ") == 1
    titles = re.findall(r"<a [^>]*#code[^>]*>", pages["index.html"])
    assert titles and all(re.fullmatch(r'<a href="[^"]+" title="[^"]*">', title) for title in titles)


def test_no_page_names_an_address_of_the_network_or_allows_any(world):
    for page in world.values():
        assert set(re.findall(r"https?://[^\s\"'<>]+", page)) <= {"http://www.w3.org/2000/svg"}
        assert "@import" not in page and " src=" not in page.split("<script>")[0]


def test_a_result_without_files_says_so_and_keeps_its_averages(tmp_path):
    for name in ("per_sample", "scores", "calibration"):
        (made(tmp_path, f"lost{name}") / f"{name}.parquet").unlink()
    pages = build(tmp_path, tmp_path / "pages")
    page = of(pages, "lostscores")
    assert "The files of this result do not give more: cannot read scores.parquet" in page
    assert str(tmp_path) not in "".join(pages.values())
    assert "Averages over concepts" in page


def test_limited_runs_say_why_they_have_no_rank(tmp_path):
    made(tmp_path, "a", limit=20)
    made(tmp_path, "b", 1.0, limit=20)
    assert "Not ranked: a limited run." in build(tmp_path, tmp_path / "pages")["index.html"]


def test_the_pages_of_a_large_task_stay_within_ten_megabytes(tmp_path):
    for m in range(34):
        made(tmp_path / "results", f"method-{m}", m / 10, concepts=80, samples=30, layers=1, tokens=64 if m % 3 == 1 else 0)
    pages = build(tmp_path / "results", tmp_path / "pages")
    sizes = {name: len(page.encode()) for name, page in pages.items() if name.startswith("pages/world/")}
    assert len(sizes) == 35
    assert sum(sizes.values()) < 10_000_000
    assert len(pages["index.html"].encode()) < 1_000_000
    assert all(row[2] for concept in data(of(pages, "method-31-"))["concepts"] for row in concept["top"]["tp"][:1])


def test_every_character_of_a_text_is_shown_once_by_the_first_token_that_covers_it():
    assert pieces("a bc d", [[0, 1], [2, 4], [3, 4], [5, 6]]) == [["a", 0], [" "], ["bc", 1, 2], [" "], ["d", 3]]
    assert pieces("ab", [[0, 2], [2, 5]]) == [["ab", 0]]
    assert pieces("\u202eab", [[1, 3]]) == [["[U+202E]"], ["ab", 0]]


# In the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walked")
    for name, quality in (("good", 4.0), ("fair", 2.0), ("poor", 0.1), (HOSTILE, 1.0)):
        folder = made(root / "results", name, quality, tokens=4 if name == "good" else 0)
        state(folder, detector=name, backbone="p", dataset="p")
    certify(root / "pages", "good", "p")
    build(root / "results", root / "pages")
    return root / "pages"


METHODS = "[...document.querySelectorAll('#board-0 tbody tr:not([hidden]) th')].map(x => x.textContent)"


def test_a_reader_sorts_by_keyboard_filters_and_walks_from_a_cell_to_its_tokens(browser, site):
    browser.size(1280, 900)
    browser.open((site / "index.html").as_uri())
    first = browser.do(METHODS)
    assert first[0] == "good"
    browser.key("Tab")
    assert browser.do("document.activeElement.className") == "skip"
    browser.do("document.querySelector('th[aria-sort] button').focus()")
    browser.key("Enter")
    assert browser.do("document.querySelector('#board-0 th[aria-sort]').getAttribute('aria-sort')") == "ascending"
    assert browser.do(METHODS) == first[::-1]
    browser.do(
        "const f = document.querySelector('[data-filter=method]'); f.value = 'GOOD'; f.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert browser.do(METHODS) == ["good"]
    assert "rows" in browser.do("document.querySelector('.filters output').textContent")
    assert "method=GOOD" in browser.do("location.search")
    browser.do("document.querySelector('button[type=reset]').click()")
    browser.until(f"{METHODS}.length === 4")
    browser.do(
        "const l = document.querySelector('[data-filter=layer]'); l.value = '1'; l.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    cell = "document.querySelector('#board-0 tbody tr td > a').textContent"
    assert browser.do(cell).startswith("0.250 [")
    browser.do("document.querySelector('button[type=reset]').click()")
    browser.until(f"!{cell}.startsWith('0.250')")
    last = "[...document.querySelectorAll('#board-0 thead button')].at(-1)"
    browser.do(f"{last}.click()")
    assert browser.do(METHODS)[0] == "good"
    assert browser.do(f"{last}.textContent") == "certified"
    browser.do("document.querySelector(\"#board-0 th a[href*='good']\").click()")
    browser.until("document.querySelector('h1')?.textContent === 'good' && document.readyState === 'complete'")
    browser.until("document.querySelectorAll('#drawn .card svg rect').length >= 4")
    browser.do("document.getElementById('after').click()")
    assert browser.do("document.querySelector('#drawn h3 bdi').textContent") == "c1"
    assert browser.do("location.hash") == "#c1"
    browser.do("document.getElementById('compare').click()")
    browser.until(
        "document.querySelector('h1')?.textContent === 'Two methods side by side' && !!document.querySelector('#drawn h2')"
    )
    assert browser.do("document.querySelector('#drawn h3 bdi').textContent") == "c1"
    assert browser.do("document.querySelector('#drawn h2 a').textContent") == "good"
    before = browser.do("document.querySelector('#drawn td').textContent")
    browser.do("document.getElementById('swap').click()")
    assert float(browser.do("document.querySelector('#drawn td').textContent")) == -float(before)
    assert browser.said == []
    assert all(address.startswith(("file:", "data:")) for address in browser.asked)


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_no_page_scrolls_sideways_and_every_control_can_be_seen(browser, site, dark):
    browser.size(360, 740, dark)
    for path in sorted(site.rglob("*.html")):
        browser.open(path.as_uri())
        assert browser.do("document.documentElement.scrollWidth") <= 360, path.name
        assert browser.do("getComputedStyle(document.body).backgroundColor") == (
            "rgb(22, 23, 27)" if dark else "rgb(255, 255, 255)"
        )
    assert browser.said == []


def test_the_page_forbids_itself_the_network_and_foreign_scripts(browser, site):
    browser.open((site / "index.html").as_uri())
    ask = "new Promise(done => { addEventListener('securitypolicyviolation', event => done(event.effectiveDirective)); %s })"
    assert browser.do(ask % "fetch('https://example.org').catch(() => 0)") == "connect-src"
    script = "const s = document.createElement('script'); s.textContent = 'window.foreign = 1'; document.body.append(s)"
    assert browser.do(ask % script) == "script-src-elem"
    assert browser.do("window.foreign === undefined")
    browser.said.clear()


def test_a_page_prints(browser, site):
    browser.open((site / "index.html").as_uri())
    assert browser.pdf().startswith(b"%PDF")
