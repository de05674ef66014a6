"""Block-sparse attention: compressed blocks, the blocks that they recommend, and a window, summed by gates.

    compressed   keys and values are each complete block's, averaged with learned weights; nothing before the first
    selected     the query's own block and the n_selected - 1 complete ones before it that the query heads of one
                 key/value head together weigh most among the compressed; of equal ones, the earliest
    window       the last tokens
    y_t = W_o concat_h  Σ_branch sigmoid(W_g x_t)_{h,branch} softmax(q_t · K / sqrt(head_dim)) V

Blocks are cut from each row's first real token on. This departs from the paper in that one set of keys and values
serves the three branches (there: one each), compressed blocks are weighted means (a network), do not overlap and are
the very blocks that are selected (smaller, overlapping ones), and the first block is not always selected. They are
computed anew from the cache at each step, which costs what attention with n_kv_heads heads does: arithmetic is saved
only where n_kv_heads is below n_heads, and memory not at all.

Source: Yuan et al. 2025, https://arxiv.org/abs/2502.11089

Shape letters: B batch row, T new token, S visible token, D d_model, H query head, G key/value head, R query head of
a key/value head, K head_dim, N block, L token of a block, P token picked for a query.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import real_tokens, token_positions
from doge_lab.layers.rotary import rotate

_BRANCHES = 3


class BlockSparseAttention(SequenceBlock):
    """Attention to compressed blocks, selected blocks and a window."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_kv_heads": {"choice": [1, 2]},
        "block_size": {"choice": [4, 8, 16]},
        "n_selected": {"choice": [1, 2, 4]},
        "window": {"choice": [4, 16, 32]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Query heads."""
        n_kv_heads: PositiveInt | None = None
        """Key/value heads, a divisor of n_heads; as many as n_heads when left out. Each selects blocks of its own."""
        head_dim: PositiveInt | None = None
        """Width of a head; d_model / n_heads when left out."""
        block_size: Annotated[int, Field(ge=2)] = 8
        """Tokens of a block."""
        n_selected: PositiveInt = 4
        """Blocks that a query reads token by token, its own included."""
        window: PositiveInt = 16
        """How many tokens the window covers, the query's included."""
        positions: Literal["rotary", "none"] = "rotary"
        """How a head learns where tokens stand."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        self.n_heads, self.n_kv_heads = c.n_heads, c.n_kv_heads or c.n_heads
        require_divisible("n_heads", self.n_heads, "n_kv_heads", self.n_kv_heads)
        if c.head_dim is None:
            require_divisible("d_model", d_model, "n_heads", self.n_heads)
        self.head_dim = c.head_dim or d_model // self.n_heads
        if c.positions == "rotary" and self.head_dim % 2:
            raise UserError(f"rotary positions need an even head_dim, not {self.head_dim} (or positions: none)")
        self.q = nn.Linear(d_model, self.n_heads * self.head_dim, bias=False)
        self.k = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(d_model, self.n_kv_heads * self.head_dim, bias=False)
        self.gate = nn.Linear(d_model, self.n_heads * _BRANCHES, bias=False)
        self.key_weights = nn.Parameter(torch.empty(self.n_kv_heads, c.block_size))
        self.value_weights = nn.Parameter(torch.empty(self.n_kv_heads, c.block_size))
        self.out = nn.Linear(self.n_heads * self.head_dim, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.gate):
            init_linear(linear)
        init_linear(self.out, self.output_scale)
        nn.init.zeros_(self.key_weights)  # the plain mean of a block
        nn.init.zeros_(self.value_weights)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        q = self.q(x).unflatten(-1, (self.n_heads, self.head_dim))
        k = self.k(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v = self.v(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)  # [B or 1, T]
        if self.config.positions == "rotary":
            q, k = (rotate(heads, positions, self.config.rotary_base) for heads in (q, k))
        if cache is not None:
            k, v = cache.append("k", k), cache.append("v", v)
        if attention_mask is not None:
            k, v = (_real_first(heads, real_tokens(attention_mask, new=new, seen=seen)) for heads in (k, v))
        # From here on a key's index is its position in its row.
        q = q.unflatten(2, (self.n_kv_heads, -1)).permute(0, 2, 3, 1, 4) * self.head_dim**-0.5  # [B, G, R, T, K]
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # [B, G, S, K]
        gates = self.gate(x).sigmoid().unflatten(-1, (_BRANCHES, self.n_kv_heads, -1)).permute(2, 0, 3, 4, 1)[..., None]
        compressed, importance = self._attend_compressed(q, k, v, positions)
        blocks = self._select(importance, positions, k.shape[2])  # [B, G, T, n]
        attend = self._attend_picked if new == 1 else self._attend_masked
        y = gates[0] * compressed + attend(q, k, v, positions, blocks, gates[1:])
        return self.out(y.permute(0, 3, 1, 2, 4).flatten(2).to(x.dtype)), cache

    def _attend_compressed(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The branch's output [B, G, R, T, K], and the weight that each block got of all R heads [B, G, T, N]."""
        size = self.config.block_size
        complete = k.shape[2] // size
        k, v = (
            torch.einsum("bgnlk,gl->bgnk", heads[:, :, : complete * size].unflatten(2, (complete, size)), weights)
            for heads, weights in ((k, self.key_weights.softmax(-1)), (v, self.value_weights.softmax(-1)))
        )
        end = torch.arange(1, complete + 1, device=q.device) * size - 1
        visible = (end <= positions[..., None])[:, None, None]  # [B or 1, 1, 1, T, N]
        weights = _softmax(q.flatten(2, 3) @ k.mT, visible.expand(-1, -1, q.shape[2], -1, -1).flatten(2, 3))
        y = (weights @ v).unflatten(2, q.shape[2:4])
        return y, weights.unflatten(2, q.shape[2:4]).sum(2)

    def _select(self, importance: Tensor, positions: Tensor, keys: int) -> Tensor:
        """The blocks that each query reads token by token, [B, G, T, n]; its own is the first."""
        size = self.config.block_size
        blocks = -(-keys // size)
        block, own = torch.arange(blocks, device=positions.device), (positions // size)[:, None, :, None]
        importance = F.pad(importance.detach().float(), (0, blocks - importance.shape[-1]))
        importance = importance.masked_fill(block == own, torch.inf).masked_fill(block > own, -1.0)
        order = importance.sort(dim=-1, descending=True, stable=True).indices
        return order[..., : self.config.n_selected]

    def _attend_masked(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, blocks: Tensor, gates: Tensor
    ) -> Tensor:
        """Selected blocks and window for many queries, as attention to all keys under a mask for either."""
        size, keys = self.config.block_size, k.shape[2]
        key, query = torch.arange(keys, device=k.device), positions[:, None, :, None]
        causal = key <= query  # [B or 1, 1, T, S]
        chosen = torch.zeros(*blocks.shape[:3], -(-keys // size), dtype=torch.bool, device=k.device)
        chosen = chosen.scatter(-1, blocks, True).repeat_interleave(size, dim=-1)[..., :keys]
        selected = (causal & chosen).repeat_interleave(q.shape[2], dim=1)  # [B, H, T, S]
        window = causal & (query - key < self.config.window)
        y = [
            F.scaled_dot_product_attention(
                q.flatten(1, 2), k, v, attn_mask=visible, scale=1.0, enable_gqa=q.shape[2] > 1
            ).view(q.shape)
            for visible in (selected, window)
        ]
        return gates[0] * y[0] + gates[1] * y[1]

    def _attend_picked(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, blocks: Tensor, gates: Tensor
    ) -> Tensor:
        """The same for a single query, which scores nothing but the keys that it reads."""
        size, keys = self.config.block_size, k.shape[2]
        own = positions[:, None]  # [B or 1, 1, 1]
        inside = blocks[..., None] * size + torch.arange(size, device=k.device)  # [B, G, 1, n, L]
        selected = inside.flatten(2)
        window = own - torch.arange(min(self.config.window, keys), device=k.device)
        window = window.expand(*blocks.shape[:2], -1)
        y = []
        for index, gate in ((selected, gates[0]), (window, gates[1])):
            picked = index.clamp(0, keys - 1)[..., None].expand(-1, -1, -1, self.head_dim)
            visible = ((index >= 0) & (index <= own))[:, :, None]  # [B, G, 1, P]
            weights = _softmax(q[:, :, :, 0] @ k.gather(2, picked).mT, visible)
            y.append(gate * (weights.to(v.dtype) @ v.gather(2, picked))[:, :, :, None])
        return y[0] + y[1]

    def cache_spec(self) -> CacheSpec:
        entry = PerToken((self.n_kv_heads, self.head_dim))
        return {"k": entry, "v": entry}

    def flops_per_token(self, context: int) -> int:
        c, width = self.config, self.n_heads * self.head_dim
        projections = sum(linear.weight.numel() for linear in (self.q, self.k, self.v, self.gate, self.out))
        complete, blocks = context // c.block_size, -(-context // c.block_size)
        compressing = 2 * complete * c.block_size * self.n_kv_heads * self.head_dim
        scored = complete + min(c.n_selected, blocks) * c.block_size + min(c.window, context)
        return 2 * (projections + compressing + 2 * scored * width)


def _real_first(heads: Tensor, real: Tensor) -> Tensor:
    """Each row's real tokens [B, S, ...] in front, in order, so that blocks are cut where they are without padding."""
    order = real.long().sort(dim=1, descending=True, stable=True).indices
    return heads.gather(1, order[..., None, None].expand_as(heads))


def _softmax(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the visible keys; zeros where there is none."""
    hidden = scores.float().masked_fill(~visible, torch.finfo(torch.float32).min)
    return (hidden.softmax(dim=-1) * visible).to(scores.dtype)
