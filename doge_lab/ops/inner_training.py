"""A linear model per head, trained by gradient descent on the tokens it reads, token by token or by mini-batches.

    f(u; W) = u + LN([u, 1] W)                                l(W; k, v) = |f(k; W) - v|² / 2
    W_t = W_m - s_i Σ_{m < j <= t} η_j ∇l(W_m; k_j, v_j)      o_t = f(q_t; W_t)

W with its bias as last row. The gradients of a mini-batch are taken at the weights W_m that the one before has left;
its token i (from 0) scales their sum by s_i. In the dual form the tokens of a mini-batch attend to each other's
gradients, and W is carried from one mini-batch to the next.

Source: Sun et al. 2024, https://arxiv.org/abs/2407.04620

Shape letters: B batch row, S token seen before, T new token, H head, K head channel, U head channel and the constant 1,
N mini-batch, C token of a mini-batch.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from doge_lab.ops.dispatch import Example, recurrence
from doge_lab.ops.mini_batches import MiniBatches

_EPS = 1e-6

Trained = tuple[Tensor, Tensor, Tensor]
"""Outputs [B, T, H, K], the last mini-batch's weights W_m and the sum of its gradients so far, both [B, H, U, K]."""


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    weight: Tensor,
    total: Tensor,
    token_scale: Tensor,
    norm: tuple[Tensor, Tensor],
    place: Tensor,
    real: Tensor | None = None,
    seen: int = 0,
) -> Trained:
    """The definition: q, k, v [B, T, H, K], the rate η [B, T, H], weight and total as left by `seen` tokens.

    token_scale: s, [1, C, 1].
    norm: scale and shift of LN, [H, 1, K] each.
    place: where in its mini-batch each token stands, [B or 1, T].
    real: which tokens, seen and new, are no padding, [B, S + T]; None when all are. The rate of padding must be 0.
    """
    first = place == 0 if real is None else (place == 0) & real[:, seen:]
    scale, outputs = token_scale.flatten(), []
    for t in range(q.shape[1]):
        q_t, k_t, v_t = (heads[:, t, :, None] for heads in (q, k, v))  # [B, H, 1, K]
        first_t = first[:, t, None, None, None]
        weight = torch.where(first_t, weight - scale[-1] * total, weight)
        total = total.masked_fill(first_t, 0.0)
        gradient = _gradient(_with_one(k_t) @ weight, v_t - k_t, *norm)
        total = total + rate[:, t, :, None, None] * _with_one(k_t).mT * gradient
        weight_t = weight - scale[place[:, t]][:, None, None, None] * total
        outputs.append(_read(q_t, _with_one(q_t) @ weight_t, *norm))
    return torch.cat(outputs, dim=2).transpose(1, 2), weight, total


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    weight: Tensor,
    total: Tensor,
    token_scale: Tensor,
    norm: tuple[Tensor, Tensor],
    place: Tensor,
    real: Tensor | None = None,
    seen: int = 0,
) -> Trained:
    """The same by mini-batches: attention within each to its gradients, from one to the next through W."""
    batches = MiniBatches(token_scale.shape[1], real, new=q.shape[1], seen=seen, device=q.device)
    q, k, v = (batches.arrange(heads).transpose(2, 3) for heads in (q, k, v))  # [B, N, H, C, K]
    rate = batches.arrange(rate).mT[..., None, :]  # [B, N, H, 1, C]
    keys, queries = _with_one(k), _with_one(q)
    scores = (queries @ keys.mT).tril() * rate
    writes = keys.mT * rate
    begins = batches.begins[..., None, None, None]  # [B or 1, N, 1, 1, 1]
    predictions = []
    for n in range(q.shape[1]):
        weight = torch.where(begins[:, n], weight - token_scale[0, -1] * total, weight)
        total = total.masked_fill(begins[:, n], 0.0)
        gradient = _gradient(keys[:, n] @ weight, v[:, n] - k[:, n], *norm)
        step = scores[:, n] @ gradient
        if n == 0:  # only the first mini-batch may have begun in an earlier call
            step = step + queries[:, n] @ total
        predictions.append(queries[:, n] @ weight - token_scale * step)
        total = total + writes[:, n] @ gradient
    o = _read(q, torch.stack(predictions, dim=1), *norm)
    return batches.restore(o.transpose(2, 3)), weight, total


def _gradient(prediction: Tensor, target: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The gradient of |LN(prediction) - target|² / 2 with respect to the prediction, [..., H, C, K]."""
    centred = prediction - prediction.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + _EPS).rsqrt()
    normal = centred * rstd
    error = (normal * scale + shift - target) * scale
    along = (error * normal).mean(-1, keepdim=True)
    return (error - error.mean(-1, keepdim=True) - normal * along) * rstd


def _read(q: Tensor, prediction: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normal = F.layer_norm(prediction, prediction.shape[-1:], eps=_EPS)
    return q + normal * scale + shift


def _with_one(heads: Tensor) -> Tensor:
    return F.pad(heads, (0, 1), value=1.0)


def _examples() -> dict[str, Example]:
    make, size = torch.Generator().manual_seed(0), 4
    q, k, v = (torch.randn(2, 14, 3, 4, generator=make) for _ in range(3))
    rate, weight = torch.rand(2, 14, 3, generator=make), torch.randn(2, 3, 5, 4, generator=make)
    total, scale = torch.randn(2, 3, 5, 4, generator=make), torch.rand(1, size, 1, generator=make)
    norm = (1 + torch.rand(3, 1, 4, generator=make), torch.randn(3, 1, 4, generator=make))
    place = torch.arange(3, 17)[None] % size
    real = torch.ones(2, 17, dtype=torch.bool)
    real[1, :2] = False  # among those seen: what is read at padding may be anything
    padded_place = (real.long().cumsum(1) - 1).clamp(min=0)[:, 3:] % size
    given = (k, v, rate, weight, total, scale, norm)
    return {
        "three tokens seen": Example((q, *given, place, None, 3)),
        "a padded row": Example((q, k, v, rate * real[:, 3:, None], *given[3:], padded_place, real, 3)),
    }


inner_training = recurrence("inner_training", reference, chunked, _examples)
