"""A matrix-valued state that decays by a gate of its own in every value channel, token by token or in chunks.

    S_t = S_{t-1} diag(a_t) + k_tᵀ v_t        o_t = q_t S_t

The mirror image of `gated_recurrence`, computed in the same chunks: here the decay between query and key cannot join
their score, so values are decayed from their token to the middle of its block, and outputs from there on.

Source: Yang et al. 2023, https://arxiv.org/abs/2312.06635 (gates on both sides) ; Zhang et al. 2024,
https://arxiv.org/abs/2409.07146

Shape letters: B batch row, T token, H head, K key channel, V value channel, N chunk, C token of a chunk, M block of a
chunk, W token of a block.
"""

import torch
from torch import Tensor

from doge_lab.ops.chunks import chunk_layout, decayed_through_chunks, in_chunks, in_tokens
from doge_lab.ops.decay import LOG_RESOLUTION, SAFE_BLOCK
from doge_lab.ops.dispatch import recurrence
from doge_lab.ops.gated_recurrence import chunk_sizes, examples


def reference(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: q and k [B, T, H, K], v and log_decay [B, T, H, V] -> outputs like v, state [B, H, K, V]."""
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]) if state is None else state
    decay, outputs = log_decay.exp(), []
    for t in range(q.shape[1]):
        state = decay[:, t, :, None, :] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in parallel within chunks."""
    tokens = q.shape[1]
    longest, block = chunk_sizes(log_decay)
    n_chunks, chunk = chunk_layout(tokens, longest, SAFE_BLOCK)
    q, k, v, log_decay = (in_chunks(heads, n_chunks, chunk).contiguous() for heads in (q, k, v, log_decay))
    total = log_decay.clamp(min=LOG_RESOLUTION).cumsum(dim=-2)  # [B, H, N, C, V]
    o = _within_chunks(q, k, v, total, min(block, chunk))
    last = total[..., -1:, :]
    written = k.mT @ (v * (last - total).exp())
    if n_chunks == 1 and state is None:
        return in_tokens(o, tokens), written[:, :, 0]
    states, state = decayed_through_chunks(written, last.exp(), state)
    return in_tokens(o + (q @ states) * total.exp(), tokens), state


def _within_chunks(q: Tensor, k: Tensor, v: Tensor, total: Tensor, block: int) -> Tensor:
    """What the tokens of a chunk read of each other [B, H, N, C, V].

    The decay exp(total_query - total_key) is split at the middle of both tokens' blocks, (query - its middle)
    + (middle - middle) + (its middle - key), so that no exponent leaves float32's range.
    """
    blocks = (q.shape[-2] // block, block)
    scores = (q @ k.mT).tril()
    middle = total[..., (block - 1) // 2 :: block, :]  # [B, H, N, M, V]
    offset = total.unflatten(-2, blocks) - middle[..., None, :]
    v = v.unflatten(-2, blocks) * (-offset).exp()  # [B, H, N, M, W, V]
    if blocks[0] == 1:
        return scores @ v.flatten(-3, -2) * offset.flatten(-3, -2).exp()
    scores = scores.unflatten(-1, blocks).unflatten(-3, blocks).transpose(-3, -2)  # [B, H, N, M, M, W, W]
    causal = torch.ones(blocks[0], blocks[0], dtype=torch.bool, device=q.device).tril()
    between = middle[..., :, None, :] - middle[..., None, :, :]  # [B, H, N, M, M, V]
    between = between.masked_fill(~causal[..., None], -torch.inf).exp()
    o = ((scores @ v[..., None, :, :, :]) * between[..., None, :]).sum(dim=-3)
    return (o * offset.exp()).flatten(-3, -2)


value_gated_recurrence = recurrence("value_gated_recurrence", reference, chunked, examples)
