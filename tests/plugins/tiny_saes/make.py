"""Makes the folders beside it: a tiny random autoencoder of every kind as sae-lens saves it, and what its own `encode` gives.

Run with `python make.py` where sae-lens is installed (made with 6.54.12); the tests read the files without it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
D, K, HOOK = 8, 24, "blocks.2.hook_resid_post"
KINDS: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "gated": {"architecture": "gated"},
    "jumprelu": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "topk": {"architecture": "topk", "k": 4},
    "topk-rescaled": {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True},
    "layer-norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
    "constant-norm": {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"},
}
OLD = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": K,
    "dtype": "torch.float32",
    "hook_point": HOOK,
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 4},
    "normalize_activations": False,
    "finetuning_scaling_factor": True,
    "model_name": "tiny",
}


def inputs(seed: int) -> torch.Tensor:
    """[12, d]: with an offset and of very different norms, as a residual stream's."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(12, D, generator=g) * torch.logspace(-1, 1, 12)[:, None] + 0.3


def write(name: str, sae: Any, seed: int) -> None:
    """What the library gives for the folder as it lies on disk."""
    x = inputs(seed)
    with torch.no_grad():
        save_file({"x": x, "activations": sae.encode(x).contiguous()}, HERE / name / "expected.safetensors")


def main() -> None:
    """All folders."""
    for seed, (name, settings) in enumerate(KINDS.items()):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        g = torch.Generator().manual_seed(seed)
        sae = SAE.from_dict({"d_in": D, "d_sae": K, **settings, "metadata": {"hook_name": HOOK, "model_name": "tiny"}})
        for parameter_name, parameter in sae.named_parameters():
            size = 0.5 if parameter.dim() == 2 else 0.2
            drawn = size * torch.randn(parameter.shape, generator=g)
            parameter.data.copy_(drawn.abs() if parameter_name == "threshold" else drawn)
        sae.save_model(folder)
        write(name, SAE.load_from_disk(folder), seed)
    old = HERE / "before-6"
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    (old / "cfg.json").write_text(json.dumps(OLD))
    weights = load_file(HERE / "topk" / "sae_weights.safetensors")
    save_file(weights, old / "sae_weights.safetensors")
    write("before-6", SAE.load_from_disk(old), 99)


if __name__ == "__main__":
    main()
