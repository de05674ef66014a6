"""Padding anywhere in a row: what looks slots back finds real tokens, in one call and through a window of the cache."""

import torch

from doge_lab.cache import LayerCache, PerToken
from doge_lab.layers.masks import key_positions, visible_keys
from doge_lab.layers.packing import Packing
from doge_lab.layers.short_conv import CausalConv

MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]], dtype=torch.bool)
SLOTS = torch.arange(6).expand(3, 6)


def test_padding_moves_to_the_front_and_real_tokens_keep_their_order():
    packed = Packing(MASK).pack(SLOTS)
    assert packed.tolist() == [[0, 3, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 3]]


def test_unpacking_gives_each_real_token_what_stood_at_its_packed_slot():
    packing = Packing(MASK)
    packed = packing.pack(SLOTS)
    for last in (6, 3, 1):
        back = packing.unpack(packed[:, 6 - last :])
        assert torch.equal(back[MASK[:, -last:]], SLOTS[:, -last:][MASK[:, -last:]])


def test_without_padding_nothing_moves():
    packing = Packing.behind_tail(2, None)
    assert packing.pack(SLOTS) is SLOTS
    assert packing.unpack(SLOTS) is SLOTS


def test_the_taps_of_a_convolution_skip_padding_and_so_does_its_tail():
    torch.manual_seed(0)
    conv, x = CausalConv(4, 3), torch.randn(3, 6, 4)
    parts, tail = [], torch.zeros(3, 2, 4)
    for start, end in ((0, 4), (4, 5), (5, 6)):
        y, tail = conv(x[:, start:end], tail, MASK[:, start:end, None])
        parts.append(y)
    whole, whole_tail = conv(x, real=MASK[..., None])
    for row, real in enumerate(MASK):
        expected, left = conv(x[row : row + 1, real])
        torch.testing.assert_close(whole[row : row + 1, real], expected)
        torch.testing.assert_close(torch.cat(parts, dim=1)[row : row + 1, real], expected)
        torch.testing.assert_close(tail[row], left[0])
        torch.testing.assert_close(whole_tail[row], left[0])


def test_a_window_of_the_cache_keeps_the_last_real_tokens():
    cache = LayerCache({"k": PerToken((), window=3)}, batch=3, capacity=6, dtype=torch.float32)
    for start, end in ((0, 2), (2, 3), (3, 6)):
        cache.append("k", 1.0 + SLOTS[:, start:end], MASK[:, :end])
        cache.advance(end - start)
    # the third row has one real token, at the window's end behind whatever padding held
    assert cache["k"][:2].tolist() == [[3, 5, 6], [4, 5, 6]]
    assert cache["k"][2, -1] == 4


def test_a_window_counts_real_tokens_in_one_call_and_through_the_cache():
    # row 0: tokens at slots 1, 2, 4 and 5; a window of 3 shows the last one the slots 2, 4 and 5
    whole = visible_keys(new=6, keys=6, window=3, attention_mask=MASK)
    assert whole[0, 0, 5].tolist() == [False, False, True, False, True, True]
    # after 5 tokens the cache holds slots 1, 2 and 4; the new query is shown the last two of them and itself
    cached = visible_keys(new=1, keys=3, window=3, attention_mask=MASK, seen=5)
    assert cached[0, 0, 0].tolist() == [True, True, True]
    # row 2 has had one token only, and is padding itself
    assert cached[2, 0, 0].tolist() == [False, True, True]


def test_positions_of_keys_are_counted_in_real_tokens():
    assert key_positions(MASK, new=6, keys=6).tolist()[0] == [-1, 0, 1, -1, 2, 3]
    assert key_positions(MASK, new=1, keys=3, seen=5, windowed=True).tolist() == [[1, 2, 3], [3, 4, 5], [-1, 0, -1]]
    assert key_positions(None, new=1, keys=3, seen=5).tolist() == [[3, 4, 5]]
