"""Where the Broden layout lies, and how it gets there: by hand, or with the user's consent from its official place.

No size and no checksum of the archives is published: the length is the server's, every member's CRC is checked, and the option
`sha256` compares the whole.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

from harness.api import HarnessError, download_bar, fetch, refusal, unpack, unreachable

HOST = "http://netdissect.csail.mit.edu"
SIZES = (224, 227, 384)


def layout(folder: str | None, policy: str, size: int, sha256: str | None) -> Path:
    """The folder that holds index.csv: `folder` (default `$HARNESS_DATA/broden`), or broden1_<size> below it, the asked size first."""
    if folder is None and not os.environ.get("HARNESS_DATA"):
        raise HarnessError(
            f"data set broden has no folder; neither the option `folder` nor HARNESS_DATA is set; set HARNESS_DATA to a folder "
            f"with broden/, where {url(size)} is unpacked"
        )
    root = (Path(folder) if folder is not None else Path(os.environ["HARNESS_DATA"]) / "broden").expanduser().absolute()
    sizes = sorted(SIZES, key=lambda each: (each != size, each))
    places = [root, *(root / f"broden1_{each}" for each in sizes)]
    there = next((place for place in places if (place / "index.csv").is_file()), None)
    if there is not None:
        return there
    _agree(root, policy, size)
    return _fetched(root, size, sha256)


def url(size: int) -> str:
    """The official archive of images of this size."""
    return f"{HOST}/data/broden1_{size}.zip"


def _agree(root: Path, policy: str, size: int) -> None:
    """Returns if the archive may be downloaded; else raises the line that says where it belongs."""
    question = f"Broden is not in {root}. Download {url(size)} there (gigabytes)?"
    if why := refusal(policy, question, "the archive", url(size)):
        raise HarnessError(
            f"no Broden in {root}: no index.csv there or in {root.name}/broden1_{size}; {why}; or unpack {url(size)} in {root}, "
            f"or name another folder with HARNESS_DATA or the option `folder`"
        )


def _fetched(root: Path, size: int, sha256: str | None) -> Path:
    """The archive fetched and unpacked below `root`; index.csv comes last, so that half an archive is never taken for all."""
    archive = root / ".downloads" / f"broden1_{size}.zip"
    target, index = root / f"broden1_{size}", f"broden1_{size}/index.csv"
    if not archive.exists():
        with download_bar(archive.name, length(url(size))) as report:
            fetch(url(size), archive, sha256=sha256, report=report)
    unpack(archive, root, lambda member: member.startswith(f"broden1_{size}/") and member != index)
    unpack(archive, root, lambda member: member == index)
    if not (target / "index.csv").is_file():
        raise HarnessError(f"{archive} holds no {index}; it is not the official archive; remove it")
    archive.unlink()
    return target


def length(address: str) -> int | None:
    """The size the server announces, in bytes; None where it does not."""
    if unreachable(address):
        return None
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the scheme is HOST's
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - as above
        announced = answer.headers.get("Content-Length")
    return int(announced) if announced else None
