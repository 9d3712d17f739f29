"""Where the weights of a model are: a local folder, the Hub's cache on this machine, or the Hub, in this order.

The cache is read before anything asks the network: transformers retries for half a minute where there is none. Only safetensors
files are ever read, and no code of a model repository.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

from harness.api import HarnessError

READ = (".json", ".safetensors", ".txt", ".model", ".jinja")
"""The kinds of files a model is read from."""


@dataclass(frozen=True)
class Source:
    """A model on this machine: its name in results, its folder, and what identifies its weights (commit or content hash)."""

    name: str
    folder: Path
    revision: str


def locate(model: str, revision: str = "main") -> Source:
    """The folder of a model given by local folder or Hub id; downloads it where neither has it."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        _require_weights(folder)
        return Source(folder.resolve().name, folder, content_hash(folder))
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise HarnessError(
            f"no folder {model!r}; hf: takes a folder that save_pretrained wrote, or a Hub id such as hf:openai-community/gpt2"
        )
    snapshot = _cached(model, revision) or _download(model, revision)
    return Source(model, snapshot, snapshot.name)


def content_hash(folder: Path) -> str:
    """sha256 over the names and bytes of the files in the folder that a model is read from."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in READ):
        total.update(f"{path.name}:{file_hash(path)}\n".encode())
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(folder: Path) -> list[Path]:
    """The weight files a checkpoint consists of, whether or not they are there."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _require_weights(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise HarnessError(f"{folder} is not a model folder: it has no config.json; save_pretrained writes one")
    missing = [path.name for path in _shards(folder) if not path.exists()]
    if not missing:
        return
    if any(folder.glob("*.bin")):
        raise HarnessError(
            f"{folder} has pickled weights (.bin) only, which can run code when read; load it where you trust it and save it "
            "with model.save_pretrained(folder), which writes safetensors"
        )
    raise HarnessError(f"{folder} lacks the weight file {missing[0]}; copy all of the model's files")


def _cached(model: str, revision: str) -> Path | None:
    try:
        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        raise HarnessError(f"{model!r} is neither a folder nor a Hub model id (owner/name)") from None
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    return snapshot if all(path.exists() for path in _shards(snapshot)) else None


def _download(model: str, revision: str) -> Path:
    if constants.is_offline_mode():
        raise _unreachable(model, "HF_HUB_OFFLINE is set")
    try:
        info = _ask(model, revision)
        files = _wanted(model, [file.rfilename for file in info.siblings])
        return Path(snapshot_download(model, revision=revision, allow_patterns=files))
    except GatedRepoError:
        raise HarnessError(
            f"{model} is gated: accept its terms at https://huggingface.co/{model}, then set HF_TOKEN to that account's token"
        ) from None
    except RevisionNotFoundError:
        raise HarnessError(f"{model} has no revision {revision!r} at {constants.ENDPOINT}") from None
    except RepositoryNotFoundError:
        raise HarnessError(
            f"no model {model!r}: not a local folder, not in {constants.HF_HUB_CACHE}, not at {constants.ENDPOINT}; "
            "check the spelling, or set HF_TOKEN where it is private"
        ) from None
    except (OSError, HTTPError) as error:
        raise _unreachable(model, f"{type(error).__name__}") from error


def _ask(model: str, revision: str, seconds: float = 3.0) -> Any:
    """What the Hub says of the model, in one attempt; in a thread, because a name look-up has no timeout of its own."""
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(HfApi().model_info(model, revision=revision, timeout=seconds))
        except Exception as error:  # handed to the caller's thread
            answer.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    if not answer:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _wanted(model: str, names: list[str]) -> list[str]:
    """The files of a repository to download: its top level without the weights of other formats or precisions."""
    kept = [name for name in names if "/" not in name and name.endswith(READ)]
    weights = [name for name in kept if name == "model.safetensors" or (name.startswith("model-") and "-of-" in name)]
    if not weights:
        raise HarnessError(
            f"{model} has no safetensors weights, and pickled ones can run code when read; choose another revision or model"
        )
    return [name for name in kept if name in weights or not name.endswith(".safetensors")]


def _unreachable(model: str, why: str) -> HarnessError:
    return HarnessError(
        f"no weights of {model}: not in {constants.HF_HUB_CACHE} (HF_HOME), and {constants.ENDPOINT} not reachable ({why}); "
        f"with network run `hf download {model}`, or copy its files here and use hf:<folder>"
    )
