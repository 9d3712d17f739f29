"""Places a board is published to: a folder, and a branch of a git repository (GitHub Pages). The Hub is `hub.py`.

git is the program of that name, in a temporary clone: history is added to, and never replaced.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from harness.api import HarnessError, check_output, unknown, write_atomic
from harness_publish.publishing import RECORD, Change, Content, Place, There, marks, plain_file, read_record

KINDS = ("folder", "pages", "hub")
LARGEST = 100 * 2**20
"""GitHub takes no larger file."""


def place_of(target: str, branch: str, private: bool, licence: str | None, stack: ExitStack) -> Place:
    """The place that `--to` names; what it needs while it is used is closed with the stack."""
    kind, colon, rest = target.partition(":")
    if re.match(r"(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:", target):
        raise HarnessError(
            f"--to {shown_url(target)} is an address; write pages:{shown_url(target)} to push to its branch {branch}"
        )
    if colon and kind not in KINDS and re.fullmatch(r"[A-Za-z]\w+", kind):
        raise unknown("place", kind, KINDS, "--to", hint="write folder:PATH, pages:URL or hub:OWNER/NAME")
    if kind in KINDS and colon and not rest:
        raise HarnessError(f"--to {target} names no place; write folder:PATH, pages:URL or hub:OWNER/NAME")
    if colon and kind == "pages":
        return Pages(rest, branch, stack)
    if colon and kind == "hub":
        from harness_publish.hub import Hub

        return Hub(rest, private, licence, stack)
    return Folder(Path(rest if colon and kind == "folder" else target).expanduser().absolute())


class Folder:
    """A folder of this machine, or one that is mounted here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = f"folder {path}"

    def files(self, board: Mapping[str, Path]) -> Mapping[str, Content]:
        """The board as it is."""
        return board

    def look(self, wanted: Iterable[str]) -> There:
        """Every file but those of git; links count as files of others."""
        if self.path.exists() and not self.path.is_dir():
            raise HarnessError(f"{self.path} is a file; --to takes a folder")
        record = (self.path / RECORD).read_bytes() if (self.path / RECORD).is_file() else None
        known = {*wanted, *read_record(record, self.shown)}
        found = {}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            plain = plain_file(path)
            if name.partition("/")[0] != ".git" and (plain or path.is_symlink()):
                found[name] = marks(path).sha256 if plain and name in known else ""
        return There(found, record)

    def write(self, change: Change, message: str) -> str:
        """Every file whole or not at all; PUBLISHED.json last, so that a publication that was cut short goes on."""
        check_output(self.path)
        for name, content in change.write.items():
            write_atomic(self.path / name, content if isinstance(content, bytes) else content.read_bytes())
        for name in change.remove:
            (self.path / name).unlink()
            for parent in (self.path / name).parents:
                if parent == self.path or any(parent.iterdir()):
                    break
                parent.rmdir()
        return f"open {self.path / 'index.html'}"


class Pages:
    """A branch of a git repository, as GitHub Pages serves it."""

    def __init__(self, url: str, branch: str, stack: ExitStack) -> None:
        if shutil.which("git") is None:
            raise HarnessError("pages: needs the program `git`, which is not on the PATH; install it, or publish to a folder")
        if url.startswith("-") or not re.fullmatch(r"[\w][\w./-]*", branch):
            raise HarnessError(f"bad address or branch {shown_url(url)!r}, {branch!r}; write --to pages:URL --branch gh-pages")
        self.url = str(Path(url).expanduser().absolute()) if Path(url).expanduser().is_dir() else url
        self.branch, self.shown = branch, f"branch {branch} of {shown_url(self.url)}"
        self.tree = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="harness-publish-"))))

    def files(self, board: Mapping[str, Path]) -> Mapping[str, Content]:
        """With .nojekyll: the files as they are, and nothing made of them."""
        for name, path in board.items():
            if path.stat().st_size > LARGEST:
                raise HarnessError(
                    f"{name} has {path.stat().st_size / 2**20:.0f} MB; GitHub takes files up to 100; submit it without --tokens"
                )
        return {**board, ".nojekyll": b""}

    def look(self, wanted: Iterable[str]) -> There:
        """A clone of the branch; an empty one where there is no such branch."""
        heads = self.git("ls-remote", "--heads", "--", self.url, f"refs/heads/{self.branch}")
        if heads.strip():
            self.git("clone", "-q", "--single-branch", "--branch", self.branch, "--", self.url, ".")
        else:
            self.git("init", "-q", "-b", self.branch)
            self.git("remote", "add", "--", "origin", self.url)
        return self.tree.look(wanted)

    def write(self, change: Change, message: str) -> str:
        """One commit on top of what is there."""
        self.tree.write(change, message)
        self.git("add", "--all", "--force")
        self.git("commit", "-q", "-m", message)
        self.git("push", "-q", "origin", f"HEAD:refs/heads/{self.branch}")
        commit = self.git("rev-parse", "--short", "HEAD").strip()
        owner = re.search(r"github\.com[:/]([\w.-]+)/([\w.-]+?)(\.git)?/?$", self.url)
        seen = f"; GitHub shows it at https://{owner[1]}.github.io/{owner[2]}/ where Pages serves this branch" if owner else ""
        return f"pushed commit {commit}{seen}"

    def git(self, *words: str) -> str:
        """The output of a git command; its last line of complaint is an error without secrets."""
        away = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX")
        environment = {name: value for name, value in os.environ.items() if name not in away}
        environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
        fixed = ["git", "-c", "core.autocrlf=false", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false"]
        done = subprocess.run(  # noqa: S603 - a list of words, no shell
            [*fixed, *words], cwd=self.tree.path, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("hint:")]
            raise HarnessError(self.complaint(words[0], [line.strip() for line in said]))
        return done.stdout

    def complaint(self, command: str, said: list[str]) -> str:
        """One line: what git says, and what to do."""
        all_of_it = " ".join(said)
        what = next(
            (line for line in said if line.startswith(("fatal:", "error:", "remote:", " !"))), said[-1] if said else "no word"
        )
        do = "look at the address, and whether `git push` works there for you"
        if "tell me who you are" in all_of_it or "empty ident" in all_of_it:
            what, do = "git does not know your name", "run `git config --global user.name NAME` and the same with user.email"
        elif "rejected" in all_of_it and ("fetch first" in all_of_it or "non-fast-forward" in all_of_it):
            what, do = "somebody pushed there in the meantime", "run the same command again"
        return f"git {command} failed for {self.shown}; {hidden(what, self.url)}; {do}"


def shown_url(url: str) -> str:
    """An address without the name and password in it."""
    return re.sub(r"://[^/@\s]+@", "://", url)


def hidden(said: str, url: str) -> str:
    """What a program says, without the secrets of the address."""
    return shown_url(said.replace(url, shown_url(url)))
