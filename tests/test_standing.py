"""Where a challenger stands: no more is claimed than the seeds show: in the verdict, on the page, in the terminal."""

from copy import deepcopy
from io import StringIO

import numpy as np
from rich.console import Console

from doge_lab.challenge.frame import Frame, slim
from doge_lab.challenge.standing import nearest, standing
from doge_lab.report.axes import axis
from doge_lab.report.challenge import page, summary, table
from doge_lab.report.places import _labels

FRAME = {"protocol": {"seeds": 3, "lr": [0.01]}}


def arm(name, cache, flops, seconds=1.0, guess=None, **bits):
    """bits: task -> its bits by seed. guess: what a guesser earns."""
    tasks = {}
    for label, values in bits.items():
        seeds = [
            {"seed": index, "metrics": {"bits": value, "max_bits": 100.0}, "cpu_seconds": seconds, "diverged": False}
            for index, value in enumerate(values)
        ]
        for seed in seeds if guess is not None else ():
            seed["metrics"]["guess_bits"] = guess
        mean = sum(values) / max(1, len(values))
        tasks[label] = {
            "bits": {"mean": mean, "half": 1.0, "n": len(values)} if values else None,
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


def test_a_hair_less_of_what_both_know_by_heart_is_no_loss():
    here = {"tasks": ["t", "u"], "arms": [arm("mine", 1, 1, t=[99.5, 99.51, 99.52], u=[9, 8.2, 9.1])]}
    found = standing(here, "mine", {"arms": [arm("full", 1, 1, t=[99.8, 99.81, 99.82], u=[8, 8.9, 8.1])]})
    assert found["rivals"][0]["tasks"]["t"]["told_apart"]
    assert found["verdict"]["may_replace"] == ["full"]


def test_what_neither_learned_decides_nothing():
    """Both earn less than a guesser: the better one has not shown that it recalls."""
    here = {"tasks": ["t"], "arms": [arm("mine", 1, 1, guess=16.0, t=[2, 2.1, 2.2])]}
    lost = arm("lost", 1, 1, guess=16.0, t=[0, 0.1, 0.2])
    found = standing(here, "mine", {"arms": [lost, arm("knows", 1, 1, guess=16.0, t=[20, 20.1, 20.3])]})
    assert found["verdict"] == {"replaces": [], "may_replace": ["lost"], "replaced_by": ["knows"]}
    assert found["rivals"][0]["tasks"]["t"]["both"] == "guess"


def test_one_seed_proves_nothing():
    here = {"tasks": ["t"], "arms": [arm("mine", 1, 1, t=[5]), arm("other", 1, 1, t=[4])]}
    found = standing(here, "mine", None)
    assert found["verdict"] == {"replaces": [], "may_replace": [], "replaced_by": []}
    assert found["rivals"][0]["replaces"] is None


def test_of_a_challenger_that_could_not_be_trained_nothing_is_claimed():
    here = {"tasks": ["t"], "arms": [arm("mine", 1, 1, t=[]), arm("other", 2, 2, t=[4, 5, 6])]}
    here["arms"][0]["tasks"]["t"]["grid"] = [{"lr": 0.1, "bits": [None], "failed": ["ValueError: no"]}]
    facts = told(standing(here, "mine", None))
    assert facts["verdict"] == {"replaces": [], "may_replace": [], "replaced_by": []}
    said = summary(facts)
    assert said[0] == "mine could not be trained on every task: it replaces nothing."
    assert said[1] == "t, bits: failed; not compared. ValueError: no"
    assert "ValueError: no" in page(facts)


def test_seconds_of_records_are_scaled_to_this_machine():
    found = standing(HERE, "mine", STORED)  # `worse` takes twice as long here as stored
    seconds = {row["name"]: row["tasks"]["recall"]["seconds"]["mean"] for row in found["rows"]}
    assert seconds["cheaper"] == 8.0
    assert seconds["worse"] == 2.0


def test_seconds_of_records_are_unknown_where_nothing_says_how_fast_this_machine_is():
    alone = {**HERE, "arms": HERE["arms"][:1]}
    rows = {row["name"]: row["tasks"]["recall"]["seconds"] for row in standing(alone, "mine", STORED)["rows"]}
    assert rows["cheaper"] is None
    assert rows["mine"]["mean"] == 1.0


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


def told(standing, name="mine"):
    """`challenge.json` around what was found."""
    said = {"name": name, "kind": "sequence", "mode": "quick", "frame": FRAME, "device": "cpu"}
    return {**said, "stored_code": {"doge_lab": "0.1", "commit": "abcdef012"}, **standing}


def test_the_page_says_what_may_not_be_concluded():
    facts = told(standing(HERE, "mine", STORED), "<mine>")
    for row in facts["rows"]:
        row["name"] = row["name"].replace("mine", "<mine>")
    said = " ".join(summary(facts))
    assert "<mine> replaces worse" in said
    assert "better would replace it" in said
    assert "more than 3 of 4 rivals" not in said
    assert "not corrected for their number" in said
    assert "came out within" in said
    assert "as stored (doge-lab 0.1 abcdef0)" in said
    written = page(facts)
    assert "<mine>" not in written
    assert "&lt;mine&gt; replaces worse" in written


def test_the_terminals_table_takes_any_name():
    facts = told(standing(HERE, "mine", STORED), "mine[/b]")
    for row in facts["rows"]:
        row["name"] = row["name"].replace("mine", "mine[/b]")
    shown = StringIO()
    Console(width=300, file=shown).print(table(facts))
    assert shown.getvalue().count("mine[/b]") >= 2  # in the title and in its row


def test_names_beside_points_do_not_cover_each_other():
    draw = np.random.default_rng(0)
    names = [f"block_{'x' * index}" for index in range(25)]
    rows = [arm(name, *draw.integers(1, 10**4, 2), t=[draw.uniform(0, 9)]) for name in names]
    found = _labels(rows, "t", "cache_bytes", axis("", [row["cost"]["cache_bytes"] for row in rows]))
    assert 15 < len(found) <= 25
    same = [arm(name, 5, 5, t=[1.0]) for name in names]
    assert len(_labels(same, "t", "cache_bytes", axis("", [5] * 25))) < 25


def test_what_is_stored_is_what_is_compared():
    result = {"code": {}, "protocol": {}, "tasks": ["t"], "arms": [{**arm("a", 1, 1, t=[5, 6]), "model": {"big": 1}}]}
    kept = slim(result, Frame("state", "quick"))
    assert "model" not in kept["arms"][0]
    assert standing({**result, "arms": [arm("b", 1, 1, t=[1, 2])]}, "b", kept)["rivals"][0]["name"] == "a"
