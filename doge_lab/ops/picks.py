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

from doge_lab.ops.dispatch import REFERENCE, Example, Op, at_hand, in_transform

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


def count_picks(indices: Tensor, n_experts: int) -> Tensor:
    """How often each expert is among `indices` (of any shape), [E]."""
    flat = indices.flatten()
    return flat.new_zeros(n_experts).scatter_add_(0, flat, torch.ones_like(flat))


def dot_reference(x: Tensor, table: Tensor, picks: Picks, /) -> Tensor:
    """The dot product of each token with every row it picked: x [N, D], table [E, D] -> [N, P]."""
    import einx  # a second of imports that only the definitions need

    x, table = _same_dtype(x, table)
    return einx.dot("n [d], n p [d] -> n p", x, einx.get_at("[e] d, n p -> n p d", table, picks.indices))


def dot_gathered(x: Tensor, table: Tensor, picks: Picks, /) -> Tensor:
    """The same by one product of matrices for each token."""
    x, table = _same_dtype(x, table)
    return (table[picks.indices] @ x[:, :, None]).squeeze(-1)


def dot_bags(x: Tensor, table: Tensor, picks: Picks, /) -> Tensor:
    """The same without the gathered rows."""
    x, table = _same_dtype(x, table)
    return _PickDot.apply(x, table, picks.indices, picks.token, *(picks.by_row or [None] * 3))


def sum_reference(weights: Tensor, table: Tensor, picks: Picks, /) -> Tensor:
    """The sum of the picked rows by weight: weights [N, P], table [E, D] -> [N, D]."""
    import einx

    weights, table = _same_dtype(weights, table)
    return einx.dot("n [p], n [p] d -> n d", weights, einx.get_at("[e] d, n p -> n p d", table, picks.indices))


def sum_gathered(weights: Tensor, table: Tensor, picks: Picks, /) -> Tensor:
    """The same by one product of matrices for each token."""
    weights, table = _same_dtype(weights, table)
    return (weights[:, None] @ table[picks.indices]).squeeze(1)


def sum_bags(weights: Tensor, table: Tensor, picks: Picks, /) -> Tensor:
    """The same without the gathered rows."""
    weights, table = _same_dtype(weights, table)
    return _PickSum.apply(weights, table, picks.indices, picks.token, *(picks.by_row or [None] * 3))


def _choose(dense: Tensor, table: Tensor, picks: Picks, /) -> str:
    """Gather the rows after all where they are few, or where the bags cannot be had."""
    dense, table = _same_dtype(dense, table)
    n_tokens, n_picks = picks.indices.shape
    full = table.dtype in (torch.float32, torch.float64)
    # Not every CUDA build has the private op in half precision.
    bags = _SAMPLED_DOT is not None and table.device.type in (("cpu", "cuda") if full else ("cpu",))
    # One token always gathers, so that PyTorch's FLOP counter, which is blind to bags, sees all of a decoding step.
    few = n_tokens == 1 or n_tokens * n_picks * table.shape[1] <= _FEW_FLOATS
    stacked = in_transform(dense) or in_transform(table) or in_transform(picks.indices)
    return "gathered" if few or stacked or not bags else "bags"


def _same_dtype(*tensors: Tensor) -> list[Tensor]:
    """In autocast's type where it is on, else in the first one's: bags do not promote."""
    device = tensors[0].device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else tensors[0].dtype
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
    if n_experts <= _INT16_EXPERTS and at_hand(flat):
        return torch.from_numpy(flat.to(torch.int16).numpy().argsort(kind="stable"))
    return flat.argsort(stable=True)


def _prepare(dense: Tensor, table: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Picks]:
    return dense, table, Picks.prepare(indices, len(table))


def _examples(dense_width: int) -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 19, (150, 6), generator=make)  # nobody picks the last
    indices[0] = 3  # one token picks one row over and over
    dense, table = torch.randn(150, dense_width, generator=make), torch.randn(20, 24, generator=make)
    return {
        "many tokens": Example((dense, table, indices), _prepare),
        "one token": Example((dense[:1], table, indices[:1]), _prepare),
    }


_NOT_STACKED = {"bags": "PyTorch has no batching rule for embedding bags; under vmap the rows are gathered"}

pick_dot = Op(
    "pick_dot",
    {REFERENCE: dot_reference, "gathered": dot_gathered, "bags": dot_bags},
    _choose,
    lambda: _examples(24),
    not_stacked=_NOT_STACKED,
)
pick_sum = Op(
    "pick_sum",
    {REFERENCE: sum_reference, "gathered": sum_gathered, "bags": sum_bags},
    _choose,
    lambda: _examples(6),
    not_stacked=_NOT_STACKED,
)
