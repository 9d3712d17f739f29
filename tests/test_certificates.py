"""Certificates of a board: only that of the very source a result states counts; a file that is none is one line; nothing is lost in a merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.certificates import Certificate, code_of, merge_certificates, read_certificates
from harness.errors import HarnessError
from harness.leaderboard import build

SHA, OTHER = "a" * 64, "b" * 64
HOSTILE = '<script>alert("1")</script>|`x`\n# head\u202e'
PASSED = Certificate(SHA, True, None, ("concept method linear", "detector mine", "backbone toy", "dataset toy"))


def stated(**changes: Any) -> dict[str, Any]:
    """A result of `linear` and `mine` on toy, all of plugin p; changes to what it states of its parts."""
    parts = {"concepts": "linear:estimator=adam", "detector": "mine", "backbone": "toy", "dataset": "toy"}
    plugins = {place: {"part": part, "plugin": "p", "version": "1", "sha256": SHA} for place, part in parts.items()}
    method = {"name": "m", "concepts": parts["concepts"], "detector": "mine", "localizer": None}
    return {"method": method, "provenance": {"plugins": plugins | changes}}


def whys(read: dict[str, Any], one: Certificate = PASSED) -> list[str | None]:
    return [code.why for code in code_of(read, {"p": one})]


def test_a_part_is_certified_where_its_plugin_passed_with_the_source_that_the_result_states():
    assert whys(stated()) == [None] * 4
    assert [code.place for code in code_of(stated(), {})] == ["concepts", "detector", "backbone", "dataset"]


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (Certificate(OTHER, True, None, PASSED.parts), "certified for another source"),
        (Certificate(OTHER, False, None, PASSED.parts), "no certificate of this source"),
        (Certificate(SHA, False, None, PASSED.parts), "it failed its checks"),
        (Certificate(SHA, None, None, ()), "this part was not checked"),
        (Certificate(SHA, True, None, ("detector other",)), "this part was not checked"),
    ],
)
def test_anything_else_is_not_certified_and_says_why(one: Certificate, why: str):
    assert set(whys(stated(), one)) == {why}
    assert {code.why for code in code_of(stated(), {})} == {"no certificate"}


def test_a_result_cannot_leave_out_a_part_or_state_the_source_of_another_one():
    unknown = "the result does not state its source"
    assert whys(stated(detector=None))[1] == unknown
    assert whys(stated(detector={"part": "max", "plugin": "p", "sha256": SHA}))[1] == unknown
    for origin in ({}, {"provenance": []}, {"provenance": {"plugins": "p"}}, {"provenance": {"plugins": {"detector": 1}}}):
        assert whys({"method": stated()["method"], **origin}) == [unknown] * 4


# --- the file


ENTRY = {"sha256": SHA, "certified": True, "version": None, "parts": []}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "it must be a mapping of plugins"),
        ('{"p": 1}', "plugin 'p' is not a mapping; its keys are sha256, certified, version, parts"),
        (json.dumps({"p": ENTRY | {"sha256": "abc"}}), "'sha256' of plugin 'p' must be 64 hexadecimal digits"),
        (json.dumps({"p": ENTRY | {"certified": "yes"}}), "'certified' of plugin 'p' must be true, false or null"),
        (
            json.dumps({"p": {"sha256": SHA, "certified": True, "version": "1"}}),
            "'parts' of plugin 'p' must be a list of words",
        ),
        (json.dumps({HOSTILE * 1000: 1}), "is not a mapping"),
    ],
)
def test_a_file_that_is_no_list_of_certificates_is_one_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "certificates.json").write_text(text)
    with pytest.raises(HarnessError) as error:
        build([tmp_path], tmp_path)
    assert said in str(error.value)
    assert "certificates.json" in str(error.value)
    assert "\n" not in str(error.value) and "\u202e" not in str(error.value) and len(str(error.value)) < 500


def test_a_merge_keeps_other_plugins_and_parts_checked_of_the_same_source(tmp_path: Path):
    path = tmp_path / "boards" / "certificates.json"
    merge_certificates(path, {"p": PASSED, "q": Certificate(OTHER, None, "1", ())})
    merge_certificates(path, {"p": Certificate(SHA, True, None, ("detector more",)), "r": PASSED})
    found = read_certificates(path)
    assert found is not None and sorted(found) == ["p", "q", "r"]
    assert set(found["p"].parts) == {*PASSED.parts, "detector more"}
    merge_certificates(path, {"p": Certificate(SHA, None, None, ())})  # where the weights are not there
    assert (read_certificates(path) or {})["p"].certified
    for new in (Certificate(SHA, False, None, ()), Certificate(OTHER, True, None, ())):
        assert merge_certificates(path, {"p": new})["p"] == new
    assert read_certificates(tmp_path / "nowhere.json") is None


# --- README.md of the boards


def put(root: Path, name: str, **changes: Any) -> None:
    read = stated(**changes)
    about = {
        "name": "toy",
        "version": 1,
        "fingerprint": "f" * 64,
        "limit": None,
        "samples": {"test": 2},
        "positives": {"star": {}},
    }
    score = {"metric": "f1", "layer": "chosen", "concept": "weighted", "value": 0.5, "ci_low": None, "ci_high": None, "n": 1}
    read |= {"schema_version": 2, "run_id": name, "task": about, "choices": [], "metrics": {}}
    read |= {"backbone": {"name": "toy", "revision": "1", "sites": ["0"], "normalization": "train"}}
    read |= {
        "scores": [{**score, "sample_ci": None, "reason": None}],
        "method": read["method"] | {"name": name, "summary": name},
    }
    (root / "results" / name[:3]).mkdir(parents=True)
    (root / "results" / name[:3] / "result.json").write_text(json.dumps(read))
    (root / "results" / name[:3] / "STATUS").write_text("complete")


def readme(root: Path, **certificates: Certificate) -> str:
    merge_certificates(root / "certificates.json", certificates)
    build([root / "results"], root)
    return (root / "README.md").read_text()


def test_without_certificates_nothing_is_said_of_them(tmp_path: Path):
    put(tmp_path, "one")
    build([tmp_path / "results"], tmp_path)
    assert "certif" not in (tmp_path / "README.md").read_text()


def test_a_line_below_each_table_says_what_is_not_certified_and_whose_rows_these_are(tmp_path: Path):
    put(tmp_path, "one")
    assert "All code behind these rows is certified." in readme(tmp_path, p=PASSED)
    put(tmp_path, "two", detector={"part": "mine", "plugin": "q", "sha256": OTHER})
    assert "Not certified: plugin q, no certificate (two)." in readme(tmp_path, p=PASSED)
    said = readme(tmp_path, p=Certificate(OTHER, True, None, PASSED.parts))
    assert "Not certified: plugin p, certified for another source (all rows); plugin q, no certificate (two)." in said


def test_a_hostile_plugin_name_stays_text(tmp_path: Path):
    put(tmp_path, "one", detector={"part": "mine", "plugin": HOSTILE + "x" * 100_000, "sha256": OTHER})
    page = readme(tmp_path, p=PASSED, **{HOSTILE: PASSED})
    assert "<script>" not in page and "\u202e" not in page and len(page) < 20_000
    assert "&lt;script&gt;alert" in page
    assert not any(line.startswith("# head") for line in page.splitlines())
