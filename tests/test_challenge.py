"""A newcomer against the shelf: it is found, checked, set into the same frame, and no more is claimed than was seen."""

import json
from copy import deepcopy

import pytest

from doge_lab import registry
from doge_lab.challenge.frame import Frame, slim
from doge_lab.challenge.newcomer import load
from doge_lab.challenge.standing import nearest, standing
from doge_lab.cli import main
from doge_lab.errors import UserError
from doge_lab.experiment.config import arms_of
from doge_lab.report.challenge import page, summary

TINY_FRAME = {
    "base": {
        "model": {
            "d_model": 16,
            "layers": [
                {"sequence": "short_conv", "state": "none"},
                {"sequence": {"type": "attention", "n_heads": 2}, "state": {"type": "mlp", "d_hidden": 8}},
            ],
        },
        "tasks": [{"type": "capacity", "n_entities": 32, "n_values": 2, "n_tokens": 16}],
        "train": {"steps": 4, "batch_size": 16},
    },
    "protocol": {"lr": [0.01], "seeds": 2},
}
MINE = '''
"""A block of the user's own."""
import torch
from doge_lab.block import BlockConfig, StateBlock
from doge_lab.layers.init import init_linear


class Mine(StateBlock):
    """One square matrix and a power."""

    class Config(BlockConfig):
        power: int = 1
        """To which its input is raised."""

    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.linear = torch.nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        init_linear(self.linear)

    def flops_per_token(self, context):
        return 2 * self.d_model**2

    def forward(self, x):
        return self.linear(x**self.config.power) {LEAK}
'''


@pytest.fixture
def tiny_frame(monkeypatch):
    monkeypatch.setattr(Frame, "written", lambda self: deepcopy(TINY_FRAME))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A file with the user's block; `{LEAK}` is what is added to its output."""

    def write(name, leak=""):
        (tmp_path / f"{name}.py").write_text(MINE.replace("{LEAK}", leak))
        return str(tmp_path / f"{name}.py")

    monkeypatch.setattr(registry, "_allowed_packages", set())
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return write


def arm(name, cache, flops, seconds=1.0, **bits):
    """bits: task -> its bits by seed."""
    tasks = {}
    for label, values in bits.items():
        seeds = [
            {"seed": index, "metrics": {"bits": value, "max_bits": 100.0}, "cpu_seconds": seconds, "diverged": False}
            for index, value in enumerate(values)
        ]
        mean = sum(values) / len(values)
        tasks[label] = {
            "bits": {"mean": mean, "half": 1.0, "n": len(values)},
            "accuracy": None,
            "seconds": seconds,
            "cpu_seconds": seconds,
            "train": {"lr": 0.01, "at_edge": False},
            **{"diverged": 0, "failed": 0, "saturated": 0},
            "seeds": seeds,
        }
    names = ("cache_bytes", "flops_per_token", "params", "embedding_params", "active_params", "context")
    return {"name": name, "cost": dict(zip(names, (cache, flops, 100, 10, 90, 32), strict=True)), "tasks": tasks}


HERE = {
    "tasks": ["capacity", "recall"],
    "arms": [
        arm("mine", 100, 1000, capacity=[50, 51, 52], recall=[9, 9.1, 9.2]),
        arm("worse", 100, 1020, seconds=2.0, capacity=[40, 41, 42.5], recall=[5, 5.2, 5.1]),
        arm("better", 90, 990, capacity=[60, 61.5, 62], recall=[19, 19.2, 19.1]),
    ],
}
STORED = {
    "arms": [
        arm("worse", 100, 1020, capacity=[40.5, 41, 42], recall=[5, 5, 5.3]),
        arm("cheaper", 10, 1000, seconds=4.0, capacity=[40, 41.2, 42], recall=[5, 5.2, 5.1]),
        arm("equal", 100, 1000, capacity=[51, 50, 53], recall=[9.3, 9.0, 9.1]),
    ]
}


