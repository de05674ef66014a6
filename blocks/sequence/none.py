"""No sequence block: tokens do not meet and nothing is cached.

    y = 0        (the model leaves block, norm and residual out)

Source: doge_lab; the floor against which every front is read.
"""

import torch
from torch import Tensor

from doge_lab.block import SequenceBlock
from doge_lab.cache import CacheSpec, LayerCache


class NoSequence(SequenceBlock):
    """Moves nothing between tokens."""

    is_none = True

    def reset_parameters(self) -> None:
        pass

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        return torch.zeros_like(x), cache

    def cache_spec(self) -> CacheSpec:
        return {}

    def flops_per_token(self, context: int) -> int:
        return 0
