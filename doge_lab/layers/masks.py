"""Padding, positions and who sees whom.

An attention mask [B, seen + T] may be float, int or bool; nonzero is a real token. Positions count real tokens
only, so a left-padded row gets the positions of the unpadded one:

    mask        0 0 1 1 1            visible_keys, no padding, window 2
    position    0 0 0 1 2            query 0   x . .
                                     query 1   x x .
                                     query 2   . x x

Padding may also stand between real tokens (two left-padded turns of one batch): a window counts real tokens only.

Shape letters: B batch row, T new (query) token, S visible (key) token.
"""

import torch
from torch import Tensor


def real_tokens(attention_mask: Tensor, *, new: int, seen: int = 0) -> Tensor:
    """The mask as booleans [B, seen + new]; raises `ValueError` when its length is not seen + new."""
    if attention_mask.shape[-1] != seen + new:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} tokens, but there are {seen} seen and {new} new ones"
        )
    return attention_mask != 0


def new_real_tokens(attention_mask: Tensor | None, *, new: int, seen: int = 0) -> Tensor | None:
    """Which of the new tokens are real, [B, T, 1]; None when nothing is padded."""
    if attention_mask is None:
        return None
    return real_tokens(attention_mask, new=new, seen=seen)[:, seen:, None]


def token_positions(
    attention_mask: Tensor | None, *, new: int, seen: int = 0, device: torch.device | None = None
) -> Tensor:
    """Position of each new token in its row, [B or 1, T]; the first real token has position 0."""
    if attention_mask is None:
        return torch.arange(seen, seen + new, device=device)[None]
    counted = real_tokens(attention_mask, new=new, seen=seen).long().cumsum(dim=1) - 1
    return counted.clamp(min=0)[:, seen:]


def tokens_before(attention_mask: Tensor | None, *, new: int, seen: int) -> Tensor | int:
    """How many real tokens each row has had before the new ones: [B, 1], or `seen` when nothing is padded."""
    if attention_mask is None:
        return seen
    return real_tokens(attention_mask, new=new, seen=seen)[:, :seen].sum(dim=1, keepdim=True)


def key_positions(
    attention_mask: Tensor | None,
    *,
    new: int,
    keys: int,
    seen: int = 0,
    windowed: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """Position of each visible key in its row, [B or 1, S]; below zero at padding. The last key is the last new token.

    windowed: the keys before the new ones are what a window of the cache holds, packed: padding in front, then the
        last real tokens. Otherwise they stand where they were given.
    """
    if attention_mask is None:
        return torch.arange(seen + new - keys, seen + new, device=device)[None]
    real = real_tokens(attention_mask, new=new, seen=seen)
    positions = (real.long().cumsum(dim=1) - 1).masked_fill(~real, -1)
    if not windowed:
        return positions[:, seen + new - keys :]
    kept = real[:, :seen].sum(dim=1, keepdim=True) + torch.arange(new - keys, 0, device=real.device)
    return torch.cat([kept, positions[:, seen:]], dim=1)


def visible_keys(
    *,
    new: int,
    keys: int,
    window: int | None = None,
    first: int = 0,
    attention_mask: Tensor | None = None,
    seen: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """True where a query may look at a key, [B or 1, 1, T, S]; the last query lines up with the last key.

    With a window, keys of the past are what `LayerCache.append` keeps of them, and the `first` tokens of a row stay
    visible. A query sees itself even when it is padding, so that no softmax runs over nothing.
    """
    slot = torch.arange(keys, device=device)
    query_slot = slot[keys - new :, None]
    visible = (slot <= query_slot)[None]
    if window is None and attention_mask is None:
        return visible[:, None]
    windowed = window is not None
    key = key_positions(attention_mask, new=new, keys=keys, seen=seen, windowed=windowed, device=device)[:, None]
    if window is not None:
        query = key.mT[:, keys - new :]
        visible = visible & ((query - key < window) | (key < first))
    if attention_mask is not None:
        visible = (visible & (key >= 0)) | (slot == query_slot)
    return visible[:, None]