def test_what_is_replaced_costs_no_less_and_holds_less_on_every_task():
    found = standing(HERE, "mine", STORED)
    assert found["verdict"]["replaces"] == ["worse"]
    assert found["verdict"]["replaced_by"] == ["better"]
    assert found["verdict"]["may_replace"] == ["equal"]  # `cheaper` has less cache
    assert {row["name"]: row["trained"] for row in found["rows"]} == {
        **dict.fromkeys(("mine", "worse", "better"), "here"),
        **dict.fromkeys(("cheaper", "equal"), "stored"),
    }


def test_flops_a_step_of_matching_apart_are_the_same_and_more_are_not():
    here = {**HERE, "arms": [arm("mine", 100, 1050, capacity=[9, 9.2, 9.1], recall=[9, 9.2, 9.1])]}
    rivals = {flops: arm(str(flops), 100, flops, capacity=[1, 2, 1.5], recall=[1, 2, 1.5]) for flops in (1000, 900)}
    found = standing(here, "mine", {"arms": list(rivals.values())})
    assert found["verdict"]["replaces"] == ["1000"]


def test_blocks_that_came_out_the_same_replace_nothing():
    here = {"tasks": ["t"], "arms": [arm("mine", 1, 1, t=[5, 6, 7])]}
    found = standing(here, "mine", {"arms": [arm("twin", 1, 1, t=[5, 6, 7])]})
    assert found["verdict"] == {"replaces": [], "may_replace": ["twin"], "replaced_by": []}


def test_a_task_that_both_know_by_heart_does_not_decide():
    here = {"tasks": ["t", "u"], "arms": [arm("mine", 1, 1, t=[99.5, 99.6, 99.7], u=[9, 9.2, 9.1])]}
    full = {"arms": [arm("full", 1, 1, t=[99.8, 99.9, 99.7], u=[1, 1.2, 1.1])]}
    assert standing(here, "mine", full)["verdict"]["replaces"] == ["full"]
    less = {"arms": [arm("less", 1, 1, t=[99.8, 99.9, 98.7], u=[1, 1.2, 1.1])]}
    assert standing(here, "mine", less)["verdict"]["replaces"] == []


def test_one_seed_proves_nothing():
    here = {"tasks": ["t"], "arms": [arm("mine", 1, 1, t=[5]), arm("other", 1, 1, t=[4])]}
    found = standing(here, "mine", None)
    assert found["verdict"]["replaces"] == []
    assert found["rivals"][0]["replaces"] is None


def test_seconds_of_records_are_scaled_to_this_machine():
    found = standing(HERE, "mine", STORED)  # `worse` takes twice as long here as stored
    seconds = {row["name"]: row["tasks"]["recall"]["seconds"]["mean"] for row in found["rows"]}
    assert seconds["cheaper"] == 8.0
    assert seconds["worse"] == 2.0


def test_records_are_checked_by_what_is_trained_here():
    (capacity, recall) = standing(HERE, "mine", STORED)["agreement"]
    assert capacity["agrees"]
    assert recall["agrees"]
    off = deepcopy(STORED)
    off["arms"][0]["tasks"]["recall"]["bits"]["mean"] = 9.0
    assert [each["agrees"] for each in standing(HERE, "mine", off)["agreement"]] == [True, False]


def test_the_nearest_are_those_of_like_cache_then_of_like_flops():
    arms = [arm(f"{cache} {flops}", cache, flops) for cache, flops in ((100, 5), (90, 0), (100, 2), (120, 0))]
    assert nearest(arm("mine", 100, 1), arms, 3) == ["100 2", "100 5", "90 0"]


