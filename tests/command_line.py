"""The command line called in the test's own process."""

from __future__ import annotations

from harness.cli import main


def cli(*words: object) -> int:
    """The exit code of `harness` with these words."""
    try:
        main([str(word) for word in words])
    except SystemExit as done:
        return int(done.code or 0)
    return 0
