"""Exports hold every number, and names in them stay names: no formula in a spreadsheet, no command in LaTeX, no key in YAML."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
import yaml
from test_site import made

from harness.cli import main

HOSTILE = "=cmd|'/C calc'!A0 \\input{x} 50% $a_b$ & #1 ~^<b>\nname: x"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    for name, quality in (("good", 4.0), ("fair", 3.9), ("poor", 0.1), (HOSTILE, 1.0)):
        made(root, name, quality)
    return root


def export(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    main(["leaderboard", "export", *map(str, words)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["leaderboard", "export", *map(str, words)])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_csv_has_every_score_row_and_no_formula(results, capsys):
    rows = list(csv.DictReader(io.StringIO(export(capsys, results, "--format", "csv"))))
    assert len(rows) == 4 * (3 + 2 + 2)
    good = next(r for r in rows if (r["method"], r["concept"], r["layer"]) == ("good", "macro", "chosen"))
    assert float(good["ci_low"]) <= float(good["value"]) <= float(good["ci_high"])
    assert {row["method"] for row in rows} == {"good", "fair", "poor", "'" + HOSTILE}


def test_latex_is_balanced_escaped_and_bold_only_where_the_rank_may_be_one(results, capsys):
    text = export(capsys, results, "--format", "latex")
    body = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
    assert len(body) == 4
    for row in body:
        assert len(re.findall(r"(?<!\\)&", row)) == 7
        assert row.endswith(r"\\")
        bold = row.startswith(r"\textbf{1")
        assert bold == (r"\textbf" in row)
    assert any(row.startswith(r"\textbf") for row in body) and not all(row.startswith(r"\textbf") for row in body)
    assert r"\input{" not in text
    assert r"\textbackslash{}input\{x\} 50\% \$a\_b\$ \& \#1" in text
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert "40 test samples, 3 concepts" in text
    assert not re.search(r"(?<!\\)[#$_]", "".join(body))


def test_a_model_card_is_yaml_with_a_model_index(results, capsys):
    text = export(capsys, results, "--format", "model-card", "--source-url", "https://example.org")
    (card,) = [part for part in yaml.safe_load_all(text) if part]
    assert list(card) == ["model-index"]
    entries = {entry["name"]: entry["results"][0] for entry in card["model-index"]}
    assert "small · " + HOSTILE in entries
    good = entries["small · good"]
    assert good["source"]["url"] == "https://example.org"
    assert good["dataset"]["split"] == "test"
    assert {metric["name"] for metric in good["metrics"]} == {"f1, macro", "f1, weighted"}


def test_a_file_is_written_and_the_same_bytes_again(results, capsys, tmp_path):
    for kind in ("csv", "latex", "model-card"):
        file = tmp_path / kind
        assert export(capsys, results, "--format", kind, "-o", file) == f"wrote {file}\n"
        assert file.read_text() == export(capsys, results, "--format", kind)


def test_mistakes_are_one_line(results, capsys, tmp_path):
    assert "no results folder" in refused(capsys, tmp_path / "none", "--format", "csv")
    assert "no complete result below" in refused(capsys, tmp_path, "--format", "csv")
    said = refused(capsys, results, "--format", "latex", "--board", "detecton")
    assert "did you mean detection?" in said
    assert said.count("\n") == 1
