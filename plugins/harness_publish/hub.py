"""A dataset repository of the Hugging Face Hub as a place: one commit through `huggingface_hub`, on top of the one that was looked at.

The token is the one that `hf auth login` or HF_TOKEN gives. It goes into the requests' headers, and into nothing that is printed or written.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from harness.api import HarnessError
from harness_publish.publishing import RECORD, Change, Content, There, marks

TABLES = ("per_sample", "scores", "calibration")
"""The tables that every result has, as configurations of the data set's viewer."""
KINDS = {
    "string": "string",
    "large_string": "string",
    "double": "float64",
    "float": "float32",
    "bool": "bool",
    "int64": "int64",
}
OWN = (".gitattributes",)
"""What the Hub itself puts into a new repository."""


class Hub:
    """`hub:OWNER/NAME`."""

    def __init__(self, repo: str, private: bool, licence: str | None, stack: ExitStack) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise HarnessError(f"bad name {repo!r} of a Hub repository; write --to hub:OWNER/NAME")
        self.repo, self.private, self.licence = repo, private, licence
        self.token = get_token()
        self.api = HfApi(token=self.token)
        self.shown = f"dataset {repo} at {re.sub('//[^/@]+@', '//', self.api.endpoint)}"
        if not self.token:
            raise HarnessError(
                f"no token for {self.shown}; run `hf auth login`, or set HF_TOKEN to a token that may write there"
            )
        self.head: str | None = None
        self.work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="harness-publish-")))
        disable_progress_bars()

    def files(self, board: Mapping[str, Path]) -> Mapping[str, Content]:
        """README.md becomes the data set's card: a head of metadata, then the board."""
        return {**board, "README.md": card(board, self.licence)}

    def look(self, wanted: Iterable[str]) -> There:
        """The files of the newest commit; none where there is no such repository."""
        with self.spoken():
            try:
                self.head = self.api.repo_info(self.repo, repo_type="dataset").sha
            except RepositoryNotFoundError:
                return There({}, None)
            files = self.listed()
            record = None
            if RECORD in files:
                path = self.api.hf_hub_download(
                    self.repo, RECORD, repo_type="dataset", revision=self.head, local_dir=self.work / "there"
                )
                record = Path(path).read_bytes()
        return There({name: found for name, found in files.items() if name not in OWN}, record)

    def listed(self) -> dict[str, str]:
        """File -> sha256 where it is large, else git id."""
        tree = self.api.list_repo_tree(self.repo, recursive=True, repo_type="dataset", revision=self.head)
        return {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in tree if isinstance(f, RepoFile)}

    def write(self, change: Change, message: str) -> str:
        """One commit; refused by the Hub where somebody committed since the look. Then it is looked at again."""
        made: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
            for name, content in change.write.items()
        ]
        made += [CommitOperationDelete(path_in_repo=name) for name in change.remove]
        with self.spoken():
            if self.head is None:
                self.api.create_repo(self.repo, repo_type="dataset", private=self.private or None, exist_ok=False)
            done = self.api.create_commit(self.repo, made, commit_message=message, repo_type="dataset", parent_commit=self.head)
            self.head = done.oid
            there = self.listed()
        lost = [name for name, content in change.write.items() if there.get(name) not in marks(content)]
        if lost:
            raise HarnessError(
                f"{self.shown} does not hold {len(lost)} of {len(change.write)} files that were sent; the first is {lost[0]}; "
                "is there a .gitignore in the repository? remove it and publish again"
            )
        return f"see {re.sub('//[^/@]+@', '//', self.api.endpoint)}/datasets/{self.repo}"

    @contextmanager
    def spoken(self) -> Iterator[None]:
        """Whatever the Hub or the way to it says, as one line without the token."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise HarnessError(f"HF_HUB_OFFLINE is set; {self.shown} is not asked; unset it to publish there") from error
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            what = getattr(error, "server_message", None) or str(error).splitlines()[0]
            do = "try again later"
            if status in (401, 403):
                do = "set HF_TOKEN to a token that may write there, or run `hf auth login`"
            elif status in (409, 412):
                do = "somebody may have changed it in the meantime: run the same command again"
            raise HarnessError(f"{self.shown} refused ({status}); {self.without_token(what)}; {do}") from error
        except (HTTPError, HFValidationError, OSError, RuntimeError, ValueError) as error:
            raise HarnessError(
                f"{self.shown} cannot be written; {self.without_token(error)}; look at the connection, and run the command again"
            ) from error

    def without_token(self, said: object) -> str:
        """One line of what was said."""
        text = " ".join(str(said).split())[:300]
        return text.replace(self.token, "***") if self.token else text


def card(board: Mapping[str, Path], licence: str | None) -> bytes:
    """README.md of a data set: metadata as the Hub reads it, with the tables of all results as configurations; then the board's own."""
    head: dict[str, Any] = {
        "pretty_name": "Leaderboards of concept detection and localization",
        "tags": ["concept-harness", "leaderboard", "interpretability", "evaluation-results"],
    }
    if licence:
        head["license"] = licence
    head["configs"] = [{"config_name": table, "data_files": f"results/**/{table}.parquet"} for table in TABLES]
    head["dataset_info"] = [{"config_name": table, "features": features(board, table)} for table in TABLES]
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=False, width=1000)
    return f"---\n{text}---\n\n".encode() + board["README.md"].read_bytes()


def features(board: Mapping[str, Path], table: str) -> list[dict[str, str]]:
    """The columns of a table over all results: one that is empty in one result has its kind from another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, str] = {}
    for name, path in board.items():
        if name.endswith(f"/{table}.parquet"):
            for field in pq.read_schema(path):
                sort = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
                if kinds.get(field.name, "null") == "null":
                    kinds[field.name] = KINDS.get(str(sort), str(sort))
    return [{"name": name, "dtype": "string" if kind == "null" else kind} for name, kind in kinds.items()]
