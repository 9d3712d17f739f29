"""`harness verify`, `submit` and `compare` on real toy runs: honest bundles follow, any changed value is named, unlike results are refused."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from harness_trust.bundle import MANIFEST, manifest_of
from harness_trust.checks import bounds, verify
from harness_trust.report import verdict_of
from safetensors.torch import save_file

from harness.api import HarnessError, read_tokens, run_id_of
from harness.cli import main

ROOT = Path(__file__).parent.parent.parent
METHODS = "superactivator,superactivator-direct,max,last,summary,oracle,superactivator-kmeans,coin"


def python(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HARNESS_")},
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    code = "from harness.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Method -> its result folder."""
    out = tmp_path_factory.mktemp("trust")
    base = ["run", "--task", "toy", "-o", str(out / "r"), "--cache-dir", str(out / "c"), "--bootstrap", "20", "--log-tokens"]
    done = python(*base, "--method", METHODS)
    assert done.returncode == 0, done.stderr
    done = python(*base[:-3], "--bootstrap", "0", "--limit", "40", "--layers", "last", "--method", "max")
    assert done.returncode == 0, done.stderr
    found = {}
    for path in sorted((out / "r").rglob("result.json")):
        limited = json.loads(path.read_text())["task"]["limit"]
        found[path.parent.parent.name + ("-limited" if limited else "")] = path.parent
    return found


@pytest.fixture(scope="module")
def bundle(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submitted bundle."""
    to = tmp_path_factory.mktemp("board") / "results"
    main(["submit", str(runs["superactivator"]), "--to", str(to)])
    return next(to.rglob("result.json")).parent


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    capsys.readouterr()
    try:
        main(words)
    except SystemExit as done:
        code = int(done.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# --- verify


def test_every_honest_result_follows_from_its_files(runs: dict[str, Path]) -> None:
    assert len(runs) == 9
    for name, folder in runs.items():
        row = verdict_of(folder)
        assert row["verdict"] == "follows", (name, row)
        assert row["compared"] > 500
        assert set(row["left"]) <= {"intervals of token_average_precision"}


def test_verify_says_what_it_compared_and_what_it_could_not(
    runs: dict[str, Path], bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["verify", str(runs["max"])], capsys)
    assert code == 0
    assert "numbers and words of" in out
    assert "not recomputed: intervals of token_average_precision (14 numbers)" in out
    assert "no MANIFEST.json: numbers were recomputed, but words such as notes and provenance were not checked" in out
    code, out, _ = run(["verify", str(bundle)], capsys)
    assert code == 0
    assert "MANIFEST.json: every file has its sha256" in out


def test_several_bundles_are_a_table_and_json_is_data(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = runs["max"].parents[1]
    code, out, _ = run(["verify", str(root)], capsys)
    assert code == 0
    assert "9 of 9 bundles follow from their files" in out
    code, out, _ = run(["verify", str(root), "--json"], capsys)
    assert [row["verdict"] for row in json.loads(out)] == ["follows"] * 9


def test_verify_imports_no_torch(bundle: Path) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        "try:\n    main(['verify', sys.argv[1]])\nexcept SystemExit as done:\n    assert not done.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("follows: ")


def test_a_changed_number_is_named_and_the_exit_code_is_1(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "b")
    read = json.loads((folder / "result.json").read_text())
    row = next(row for row in read["scores"] if (row["metric"], row["layer"], row["concept"]) == ("f1", "0", "circle"))
    row["value"] += 0.01
    (folder / "result.json").write_text(json.dumps(read))
    done = python("verify", str(folder))
    assert done.returncode == 1
    assert done.stdout.startswith("does not follow: result.json: scores[f1, 0, circle].value: published 0.")
    assert ", recomputed 0." in done.stdout


def test_a_bundle_that_cannot_be_read_has_exit_code_2(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, spoil, said in (
        ("STATUS", lambda p: p.unlink(), "no complete result in"),
        ("scores.parquet", lambda p: p.write_bytes(b"PAR1"), "the bundle is damaged"),
        ("scores.parquet", lambda p: p.unlink(), "has no scores.parquet; a bundle holds all the files of its run"),
        ("token_ranking.parquet", lambda p: p.unlink(), "has no token_ranking.parquet"),
        ("result.json", lambda p: p.write_text("{"), "is not JSON"),
        ("result.json", lambda p: p.write_text('{"a": NaN}'), "NaN is no JSON number"),
        ("config.yaml", lambda p: p.write_text("a: ["), "the bundle is damaged"),
    ):
        folder = shutil.copytree(bundle, tmp_path / "b", dirs_exist_ok=True)
        spoil(folder / name)
        code, out, _ = run(["verify", str(folder)], capsys)
        assert code == 2, name
        assert out.startswith("unreadable: ")
        assert said in out
    code, _, err = run(["verify", str(tmp_path / "nothing")], capsys)
    assert code == 2
    assert "no result in" in err
    assert "name a folder that `harness run` or `harness submit` wrote, or one above" in err


def test_a_missing_or_extra_file_breaks_the_manifest(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "b")
    (folder / "more.txt").write_text("x")
    assert "MANIFEST.json: files: published nothing of more.txt" in verdict_of(folder)["cause"]
    (folder / "more.txt").unlink()
    (folder / "match.parquet").write_bytes((folder / "scores.parquet").read_bytes())
    assert verdict_of(folder)["verdict"] == "does not follow"


# --- tampering


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all words, numbers and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*where, key))
    elif isinstance(value, list):
        yield where
        for i, inner in enumerate(value):
            yield from leaves(inner, (*where, i))
    else:
        yield where


def other(value: Any, g: random.Random) -> Any:
    """Another value of the same kind, or null."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return (
            g.choice([value + 1, value * 1.001 + 1e-4, -value - 1]) if isinstance(value, float) else value + g.choice([1, -1])
        )
    if isinstance(value, str):
        return value + g.choice(["x", " ", "1"])
    if isinstance(value, list):
        return value[:-1] if value else ["x"]
    return 0.5


