"""`lightning_attention` against transformers' MiniMaxLightningAttention: forward, every gradient, decoding, padding."""

import pytest
import torch

from blocks.sequence.lightning_attention import LightningAttention
from doge_lab.errors import UserError
from parity.compare import assert_close

BLOCK = "sequence/lightning_attention"
ORACLE = "transformers' MiniMaxLightningAttention"
# rows, tokens, d_model, heads, head_dim, layer, layers, their block size
SHAPES = [
    (2, 1, 16, 4, 4, 0, 1, 8),
    (2, 23, 24, 2, 12, 0, 3, 8),
    (1, 70, 16, 4, 8, 1, 3, 16),
    (3, 131, 12, 3, 4, 2, 3, 256),
    (2, 40, 32, 1, 16, 5, 8, 7),
]


def pair(d_model, heads, head_dim, layer, layers, block_size=8, **options):
    """Our block and theirs with the same random weights."""
    from transformers.models.minimax import modeling_minimax as peer

    torch.manual_seed(0)
    config = peer.MiniMaxConfig(
        hidden_size=d_model,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=head_dim,
        num_hidden_layers=layers,
        layer_types=["linear_attention"] * layers,
        block_size=block_size,
    )
    theirs = peer.MiniMaxLightningAttention(config, layer)
    ours = LightningAttention(d_model, layer_idx=layer, n_layers=layers, n_heads=heads, head_dim=head_dim, **options)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
        load(theirs, {name: parameter.detach() for name, parameter in ours.named_parameters()}, heads)
    return ours, theirs, peer


def renamed(tensors, heads):
    """Our tensors under their names, with q, k and v of each head side by side as they have it."""
    qkv = tensors["qkv.weight"].unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    names = {"norm.weight": "norm.weight", "out.weight": "out_proj.weight", "gate.weight": "output_gate.weight"}
    return {"qkv_proj.weight": qkv, **{theirs: tensors[ours] for ours, theirs in names.items()}}


def load(theirs, tensors, heads):
    weights = renamed(tensors, heads)
    assert weights.keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict(weights, strict=False)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("rows", "tokens", "d_model", "heads", "head_dim", "layer", "layers", "block_size"), SHAPES)
def test_forward_and_every_gradient(rows, tokens, d_model, heads, head_dim, layer, layers, block_size):
    ours, theirs, _ = pair(d_model, heads, head_dim, layer, layers, block_size)
    x, direction = torch.randn(2, rows, tokens, d_model)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y, expected = ours(inputs[0])[0], theirs(inputs[1], None, None)[0]
    assert_close(y, expected, "the output")
    for output in (y, expected):
        (output * direction).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, "the gradient of x", tolerance=3e-5)
    gradients = renamed({name: parameter.grad for name, parameter in ours.named_parameters()}, heads)
    for name, parameter in theirs.named_parameters():
        assert_close(gradients[name], parameter.grad, f"the gradient of {name}", tolerance=3e-5)


@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (0, 2), (1, 2), (3, 5)])
def test_decoding_after_a_prompt_and_the_state(layer, layers):
    ours, theirs, peer = pair(16, 4, 6, layer, layers)
    x = torch.randn(2, 29, 16)
    cache, their_cache = ours.init_cache(batch=2, capacity=29), peer.MiniMaxCache()
    with torch.no_grad():
        for part in x.split([21, *[1] * 8], dim=1):
            y, _ = ours(part, None, cache)
            cache.advance(part.shape[1])
            assert_close(y, theirs(part, None, None, past_key_values=their_cache)[0], "a decoded token")
    assert_close(cache["state"], their_cache.get_linear_cache(layer), "the state")


def test_left_padding_is_theirs():
    ours, theirs, _ = pair(16, 4, 4, 1, 3)
    x, mask = torch.randn(2, 21, 16), torch.arange(21)[None] >= torch.tensor([[0], [9]])
    with torch.no_grad():
        assert_close(ours(x, mask)[0] * mask[..., None], theirs(x, None, mask)[0] * mask[..., None], "a padded row")


def test_the_cache_and_what_is_refused():
    block = LightningAttention(32, n_heads=2)
    assert block.init_cache(batch=3, capacity=100, dtype=torch.bfloat16).nbytes() == 3 * 2 * 16 * 16 * 4
    with pytest.raises(UserError, match="d_model=32 must be divisible by n_heads=3"):
        LightningAttention(32, n_heads=3)
