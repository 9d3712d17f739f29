"""Fisher's directions against a plain solve of every layer alone, for many layers and threads, and where there is no direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness_vectors.covariance import fisher

from harness.api import HarnessError


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("layers", "width"), [(1, 5), (3, 5), (2, 384), (3, 512)])
def test_directions_are_those_of_a_solve_of_each_layer_alone(layers: int, width: int, threads: int) -> None:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(layers, 2 * width, width, generator=g, dtype=torch.float64)
    covariance, gap = (
        tokens.transpose(1, 2) @ tokens / (2 * width),
        torch.randn(layers, 4, width, generator=g, dtype=torch.float64),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = fisher(covariance, gap, 0.01).numpy()
    finally:
        torch.set_num_threads(before)
    for layer in range(layers):
        matrix = covariance[layer].numpy()
        ridge = 0.01 * np.trace(matrix) / width * np.eye(width)
        np.testing.assert_allclose(found[layer], np.linalg.solve(matrix + ridge, gap[layer].numpy().T).T, rtol=1e-8, atol=1e-10)


def test_a_concept_without_a_mean_leaves_the_others_alone() -> None:
    gap = torch.tensor([[[1.0, 2.0], [torch.nan, torch.nan]]], dtype=torch.float64)
    found = fisher(torch.eye(2, dtype=torch.float64)[None], gap, 0.01)
    assert torch.allclose(found[0, 0], gap[0, 0] / 1.01)
    assert found[0, 1].isnan().all()


def test_a_singular_covariance_without_shrinkage_is_refused() -> None:
    flat = torch.ones(1, 3, 3, dtype=torch.float64)
    with pytest.raises(HarnessError, match=r"singular with shrinkage=0; .* give a larger one, such as shrinkage=0\.01"):
        fisher(flat, torch.ones(1, 1, 3, dtype=torch.float64), 0.0)
