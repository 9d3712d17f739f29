"""Which parts of COCO 2017 are fetched, once the user has agreed, and how they come to their place; the fetching is the core's.

Sizes and SHA-256 of the three archives are those recorded by TensorFlow Datasets (url_checksums/coco.txt). Single images have
no published checksum: they must have the announced length and begin as a JPEG. train2017.zip (19 GB) is never fetched.
Unfinished work lies in `<folder>/.downloads`; images move to their place only when all of them have arrived.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.api import HarnessError, download_bar, fetch, refusal, unpack

HOST = "http://images.cocodataset.org"
IMAGE_BYTES = 163_500  # mean size of a train2017 image: train2017.zip has 19,336,861,798 bytes and 118,287 images


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
        question = f"COCO 2017: {missing} in {self.folder}. Download {amount} there?"
        if why := refusal(self.policy, question, amount, ARCHIVES["val2017"].url):
            raise HarnessError(
                f"COCO 2017 is incomplete: {missing}; looked in {self.folder}; {why}; or put the official files "
                f"(https://cocodataset.org/#download) there, or name another folder with HARNESS_DATA or the option `folder`"
            )
        self.allowed = True

    def archive(self, part: str, wanted: Callable[[str], bool]) -> None:
        """Fetches an official zip and unpacks its `wanted` members into the folder, over nothing that is there."""
        archive, target = ARCHIVES[part], self.unfinished / f"{part}.zip"
        if not target.exists():
            with download_bar(archive.path.rpartition("/")[2], archive.size) as report:
                fetch(archive.url, target, archive.size, archive.sha256, report)
        unpack(target, self.unfinished / part, wanted)
        self._move(self.unfinished / part, self.folder)
        target.unlink()

    def images(self, name: str, images: Sequence[tuple[str, str]]) -> None:
        """Fetches single images, (url, file name) each, into the folder's subfolder `name`, eight at a time."""
        staging = self.unfinished / name
        what = f"{name}: {len(images):,} images"
        with download_bar(what, len(images) * IMAGE_BYTES) as report, ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(_fetch_image, url, staging / file_name) for url, file_name in images]
            try:
                for done, job in enumerate(jobs, start=1):
                    job.result()
                    report(done * IMAGE_BYTES)
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
