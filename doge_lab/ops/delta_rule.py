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

import torch
from torch import Tensor

from doge_lab.ops.chunks import chunk_layout, in_chunks, in_tokens, through_chunks
from doge_lab.ops.decay import LOG_RESOLUTION, SAFE_BLOCK, SAFE_SPAN
from doge_lab.ops.dispatch import Example, recurrence

_CHUNK = 16
_CHUNK_OFF_CPU = 64  # fewer, larger steps: a kernel costs more to launch than to run


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    added: tuple[Tensor, Tensor] | None = None,
    strongest: float = LOG_RESOLUTION,
) -> tuple[Tensor, Tensor]:
    """The definition: outputs [B, T, H, V] and the state after the last token, [B, H, K, V], from `state` or from 0.

    q, k, w [B, T, H, K], v [B, T, H, V], log_decay [B or 1, T, H or 1, A] and `added`, (c, u) in the shapes of (k, v).
    No log_decay may lie below `strongest`, unless that is too strong to matter anyway: a bound for other forms.
    """
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
    """The same in parallel within chunks."""
    tokens, per_channel = q.shape[1], log_decay.shape[-1] > 1
    longest = _CHUNK if per_channel or q.device.type == "cpu" else _CHUNK_OFF_CPU
    n_chunks, chunk = chunk_layout(tokens, longest, SAFE_BLOCK)
    q, k, v, w, log_decay = (in_chunks(heads, n_chunks, chunk).contiguous() for heads in (q, k, v, w, log_decay))
    c, u = (None, None) if added is None else (in_chunks(heads, n_chunks, chunk).contiguous() for heads in added)
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
    return in_tokens(o, tokens), state


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
    decay, writes, values = last.exp().mT, writes.mT, []

    def step(n: int, state: Tensor) -> Tensor:
        value = corrections[:, :, n] - reads[:, :, n] @ state
        values.append(value if u is None else torch.cat([value, u[:, :, n]], dim=-2))
        return decay[:, :, n] * state + writes[:, :, n] @ values[-1]

    states, state = through_chunks(corrections.shape[2], state, step)
    return torch.stack(values, dim=2), states, state


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    q, k, c = (torch.nn.functional.normalize(torch.randn(2, 37, 3, 4, generator=make), dim=-1) for _ in range(3))
    v, u = (torch.randn(2, 37, 3, 5, generator=make) for _ in range(2))
    w, state = k * torch.rand(2, 37, 3, 1, generator=make), torch.randn(2, 3, 4, 5, generator=make)
    gates = -torch.rand(2, 37, 3, 4, generator=make)
    return {
        "a decay per head": Example((q, k, v, w, gates[..., :1], state)),
        "no decay, no state": Example((q, k, v, w, torch.zeros(1, 37, 1, 1), None)),
        "a decay per channel": Example((q, k, v, w, 4 * gates, state)),
        "values added": Example((q, k, v, w, 0.6 * gates, state, (c, u), -0.6)),
    }


delta_rule = recurrence("delta_rule", reference, chunked, _examples)
