"""The product-key search finds exactly what scoring all n² pairs finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor

from doge_lab.ops.product_key_top_k import _staircase, product_key_top_k
from doge_lab.ops.top_k_indices import _MIN_SCORES, packed, top_k_indices


def every_sum(halves):
    """All n² sums [n², ...], `row * n + column`."""
    return (halves[0][:, None] + halves[1][None]).flatten(0, 1)


def assert_exact(halves, k):
    scores, indices = product_key_top_k(halves, k)
    sums = every_sum(halves)
    assert torch.equal(scores, sums.topk(k, dim=0).values)
    assert torch.equal(scores, sums.gather(0, indices))
    assert (indices.sort(dim=0).values.diff(dim=0) > 0).all(), "a pair is chosen twice"


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 3), (3, 8), (3, 9), (8, 2), (16, 4), (16, 16), (12, 50)])
@pytest.mark.parametrize("tokens", [1, 3000])
def test_it_is_exact(n, k, tokens):
    assert_exact(torch.randn(2, n, 2, tokens, generator=torch.Generator().manual_seed(0)), k)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_exact_with_ties(data):
    n = data.draw(st.integers(1, 7))
    k = data.draw(st.integers(1, n * n))
    numbers = st.lists(st.integers(-3, 3), min_size=2 * n, max_size=2 * n)
    assert_exact(torch.tensor(data.draw(numbers), dtype=torch.float32).view(2, n, 1), k)


def test_the_gradient_reaches_the_chosen_halves_only():
    halves = torch.tensor([[1.0, 5.0, 3.0], [2.0, 0.0, 9.0]])[..., None].requires_grad_()
    scores, indices = product_key_top_k(halves, 2)
    assert indices[:, 0].tolist() == [1 * 3 + 2, 2 * 3 + 2]
    scores.sum().backward()
    assert halves.grad[..., 0].tolist() == [[0, 1, 1], [0, 0, 2]]


@pytest.mark.parametrize(("k", "pairs"), [(1, 1), (2, 3), (4, 8), (16, 50), (32, 119)])
def test_the_staircase_is_as_small_as_it_can_be(k, pairs):
    assert _staircase(64, k, torch.device("cpu")).shape == (2, pairs)


def test_not_all_pairs_are_scored():
    n, tokens = 256, 10
    halves = torch.randn(2, n, tokens)
    with LargestTensor() as largest:
        product_key_top_k(halves, 4)
    assert largest.numel < n * n


def test_more_than_all_pairs_are_refused():
    with pytest.raises(ValueError, match="hold 4 pairs, fewer than k=5"):
        product_key_top_k(torch.randn(2, 2, 1), 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_maxima_find_what_topk_finds(dtype):
    scores = torch.randn(16, _MIN_SCORES // 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[:4, 0], scores[4:, 0] = 0.0, -0.0
    found = top_k_indices(scores, 4)
    assert torch.equal(found, packed(scores, 4)), "the quick form is not the one in use"
    assert torch.equal(scores.gather(0, found), scores.topk(4, dim=0).values)
    assert (found.sort(dim=0).values.diff(dim=0) > 0).all()


def test_packed_maxima_of_a_diverged_model_stay_inside():
    scores = torch.randn(5, 400)
    for column, value in enumerate((torch.nan, torch.inf, -torch.inf, -torch.nan)):
        scores[:, column::4] = value
        scores[column, 200:] = value
    found = packed(scores, 2)
    assert ((found >= 0) & (found < 5)).all()


def test_double_precision_is_not_rounded():
    scores = torch.ones(4, _MIN_SCORES, dtype=torch.float64)
    scores[2] += 1e-15
    assert (top_k_indices(scores, 1) == 2).all()