def change_json(path: Path, g: random.Random, under: tuple[str, ...] | None = None) -> str:
    read = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    at = g.choice([place for place in leaves(read) if under is None or (place and place[0] in under)])
    holder = read
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = other(copy.deepcopy(holder[at[-1]]), g)
    path.write_text(json.dumps(read) if path.suffix == ".json" else yaml.safe_dump(read))
    return f"{path.name}: {'.'.join(map(str, at))}"


def change_table(path: Path, g: random.Random) -> str:
    table = pq.read_table(path)
    column, row = g.choice(table.column_names), g.randrange(len(table))
    values = table.column(column).to_pylist()
    before = values[row]
    choices = [x for x in dict.fromkeys(values) if x != before] if isinstance(before, str) else []
    values[row] = g.choice(choices) if choices else other(before, g)
    kind = table.column(column).type
    kind = pa.float64() if pa.types.is_integer(kind) or pa.types.is_floating(kind) else kind
    kind = pa.string() if pa.types.is_dictionary(kind) else kind
    kind = pa.float64() if pa.types.is_null(kind) else kind
    changed = table.set_column(table.column_names.index(column), column, pa.array(values, kind))
    sink = io.BytesIO()
    pq.write_table(changed, sink, compression="zstd")
    path.write_bytes(sink.getvalue())
    return f"{path.name}: {column}[{row}] {before!r} -> {values[row]!r}"


def tampered(folder: Path, g: random.Random) -> str:
    names = [p.name for p in folder.iterdir() if p.suffix == ".parquet"]
    name = g.choice([*names, "result.json", "result.json", "result.json", "config.yaml", MANIFEST, "STATUS"])
    if name == "STATUS":
        (folder / name).write_text("complet")
        return name
    return change_table(folder / name, g) if name in names else change_json(folder / name, g)


