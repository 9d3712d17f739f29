"""The vector of a concept's super-activators: what localizers and explainers compare tokens with. Method section 7.3.

S_c = train tokens with s_c >= tau_c(delta*_c), whatever their truth; the authors pool all splits, test and padding included
(section 11.B5).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.types import Blocks, Explained

TINY = 1e-8


def super_activator_vectors(train: Blocks, explained: Explained, how: Literal["softmax", "mean"] = "softmax") -> Tensor:
    """u_c [C, d] float64 from one pass over train: the sum over S_c of softmax(s_c) e (temperature 1), or the plain mean of S_c.

    Where S_c is empty the concept's own vector stands in (zeros where units are no directions).
    """
    peak = torch.full_like(explained.cutoffs, -torch.inf)
    mass = torch.zeros_like(explained.cutoffs)
    total = torch.zeros(len(peak), train.width, dtype=torch.float64, device=peak.device)
    for block in train:
        activations = explained.activations(block).double()
        strong = activations >= explained.cutoffs
        logits = activations if how == "softmax" else torch.zeros_like(activations)
        logits = logits.masked_fill(~strong, -torch.inf)
        higher = torch.maximum(peak, logits.amax(0)) if len(logits) else peak  # online log-sum-exp
        shift = torch.where(higher.isfinite(), higher, torch.zeros_like(higher))
        shrink = torch.exp(torch.where(peak.isfinite(), peak - shift, peak))
        weights = torch.exp(logits - shift)
        mass = mass * shrink + weights.sum(0)
        total = total * shrink[:, None]
        for c in range(len(peak)):
            total[c] += weights[strong[:, c], c] @ explained.embeddings(block, c)[strong[:, c]].double()
        peak = higher
    found = total / mass.clamp(min=TINY)[:, None]
    fallback = torch.zeros_like(found) if explained.vectors is None else explained.vectors.double()
    return torch.where((mass > 0)[:, None], found, fallback)
