"""A diagonal state-space model whose step size, input and output projections every token chooses.

    h_t = exp(Δ_t A) ⊙ h_{t-1} + b_tᵀ (Δ_t x_t)        y_t = c_t h_t        A < 0

per channel, on a state of N numbers. The decays differ in every channel and every number of its state, so nothing
here is a matrix product over time; the state of every token, T · D · N numbers, is what costs. A whole sequence is
computed in stretches of tokens small enough for a processor's cache: only the state before each stretch is kept, and
the backward pass computes the rest again. Every factor is a decay of at most 1 and none is divided by, so that no
gate, however strong, leaves float32's range.

Source: Gu & Dao 2023, https://arxiv.org/abs/2312.00752

Shape letters: B batch row, T token, S token of a stretch, D channel, N number of a channel's state.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_NUMBERS = 1 << 18  # states of a stretch: a few tensors of 1 MiB
_GPU_NUMBERS = 1 << 24  # as many as feed a GPU without a second thought for its memory


def recurrent(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: x, delta [B, T, D], a [N, D], b, c [B, T, N] -> outputs like x, state [B, N, D]."""
    state = x.new_zeros(len(x), *a.shape) if state is None else state
    written, outputs = delta * x, []
    for t in range(x.shape[1]):
        decay = (delta[:, t, None, :] * a).exp()
        state = decay * state + b[:, t, :, None] * written[:, t, None, :]
        outputs.append((c[:, t, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same as `recurrent`, in stretches of tokens."""
    state = x.new_zeros(len(x), *a.shape) if state is None else state
    return _SelectiveScan.apply(x, delta, a, b, c, state)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        written, outputs, before = delta * x, [], []
        for part in _stretches(x, state):
            before.append(state)
            _, states = _run(written[:, part], delta[:, part], a, b[:, part], state)
            outputs.append((c[:, part, None, :] @ states).squeeze(-2))
            state = states[:, -1].clone()
        ctx.save_for_backward(x, delta, a, b, c, *before)
        return torch.cat(outputs, dim=1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor, ...]:
        x, delta, a, b, c, *before = ctx.saved_tensors
        written, grad_a = delta * x, torch.zeros_like(a)
        grad_written, grad_delta, grad_b, grad_c = (torch.empty_like(each) for each in (x, delta, b, c))
        for part, state in reversed(list(zip(_stretches(x, before[0]), before, strict=True))):
            decay, states = _run(written[:, part], delta[:, part], a, b[:, part], state)
            grad_c[:, part] = (states @ grad_y[:, part, :, None]).squeeze(-1)
            grad = _run_back(decay, c[:, part, :, None] * grad_y[:, part, None, :], grad_state)
            grad_state = decay[:, 0] * grad[:, 0]
            grad_b[:, part] = (grad @ written[:, part, :, None]).squeeze(-1)
            grad_written[:, part] = (b[:, part, None, :] @ grad).squeeze(-2)
            grad_exponent = grad.mul_(decay)  # of Δ_t A
            grad_exponent[:, 0] *= state
            grad_exponent[:, 1:] *= states[:, :-1]
            grad_delta[:, part] = (grad_exponent * a).sum(-2)
            grad_a += grad_exponent.mul_(delta[:, part, None, :]).sum((0, 1))
        return grad_written * delta, grad_delta + grad_written * x, grad_a, grad_b, grad_c, grad_state


def _stretches(x: Tensor, state: Tensor) -> Iterator[slice]:
    numbers = _CPU_NUMBERS if x.device.type == "cpu" else _GPU_NUMBERS
    tokens = max(1, numbers // state.numel())
    return (slice(start, start + tokens) for start in range(0, x.shape[1], tokens))


def _run(written: Tensor, delta: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The decays and the states [B, S, N, D] of one stretch that begins with `state`."""
    decay = (delta[:, :, None, :] * a).exp_()
    states = b[..., None] * written[:, :, None, :]
    for t in range(b.shape[1]):
        state = states[:, t].addcmul_(decay[:, t], state)
    return decay, states


def _run_back(decay: Tensor, grad: Tensor, following: Tensor) -> Tensor:
    """The gradients of the states [B, S, N, D]: what each gives to its output, and to the state that follows."""
    grad[:, -1] += following
    for t in range(grad.shape[1] - 2, -1, -1):
        grad[:, t].addcmul_(decay[:, t + 1], grad[:, t + 1])
    return grad
