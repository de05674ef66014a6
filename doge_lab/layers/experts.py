"""Single-neuron experts, gathered without ever holding [tokens, picks, d].

    pick_dot   a[t, p] = <x[t], table[pick[t, p]]>            each token against the rows that it picked
    pick_sum   y[t]    = Σ_p a[t, p] table[pick[t, p]]        the picked rows, weighted and summed

Each is the other's gradient with respect to its dense input. The gradient of the table is a weighted sum as well,
over the tokens that picked a row: sorted by expert once, the picks of a row are a bag, so nothing is scattered.
An embedding bag computes the sums and the gradient of its weights the dots, without a temporary larger than picks.

Source: He 2024 (single-neuron experts), https://arxiv.org/abs/2407.04153 ; Berges et al. 2024 (bags sorted for the
backward pass), https://arxiv.org/abs/2412.09764

Shape letters: N token, P pick, E expert (row of the table), D width of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from doge_lab.layers.routing import count_picks

# The gradient of an embedding bag's weights, a sampled dense-dense product: an operator private to PyTorch.
_SAMPLED_DOT: Any = getattr(torch.ops.aten, "_embedding_bag_per_sample_weights_backward", None)
_SUM_MODE = 0
_FEW_FLOATS = 1 << 13  # gathered rows this small cost less than the bags' set-up
_INT16_EXPERTS = 1 << 15


@dataclass(frozen=True)
class Picks:
    """Which rows each token picked, prepared once for every table that is read with them.

    indices: [N, P].
    counts: [E], how often each row was picked.
    token: [N * P], which token each pick belongs to.
    by_row: the picks sorted by row [N * P], their tokens [N * P], where each row's begin [E]; None without gradients.
    """

    indices: Tensor
    counts: Tensor
    token: Tensor
    by_row: tuple[Tensor, Tensor, Tensor] | None

    @classmethod
    def prepare(cls, indices: Tensor, n_experts: int) -> "Picks":
        """`indices` [N, P] into tables of `n_experts` rows; sorted only where gradients are recorded."""
        indices, counts = indices.contiguous(), count_picks(indices, n_experts)
        token = torch.arange(len(indices), device=indices.device).repeat_interleave(indices.shape[1])
        if not torch.is_grad_enabled():
            return cls(indices, counts, token, None)
        order = _argsort(indices.flatten(), n_experts)
        return cls(indices, counts, token, (order, token.index_select(0, order), counts.cumsum(0) - counts))


def pick_dot(x: Tensor, table: Tensor, picks: Picks) -> Tensor:
    """The dot product of each token with every row it picked: x [N, D], table [E, D] -> [N, P]."""
    x, table = _same_dtype(x, table)
    if _gathers(table, picks):
        return (table[picks.indices] @ x[:, :, None]).squeeze(-1)
    return _PickDot.apply(x, table, picks.indices, picks.token, *(picks.by_row or [None] * 3))


def pick_sum(weights: Tensor, table: Tensor, picks: Picks) -> Tensor:
    """The sum of the picked rows by weight: weights [N, P], table [E, D] -> [N, D]."""
    weights, table = _same_dtype(weights, table)
    if _gathers(table, picks):
        return (weights[:, None] @ table[picks.indices]).squeeze(1)
    return _PickSum.apply(weights, table, picks.indices, picks.token, *(picks.by_row or [None] * 3))


def _gathers(table: Tensor, picks: Picks) -> bool:
    """Whether to hold the gathered rows after all: they are few, or the bags cannot be had."""
    n_tokens, n_picks = picks.indices.shape
    full = table.dtype in (torch.float32, torch.float64)
    # Not every CUDA build has the private op in half precision.
    bags = _SAMPLED_DOT is not None and table.device.type in (("cpu", "cuda") if full else ("cpu",))
    # One token always gathers, so that PyTorch's FLOP counter, which is blind to bags, sees all of a decoding step.
    return not bags or n_tokens == 1 or n_tokens * n_picks * table.shape[1] <= _FEW_FLOATS


def _same_dtype(*tensors: Tensor) -> list[Tensor]:
    """In autocast's type where it is on, else in the first one's: bags do not promote."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]


class _PickDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, indices: Tensor, token: Tensor, *by_row: Tensor) -> Tensor:
        ctx.save_for_backward(x, table, indices, *by_row)
        return _sampled_dot(x.contiguous(), table, indices, token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, table, indices, *by_row = ctx.saved_tensors
        grad = grad.contiguous()
        return _bag(grad, table, indices), _bag_by_row(grad, x, *by_row), *[None] * 5


class _PickSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, indices: Tensor, token: Tensor, *by_row: Tensor) -> Tensor:
        ctx.save_for_backward(weights, table, indices, token, *by_row)
        return _bag(weights, table, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, table, indices, token, *by_row = ctx.saved_tensors
        grad = grad.contiguous()
        return _sampled_dot(grad, table, indices, token), _bag_by_row(weights, grad, *by_row), *[None] * 5


def _sampled_dot(x: Tensor, table: Tensor, indices: Tensor, token: Tensor) -> Tensor:
    # The op's offsets matter to modes other than the sum alone.
    return _SAMPLED_DOT(x, table, indices.flatten(), token, token, _SUM_MODE).view_as(indices)


def _bag(weights: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    # Detached, because a bag of what may want gradients also records what its own backward pass would need.
    return F.embedding_bag(indices, table.detach(), mode="sum", per_sample_weights=weights.detach())


def _bag_by_row(weights: Tensor, x: Tensor, order: Tensor, token: Tensor, starts: Tensor) -> Tensor:
    sorted_weights = weights.detach().flatten().index_select(0, order)
    return F.embedding_bag(token, x.detach(), starts, mode="sum", per_sample_weights=sorted_weights)


def _argsort(flat: Tensor, n_experts: int) -> Tensor:
    # NumPy sorts 16-bit integers by radix, several times faster than torch sorts anything.
    if flat.device.type == "cpu" and n_experts <= _INT16_EXPERTS and not torch.compiler.is_compiling():
        return torch.from_numpy(flat.to(torch.int16).numpy().argsort(kind="stable"))
    return flat.argsort(stable=True)
