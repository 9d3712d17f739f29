"""certificates.json of a folder of boards, as `harness certify` writes it, set against the sources that results state.

A certificate is made by whoever submits it, and nothing signs it: here it is only compared (docs/trust.md). All names are untrusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.registry import KIND_OF, KINDS
from harness.results import write_atomic

CERTIFICATES = "certificates.json"
KEYS = {
    "sha256": "64 hexadecimal digits",
    "certified": "true, false or null",
    "version": "a word or null",
    "parts": "a list of words",
}


@dataclass(frozen=True)
class Certificate:
    """What is known of a plugin: its source, whether its checks passed (None: no part could be checked), and the parts checked.

    parts: `detector max`, the kind and the name of each, without argument or options.
    """

    sha256: str
    certified: bool | None
    version: str | None
    parts: tuple[str, ...]


class Code(NamedTuple):
    """Whose code one part behind a result is, as the result states it, and why it is not certified (None: it is)."""

    place: str
    part: str
    plugin: str
    version: str
    sha256: str
    why: str | None


def read_certificates(path: Path) -> dict[str, Certificate] | None:
    """Plugin -> certificate; None where there is no such file."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HarnessError(f"cannot read {path}; {error.strerror}; make it readable, or remove it") from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"not JSON: {error}") from error
    if not isinstance(read, dict):
        raise _bad(path, "it must be a mapping of plugins")
    return {name: _certificate(path, name, about) for name, about in read.items()}


def _certificate(path: Path, name: str, about: Any) -> Certificate:
    if not isinstance(about, dict):
        raise _bad(path, f"plugin {name[:40]!r} is not a mapping; its keys are {', '.join(KEYS)}")
    sha256, certified, version, parts = (about.get(key, ...) for key in KEYS)
    fits = {
        "sha256": isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256),
        "certified": certified is None or isinstance(certified, bool),
        "version": version is None or isinstance(version, str),
        "parts": isinstance(parts, list) and all(isinstance(part, str) for part in parts),
    }
    for key, fit in fits.items():
        if not fit:
            raise _bad(path, f"{key!r} of plugin {name[:40]!r} must be {KEYS[key]}")
    return Certificate(str(sha256), about["certified"], about["version"], tuple(about["parts"]))


def _bad(path: Path, what: str) -> HarnessError:
    return HarnessError(f"cannot read {path}; {what}; mend it, or write it anew with `harness certify --all -o FILE`")


def merge_certificates(path: Path, made: Mapping[str, Certificate]) -> dict[str, Certificate]:
    """Writes the certificates among those that are there, and returns all: others stay, and so do parts checked of the same source."""
    found = read_certificates(path) or {}
    for name, new in made.items():
        old = found.get(name)
        if old and old.certified and new.certified is not False and old.sha256 == new.sha256:
            new = Certificate(new.sha256, True, new.version, tuple(sorted({*old.parts, *new.parts})))
        found[name] = new
    plain = {name: asdict(one) for name, one in found.items()}
    write_atomic(path, (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode())
    return found


def code_of(read: Mapping[str, Any], certificates: Mapping[str, Certificate]) -> tuple[Code, ...]:
    """Every part of a result's recipe, its backbone and its data set; one that the result says nothing of has no plugin."""
    origin = read.get("provenance")
    stated = origin.get("plugins") if isinstance(origin, dict) else None
    stated = stated if isinstance(stated, dict) else {}
    asked = {place: read["method"][place] for place in KIND_OF if read["method"].get(place)}
    return tuple(_code(place, asked.get(place), stated.get(place), certificates) for place in (*asked, "backbone", "dataset"))


def _code(place: str, asked: str | None, stated: Any, certificates: Mapping[str, Certificate]) -> Code:
    if not isinstance(stated, dict) or (asked is not None and stated.get("part") != asked):
        return Code(place, str(asked or ""), "", "", "", "the result does not state its source")
    part, plugin, version, sha256 = (str(stated.get(key) or "") for key in ("part", "plugin", "version", "sha256"))
    kind = KINDS[KIND_OF[place]] if place in KIND_OF else place
    why = _why(certificates.get(plugin), sha256, f"{kind} {part.partition(':')[0]}")
    return Code(place, part, plugin, version, sha256, why)


def _why(certificate: Certificate | None, sha256: str, part: str) -> str | None:
    """Why a part of that source is not certified; None where it is."""
    if certificate is None:
        return "no certificate"
    if certificate.sha256 != sha256:
        return "certified for another source" if certificate.certified else "no certificate of this source"
    if certificate.certified is False:
        return "it failed its checks"
    return None if certificate.certified and part in certificate.parts else "this part was not checked"
