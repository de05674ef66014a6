"""Caches: what is declared is allocated, windowed, reordered and weighed."""

import pytest
import torch

from doge_lab.cache import Cache, Fixed, LayerCache, PerToken, nbytes

SPEC = {
    "k": PerToken((2, 3)),
    "recent": PerToken((5,), window=4),
    "index": PerToken((1,), dtype=torch.uint8),
    "state": Fixed((3, 3)),
}


def filled(spec, chunks, *, capacity=16):
    """A cache that saw `chunks`, and what was visible after each."""
    cache = LayerCache(spec, batch=2, capacity=capacity, dtype=torch.float32)
    seen, visible = 0, []
    for length in chunks:
        new = torch.arange(seen, seen + length, dtype=torch.float32)[None, :, None].expand(2, -1, 5)
        visible.append(cache.append("recent", new))
        cache.advance(length)
        seen += length
    return cache, visible


@pytest.mark.parametrize("length", [1, 3, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_bytes_are_the_declared_bytes(length, dtype):
    cache = LayerCache(SPEC, batch=3, capacity=length, dtype=dtype)
    by_hand = length * 6 * dtype.itemsize + min(length, 4) * 5 * dtype.itemsize + length + 9 * 4
    assert cache.nbytes() == 3 * nbytes(SPEC, length, dtype) == 3 * by_hand


@pytest.mark.parametrize("chunks", [[1] * 9, [9], [3, 3, 3], [2, 5, 1, 1], [4, 4, 1], [5, 4]])
def test_a_window_shows_each_query_what_it_may_see(chunks):
    _, visible = filled({"recent": PerToken((5,), window=4)}, chunks)
    end = 0
    for length, shown in zip(chunks, visible, strict=True):
        first_query, end = end, end + length
        needed = list(range(max(0, first_query - 3), end))
        assert shown[0, :, 0].tolist()[-len(needed) :] == needed


def test_a_window_keeps_its_size_for_ever():
    cache, _ = filled({"recent": PerToken((5,), window=4)}, [3] * 20, capacity=16)
    assert cache["recent"].shape == (2, 4, 5)
    assert cache["recent"][0, :, 0].tolist() == [56, 57, 58, 59]


def test_appending_past_the_capacity_is_refused():
    cache = LayerCache({"k": PerToken((1,))}, batch=1, capacity=2, dtype=torch.float32)
    with pytest.raises(ValueError, match="holds 2 tokens, but token 3"):
        cache.append("k", torch.zeros(1, 3, 1))


def test_an_assigned_view_is_copied_not_kept():
    cache = LayerCache({"state": Fixed((4,))}, batch=1, capacity=2, dtype=torch.float32)
    cache["state"] = torch.zeros(1, 10_000)[:, :4]
    assert cache.nbytes() == 16


def test_a_rebound_view_is_weighed_whole():
    cache = LayerCache({"state": Fixed((4,))}, batch=1, capacity=2, dtype=torch.float32)
    cache.tensors["state"] = torch.zeros(1, 10_000)[:, :4]
    assert cache.nbytes() == 40_000


def test_a_wrong_shape_is_named():
    cache = LayerCache({"state": Fixed((4,))}, batch=1, capacity=2, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"'state' is declared as \(1, 4\), given \(1, 5\)"):
        cache["state"] = torch.zeros(1, 5)


def test_rows_are_repeated_and_reordered_in_every_layer():
    layers = [LayerCache({"state": Fixed((1,))}, batch=2, capacity=1, dtype=torch.float32) for _ in range(2)]
    for layer in layers:
        layer["state"] = torch.tensor([[1.0], [2.0]])
    cache = Cache(layers)
    cache.select_rows(torch.tensor([1, 1, 0]))
    assert all(layer["state"].flatten().tolist() == [2, 2, 1] for layer in cache.layers)


def test_stored_tokens_are_cut_off_from_the_gradient():
    cache = LayerCache({"k": PerToken((1,))}, batch=1, capacity=4, dtype=torch.float32)
    cache.append("k", torch.ones(1, 2, 1, requires_grad=True))
    assert not cache["k"].requires_grad
