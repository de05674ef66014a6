"""Sequence blocks whose memory is not what they say, or not where it belongs."""

import torch
from broken.healthy import Decay
from torch.nn import functional as F

from blocks.sequence.attention import Attention
from doge_lab.cache import Fixed, LayerCache, PerToken
from doge_lab.layers.masks import visible_keys


class StateDropped(Decay):
    """Uses the state only where one token arrives: a chunk that meets a filled cache starts from nothing."""

    def scan(self, values, state, real):
        return super().scan(values, state if values.shape[1] == 1 else torch.zeros_like(state), real)


class AdvancesTheCache(Decay):
    """Moves the position, which the model moves too."""

    def remember(self, cache, states):
        super().remember(cache, states)
        cache.advance(states.shape[1])


class StateOnModule(Decay):
    """Keeps the state on the module from one call to the next; the declared entry is written for show."""

    def forward(self, x, attention_mask=None, cache=None):
        if cache is not None and cache.position > 0:
            cache["state"] = self.saved
        y, cache = super().forward(x, attention_mask, cache)
        if cache is not None:
            self.saved = cache["state"].clone()
        return y, cache


class CountsCalls(Decay):
    """Remembers how often it was called, on a module where no check of outputs sees it."""

    calls = 0

    def forward(self, x, attention_mask=None, cache=None):
        self.calls += 1
        return super().forward(x, attention_mask, cache)


class WindowOffByOne(Attention):
    """Looks one token further back in a whole sequence than its cache reaches."""

    class Config(Attention.Config):
        window: int = 4

    def _attend(self, q, k, v, attention_mask, seen):
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        mask = visible_keys(
            new=q.shape[2],
            keys=k.shape[2],
            window=self.config.window + 1,
            attention_mask=attention_mask,
            seen=seen,
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


class KeepsAViewAlive(Decay):
    """Holds a view of every state it went through."""

    def remember(self, cache, states):
        cache.tensors["state"] = torch.cat([states, states[:, -1:]], dim=1)[:, -1]


class UndeclaredEntry(Decay):
    """Adds an entry to the cache that it did not declare."""

    def remember(self, cache, states):
        super().remember(cache, states)
        cache.tensors.setdefault("extra", torch.zeros(len(states), 4))


class HidesOnTheCache(Decay):
    """Stores a tensor on the cache object, beside the entries."""

    def remember(self, cache, states):
        super().remember(cache, states)
        cache.notes = [torch.zeros(len(states), 4)]


class DeclaresOtherBytes(Decay):
    """Declares its state in half the type that it is held in."""

    def cache_spec(self):
        return {"state": Fixed((self.d_model,), torch.bfloat16)}

    def init_cache(self, *, batch, capacity, dtype=torch.float32, device="cpu"):
        return LayerCache({"state": Fixed((self.d_model,))}, batch=batch, capacity=capacity, dtype=dtype, device=device)


class NeverWritten(Decay):
    """Declares an entry that it never touches."""

    def cache_spec(self):
        return {**super().cache_spec(), "spare": Fixed((4,))}


class NeverRead(Decay):
    """Writes an entry that it never reads."""

    def cache_spec(self):
        return {**super().cache_spec(), "inputs": PerToken((4,))}

    def remember(self, cache, states):
        super().remember(cache, states)
        cache.append("inputs", states[..., :4])


class ChannelsNeverRead(Decay):
    """Declares a state twice as wide as what it reads."""

    def forward(self, x, attention_mask=None, cache=None):
        if cache is None:
            return super().forward(x, attention_mask)
        narrow = LayerCache(super().cache_spec(), batch=len(x), capacity=cache.capacity, dtype=x.dtype)
        narrow["state"], narrow.position = cache["state"][:, : self.d_model], cache.position
        y, _ = super().forward(x, attention_mask, narrow)
        cache["state"] = narrow["state"].repeat(1, 2)
        return y, cache

    def cache_spec(self):
        return {"state": Fixed((2 * self.d_model,))}


class WindowTooWide(Attention):
    """Declares a window twice as long as it looks back."""

    class Config(Attention.Config):
        window: int = 4

    def cache_spec(self):
        return {name: PerToken(entry.shape, window=8) for name, entry in super().cache_spec().items()}

    def _attend(self, q, k, v, attention_mask, seen):
        kept = min(k.shape[1], q.shape[1] + self.config.window - 1)
        return super()._attend(q, k[:, -kept:], v[:, -kept:], attention_mask, seen)


class KeepsEverything(Attention):
    """Declares a slot for every token and looks at the last four."""

    class Config(Attention.Config):
        window: int = 4

    def cache_spec(self):
        return {name: PerToken(entry.shape) for name, entry in super().cache_spec().items()}

    def _attend(self, q, k, v, attention_mask, seen):
        kept = min(k.shape[1], q.shape[1] + self.config.window - 1)
        if attention_mask is not None:
            return super()._attend(q, k, v, attention_mask, seen)
        return super()._attend(q, k[:, -kept:], v[:, -kept:], attention_mask, seen)


class OwnCache(LayerCache):
    def select_rows(self, rows):
        super().select_rows(rows.sort().values)


class RowsNotReordered(Decay):
    """Brings a cache of its own whose rows cannot be put in any order."""

    def init_cache(self, *, batch, capacity, dtype=torch.float32, device="cpu"):
        return OwnCache(self.cache_spec(), batch=batch, capacity=capacity, dtype=dtype, device=device)
