"""The certificate of a plugin: what was checked, of which source, with which harness; and its badge. A certificate holds as long as
the plugin's Python files are the ones it was made for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from harness.api import Certificate, HarnessError, write_atomic
from harness_certify.examine import Examined, first_failure

SCHEMA = 1
WIDTH = 6.6
"""Pixels of a letter of the badge."""


def certificate(registry: Any, plugin: str, found: Sequence[Examined], seconds: float, only: str | None) -> dict[str, Any]:
    """The certificate as data. Certified: nothing failed, and where the plugin offers parts, one of them at least was checked.

    `parts_checked` counts those whose contract was asked; of the others their skips say why not.
    """
    parts = [one for one in found if one.part]
    asked = [one for one in parts if one.asked]
    checks = [check for one in found for check in one.checks]
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("pass", "fail", "skip")}
    return {
        "schema": SCHEMA,
        **registry.source(plugin),
        "harness": version("concept-harness"),
        "certified": count["fail"] == 0 and count["pass"] > 0 and bool(asked or not parts),
        "parts_checked": len(asked),
        "parts_offered": len(parts),
        "only": only,
        "counts": count,
        "faults": {
            "planted": sum(one.faults.get("planted", 0) for one in found),
            "caught": sum(len(one.faults.get("caught", ())) for one in found),
        },
        "parts": [
            {
                "part": one.part or None,
                "checks": [check._asdict() for check in one.checks],
                "cost": one.cost or None,
                "faults": one.faults or None,
            }
            for one in found
        ],
        "seconds": round(seconds, 1),
    }


def short(made: dict[str, Any], found: Sequence[Examined]) -> Certificate:
    """What a board needs to know."""
    parts = tuple(sorted({one.part.partition(":")[0] for one in found if one.part and one.asked}))
    unchecked = made["counts"]["fail"] == 0 and made["parts_offered"] > 0 and not parts
    return Certificate(made["sha256"], None if unchecked else made["certified"], made["version"], parts)


def write(made: dict[str, Any], folder: Path) -> None:
    """certificate.json and badge.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "certificate.json", (json.dumps(made, indent=1) + "\n").encode())
    write_atomic(folder / "badge.svg", badge(made).encode())


def badge(made: dict[str, Any]) -> str:
    """SVG: `<plugin> | certified <first letters of the source's hash>`; the same certificate gives the same bytes."""
    left = str(made["plugin"])
    right = f"certified {made['sha256'][:7]}" if made["certified"] else "not certified"
    a, b = (round(len(text) * WIDTH + 14) for text in (left, right))
    colour = "#2e7d32" if made["certified"] else "#b71c1c"
    title = escape(f"{left}: {right}, harness {made['harness']}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">\n'
        f"<title>{title}</title>\n"
        f'<rect width="{a}" height="20" fill="#424242"/><rect x="{a}" width="{b}" height="20" fill="{colour}"/>\n'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{a / 2:g}" y="14">{escape(left)}</text><text x="{a + b / 2:g}" y="14">{escape(right)}</text></g>\n</svg>\n'
    )


def read(path: Path) -> dict[str, Any]:
    """A certificate from its file, checked."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HarnessError(f"no certificate {path}; {error.strerror}; write one with `harness certify PLUGIN`") from error
    except ValueError as error:
        raise HarnessError(f"{path} is not JSON; {error}; write it anew with `harness certify PLUGIN`") from error
    needed = ("schema", "plugin", "sha256", "harness", "certified", "only")
    lacks = [key for key in needed if not isinstance(made, dict) or key not in made]
    if lacks or made["schema"] != SCHEMA:
        what = f"lacks {', '.join(lacks)}" if lacks else f"is of schema {made['schema']}, this harness writes {SCHEMA}"
        raise HarnessError(f"{path} is no certificate; it {what}; write it anew with `harness certify PLUGIN`")
    return dict(made)


def holds(made: dict[str, Any], source: dict[str, str | None]) -> str | None:
    """None where a certificate holds for a plugin's source as it is now, else why it does not."""
    if made["plugin"] != source["plugin"]:
        return f"it is of plugin {made['plugin']!r}, not of {source['plugin']!r}"
    if made["sha256"] != source["sha256"]:
        return f"the source has changed: {made['sha256'][:12]} then, {str(source['sha256'])[:12]} now"
    return None if made["certified"] else "it says `not certified`"


def verdict(made: dict[str, Any], found: Sequence[Examined]) -> str:
    """One line: certified, or the first check that failed and what to do."""
    count, faults = made["counts"], made["faults"]
    failed = first_failure(found)
    if failed is not None:
        one, check = failed
        what = one.part or f"plugin {made['plugin']}"
        return f"not certified: {what}, check `{check.name}`: {check.reason}; mend it and certify again"
    if not made["certified"]:
        n = made["parts_offered"]
        return (
            f"not certified: none of the {n} parts of {made['plugin']} could be checked here; name those you have with --part"
        )
    caught = f"; {faults['caught']} of {faults['planted']} planted faults caught" if faults["planted"] else ""
    parts = f"{made['parts_checked']} of {made['parts_offered']} parts, " if made["parts_offered"] else ""
    return f"certified: {made['plugin']}, {parts}{count['pass']} checks passed, {count['skip']} skipped{caught}; source {made['sha256'][:12]}"
