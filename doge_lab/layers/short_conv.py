"""A causal depthwise convolution over the last few tokens, with its cache.

    y_t = b + Σ_{j < L} w_j ⊙ x_{t-L+1+j}                   x before the first token is 0

Shape letters: B batch row, T new token, C channel, L kernel_size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.cache import Fixed, LayerCache
from doge_lab.layers.init import init_weight


class CausalConv(nn.Module):
    """Each channel mixes its own last `kernel_size` values, the newest last in `weight` [L, C]."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel_size, channels))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    @property
    def kernel_size(self) -> int:
        return self.weight.shape[0]

    def reset_parameters(self) -> None:
        init_weight(self.weight, self.kernel_size)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, cache: LayerCache | None = None, name: str = "conv") -> Tensor:
        """Convolve `x` [B, T, C], whose padding the caller has set to zero; the tail is kept in `cache[name]`."""
        tail = self.kernel_size - 1
        if cache is None:
            window = F.pad(x, (0, 0, tail, 0))  # [B, L - 1 + T, C]
        else:
            window = torch.cat([cache[name].to(x.dtype), x], dim=1)
            cache[name] = window[:, x.shape[1] :]
        # One fused multiply-add per tap: two to three times quicker than conv1d on a CPU, which wants channels first.
        taps = [window[:, j : j + x.shape[1]] for j in range(self.kernel_size)]
        y = taps[0] * self.weight[0] if self.bias is None else torch.addcmul(self.bias, taps[0], self.weight[0])
        for j in range(1, self.kernel_size):
            y = torch.addcmul(y, taps[j], self.weight[j])
        return y.to(x.dtype)

    def cache_entry(self) -> Fixed:
        """The inputs that the next token still needs, [L - 1, C].

        They are held in the cache's own type: unlike a recurrent state, nothing is summed into them, so each is
        rounded once, as a key or a value is, and is forgotten L - 1 tokens later.
        """
        return Fixed((self.kernel_size - 1, self.weight.shape[1]), dtype=None)
