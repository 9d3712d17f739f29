"""Rows of a data set on the Hugging Face Hub, through the datasets library; without a network, from its cache at once.

The library itself retries for half a minute when the Hub cannot be reached, and takes another revision than the one asked for
from its cache: so one attempt of three seconds comes first, and the cached revision is compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, List
from datasets.exceptions import DatasetNotFoundError

from harness.api import HarnessError, unknown, unreachable
from harness_table.reading import Row


def read_hub(name: str, subset: str | None, revision: str | None, splits: Mapping[str, str] | None) -> list[Row]:
    """The rows of every split, each with its split: the Hub's own name, or ours where `splits` maps ours to the Hub's."""
    endpoint = datasets.config.HF_ENDPOINT
    cause = "HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else unreachable(endpoint)
    try:
        with _offline(cause is not None):
            loaded = datasets.load_dataset(name, subset, revision=revision)
    except Exception as error:  # the library's errors have no common base
        if cause is not None:
            raise HarnessError(
                f"Hub data set {name!r} is not in the cache {datasets.config.HF_DATASETS_CACHE}, and {endpoint} cannot be "
                f"reached ({cause}); connect once, or give a folder with its files as `path`"
            ) from error
        message = " ".join(str(error).split())
        if isinstance(error, DatasetNotFoundError):
            raise _refused(name, gated="gated" in message) from error
        raise HarnessError(
            f"Hub data set {name!r} cannot be loaded: {message}; see https://huggingface.co/datasets/{name}"
        ) from error
    if cause is not None and revision is not None:
        _same_revision(loaded, name, revision)
    for theirs in (splits or {}).values():
        if theirs not in loaded:
            raise unknown("split", str(theirs), loaded, where=f"Hub data set {name}")
    parts = splits or {split: split for split in loaded}
    return [row for ours, theirs in parts.items() for row in _rows(loaded[theirs], f"{name}, split {theirs}", ours)]


def _refused(name: str, gated: bool) -> HarnessError:
    """Why the Hub does not give a data set, and what to do: the library says so in its message alone."""
    page = f"https://huggingface.co/datasets/{name}"
    if gated:
        return HarnessError(
            f"Hub data set {name!r} is gated: accept its terms at {page}, then set HF_TOKEN to that account's token"
        )
    return HarnessError(
        f"no data set {name!r}: not in {datasets.config.HF_DATASETS_CACHE}, not at {datasets.config.HF_ENDPOINT}; "
        f"check the spelling, or set HF_TOKEN where it is private"
    )


def _rows(table: Dataset, source: str, split: str) -> Iterator[Row]:
    """Images stay undecoded; class labels become their names."""
    names = {column: _class_names(feature) for column, feature in table.features.items()}
    for number, values in enumerate(table.with_format("arrow")[:].to_pylist(), start=1):
        named = {column: _named(value, names[column]) for column, value in values.items()}
        yield Row(named, f"{source}, row {number}", number, None, split)


def _class_names(feature: Any) -> list[str] | None:
    inner = feature.feature if isinstance(feature, List) else feature
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    return [names[item] for item in value] if isinstance(value, list) else names[value]


def _same_revision(loaded: DatasetDict, name: str, revision: str) -> None:
    """The cache folder of a Hub data set is named by its commit."""
    for table in loaded.values():
        cached = {Path(file["filename"]).parent.name for file in table.cache_files}
        if cached != {revision}:
            raise HarnessError(
                f"without a network, revision {revision!r} of Hub data set {name!r} cannot be had; the cache has "
                f"{', '.join(sorted(cached))}; ask for that commit, or connect"
            )


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """The datasets library makes no request inside, if `offline`."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
