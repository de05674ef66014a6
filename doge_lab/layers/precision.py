"""Where half precision is too coarse."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it is in fewer bits, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
