"""`harness publish` to a folder, a branch and a stub of the Hub: what follows arrives whole, others' work stays, mistakes are one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import harness_publish.hub
import pytest
import yaml
from command_line import cli
from harness_publish import places
from hub_stub import TOKEN, Hub, serving_hub

from harness.api import find_results

Publish = Callable[..., str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board of two submitted toy runs, one of a scorer, whose tables have empty columns."""
    out = tmp_path_factory.mktemp("built")
    run = ["run", "--task", "toy", "--method", "max,coin", "--limit", "40", "--layers", "last", "--bootstrap", "10"]
    assert cli(*run, "-o", out / "r", "--cache-dir", out / "c") == 0
    for folder in find_results(out / "r"):
        assert cli("submit", folder, "--to", out / "board" / "results") == 0
    assert cli("leaderboard", "build", "--output", out / "board") == 0
    (out / "board" / "notes.txt").write_text("mine")
    return out / "board"


@pytest.fixture
def board(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "board")


@pytest.fixture
def publish(capsys: pytest.CaptureFixture[str]) -> Publish:
    def run(board: Path, to: object, *words: object) -> str:
        capsys.readouterr()
        code = cli("publish", board, "--to", to, *words)
        out = capsys.readouterr()
        assert code == 0, out.err
        return out.out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Publish:
    def run(board: Path, to: object, *words: object) -> str:
        capsys.readouterr()
        assert cli("publish", board, "--to", to, *words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
        return said.removeprefix("error: ").rstrip("\n")

    return run


def files(folder: Path) -> dict[str, bytes]:
    plain = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in plain}


def expected(board: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(board).items() if name != "notes.txt"}


# --- what is published


def test_a_folder_gets_the_board_and_nothing_else_and_the_second_time_nothing_is_to_do(built, publish, tmp_path):
    said = publish(built, f"folder:{tmp_path / 'site'}")
    there = files(tmp_path / "site")
    record = json.loads(there.pop("PUBLISHED.json"))["files"]
    assert there == expected(built)
    assert {name: found["sha256"] for name, found in record.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in there.items()
    }
    lines = said.splitlines()
    assert lines[0] == f"to: folder {tmp_path / 'site'}"
    assert lines[1] == "verifying 2 results"
    assert lines[2].startswith("verified: 2 results, ")
    assert lines[3] == f"left out: 1 other files of {built}"
    assert lines[-1] == f"published: open {tmp_path / 'site' / 'index.html'}"
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*")}
    assert publish(built, tmp_path / "site").splitlines()[-1] == f"nothing to do: all {len(there)} files are there"
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "site").rglob("*")}


def test_a_dry_run_lists_everything_and_writes_nothing(built, publish, tmp_path):
    said = publish(built, tmp_path / "site", "--dry-run")
    assert not (tmp_path / "site").exists()
    listed = {line.removeprefix("  write ") for line in said.splitlines() if line.startswith("  write ")}
    assert listed == {*expected(built), "PUBLISHED.json"}
    assert said.endswith("nothing was written: this is a dry run\n")


def test_what_a_board_no_longer_has_is_removed_and_what_others_put_there_stays(board, publish, tmp_path):
    publish(board, tmp_path / "site")
    (tmp_path / "site" / "CNAME").write_text("example.org")
    shutil.rmtree(board / "results" / "toy" / "toy" / "coin")
    assert cli("leaderboard", "build", "--output", board) == 0
    said = publish(board, tmp_path / "site", "--dry-run")
    assert "stays: 1 file (CNAME) of others" in said
    assert sum(line.startswith("  remove results/toy/toy/coin/") for line in said.splitlines()) == 7
    publish(board, tmp_path / "site")
    assert set(files(tmp_path / "site")) == {*expected(board), "PUBLISHED.json", "CNAME"}
    assert not (tmp_path / "site" / "results" / "toy" / "toy" / "coin").exists()


def test_a_publication_that_was_cut_short_goes_on(built, publish, tmp_path):
    publish(built, tmp_path / "site")
    (tmp_path / "site" / "PUBLISHED.json").unlink()
    (tmp_path / "site" / "index.html").unlink()
    assert "to write: 2 files" in publish(built, tmp_path / "site")


# --- what stops it


