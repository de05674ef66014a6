"""A router by product keys: each query of a token finds its k best of n² slots, at the price of 2 n scores.

    q_h = norm(W_h x)                                          two halves, q_h1 and q_h2
    c, e = the k best of  <q_h1, K_h1i> + <q_h2, K_h2j>        over all n² pairs; slot e = i n + j
    w = softmax(c) over the chosen, over all n², or sigmoid(c)

The published query norm is batch normalisation. It is not offered: in training a token's query would depend on the
other tokens, later ones among them. Each query is normalised by itself, without a gain, which would fold into the
keys, and without a shift, which would prefer the same slots for every token.

Source: Lample et al. 2019, https://arxiv.org/abs/1907.05242 ; normalised queries and keys: Berges et al. 2024,
https://arxiv.org/abs/2412.09764

Shape letters: N token, D d_model, H head, K pick of a head, P pick of a token (H K), M key of a half (n), E slot (n²).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.precision import at_least_float32
from doge_lab.layers.routing import Normalisation, balance_loss, check_normalisation, route_weights
from doge_lab.ops.picks import Picks
from doge_lab.ops.product_key_top_k import product_key_top_k

QueryNorm = Literal["rms", "layer", "none"]
DEFAULT_KEYS = 16
"""Keys of a half where a block is not told: 256 slots."""
_EPS = 1e-6


@dataclass(frozen=True)
class Retrieved:
    """What a router found: the picks of each token, their weights [N, P], and the halves' scores [2, M, H, N]."""

    picks: Picks
    weights: Tensor
    halves: Tensor

    def usage(self) -> Tensor:
        """Each slot's share of all picks, [E]."""
        return self.picks.counts / self.picks.indices.numel()

    def balance_loss(self) -> Tensor:
        """E times the product of usage and mean probability, summed over the slots; not weighted."""
        return product_key_balance_loss(self.halves, self.usage())


def product_key_balance_loss(halves: Tensor, usage: Tensor) -> Tensor:
    """The balance loss over all pairs, not weighted: `halves` [2, n, ...] and each pair's share of the picks [n²].

    The probability of a pair is the product of those of its halves, and is averaged over what follows dimension 1.
    """
    rows, columns = halves.float().softmax(1).flatten(2)
    return balance_loss(usage, (rows @ columns.t()).flatten() / rows.shape[1])


def check_product_keys(n_keys: int | None, top_k: int, normalisation: Normalisation) -> None:
    """Refuse more picks than slots, and a softmax over one choice."""
    n_keys = n_keys or DEFAULT_KEYS
    if top_k > n_keys**2:
        raise UserError(f"top_k={top_k} must be at most n_keys² = {n_keys**2}; raise n_keys or lower top_k", "top_k")
    check_normalisation(normalisation, "top_k", top_k)


def normalise(x: Tensor, norm: QueryNorm, dim: int) -> Tensor:
    """`x` scaled to a mean square of 1 along `dim` (rms), after its mean is taken away (layer), or as it is (none)."""
    if norm == "none":
        return x
    y = at_least_float32(x)
    if norm == "layer":
        y = y - y.mean(dim, keepdim=True)
    return (y * (y.square().mean(dim, keepdim=True) + _EPS).rsqrt()).to(x.dtype)


def check_norm_width(norm: QueryNorm, width: int) -> None:
    """Refuse a norm of so few channels that it leaves their signs: nothing learns, and rounding turns them."""
    if norm == "rms" and width < 2:
        raise UserError("normalising one channel leaves nothing but its sign; raise d_query, to 4 or more", "d_query")
    if norm == "layer" and width < 3:
        raise UserError(
            f"layer normalisation of {width} channels leaves nothing but a sign; raise d_query or say rms instead",
            "d_query",
        )


class ProductKeyRouter(nn.Module):
    """Queries and keys of `n_heads` heads over the same n² slots. Its owner initialises it.

    n_keys: keys of either half; DEFAULT_KEYS when None.
    d_query: width of a head's query, two halves; about half of `d_model` when None.
    key_norm: whether keys are normalised as well (rms), then scaled by a learned gain for each channel.
    """

    weight_matrices = ("keys",)

    def __init__(
        self,
        d_model: int,
        *,
        n_keys: int | None,
        n_heads: int,
        top_k: int,
        d_query: int | None,
        normalisation: Normalisation,
        query_norm: QueryNorm,
        key_norm: bool = False,
    ) -> None:
        super().__init__()
        d_query = d_query or max(4, d_model // 4 * 2)
        if d_query % 2:
            raise UserError(f"d_query={d_query} must be even, for its two halves", "d_query")
        check_norm_width(query_norm, d_query)
        if key_norm:
            check_norm_width("rms", d_query // 2)
        self.top_k, self.normalisation, self.query_norm = top_k, normalisation, query_norm
        self.query = nn.Linear(d_model, n_heads * d_query, bias=False)
        self.keys = nn.Parameter(torch.empty(2, n_heads, n_keys or DEFAULT_KEYS, d_query // 2))
        self.key_gain = nn.Parameter(torch.empty(2, n_heads, 1, d_query // 2)) if key_norm else None

    @property
    def n_slots(self) -> int:
        return self.keys.shape[2] ** 2

    @property
    def n_picks(self) -> int:
        """Picks of one token, P; heads may agree on a slot."""
        return self.keys.shape[1] * self.top_k

    @property
    def flops(self) -> int:
        """Forward FLOPs of one token: every query and every key once."""
        return 2 * (self.query.weight.numel() + self.keys.numel())

    def inactive_rows(self) -> int:
        """Slots that one token cannot pick, if its heads pick apart."""
        return max(0, self.n_slots - self.n_picks)

    def init(self) -> None:
        init_linear(self.query)
        init_weight(self.keys, self.keys.shape[-1])
        if self.key_gain is not None:
            nn.init.constant_(self.key_gain, self.keys.shape[-1] ** -0.5)

    def forward(self, x: Tensor) -> Retrieved:
        """What each token of `x` [N, D] retrieves."""
        halves, slots, weights = self._search(x)
        by_token = slots.permute(2, 1, 0).flatten(1), weights.permute(2, 1, 0).flatten(1)
        return Retrieved(Picks.prepare(by_token[0], self.n_slots), by_token[1], halves)

    def _search(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of the halves [2, M, H, N], the best slots [K, H, N] and their weights; tokens innermost."""
        _, n_heads, _, d_half = self.keys.shape
        query = normalise((self.query.weight @ x.t()).view(n_heads, 2 * d_half, -1), self.query_norm, dim=1)
        keys: Tensor = self.keys
        if self.key_gain is not None:
            keys = normalise(keys, "rms", dim=-1) * self.key_gain
        halves = (keys @ query.view(n_heads, 2, d_half, -1).transpose(0, 1)).transpose(1, 2)
        scores, slots = product_key_top_k(halves, self.top_k)
        # The softmax over all pairs is the product of the softmaxes over either half.
        return halves, slots, route_weights(scores, self.normalisation, lambda: halves.logsumexp(1).sum(0), dim=0)

    def choice(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each query of `x` [..., D], heads first: scores of all slots [H N, E], the chosen and their weights."""
        halves, *found = self._search(x.flatten(0, -2))
        chosen, weights = (each.flatten(1).t() for each in found)
        scores = (halves[0][:, None] + halves[1]).flatten(0, 1)  # [E, H, N]
        return scores.flatten(1).t(), chosen, weights