def missed(bundle: Path, work: Path, count: int, seed: int, change: Callable[[Path, random.Random], str]) -> list[str]:
    g, left = random.Random(seed), []  # noqa: S311 - no secret
    for i in range(count):
        folder = shutil.copytree(bundle, work / str(i))
        what = change(folder, g)
        if verdict_of(folder)["verdict"] == "follows":
            left.append(what)
        shutil.rmtree(folder)
    return left


def test_any_single_changed_value_is_caught(bundle: Path, tmp_path: Path) -> None:
    assert missed(bundle, tmp_path, 30, 1, tampered) == []


@pytest.mark.slow
def test_200_of_200_changed_values_are_caught(bundle: Path, tmp_path: Path) -> None:
    assert missed(bundle, tmp_path, 200, 2, tampered) == []


def test_a_published_number_is_caught_by_recomputation_alone(bundle: Path, tmp_path: Path) -> None:
    """The manifest is written anew after the change."""

    def change(folder: Path, g: random.Random) -> str:
        read = json.loads((folder / "result.json").read_text())
        rows = [r for r in read["scores"] if r["metric"] != "token_average_precision"] + read["choices"]
        row = g.choice(rows)
        key = g.choice([k for k in row if k != "metric"])
        row[key] = other(row[key], g)
        (folder / "result.json").write_text(json.dumps(read))
        (folder / MANIFEST).write_text(json.dumps(manifest_of(folder)))
        return f"{row}: {key}"

    assert missed(bundle, tmp_path, 25, 3, change) == []


def sealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes result.json, and makes run id, config.yaml and manifest follow."""
    with_words(folder, change)
    (folder / "MANIFEST.json").write_text(json.dumps(manifest_of(folder)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda read: read["metrics"]["f1"].update(higher_is_better=False), "metrics.f1.higher_is_better"),
        (lambda read: read["metrics"]["auroc"].update(range=[0, 2]), "metrics.auroc.range"),
        (lambda read: read["task"].pop("limit"), "task.limit"),
        (
            lambda read: next(r for r in read["scores"] if r["metric"] == "token_average_precision").update(ci_low=-9.0),
            "from 0 to 1",
        ),
    ],
)
def test_a_new_manifest_does_not_save_what_a_metric_or_limit_means(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundle, folder)
    sealed(folder, change)
    assert said in str(verify(folder).finding)


def test_a_bundle_above_others_does_not_hide_them(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(bundle, tmp_path / "all")
    shutil.copytree(bundle, tmp_path / "all" / "toy" / "x")
    change_json(tmp_path / "all" / "toy" / "x" / "result.json", random.Random(0), ("scores",))  # noqa: S311
    (tmp_path / "all" / "MANIFEST.json").write_text(json.dumps(manifest_of(tmp_path / "all")))
    code, out, _ = run(["verify", str(tmp_path / "all"), "--json"], capsys)
    assert code == 1
    assert [row["verdict"] for row in json.loads(out)] == ["does not follow", "does not follow"]
    assert "the files of a result" in json.loads(out)[0]["cause"]


def test_a_link_in_a_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "scores.parquet").unlink()
    (tmp_path / "b" / "scores.parquet").symlink_to(bundle / "scores.parquet")
    with pytest.raises(HarnessError, match="is a link; a bundle holds its own files"):
        verify(tmp_path / "b")


def test_logged_tokens_are_those_of_the_samples(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(runs["superactivator"], folder)
    tensors, about = read_tokens(folder)
    save_file(tensors, folder / "tokens.safetensors", {"about": json.dumps({**about, "ids": about["ids"][::-1]})})
    assert "tokens.safetensors: ids" in str(verify(folder).finding)
    save_file({**tensors, "map": -tensors["map"]}, folder / "tokens.safetensors", {"about": json.dumps(about)})
    assert "mask of token" in str(verify(folder).finding)


def test_one_bundle_of_other_samples_does_not_undo_the_ranks_of_the_others(runs: dict[str, Path], tmp_path: Path) -> None:
    names = [name for name in ("superactivator", "max", "coin", "last") if name in runs]
    for name in names:
        shutil.copytree(runs[name], tmp_path / "r" / name)
    folder = tmp_path / "r" / names[0]
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        if "id" in table.column_names:
            words = [word.replace("test-", "other-") for word in table["id"].to_pylist()]
            pq.write_table(table.set_column(table.column_names.index("id"), "id", pa.array(words)), path)
    (folder / "tokens.safetensors").unlink()
    assert verify(folder).finding is None
    main(["leaderboard", "build", str(tmp_path / "r"), "--output", str(tmp_path / "board")])
    detection = (tmp_path / "board" / "README.md").read_text().split("## Detection\n")[1].split("\n## ")[0]
    assert f"Not ranked: {names[0]}: other test samples, concepts or labels than the other rows." in detection
    assert "**1" in detection


def test_the_order_of_tied_and_merged_tokens_bounds_average_precision() -> None:
    import numpy as np
    from sklearn.metrics import average_precision_score

    g = np.random.default_rng(0)
    positives, negatives = g.integers(0, 3, 3000).astype(float), g.integers(1, 4, 3000).astype(float)
    low, high = bounds(positives, negatives)
    labels = np.concatenate([np.repeat([1, 0], [int(p), int(n)]) for p, n in zip(positives, negatives, strict=True)])
    step = np.repeat(np.arange(3000), (positives + negatives).astype(int))
    for order in (np.arange(len(step)), -np.arange(len(step)), g.permutation(len(step)), np.zeros(len(step))):
        score = -(step * len(step) + order).astype(float)
        assert low - 1e-12 <= average_precision_score(labels, score) <= high + 1e-12
    few = bounds(positives[:50], negatives[:50])
    ends = int((positives + negatives)[:50].sum())
    assert few[0] == few[1] == pytest.approx(average_precision_score(labels[:ends], -step[:ends].astype(float)))


# --- rerun


def test_rerun_makes_scores_again_from_the_raw_data(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("superactivator-kmeans", "coin"):
        code, out, _ = run(["verify", str(runs[name]), "--rerun", "4", "--cache-dir", str(tmp_path / "c")], capsys)
        assert code == 0
        assert "made again from raw data: " in out
        assert "scores.parquet of 4 test samples (seed 0); 0 beyond 0.01 standard deviations" in out


def test_rerun_finds_an_invented_score(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A coin's scores, invented in a way that all that is published still follows."""
    folder = shutil.copytree(runs["coin"], tmp_path / "b")
    for name in ("scores.parquet", "per_sample.parquet"):
        table = pq.read_table(folder / name)
        scores = [x if x is None else x**0.5 * 0.5**0.5 for x in table.column("score").to_pylist()]
        scores = [
            x if split == "test" else old
            for x, split, old in zip(scores, table.column("split").to_pylist(), table.column("score").to_pylist(), strict=True)
        ]
        pq.write_table(table.set_column(table.column_names.index("score"), "score", pa.array(scores)), folder / name)
    assert verdict_of(folder)["verdict"] == "follows"
    code, out, _ = run(["verify", str(folder), "--rerun", "3", "--cache-dir", str(tmp_path / "c")], capsys)
    assert code == 1
    assert "does not follow: scores.parquet: score of test sample test-" in out
    assert "made again 0." in out


