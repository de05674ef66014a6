"""A sequence in chunks: cut, filled up with zeros, put together again, and a state carried from chunk to chunk.

Zeros are what the recurrences here take for nothing: a zero key writes nothing, a decay whose logarithm is zero
forgets nothing.

Shape letters: B batch row, T token, H head, N chunk, C token of a chunk, K key channel, V value channel.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def chunk_layout(tokens: int, longest: int, multiple: int = 1) -> tuple[int, int]:
    """The number of chunks and the tokens of one: at most `longest`, a multiple of `multiple`, as even as can be."""
    n_chunks = -(-tokens // longest)
    return n_chunks, -(-tokens // n_chunks // multiple) * multiple


def in_chunks(x: Tensor, n_chunks: int, chunk: int) -> Tensor:
    """[B, T, H, ...] -> [B, H, N, C, ...], filled up with zeros."""
    return cut(x, n_chunks, chunk).movedim(3, 1)


def cut(x: Tensor, n_chunks: int, chunk: int) -> Tensor:
    """[B, T, ...] -> [B, N, C, ...], filled up with zeros."""
    if padding := n_chunks * chunk - x.shape[1]:
        x = F.pad(x, [0, 0] * (x.ndim - 2) + [0, padding])
    return x.unflatten(1, (n_chunks, chunk))


def in_tokens(x: Tensor, tokens: int) -> Tensor:
    """[B, H, N, C, V] -> [B, T, H, V], without what was filled up."""
    return x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :tokens]


def through_chunks(
    n_chunks: int, state: Tensor, step: Callable[[int, Tensor], Tensor], dim: int = 2
) -> tuple[Tensor, Tensor]:
    """The state before each chunk, stacked along `dim`, and the state after the last; `step` gives the next one."""
    states = []
    for n in range(n_chunks):
        states.append(state)
        state = step(n, state)
    return torch.stack(states, dim=dim), state


def decayed_through_chunks(written: Tensor, decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same where a chunk n makes `decay[:, :, n] * state + written[:, :, n]` of a state [B, H, K, V]."""
    state = torch.zeros_like(written[:, :, 0]) if state is None else state
    return through_chunks(
        written.shape[2], state, lambda n, state: torch.addcmul(written[:, :, n], decay[:, :, n], state)
    )
