"""B7: extraction. All layers from one forward pass with hooks, against the plain forward pass, and against one pass per layer.

The model is a Vision Transformer of a given shape with random weights, saved and loaded as `hf:<folder>`: its time does not depend on
the weights. `pack` copies all layers out; `hooks` is the same pass with the hooks alone. One pass per layer runs the whole model each
time, as the authors' code does (docs/method.md, section 11.C).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from harness_hf.model import quiet
from pairs import Benchmark, Case, Found, Gate, Row, Sides, main, ratio
from transformers import Dinov2Config, Dinov2Model

from harness.registry import load
from harness.types import Sample, Setup, Site


@contextmanager
def build(case: Case) -> Iterator[Sides]:
    """A saved model, loaded as the project loads any, and one batch of noise images."""
    heads = max(case["width"] // 64, 1)
    config = Dinov2Config(
        hidden_size=case["width"],
        num_hidden_layers=case["L"],
        num_attention_heads=heads,
        patch_size=14,
        image_size=case["pixels"],
    )
    with tempfile.TemporaryDirectory(prefix="harness-b7-") as made:
        torch.manual_seed(0)
        with quiet():
            Dinov2Model(config).save_pretrained(Path(made) / "model")
        setup = Setup(image_size=case["pixels"], cache_dir=Path(made) / "cache")
        backbone = load().create("backbones", f"hf:{Path(made) / 'model'}", setup)
    noise = np.random.default_rng(0).integers(0, 256, (case["images"], case["pixels"], case["pixels"], 3), dtype=np.uint8)
    inputs = backbone.inputs([Sample(f"sample-{i}", PIL.Image.fromarray(pixels)) for i, pixels in enumerate(noise)])
    sites = [Site(i) for i in range(case["L"])]
    pixels = inputs.tensors["pixel_values"]

    @torch.inference_mode()
    def plain() -> torch.Tensor:
        return backbone.frozen.model(pixel_values=pixels).last_hidden_state

    @torch.inference_mode()
    def hooks() -> list[torch.Tensor]:
        return backbone.frozen.states({"pixel_values": pixels}, [*sites, Site(case["L"])])

    @torch.inference_mode()
    def one_pass() -> torch.Tensor:
        return backbone.forward(inputs, sites).values

    @torch.inference_mode()
    def pass_per_layer() -> torch.Tensor:
        return torch.cat([backbone.forward(inputs, [site]).values for site in sites])

    def check(results: Found) -> dict[str, dict[str, Any]]:
        assert torch.equal(results["plain"], results["hooks"][-1]), "hooks change the model's output"
        assert torch.equal(results["pack"], results["pass per layer"]), "one pass and one pass per layer differ"
        return {}

    calls = {"plain": plain, "hooks": hooks, "pack": one_pass, "pass per layer": pass_per_layer}
    yield Sides(calls, check, "bit-identical: the output with and without hooks, and every layer")


def gates(rows: Sequence[Row]) -> list[Gate]:
    """All layers cost at most a tenth more than the plain forward pass, and each further layer nothing like a pass."""
    made = []
    for case in (dict(row.case) for row in rows if row.side == "plain"):
        packed, separate = (ratio(rows, side, **case) for side in ("pack", "pass per layer"))
        made.append(Gate(f"pack / plain, L = {case['L']}", packed, 1.1, False))
        made.append(Gate(f"pass per layer / pack, L = {case['L']}", separate / packed, case["L"] / 2))
    return made


BENCHMARK = Benchmark(
    "B7",
    "extraction: all layers in one pass against the plain pass, and one pass per layer",
    build,
    [{"L": 12, "width": 384, "images": 8, "pixels": 224}, {"L": 24, "width": 1024, "images": 1, "pixels": 224}],
    [{"L": 2, "width": 16, "images": 2, "pixels": 28}],
    gates,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
