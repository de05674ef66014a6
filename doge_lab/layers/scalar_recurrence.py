"""A matrix-valued state that decays by one number per head and token, token by token or in chunks.

    S_t = a_t S_{t-1} + k_tᵀ v_t              o_t = q_t S_t              0 < a_t <= 1

Within a chunk this is masked attention whose scores are multiplied by the decay between query and key; between chunks
the state carries on. Retention, linear attention and state-space duality are all of this form.

Source: Sun et al. 2023, https://arxiv.org/abs/2307.08621 ; Dao & Gu 2024, https://arxiv.org/abs/2405.21060

Shape letters: B batch row, T token, H head, G heads of queries and keys (H, or 1 for all), K key channel, V value
channel, N chunk, C token of a chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 64


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: q, k [B, T, G, K], v [B, T, H, V], log_decay [B, T, H] -> outputs like v, state [B, H, K, V].

    `log_decay` may have one row for all, and one head for all.
    """
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    decay, outputs = log_decay.exp(), []
    for t in range(q.shape[1]):
        state = decay[:, t, :, None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, chunk: int = _CHUNK
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent`, in parallel within chunks of up to `chunk` tokens."""
    tokens = q.shape[1]
    n_chunks = -(-tokens // chunk)
    chunk = -(-tokens // n_chunks)
    if padding := n_chunks * chunk - tokens:  # zero keys write nothing, a decay of 1 forgets nothing
        q, k, v = (F.pad(heads, (0, 0, 0, 0, 0, padding)) for heads in (q, k, v))
        log_decay = F.pad(log_decay, (0, 0, 0, padding))
    q, k, v = (heads.unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2, 4) for heads in (q, k, v))  # [B, H, N, C, K]
    log_decay = log_decay.unflatten(1, (n_chunks, chunk)).permute(0, 3, 1, 2)  # [B, H, N, C]
    # Strong gates make these sums so large that float32 would lose the differences between neighbours.
    total = log_decay.cumsum(-1, dtype=torch.float64)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    between = (total[..., :, None] - total[..., None, :]).to(v.dtype).masked_fill(~causal, -torch.inf).exp()
    o = ((q @ k.mT) * between) @ v
    states, state = _between_chunks(k, v, total, state)
    o = o + (q * total.to(v.dtype).exp()[..., None]) @ states
    return o.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens], state


def _between_chunks(k: Tensor, v: Tensor, total: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each chunk [B, H, N, K, V], and the state after the last [B, H, K, V]."""
    last = total[..., -1:]
    written = (k * (last - total).to(v.dtype).exp()[..., None]).mT @ v
    decay = last.to(v.dtype).exp()[..., None]  # [B, H, N, 1, 1]
    state = torch.zeros_like(written[:, :, 0]) if state is None else state
    states = []
    for chunk in range(written.shape[2]):
        states.append(state)
        state = torch.addcmul(written[:, :, chunk], decay[:, :, chunk], state)
    return torch.stack(states, dim=2), state
