"""Holes are found, named, drawn and refused as the space file says."""

import optuna
import pytest
import yaml

from doge_lab.errors import UserError
from doge_lab.search.asking import _drawn_by
from doge_lab.search.space import alternatives, fill, holes

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
        ({"int": [1, 5], "step": True}, "`step` must be a positive whole number, and 1 with `log: true`; not True"),
        ({"int": [True, 5]}, r"`int` needs \[low, high\] with low <= high, whole numbers, not \[True, 5\]"),
        ({"float": [1, "two"]}, r"`float` needs \[low, high\] with low <= high, not \[1, 'two'\]"),
        ({"float": [0, "1e400"]}, r"`float` needs \[low, high\]"),
        ({"int": [0, 2**64]}, r"`int` needs \[low, high\]"),
        ({"float": [0.1, 1], "log": "false"}, "`log` is true or false, not 'false'"),
        ({"float": [0.1, 1], "per_layer": "no"}, "`per_layer` is true or false, not 'no'"),
    ],
)
def test_a_malformed_hole_is_named_with_its_place(hole, message):
    with pytest.raises(UserError, match=message) as caught:
        holes({"train": {"steps": hole}})
    assert caught.value.path == "train.steps"


def test_a_hole_is_a_choice_like_any_other():
    written = {"width": {"choice": [None, {"int": [2, 8]}, {"int": [2, 8], "step": 2}, {"choice": [16, 32]}]}}
    labels = (None, "int[2,8]", "int[2,8]-2", "choice[16,32]")
    assert holes(written)["width"].labels == labels
    assert {name for name in holes(written) if name != "width"} == {f"width.{label}" for label in labels[1:]}
    assert drawn(written)[0] == {"width": None}
    assert drawn(written, **{"width": "int[2,8]", "width.int[2,8]": 5})[0] == {"width": 5}
    assert drawn(written, **{"width": "choice[16,32]"})[0] == {"width": 16}


LISTS = {
    "choice": [
        [{"sequence": "none", "state": {"choice": ["mlp", "none"]}}],
        [{"sequence": "none", "state": {"choice": ["glu", "none"]}}, {"sequence": "none", "state": "mlp"}],
    ]
}


def test_in_a_choice_of_lists_one_name_has_one_distribution():
    met = holes({"layers": LISTS})
    assert {name: hole.labels for name, hole in met.items() if name != "layers"} == {
        "layers.[none/choice[mlp,none]].0.state.type": ("mlp", "none"),
        "layers.[none/choice[glu,none], none/mlp].0.state.type": ("glu", "none"),
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))  # raises where a name has two
    filled = [fill({"layers": LISTS}, _drawn_by(study.ask())) for _ in range(20)]
    assert {len(filling["layers"]) for filling in filled} == {1, 2}


def test_per_layer_holds_in_a_chosen_list_too():
    entry = {"repeat": 2, "sequence": "none", "state": {"choice": ["mlp", "none"], "per_layer": True}}
    filled, asked = drawn({"layers": {"choice": [[entry], [entry, entry]]}})
    assert len(filled["layers"]) == 2
    assert len(asked) == 3
    assert asked[1].endswith(".0[0].state.type")


def test_bounds_that_yaml_reads_as_text_are_numbers():
    bounds = yaml.safe_load("{float: [1e-4, 1e-2], log: true}")
    assert bounds["float"] == ["1e-4", "1e-2"], "YAML 1.1 reads text; if that ever changes, this test may go"
    hole = holes({"lr": bounds})["lr"]
    assert (hole.low, hole.high) == (1e-4, 1e-2)
    hole = holes({"steps": {"int": ["1e2", "1e3"]}})["steps"]
    assert (hole.low, hole.high, type(hole.high)) == (100, 1000, int)


@pytest.mark.parametrize("repeat", [True, "yes", 0, 1001, 1.5, None])
def test_repeats_to_draw_apart_are_counted_before_they_are_filled(repeat):
    entry = {"repeat": repeat, "sequence": "none", "state": {"choice": ["mlp"], "per_layer": True}}
    with pytest.raises(UserError, match="repeat must be a whole number from 1 to 1000, not"):
        drawn({"layers": [entry]})


@pytest.mark.parametrize(
    "hole",
    [
        {"choice": "x" * 5000},
        {"choice": [["x" * 5000], ["x" * 5000]]},
        {"choice": [{"n": "x" * 5000}]},
        {"int": ["x" * 5000, 2]},
        {"int": [1, 10**3000]},
        {"int": [1, 2], "x" * 5000: 1},
        {"int": [1, 2], "step": "x" * 5000},
        {"float": [1, 2], "log": "x" * 5000},
    ],
)
def test_no_message_repeats_a_long_value_whole(hole):
    with pytest.raises(UserError) as caught:
        holes({"n": hole})
    assert len(str(caught.value)) < 400
