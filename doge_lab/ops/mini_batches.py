"""Tokens laid out in mini-batches of a fixed size that count real tokens only, whatever the padding and the calls.

    real        0 1 1 1 1           mini-batches of 2, one real token seen:       . 0 | 1 2
    slot        - 1 2 3 4           with three seen and a mask of ones,                     . 3 | 4 .

A row's slots begin with the mini-batch that earlier calls left unfinished; a slot without a new token holds zeros.

Shape letters: B batch row, T new token, N mini-batch, C token of a mini-batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class MiniBatches:
    """Where each new token goes. `begins` [B or 1, N]: the mini-batches whose first token is among the new ones.

    real: which tokens are, seen and new, [B, S + T]; None when all are.
    """

    def __init__(
        self, size: int, real: Tensor | None, *, new: int, seen: int = 0, device: torch.device | None = None
    ) -> None:
        self.size, self.new, self.offset = size, new, seen % size
        # How full the unfinished mini-batch is differs between padded rows; shapes may depend on the fullest possible.
        fullest = self.offset if real is None else min(seen, size - 1)
        self.count = -(-(fullest + new) // size)
        self.slot: Tensor | None = None
        starts = torch.arange(0, self.count * size, size, device=device)
        if real is None:
            self.begins = (starts >= self.offset)[None]
            return
        offset = real[:, :seen].sum(dim=1, keepdim=True) % size
        ends = offset + real[:, seen:].cumsum(dim=1)  # [B, T]
        self.begins = (starts >= offset) & (starts < ends[:, -1:])
        self.slot = torch.where(real[:, seen:], ends - 1, self.count * size)

    def arrange(self, x: Tensor) -> Tensor:
        """The tokens [B, T, ...] at their slots, [B, N, C, ...]."""
        slots = self.count * self.size
        if self.slot is None:
            after = slots - self.offset - self.new
            arranged = F.pad(x, [0, 0] * (x.ndim - 2) + [self.offset, after])
        else:
            spare = x.new_zeros(len(x), slots + 1, *x.shape[2:])  # its last slot takes the padding
            arranged = spare.index_put((self._row(x), self.slot), x)[:, :slots]
        return arranged.unflatten(1, (self.count, self.size))

    def restore(self, x: Tensor) -> Tensor:
        """What stands at the slots, [B, N, C, ...], in the order of the tokens, [B, T, ...]; at padding, anything."""
        x = x.flatten(1, 2)
        if self.slot is None:
            return x[:, self.offset : self.offset + self.new]
        return x[self._row(x), self.slot.clamp(max=x.shape[1] - 1)]

    @staticmethod
    def _row(x: Tensor) -> Tensor:
        return torch.arange(len(x), device=x.device)[:, None]
