"""Inputs at the edge of what a block may be given: nothing at all, padding anywhere, more tokens than positions."""

import pytest
import torch
from test_contract import CASES

from doge_lab import registry
from doge_lab.errors import UserError
from doge_lab.model import CausalLM, ModelConfig

SEQUENCE_CASES = [case for case in CASES if case[0] == "sequence"]
EMPTY = [(2, 0), (0, 3), (0, 0)]


def build(kind, name, options):
    given = dict(options)
    torch.manual_seed(0)
    return registry.get(kind, name)(given.pop("d_model", 32), **given).eval()


@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_nothing_comes_of_nothing(kind, name, options):
    block = build(kind, name, options)
    for rows, tokens in EMPTY:
        x = torch.ones(rows, tokens, block.d_model)
        y = block(x) if kind == "state" else block(x)[0]
        assert y.shape == x.shape
        assert y is not x
    assert block.router_stats is None


@pytest.mark.parametrize(("kind", "name", "options"), SEQUENCE_CASES)
def test_no_tokens_leave_no_trace_in_a_cache(kind, name, options):
    block = build(kind, name, options)
    x = torch.randn(2, 7, block.d_model)
    with torch.no_grad():
        outputs = []
        for chunks in ((4, 3), (0, 4, 0, 3)):
            cache, mask = block.init_cache(batch=2, capacity=7), torch.ones(2, 7)
            for part in x.split(chunks, dim=1):
                y, returned = block(part, mask[:, : cache.position + part.shape[1]], cache)
                assert returned is cache
                cache.advance(part.shape[1])
            outputs.append(y)
        assert torch.equal(*outputs)
        empty = block.init_cache(batch=0, capacity=7)
        assert block(x[:0], mask[:0], empty)[0].shape == (0, 7, block.d_model)


@pytest.mark.parametrize(("kind", "name", "options"), SEQUENCE_CASES)
def test_padding_may_stand_anywhere(kind, name, options):
    block = build(kind, name, options)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 30, block.d_model, generator=generator)
    mask = torch.rand(2, 30, generator=generator) < 0.6
    with torch.no_grad():
        cache, parts = block.init_cache(batch=2, capacity=30), []
        for part in x.split((11, 1, 2, 16), dim=1):
            parts.append(block(part, mask[:, : cache.position + part.shape[1]], cache)[0])
            cache.advance(part.shape[1])
        for row, real in enumerate(mask):
            expected = block(x[row : row + 1, real])[0]
            for y in (block(x, mask)[0], torch.cat(parts, dim=1)):
                torch.testing.assert_close(y[row : row + 1, real], expected, rtol=1e-4, atol=1e-4)


def small_model(**changes):
    layers = [{"sequence": "attention", "state": "moe"}]
    return CausalLM.build(ModelConfig(vocab_size=11, d_model=16, layers=layers, **changes)).eval()


@pytest.mark.parametrize(("rows", "tokens"), EMPTY)
def test_a_model_answers_nothing_with_nothing(rows, tokens):
    model = small_model(positions="learned")
    cache = model.init_cache(batch=rows, capacity=5)
    given = torch.zeros(rows, tokens, dtype=torch.long)
    assert model(given, torch.ones(rows, tokens), cache).shape == (rows, tokens, 11)
    assert cache.position == tokens
    assert model.collect_router_stats() == []


def test_learned_positions_end_in_one_line():
    model = small_model(positions="learned", max_positions=4)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    cache = model.init_cache(batch=1, capacity=8)
    model(tokens, None, cache)
    for call in (lambda: model(tokens[:, :1], None, cache), lambda: model(torch.zeros(1, 5, dtype=torch.long))):
        with pytest.raises(UserError, match="max_positions: 4 learned positions are too few for 5 tokens") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("n_tokens", [4, 16, 64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dynamic_mask_attention", {"keep_window_size": 8}),
        ("dynamic_mask_attention", {"keep_window_size": 8, "n_heads": 2, "n_kv_heads": 1}),
        ("block_sparse_attention", {"block_size": 2, "n_selected": 2, "window": 2, "positions": "none"}),
    ],
)
def test_what_repeated_tokens_tie_is_chosen_alike_in_any_split(name, options, n_tokens):
    for seed in range(8):
        block = build("sequence", name, options)
        torch.manual_seed(seed)
        if name == "dynamic_mask_attention":
            torch.nn.init.normal_(block.a)
        x = torch.randn(n_tokens, 32)[torch.randint(n_tokens, (2, 48))]
        with torch.no_grad():
            whole = block(x)[0]
            for chunks in ([1] * 48, [7, 1, 12, 28]):
                cache, parts = block.init_cache(batch=2, capacity=48), []
                for part in x.split(chunks, dim=1):
                    parts.append(block(part, None, cache)[0])
                    cache.advance(part.shape[1])
                assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-4 * whole.abs().max()
