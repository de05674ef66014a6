"""Griffin's recurrent block: a real-gated linear recurrent unit, one number of memory per channel.

    u_t = conv(W_x x)_t        r_t = sigmoid(W_r u_t + b_r)        i_t = sigmoid(W_i u_t + b_i)
    log a_t = -8 r_t ⊙ softplus(λ)
    h_t = a_t ⊙ h_{t-1} + sqrt(1 - a_t²) ⊙ (i_t ⊙ u_t)        y_t = W_out (gelu(W_y x_t) ⊙ h_t)

with W_r and W_i block-diagonal, a block per head.

Source: De et al. 2024, https://arxiv.org/abs/2402.19427

Shape letters: B batch row, T new token, D d_model, I inner channel, H head, W channel of a head.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.activations import gelu_tanh
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.masks import new_real_tokens, token_positions
from doge_lab.layers.short_conv import CausalConv
from doge_lab.ops.elementwise_recurrence import elementwise_recurrence

_SHARPNESS = 8.0  # c in the paper
_LEAST_SQUARE = torch.finfo(torch.float32).tiny  # keeps the root's slope finite where a gate is shut


class RgLru(SequenceBlock):
    """A gated recurrence of single numbers: the smallest state of all, and no outer products."""

    weight_matrices = ("gate_weight",)

    class Config(BlockConfig):
        expand: PositiveFloat = 1.0
        """Inner channels, times d_model; the paper takes 4/3, RecurrentGemma 1."""
        n_heads: PositiveInt = 4
        """Blocks on the diagonal of the gates' matrices."""
        kernel_size: Annotated[int, Field(ge=2)] = 4
        """How many tokens the convolution sees, itself included."""
        first_token: Literal["scaled", "whole"] = "scaled"
        """Scale the first token's input by sqrt(1 - a²) as all others, or leave it whole as the published code does."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "expand": {"choice": [0.5, 1.0, 2.0]},
        "n_heads": {"choice": [1, 2, 4]},
        "kernel_size": {"choice": [2, 4]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.d_inner = round(c.expand * d_model)
        if self.d_inner < 1:
            raise UserError(f"expand={c.expand} of d_model={d_model} leaves no channel; the least is {1 / d_model}")
        require_divisible("expand * d_model", self.d_inner, "n_heads", c.n_heads)
        width = self.d_inner // c.n_heads
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner)
        self.conv = CausalConv(self.d_inner, c.kernel_size, bias=True)
        self.gate_weight = nn.Parameter(torch.empty(c.n_heads, width, 2 * width))
        self.gate_bias = nn.Parameter(torch.empty(c.n_heads, 2 * width))
        self.decay = nn.Parameter(torch.empty(self.d_inner))
        self.out = nn.Linear(self.d_inner, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear(self.in_proj)
        init_linear(self.out, self.output_scale)
        self.conv.reset_parameters()
        init_weight(self.gate_weight, self.gate_weight.shape[1])
        nn.init.zeros_(self.gate_bias)
        with torch.no_grad():  # such that an open gate decays by 0.9 to 0.999
            self.decay.uniform_(0.9, 0.999).log_().div_(-_SHARPNESS).expm1_().log_()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=new, seen=seen)
        gate, u = self.in_proj(x).chunk(2, dim=-1)  # [B, T, I]
        u, tail = self.conv(u, None if cache is None else cache["conv"], real)
        log_decay, written = self._gates(u)
        scale = (-torch.expm1(2 * log_decay)).clamp(min=_LEAST_SQUARE).sqrt()
        if self.config.first_token == "whole":
            positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
            scale = torch.where(positions[..., None] == 0, 1.0, scale)
        written = scale * written
        if real is not None:  # padding writes nothing and decays nothing
            written, log_decay = written * real, log_decay * real
        states = elementwise_recurrence(log_decay.exp(), written, None if cache is None else cache["state"])
        if cache is not None:
            cache["conv"], cache["state"] = tail, states[:, -1]
        return self.out(gelu_tanh(gate) * states.to(x.dtype)), cache

    def _gates(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the decays, and the input as far as its gate lets it through: [B, T, I], float32."""
        heads = u.unflatten(-1, (self.config.n_heads, -1)).flatten(0, 1).transpose(0, 1)  # [H, B * T, W]
        logits = torch.baddbmm(self.gate_bias[:, None], heads, self.gate_weight).float()
        input_gate, recurrence_gate = (
            half.sigmoid().transpose(0, 1).reshape(u.shape) for half in logits.chunk(2, dim=-1)
        )
        return -_SHARPNESS * recurrence_gate * F.softplus(self.decay.float()), input_gate * u.float()

    def cache_spec(self) -> CacheSpec:
        return {"conv": Fixed(self.conv.tail_shape, dtype=None), "state": Fixed((self.d_inner,))}

    def flops_per_token(self, context: int) -> int:
        return 2 * sum(weight.numel() for weight in (self.in_proj.weight, self.gate_weight, self.out.weight))
