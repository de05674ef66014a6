"""Causal attention whose weights are products of features, so that a sum over the past replaces the past.

    S_t = S_{t-1} + φ(k_t)ᵀ v_t     z_t = z_{t-1} + φ(k_t)     o_t = φ(q_t) S_t / (φ(q_t) · z_t)

z is one more column of S, the first, whose value is 1 at every token: both are one recurrence without decay.

Source: Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236

Shape letters: B batch row, T token, H head, F feature, V value channel.
"""

from torch import Tensor
from torch.nn import functional as F

from doge_lab.ops.scalar_recurrence import scalar_recurrence

_EPS = 1e-6  # where no weight is: padding, and features that have nothing in common


def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, *, normalise: bool = True
) -> tuple[Tensor, Tensor]:
    """q, k [B, T, H, F], v [B, T, H, V] -> outputs like v and the state [B, H, F, 1 + V].

    Without `normalise` outputs are the plain sums φ(q_t) S_t, and the state is [B, H, F, V].
    """
    no_decay = v.new_zeros(1, q.shape[1], 1)
    if not normalise:
        return scalar_recurrence(q, k, v, no_decay, state)
    sums, state = scalar_recurrence(q, k, F.pad(v, (1, 0), value=1.0), no_decay, state)
    return sums[..., 1:] / (sums[..., :1] + _EPS), state
