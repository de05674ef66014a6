"""Multi-head latent attention: keys and values of all heads are read out of one small latent, the only thing cached.

    c_t = norm(W_dkv x_t)          r_t = rotate(W_kr x_t)                 the latent, and one rotary key for all heads
    k_th = [W_uk_h c_t, r_t]       v_th = W_uv_h c_t                      q_th = [q'_th, rotate(q''_th)]
    y_t = W_o concat_h  Σ_{s <= t} softmax_s(q_th · k_sh / sqrt(nope + rope)) v_sh

with [q', q''] = W_q x_t, or W_uq norm(W_dq x_t) with `q_lora_rank`. Since q' · (W_uk c) = (W_ukᵀ q') · c and
Σ p W_uv c = W_uv Σ p c, a few new tokens may attend to the latents themselves ("absorbed"); many are cheaper with keys
and values written out ("expanded"). The function is the same.

Source: DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434 ; as in DeepSeek-V3, https://arxiv.org/abs/2412.19437

Shape letters: B batch row, T new token, S visible token, D d_model, H head, N key channel without position, P rotary
key channel, V value channel, R channel of the latent.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.block import BlockConfig, SequenceBlock, require_divisible
from doge_lab.cache import CacheSpec, LayerCache, PerToken
from doge_lab.errors import UserError
from doge_lab.layers.init import init_linear
from doge_lab.layers.masks import token_positions, visible_keys
from doge_lab.layers.norm import RMSNorm
from doge_lab.layers.rotary import rotate


class LatentAttention(SequenceBlock):
    """Attention over compressed keys and values: a latent and one rotary key per token, for all heads together."""

    search_space: ClassVar[Mapping[str, Any]] = {
        "n_heads": {"choice": [2, 4]},
        "kv_lora_rank": {"int": [4, 32], "log": True},
        "qk_rope_head_dim": {"choice": [2, 4, 8]},
    }

    class Config(BlockConfig):
        n_heads: PositiveInt = 4
        """Heads; they cost nothing in the cache."""
        kv_lora_rank: PositiveInt = 16
        """Width of the latent that stands for the keys and values of all heads."""
        q_lora_rank: PositiveInt | None = None
        """Width between the two projections of the queries; a single projection when left out."""
        qk_nope_head_dim: PositiveInt | None = None
        """Width of a head's key without position; d_model / n_heads when left out."""
        qk_rope_head_dim: Annotated[int, Field(ge=2)] = 8
        """Width of the rotary key that all heads share; even."""
        v_head_dim: PositiveInt | None = None
        """Width of a head's value; d_model / n_heads when left out."""
        rotary_base: PositiveFloat = 10_000.0
        """The longest wavelength of the rotation is 2π times this."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        c = self.config
        if None in (c.qk_nope_head_dim, c.v_head_dim):
            require_divisible("d_model", d_model, "n_heads", c.n_heads)
        if c.qk_rope_head_dim % 2:
            raise UserError(f"qk_rope_head_dim={c.qk_rope_head_dim} must be even: channels turn in pairs")
        self.n_heads, self.rank, self.rope = c.n_heads, c.kv_lora_rank, c.qk_rope_head_dim
        self.nope, self.head_v = c.qk_nope_head_dim or d_model // c.n_heads, c.v_head_dim or d_model // c.n_heads
        self.scale = (self.nope + self.rope) ** -0.5
        self.q_down = nn.Linear(d_model, c.q_lora_rank, bias=False) if c.q_lora_rank else nn.Identity()
        self.q_norm = RMSNorm(c.q_lora_rank, eps=1e-6) if c.q_lora_rank else nn.Identity()
        self.q_up = nn.Linear(c.q_lora_rank or d_model, c.n_heads * (self.nope + self.rope), bias=False)
        self.kv_down = nn.Linear(d_model, self.rank + self.rope, bias=False)
        self.kv_norm = RMSNorm(self.rank, eps=1e-6)
        self.kv_up = nn.Linear(self.rank, c.n_heads * (self.nope + self.head_v), bias=False)
        self.out = nn.Linear(c.n_heads * self.head_v, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in (self.q_down, self.q_up, self.kv_down, self.kv_up):
            if isinstance(module, nn.Linear):
                init_linear(module)
        init_linear(self.out, self.output_scale)
        for norm in (self.q_norm, self.kv_norm):
            if isinstance(norm, RMSNorm):
                norm.reset_parameters()

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache | None]:
        new, seen = x.shape[1], 0 if cache is None else cache.position
        positions = token_positions(attention_mask, new=new, seen=seen, device=x.device)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.n_heads, -1))  # [B, T, H, N + P]
        q, q_rope = q.split([self.nope, self.rope], dim=-1)
        latent, k_rope = self.kv_down(x).split([self.rank, self.rope], dim=-1)
        latent = self.kv_norm(latent).to(x.dtype)
        q_rope = rotate(q_rope, positions, self.config.rotary_base)
        k_rope = rotate(k_rope[:, :, None], positions, self.config.rotary_base)[:, :, 0]
        if cache is not None:
            latent, k_rope = cache.append("latent", latent), cache.append("k_rope", k_rope)  # [B, S, R], [B, S, P]
        keys = latent.shape[1]
        visible = None
        if attention_mask is not None or seen:
            visible = visible_keys(new=new, keys=keys, attention_mask=attention_mask, seen=seen, device=x.device)
        attend = self._attend_absorbed if self._absorbs(new, keys) else self._attend_expanded
        return self.out(attend(q, q_rope, latent, k_rope, visible).flatten(2)), cache

    def _absorbs(self, new: int, keys: int) -> bool:
        """Whether there is a past, and to attend to the latents takes no more multiply-adds than to write it out."""
        head = self.nope + self.head_v
        absorbed = new * head * self.rank + new * keys * 2 * self.rank
        # Where all keys are new, a fused kernel over written-out heads is quicker even with more multiply-adds.
        return new < keys and absorbed <= keys * head * self.rank + new * keys * head

    def _attend_expanded(
        self, q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, visible: Tensor | None
    ) -> Tensor:
        """Every visible token's keys and values written out: q [B, T, H, N] -> [B, T, H, V]."""
        k, v = self.kv_up(latent).unflatten(-1, (self.n_heads, -1)).split([self.nope, self.head_v], dim=-1)
        q = torch.cat([q, q_rope], dim=-1)
        k = torch.cat([k, k_rope[:, :, None].expand(-1, -1, self.n_heads, -1)], dim=-1)
        width = max(q.shape[-1], self.head_v)  # fused kernels want equal widths
        q, k, v = (F.pad(heads, (0, width - heads.shape[-1])).transpose(1, 2) for heads in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, scale=self.scale)
        return y.transpose(1, 2)[..., : self.head_v]

    def _attend_absorbed(
        self, q: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, visible: Tensor | None
    ) -> Tensor:
        """The heads' queries meet the latents, one key for all of them: q [B, T, H, N] -> [B, T, H, V]."""
        new, keys = q.shape[1], latent.shape[1]
        up_k, up_v = self.kv_up.weight.unflatten(0, (self.n_heads, -1)).split([self.nope, self.head_v], dim=1)
        q = torch.cat([torch.einsum("bthn,hnr->bthr", q, up_k), q_rope], dim=-1) * self.scale
        scores = (q.flatten(1, 2) @ torch.cat([latent, k_rope], dim=-1).mT).unflatten(1, (new, -1))  # [B, T, H, S]
        if visible is None:
            visible = visible_keys(new=new, keys=keys, device=q.device)
        scores = scores.masked_fill(~visible.transpose(1, 2), -torch.inf)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(latent.dtype)
        mixed = (weights.flatten(1, 2) @ latent).unflatten(1, (new, -1))  # [B, T, H, R]
        return torch.einsum("bthr,hvr->bthv", mixed, up_v)

    def cache_spec(self) -> CacheSpec:
        return {"latent": PerToken((self.rank,)), "k_rope": PerToken((self.rope,))}

    def flops_per_token(self, context: int) -> int:
        modules = (self.q_down, self.q_up, self.kv_down, self.out)
        projections = sum(module.weight.numel() for module in modules if isinstance(module, nn.Linear))
        if self._absorbs(1, context):
            read = self.kv_up.weight.numel() + context * self.n_heads * (2 * self.rank + self.rope)
        else:
            width = max(self.nope + self.rope, self.head_v)
            read = context * (self.kv_up.weight.numel() + 2 * self.n_heads * width)
        return 2 * (projections + read)
