"""Padding moved to the front of each row, so that whatever looks a number of slots back finds that many real tokens.

    mask        0 1 1 0 1 1
    slots       . a b . c d
    packed      . . a b c d

Real tokens keep their order. A row padded on the left alone is packed as it stands.

Shape letters: B batch row, S slot, T one of the last slots, L slot of a tail.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class Packing:
    """Where the slots of rows with the real tokens `real` [B, S] go, and back; None: nothing is padded or moved."""

    def __init__(self, real: Tensor | None) -> None:
        self._order = None if real is None else real.int().argsort(dim=1, stable=True)

    @classmethod
    def behind_tail(cls, tail: int, real: Tensor | None) -> "Packing":
        """Of new tokens, `real` [B, T, 1], behind a tail of so many tokens of the past, all of them real."""
        return cls(None if real is None else F.pad(real[..., 0], (tail, 0), value=True))

    def pack(self, x: Tensor) -> Tensor:
        """The slots [B, S, ...] in packed order."""
        return x if self._order is None else _take(x, self._order)

    def unpack(self, packed: Tensor) -> Tensor:
        """The last T packed slots [B, T, ...] at the last T slots where their tokens stood; at padding, anything."""
        if self._order is None:
            return packed
        before = self._order.shape[1] - packed.shape[1]
        place = self._order.argsort(dim=1)[:, before:] - before
        return _take(packed, place.clamp(min=0))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """The slots `index` [B, T] of each row of x [B, S, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
