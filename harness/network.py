"""The network: does a host answer, may it be asked, a file fetched with resume and checksum, a zip unpacked without trusting it.

Libraries retry for half a minute each where nothing answers; here one attempt of three seconds decides. An interrupted download lies
in `<target>.part` and goes on from there.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import sys
import threading
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import click

from harness.errors import HarnessError

SECONDS = 3.0
TRANSFER_SECONDS = 30.0
CHUNK = 1 << 20


def unreachable(url: str) -> str | None:
    """Why `url` (http or https) does not answer, after one attempt of at most three seconds, name lookup included; None if it does."""
    if not url.startswith(("http://", "https://")):
        return f"{url!r} is not an http address"
    causes: list[str | None] = []

    def attempt() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the scheme is checked above
            with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310 - as above
                causes.append(None)
        except (
            urllib.error.HTTPError
        ) as cause:  # a host that refuses this request has answered; a gateway's 5xx is not the host
            causes.append(None if cause.code < 500 else str(cause))
        except (OSError, HTTPException, ValueError) as cause:
            causes.append(str(cause))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return causes[0] if causes else f"no answer in {SECONDS:g} s"


def refusal(policy: str, question: str, amount: str, url: str) -> str | None:
    """Why `amount` may not be downloaded from `url`, and what to do about it; None if it may. policy: ask, always or never.

    "ask" asks the question in a terminal; elsewhere nothing is downloaded that was not asked for.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return f"HF_HUB_OFFLINE is set: unset it to let the harness download {amount}"
    if policy == "never":
        return f"downloads are off (`never`): set HARNESS_DOWNLOAD=always to let the harness download {amount}"
    if policy == "ask" and not (sys.stdin.isatty() and sys.stderr.isatty()):
        return f"set HARNESS_DOWNLOAD=always to let the harness download {amount}"
    if cause := unreachable(url):
        host = "/".join(url.split("/")[:3])
        return f"{host}, which has them ({amount}), cannot be reached ({cause})"
    if policy == "ask" and not click.confirm(question, err=True):
        return f"the download of {amount} was declined"
    return None


@contextmanager
def download_bar(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Shows bytes on stderr: call what it gives with the number of bytes done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)


def fetch(
    url: str,
    target: Path,
    size: int | None = None,
    sha256: str | None = None,
    report: Callable[[int], object] = lambda done: None,
) -> None:
    """Downloads `url` to `target`, going on from `<target>.part`; a cut connection is taken up again as long as bytes arrive.

    With `sha256` (and `size`) the file must be that one; one that is not is removed, so that the next attempt starts afresh.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = part.stat().st_size if part.exists() else 0
        total, cause = _continue(url, part, before, report)
        done = part.stat().st_size if part.exists() else 0
        if total is not None and done >= total:
            break
        if done <= before:
            raise HarnessError(
                f"the download of {url} stopped at {done:,} bytes ({cause}); run the same command again to resume"
            )
    if sha256 is not None:
        _verify(part, url, size, sha256)
    part.replace(target)


def _continue(url: str, part: Path, start: int, report: Callable[[int], object]) -> tuple[int | None, str]:
    """Appends what the server sends from byte `start` on; returns the size of the whole (None: unknown) and what went wrong."""
    request = _request(url, {"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TRANSFER_SECONDS) as answer:  # noqa: S310 (see _request)
            start = start if answer.status == 206 else 0
            total = start + int(answer.headers["Content-Length"])
            with part.open("r+b" if part.exists() else "wb") as file:
                file.seek(start)
                file.truncate()
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    report(file.tell())
            return total, "the connection was cut"
    except urllib.error.HTTPError as cause:
        if cause.code != 416:  # 416: there is nothing from byte `start` on
            return None, str(cause)
        if cause.headers.get("Content-Range") == f"bytes */{start}":
            return start, ""
        part.unlink()
        return None, "what was there is longer than the file, and was removed"
    except (OSError, http.client.HTTPException, TypeError) as cause:  # TypeError: no Content-Length
        return None, str(cause)


def _verify(part: Path, url: str, size: int | None, sha256: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    there = part.stat().st_size
    if found != sha256 or size not in (None, there):
        part.unlink()
        wanted = sha256 if size is None else f"{size:,} bytes with {sha256}"
        raise HarnessError(
            f"{url} is not the official file: {there:,} bytes with SHA-256 {found}, expected {wanted}; it was removed; "
            f"try again, or fetch it from another network"
        )


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpacks the `wanted` members; each appears under its name only when complete. CRCs are checked by zipfile.

    An archive with any absolute path, `..` or link is refused before anything is written.
    """
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                _refuse_unsafe(member, archive)
            for member in members.infolist():
                if not member.is_dir() and wanted(member.filename):
                    _unpack_one(members, member, folder / member.filename)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as cause:  # damaged, strange or encrypted
        raise HarnessError(f"{archive} is not a sound zip archive: {cause}; remove it and run the command again") from cause


def _refuse_unsafe(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if link or path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise HarnessError(
            f"{archive} has a member that may point outside: {member.filename!r}; nothing was unpacked; remove it"
        )


def _unpack_one(members: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    if target.exists() and target.stat().st_size == member.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with members.open(member) as source, part.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
    part.replace(target)


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    """A request over http or https: no other scheme, whatever a data file says."""
    if not url.startswith(("http://", "https://")):
        raise HarnessError(f"cannot download {url!r}; it is not an http address; mend the file that names it")
    return urllib.request.Request(url, headers=headers)  # noqa: S310 (the scheme is checked above)
