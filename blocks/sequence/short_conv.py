"""LFM2's gated short convolution: a causal depthwise convolution between two gates that the token itself sets.

    [b, c, u]_t = W_in x_t        y_t = W_out (c_t ⊙ conv(b ⊙ u)_t)        conv over the last kernel_size tokens
    y_t = conv(x)_t               with `gate: false`

Source: Amini et al. 2025, https://arxiv.org/abs/2511.23404

Shape letters: B batch row, T new token, D d_model.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from doge_lab.block import BlockConfig, SequenceBlock
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.layers.short_conv import CausalConv


class ShortConv(SequenceBlock):
    """A local shift: what a layer of recall needs before it, for a cache of a few tokens."""

    search_space: ClassVar[Mapping[str, Any]] = {"kernel_size": {"int": [2, 8]}, "gate": {"choice": [True, False]}}

    class Config(BlockConfig):
        kernel_size: Annotated[int, Field(ge=2)] = 3
        """How many tokens the convolution sees, itself included."""
        gate: bool = True
        """Project and gate before and after the convolution; without, the block is the bare convolution."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.conv = CausalConv(d_model, self.config.kernel_size)
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False) if self.config.gate else None
        self.out = nn.Linear(d_model, d_model, bias=False) if self.config.gate else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()
        if self.in_proj is not None and self.out is not None:
            init_linear(self.in_proj)
            init_linear(self.out, self.output_scale)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen = 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        if self.in_proj is None or self.out is None:
            return self._convolve(x, real, cache), cache
        before, after, value = self.in_proj(x).chunk(3, dim=-1)
        return self.out(after * self._convolve(before * value, real, cache)), cache

    def _convolve(self, x: Tensor, real: Tensor | None, cache: LayerCache | None) -> Tensor:
        if cache is None:
            return self.conv(x, real=real)[0]
        y, cache["conv"] = self.conv(x, cache["conv"], real)
        return y

    def cache_spec(self) -> CacheSpec:
        return {"conv": Fixed(self.conv.tail_shape, dtype=None)}

    def flops_per_token(self, context: int) -> int:
        return 2 * sum(linear.weight.numel() for linear in (self.in_proj, self.out) if linear is not None)
