"""A matrix-valued state that decays by a gate of its own in every key channel, token by token or in chunks.

    S_t = diag(a_t) S_{t-1} + k_tᵀ v_t        o_t = q_t S_t

A whole sequence is computed in chunks: within a chunk as masked attention whose scores carry the decay between query
and key, between chunks through the state.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635

Shape letters: B batch row, T token, H head, K key channel, V value channel, N chunk, C token of a chunk, M block of a
chunk, W token of a block.
"""

import torch
from torch import Tensor

from doge_lab.ops.chunks import chunk_layout, decayed_through_chunks, in_chunks, in_tokens
from doge_lab.ops.decay import LOG_RESOLUTION, SAFE_BLOCK, SAFE_SPAN
from doge_lab.ops.dispatch import Example, at_hand, recurrence

_CHUNK = 32
_CHUNK_OF_SAFE_BLOCKS = 16


def reference(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: q, k and log_decay [B, T, H, K], v [B, T, H, V] -> outputs [B, T, H, V], state [B, H, K, V]."""
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]) if state is None else state
    decay, outputs = log_decay.exp(), []
    for t in range(q.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in parallel within chunks."""
    tokens = q.shape[1]
    longest, block = chunk_sizes(log_decay)
    n_chunks, chunk = chunk_layout(tokens, longest, SAFE_BLOCK)
    q, k, v, log_decay = (in_chunks(heads, n_chunks, chunk).contiguous() for heads in (q, k, v, log_decay))
    total = log_decay.clamp(min=LOG_RESOLUTION).cumsum(dim=-2)  # [B, H, N, C, K]
    o = _within_chunks(q, k, total, min(block, chunk)) @ v
    last = total[..., -1:, :]
    written = (k * (last - total).exp()).mT @ v
    if n_chunks == 1 and state is None:
        return in_tokens(o, tokens), written[:, :, 0]
    states, state = decayed_through_chunks(written, last.exp().mT, state)
    return in_tokens(o + (q * total.exp()) @ states, tokens), state


def chunk_sizes(log_decay: Tensor) -> tuple[int, int]:
    """Tokens of a chunk and of a block within which decays may be divided by each other in float32."""
    # Ordinary gates let a whole chunk be one block, which halves the time.
    if at_hand(log_decay) and float(log_decay.detach().amin()) * (_CHUNK - 1) > -SAFE_SPAN:
        return _CHUNK, _CHUNK
    return _CHUNK_OF_SAFE_BLOCKS, SAFE_BLOCK


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


def examples() -> dict[str, Example]:
    """Gates that let a chunk be one block, gates that do not, and a single chunk without a state."""
    make = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 70, 3, 4, generator=make) for _ in range(3))
    gates, state = torch.rand(2, 70, 3, 4, generator=make), torch.randn(2, 3, 4, 4, generator=make)
    return {
        "ordinary gates": Example((q, k, v, -0.2 * gates, state)),
        "strong gates": Example((q, k, v, -9 * gates.square(), state)),
        "one chunk": Example((q[:, :9], k[:, :9], v[:, :9], -0.2 * gates[:, :9], None)),
    }


gated_recurrence = recurrence("gated_recurrence", reference, chunked, examples)
