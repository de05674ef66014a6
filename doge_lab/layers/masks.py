"""Padding, positions and who sees whom.

An attention mask [B, seen + T] may be float, int or bool; nonzero is a real token. Positions count real tokens
only, so a left-padded row gets the positions of the unpadded one:

    mask        0 0 1 1 1            visible_keys, no padding, window 2
    position    0 0 0 1 2            query 0   x . .
                                     query 1   x x .
                                     query 2   . x x

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


def visible_keys(
    *,
    new: int,
    keys: int,
    window: int | None = None,
    attention_mask: Tensor | None = None,
    seen: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """True where a query may look at a key, [B or 1, 1, T, S]; the last query lines up with the last key.

    A query sees itself even when it is padding, so that no softmax runs over nothing.
    """
    query = torch.arange(keys - new, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    visible = key <= query
    if window is not None:
        visible = visible & (query - key < window)
    if attention_mask is None:
        return visible[None, None]
    real = real_tokens(attention_mask, new=new, seen=seen)[:, None, None, -keys:]
    return (visible & real) | (key == query)
