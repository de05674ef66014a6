"""A causal convolution with a filter as long as the sequence, lag by lag or by spectra.

    y_t = Σ_{l < L} h_l ⊙ u_{t-l}

Source: Poli et al. 2023, https://arxiv.org/abs/2302.10866

Shape letters: B batch row, S token (remembered and new), T new token, D channel, L lag of the filter.
"""

import torch
from torch import Tensor

from doge_lab.ops.dispatch import REFERENCE, Example, Op


def reference(u: Tensor, taps: Tensor, new: int) -> Tensor:
    """The definition: the last `new` outputs [B, T, D] of the convolution of u [B, S, D] with taps [L, D].

    Its time grows with the square of the length.
    """
    index = torch.arange(u.shape[1], device=u.device)
    lag = index[u.shape[1] - new :, None] - index  # [T, S]
    inside = (lag >= 0) & (lag < len(taps))
    matrix = taps[lag.clamp(0, len(taps) - 1)] * inside[..., None]
    return torch.einsum("tsd,bsd->btd", matrix, u)


def fft(u: Tensor, taps: Tensor, new: int) -> Tensor:
    """The same by a product of spectra, in float64: in float32 a loud token's rounding reaches tokens before it."""
    tokens = u.shape[1]
    size = 1 << (tokens + len(taps) - 2).bit_length()
    spectrum = torch.fft.rfft(u.mT.double(), n=size) * torch.fft.rfft(taps.mT.double(), n=size)
    return torch.fft.irfft(spectrum, n=size)[..., tokens - new : tokens].mT.to(u.dtype)


def _choose(u: Tensor, taps: Tensor, new: int) -> str:
    return REFERENCE if new == 1 else "fft"


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    u, taps = torch.randn(2, 37, 3, generator=make), torch.randn(37, 3, generator=make)
    return {"as long as the sequence": Example((u, taps, 37)), "a window, some seen": Example((u, taps[:9], 20))}


long_convolution = Op("long_convolution", {"reference": reference, "fft": fft}, _choose, _examples)
