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

from doge_lab.layers.routing import balance_loss
from doge_lab.layers.top_k import top_k_indices


def product_key_top_k(halves: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest sums of one score from each half, and which pair each is.

    halves: [2, n, ...], the scores of the rows and of the columns; quickest with the tokens innermost.
    Returns scores [k, ...], the largest first, differentiable, and indices [k, ...], `row * n + column`.
    Raises `ValueError` when k exceeds n².
    """
    n = halves.shape[1]
    if k > n * n:
        raise ValueError(f"product keys of {n} rows and {n} columns hold {n * n} pairs, fewer than k={k}")
    best = top_k_indices(halves.transpose(0, 1), min(k, n)).transpose(0, 1)  # [2, min(k, n), ...]
    rows, columns = halves.detach().gather(1, best)
    ranks = _staircase(n, k, halves.device)  # [2, pairs]
    sums = rows.index_select(0, ranks[0]) + columns.index_select(0, ranks[1])
    chosen = top_k_indices(sums, k)
    pair = best.gather(1, ranks.index_select(1, chosen.flatten()).view(2, *chosen.shape))
    return halves.gather(1, pair).sum(0), pair[0] * n + pair[1]


def product_key_balance_loss(halves: Tensor, usage: Tensor) -> Tensor:
    """The balance loss over all pairs, not weighted: `halves` [2, n, ...] and each pair's share of the picks [n²].

    The probability of a pair is the product of those of its halves, and is averaged over what follows dimension 1.
    """
    rows, columns = halves.float().softmax(1).flatten(2)
    return balance_loss(usage, (rows @ columns.t()).flatten() / rows.shape[1])


def _staircase(n: int, k: int, device: torch.device) -> Tensor:
    """The pairs of ranks [2, pairs] that can be among the best k."""
    pairs = [(i, j) for i in range(min(k, n)) for j in range(min(k // (i + 1), n))]
    return torch.tensor([i for i, _ in pairs] + [j for _, j in pairs], device=device).view(2, -1)
