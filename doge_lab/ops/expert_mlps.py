"""Perceptrons side by side, of which each token passes a few, weighted: two ways of computing one sum.

    y = Σ over the chosen w_e expert_e(x)

    expert_e(x) = W_down,e act(W_up,e x)                        without a gate
    expert_e(x) = W_down,e (act(W_gate,e x) ⊙ W_up,e x)         with one

Side by side the experts are one wide perceptron whose hidden units are weighted by expert, zero for those not chosen;
one after the other, each sees the tokens that chose it. The first computes in vain what nobody chose, the second sorts
tokens and multiplies once for each expert: it costs less once tokens are many.

Source: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538

Shape letters: N token, K pick, E expert, F d_expert, D d_model.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from doge_lab.ops.dispatch import REFERENCE, Example, Op, in_transform
from doge_lab.ops.picks import count_picks

_WASTE = 350_000
"""Multiply-adds in vain, by expert and matrix, that cost a CPU as much as serving one expert apart."""

Tables = tuple[Tensor | None, Tensor, Tensor]
"""Gate (None without), up and down of all experts [E, F, D]; a row is a hidden unit in all three."""
Activation = Callable[[Tensor], Tensor]


def reference(x: Tensor, chosen: Tensor, weights: Tensor, tables: Tables, act: Activation) -> Tensor:
    """All experts side by side: x [N, D], chosen and their weights [K, N] -> [N, D]."""
    return side_by_side(x, weights.new_zeros(len(tables[1]), len(x)).scatter(0, chosen, weights), tables, act)


def side_by_side(x: Tensor, weight_of: Tensor, tables: Tables, act: Activation) -> Tensor:
    """The same from the weight of every expert, [E, N]."""
    gate, up, down = tables
    n_experts, d_expert, _ = up.shape
    hidden = _hidden(x.t(), up.flatten(0, 1), None if gate is None else gate.flatten(0, 1), act)  # [E F, N]
    hidden = hidden.view(n_experts, d_expert, -1) * weight_of[:, None]
    return hidden.flatten(0, 1).t() @ down.flatten(0, 1)


def by_expert(x: Tensor, chosen: Tensor, weights: Tensor, tables: Tables, act: Activation) -> Tensor:
    """Each expert on the tokens that chose it."""
    gate, up, down = tables
    order = chosen.flatten().argsort(stable=True)
    token = order % len(x)
    load = count_picks(chosen, len(up)).tolist()
    gates = [None] * len(up) if gate is None else gate.unbind()
    parts = x.index_select(0, token).split(load)
    shares = weights.flatten().index_select(0, order).split(load)
    experts = zip(parts, shares, up.unbind(), gates, down.unbind(), strict=True)
    outputs = torch.cat(
        [(_hidden(part.t(), up, gate, act) * share).t() @ down for part, share, up, gate, down in experts if len(part)]
    )
    return outputs.new_zeros(x.shape).index_add(0, token, outputs)


def _hidden(x: Tensor, up: Tensor, gate: Tensor | None, act: Activation) -> Tensor:
    """Hidden units [F, N] of the tokens `x` [D, N]."""
    return act(up @ x) if gate is None else act(gate @ x) * (up @ x)


def _choose(x: Tensor, chosen: Tensor, weights: Tensor, tables: Tables, act: Activation) -> str:
    """All side by side where that costs less than sorting tokens by expert, or where the host may not look."""
    if torch.compiler.is_compiling() or in_transform(x) or in_transform(chosen) or in_transform(tables[1]):
        return REFERENCE
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return REFERENCE
    (n_tokens, d_model), (n_experts, d_expert, _), top_k = x.shape, tables[1].shape, len(chosen)
    wasted = n_tokens * d_expert * d_model * (n_experts - top_k)
    return REFERENCE if n_tokens * top_k >= n_experts and wasted <= n_experts * _WASTE else "by_expert"


def _examples() -> dict[str, Example]:
    make = torch.Generator().manual_seed(0)
    x, weights = torch.randn(20, 6, generator=make), torch.rand(2, 20, generator=make)
    gate, up, down = torch.randn(3, 5, 4, 6, generator=make)
    chosen = torch.rand(5, 20, generator=make)[1:].topk(2, dim=0).indices  # nobody chooses the last
    return {
        "gated": Example((x, chosen, weights, (gate, up, down), torch.sigmoid)),
        "not gated": Example((x, chosen, weights, (None, up, down), torch.tanh)),
    }


_SORTED = "how many tokens an expert serves is data, on which the shapes of its products depend"

expert_mlps = Op(
    "expert_mlps",
    {REFERENCE: reference, "by_expert": by_expert},
    _choose,
    _examples,
    not_stacked={"by_expert": _SORTED},
    looks={"by_expert": _SORTED},
)
