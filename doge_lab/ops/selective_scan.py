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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from doge_lab.ops.dispatch import Example, recurrence
from doge_lab.ops.stacking import fold, stacked, unfold

_CPU_NUMBERS = 1 << 18  # states of a stretch: a few tensors of 1 MiB
_GPU_NUMBERS = 1 << 24  # as many as feed a GPU without a second thought for its memory


def reference(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition: x, delta [B, T, D], a [N, D], b, c [B, T, N] -> outputs like x, state [B, N, D]."""
    state = x.new_zeros(len(x), *a.shape) if state is None else state
    written, outputs = delta * x, []
    for t in range(x.shape[1]):
        decay = (delta[:, t, None, :] * a).exp()
        state = decay * state + b[:, t, :, None] * written[:, t, None, :]
        outputs.append((c[:, t, None, :] @ state).squeeze(-2))
    return torch.stack(outputs, dim=1), state


def chunked(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in stretches of tokens."""
    state = x.new_zeros(len(x), *a.shape) if state is None else state
    y, state, _ = _SelectiveScan.apply(x, delta, a, b, c, state)
    return y, state


class _SelectiveScan(torch.autograd.Function):
    """The outputs, the last state, and the state before each stretch [P, B, N, D], which is for the backward pass.

    `a` is [N, D], or, where rows belong to several replicas, [B, 1, N, D].
    """

    @staticmethod
    def forward(
        x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        written, outputs, before = delta * x, [], []
        for part in _stretches(x, state):
            before.append(state)
            _, states = _run(written[:, part], delta[:, part], a, b[:, part], state)
            outputs.append((c[:, part, None, :] @ states).squeeze(-2))
            state = states[:, -1].clone()
        return torch.cat(outputs, dim=1), state, torch.stack(before)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs[:5], output[2])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return _Gradients.apply(*ctx.saved_tensors, grad_y, grad_state)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        y, state, before = _SelectiveScan.apply(*_as_rows(info.batch_size, in_dims, arguments))
        rows = (unfold(info.batch_size, y), unfold(info.batch_size, state))
        return (*rows, before.unflatten(1, (info.batch_size, -1))), (0, 0, 1)


class _Gradients(torch.autograd.Function):
    """The backward pass, a function of its own so that it can be mapped over replicas as well."""

    @staticmethod
    def forward(
        x: Tensor,
        delta: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        before: Tensor,
        grad_y: Tensor,
        grad_state: Tensor,
    ) -> tuple[Tensor, ...]:
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
            grad_a += grad_exponent.mul_(delta[:, part, None, :]).sum((0, 1) if a.ndim == 2 else 1).view_as(a)
        return grad_written * delta, grad_delta + grad_written * x, grad_a, grad_b, grad_c, grad_state

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("the selective scan in stretches has no second derivative; use its reference form")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        replicas = info.batch_size
        *rows, before, grad_y, grad_state = arguments
        *row_dims, before_dim, grad_y_dim, grad_state_dim = in_dims
        before = stacked(replicas, before_dim, before).transpose(0, 1).flatten(1, 2)
        grads = _Gradients.apply(
            *_as_rows(replicas, row_dims, rows),
            before,
            *fold(replicas, (grad_y_dim, grad_state_dim), (grad_y, grad_state)),
        )
        grads = [unfold(replicas, grad) for grad in grads]
        if arguments[2].ndim - (in_dims[2] is not None) == 2:  # what the rows of a replica share
            grads[2] = grads[2].sum((1, 2))
        return tuple(grads), (0,) * len(grads)


def _as_rows(replicas: int, dims: Sequence[int | None], arguments: Sequence[Tensor]) -> list[Tensor]:
    """The replicas' x, delta, a, b, c (and state) as further rows, each with its own `a`."""
    rows = [stacked(replicas, dim, x) for dim, x in zip(dims, arguments, strict=True)]
    if rows[2].ndim == 3:
        rows[2] = rows[2][:, None, None].expand(-1, rows[0].shape[1], -1, -1, -1)
    return [x.flatten(0, 1) for x in rows]


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


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(2, 23, width, generator=make) for width in (3, 4, 4))
    delta, a, state = (
        torch.rand(2, 23, 3, generator=make),
        -3 * torch.rand(4, 3, generator=make),
        torch.randn(2, 4, 3, generator=make),
    )
    return {"a state": Example((x, delta, a, b, c, state)), "no state": Example((x, 40 * delta, a, b, c, None))}


selective_scan = recurrence("selective_scan", reference, chunked, _examples)
