"""Where a sparse autoencoder is: a local folder or file, the Hub's cache on this machine, or the Hub, in this order."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from harness.api import HarnessError, unreachable

SAELENS = ("cfg.json", "sae_weights.safetensors")
GEMMA_SCOPE = "params.npz"
PICKLED = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


def locate(argument: str, revision: str) -> Path:
    """The folder or file of what `sae:` was given; downloads it where this machine has it not."""
    place = Path(argument).expanduser()
    if place.exists():
        return place.absolute()
    if place.suffix in PICKLED:
        raise pickled(place)
    owner, _, rest = argument.partition("/")
    name, _, path = rest.partition("/")
    if argument.startswith((".", "/", "~")) or not name:
        raise HarnessError(
            f"no folder or file {argument!r}; sae: takes a folder with a sparse autoencoder, or org/repo/path on the Hub, such as "
            "sae:google/gemma-scope-9b-pt-res/layer_20/width_16k/average_l0_71"
        )
    repo, single = f"{owner}/{name}", path.endswith(".safetensors")
    files = [path] if single else [f"{path}/{file}".lstrip("/") for file in (*SAELENS, GEMMA_SCOPE)]
    found = _cached(repo, revision, files)
    if found is None or not whole(found / path):
        found = _download(repo, revision, files)
    if not whole(found / path):
        raise HarnessError(
            f"{repo} has no sparse autoencoder at {path!r}; looked for {', '.join(files)}; check the path on {constants.ENDPOINT}/{repo}"
        )
    return found / path


def whole(place: Path) -> bool:
    """Whether all files of a layout that is known are there."""
    return place.is_file() or all((place / name).exists() for name in SAELENS) or (place / GEMMA_SCOPE).exists()


def pickled(path: Path) -> HarnessError:
    """The refusal of a pickle, with a way to convert it: the names are those of CLIP-Scope's checkpoints."""
    convert = (
        "import torch; from safetensors.torch import save_file; "
        f"c = torch.load('{path.name}', weights_only=True); m = c['model_state_dict']; "
        f"save_file({{n: m[n].contiguous() for n in ('enc', 'pre_b')}}, '{path.stem}.safetensors', {{'k': str(c['k'])}})"
    )
    return HarnessError(
        f"{path} is a pickle, which can run code when read; sae: reads safetensors, npz and JSON; convert it once, where you trust it: "
        f'python -c "{convert}"'
    )


def _cached(repo: str, revision: str, files: list[str]) -> Path | None:
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files, local_files_only=True))
    except HFValidationError:
        raise HarnessError(f"{repo!r} is neither a folder nor a repository on the Hub (owner/name)") from None
    except LocalEntryNotFoundError:
        return None


def _download(repo: str, revision: str, files: list[str]) -> Path:
    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else unreachable(constants.ENDPOINT)
    if why is not None:
        raise _out_of_reach(repo, files, why)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except GatedRepoError:
        raise HarnessError(
            f"{repo} is gated: accept its terms at https://huggingface.co/{repo}, then set HF_TOKEN to that account's token"
        ) from None
    except RevisionNotFoundError:
        raise HarnessError(f"{repo} has no revision {revision!r} at {constants.ENDPOINT}") from None
    except RepositoryNotFoundError:
        raise HarnessError(
            f"no repository {repo!r}: not a local folder, not in {constants.HF_HUB_CACHE}, not at {constants.ENDPOINT}; "
            "check the spelling, or set HF_TOKEN where it is private"
        ) from None
    except (OSError, HTTPError) as error:
        raise _out_of_reach(repo, files, type(error).__name__) from error


def _out_of_reach(repo: str, files: list[str], why: str) -> HarnessError:
    return HarnessError(
        f"no sparse autoencoder of {repo}: not in {constants.HF_HUB_CACHE} (HF_HOME), and {constants.ENDPOINT} not reachable ({why}); "
        f"with network run `hf download {repo} --include '{files[0].rpartition('/')[0] or '.'}/*'`, or copy its files here and use sae:<folder>"
    )
