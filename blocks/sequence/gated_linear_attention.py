"""Gated linear attention: a matrix-valued state that decays by a gate of its own in every key channel.

    S_t = diag(a_t) S_{t-1} + k_tᵀ v_t        a_t = sigmoid(W_a2 W_a1 x_t + b)^(1 / normaliser)
    o_t = q_t S_t / sqrt(key_dim)             y_t = W_o (norm(o_t) ⊙ swish(W_g x_t))

per head. A whole sequence is computed in chunks: within a chunk as masked attention whose scores carry the decay
between query and key, between chunks through the state.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635

Shape letters: B batch row, T new token, D d_model, H head, K key channel, V value channel, N chunk, C token of a chunk,
M block of a chunk, W token of a block.
"""

import math
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, Fixed, LayerCache
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import new_real_tokens

# A decay below float32's resolution forgets as well as zero does; four of them still fit into its range.
_LOG_RESOLUTION = math.log(torch.finfo(torch.float32).eps)
_SAFE_BLOCK = 4
_SAFE_SPAN = -3 * _LOG_RESOLUTION  # decay, in logarithms, between the ends of a block
_CHUNK = 32
_CHUNK_OF_SAFE_BLOCKS = 16


class GatedLinearAttention(SequenceBlock):
    """Linear attention with data-dependent decay: a state of fixed size instead of keys and values."""

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; fewer heads have a larger state, key_dim * value_dim / n_heads."""
        expand_k: PositiveFloat = 0.5
        """Width of all keys together, times d_model."""
        expand_v: PositiveFloat = 1.0
        """Width of all values together, times d_model."""
        gate_low_rank: PositiveInt = 16
        """Width between the two projections of the gate."""
        gate_normaliser: PositiveFloat = 16.0
        """The larger, the nearer to 1 decays start."""
        impl: Literal["chunked", "reference"] = "chunked"
        """`reference` is the recurrence, token by token: the definition, and slow to train."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_heads = c.n_heads
        key_dim, value_dim = (self._width(name, getattr(c, name)) for name in ("expand_k", "expand_v"))
        self.head_k, self.head_v = key_dim // c.n_heads, value_dim // c.n_heads
        self.q = nn.Linear(d_model, key_dim, bias=False)
        self.k = nn.Linear(d_model, key_dim, bias=False)
        self.v = nn.Linear(d_model, value_dim, bias=False)
        self.decay_down = nn.Linear(d_model, c.gate_low_rank, bias=False)
        self.decay_up = nn.Linear(c.gate_low_rank, key_dim)
        self.gate = nn.Linear(d_model, value_dim, bias=False)
        self.norm = nn.RMSNorm(self.head_v, eps=1e-6)
        self.out = nn.Linear(value_dim, d_model, bias=False)
        self.reset_parameters()

    def _width(self, name: str, expand: float) -> int:
        width = round(expand * self.d_model)
        if width < 1:
            raise UserError(f"{name}={expand} of d_model={self.d_model} leaves no channel")
        require_divisible(f"{name} * d_model", width, "n_heads", self.n_heads)
        return width

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.decay_down, self.decay_up, self.gate):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        self.norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        seen = 0 if cache is None else cache.position
        q, k, log_decay = (
            heads.unflatten(-1, (self.n_heads, self.head_k)).float()
            for heads in (self.q(x), self.k(x), self.decay_up(self.decay_down(x)))
        )  # [B, T, H, K]
        v = self.v(x).unflatten(-1, (self.n_heads, self.head_v)).float()  # [B, T, H, V]
        q = q * self.head_k**-0.5
        log_decay = F.logsigmoid(log_decay) / self.config.gate_normaliser
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        if real is not None:  # padding writes nothing and decays nothing
            k, log_decay = k * real[..., None], log_decay * real[..., None]
        recur = recurrent if self.config.impl == "reference" or x.shape[1] == 1 else chunked
        # The state is summed into over the whole sequence, so it is float32 whatever the type around it.
        with torch.autocast(x.device.type, enabled=False):
            o, state = recur(q, k, v, log_decay, None if cache is None else cache["state"])
        if cache is not None and state is not None:
            cache["state"] = state
        y = self.norm(o.to(x.dtype)).flatten(2) * F.silu(self.gate(x))
        return self.out(y), cache

    def cache_spec(self) -> CacheSpec:
        return {"state": Fixed((self.n_heads, self.head_k, self.head_v))}

    def flops_per_token(self, context: int) -> int:
        linears = (self.q, self.k, self.v, self.decay_down, self.decay_up, self.gate, self.out)
        return 2 * sum(linear.weight.numel() for linear in linears) + 2 * self.n_heads * self.head_k * self.head_v


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: q, k and log_decay [B, T, H, K], v [B, T, H, V] -> outputs [B, T, H, V], state [B, H, K, V]."""
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]) if state is None else state
    decay, outputs = log_decay.exp(), []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The same as `recurrent`, in parallel within chunks; who gives no state may get none back."""
    tokens = q.shape[1]
    chunk, block = _sizes(log_decay)
    n_chunks = -(-tokens // chunk)
    chunk = -(-tokens // n_chunks // _SAFE_BLOCK) * _SAFE_BLOCK  # as even as blocks allow
    if padding := n_chunks * chunk - tokens:
        q, k, v, log_decay = (F.pad(heads, (0, 0, 0, 0, 0, padding)) for heads in (q, k, v, log_decay))
    q, k, v, log_decay = (
        heads.unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4).contiguous() for heads in (q, k, v, log_decay)
    )  # [B, H, N, C, K or V]
    total = log_decay.clamp(min=_LOG_RESOLUTION).cumsum(dim=-2)
    o = _within_chunks(q, k, total, min(block, chunk)) @ v
    if n_chunks > 1 or state is not None:
        states, state = _between_chunks(k, v, total, state)
        o = o + (q * total.exp()) @ states
    return o.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens], state


