"""mLSTM: an LSTM whose memory is a matrix and whose input gate is an exponential, as in xLSTM.

    C_t = f_t C_{t-1} + e^{i_t} k_tᵀ v_t        y_t = W_out (sigmoid(W_o x_t) ⊙ norm(q_t C_t))
    f_t = sigmoid(cap(w_f x_t + b_f))           i_t = cap(w_i x_t + b_i)        cap(g) = 15 tanh(g / 15)

per head. C is held divided by e^{m_t}, with m_t = max(log f_t + m_{t-1}, i_t), so that nothing overflows.

As published, a normaliser n_t = f_t n_{t-1} + e^{i_t} k_t is remembered too, and q_t C_t is divided by
max(|q_t · n_t|, 1) before the norm. But the norm of each head takes away any factor, this one included, so that with
input gates around 0 it changes next to nothing (with an `input_gate_bias` far below 0 it keeps outputs small, with the
norm's epsilon, until much has been written). `fidelity: published` keeps it, as one more column of C, which writes 1.

Source: Beck et al. 2024, https://arxiv.org/abs/2405.04517 ; in the form of xLSTM 7B: Beck et al. 2025,
https://arxiv.org/abs/2503.13427

Shape letters: B batch row, T new token, D d_model, H head, K key channel, V value channel.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens
from doge_lab.ops.scalar_recurrence import scalar_recurrence

_EPS = 1e-6


class Mlstm(SequenceBlock):
    """Linear attention with an exponential input gate: one token may outweigh all that was remembered before."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state."""
        expand_k: PositiveFloat = 0.5
        """Width of all keys together, times d_model."""
        expand_v: PositiveFloat = 1.0
        """Width of all values together, times d_model."""
        gate_cap: PositiveFloat = 15.0
        """The logits of both gates are softly capped at this."""
        input_gate_bias: float = 0.0
        """Where the logit of the input gate starts; xLSTM 7B starts at -10, against spikes in long training runs."""
        fidelity: Literal["working", "published"] = "working"
        """`published` also remembers the normaliser, whose effect the norm takes away again."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "expand_k": {"choice": [0.25, 0.5, 1.0]},
        "expand_v": {"choice": [0.5, 1.0, 2.0]},
    }

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.d_key, self.d_value = (self._width(name, getattr(c, name)) for name in ("expand_k", "expand_v"))
        self.head_k, self.head_v = self.d_key // c.n_heads, self.d_value // c.n_heads
        if self.head_v < 3:
            raise UserError(
                f"expand_v={c.expand_v:g} leaves n_heads={c.n_heads} heads {self.head_v} channels each, of which their "
                "norm leaves a sign; take fewer heads or a larger expand_v"
            )
        self.published = c.fidelity == "published"
        self.in_proj = nn.Linear(d_model, 2 * self.d_key + 2 * self.d_value, bias=False)
        self.gates = nn.Linear(d_model, 2 * c.n_heads)
        self.norm_scale = nn.Parameter(torch.empty(self.d_value))
        self.out = nn.Linear(self.d_value, d_model, bias=False)
        self.reset_parameters()

    def _width(self, name: str, expand: float) -> int:
        width = round(expand * self.d_model)
        if width < 1:
            raise UserError(f"{name}={expand} of d_model={self.d_model} leaves no channel")
        require_divisible(f"{name} * d_model", width, "n_heads", self.config.n_heads)
        return width

    def reset_parameters(self) -> None:
        init_linear(self.in_proj)
        init_linear(self.out, self.output_scale)
        nn.init.ones_(self.norm_scale)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            input_bias, forget_bias = self.gates.bias.chunk(2)
            input_bias.fill_(self.config.input_gate_bias)
            forget_bias.copy_(torch.linspace(3.0, 6.0, self.config.n_heads))

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        c = self.config
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=0 if cache is None else cache.position)
        q, k, v, output_gate = self.in_proj(x).split([self.d_key] * 2 + [self.d_value] * 2, dim=-1)
        q, k, v = (heads.unflatten(-1, (c.n_heads, -1)).float() for heads in (q, k, v))  # [B, T, H, K or V]
        input_gate, log_forget = (c.gate_cap * torch.tanh(self.gates(x).float() / c.gate_cap)).chunk(2, dim=-1)
        log_forget = F.logsigmoid(log_forget)  # [B, T, H]
        if real is not None:  # padding writes nothing and forgets nothing
            input_gate, log_forget = input_gate.masked_fill(~real, -torch.inf), log_forget * real
        # The state is summed into over the whole sequence, so it is float32 whatever the type around it.
        with torch.autocast(x.device.type, enabled=False):
            h = self._remember(q * self.head_k**-0.5, k, v, input_gate, log_forget, cache)
        h = F.layer_norm(h, (self.head_v,), eps=_EPS).flatten(2) * self.norm_scale
        return self.out(output_gate.sigmoid() * h.to(x.dtype)), cache

    def _remember(
        self, q: Tensor, k: Tensor, v: Tensor, input_gate: Tensor, log_forget: Tensor, cache: LayerCache | None
    ) -> Tensor:
        """What the queries read [B, T, H, V]; the cache holds the memory afterwards."""
        first = torch.zeros_like(log_forget[:, 0]) if cache is None else cache["stabiliser"]
        m = _stabiliser(input_gate, log_forget, first)
        log_decay = log_forget + torch.cat([first[:, None], m[:, :-1]], dim=1) - m
        k = k * (input_gate - m).exp()[..., None]
        if self.published:
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        read, state = scalar_recurrence(q, k, v, log_decay, None if cache is None else self._cached_state(cache))
        if cache is not None:
            cache["stabiliser"], cache["state"] = m[:, -1], state[..., : self.head_v]
            if self.published:
                cache["normaliser"] = state[..., -1]
        if not self.published:
            return read
        h, normaliser = read.split([self.head_v, 1], dim=-1)
        return h / (torch.maximum(normaliser.abs(), (-m).exp()[..., None]) + _EPS)

    def _cached_state(self, cache: LayerCache) -> Tensor:
        """The memory [B, H, K, V], as published with the normaliser as one more column."""
        return torch.cat([cache["state"], cache["normaliser"][..., None]], -1) if self.published else cache["state"]

    def cache_spec(self) -> CacheSpec:
        n_heads = self.config.n_heads
        spec = {"stabiliser": Fixed((n_heads,)), "state": Fixed((n_heads, self.head_k, self.head_v))}
        return {**spec, "normaliser": Fixed((n_heads, self.head_k))} if self.published else spec

    def flops_per_token(self, context: int) -> int:
        weights = sum(linear.weight.numel() for linear in (self.in_proj, self.gates, self.out))
        return 2 * weights + 2 * self.d_key * (self.head_v + self.published) + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        return 2 * self.d_key * (self.head_v + self.published)  # the outer product that the state takes up

    def known_faults(self) -> Mapping[str, str]:
        if self.published:
            return {"cache_entries_used": "the norm takes away what the normaliser divides by"}
        return {}


def _stabiliser(input_gate: Tensor, log_forget: Tensor, first: Tensor) -> Tensor:
    """m_t = max(log f_t + m_{t-1}, i_t) for all tokens at once, [B, T, H].

    The sum's rounding is no loss: whatever m is, the memory is divided by it and decays by its differences.
    """
    total = log_forget.cumsum(1)
    return total + torch.maximum((input_gate - total).cummax(dim=1).values, first[:, None])
