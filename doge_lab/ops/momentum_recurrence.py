"""A matrix trained by gradient descent with momentum and weight decay to map keys to values, token by token or in
chunks.

    e_t = k_t M_{t-1} - v_t        S_t = η_t S_{t-1} - θ_t k_tᵀ e_t        M_t = κ_t M_{t-1} + S_t        o_t = q_t M_t

The gradient k_tᵀ e_t of |k M - v|² / 2 is taken at M_{t-1}. Unrolled over a chunk that begins with M and S,

    M_t = a_t M + c_t S - Σ_{s <= t} P_ts θ_s k_sᵀ e_s        P_ts = Σ_{s <= r <= t} (κ_{r+1} ... κ_t) (η_{s+1} ... η_r)

so that the errors e solve a triangular system, as those of the delta rule (η = 0) do, and a chunk changes (M, S) by an
affine map that does not depend on it.

Source: Behrouz et al. 2024, https://arxiv.org/abs/2501.00663 ; triangular form of the delta rule: Yang et al. 2024,
https://arxiv.org/abs/2406.06484

Shape letters: B batch row, T token, H head, K key channel, V value channel, N chunk, C token of a chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from doge_lab.ops.chunks import chunk_layout, in_chunks, in_tokens, through_chunks
from doge_lab.ops.dispatch import Example, recurrence

_CHUNK = 32


def reference(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: q, k [B, T, H, K], v [B, T, H, V] -> outputs like v, and the state (M, S) [B, H, 2, K, V].

    `rates` [4, B, T, H] are log κ, log η, θ, and 1; a token for which all four are 0 changes nothing.
    """
    memory, momentum = (_no_state(k, v) if state is None else state).unbind(2)
    log_keep, log_momentum, learn, moves = rates[..., None, None].unbind(0)  # [B, T, H, 1, 1]
    keep, momentum_decay, outputs = log_keep.exp(), log_momentum.exp(), []
    for t in range(q.shape[1]):
        error = k[:, t, :, None] @ memory - v[:, t, :, None]  # [B, H, 1, V]
        momentum = momentum_decay[:, t] * momentum - learn[:, t] * k[:, t, :, :, None] * error
        memory = keep[:, t] * memory + moves[:, t] * momentum
        outputs.append((q[:, t, :, None] @ memory).squeeze(-2))
    return torch.stack(outputs, dim=1), torch.stack([memory, momentum], dim=2)


def chunked(q: Tensor, k: Tensor, v: Tensor, rates: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in parallel within chunks."""
    tokens = q.shape[1]
    state = _no_state(k, v) if state is None else state
    n_chunks, size = chunk_layout(tokens, _CHUNK)
    q, k, v = (in_chunks(heads, n_chunks, size) for heads in (q, k, v))  # [B, H, N, C, K]
    log_keep, log_momentum, learn, moves = (in_chunks(rate, n_chunks, size) for rate in rates)  # [B, H, N, C]

    keep, momentum = _products(log_keep), _products(log_momentum)  # [B, H, N, C, 1 + C]
    reach = keep[..., 1:] @ (moves[..., None] * momentum)  # c_t, and P_ts
    before = F.pad(reach[..., :-1, :], (0, 0, 1, 0))  # of the token before: what its error is measured with
    scores = k @ k.mT * before[..., 1:] * learn[..., None, :]
    kept = torch.cat([torch.ones_like(keep[..., :1, :1]), keep[..., :-1, :1]], dim=-2)
    on_start = torch.cat([kept * k, before[..., :1] * k, v], dim=-1)
    solved = torch.linalg.solve_triangular(scores, on_start, upper=False, unitriangular=True)
    on_state, constant = solved.split([2 * k.shape[-1], v.shape[-1]], dim=-1)  # e = on_state (M, S) - constant

    last = torch.stack([reach[..., -1, 1:], momentum[..., -1, 1:]], dim=-1) * learn[..., None]  # [B, H, N, C, 2]
    writes = (last[..., None] * k[..., None, :]).flatten(-2)  # [B, H, N, C, 2 K]
    transition = _decay(keep[..., -1, 0], reach[..., -1, 0], momentum[..., -1, 0], k.shape[-1]) - writes.mT @ on_state
    states, state = _between_chunks(transition, writes.mT @ constant, state)

    read = torch.cat([keep[..., :1] * q, reach[..., :1] * q], dim=-1)
    attention = q @ k.mT * reach[..., 1:] * learn[..., None, :]
    o = (read - attention @ on_state) @ states + attention @ constant
    return in_tokens(o, tokens), state


def _no_state(k: Tensor, v: Tensor) -> Tensor:
    return v.new_zeros(len(v), v.shape[2], 2, k.shape[-1], v.shape[-1])


def _products(log_factor: Tensor) -> Tensor:
    """Products of the factors [..., C] after token s up to token t, [..., t, 1 + s]; column 0 starts with the chunk.

    Each is summed by itself: differences of running sums would round what follows a strong factor.
    """
    size = log_factor.shape[-1]
    allowed = torch.ones(size, size + 1, dtype=torch.bool, device=log_factor.device)
    logs = log_factor[..., None].expand(*log_factor.shape, size + 1).masked_fill(~allowed.tril(), 0.0)
    return logs.cumsum(-2).masked_fill(~allowed.tril(1), -torch.inf).exp()


def _decay(keep: Tensor, reach: Tensor, momentum: Tensor, key_dim: int) -> Tensor:
    """What a chunk that writes nothing does to (M, S), [..., 2K, 2K]: [[keep, reach], [0, momentum]] per channel."""
    one = torch.eye(key_dim, dtype=keep.dtype, device=keep.device)
    to_memory = torch.cat([keep[..., None, None] * one, reach[..., None, None] * one], dim=-1)
    return torch.cat([to_memory, F.pad(momentum[..., None, None] * one, (key_dim, 0))], dim=-2)


def _between_chunks(transition: Tensor, written: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk [B, H, N, 2K, V], and the state after the last [B, H, 2, K, V]."""
    shape, matrices, writes = state.shape, transition.unbind(2), written.unbind(2)
    states, last = through_chunks(len(writes), state.flatten(2, 3), lambda n, state: matrices[n] @ state + writes[n])
    return states, last.view(shape)


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(2, 70, 3, 4, generator=make), dim=-1) for _ in range(2))
    v, state = torch.randn(2, 70, 3, 5, generator=make), torch.randn(2, 3, 2, 4, 5, generator=make)
    forget, momentum, learn = torch.rand(3, 2, 70, 3, generator=make)
    rates = torch.stack([-forget, -0.1 - momentum, learn, torch.ones_like(learn)])
    return {"a state": Example((q, k, v, rates, state)), "no state": Example((q, k, v, rates, None))}


momentum_recurrence = recurrence("momentum_recurrence", reference, chunked, _examples)
