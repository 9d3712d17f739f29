"""Names, texts and numbers made fit for a page: short, harmless, the same every time. The templates escape; this cuts and shows."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from typing import Any

from markupsafe import Markup

TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with what moves a cursor or turns the reading order shown by its number."""
    text = TURNS.sub(lambda found: f"[U+{ord(found.group()):04X}]", text.replace("\r\n", "\n"))
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cs":
        return "\ufffd"
    return f"[U+{ord(character):04X}]" if kind == "Cc" and character not in "\n\t" else character


def line(text: object, limit: int = 80) -> str:
    """A name as one harmless line of at most `limit` characters, the middle left out."""
    one = " ".join(visible(str(text)[: 4 * limit] if len(str(text)) > 8 * limit else str(text)).split())
    return one if len(one) <= limit else f"{one[: limit * 2 // 3]}…{one[-(limit // 3 - 1) :]}"


def file_name(text: object, unique: object = "") -> str:
    """A file name of letters, digits and dashes; `unique`, or what was lost of the text, as a hash behind it."""
    kept = re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")[:40].strip("-")
    if unique == "" and kept == str(text):
        return kept
    return f"{kept or 'x'}-{hashlib.sha256(f'{text}|{unique}'.encode('utf-8', 'replace')).hexdigest()[:8]}"


def number(value: float | None, digits: int = 4) -> float | None:
    """The value in so many figures; None where it is no number: JSON has none."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def data(value: Any) -> Markup:
    """JSON that may stand in a script element: no `<`, `>` or `&`, no line separator of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text.encode("utf-8", "replace").decode())  # noqa: S704 - no character of markup is left