def test_rerun_refuses_changed_data(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(bundle, tmp_path / "b")
    read = json.loads((folder / "result.json").read_text())
    read["task"]["fingerprint"] = "0" * 64
    read["run_id"] = run_id_of(read)
    (folder / "result.json").write_text(json.dumps(read))
    (folder / MANIFEST).write_text(json.dumps(manifest_of(folder)))
    code, _, err = run(["verify", str(folder), "--rerun", "2", "--cache-dir", str(tmp_path / "c")], capsys)
    assert code == 2
    assert "the data of task 'toy' changed since result" in err


# --- submit


def test_submit_writes_a_bundle_and_says_how_to_open_the_pull_request(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "leaderboards" / "results"
    _, out, _ = run(["submit", str(runs["superactivator"]), "--to", str(tmp_path / "elsewhere")], capsys)
    assert "This folder is in no git checkout: give the --to of a clone" in out
    assert "git add" not in out
    (tmp_path / ".git").mkdir()
    code, out, _ = run(["submit", str(runs["superactivator"]), "--to", str(to)], capsys)
    assert code == 0
    assert f"  cd {os.path.relpath(tmp_path)}\n" in out
    assert "  harness leaderboard build leaderboards/results --output leaderboards\n" in out
    assert re.search(r"^  git add leaderboards/results/toy/\S+ leaderboards/README.md leaderboards/index.html$", out, re.M)
    assert "numbers and words follow from the files" in out
    assert "left out: tokens.safetensors; --tokens takes tokens.safetensors" in out
    assert "git switch -c submit-superactivator-toy-" in out
    assert "git push -u origin submit-superactivator-toy-" in out
    assert "then open it on the page that `git push` names" in out
    made = next(to.rglob(MANIFEST)).parent
    assert made.relative_to(to).parts[:3] == ("toy", "toy", "superactivator")
    assert not (made / "tokens.safetensors").exists()
    code, out, _ = run(["submit", str(runs["superactivator"]), "--to", str(to)], capsys)
    assert code == 0
    assert "already there, the same:" in out
    (made / "STATUS").write_text("complete ")
    code, _, err = run(["submit", str(runs["superactivator"]), "--to", str(to)], capsys)
    assert code == 2
    assert "holds another bundle of this run; it is not overwritten; remove it, choose another --to, or use --force" in err
    assert run(["submit", str(runs["superactivator"]), "--to", str(to), "--force", "--tokens"], capsys)[0] == 0
    assert (made / "tokens.safetensors").exists()
    assert verdict_of(made)["verdict"] == "follows"


def test_what_a_board_will_not_rank_is_said(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(["submit", str(runs["oracle"]), "--to", str(tmp_path)], capsys)
    assert "note: a ceiling, picked on test: shown, not ranked" in out
    _, out, _ = run(["submit", str(runs["max-limited"]), "--to", str(tmp_path)], capsys)
    assert "note: limited to 40 samples per split (--limit): shown, not ranked" in out


def test_a_run_that_does_not_follow_is_not_submitted(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(bundle, tmp_path / "b")
    change_json(folder / "config.yaml", random.Random(0))  # noqa: S311 - no secret
    code, _, err = run(["submit", str(folder), "--to", str(tmp_path / "to")], capsys)
    assert code == 2
    assert "does not follow from its files and is not submitted" in err
    assert not (tmp_path / "to").exists()


def with_words(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    read = json.loads((folder / "result.json").read_text())
    change(read)
    read["run_id"] = run_id_of(read)
    (folder / "result.json").write_text(json.dumps(read))
    (folder / "config.yaml").write_text(yaml.safe_dump(read["config"]))


def test_a_bundle_names_nothing_of_the_machine(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "annabel")
    folder = shutil.copytree(runs["max"], tmp_path / "r")

    def change(read: dict[str, Any]) -> None:
        read["config"]["task"] = "/home/annabel/my tasks/toy.yaml".replace("my tasks", "tasks")
        read["notes"]["read"] = ["from /mnt/disk/a.png and ~/b.png, by annabel; 0 / 0 and/or /m/01g317 of https://a.org/data/x"]
        read["notes"]["/opt/x/y.txt"] = 1

    with_words(folder, change)
    code, out, _ = run(["submit", str(folder), "--to", str(tmp_path / "to")], capsys)
    assert code == 0
    assert "without names of this machine: config.task, notes" in out
    made = next((tmp_path / "to").rglob("result.json")).parent
    read = json.loads((made / "result.json").read_text())
    assert read["config"]["task"] == "toy.yaml"
    assert read["notes"]["read"] == ["from a.png and b.png, by user; 0 / 0 and/or /m/01g317 of https://a.org/data/x"]
    assert read["notes"]["y.txt"] == 1
    assert "annabel" not in "".join(path.read_text(errors="replace") for path in made.iterdir())


def test_a_path_in_what_the_run_is_is_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs["max"], tmp_path / "r")
    with_words(folder, lambda read: read["backbone"].update(adapter="/home/someone/model"))
    code, _, err = run(["submit", str(folder), "--to", str(tmp_path / "to")], capsys)
    assert code == 2
    assert "result.json: backbone.adapter names a path of this machine, '/home/someone/model'" in err
    assert "run again with a registered name or a relative path" in err


# --- compare


def test_compare_says_no_more_than_it_may(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["compare", str(runs["superactivator"]), str(runs["superactivator-direct"])], capsys)
    assert code == 0
    assert out.startswith("No difference established between superactivator and superactivator-direct in f1 weighted: +0.000")
    code, out, _ = run(["compare", str(runs["coin"]), str(runs["superactivator"]), "--average", "macro"], capsys)
    assert "superactivator is better in f1 macro: -0." in out
    assert "another training set or seed is not covered" in out
    assert "smallest true difference found 8 times in 10: 0." in out
    assert "0 wins, 3 losses, 0 ties for A = coin, Holm-corrected over concepts" in out
    _, out, _ = run(["compare", str(runs["oracle"]), str(runs["max"])], capsys)
    assert "note: oracle is a ceiling: its cutoff and layer were picked on test" in out


def test_compare_as_json_is_the_difference_of_what_is_published(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(runs["superactivator"]), str(runs["last"]), "--metric", "token_f1", "--json"]
    found = json.loads(run(words, capsys)[1])
    assert found["difference"]["value"] == pytest.approx(found["values"][0] - found["values"][1])
    assert found["difference"]["low"] < found["difference"]["value"] < found["difference"]["high"]
    assert [row["concept"] for row in found["per_concept"]] == ["circle", "square", "star"]
    assert all(row["p_holm"] >= row["p"] for row in found["per_concept"])


def test_unlike_results_are_not_compared(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["compare", str(runs["max"]), str(runs["max-limited"])], capsys)
    assert code == 2
    assert "they are of different task content" in err
    assert err.count("\n") == 1
    code, _, err = run(["compare", str(runs["max"]), str(runs["last"]), "--metric", "f2"], capsys)
    assert code == 2
    assert "unknown metric 'f2'" in err
    code, _, err = run(["compare", str(runs["max"]), str(runs["coin"]), "--metric", "token_f1"], capsys)
    assert code == 2
    assert "do not give metric 'token_f1' per sample" in err
    code, _, err = run(["compare", str(runs["max"]), str(runs["max"].parents[1])], capsys)
    assert code == 2
    assert "holds 9 results" in err
    folder = shutil.copytree(runs["max"], tmp_path / "r")
    with_words(folder, lambda read: read["metrics"]["f1"].update(version=2))
    code, _, err = run(["compare", str(runs["max"]), str(folder)], capsys)
    assert code == 2
    assert "metric 'f1' has version 1 and 2; run both again" in err
    assert verdict_of(folder)["left"]["f1, version 2"] > 0


# --- continuous integration


def test_the_workflow_runs_commands_that_exist() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "leaderboard.yml").read_text(encoding="utf-8"))
    steps = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    words = [step.split() for step in steps if step.startswith("harness ")]
    assert [line[1] for line in words] == ["verify", "leaderboard"]
    assert steps[-1] == "git diff --exit-code -- leaderboards/README.md leaderboards/index.html"
    for line in words:
        done = python(*[word for word in line[1:] if not word.startswith(("leaderboards", "--output"))], "--help")
        assert done.returncode == 0, done.stderr
