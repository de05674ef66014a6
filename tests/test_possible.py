"""A space loads where a draw is possible; what no other draw repairs is a mistake of the file, told at once."""

import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from doge_lab import config, registry
from doge_lab.errors import UserError
from doge_lab.search.asking import _drawn_by
from doge_lab.search.config import load_space, parse_space
from doge_lab.search.possible import readable
from doge_lab.search.screening import Rejected, read
from doge_lab.search.space import alternatives, fill, holes
from doge_lab.search.vetting import cases_in

SPACES = Path(__file__).parent.parent / "search_spaces"


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


def moe(**options):
    return space(model=layers({"type": "moe", "normalisation": "softmax_all", **options}))


NEVER = {"type": "sigmoid_moe", "n_experts": {"choice": [2, 3]}, "top_k": 8}
POSSIBLE = {
    "the first values conflict": moe(n_experts={"choice": [2, 8]}, top_k={"choice": [4, 1]}),
    "later ones conflict": moe(n_experts={"choice": [8, 2]}, top_k={"choice": [1, 4]}),
    "a value that is never possible": moe(n_experts={"choice": [2, 8]}, top_k={"choice": [1, 16]}),
    "a value that conflicts with a written option": moe(n_experts=4, top_k={"choice": [2, 8]}),
    "a rule with an option left out": {
        **moe(n_experts=4),
        "model": layers({"type": "moe", "top_k": {"choice": [1, 2]}}),
    },
    "ranges that only partly fit": moe(n_experts={"int": [2, 6]}, top_k={"int": [1, 8]}),
    "few possible draws": moe(n_experts={"choice": [*range(1, 9)]}, top_k={"choice": [*range(16, 7, -1)]}),
    "in a branch": space(
        model=layers(
            {"choice": ["mlp", {"type": "sigmoid_moe", "n_experts": {"int": [1, 4]}, "top_k": {"int": [2, 8]}}]}
        )
    ),
    "a block that is never possible": space(model=layers({"choice": [NEVER, "mlp"]})),
    "a layer that is never possible": space(
        model={
            "d_model": 16,
            "layers": {"choice": [[{"sequence": "none", "state": NEVER}], [{"sequence": "none", "state": "mlp"}]]},
        }
    ),
    "a hole as a choice": space(model=layers({"type": "mlp", "d_hidden": {"choice": [None, {"int": [2, 8]}]}})),
    "a choice of lists with holes": space(
        model={
            "d_model": 16,
            "layers": {
                "choice": [
                    [{"sequence": "none", "state": {"choice": ["mlp", {"type": "mlp", "d_hidden": {"int": [2, 8]}}]}}],
                    [{"sequence": "none", "state": {"choice": ["mlp", "glu"]}}],
                ]
            },
        }
    ),
    "model and tasks": space(
        model={**layers("mlp"), "vocab_size": {"choice": [32, 64]}},
        tasks=[{"type": "capacity", "n_entities": 32, "n_tokens": {"choice": [60, 16]}}],
    ),
}


@pytest.mark.parametrize("written", POSSIBLE.values(), ids=POSSIBLE)
def test_a_space_loads_where_a_draw_is_possible_in_any_order_of_its_choices(written):
    for order in (written, backwards(written)):
        assert parse_space(order, "space").name == "space"