def test_a_result_that_does_not_follow_stops_publication_before_anything_is_written(board, refused, tmp_path):
    (path,) = (board / "results").glob("*/*/max/*/result.json")
    read = json.loads(path.read_text())
    read["scores"][0]["value"] = 0.999
    path.write_text(json.dumps(read))
    said = refused(board, tmp_path / "site")
    assert said.startswith("1 of 2 results do not follow from their files; the first is results/toy/toy/max/")
    assert f"nothing is published; see `harness verify {board / 'results'}`" in said
    assert "published 0.999, recomputed" in said
    assert not (tmp_path / "site").exists()
    path.write_text("{")
    assert "is not JSON" in refused(board, tmp_path / "site")


def test_a_result_that_was_not_submitted_may_name_this_machine_and_is_refused(board, refused, tmp_path):
    (path,) = (board / "results").glob("*/*/max/*/MANIFEST.json")
    path.unlink()
    assert refused(board, tmp_path / "site") == (
        f"1 of 2 results have no MANIFEST.json and may name paths of this machine; the first is "
        f"{path.parent.relative_to(board)}; put the runs there with `harness submit RUN --to {board / 'results'}`"
    )


def test_a_board_that_is_not_of_its_results_or_not_built_is_refused(board, refused, tmp_path):
    page = (board / "README.md").read_text()
    (board / "README.md").write_text(page.replace("0.", "1."))
    again = f"run `harness leaderboard build {board / 'results'} --output {board}`"
    assert refused(board, tmp_path / "site") == (
        f"{board / 'README.md'} is not what the results below it give; nothing is published; {again}"
    )
    (board / "index.html").unlink()
    assert refused(board, tmp_path / "site") == f"{board} is no built board: it has no index.html; {again}"
    (board / "index.html").write_text("")
    shutil.rmtree(board / "results")
    assert refused(board, tmp_path / "site").startswith(f"{board} holds no results below results/; a board is published with")


def test_without_the_command_that_verifies_nothing_is_published(built, refused, tmp_path):
    said = refused(built, tmp_path / "site", "-p", "no:trust")
    assert said.startswith("publishing needs the command `harness verify`, which is not there;")


def test_others_files_are_not_mixed_with_and_their_changes_not_replaced_unless_asked_for(built, publish, refused, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "thesis.tex").write_text("mine")
    assert refused(built, site) == (
        f"folder {site} holds 1 file (thesis.tex) that `harness publish` did not write; choose an empty place, "
        "or publish beside them with --overwrite"
    )
    (site / "README.md").write_text("mine")
    assert "2 files" not in refused(built, site)
    said = publish(built, site, "--overwrite")
    assert "replaces what others wrote or changed: README.md" in said
    assert (site / "thesis.tex").read_text() == "mine"
    (site / "index.html").write_text("edited by hand")
    assert refused(built, site) == (
        f"folder {site} holds 1 file (index.html) that others wrote or changed; nothing is replaced; look there, then use --overwrite"
    )
    assert (site / "index.html").read_text() == "edited by hand"


