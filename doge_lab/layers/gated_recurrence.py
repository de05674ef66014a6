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
from torch.nn import functional as F

from doge_lab.layers.decay import LOG_RESOLUTION, SAFE_BLOCK, SAFE_SPAN

_CHUNK = 32
_CHUNK_OF_SAFE_BLOCKS = 16


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
    chunk, block = chunk_sizes(log_decay)
    n_chunks = -(-tokens // chunk)
    chunk = -(-tokens // n_chunks // SAFE_BLOCK) * SAFE_BLOCK  # as even as blocks allow
    if padding := n_chunks * chunk - tokens:
        q, k, v, log_decay = (F.pad(heads, (0, 0, 0, 0, 0, padding)) for heads in (q, k, v, log_decay))
    q, k, v, log_decay = (
        heads.unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4).contiguous() for heads in (q, k, v, log_decay)
    )  # [B, H, N, C, K or V]
    total = log_decay.clamp(min=LOG_RESOLUTION).cumsum(dim=-2)
    o = _within_chunks(q, k, total, min(block, chunk)) @ v
    if n_chunks > 1 or state is not None:
        states, state = _between_chunks(k, v, total, state)
        o = o + (q * total.exp()) @ states
    return o.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens], state


def chunk_sizes(log_decay: Tensor) -> tuple[int, int]:
    """Tokens of a chunk and of a block within which decays may be divided by each other in float32."""
    # Ordinary gates let a whole chunk be one block, which halves the time. To look costs a GPU a stop, and a
    # compiler its single graph.
    if log_decay.device.type == "cpu" and not torch.compiler.is_compiling():
        strongest = float(log_decay.detach().amin()) * (_CHUNK - 1)
        if strongest > -SAFE_SPAN:
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
