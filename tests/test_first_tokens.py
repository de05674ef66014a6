"""`first_tokens`: which tokens are kept, by position, and what of them a query sees."""

import torch

from doge_lab.layers.first_tokens import store_first, visible_with_first


def test_slots_hold_real_tokens_by_position_whatever_is_padded():
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1]])
    tokens = torch.tensor([[1.0, 2.0, 9.0, 3.0], [9.0, 9.0, 4.0, 5.0]])
    kept = torch.zeros(2, 3)
    for t in range(4):
        kept = store_first(kept, tokens[:, t : t + 1], mask[:, : t + 1], seen=t)
    assert kept.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]
    assert store_first(torch.zeros(2, 3), tokens, mask, seen=0).tolist() == kept.tolist()


def test_a_slot_is_seen_once_its_token_has_left_the_window():
    # six tokens seen, a window of 3: the last query sees tokens 4, 5, 6 and the two first ones
    given = {"new": 1, "keys": 3, "window": 3, "first": 2, "seen": 6, "device": torch.device("cpu")}
    visible = visible_with_first(**given, attention_mask=None)
    assert visible[0, 0].tolist() == [[True, True, True, True, True]]
    # with five tokens of padding in front, both real tokens are in the window
    visible = visible_with_first(**given, attention_mask=torch.tensor([[0, 0, 0, 0, 0, 1, 1]]))
    assert visible[0, 0].tolist() == [[False, False, False, True, True]]
