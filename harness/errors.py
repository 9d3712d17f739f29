"""The one error type a user ever sees, and the near-match wording that every unknown name gets.

A `HarnessError` is printed as one line and ends the command with exit code 2. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """A mistake the user can mend: what was wrong; where; what is allowed or the nearest match; what to do."""


def unknown(what: str, name: str, allowed: Iterable[str], where: str = "", hint: str = "") -> HarnessError:
    """The error for a name that is not one of `allowed`: nearest matches first, then the whole list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    parts = [f"unknown {what} {name!r}" + (f" in {where}" if where else "")]
    if near:
        parts.append("did you mean " + " or ".join(near) + "?")
    parts.append("there are: " + ", ".join(names) if names else "there are none")
    return HarnessError("; ".join([*parts, hint] if hint else parts))