def test_the_page_says_what_may_not_be_concluded():
    facts = {
        "name": "<mine>",
        "kind": "sequence",
        "mode": "quick",
        "frame": TINY_FRAME,
        **standing(HERE, "mine", STORED),
    }
    for row in facts["rows"]:
        row["name"] = row["name"].replace("mine", "<mine>")
    said = " ".join(summary(facts))
    assert "<mine> replaces worse" in said
    assert "better would replace it" in said
    assert "more than 3 of 4 rivals" not in said
    assert "not corrected for their number" in said
    assert "came out within" in said
    written = page(facts)
    assert "<mine>" not in written
    assert "&lt;mine&gt; replaces worse" in written


@pytest.mark.parametrize("kind", registry.KINDS)
def test_the_records_cover_the_shelf_and_belong_to_the_frame(kind):
    frame = Frame(kind, "quick")
    stored = frame.stored()
    assert stored is not None, "the frame was changed: run `python benchmarks/shelf.py` again"
    assert sorted(arm["name"] for arm in stored["arms"]) == frame.shelf(), (
        "run `python benchmarks/shelf.py --only NAME`"
    )
    assert all(arm["tasks"][task]["bits"]["n"] >= 3 for arm in stored["arms"] for task in stored["tasks"])


@pytest.mark.parametrize("kind", registry.KINDS)
@pytest.mark.parametrize("mode", ["quick", "full"])
def test_every_block_fits_the_frame(kind, mode):
    frame = Frame(kind, mode)
    names = frame.shelf() if mode == "quick" else frame.shelf()[::5]
    params = frame.written()["base"]["match"]["params"]
    for arm_ in arms_of(frame.experiment(dict(zip(names, names, strict=True)))):
        assert arm_.run.cost().params == pytest.approx(params, rel=0.03), arm_.name


def test_a_block_is_found_in_a_file(mine):
    found = load(mine("my_block"), {"power": 2})
    assert (found.kind, found.name) == ("state", "Mine (power: 2)")
    assert found.written == {"type": "my_block:Mine", "power": 2}
    assert found.package == "my_block"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere.py", "no such file"),
        ("{folder}/json.py", "another module is called 'json'"),
        ("{folder}/my-block.py", "cannot be a module's name"),
        ("{folder}/empty_file.py", "defines no block"),
        ("{folder}/torn_file.py", "cannot be imported: SyntaxError"),
        ("atention", "did you mean 'attention'"),
        ("none", "a sequence block and a state block"),
    ],
)
def test_a_block_that_cannot_be_found_is_one_line(tmp_path, mine, word, message):
    for name in ("json", "my-block"):
        mine(name)
    (tmp_path / "empty_file.py").write_text("x = 1\n")
    (tmp_path / "torn_file.py").write_text("def\n")
    with pytest.raises(UserError, match=message) as error:
        load(word.format(folder=tmp_path), {})
    assert "\n" not in str(error.value)


def test_a_block_that_breaks_the_contract_is_not_compared(tiny_frame, mine, tmp_path, capsys):
    leak = "+ x.mean(dim=1, keepdim=True)"
    assert main(["challenge", mine("leaky_block", leak), "--out", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().out
    assert "tokens_independent" in said
    assert not (tmp_path / "o").exists()


def test_a_challenge_is_trained_and_written(tiny_frame, mine, tmp_path, capsys):
    out = tmp_path / "o"
    words = ["challenge", mine("fine_block"), "--rivals", "1", "--workers", "1", "--out", str(out), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["rows"]] == ["Mine", Frame("state", "quick").shelf()[0]]
    assert all(row["tasks"]["capacity"]["bits"]["n"] == 2 for row in facts["rows"])
    assert (out / "challenge.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((out / "challenge.json").read_text())["verdict"] == facts["verdict"]


def test_what_is_stored_is_what_is_compared():
    result = {"code": {}, "protocol": {}, "tasks": ["t"], "arms": [{**arm("a", 1, 1, t=[5, 6]), "model": {"big": 1}}]}
    kept = slim(result, Frame("state", "quick"))
    assert "model" not in kept["arms"][0]
    assert standing({**result, "arms": [arm("b", 1, 1, t=[1, 2])]}, "b", kept)["rivals"][0]["name"] == "a"