def backwards(node):
    """The same space, its choices listed the other way round."""
    if isinstance(node, dict):
        return {key: value[::-1] if key == "choice" else backwards(value) for key, value in node.items()}
    return [backwards(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            moe(n_experts={"choice": [2, 4]}, top_k={"choice": [8, 16]}),
            "model.layers.0.state.top_k: no draw is possible; the first one: top_k=8 must be at most n_experts=2",
        ),
        (moe(n_experts={"choice": [2, 8]}, top_k={"choice": [4, 0]}), "top_k: input should be greater than 0, not 0"),
        (moe(n_experts={"choice": [2, 8]}, top_k={"choice": [4, "four"]}), "top_k: input should be a valid integer"),
        (moe(n_experts={"choice": [2, 8]}, topk={"choice": [4, 1]}), "model.layers.0.state: unknown option 'topk'"),
        (
            space(model={**layers("mlp"), "d_model": {"choice": [16, 0]}}),
            "model.d_model: input should be greater than or equal to 1, not 0",
        ),
        (space(train={"lr": {"float": [-1, 1]}}), "train.lr: input should be greater than 0, not -1"),
    ],
)
def test_what_no_other_draw_repairs_is_refused_with_its_place(written, message):
    for same in (written, backwards(written)):
        with pytest.raises(UserError) as caught:
            parse_space(same, "space")
        assert message.partition("; the first one")[0] in str(caught.value)


def first(written, **values):
    """The filling by name, of first values otherwise."""
    return fill(written, lambda name, hole: values.get(name, hole.values[0]))


def test_an_impossible_draw_of_it_is_rejected():
    found = parse_space(POSSIBLE["the first values conflict"], "space")
    vetting = SimpleNamespace(left_out={})
    with pytest.raises(Rejected, match="top_k=4 must be at most n_experts=2"):
        read(found, first(found.run), vetting)
    run = read(found, first(found.run, **{"model.layers.0.state.n_experts": 8}), vetting)
    assert run.model.layers[0].state.options.top_k == 4


def test_a_thousand_repeats_are_read_as_quickly_as_one():
    apart = {"choice": [{"type": "moe", "top_k": {"int": [2, 4]}}, "mlp", "none"], "per_layer": True}
    for repeat in (1000, {"int": [1, 1000]}):
        entry = {"repeat": repeat, "sequence": {"choice": ["attention", "none"], "per_layer": True}, "state": apart}
        written = space(model={"d_model": 16, "layers": [entry]})
        parse_space(written, "space")  # imports the blocks
        before = time.process_time()
        cases_in(parse_space(written, "space"))
        assert time.process_time() - before < 0.5


@pytest.mark.parametrize(
    ("hole", "examined"),
    [
        ({"int": [1, 6], "step": 2}, [1, 5]),
        ({"int": [1, 2], "step": 5}, [1]),
        ({"int": [1, 6], "log": True}, [1, 6]),
        ({"float": [1, 6], "log": True}, [1, 6]),
    ],
)
def test_what_is_examined_of_a_range_can_be_drawn(hole, examined):
    assert readable({"n": hole}, lambda filled: filled["n"]) == examined
    study = optuna.create_study()
    for value in examined:
        study.enqueue_trial({"n": value})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert _drawn_by(study.ask())("n", holes({"n": hole})["n"]) == value


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            {"state": {"choice": ["mlp", "none"], "per_layer": "no"}},
            "layers.0.state: `per_layer` is true or false, not 'no'",
        ),
        ({"repeat": True, "state": {"choice": ["mlp"], "per_layer": True}}, "layers.0.repeat: input should be a valid"),
        (
            {"repeat": {"int": [0, 4]}, "state": "mlp"},
            "layers.0.repeat: input should be greater than or equal to 1, not 0",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(layer, message):
    with pytest.raises(UserError) as caught:
        parse_space(space(model={"d_model": 16, "layers": [{"sequence": "none", **layer}]}), "space")
    assert str(caught.value).startswith(f"model.{message}")


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min": 10, "max": 5}, "search.constraints.params: no value is at least min=10 and at most max=5"),
        ({}, "search.constraints.params: give `min`, `max` or both"),
    ],
)
def test_a_constraint_that_nothing_meets_is_refused_at_once(bounds, message):
    with pytest.raises(UserError) as caught:
        parse_space(space(search={"objectives": {"params": "minimize"}, "constraints": {"params": bounds}}), "space")
    assert str(caught.value).startswith(message)


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
