"""UltraMem's memory: values on a grid, found by row and column scores of rank r that a learned core contracts.

    q, k = norm(W_h x), norm(K_h)                   for the rows and for the columns, r slices each
    A[a, i] = <q_row,a, k_row,a,i>      B[b, j] = <q_col,b, k_col,b,j>              divided by sqrt(width of a slice)
    S[i, j] = Σ_ab A[a, i] C[a, b] B[b, j]          Tucker decomposed; slot e = i n + j
    I, J = the m best rows of uᵀA, the m best columns of tᵀB                        u, t: C's first singular vectors
    c, e = the k best of S over I × J
    y = Σ_h Σ_k w(c) V_e        or, with E > 1 projectors,        Σ_h Σ_k w(c) W_(j mod E) V_(i, j // E)

Source: Huang et al. 2024, https://arxiv.org/abs/2411.12364

With m = n_candidates >= n_keys every pair is scored and the search is exact. Below it is the published approximation:
pairs outside of I × J cannot be chosen, and `routing` gives them a score below all others. A loss keeps the core
near rank one, α / (r - 1) Σ_(i > 1) max(0, λ_i - τ)² of its singular values λ: what is missed then are pairs of a row
and a column that both lie against u and t, whose product is positive as well.

Left out of the published layer: weights that are the scores themselves, which no name in `Routing` says (softmax over
the chosen instead); a convolution over the queries of the past (a state block sees one token); several cores that
score slices of a value; values of later layers; and the shuffle of virtual values over real ones (neighbouring
columns of a row share a value, each through its own projector).

Shape letters: N token, H head, R rank, C channel of a slice, M candidate row or column, K pick of a head.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from doge_lab.block import BlockConfig, RouterStats, Routing, StateBlock
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.precision import at_least_float32
from doge_lab.layers.product_key_router import DEFAULT_KEYS, check_norm_width, normalise
from doge_lab.layers.routing import check_normalisation, route_weights
from doge_lab.ops.picks import Picks, count_picks, pick_sum
from doge_lab.ops.top_k_indices import top_k_indices


class UltraMem(StateBlock):
    """A large table of values on a grid, retrieved by a Tucker-decomposed score of rows and columns."""

    weight_matrices = ("keys", "core", "values", "projectors")
    width_option = "n_keys"
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [1, 2, 4]},
        "top_k": {"choice": [4, 8, 16]},
        "rank": {"choice": [1, 2, 4]},
        "value_expansion": {"choice": [1, 2, 4]},
    }

    class Config(BlockConfig):
        n_keys: PositiveInt | None = None
        """Rows, and columns, so that the grid has n_keys² slots; 16 when left out."""
        n_heads: PositiveInt = 2
        """Queries per token."""
        top_k: PositiveInt = 8
        """Slots that each query retrieves."""
        rank: PositiveInt = 2
        """Scores of a row or column, which the core contracts."""
        n_candidates: PositiveInt = 16
        """Rows, and columns, among whose pairs the slots are chosen; n_keys or more make the search exact."""
        d_query: PositiveInt | None = None
        """Width of a head's query, for rows and columns together; about d_model / 2 when left out."""
        qk_norm: Literal["layer", "rms"] = "layer"
        """How queries and keys are normalised."""
        value_expansion: PositiveInt = 1
        """Slots that read one row of values, each through a projector of its own; 1 has no projector."""
        normalisation: Literal["softmax_chosen", "sigmoid"] = "softmax_chosen"
        """How scores become weights: a softmax over a head's chosen, or a sigmoid of each."""
        core_loss_weight: NonNegativeFloat = 0.001
        """Weight α in the training loss of what keeps the core near rank one."""
        core_loss_margin: NonNegativeFloat = 0.15
        """Singular value τ below which it is left alone."""

        @model_validator(mode="after")
        def _choices(self) -> "UltraMem.Config":
            n_keys = self.n_keys or DEFAULT_KEYS
            pairs = min(self.n_candidates, n_keys) ** 2
            if self.top_k > pairs:
                raise UserError(
                    f"top_k={self.top_k} must be at most min(n_candidates, n_keys)² = {pairs}; "
                    "raise the smaller of the two or lower top_k",
                    "top_k",
                )
            if self.value_expansion > n_keys:
                raise UserError(
                    f"value_expansion={self.value_expansion} must be at most n_keys={n_keys}, "
                    "or some projectors are never used",
                    "value_expansion",
                )
            check_normalisation(self.normalisation, "top_k", self.top_k)
            return self

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_keys = c.n_keys or DEFAULT_KEYS
        step = 2 * c.rank
        d_query = c.d_query or step * max(1, round(d_model / 2 / step), -(-3 // c.rank))
        if d_query % step:
            raise UserError(f"d_query={d_query} must be divisible by 2 * rank={step}, for its slices", "d_query")
        check_norm_width(c.qk_norm, d_query // 2)
        self.query = nn.Linear(d_model, c.n_heads * d_query, bias=False)
        self.keys = nn.Parameter(torch.empty(2, c.n_heads, self.n_keys, d_query // 2))
        self.core = nn.Parameter(torch.empty(c.n_heads, c.rank, c.rank))
        self.values = nn.Parameter(torch.empty(self.n_keys * self._columns, d_model))
        self.projectors = None
        if c.value_expansion > 1:
            self.projectors = nn.Parameter(torch.empty(c.value_expansion, d_model, d_model))
        self.reset_parameters()

    @property
    def _columns(self) -> int:
        """Columns of real values, each read by `value_expansion` columns of slots."""
        return -(-self.n_keys // self.config.value_expansion)

    def reset_parameters(self) -> None:
        init_linear(self.query)
        init_weight(self.keys, self.keys.shape[-1])
        # Rank one and a little more: the first singular vectors find the best pairs from the start.
        init_weight(self.core, self.config.rank, 0.1)
        with torch.no_grad():
            self.core.add_(1 / self.config.rank)
        init_weight(self.values, self.d_model, self.output_scale if self.projectors is None else 1.0)
        if self.projectors is not None:
            init_weight(self.projectors, self.d_model, self.output_scale)

    def forward(self, x: Tensor) -> Tensor:
        slots, weights = self._search(x.flatten(0, -2))
        self.router_stats = self._report(slots)
        return self._read(slots, weights).view_as(x)

    def _search(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen slots [N, H K] of the tokens `z` [N, D] and their weights."""
        scores, kept = self._candidates(z)
        best = top_k_indices(scores, self.config.top_k)  # [K, H, N]
        weights = route_weights(scores.gather(0, best), self.config.normalisation, lambda: scores.logsumexp(0), dim=0)
        n_kept = kept.shape[1]
        slots = kept[0].gather(0, best // n_kept) * self.n_keys + kept[1].gather(0, best % n_kept)
        return slots.permute(2, 1, 0).flatten(1), weights.permute(2, 1, 0).flatten(1)

    def _candidates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the pairs of candidates [M², H, N], and which rows and columns those are [2, M, H, N]."""
        c, halves = self.config, self._half_scores(z)
        if c.n_candidates < self.n_keys:
            kept = self._best_along_core(halves)
            halves = halves.gather(3, kept.transpose(1, 2)[:, :, None].expand(-1, -1, c.rank, -1, -1))
        else:
            kept = torch.arange(self.n_keys, device=z.device).view(1, -1, 1, 1).expand(2, -1, c.n_heads, len(z))
        rows, columns = halves
        contracted = (self.core @ columns.flatten(2)).view_as(columns)
        # A small matrix product for each token would be slower, mostly backward.
        by_rank = zip(rows.unbind(1), contracted.unbind(1), strict=True)
        scores = functools.reduce(torch.add, (row[:, :, None] * column[:, None] for row, column in by_rank))
        return scores.flatten(1, 2).transpose(0, 1), kept

    def _half_scores(self, z: Tensor) -> Tensor:
        """Scores of the rows and of the columns, [2, H, R, n, N]."""
        _, n_heads, n_keys, d_half = self.keys.shape
        rank = self.config.rank
        query = normalise(self.query(z).view(-1, n_heads, 2, d_half), self.config.qk_norm, dim=-1)
        query = query.view(-1, n_heads, 2, rank, d_half // rank).permute(2, 1, 3, 4, 0)
        keys = normalise(self.keys, self.config.qk_norm, dim=-1).view(2, n_heads, n_keys, rank, -1).transpose(2, 3)
        return keys @ query * (rank / d_half) ** 0.5

    def _best_along_core(self, halves: Tensor) -> Tensor:
        """The rows and the columns that lie furthest along the core's first singular vectors, [2, M, H, N]."""
        left, _, right = torch.linalg.svd(at_least_float32(self.core.detach()).nan_to_num())  # NaN shows in the scores
        vectors = torch.stack([left[..., 0], right[:, 0]])  # [2, H, R]
        # Turning both around is as good a decomposition: the turn is fixed, so that every machine searches alike.
        vectors = torch.where(vectors.sum((0, 2)) < 0, -1, 1)[:, None] * vectors
        along = vectors.to(halves.dtype)[:, :, None] @ halves.detach().flatten(3)  # [2, H, 1, n N]
        along = along.view(*halves.shape[:2], *halves.shape[3:]).permute(2, 0, 1, 3)  # [n, 2, H, N]
        return top_k_indices(along, self.config.n_candidates).transpose(0, 1)

    def _read(self, slots: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum [N, D] of the slots' values."""
        expansion = self.config.value_expansion
        if self.projectors is None:
            return pick_sum(weights, self.values, Picks.prepare(slots, len(self.values)))
        row, column = slots // self.n_keys, slots % self.n_keys
        picks = Picks.prepare(row * self._columns + column // expansion, len(self.values))
        through = [weights * (column % expansion == each) for each in range(expansion)]
        read = torch.cat([pick_sum(each, self.values, picks) for each in through], dim=-1)
        return read @ self.projectors.flatten(0, 1)

    def routing(self, x: Tensor) -> Routing:
        tokens, n_keys = x.flatten(0, -2), self.n_keys
        scores, (rows, columns) = self._candidates(tokens)
        slots = (rows[:, None] * n_keys + columns).flatten(0, 1)
        every = (scores.amin(0) - 1).expand(n_keys**2, -1, -1).scatter(0, slots, scores)
        # One query of one head a line, heads first.
        chosen, weights = (each.unflatten(1, (-1, self.config.top_k)).transpose(0, 1) for each in self._search(tokens))
        return Routing(every.flatten(1).t(), chosen.flatten(0, 1), weights.flatten(0, 1), self.config.normalisation)

    def _report(self, slots: Tensor) -> RouterStats:
        """Usage of the slots, and the core's loss where it has a weight and gradients are recorded."""
        c, usage = self.config, count_picks(slots, self.n_keys**2) / slots.numel()
        loss = zero = usage.new_zeros(())
        if c.core_loss_weight and c.rank > 1 and torch.is_grad_enabled():
            others = torch.linalg.svdvals(at_least_float32(self.core).nan_to_num())[:, 1:]
            excess = (others - c.core_loss_margin).relu()
            loss = c.core_loss_weight * excess.square().mean(1).sum()
        return RouterStats(loss, zero, zero, usage)

    def active_params(self) -> int:
        looked_up = self.config.n_heads * self.config.top_k
        return self.num_params() - max(0, len(self.values) - looked_up) * self.d_model

    def flops_per_token(self, context: int) -> int:
        c = self.config
        scoring = 2 * (self.query.weight.numel() + self.keys.numel())
        preselection = 4 * c.n_heads * c.rank * self.n_keys if c.n_candidates < self.n_keys else 0
        contraction = 2 * self.core.numel() * self._kept
        reading = 2 * c.value_expansion * c.n_heads * c.top_k * self.d_model
        projecting = 0 if self.projectors is None else 2 * self.projectors.numel()
        counted = scoring + preselection + contraction + reading + projecting
        return counted + self.uncounted_flops_per_token(context)

    def uncounted_flops_per_token(self, context: int) -> int:
        """The scores of the pairs: as many products of rank numbers, without a matrix product."""
        return 2 * self.config.n_heads * self.config.rank * self._kept**2

    @property
    def _kept(self) -> int:
        """Rows, and columns, whose pairs are scored."""
        return min(self.config.n_candidates, self.n_keys)
