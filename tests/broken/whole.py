"""Blocks that keep the contract where a single block is checked, and break it in a trained model, as it is used."""

import torch
from broken.healthy import Decay
from torch import nn

from doge_lab.block import StateBlock
from doge_lab.cache import Fixed


class Linear(StateBlock):
    """y = W x."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.map = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.map.weight, std=self.d_model**-0.5)

    def forward(self, x):
        return self.map(x)

    def flops_per_token(self, context):
        return 2 * self.d_model**2


class LeaksSomewhere(Decay):
    """Reads the last token of the call, where `here` says so."""

    def here(self, values):
        return True

    def scan(self, values, state, real):
        return super().scan(values + values[:, -1:] if self.here(values) else values, state, real)


class LeaksInALayer(LeaksSomewhere):
    def here(self, values):
        return self.layer_idx == 1


class LeaksAtALength(LeaksSomewhere):
    def here(self, values):
        return values.shape[1] == 12


class LeaksAtABatch(LeaksSomewhere):
    def here(self, values):
        return len(values) == 64


class LeaksInInference(LeaksSomewhere):
    def here(self, values):
        return torch.is_inference_mode_enabled()


class LeaksInTraining(LeaksSomewhere):
    def here(self, values):
        return self.training


class LeaksUnderAutocast(LeaksSomewhere):
    """Is asked about in the thorough part alone."""

    def here(self, values):
        return torch.is_autocast_enabled("cpu")


class LeaksAfterTraining(Decay):
    """A gate that starts at zero, and opens."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.gate = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        if "gate" in self._parameters:
            nn.init.zeros_(self.gate)

    def scan(self, values, state, real):
        seen = values + self.gate * values
        return super().scan(seen + values[:, -1:] if self.gate.abs().max() > 0.01 else seen, state, real)


class MixesRowsOfABatch(LeaksSomewhere):
    """Adds the mean over the rows to a batch of 64."""

    def scan(self, values, state, real):
        return Decay.scan(self, values + values.mean(0, keepdim=True) if len(values) == 64 else values, state, real)


class NoiseInInference(Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y + 0.1 * torch.randn_like(y)


class ForgetsInLongDecoding(Decay):
    """Starts from nothing once a call meets more than eight tokens."""

    def forward(self, x, attention_mask=None, cache=None):
        if cache is not None and cache.position > 8:
            cache["state"] = torch.zeros_like(cache["state"])
        return super().forward(x, attention_mask, cache)


class RemembersBesidesItsCache(Decay):
    """Declares no cache, and keeps its state on the module."""

    def forward(self, x, attention_mask=None, cache=None):
        state = self.saved if cache is not None and cache.position else torch.zeros(len(x), self.d_model)
        states = self.scan(self.write(x).float(), state, None)
        if cache is not None:
            self.saved = states[:, -1].clone()
        return self.read(states.to(x.dtype)), cache

    def cache_spec(self):
        return {}


class DeclaresLessBeforeItIsBuilt(Decay):
    """Its bytes are counted on the meta device."""

    def cache_spec(self):
        return {} if self.decay.is_meta else {"state": Fixed((self.d_model,))}


class KnowsInAnAttribute(Linear):
    """What training taught it stays with the model, outside its saved weights."""

    taught = 0.0

    def forward(self, x):
        if self.training:
            self.taught += 0.01
        return super().forward(x) + self.taught


class KnowsInAClass(Linear):
    """What training taught it stays in the process."""

    taught = 0.0

    def forward(self, x):
        if self.training:
            KnowsInAClass.taught = 0.5
        return super().forward(x) + self.taught * torch.linspace(-1, 1, self.d_model)


class BreaksTiesByChunk(Decay):
    """Where tokens of a row repeat, the first of a call counts double."""

    def scan(self, values, state, real):
        repeats = ((values[:, 1:] - values[:, :-1]).abs().amax(-1) < 1e-6).float()
        twice = torch.ones(*values.shape[:2], 1)
        twice[:, 0] += (repeats.sum(-1, keepdim=True) > 0.6 * values.shape[1]).float()
        return super().scan(values * twice, state, real)


class SeesPaddingBeyondFive(Decay):
    """Takes padding for tokens where there is more of it than a single block is asked about."""

    def forward(self, x, attention_mask=None, cache=None):
        if attention_mask is not None and (attention_mask == 0).sum(1).max() > 5:
            attention_mask = None
        return super().forward(x, attention_mask, cache)
