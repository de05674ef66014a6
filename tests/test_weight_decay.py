"""What weight decay acts on: the weights of every block of the shelf, and nothing that only looks like a matrix."""

import pytest
import torch
from test_contract import BLOCKS, CASES
from torch import nn

from doge_lab import registry
from doge_lab.model import CausalLM, ModelConfig
from doge_lab.optim import TrainConfig, build_optimizer, weight_matrices

# of two dimensions or more, and no weights: what each is instead
EXEMPT = {
    "block_sparse_attention": {"key_weights", "value_weights"},  # logits of a mean over places in a block
    "differential_attention": {"lambda_q", "lambda_k"},  # how much of the second softmax is subtracted
    "gated_delta_net": {"decay.log_rate", "decay.bias"},  # decay rates, and the bias of their steps
    "inner_func_attn": {"mask"},  # a number per position
    "kimi_delta_attention": {"decay.log_rate", "decay.bias"},
    "mamba": {"a_log"},  # decay rates
    "memory_plus": {"router.key_gain"},  # the scale of a norm
    "rg_lru": {"gate_bias"},
    "rwkv7": {"shift", "bonus"},  # shares of the token before, gains
    "ttt_linear": {"initial", "token_scale", "inner_scale", "inner_shift"},  # the first state, with its bias; a norm
}


@pytest.mark.parametrize(("kind", "name"), BLOCKS)
def test_weights_decay_and_nothing_else(kind, name):
    exempt, matrices = set(), set()
    for _, _, options in (case for case in CASES if case[:2] == (kind, name)):
        given = dict(options)
        block = registry.get(kind, name)(given.pop("d_model", 32), **given)
        decayed = weight_matrices(block)
        for path, parameter in block.named_parameters():
            if parameter.ndim < 2:
                assert path not in decayed
            else:
                (matrices if path in decayed else exempt).add(path)
    assert exempt == EXEMPT.get(name, set())
    assert matrices or name == "none"


def test_of_the_model_around_the_blocks_the_embedding_and_the_head_decay():
    sequence = {"type": "attention", "qk_norm": True}
    config = ModelConfig(
        vocab_size=11,
        d_model=16,
        tie_embeddings=False,
        positions="learned",
        residual="scaled",
        layers=[{"sequence": sequence, "state": "mlp"}],
    )
    blocks = {f"layers.0.sequence.{name}.weight" for name in ["q", "k", "v", "out"]}
    blocks |= {f"layers.0.state.{name}.weight" for name in ("up", "down")}
    assert weight_matrices(CausalLM.build(config)) == blocks | {"embed.weight", "head.weight"}


def test_decay_rates_stay_where_they_are_under_the_strongest_decay():
    torch.manual_seed(0)
    block = registry.get("sequence", "mamba")(16)
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    optimizer = build_optimizer(block, TrainConfig(lr=0.1, weight_decay=1.0))
    for parameter in block.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shrunk = {name for name, parameter in block.named_parameters() if not torch.equal(parameter, before[name])}
    assert shrunk == weight_matrices(block)
    assert "a_log" not in shrunk


def test_a_foreign_block_s_own_table_decays_once_it_is_named():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.rates = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))

    assert weight_matrices(Table()) == set()
    Table.weight_matrices = ("table", "left_out_by_an_option")
    assert weight_matrices(nn.Sequential(Table())) == {"0.table"}
