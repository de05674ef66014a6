"""Blocks whose declarations depend on who asks, or leave something out."""

import torch
from broken.healthy import Decay, Experts
from torch import nn

from blocks.sequence.attention import Attention
from blocks.state.mlp import MLP
from doge_lab.cache import Fixed, PerToken


class LessOnMeta(Decay):
    """Declares half of its state where a model is counted."""

    def cache_spec(self):
        wide = self.d_model if self.decay.device.type != "meta" else self.d_model // 2
        return {"state": Fixed((wide,))}


class LessInTraining(Decay):
    """Declares half of its state in training mode."""

    def cache_spec(self):
        return {"state": Fixed((self.d_model // 2 if self.training else self.d_model,))}


class LessInDeepLayers(Attention):
    """Counts fewer FLOPs the deeper it stands."""

    def flops_per_token(self, context):
        return super().flops_per_token(context) // (1 + self.layer_idx)


class MoreBytesInDeepLayers(Attention):
    """Allocates whole numbers and declares half of one in the layers behind the first."""

    def cache_spec(self):
        dtype = torch.bfloat16 if self.layer_idx else None
        return {name: PerToken(entry.shape, dtype=dtype) for name, entry in super().cache_spec().items()}

    def init_cache(self, *, batch, capacity, dtype=torch.float32, device="cpu"):
        cache = super().init_cache(batch=batch, capacity=capacity, dtype=dtype, device=device)
        cache.tensors = (
            {name: tensor.float() for name, tensor in cache.tensors.items()} if self.layer_idx else cache.tensors
        )
        return cache


class MoreOffMeta(MLP):
    """Has a parameter that is not there when it is counted."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        if self.up.weight.device.type != "meta":
            self.scale = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        return super().forward(x * getattr(self, "scale", 1))

    def flops_per_token(self, context):
        return 2 * (self.up.weight.numel() + self.down.weight.numel())


class FewerFlopsForLongContexts(Attention):
    """Stops counting keys where nobody looks."""

    def flops_per_token(self, context):
        return super().flops_per_token(min(context, 320))


class ActiveByLayer(Experts):
    """Says that a token touches fewer experts in the last layers."""

    def active_params(self):
        return super().active_params() - self.d_model * (self.layer_idx > 1)


class ProductInDisguise(MLP):
    """Multiplies and sums where it should multiply matrices, and counts nothing for it."""

    def forward(self, x):
        hidden = (x[..., None, :] * self.up.weight).sum(-1).relu()
        return torch.nn.functional.linear(hidden, self.down.weight)

    def flops_per_token(self, context):
        return 2 * self.down.weight.numel()


class TakesBackByHand(MLP):
    """Declares few FLOPs, and takes the others back where it counts by hand."""

    def flops_per_token(self, context):
        return 2 * self.down.weight.numel()

    def uncounted_flops_per_token(self, context):
        return -2 * self.up.weight.numel()
