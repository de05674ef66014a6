"""Small blocks that keep every promise: each broken block changes one thing about one of them."""

import torch
from pydantic import PositiveInt
from torch import nn

from doge_lab.block import BlockConfig, RouterStats, Routing, SequenceBlock, StateBlock
from doge_lab.cache import Fixed
from doge_lab.layers.init import init_linear, init_weight
from doge_lab.layers.masks import new_real_tokens


class Decay(SequenceBlock):
    """s_t = a s_{t-1} + W x_t, y_t = V s_t: a recurrent state of one vector."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.write = nn.Linear(d_model, d_model, bias=False)
        self.read = nn.Linear(d_model, d_model, bias=False)
        self.decay = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self):
        init_linear(self.write)
        init_linear(self.read, self.output_scale)
        nn.init.ones_(self.decay)

    def forward(self, x, attention_mask=None, cache=None):
        seen = 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        state = torch.zeros(len(x), self.d_model) if cache is None else cache["state"]
        states = self.scan(self.write(x).float(), state, real)
        if cache is not None:
            self.remember(cache, states)
        return self.read(states.to(x.dtype)), cache

    def scan(self, values, state, real):
        states = []
        for t in range(values.shape[1]):
            following = self.decay.float().sigmoid() * state + values[:, t]
            state = following if real is None else torch.where(real[:, t], following, state)
            states.append(state)
        return torch.stack(states, dim=1)

    def remember(self, cache, states):
        cache["state"] = states[:, -1]

    def cache_spec(self):
        return {"state": Fixed((self.d_model,))}

    def flops_per_token(self, context):
        return 2 * (self.write.weight.numel() + self.read.weight.numel())


class Mean(Decay):
    """y_t = V (s_t / t) with s_t = s_{t-1} + W x_t: the cache counts tokens, the same number in all of one length."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        del self.decay

    def reset_parameters(self):
        init_linear(self.write)
        init_linear(self.read, self.output_scale)

    def forward(self, x, attention_mask=None, cache=None):
        seen = 0 if cache is None else cache.position
        real = new_real_tokens(attention_mask, new=x.shape[1], seen=seen)
        real = torch.ones(*x.shape[:2], 1) if real is None else real.float()
        total, count = (self.write(x).float() * real).cumsum(1), real.cumsum(1)
        if cache is not None:
            total, count = total + cache["total"][:, None], count + cache["count"][:, None]
            cache["total"], cache["count"] = total[:, -1], count[:, -1]
        return self.read((total / count.clamp(min=1)).to(x.dtype)), cache

    def cache_spec(self):
        return {"total": Fixed((self.d_model,)), "count": Fixed((1,))}


class Experts(StateBlock):
    """Some of n one-neuron experts: y = Σ_chosen softmax(scores)_e relu(<x, D_e>) U_e."""

    class Config(BlockConfig):
        n_experts: PositiveInt = 8
        """Experts."""

    top_k = 2

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        n = self.config.n_experts
        self.top_k = min(n, self.top_k)
        self.router = nn.Linear(d_model, n, bias=False)
        self.down = nn.Parameter(torch.empty(n, d_model))
        self.up = nn.Parameter(torch.empty(n, d_model))
        self.reset_parameters()

    def reset_parameters(self):
        init_linear(self.router)
        init_weight(self.down, self.d_model)
        init_weight(self.up, self.d_model, 4 * self.output_scale)

    def forward(self, x):
        weight, index = self.choose(self.router(x))
        hidden = torch.einsum("btd,btkd->btk", x, self.down[index]).relu()
        return torch.einsum("btk,btkd->btd", hidden * weight, self.up[index])

    def choose(self, scores):
        # over all experts, so that a single choice still teaches the router
        weight, index = scores.softmax(dim=-1).topk(self.top_k, dim=-1)
        self.report(scores, index)
        return weight, index

    def report(self, scores, index):
        usage = torch.bincount(index.flatten(), minlength=scores.shape[-1]) / index.numel()
        z_loss = scores.float().logsumexp(-1).square().mean()
        self.router_stats = RouterStats(0.001 * z_loss, torch.zeros(()), z_loss.detach(), usage)

    def flops_per_token(self, context):
        return 2 * self.d_model * (self.config.n_experts + 2 * self.top_k)

    def active_params(self):
        return self.d_model * (self.config.n_experts + 2 * self.top_k)


class OpenExperts(Experts):
    """Names its routing too, so that its choice can be checked."""

    def routing(self, x):
        scores = self.router(x)
        weight, index = self.choose(scores)
        return Routing(scores.flatten(0, 1), index.flatten(0, 1), weight.flatten(0, 1), "softmax_all")
