"""`ultra_mem` computes what a loop over tokens, heads and all n² slots of the Tucker-decomposed grid computes.

The approximate search is compared with the loop in which pairs outside of the candidate rows and columns are struck
out; the candidates are found with NumPy's singular vectors, and the core's loss with the eigenvalues of CᵀC.
"""

import numpy as np
import pytest
import torch
from retrieval_oracle import D_MODEL, assert_rows_are_never_held, assert_same_function, scaled, weighted

from blocks.state.ultra_mem import UltraMem
from doge_lab.ops import picks as picked

BLOCK = "state/ultra_mem"
ORACLE = "the equations of the paper over all n² slots, written out in float64"

OPTIONS = [
    {},
    {"n_candidates": 3, "rank": 2, "top_k": 5},
    {"n_candidates": 4, "rank": 3, "d_query": 12, "qk_norm": "rms", "normalisation": "sigmoid", "top_k": 1},
    {"n_keys": 5, "value_expansion": 2, "rank": 1, "n_heads": 1},
    {"value_expansion": 3, "n_candidates": 5, "n_heads": 3, "core_loss_weight": 0.5, "core_loss_margin": 0.0},
]


def half_scores(block, token, half, head):
    """Scores [rank][n] of the rows (half 0) or of the columns (half 1)."""
    c = block.config
    query = scaled(block.query.weight.unflatten(0, (c.n_heads, 2, -1))[head, half] @ token, c.qk_norm)
    keys = [scaled(key, c.qk_norm) for key in block.keys[half, head]]
    width = len(query) // c.rank
    slices = [slice(a * width, (a + 1) * width) for a in range(c.rank)]
    return [[query[part] @ key[part] / width**0.5 for key in keys] for part in slices]


def candidates(block, head, rows, columns):
    """The rows and the columns that the approximate search keeps."""
    left, _, right = np.linalg.svd(block.core[head].detach().numpy())
    along = left[:, 0], right[0]
    sign = -1 if along[0].sum() + along[1].sum() < 0 else 1
    kept = []
    for direction, scores in zip(along, (rows, columns), strict=True):
        sums = [
            sign * sum(d * s[i].item() for d, s in zip(direction, scores, strict=True)) for i in range(len(rows[0]))
        ]
        kept.append(sorted(range(len(sums)), key=lambda i, sums=sums: -sums[i])[: block.config.n_candidates])
    return kept


def value(block, slot):
    c = block.config
    i, j = divmod(slot, c.n_keys)
    if c.value_expansion == 1:
        return block.values[slot]
    columns = len(block.values) // c.n_keys
    return block.values[i * columns + j // c.value_expansion] @ block.projectors[j % c.value_expansion]


def looped(block, tokens):
    c, n, outputs = block.config, block.config.n_keys, []
    for token in tokens:
        y = torch.zeros_like(token)
        for head in range(c.n_heads):
            rows, columns = (half_scores(block, token, half, head) for half in (0, 1))
            every = [
                sum(rows[a][i] * block.core[head, a, b] * columns[b][j] for a in range(c.rank) for b in range(c.rank))
                for i in range(n)
                for j in range(n)
            ]
            kept_rows, kept_columns = candidates(block, head, rows, columns)
            allowed = [i * n + j for i in kept_rows for j in kept_columns]
            chosen = sorted(allowed, key=lambda e, every=every: -every[e].item())[: c.top_k]
            for e, weight in zip(chosen, weighted(every, chosen, c.normalisation), strict=True):
                y = y + weight * value(block, e)
        outputs.append(y)
    return torch.stack(outputs), core_loss(block)


def core_loss(block):
    c, loss = block.config, 0.0
    for core in block.core:
        for eigenvalue in torch.linalg.eigvalsh(core.t() @ core)[:-1]:
            excess = (eigenvalue.sqrt() - c.core_loss_margin).clamp(min=0)
            loss = loss + c.core_loss_weight / (c.rank - 1) * excess**2
    return loss


@pytest.mark.parametrize("few_floats", [0, 1 << 30])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_are_those_of_the_published_equations(monkeypatch, options, sharpness, few_floats):
    monkeypatch.setattr(picked, "_FEW_FLOATS", few_floats)
    seed = OPTIONS.index(options)
    torch.manual_seed(seed)
    block = UltraMem(D_MODEL, **{"n_keys": 6, "top_k": 4, **options})
    with torch.no_grad():
        block.core.add_(0.5 * torch.randn_like(block.core)).mul_(sharpness)
    assert_same_function(block, looped, seed)


def test_a_core_of_rank_one_loses_nothing_where_scores_are_positive():
    """What the core's loss works towards: the approximate search then finds what the exact one finds."""
    torch.manual_seed(0)
    options = {"n_keys": 9, "top_k": 3, "qk_norm": "rms", "d_query": 8}
    exact, approximate = UltraMem(D_MODEL, **options), UltraMem(D_MODEL, **options, n_candidates=3)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.abs_()
        exact.core.fill_(0.5)
    approximate.load_state_dict(exact.state_dict())
    chosen = [
        block.routing(torch.rand(2, 50, D_MODEL, generator=generator)).chosen.sort(-1).values
        for block in (exact, approximate)
        for generator in [torch.Generator().manual_seed(1)]
    ]
    assert torch.equal(*chosen)
    assert len(chosen[0].unique()) > 10
    assert approximate.routing(torch.rand(1, 1, D_MODEL)).scores.shape == (2, 81)


def test_which_of_two_equal_decompositions_is_found_does_not_matter(monkeypatch):
    """Singular vectors may be turned around in pairs; other machines do."""
    torch.manual_seed(0)
    block, x = UltraMem(D_MODEL, n_keys=8, n_candidates=3, top_k=4), torch.randn(2, 9, D_MODEL)
    with torch.no_grad():
        block.core.add_(torch.randn_like(block.core))
    expected, svd = block(x), torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda core: tuple(sign * each for sign, each in zip((-1, 1, -1), svd(core), strict=True))
    )
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("expansion", [1, 2])
def test_no_gathered_rows_are_held(expansion):
    def build():
        return UltraMem(64, n_keys=6, n_heads=4, top_k=8, value_expansion=expansion)

    assert_rows_are_never_held(build, n_picks=32)
