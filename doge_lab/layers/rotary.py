"""Rotary position embeddings.

    [a, b] -> [a cos(p f) - b sin(p f),  a sin(p f) + b cos(p f)],   f_i = base^(-2i / K)

with the head split into a first and a second half (the layout of LLaMA in `transformers`), p the position.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864
"""

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotate the heads `x` [B, T, H, K] by `positions` [B or 1, T]; K must be even. Angles are float32."""
    head_dim = x.shape[-1]
    frequency = base ** (-torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float32) / head_dim)
    angle = positions[..., None].float() * frequency
    cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
