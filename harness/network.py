"""One question to the network: does it answer? Libraries retry for half a minute each when it does not."""

from __future__ import annotations

import threading
import urllib.request
from http.client import HTTPException

SECONDS = 3.0


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
        except (OSError, HTTPException, ValueError) as cause:
            causes.append(str(cause))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return causes[0] if causes else f"no answer in {SECONDS:g} s"
