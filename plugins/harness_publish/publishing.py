"""What publishing a board changes at a place, decided before anything is written; the same rules for a folder, a branch and the Hub.

A place holds PUBLISHED.json: the files that were published there, with their hashes. Files that are not in it are other people's: they
stay, and are never in the same place as the first of ours unless asked for. The second time, nothing is to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from harness.api import HarnessError

RECORD = "PUBLISHED.json"
Content = Path | bytes


class Marks(NamedTuple):
    """A file's sha256, and the id that git gives it."""

    sha256: str
    git: str


@dataclass(frozen=True)
class There:
    """A place as it is: file -> sha256 or git id ("" = not looked at, or no plain file); the text of PUBLISHED.json, if there is one."""

    files: Mapping[str, str]
    record: bytes | None


@dataclass(frozen=True)
class Change:
    """What is to be written, PUBLISHED.json last, and removed; what of it replaces others' work; what stays."""

    write: Mapping[str, Content]
    remove: tuple[str, ...]
    same: int
    replaced: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        """Whether the place has it all."""
        return not self.write and not self.remove

    def size(self) -> int:
        """Bytes to write."""
        return sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in self.write.values())


class Place(Protocol):
    """Where a board goes. `shown`: its name for people, without secrets."""

    @property
    def shown(self) -> str:
        """See above."""
        ...

    def files(self, board: Mapping[str, Path]) -> Mapping[str, Content]:
        """What a board is there: its files, and what the place needs beside them."""
        ...

    def look(self, wanted: Iterable[str]) -> There:
        """What is there; hashes at least of the wanted files and of those in its PUBLISHED.json. Writes nothing."""
        ...

    def write(self, change: Change, message: str) -> str:
        """Makes the change, and says how it can be seen."""
        ...


def plain_file(path: Path) -> bool:
    """Whether it is a file and no link to one."""
    return path.is_file() and not path.is_symlink()


def marks(content: Content) -> Marks:
    """The hashes of a file."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    git = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False)
    return Marks(hashlib.sha256(data).hexdigest(), git.hexdigest())


def read_record(text: bytes | None, where: str) -> dict[str, Marks]:
    """The files that PUBLISHED.json names."""
    if text is None:
        return {}
    try:
        read: Any = json.loads(text)
        return {str(name): Marks(str(found["sha256"]), str(found["git"])) for name, found in read["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(
            f"{RECORD} of {where} is not one that `harness publish` wrote; what is ours there is not known; "
            "look at it, and remove it or choose another place"
        ) from error


def compare(ours: Mapping[str, Content], there: There, where: str, overwrite: bool) -> Change:
    """What has to be done; raises where that would mix with or replace what others wrote, unless `overwrite`."""
    mine = {name: marks(content) for name, content in ours.items()}
    text = json.dumps({"schema_version": 1, "files": {n: m._asdict() for n, m in sorted(mine.items())}}, indent=1).encode()
    before = read_record(there.record, where)
    files = {name: found for name, found in there.files.items() if name != RECORD}
    same = {name for name in mine if files.get(name) in mine[name]}
    replaced = [n for n in mine if n in files and n not in same and files[n] not in before.get(n, ())]
    stale = [n for n in before if n in files and n not in mine]
    replaced += [n for n in stale if files[n] not in before[n]]
    others = [name for name in files if name not in mine and name not in before]
    _refuse_in_the_way(mine, set(files) - set(stale), where)
    if there.record is None and others and not overwrite:
        raise HarnessError(
            f"{where} holds {some(others)} that `harness publish` did not write; choose an empty place, "
            "or publish beside them with --overwrite"
        )
    if replaced and not overwrite:
        raise HarnessError(
            f"{where} holds {some(replaced)} that others wrote or changed; nothing is replaced; look there, then use --overwrite"
        )
    write = {name: content for name, content in ours.items() if name not in same}
    if there.record != text:
        write[RECORD] = text
    return Change(write, tuple(stale), len(same), tuple(replaced), tuple(others))


def _refuse_in_the_way(mine: Iterable[str], there: set[str], where: str) -> None:
    """A file where a folder of ours goes, or the other way round, cannot be written around."""
    folders = {parent.as_posix() for name in there for parent in Path(name).parents}
    for name in mine:
        above = next((p.as_posix() for p in Path(name).parents if p.as_posix() in there), name if name in folders else None)
        if above is not None:
            raise HarnessError(f"{where} has {above!r} in the way of {name!r}; move it away, or choose another place")


def some(names: Iterable[str], most: int = 3) -> str:
    """`4 files (a, b, c, ...)`."""
    listed = list(names)
    word = "file" if len(listed) == 1 else "files"
    return f"{len(listed)} {word} ({', '.join(listed[:most])}{', ...' if len(listed) > most else ''})"
