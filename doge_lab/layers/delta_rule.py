"""A matrix-valued state in which the value stored under a key is replaced, not added to: token by token or in chunks.

    S_t = diag(a_t) S_{t-1} + w_tᵀ d_t + c_tᵀ u_t       d_t = v_t - k_t diag(a_t) S_{t-1}       o_t = q_t S_t

The delta rule is w_t = b_t k_t with a unit key k_t: what it finds there moves by the share b_t towards v_t. The decay
a_t is one number per head, or one per key channel. The last term adds values under other keys, or is left out.

Within a chunk that starts from S_0 the corrections d solve (I + L) d = v - k S_0, all decayed, where the triangle L
holds the scores of each key with the writes before it (the UT transform); between chunks the state carries on.

Source: Yang et al. 2024, https://arxiv.org/abs/2406.06484 ; with decay: Yang et al. 2024,
https://arxiv.org/abs/2412.06464 ; decay per channel: Kimi Team 2025, https://arxiv.org/abs/2510.26692

Shape letters: B batch row, T token, H head, K key channel, V value channel, A decay channel (K, or 1 for all), N chunk,
C token of a chunk, M block of a chunk, W token of a block, R kind of row (q and k), E kind of write (w, or w and c).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from doge_lab.layers.decay import LOG_RESOLUTION, SAFE_BLOCK, SAFE_SPAN

Impl = Literal["chunked", "reference"]

_CHUNK = 16
_CHUNK_OFF_CPU = 64  # fewer, larger steps: a kernel costs more to launch than to run


def unit(x: Tensor) -> Tensor:
    """Rows of length 1 in float32; of zero where they are zero."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    *,
    added: tuple[Tensor, Tensor] | None = None,
    strongest: float = LOG_RESOLUTION,
    impl: Impl = "chunked",
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] and the state after the last token, [B, H, K, V], from `state` or from nothing.

    Float32 all: q, k, w [B, T, H, K], v [B, T, H, V], log_decay [B or 1, T, H or 1, A] and `added`, (c, u) in the
    shapes of (k, v). No log_decay may lie below `strongest`, unless that is too strong to matter anyway.
    """
    # The state is summed into over the whole sequence, so it is float32 whatever the type around it.
    with torch.autocast(q.device.type, enabled=False):
        if impl == "reference" or q.shape[1] == 1:
            return recurrent(q, k, v, w, log_decay, state, added)
        return chunked(q, k, v, w, log_decay, state, added, strongest)


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    added: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one token after the other."""
    state = v.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1]) if state is None else state
    decay, outputs = log_decay.exp()[..., None], []
    for t in range(q.shape[1]):
        state = decay[:, t] * state
        correction = v[:, t, :, None, :] - k[:, t, :, None, :] @ state
        state = torch.addcmul(state, w[:, t, :, :, None], correction)
        if added is not None:
            c, u = added
            state = torch.addcmul(state, c[:, t, :, :, None], u[:, t, :, None, :])
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    added: tuple[Tensor, Tensor] | None = None,
    strongest: float = LOG_RESOLUTION,
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent`, in parallel within chunks."""
    tokens, per_channel = q.shape[1], log_decay.shape[-1] > 1
    chunk = _CHUNK if per_channel or q.device.type == "cpu" else _CHUNK_OFF_CPU
    n_chunks = -(-tokens // chunk)
    chunk = -(-tokens // n_chunks // SAFE_BLOCK) * SAFE_BLOCK  # as even as blocks allow
    q, k, v, w, log_decay = (_in_chunks(heads, n_chunks, chunk) for heads in (q, k, v, w, log_decay))
    c, u = (None, None) if added is None else (_in_chunks(heads, n_chunks, chunk) for heads in added)
    rows, writes = torch.stack([q, k], dim=-3), torch.stack([w] if c is None else [w, c], dim=-3)
    total = log_decay.clamp(min=LOG_RESOLUTION).cumsum(dim=-2)  # [B, H, N, C, A]
    if per_channel:
        block = chunk if -strongest * (chunk - 1) <= SAFE_SPAN else SAFE_BLOCK
        scores = _scores_per_channel(rows, writes, total, block)
    else:
        scores = _scores_per_head(rows, writes, total)
    of_q, of_k = scores.unbind(dim=-3)  # [B, H, N, C, E * C]
    q, k = (rows * total.exp()[..., None, :, :]).unbind(dim=-3)
    if u is not None:
        v = v - of_k[..., chunk:].tril(-1) @ u
    solved = torch.linalg.solve_triangular(
        of_k[..., :chunk], torch.cat([v, k], dim=-1), upper=False, unitriangular=True
    )
    last = total[..., -1:, :]
    writes = (writes * (last - total).exp()[..., None, :, :]).flatten(-3, -2)  # [B, H, N, E * C, K]
    corrections, reads = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    values, states, state = _between_chunks(corrections, reads, u, writes, last, state)
    o = of_q @ values + q @ states
    return o.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens], state


def _in_chunks(heads: Tensor, n_chunks: int, chunk: int) -> Tensor:
    """[B, T, H, K] -> [B, H, N, C, K], filled up with zeros, which write nothing and decay nothing."""
    if padding := n_chunks * chunk - heads.shape[1]:
        heads = F.pad(heads, (0, 0, 0, 0, 0, padding))
    return heads.unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4).contiguous()


def _scores_per_head(rows: Tensor, writes: Tensor, total: Tensor) -> Tensor:
    """Scores [B, H, N, R, C, E * C] of each row with the writes up to it, decayed by exp(total_row - total_write)."""
    chunk = rows.shape[-2]
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=rows.device).tril()
    between = (total - total.mT).masked_fill(~causal, -torch.inf).exp()
    between = between.repeat(1, 1, 1, 1, writes.shape[-3])
    scores = rows.flatten(-3, -2) @ writes.flatten(-3, -2).mT
    return scores.unflatten(-2, (2, chunk)) * between[..., None, :, :]


def _scores_per_channel(rows: Tensor, writes: Tensor, total: Tensor, block: int) -> Tensor:
    """The same with a decay in each channel.

    It is split at the middle of both tokens' blocks, (row - its middle) + (middle - middle) + (its middle - write),
    so that no exponent leaves float32's range while the product of all three stays exact.
    """
    chunk, kinds = rows.shape[-2], writes.shape[-3]
    blocks = (chunk // block, block)
    middle = total[..., (block - 1) // 2 :: block, :]  # [B, H, N, M, K]
    offset = (total.unflatten(-2, blocks) - middle[..., None, :])[..., None, :, :, :]
    rows = rows.unflatten(-2, blocks) * offset.exp()  # [B, H, N, R, M, W, K]
    writes = writes.unflatten(-2, blocks) * (-offset).exp()
    causal = torch.ones(blocks[0], blocks[0], dtype=torch.bool, device=rows.device).tril()
    between = middle[..., :, None, :] - middle[..., None, :, :]  # [B, H, N, M, M, K]
    between = between.masked_fill(~causal[..., None], -torch.inf).exp()
    writes = writes[..., None, :, :, :, :] * between[..., None, :, None, :]  # [B, H, N, M, E, M, W, K]
    scores = rows.transpose(-4, -3).flatten(-3, -2) @ writes.flatten(-4, -2).mT  # [B, H, N, M, R * W, E * C]
    scores = scores.unflatten(-2, (2, block)).transpose(-4, -3).flatten(-3, -2)
    return scores * torch.ones(chunk, chunk, device=rows.device).tril().repeat(1, kinds)


def _between_chunks(
    corrections: Tensor, reads: Tensor, u: Tensor | None, writes: Tensor, last: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Go through the chunks with the state, of which `reads` [B, H, N, C, K] is still to be taken off `corrections`.

    Returns the values written [B, H, N, E * C, V], the state before each chunk [B, H, N, K, V], and the last state.
    """
    state = corrections.new_zeros(*reads.shape[:2], reads.shape[-1], corrections.shape[-1]) if state is None else state
    decay, writes = last.exp().mT, writes.mT
    values, states = [], []
    for n in range(corrections.shape[2]):
        states.append(state)
        value = corrections[:, :, n] - reads[:, :, n] @ state
        values.append(value if u is None else torch.cat([value, u[:, :, n]], dim=-2))
        state = decay[:, :, n] * state + writes[:, :, n] @ values[-1]
    return torch.stack(values, dim=2), torch.stack(states, dim=2), state
