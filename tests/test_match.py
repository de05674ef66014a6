"""Fair sizes: one width meets a target, or the error says what can be reached."""

import pytest

from doge_lab.cost import cost_of
from doge_lab.errors import UserError
from doge_lab.match import MatchConfig, solve
from doge_lab.model import ModelConfig
from doge_lab.strict import validate


def model(state="mlp", sequence=None, d_model=32, **more):
    layer = {"repeat": 2, "sequence": sequence or {"type": "attention", "n_heads": 4}, "state": state}
    return validate(ModelConfig, {"vocab_size": 64, "d_model": d_model, "layers": [layer], **more})


@pytest.mark.parametrize("target", [12_000, 12_345, 20_000, 300_001, 5_000_000])
def test_parameters_meet_their_target(target):
    solved = solve(model(), MatchConfig(params=target), context=32)
    reached = cost_of(solved, 32).params
    step = 2 * 2 * 32
    assert abs(reached - target) <= max(0.01 * target, step / 2)


def test_the_nearest_width_is_taken():
    target = 20_001
    solved = solve(model(), MatchConfig(params=target, tolerance=1e-9), context=32)
    width = solved.layers[0].state.options.d_hidden
    gaps = {}
    for other in (width - 1, width, width + 1):
        gaps[other] = abs(cost_of(model({"type": "mlp", "d_hidden": other}), 32).params - target)
    assert min(gaps, key=gaps.get) == width


@pytest.mark.parametrize("state", ["mlp", "glu", "moe", "cdmoe"])
def test_every_state_block_takes_up_what_is_left(state):
    options = {"type": state, "n_experts": 4} if state in ("moe", "cdmoe") else state
    solved = solve(model(options), MatchConfig(params=20_000), context=32)
    assert cost_of(solved, 32).params == pytest.approx(20_000, rel=0.01)


def test_active_parameters_and_cache_bytes_are_targets_too():
    active = solve(model({"type": "cdmoe", "n_experts": 64}), MatchConfig(active_params=15_000), context=32)
    assert cost_of(active, 32).active_params == pytest.approx(15_000, rel=0.01)
    wide = solve(
        model(sequence={"type": "attention", "n_heads": 1}),
        MatchConfig(cache_bytes=100_000, context=100, width=("layers.0.sequence.head_dim",)),
        context=32,
    )
    step = 2 * 2 * 100 * 2 * 2  # an even head_dim, two layers, keys and values, two bytes, 100 tokens
    assert abs(cost_of(wide, 100).cache_bytes - 100_000) <= step / 2 + 1


def test_a_lattice_of_squares_is_respected():
    width = ("layers.0.state.n_experts",)
    cdmoe = {"type": "cdmoe", "n_experts": 4, "d_cross_domain": 16}
    solved = solve(model(cdmoe), MatchConfig(params=60_000, width=width), context=32)
    n_experts = solved.layers[0].state.options.n_experts
    assert round(n_experts**0.5) ** 2 == n_experts
    below, above = ((round(n_experts**0.5) + change) ** 2 for change in (-1, 1))
    costs = {e: cost_of(model({**cdmoe, "n_experts": e}), 32).params for e in (below, n_experts, above)}
    assert min(costs, key=lambda e: abs(costs[e] - 60_000)) == n_experts


def test_without_an_open_state_width_d_model_gives_way():
    solved = solve(model("none"), MatchConfig(params=30_000), context=32)
    assert solved.d_model % 8 == 0  # four heads of an even width
    assert solved.d_model != 32


def test_an_impossible_match_says_what_is_reachable():
    with pytest.raises(UserError, match=r"params=100: it reaches 10,\d\d\d to [\d,]+; change the target") as caught:
        solve(model(), MatchConfig(params=100), context=32)
    assert caught.value.path == "match"


def test_a_written_width_is_not_overruled():
    with pytest.raises(UserError, match=r"nothing is left free: layers\.0\.state\.d_hidden is written"):
        solve(model({"type": "mlp", "d_hidden": 7}), MatchConfig(params=20_000), context=32)


@pytest.mark.parametrize("written", [{}, {"params": 1, "cache_bytes": 2}])
def test_exactly_one_target(written):
    with pytest.raises(UserError, match="exactly one of params, active_params, cache_bytes"):
        validate(MatchConfig, written)


def test_a_width_that_is_no_place_is_named():
    with pytest.raises(UserError, match=r"'layers\.7\.state\.d_hidden' is not a place in the model"):
        solve(model(), MatchConfig(params=20_000, width=("layers.7.state.d_hidden",)), context=32)
