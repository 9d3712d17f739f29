"""The detector: a sample is in the concept iff its strongest token reaches a cutoff in the tail of in-concept cal tokens (section 6.1).

Unlike the authors' code, padding tokens are never among the tokens (section 11.B3).
"""

from __future__ import annotations

from torch import Tensor

from harness.api import TokenEmbeddings, segment_max


class SuperActivator:
    """max over tokens; `max` pools alike and differs only in what its cutoff is calibrated on."""

    calibrate_on = "tokens"

    def pool(self, activations: Tensor, block: TokenEmbeddings) -> Tensor:
        """[L, S, K]: the strongest token; -inf without tokens."""
        return segment_max(activations, block.offsets)
