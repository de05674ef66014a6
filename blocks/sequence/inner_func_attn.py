"""Inner function attention: values are the tokens themselves, each scaled by a few inner values that it retrieves.

    v_t = x_t ⊙ Σ_{n chosen} w_tn E_n          the k best of N by <W_r x_t, K_n>, in each of H_v retrieval heads
    y_t = W_o concat_h Σ_{s <= t} softmax_s(q_t · k_s / sqrt(head_dim) + m_{h,s}) v_s

The mask m weighs key positions, per head. `cache: hidden` keeps x and the choice in place of keys and values:
q · (W_k x) = (W_kᵀ q) · x, so that d_model + H_v k (index + weight) numbers per token do for 2 d_model. The ratio is
near a half when d_model is large; it passes 1 when H_v k nears half of d_model.

Source: Shi et al. 2024, https://arxiv.org/abs/2407.16958

Shape letters: B batch row, T new token, S visible token, D d_model, H attention head, K head_dim, N inner value,
J pick of a token (H_v k of them), R retrieval width, P masked position.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, RouterStats, Routing, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.masks import token_positions, visible_keys
from doge_lab.layers.rotary import rotate


class InnerFuncAttn(SequenceBlock):
    """Attention over tokens scaled by retrieved inner values, with a mask over key positions."""

    weight_matrices = ("retrieval_keys", "inner_values")
    search_space: ClassVar[Mapping[str, Any]] = {
        "n_inner_values": {"choice": [4, 16, 64]},
        "n_inner_value_per_head": {"choice": [1, 2, 4]},
        "mask": {"choice": ["none", "learned"]},
        "cache": {"choice": ["kv", "hidden"]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Attention heads, a divisor of d_model; each attends with its share of the value's channels."""
        n_inner_values: PositiveInt = 8
        """Inner values N to retrieve from; the router scores all of them for each token."""
        n_inner_value_heads: PositiveInt = 1
        """Retrieval heads H_v, each with its own query and keys."""
        n_inner_value_per_head: PositiveInt = 1
        """Inner values that each retrieval head picks for a token, k."""
        d_inner_values_retrieval: PositiveInt | None = None
        """Width of a retrieval query; head_dim when left out."""
        max_position_embeddings: PositiveInt = 64
        """Key positions that the mask covers; a key beyond them is not masked."""
        mask: Literal["none", "learned"] = "learned"
        """Weigh key positions per head by a learned number added to their scores."""
        router: Literal["sigmoid", "softmax_chosen", "softmax_all"] = "sigmoid"
        """What turns a score into a weight; a softmax over the chosen or over all inner values."""
        balance_loss_weight: NonNegativeFloat = 0.0
        """Weight of the loss that evens out how often inner values are chosen."""
        z_loss_weight: NonNegativeFloat = 0.0
        """Weight of the loss that keeps the router's scores small."""
        positions: Literal["none", "rotary"] = "none"
        """How a head learns where tokens stand."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""
        cache: Literal["kv", "hidden"] = "kv"
        """Remember keys and values, or the tokens and their choice of inner values; the function is the same."""
        fidelity: Literal["working", "published"] = "working"
        """`published` chooses by indices alone from zero keys, rounds the mask and has biases: see `known_faults`."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self._check_options()
        self.published = c.fidelity == "published"
        self.n_heads, self.head_dim = c.n_heads, d_model // c.n_heads
        self.n_picks = c.n_inner_value_heads * c.n_inner_value_per_head
        self.chooses = c.n_inner_value_per_head < c.n_inner_values
        self.q = nn.Linear(d_model, d_model, bias=self.published)
        self.k = nn.Linear(d_model, d_model, bias=self.published)
        self.out = nn.Linear(d_model, d_model, bias=self.published)
        width = c.d_inner_values_retrieval or self.head_dim
        self.retrieve = nn.Linear(d_model, c.n_inner_value_heads * width, bias=self.published)
        self.retrieval_keys = nn.Parameter(torch.empty(c.n_inner_value_heads, width, c.n_inner_values))
        self.inner_values = nn.Parameter(torch.empty(c.n_inner_values, d_model))
        masked = torch.empty(c.n_heads, c.max_position_embeddings)
        self.mask = nn.Parameter(masked) if c.mask == "learned" else None
        self.reset_parameters()

    def _check_options(self) -> None:
        c = self.config
        require_divisible("d_model", self.d_model, "n_heads", c.n_heads)
        k, n = c.n_inner_value_per_head, c.n_inner_values
        if k > n:
            raise UserError(f"n_inner_value_per_head={k} picks more than the n_inner_values={n} there are")
        if c.positions == "rotary" and self.d_model // c.n_heads % 2:
            raise UserError(f"rotary positions need an even head_dim, not {self.d_model // c.n_heads}")
        if c.cache == "hidden" and c.positions == "rotary":
            raise UserError(
                "cache: hidden folds the key projection into the query, which positions: rotary forbids by turning "
                "each key; use positions: none, or cache: kv"
            )
        if c.fidelity == "published":
            if c.cache == "hidden":
                raise UserError("fidelity: published keeps keys and values; use cache: kv, or fidelity: working")
            if c.balance_loss_weight or c.z_loss_weight:
                raise UserError("fidelity: published has no auxiliary loss; leave its weights at 0, or say working")
        elif (c.router, k) == ("softmax_chosen", 1) or (c.router, n) == ("softmax_all", 1):
            raise UserError(
                f"router: {c.router} over a single inner value is always 1 and teaches nothing; use router: sigmoid, "
                "or choose among more"
            )

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.retrieve):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        if self.mask is not None:
            nn.init.constant_(self.mask, 1.0 if self.published else 0.0)
        if self.published:
            nn.init.zeros_(self.retrieval_keys)
            nn.init.normal_(self.inner_values)
            return
        init_weight(self.retrieval_keys, self.retrieval_keys.shape[1])
        # So that the weighted sum starts with unit variance: a sigmoid weighs by about 1/2, a softmax by 1/k at most.
        weight = 0.5 if self.config.router == "sigmoid" else 1 / self.config.n_inner_value_per_head
        nn.init.normal_(self.inner_values, std=1 / (weight * self.n_picks**0.5))

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        q = self._heads(self.q(x))
        scores, index, weight = self._retrieve(x)
        self._report(scores, index)
        index, weight = index.flatten(2), None if weight is None else weight.flatten(2)
        if cache is not None and self.config.cache == "hidden":
            x, index, weight = self._remember(x, index, weight, cache)
            v = self._heads(self._values(x, index, weight))  # [B, S, H, K]
            # The folded query is cheaper for a few new tokens and dearer for many.
            if new * self.n_heads <= self.d_model:
                q = torch.einsum("bthk,hkd->bthd", q, self.k.weight.unflatten(0, (self.n_heads, self.head_dim)))
                k = x[:, :, None]  # one key head for all
            else:
                k = self._heads(self.k(x))
        else:
            k, v = self._heads(self.k(x)), self._heads(self._values(x, index, weight))
            if self.config.positions == "rotary":
                positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
                q, k = (rotate(heads, positions, self.config.rotary_base) for heads in (q, k))
            if cache is not None:
                k, v = cache.append("k", k), cache.append("v", v)
        y = self._attend(q, k, v, attention_mask, seen)
        return self.out(y.flatten(2)), cache

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, self.head_dim))

    def _retrieve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores [B, T, H_v, N], the inner values picked [B, T, H_v, k], their weights (None where all weigh 1)."""
        c = self.config
        query = self.retrieve(x).unflatten(-1, (c.n_inner_value_heads, -1))
        scores = torch.einsum("bthr,hrn->bthn", query, self.retrieval_keys).float()  # [B, T, H_v, N]
        if self.chooses:
            best, index = scores.topk(c.n_inner_value_per_head, dim=-1)
        else:
            best, index = scores, torch.arange(c.n_inner_values, device=x.device).expand_as(scores)
        if self.published:
            return scores, index, None
        if c.router == "sigmoid":
            weight = best.sigmoid()
        elif c.router == "softmax_chosen":
            weight = best.softmax(dim=-1)
        else:
            weight = (best - scores.logsumexp(dim=-1, keepdim=True)).exp()
        return scores, index, weight

    def routing(self, x: Tensor) -> Routing:
        scores, index, weight = self._retrieve(x)
        weights = torch.ones_like(index, dtype=scores.dtype) if weight is None else weight
        rule = "none" if self.published else self.config.router
        return Routing(scores.flatten(0, 2), index.flatten(0, 2), weights.flatten(0, 2), rule)

    def _values(self, x: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
        # An embedding bag sums the picked rows without holding [B, T, J, D].
        weight = None if weight is None else weight.flatten(0, 1).to(self.inner_values.dtype)
        inner = F.embedding_bag(index.flatten(0, 1), self.inner_values, mode="sum", per_sample_weights=weight)
        return x * inner.view_as(x).to(x.dtype)

    def _remember(
        self, x: Tensor, index: Tensor, weight: Tensor | None, cache: LayerCache
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the new tokens and their choice; returns those of all visible tokens, [B, S, ...]."""
        x = cache.append("x", x)
        index = cache.append("index", index) if self.chooses else index[:, :1].expand(-1, x.shape[1], -1)
        return x, index, None if weight is None else cache.append("weight", weight)

    def _report(self, scores: Tensor, index: Tensor) -> None:
        c = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and c.balance_loss_weight + c.z_loss_weight > 0):
            picks = index.flatten()
            usage = scores.new_zeros(c.n_inner_values).scatter_add_(0, picks, scores.new_ones(()).expand_as(picks))
            usage = usage / picks.numel()
            # Fedus et al. 2021, https://arxiv.org/abs/2101.03961 ; z-loss: Zoph et al. 2022, https://arxiv.org/abs/2202.08906
            balance = c.n_inner_values * (usage * scores.softmax(dim=-1).mean(dim=(0, 1, 2))).sum()
            z = scores.logsumexp(dim=-1).square().mean()
            self.router_stats = RouterStats(c.balance_loss_weight * balance + c.z_loss_weight * z, balance, z, usage)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor:
        """Attend with q [B, T, H, K] to k [B, S, H or 1, K] and v [B, S, H, K]; returns [B, T, H, K]."""
        new, keys, scale = q.shape[1], k.shape[1], self.head_dim**-0.5
        one_key_head = k.shape[2] != self.n_heads
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v.to(q.dtype)))  # [B, H, T or S, K]
        if new > 1 and seen == 0 and attention_mask is None and not self.published and not one_key_head:
            return self._attend_causal(q, k, v, scale).transpose(1, 2)
        bias = self._score_bias(attention_mask, new, keys, seen, q.device)
        if not one_key_head:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale).transpose(1, 2)
        # One product for all heads, where broadcasting would copy the keys for each.
        scores = ((q * scale).flatten(1, 2) @ k[:, 0].mT).view(*q.shape[:3], keys)
        weights = torch.softmax(scores + bias, dim=-1, dtype=torch.float32).to(v.dtype)
        return (weights @ v).transpose(1, 2)

    def _attend_causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Without padding or a past: the mask rides in one more key channel, so that a fused kernel still does it."""
        if self.mask is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        bias = self._mask_at(None, k.shape[2], q.device)[..., None] / scale  # [1, H, T, 1]
        k = torch.cat([k, bias.to(k.dtype).expand(*k.shape[:3], 1)], dim=-1)
        q = torch.cat([q, q.new_ones(()).expand(*q.shape[:3], 1)], dim=-1)
        v = F.pad(v, (0, 1))  # fused kernels want equal widths
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[..., : self.head_dim]

    def _score_bias(
        self, attention_mask: Tensor | None, new: int, keys: int, seen: int, device: torch.device
    ) -> Tensor:
        """What is added to the scores, [1 or B, 1 or H, T, S]: the mask, and -inf where a query may not look."""
        visible = visible_keys(new=new, keys=keys, attention_mask=attention_mask, seen=seen, device=device)
        bias = torch.zeros((), device=device)
        if self.mask is not None:
            bias = self._mask_at(attention_mask, keys, device)[:, :, None].float()
            if self.published:  # switched off where it rounds to zero; a token still sees itself
                itself = visible_keys(new=new, keys=keys, window=1, seen=seen, device=device)
                visible, bias = visible & ((bias.round() != 0) | itself), torch.zeros((), device=device)
        return torch.where(visible, bias, -torch.inf)

    def _mask_at(self, attention_mask: Tensor | None, keys: int, device: torch.device) -> Tensor:
        """The mask at each visible key's position among the real tokens, [1 or B, H, S]."""
        assert self.mask is not None
        covered, unmasked = self.config.max_position_embeddings, 1.0 if self.published else 0.0
        if attention_mask is None:
            return F.pad(self.mask[:, :keys], (0, max(0, keys - covered)), value=unmasked)[None]
        positions = token_positions(attention_mask, new=keys, device=device).clamp(max=covered)
        return F.pad(self.mask, (0, 1), value=unmasked)[:, positions].transpose(0, 1)

    def cache_spec(self) -> CacheSpec:
        if self.config.cache == "kv":
            entry = PerToken((self.n_heads, self.head_dim))
            return {"k": entry, "v": entry}
        spec = {"x": PerToken((self.d_model,)), "weight": PerToken((self.n_picks,))}
        if self.chooses:
            spec["index"] = PerToken((self.n_picks,), dtype=_index_type(self.config.n_inner_values))
        return spec

    def flops_per_token(self, context: int) -> int:
        keys, values = self.retrieval_keys, context * self.d_model
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.retrieve, self.out))
        scores = values * (self.n_heads if self.config.cache == "hidden" else 1)
        return 2 * (projections + keys.numel() + scores + values)

    def active_params(self) -> int:
        """All but the inner values not chosen: a query meets the mask of every key that it sees."""
        idle = max(0, self.config.n_inner_values - self.n_picks) * self.d_model
        return self.num_params() - idle

    def known_faults(self) -> Mapping[str, str]:
        if not self.published:
            return {}
        faults = {
            "parameters_learn": "inner values are chosen by indices alone and the mask is rounded, so that retrieval "
            "queries, retrieval keys and mask get no gradient",
            "active_params": "retrieval keys stay zero, so that retrieval queries change nothing",
        }
        if self.chooses:
            faults["router_usage"] = "keys start at zero, so that every token retrieves the same inner values"
        return faults


def _index_type(n: int) -> torch.dtype:
    """The smallest integer type that holds 0 to n - 1."""
    return next(dtype for dtype in (torch.uint8, torch.int16, torch.int32) if n - 1 <= torch.iinfo(dtype).max)
