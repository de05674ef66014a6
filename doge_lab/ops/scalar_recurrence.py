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

from doge_lab.ops.chunks import chunk_layout, decayed_through_chunks, in_chunks, in_tokens
from doge_lab.ops.dispatch import Example, recurrence

_CHUNK = 64


def reference(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
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


def chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in parallel within chunks."""
    tokens = q.shape[1]
    n_chunks, chunk = chunk_layout(tokens, _CHUNK)
    q, k, v, log_decay = (in_chunks(heads, n_chunks, chunk) for heads in (q, k, v, log_decay))  # [B, H, N, C, ...]
    # Strong gates make these sums so large that float32 would lose the differences between neighbours.
    total = log_decay.cumsum(-1, dtype=torch.float64)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    between = (total[..., :, None] - total[..., None, :]).to(v.dtype).masked_fill(~causal, -torch.inf).exp()
    o = ((q @ k.mT) * between) @ v
    last = total[..., -1:]
    written = (k * (last - total).to(v.dtype).exp()[..., None]).mT @ v
    states, state = decayed_through_chunks(written, last.to(v.dtype).exp()[..., None], state)
    o = o + (q * total.to(v.dtype).exp()[..., None]) @ states
    return in_tokens(o, tokens), state


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 70, 3, 4, generator=make) for _ in range(2))
    v, state = torch.randn(2, 70, 3, 5, generator=make), torch.randn(2, 3, 4, 5, generator=make)
    log_decay = -torch.rand(2, 70, 3, generator=make)
    return {
        "all": Example((q, k, v, log_decay, state)),
        "shared keys, no state": Example((q[:, :, :1], k[:, :, :1], v, log_decay[:1, :, :1], None)),
    }


scalar_recurrence = recurrence("scalar_recurrence", reference, chunked, _examples)
