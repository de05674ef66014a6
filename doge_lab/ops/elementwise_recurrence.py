"""A state in which every number decays by a gate of its own: a linear recurrence, element by element.

    h_t = a_t ⊙ h_{t-1} + x_t                    0 <= a_t <= 1

A whole sequence is cut into chunks: what all chunks leave behind is found token by token, for all of them at once;
then each chunk's first state is carried over from the one before; then the states follow, again for all chunks at
once. That is the same arithmetic twice, in 2 C + T / C steps instead of T. Nothing is divided, so that no gate,
however strong, leaves float32's range.

Source: Martin & Cundy 2018, https://arxiv.org/abs/1709.04057

Shape letters: B batch row, T token, N chunk, C token of a chunk; any shape of a state may follow.
"""

import math
from typing import Any

import torch
from torch import Tensor

from doge_lab.ops.chunks import cut, through_chunks
from doge_lab.ops.dispatch import Example, recurrence
from doge_lab.ops.stacking import fold, unfold

_FEW_NUMBERS = 1 << 12  # of a state; above it, a CPU's steps cost more than their launch


def reference(decay: Tensor, x: Tensor, state: Tensor | None) -> Tensor:
    """The definition: decay and x [B, T, ...] and the first state [B, ...] -> the states, of x's shape."""
    state = torch.zeros_like(x[:, 0]) if state is None else state
    states = []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + x[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


def chunked(decay: Tensor, x: Tensor, state: Tensor | None) -> Tensor:
    """The same for all chunks at once."""
    state = torch.zeros_like(x[:, 0]) if state is None else state
    return _Recurrence.apply(decay, x, state)


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(decay: Tensor, x: Tensor, state: Tensor) -> Tensor:
        return _states(decay, x, state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        decay, _, state = inputs
        ctx.save_for_backward(decay, state, output)

    @staticmethod
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, ...]:
        decay, state, states = ctx.saved_tensors
        # The gradients of the states are the same recurrence, from the last token to the first.
        following = torch.cat([torch.zeros_like(decay[:, :1]), decay[:, 1:].flip(1)], dim=1)
        grad = _Recurrence.apply(following, grad_states.flip(1), torch.zeros_like(state)).flip(1)
        before = torch.cat([state[:, None], states[:, :-1]], dim=1)
        return grad * before, grad, grad[:, 0] * decay[:, 0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[Tensor, int]:
        # Rows do not know of each other, so that replicas are further rows.
        states = _Recurrence.apply(*fold(info.batch_size, in_dims, arguments))
        return unfold(info.batch_size, states), 0


def _states(decay: Tensor, x: Tensor, state: Tensor) -> Tensor:
    tokens = x.shape[1]
    n_chunks = 1 if x.device.type == "cpu" and state.numel() > _FEW_NUMBERS else math.isqrt(2 * tokens)
    chunk = -(-tokens // n_chunks)
    decay, x = (cut(each, n_chunks, chunk) for each in (decay, x))  # [B, N, C, ...]
    state = state[:, None] if n_chunks == 1 else _first_states(decay, x, state)
    states = x.clone()
    for t in range(chunk):
        state = states[:, :, t].addcmul_(decay[:, :, t], state)
    return states.flatten(1, 2)[:, :tokens]


def _first_states(decay: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """The state before each chunk [B, N, ...]."""
    left, total = x[:, :, 0], decay[:, :, 0]
    for t in range(1, x.shape[2]):
        left, total = torch.addcmul(x[:, :, t], decay[:, :, t], left), total * decay[:, :, t]
    return through_chunks(x.shape[1], state, lambda n, state: torch.addcmul(left[:, n], total[:, n], state), dim=1)[0]


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    decay, x, state = (torch.rand(2, *shape, 5, generator=make) for shape in ((37,), (37,), ()))
    return {"a state": Example((decay, x, state)), "no state": Example((decay.square(), x, None))}


elementwise_recurrence = recurrence("elementwise_recurrence", reference, chunked, _examples)