def test_a_link_is_never_written_through(built, refused, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site" / "pages").symlink_to(tmp_path / "elsewhere")
    said = refused(built, tmp_path / "site", "--overwrite")
    assert said.startswith(f"folder {tmp_path / 'site'} has 'pages' in the way of 'pages/toy/")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_damaged_record_is_not_guessed_at(built, publish, refused, tmp_path):
    publish(built, tmp_path / "site")
    (tmp_path / "site" / "PUBLISHED.json").write_text("[]")
    assert refused(built, tmp_path / "site").startswith(
        f"PUBLISHED.json of folder {tmp_path / 'site'} is not one that `harness publish` wrote; "
    )


def test_a_place_that_is_none_is_one_line(built, refused, tmp_path):
    assert "unknown place 'pags'" in refused(built, "pags:x")
    assert "did you mean pages?" in refused(built, "pags:x")
    assert refused(built, "hub:") == "--to hub: names no place; write folder:PATH, pages:URL or hub:OWNER/NAME"
    assert refused(built, "https://me:hunter2@github.com/me/x") == (
        "--to https://github.com/me/x is an address; write pages:https://github.com/me/x to push to its branch gh-pages"
    )
    (tmp_path / "file").write_text("")
    assert refused(built, tmp_path / "file") == f"{tmp_path / 'file'} is a file; --to takes a folder"
    assert "lies in the board" in refused(built, built / "site")


# --- a branch


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository to push to, and a user of git."""
    (tmp_path / "gitconfig").write_text("[user]\nname = A Tester\nemail = tester@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    return tmp_path / "remote.git"


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def branch(bare: Path, name: str = "gh-pages") -> dict[str, bytes]:
    names = git(bare, "ls-tree", "-r", "--name-only", name).splitlines()
    shown = (subprocess.run(["git", "show", f"{name}:{n}"], cwd=bare, check=True, capture_output=True).stdout for n in names)
    return dict(zip(names, shown, strict=True))


def others_work(bare: Path, work: Path, *from_there: str) -> str:
    """A commit of somebody else on gh-pages."""
    git(work.parent, "clone", "-q", *from_there, str(bare), str(work))
    git(work, "checkout", "-q", "-B", "gh-pages")
    (work / "blog.html").write_text("mine")
    git(work, "add", "blog.html")
    git(work, "commit", "-q", "-m", "My blog")
    git(work, "push", "-q", "origin", "gh-pages")
    return git(work, "rev-parse", "HEAD").strip()


def test_a_branch_is_pushed_once_with_nojekyll_and_later_publications_are_commits_on_top(board, publish, bare):
    said = publish(board, f"pages:{bare}")
    assert said.splitlines()[0] == f"to: branch gh-pages of {bare}"
    there = branch(bare)
    assert there.pop(".nojekyll") == b""
    assert there.pop("PUBLISHED.json")
    assert there == expected(board)
    assert "nothing to do" in publish(board, f"pages:{bare}")
    shutil.rmtree(board / "results" / "toy" / "toy" / "coin")
    assert cli("leaderboard", "build", "--output", board) == 0
    assert "nothing was written" in publish(board, f"pages:{bare}", "--dry-run")
    publish(board, f"pages:{bare}")
    assert git(bare, "log", "--format=%s", "gh-pages").splitlines() == [
        "Publish the leaderboards: 1 results",
        "Publish the leaderboards: 2 results",
    ]
    assert set(branch(bare)) == {*expected(board), ".nojekyll", "PUBLISHED.json"}


def test_the_history_of_others_is_never_replaced(built, publish, refused, bare, tmp_path):
    theirs = others_work(bare, tmp_path / "other")
    said = refused(built, f"pages:{bare}")
    assert said.startswith(f"branch gh-pages of {bare} holds 1 file (blog.html) that `harness publish` did not write")
    publish(built, f"pages:{bare}", "--overwrite")
    git(bare, "merge-base", "--is-ancestor", theirs, "gh-pages")
    assert branch(bare)["blog.html"] == b"mine"
    publish(built, f"pages:{bare}", "--branch", "site")
    assert "blog.html" not in branch(bare, "site")


def test_who_pushes_in_the_meantime_is_not_run_over(built, publish, refused, bare, tmp_path, monkeypatch):
    write = places.Folder.write

    def slow(self, change, message):
        others_work(bare, tmp_path / "other")
        return write(self, change, message)

    monkeypatch.setattr(places.Folder, "write", slow)
    said = refused(built, f"pages:{bare}")
    assert said == (
        f"git push failed for branch gh-pages of {bare}; somebody pushed there in the meantime; run the same command again"
    )
    assert set(branch(bare)) == {"blog.html"}


def test_what_git_cannot_do_is_one_line_without_the_password(built, refused, bare, tmp_path, monkeypatch):
    said = refused(built, f"pages:{tmp_path / 'none.git'}")
    assert said.startswith(f"git ls-remote failed for branch gh-pages of {tmp_path / 'none.git'}; fatal: ")
    said = refused(built, "pages:http://me:hunter2@127.0.0.1:9/x.git")
    assert said.startswith("git ls-remote failed for branch gh-pages of http://127.0.0.1:9/x.git; fatal: ")
    assert "hunter2" not in said
    assert "bad address or branch" in refused(built, "pages:--upload-pack=touch")
    assert "bad address or branch" in refused(built, f"pages:{bare}", "--branch", "--force")
    (tmp_path / "gitconfig").write_text("[user]\nuseConfigOnly = true\n")
    said = refused(built, f"pages:{bare}")
    assert "git does not know your name; run `git config --global user.name NAME`" in said
    monkeypatch.setattr(places, "LARGEST", 10)
    assert "GitHub takes files up to 100; submit it without --tokens" in refused(built, f"pages:{bare}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(built, f"pages:{bare}").startswith("pages: needs the program `git`, which is not on the PATH")


# --- the Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub() as made:
        yield made


def to_hub(hub: Hub, board: Path, home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HARNESS_", "HF_"))},
        **{"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
        **more,
    }
    code = "from harness.cli import main; main()"
    command = [sys.executable, "-c", code, "publish", str(board), "--to", "hub:me/board", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    return done


def test_a_dataset_of_the_hub_gets_the_board_in_one_commit_with_the_token_in_the_headers_alone(board, hub, tmp_path):
    home = tmp_path / "home"
    done = to_hub(hub, board, home, "--dry-run", "--private")
    assert done.returncode == 0, done.stderr
    assert "me/board" not in hub.repos
    assert {method for method, *_ in hub.asked} == {"GET"}
    done = to_hub(hub, board, home, "--private", "--license", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"to: dataset me/board at {hub.url}"
    assert done.stdout.splitlines()[-1] == f"published: see {hub.url}/datasets/me/board"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert {token for _, path, token in hub.asked if path.startswith(("/api/repos", "/api/datasets"))} == {f"Bearer {TOKEN}"}
    there = dict(hub.repos["me/board"])
    assert there.pop(".gitattributes")
    assert there.pop("PUBLISHED.json")
    card = there["README.md"].decode()
    mine = expected(board)
    assert card.endswith(mine["README.md"].decode())
    assert {**there, "README.md": b""} == {**mine, "README.md": b""}
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "cc-by-4.0"
    assert "leaderboard" in head["tags"]
    assert "nothing to do" in to_hub(hub, board, home, "--license", "cc-by-4.0").stdout
    shutil.rmtree(board / "results" / "toy" / "toy" / "coin")
    assert cli("leaderboard", "build", "--output", board) == 0
    assert to_hub(hub, board, home, "--license", "cc-by-4.0").returncode == 0
    message, _, removed = hub.commits[1]
    assert message == "Publish the leaderboards: 1 results"
    assert all(name.startswith(("results/toy/toy/coin/", "pages/toy/")) for name in removed)
    assert {*hub.repos["me/board"]} == {*expected(board), ".gitattributes", "PUBLISHED.json"}


def test_the_card_makes_every_results_tables_one_data_set(built, tmp_path):
    from datasets import load_dataset

    copy = shutil.copytree(built, tmp_path / "repo")
    (copy / "README.md").write_bytes(harness_publish.hub.card({n: built / n for n in files(built)}, None))
    found = load_dataset(str(copy), "per_sample", cache_dir=str(tmp_path / "cache"))["train"]
    assert len(found) == 2 * 2 * 40 * 3
    assert set(found["layer"]) == {None, "3"}


@pytest.mark.parametrize(
    ("part", "status", "said", "do"),
    [
        ("/api/repos/create", 403, "You have no right here", "set HF_TOKEN to a token that may write there"),
        ("/commit/", 412, "A commit has happened since", "somebody may have changed it in the meantime"),
    ],
)
def test_what_the_hub_refuses_is_one_line(built, hub, tmp_path, part, status, said, do):
    hub.refuse[part] = (status, f"{said}, {TOKEN}")
    done = to_hub(hub, built, tmp_path / "home")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: dataset me/board at {hub.url} refused ({status}); ")
    assert said in line and do in line
    assert not hub.commits


def test_others_work_on_the_hub_stays_and_files_that_did_not_arrive_are_told(built, hub, tmp_path):
    hub.put("me/board", {"train.csv": b"1"})
    done = to_hub(hub, built, tmp_path / "home")
    assert done.returncode == 2
    assert "holds 1 file (train.csv) that `harness publish` did not write" in done.stderr
    hub.ignore = {"index.html"}
    done = to_hub(hub, built, tmp_path / "home", "--overwrite")
    assert done.returncode == 2
    assert "does not hold 1 of " in done.stderr
    assert "the first is index.html; is there a .gitignore in the repository?" in done.stderr
    assert hub.repos["me/board"]["train.csv"] == b"1"


def test_without_a_token_or_where_the_hub_is_not_to_be_asked_nothing_is_sent(built, hub, refused, tmp_path, monkeypatch):
    done = to_hub(hub, built, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: HF_HUB_OFFLINE is set; dataset me/board at {hub.url} is not asked; unset it to publish there\n"
    )
    assert not hub.asked
    monkeypatch.setattr(harness_publish.hub, "get_token", lambda: None)
    assert "run `hf auth login`, or set HF_TOKEN to a token that may write there" in refused(built, "hub:me/board")
    assert refused(built, "hub:board") == "bad name 'board' of a Hub repository; write --to hub:OWNER/NAME"


def test_a_hub_that_does_not_answer_is_one_line(built, hub, tmp_path):
    done = to_hub(hub, built, tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: dataset me/board at http://127.0.0.1:9 cannot be written; ")


def test_the_help_shows_an_example_of_every_place(capsys):
    assert cli("publish", "--help") == 0
    said = capsys.readouterr().out
    for example in ("--to ../site", "--to pages:git@github.com:OWNER/NAME.git --dry-run", "--to hub:OWNER/NAME"):
        assert f"harness publish leaderboards {example}" in said
