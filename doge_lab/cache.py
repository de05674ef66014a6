"""What sequence blocks remember between calls.

A block *declares* its memory as named `Fixed` and `PerToken` entries (`SequenceBlock.cache_spec`). From that
declaration this module allocates the memory, measures it in bytes and reorders its rows, so that a key/value
cache, a sliding window and a recurrent state are handled by the same few lines.

Shape letters: B batch row, T new token, S visible token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from doge_lab.layers.masks import key_positions
from doge_lab.layers.packing import Packing


@dataclass(frozen=True)
class Fixed:
    """A tensor whose size does not depend on how many tokens were seen: a recurrent state, a convolution's tail.

    `dtype` defaults to float32, because a state is summed into over the whole sequence.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = torch.float32

    def slots(self, length: int) -> tuple[int, ...]:
        return self.shape


@dataclass(frozen=True)
class PerToken:
    """One slot per token seen (keys, values), or for the last `window` real tokens, the newest included.

    `dtype` None means the cache's own type; indices name the smallest integer type that holds them.
    """

    shape: tuple[int, ...]
    window: int | None = None
    dtype: torch.dtype | None = None

    def slots(self, length: int) -> tuple[int, ...]:
        kept = length if self.window is None else min(length, self.window)
        return (kept, *self.shape)


CacheSpec = Mapping[str, Fixed | PerToken]


def nbytes(spec: CacheSpec, length: int, dtype: torch.dtype) -> int:
    """Bytes that one batch row of `spec` takes when allocated for exactly `length` tokens."""
    return sum(prod(entry.slots(length)) * (entry.dtype or dtype).itemsize for entry in spec.values())


class LayerCache:
    """The memory of one sequence block: a tensor per declared entry, batch first.

    The caller owns it and the block writes to it. `position` counts the tokens already seen; whoever calls the
    block advances it afterwards (the model does), so that a block may append several entries. A cache is for
    inference: what is stored is cut off from the gradient.
    """

    def __init__(
        self, spec: CacheSpec, *, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.spec = spec
        self.capacity = capacity
        self.position = 0
        self.tensors = {
            name: torch.zeros(batch, *entry.slots(capacity), dtype=entry.dtype or dtype, device=device)
            for name, entry in spec.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        old = self.tensors[name]
        if value.shape != old.shape:
            raise ValueError(f"cache entry {name!r} is declared as {tuple(old.shape)}, given {tuple(value.shape)}")
        old.copy_(value.detach())  # not rebound: a view of a long activation would keep all of it alive

    def append(self, name: str, new: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Store `new` [B, T, ...] and return every token its queries may look at, [B, S, ...], in `new`'s type.

        The last visible token is the last new one. Told of padding by `attention_mask` [B, tokens seen + T], a window
        keeps real tokens alone, packed: padding in front. Raises `ValueError` past the capacity.
        """
        entry, stored, seen = self.spec[name], self.tensors[name], self.position
        if not isinstance(entry, PerToken):
            raise TypeError(f"cache entry {name!r} is Fixed; assign to it instead of appending")
        end = seen + new.shape[1]
        if end > self.capacity < (entry.window or end):
            raise ValueError(f"the cache holds {self.capacity} tokens, but token {end} was appended to {name!r}")
        if entry.window is None:
            stored[:, seen:end] = new.detach()
            return stored[:, :end].to(new.dtype)
        # A chunk's first query still needs the tokens that the chunk's last key pushes out,
        # so the visible tokens are gathered before the window moves.
        kept = min(seen, entry.window)
        visible = torch.cat([stored[:, max(0, kept - entry.window + 1) : kept].to(new.dtype), new.detach()], dim=1)
        following = visible
        if attention_mask is not None:
            following = torch.cat([stored[:, :kept].to(new.dtype), new.detach()], dim=1)
            at = key_positions(attention_mask, new=new.shape[1], keys=kept + new.shape[1], seen=seen, windowed=True)
            following = Packing(at >= 0).pack(following)
        tail = following[:, -entry.window :]
        stored[:, : tail.shape[1]] = tail
        return visible

    def advance(self, tokens: int) -> None:
        self.position += tokens

    def select_rows(self, rows: Tensor) -> None:
        """Keep, repeat and reorder the given batch rows: beam search, or one prompt continued n times."""
        self.tensors = {name: tensor.index_select(0, rows) for name, tensor in self.tensors.items()}

    def nbytes(self) -> int:
        """Bytes really held over all rows: the storage behind each tensor, not its shape."""
        return storage_bytes(self.tensors.values())


class Cache:
    """The memory of a whole model: one `LayerCache` per layer, advanced together."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)
        self.position = 0

    def advance(self, tokens: int) -> None:
        self.position += tokens
        for layer in self.layers:
            layer.advance(tokens)

    def select_rows(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.select_rows(rows)

    def nbytes(self) -> int:
        """Bytes really held over all rows and layers."""
        return storage_bytes(tensor for layer in self.layers for tensor in layer.tensors.values())


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`: a view counts the whole of what it keeps alive."""
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())
