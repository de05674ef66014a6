"""The assembled model: it decodes as it trains, and its parts keep what they were given."""

import pytest
import torch

from doge_lab.cost import cost_of, held_cache_bytes
from doge_lab.errors import UserError
from doge_lab.model import CausalLM, ModelConfig
from doge_lab.strict import validate

ATTENTION = {"type": "attention", "n_heads": 2}
WINDOWED = {"type": "attention", "n_heads": 2, "n_kv_heads": 1, "window": 4}


def config(**changes):
    layers = [
        {"sequence": "none", "state": "mlp"},
        {"repeat": 2, "sequence": ATTENTION, "state": "none"},
        {"sequence": WINDOWED, "state": {"type": "mlp", "d_hidden": 20}},
    ]
    return validate(ModelConfig, {"vocab_size": 11, "d_model": 16, "layers": layers, **changes})


VARIANTS = [{}, {"positions": "learned"}, {"residual": "scaled"}, {"tie_embeddings": False}]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("chunks", [[13], [1] * 13, [5, 1, 7], [6, 4, 3]])
def test_decoding_in_chunks_gives_the_logits_of_one_call(changes, chunks):
    model = CausalLM.build(config(**changes)).eval()
    tokens = torch.randint(11, (2, 13))
    cache = model.init_cache(batch=2, capacity=13, dtype=torch.float32)
    with torch.inference_mode():
        pieces = [model(chunk, cache=cache) for chunk in tokens.split(chunks, dim=1)]
        whole = model(tokens)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.position == 13


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_left_padding_changes_nothing_at_real_tokens(changes, kind):
    model = CausalLM.build(config(**changes)).eval()
    tokens = torch.randint(11, (2, 9))
    padded = torch.cat([torch.randint(11, (2, 4)), tokens], dim=1)
    mask = torch.ones(2, 13, dtype=kind)
    mask[:, :4] = 0
    cache = model.init_cache(batch=2, capacity=13, dtype=torch.float32)
    with torch.inference_mode():
        alone = model(tokens)
        torch.testing.assert_close(model(padded, mask)[:, 4:], alone, atol=1e-5, rtol=1e-5)
        first = model(padded[:, :7], mask[:, :7], cache)[:, 4:]
        rest = model(padded[:, 7:], mask, cache)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), alone, atol=1e-5, rtol=1e-5)


def test_a_mask_of_the_wrong_length_is_refused():
    model = CausalLM.build(config()).eval()
    with pytest.raises(ValueError, match="covers 5 tokens, but there are 0 seen and 3 new ones"):
        model(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 5))


def test_weights_depend_on_the_seed_alone():
    first, again, other = (CausalLM.build(config(), seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    CausalLM.build(config())
    assert torch.equal(torch.rand(1), expected)


def test_a_config_survives_its_dump():
    assert validate(ModelConfig, config().model_dump(mode="json")) == config()


def test_a_combination_that_cannot_be_built_names_its_place():
    bad = config(
        layers=[{"sequence": "none", "state": "mlp"}, {"sequence": {"type": "attention", "n_heads": 5}, "state": "mlp"}]
    )
    with pytest.raises(UserError, match=r"layers\.1\.sequence: d_model=16 must be divisible by n_heads=5"):
        cost_of(bad, 4)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_cost_is_counted_on_the_real_model(changes):
    model, cost = CausalLM.build(config(**changes)), cost_of(config(**changes), context=7)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())
    head = 11 * 16
    assert cost.active_params == cost.params - cost.embedding_params + (head if model.head is None else 0)
    in_blocks = sum(block.flops_per_token(7) for block in model.blocks())
    assert cost.flops_per_token == in_blocks + 2 * head


@pytest.mark.parametrize("context", [1, 3, 4, 5, 40])
def test_declared_cache_bytes_are_held_after_decoding(context):
    assert cost_of(config(), context).cache_bytes == held_cache_bytes(CausalLM.build(config()).eval(), context)


def test_cache_bytes_by_hand():
    # two layers of 2 heads x 8 for keys and values, one of 1 head x 8 over a window of 4, two bytes each
    assert cost_of(config(), 10).cache_bytes == 2 * (10 * 2 * 16 * 2) + 4 * 2 * 8 * 2
