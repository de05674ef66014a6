"""Blocks bring search spaces of their own, and every value in them works."""

import pytest
from tiny_search import tiny

from doge_lab import registry
from doge_lab.search.config import parse_space
from doge_lab.search.defaults import with_block_spaces
from doge_lab.search.space import alternatives, holes

BLOCKS = [(kind, name) for kind in registry.KINDS for name in registry.names(kind) if name != "none"]


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
@pytest.mark.parametrize("d_model", [32, 64])
def test_every_block_says_what_is_worth_searching_and_it_builds(kind, name, d_model):
    block = registry.get(kind, name)
    assert block.search_space, f"{name} names no option worth searching"
    assert block.width_option not in block.search_space, "the width is what a match solves for"
    for options in alternatives(dict(block.search_space)):
        block(d_model, **options)


def test_a_bare_name_in_a_choice_brings_its_own_space_and_a_mapping_does_not(monkeypatch):
    moe = registry.get("state", "moe")
    monkeypatch.setattr(moe, "search_space", {"top_k": {"choice": [2, 3]}})
    choices = ["moe", {"type": "moe", "top_k": 1, "normalisation": "sigmoid"}, "none"]
    written = tiny()
    written["model"]["layers"] = [{"sequence": "none", "state": {"choice": choices}}]
    space = parse_space(written, "test")
    assert holes(space.run)["model.layers.0.state.moe.top_k"].choices == (2, 3)
    found = space.run["model"]["layers"][0]["state"]["choice"]
    assert found == [{"type": "moe", "top_k": {"choice": [2, 3]}}, *choices[1:]]


def test_a_name_outside_a_choice_and_an_unknown_one_stay_as_they_are():
    space = {"model": {"layers": [{"sequence": "attention", "state": {"choice": ["nothing", 3]}}]}}
    assert with_block_spaces(space) == space
