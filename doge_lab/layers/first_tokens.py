"""A sequence's first tokens, kept in sight after a window has moved on.

    window 2, the first token kept      query 0   x . . .
                                        query 1   x x . .
                                        query 2   x x x .
                                        query 3   x . x x

In a cache they are a `Fixed` entry of `count` slots, by position: slot p holds the row's p-th real token, so that
left padding takes none. A first token still inside the window is read there, and its slot is not looked at.

Source: Xiao et al. 2023, https://arxiv.org/abs/2309.17453

Shape letters: B batch row, T new token, W visible token of the window, N kept token.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from doge_lab.layers.masks import new_real_tokens, token_positions, tokens_before, visible_keys


def store_first(kept: Tensor, new: Tensor, attention_mask: Tensor | None, *, seen: int) -> Tensor:
    """What `kept` [B, N, ...] holds after the tokens `new` [B, T, ...], of which most are not among the first."""
    count, tokens = kept.shape[1], new.shape[1]
    slot = token_positions(attention_mask, new=tokens, seen=seen, device=new.device).clamp(max=count)  # [B or 1, T]
    real = new_real_tokens(attention_mask, new=tokens, seen=seen)
    if real is not None:
        slot = slot.masked_fill(~real[..., 0], count)
    trailing = [1] * (new.dim() - 2)
    slots = slot.view(*slot.shape, *trailing).expand_as(new)
    # Whatever is not among the first lands in one slot too many.
    padded = F.pad(kept, [0, 0] * len(trailing) + [0, 1])
    return padded.scatter(1, slots, new.detach().to(kept.dtype))[:, :count]


def visible_with_first(
    *, new: int, keys: int, window: int, first: int, attention_mask: Tensor | None, seen: int, device: torch.device
) -> Tensor:
    """True where a query may look, [B or 1, 1, T, N + W]; the keys of the window are the last `keys`.

    The N slots are there only if tokens have left the window's keys: seen + new > keys.
    """
    visible = visible_keys(
        new=new, keys=keys, window=window, first=first, attention_mask=attention_mask, seen=seen, device=device
    )
    if seen + new == keys:
        return visible
    gone = tokens_before(attention_mask, new=new, seen=seen) - (keys - new)  # real tokens that no key holds
    filled = torch.arange(first, device=device)[None] < gone
    return torch.cat([filled[:, None, None].expand(-1, 1, new, -1), visible], dim=-1)
