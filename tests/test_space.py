"""Holes are found, named, drawn and refused as the space file says."""

from pathlib import Path

import pytest

from doge_lab import config, registry
from doge_lab.errors import UserError
from doge_lab.search.config import load_space, parse_space
from doge_lab.search.space import alternatives, fill, holes

SPACES = Path(__file__).parent.parent / "search_spaces"
LAYERS = [
    {"sequence": "none", "state": "mlp"},
    {
        "repeat": 2,
        "sequence": {
            "choice": [
                "none",
                {"type": "attention", "n_kv_heads": {"choice": [1, 2]}, "window": {"choice": [None, 8]}},
            ],
            "per_layer": True,
        },
        "state": {"choice": ["mlp", "none"]},
    },
]
SPACE = {"model": {"d_model": 32, "layers": LAYERS}, "train": {"lr": {"float": [0.001, 0.1], "log": True}}}


def drawn(space, **values):
    """Fill by name, the first choice otherwise; returns the filling and the names that were asked for."""
    asked = []

    def draw(name, hole):
        asked.append(name)
        default = hole.labels[0] if hole.kind == "choice" else hole.low
        return values.get(name, default)

    return fill(space, draw), asked


def test_a_space_without_holes_is_itself():
    plain = {"model": {"layers": [{"repeat": 2, "sequence": "none", "state": "mlp"}]}}
    assert drawn(plain) == (plain, [])


def test_names_are_flat_paths_and_options_come_below_their_block():
    assert list(holes(SPACE)) == [
        "model.layers.1[0].sequence.type",
        "model.layers.1.state.type",
        "model.layers.1[1].sequence.type",
        "train.lr",
        "model.layers.1[1].sequence.attention.n_kv_heads",
        "model.layers.1[1].sequence.attention.window",
        "model.layers.1[0].sequence.attention.n_kv_heads",
        "model.layers.1[0].sequence.attention.window",
    ]


def test_per_layer_differs_and_the_rest_is_shared():
    filled, asked = drawn(
        SPACE, **{"model.layers.1[1].sequence.type": "attention", "model.layers.1.state.type": "none", "train.lr": 0.01}
    )
    first, second = filled["model"]["layers"][1:]
    assert first == {"sequence": "none", "state": "none"}
    assert second == {"sequence": {"type": "attention", "n_kv_heads": 1, "window": None}, "state": "none"}
    assert asked.count("model.layers.1.state.type") == 1
    assert filled["train"] == {"lr": 0.01}


def test_a_drawn_number_of_layers():
    space = {
        "layers": [{"repeat": {"int": [1, 3]}, "sequence": {"choice": ["none"], "per_layer": True}, "state": "mlp"}]
    }
    filled, asked = drawn(space, **{"layers.0.repeat": 3})
    assert len(filled["layers"]) == 3
    assert asked == ["layers.0.repeat", *(f"layers.0[{index}].sequence.type" for index in range(3))]


def test_the_same_block_twice_gets_two_labels():
    space = {"state": {"choice": [{"type": "mlp", "d_hidden": 4}, {"type": "mlp", "d_hidden": 8}]}}
    assert holes(space)["state.type"].labels == ("mlp", "mlp-2")
    assert drawn(space, **{"state.type": "mlp-2"})[0] == {"state": {"type": "mlp", "d_hidden": 8}}


def test_alternatives_take_every_branch():
    found = list(alternatives(SPACE))
    windows = {
        layer["sequence"].get("window", "-")
        for filling in found
        for layer in filling["model"]["layers"]
        if isinstance(layer["sequence"], dict)
    }
    assert windows == {None, 8}
    assert {filling["train"]["lr"] for filling in found} == {0.001, 0.1}
    assert {filling["model"]["layers"][1]["state"] for filling in found} == {"mlp", "none"}


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        ({"choice": []}, "`choice` needs a list of at least one value"),
        ({"choice": "mlp"}, "`choice` needs a list of at least one value, not 'mlp'"),
        ({"choice": [1, 1]}, "1 is listed twice"),
        ({"choice": [{"n": 1}]}, "a mapping to choose needs a `type`"),
        ({"choice": [1], "int": [1, 2]}, "a hole is one of choice, int, float"),
        ({"int": [3, 1]}, r"`int` needs \[low, high\] with low <= high"),
        ({"int": [1, 2.5]}, r"`int` needs \[low, high\]"),
        ({"int": [0, 5], "log": True}, "needs a low end above 0"),
        ({"int": [1, 5], "step": 0}, "`step` must be a positive whole number"),
        ({"float": [0, 1], "step": 2}, "a hole of kind `float` has no 'step'"),
        ({"int": [1, 5], "lgo": True}, "has no 'lgo'"),
    ],
)
def test_a_malformed_hole_is_named_with_its_place(hole, message):
    with pytest.raises(UserError, match=message) as caught:
        holes({"train": {"steps": hole}})
    assert caught.value.path == "train.steps"


def space(**changes):
    written = {
        "model": {"d_model": 16, "layers": [{"sequence": "none", "state": {"choice": ["mlp", "none"]}}]},
        "tasks": [{"type": "capacity", "n_entities": 32, "n_tokens": 16}],
        "search": {"objectives": {"cache_bytes": "minimize", "capacity.bits": "maximize"}},
    }
    return {**written, **changes}


def layers(state):
    return {"d_model": 16, "layers": [{"sequence": "none", "state": state}]}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (space(model=layers({"choice": ["mlp", "mpl"]})), "model.layers.0.state.type: no state block is named 'mpl'"),
        (
            space(model=layers({"choice": ["none", {"type": "mlp", "d_hidde": 3}]})),
            "model.layers.0.state: unknown option",
        ),
        (
            space(model=layers({"choice": ["none", {"type": "mlp", "d_hidden": {"int": [0, 3]}}]})),
            "d_hidden: input should",
        ),
        (
            space(search={"objectives": {"recall.bits": "maximize"}}),
            "search.objectives: nothing measures 'recall.bits'; known",
        ),
        (space(search={"objectives": {}}), "search.objectives: "),
        (space(search={"objectives": {"cache_bytes": "minimise"}}), "search.objectives.cache_bytes: input should be"),
        (space(search={"objectives": {"cache_bytes": "minimize"}, "sampler": "tpee"}), "search.sampler: "),
        (
            space(search={"objectives": {"cache_bytes": "minimize"}, "constraints": {"params": {}}}),
            "search.constraints.params: give `min`, `max` or both",
        ),
    ],
)
def test_a_mistake_in_any_branch_is_found_before_the_search(written, message):
    with pytest.raises(UserError) as caught:
        parse_space(written, "space")
    assert message in str(caught.value)


def test_every_shipped_space_is_readable(request):
    files = sorted((request.config.rootpath / "search_spaces").glob("*.yaml"))
    assert {"cache_vs_knowledge", "cache_vs_knowledge_active", "tiny", "doge", "gpu"} <= {file.stem for file in files}
    for file in files:
        assert load_space(file).name == file.stem


@pytest.mark.parametrize("name", ["cache_vs_knowledge", "cache_vs_knowledge_active", "doge"])
def test_the_match_of_a_shipped_space_starves_no_block(name):
    for filled in alternatives(load_space(SPACES / f"{name}.yaml").run):
        written, resolved = config.parse(filled), config.parse(filled).resolved()
        for before, after in zip(written.model.layers, resolved.model.layers, strict=True):
            option = registry.get("state", after.state.type).width_option
            if option is not None and getattr(before.state.options, option) is None:
                width = getattr(after.state.options, option)
                assert width >= 8, f"the match leaves {after.state.type} {option}={width}"
