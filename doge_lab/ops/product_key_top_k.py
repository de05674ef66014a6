"""Product keys: the best k of n² sums, found from the best k of either half.

    best k of  rows[i] + columns[j]  over all i, j

With both halves sorted, the pair (i, j) is beaten by the (i + 1)(j + 1) - 1 pairs above and to the left of it, so
only pairs with (i + 1)(j + 1) <= k can be among the best k: 8 of 16 for k = 4, 50 of 256 for k = 16.

    k = 4       j 0 1 2 3
            i 0   x x x x
            i 1   x x . .
            i 2   x . . .
            i 3   x . . .

Source: Lample et al. 2019, https://arxiv.org/abs/1907.05242 ; selection in X + Y: Frederickson & Johnson 1982,
https://doi.org/10.1016/0022-0000(82)90048-4
"""

import torch
from torch import Tensor

from doge_lab.ops.dispatch import REFERENCE, Example, Op, in_transform
from doge_lab.ops.top_k_indices import top_k_indices

_KEPT: dict[tuple[int, int, torch.device], Tensor] = {}


def reference(halves: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest sums of one score from each half, and which pair each is.

    halves: [2, n, ...], the scores of the rows and of the columns; quickest with the tokens innermost.
    Returns scores [k, ...], the largest first, differentiable, and indices [k, ...], `row * n + column`.
    Raises `ValueError` when k exceeds n².
    """
    _check(halves.shape[1], k)
    found = (halves[0][:, None] + halves[1]).flatten(0, 1).topk(k, dim=0)
    return found.values, found.indices


def staircase(halves: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same from the best of either half."""
    n = halves.shape[1]
    _check(n, k)
    best = top_k_indices(halves.transpose(0, 1), min(k, n)).transpose(0, 1)  # [2, min(k, n), ...]
    rows, columns = halves.detach().gather(1, best)
    ranks = _staircase(n, k, halves.device)  # [2, pairs]
    sums = rows.index_select(0, ranks[0]) + columns.index_select(0, ranks[1])
    chosen = top_k_indices(sums, k)
    pair = best.gather(1, ranks.index_select(1, chosen.flatten()).view(2, *chosen.shape))
    return halves.gather(1, pair).sum(0), pair[0] * n + pair[1]


def _check(n: int, k: int) -> None:
    if k > n * n:
        raise ValueError(f"product keys of {n} rows and {n} columns hold {n * n} pairs, fewer than k={k}")


def _staircase(n: int, k: int, device: torch.device) -> Tensor:
    """The pairs of ranks [2, pairs] that can be among the best k.

    A GPU keeps them: what is copied there from the host can be no part of a captured graph.
    """
    if device.type == "cuda" and not torch.compiler.is_compiling() and (n, k, device) in _KEPT:
        return _KEPT[n, k, device]
    ranks = _list_staircase(n, k, device)
    if ranks.is_cuda and type(ranks) is Tensor and not torch.compiler.is_compiling() and not in_transform(ranks):
        _KEPT[n, k, device] = ranks
    return ranks


def _list_staircase(n: int, k: int, device: torch.device) -> Tensor:
    pairs = [(i, j) for i in range(min(k, n)) for j in range(min(k // (i + 1), n))]
    return torch.tensor([i for i, _ in pairs] + [j for _, j in pairs], device=device).view(2, -1)


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    return {
        "two heads": Example((torch.randn(2, 8, 2, 50, generator=make), 4)),
        "most of all pairs": Example((torch.randn(2, 3, 1, 20, generator=make), 8)),
    }


product_key_top_k = Op(
    "product_key_top_k", {REFERENCE: reference, "staircase": staircase}, lambda halves, k: "staircase", _examples
)