def _sizes(log_decay: Tensor) -> tuple[int, int]:
    """Tokens of a chunk and of a block within which decays may be divided by each other in float32."""
    # Ordinary gates let a whole chunk be one block, which halves the time. To look costs a GPU a stop, and a
    # compiler its single graph.
    if log_decay.device.type == "cpu" and not torch.compiler.is_compiling():
        strongest = float(log_decay.detach().amin()) * (_CHUNK - 1)
        if strongest > -_SAFE_SPAN:
            return _CHUNK, _CHUNK
    return _CHUNK_OF_SAFE_BLOCKS, _SAFE_BLOCK


def _within_chunks(q: Tensor, k: Tensor, total: Tensor, block: int) -> Tensor:
    """Scores [B, H, N, C, C] of each query with the keys up to it, decayed by exp(total_query - total_key).

    That factor is split at the middle of both tokens' blocks, (query - its middle) + (middle - middle)
    + (its middle - key), so that no exponent leaves float32's range while the product of all three stays exact.
    """
    chunk = q.shape[-2]
    blocks = (chunk // block, block)
    middle = total[..., (block - 1) // 2 :: block, :]  # [B, H, N, M, K]
    offset = total.unflatten(-2, blocks) - middle[..., None, :]
    q = q.unflatten(-2, blocks) * offset.exp()  # [B, H, N, M, W, K]
    k = k.unflatten(-2, blocks) * (-offset).exp()
    if blocks[0] > 1:
        causal = torch.ones(blocks[0], blocks[0], dtype=torch.bool, device=q.device).tril()
        between = middle[..., :, None, :] - middle[..., None, :, :]  # [B, H, N, M, M, K]
        between = between.masked_fill(~causal[..., None], -torch.inf).exp()
        k = (k[..., None, :, :, :] * between[..., None, :]).flatten(-3, -2)  # [B, H, N, M, C, K]
    scores = (q @ k.mT).flatten(-3, -2)
    return scores * torch.ones(chunk, chunk, device=q.device).tril()


def _between_chunks(k: Tensor, v: Tensor, total: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each chunk [B, H, N, K, V], and the state after the last [B, H, K, V]."""
    last = total[..., -1:, :]
    written = (k * (last - total).exp()).mT @ v
    decay = last.exp().mT  # [B, H, N, K, 1]
    state = torch.zeros_like(written[:, :, 0]) if state is None else state
    states = []
    for chunk in range(written.shape[2]):
        states.append(state)
        state = torch.addcmul(written[:, :, chunk], decay[:, :, chunk], state)
    return torch.stack(states, dim=2), state
