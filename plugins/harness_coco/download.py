"""Fetches missing parts of COCO 2017 with progress, resume and checksums, and unpacks them without trusting the archive.

Sizes and SHA-256 of the three archives are those recorded by TensorFlow Datasets (url_checksums/coco.txt). Single images have
no published checksum: they must have the announced length and begin as a JPEG. train2017.zip (19 GB) is never fetched.
Unfinished work lies in `<folder>/.downloads`; images move to their place only when all of them have arrived.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from harness.api import HarnessError, unreachable

HOST = "http://images.cocodataset.org"
IMAGE_BYTES = 163_500  # mean size of a train2017 image: train2017.zip has 19,336,861,798 bytes and 118,287 images
TRANSFER_SECONDS = 30.0
CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """An official zip: path below HOST, size in bytes, SHA-256."""

    path: str
    size: int
    sha256: str

    @property
    def url(self) -> str:
        """Where it is fetched from."""
        return f"{HOST}/{self.path}"


ARCHIVES = {
    "val2017": Archive("zips/val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "instances": Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    "panoptic": Archive(
        "annotations/panoptic_annotations_trainval2017.zip",
        860_725_834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
    ),
}


class Downloads:
    """Downloads into one COCO folder, once the user has agreed. policy: "ask" | "always" | "never"."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.folder = folder
        self.policy = policy
        self.unfinished = folder / ".downloads"
        self.allowed = False

    def allow(self, missing: str, size: int) -> None:
        """Returns if `size` bytes may be downloaded, asking at most once; else raises the line that says what is missing."""
        if self.allowed:
            return
        amount = f"about {size / 1e9:.1f} GB" if size >= 5e8 else f"about {max(size / 1e6, 0.1):.1f} MB"
        if refusal := self._refusal(missing, amount):
            raise HarnessError(
                f"COCO 2017 is incomplete: {missing}; looked in {self.folder}; {refusal}; or put the official files "
                f"(https://cocodataset.org/#download) there, or name another folder with HARNESS_DATA or the option `folder`"
            )
        self.allowed = True

    def _refusal(self, missing: str, amount: str) -> str | None:
        """Why nothing may be downloaded, and what to do about it; None if it may."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            return f"HF_HUB_OFFLINE is set: unset it to let the harness download {amount}"
        if self.policy == "never":
            return f"downloads are off (`never`): set HARNESS_DOWNLOAD=always to let the harness download {amount}"
        if self.policy == "ask" and not (sys.stdin.isatty() and sys.stderr.isatty()):
            return f"set HARNESS_DOWNLOAD=always to let the harness download {amount}"
        if cause := unreachable(ARCHIVES["val2017"].url):
            return f"{HOST}, which has them ({amount}), cannot be reached ({cause})"
        question = f"COCO 2017: {missing} in {self.folder}. Download {amount} there?"
        if self.policy == "ask" and not click.confirm(question, err=True):
            return f"the download of {amount} was declined"
        return None

    def archive(self, part: str, wanted: Callable[[str], bool]) -> None:
        """Fetches an official zip and unpacks its `wanted` members into the folder, over nothing that is there."""
        archive, target = ARCHIVES[part], self.unfinished / f"{part}.zip"
        if not target.exists():
            with _progress() as progress:
                task = progress.add_task(archive.path.rpartition("/")[2], total=archive.size)
                fetch(archive.url, target, archive, lambda done: progress.update(task, completed=done))
        unpack(target, self.unfinished / part, wanted)
        self._move(self.unfinished / part, self.folder)
        target.unlink()

    def images(self, name: str, images: Sequence[tuple[str, str]]) -> None:
        """Fetches single images, (url, file name) each, into the folder's subfolder `name`, eight at a time."""
        staging = self.unfinished / name
        with _progress() as progress, ThreadPoolExecutor(8) as pool:
            task = progress.add_task(f"{name}: {len(images):,} images", total=len(images) * IMAGE_BYTES)
            jobs = [pool.submit(_fetch_image, url, staging / file_name) for url, file_name in images]
            try:
                for job in jobs:
                    job.result()
                    progress.advance(task, IMAGE_BYTES)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._move(staging, self.folder / name)

    def _move(self, staging: Path, folder: Path) -> None:
        """Moves every staged file to its place below `folder`, unless one is there, and clears the staging folder."""
        for file in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = folder / file.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                file.replace(target)
        shutil.rmtree(staging, ignore_errors=True)


def fetch(url: str, target: Path, archive: Archive | None = None, report: Callable[[int], object] = lambda done: None) -> None:
    """Downloads `url` to `target`, going on from `<target>.part`; a cut connection is taken up again as long as bytes arrive.

    With `archive`, size and SHA-256 must be those; a file that fails is removed, so that the next attempt starts afresh.
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
    if archive is not None:
        _verify(part, url, archive)
    part.replace(target)


def _continue(url: str, part: Path, start: int, report: Callable[[int], object]) -> tuple[int | None, str]:
    """Appends what the server sends from byte `start` on; returns the size of the whole (None: unknown) and what went wrong."""
    request = _request(url, headers={"Range": f"bytes={start}-"} if start else {})
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


def _verify(part: Path, url: str, archive: Archive) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if (part.stat().st_size, found) != (archive.size, archive.sha256):
        size = part.stat().st_size
        part.unlink()
        raise HarnessError(
            f"{url} is not the official file: {size:,} bytes with SHA-256 {found}, expected {archive.size:,} bytes with "
            f"{archive.sha256}; it was removed; try again, or fetch it from another network"
        )


def _fetch_image(url: str, target: Path) -> None:
    if target.exists():
        return
    arrived = target.with_name(target.name + ".unchecked")
    fetch(url, arrived)
    with arrived.open("rb") as file:
        start = file.read(2)
    if start != b"\xff\xd8":
        arrived.unlink()
        raise HarnessError(f"{url} is not a JPEG image; it was removed; try again, or fetch it from another network")
    arrived.replace(target)


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
    except zipfile.BadZipFile as cause:
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


def _request(url: str, **options: object) -> urllib.request.Request:
    """A request over http or https: no other scheme, whatever an annotation file says."""
    if not url.startswith(("http://", "https://")):
        raise HarnessError(f"cannot download {url!r}: not an http address; mend `coco_url` of that image")
    return urllib.request.Request(url, **options)  # type: ignore[arg-type]  # noqa: S310 (the scheme is checked above)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
