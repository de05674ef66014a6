"""Published laws: what docs/laws.md says and draws is what the committed results hold, and those are of these files."""

import json
import math
import sys
from pathlib import Path

import pytest

from doge_lab.experiment.config import arms_of, load

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "laws"
RESULTS = sorted((FOLDER / "results").glob("*.json"))
GPU = sorted((FOLDER / "gpu").glob("*.yaml"))
PAGE = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")

sys.path.append(str(FOLDER))
import figures  # noqa: E402
import tables  # noqa: E402
from measured import Arm, Law, read  # noqa: E402

every_result = pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)


def arm(name="arm", bits=(8.0, 10.0, 12.0), params=4):
    cost = {"params": params, "active_params": params // 2, "cache_bytes": 1}
    return Arm(name, cost, dict(enumerate(bits)), at_edge=False, saturated=0, asked=48.0, guess=24.0)


def test_every_law_has_a_result_a_section_and_a_larger_version():
    for path in FOLDER.glob("*.yaml"):
        name = path.stem
        assert (FOLDER / "results" / f"{name}.json") in RESULTS
        assert f"`doge-lab compare benchmarks/laws/{name}.yaml --out results/{name}`" in PAGE
        assert f"(../benchmarks/laws/results/{name}.svg)" in PAGE
        assert any(name.startswith(file.stem) for file in GPU)


@pytest.mark.parametrize("path", GPU, ids=lambda path: path.stem)
def test_a_larger_version_says_how_to_run_it_and_that_nobody_has(path):
    head = path.read_text(encoding="utf-8").partition("base:")[0]
    assert f"doge-lab compare benchmarks/laws/gpu/{path.name} --device cuda --out results/gpu/{path.stem}\n" in head
    assert "Not run yet" in head


@every_result
def test_a_result_is_of_its_file(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    experiment = load(FOLDER / f"{path.stem}.yaml")
    assert result["protocol"] == experiment.protocol.model_dump(mode="json")
    arms = {arm.name: arm.run.cost().dump() for arm in arms_of(experiment)}
    assert {arm["name"]: arm["cost"] for arm in result["arms"]} == {
        name: {key: cost[key] for key in result["arms"][0]["cost"]} for name, cost in arms.items()
    }
    assert all(len(arm.seeds) == experiment.protocol.seeds for arm in read(path).arms.values())
    assert path.stat().st_size < 100_000


@every_result
def test_the_page_shows_what_the_result_holds(path):
    law = read(path)
    assert "\n".join(tables.table(law)) in PAGE
    if law.name in tables.COMPARED:
        assert len(list(tables.comparisons(law))) == 2 + len(tables.COMPARED[law.name])
        assert "\n".join(tables.comparisons(law)) in PAGE


@every_result
def test_a_figure_is_of_its_result_and_names_every_arm(path):
    law, figure = read(path), path.with_suffix(".svg").read_text(encoding="utf-8")
    assert figures.digest(law) in figure
    assert len(figure) < 60_000
    for panel in figures.panels(law):
        words = {word for name in law.arms for word in panel.split(name)}
        assert {word for word in words if f">{word}<" not in figure} <= {""}


def test_a_figure_of_other_values_is_another_one():
    law = read(RESULTS[0])
    name, first = next(iter(law.arms.items()))
    other = law._replace(arms={**law.arms, name: first._replace(seeds={**first.seeds, 1000: 1.0})})
    assert figures.digest(other) != figures.digest(law)


def test_a_figure_is_drawn_alike_twice(tmp_path):
    pytest.importorskip("matplotlib")
    law = Law("cdmoe", {}, {name: arm(name) for name in ("a", "b")})
    for name in ("one.svg", "two.svg"):
        figures.draw(law, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_bits_are_divided_by_what_they_cost():
    assert arm().bits().mean == 10
    assert arm().bits("params").mean == 2.5
    assert arm().bits("active_params").mean == 5
    half = 4.302653 * 2 / math.sqrt(3)  # Student's quantile, two degrees of freedom
    assert arm().bits("params").half == pytest.approx(half / 4, rel=1e-5)


def test_arms_are_compared_seed_by_seed():
    low, high = arm(bits=(8.0, 10.0, 12.0)), arm(bits=(9.0, 11.0, 13.0))
    assert high.more_than(low) == (1.0, 0.0, 3)
    twice = arm(bits=(16.0, 20.0, 24.0), params=8)
    assert twice.times(low, "params") == pytest.approx((1, 1, 1))
    assert twice._replace(cost=low.cost).times(low, "params") == pytest.approx((2, 2, 2))
    assert low.times(twice, "params") == pytest.approx([1 / bound for bound in twice.times(low, "params")][:3])


def test_a_ratio_lies_within_its_interval_and_turns_over_with_its_arms():
    a, b = arm(bits=(8.0, 10.0, 12.0)), arm(bits=(12.0, 10.0, 9.0))
    ratio, other = a.times(b, "params"), b.times(a, "params")
    assert ratio.low < ratio.mean < ratio.high
    assert (1 / ratio.high, 1 / ratio.low) == pytest.approx((other.low, other.high))
    with pytest.raises(ValueError, match="no interval"):
        arm(bits=(8.0,)).times(arm(bits=(9.0,)), "params")


def test_a_seed_that_diverged_holds_nothing_and_one_that_failed_is_left_out(tmp_path):
    seed = {"metrics": {"bits": 5.0, "max_bits": 48.0}, "diverged": False}
    seeds = [
        {**seed, "seed": 1},
        {"seed": 2, "metrics": None, "diverged": True},
        {"seed": 3, "metrics": None, "diverged": False},
    ]
    scored = {"task": {}, "train": {"lr": 0.1, "at_edge": True}, "saturated": 0, "seeds": seeds}
    result = {"name": "x", "tasks": ["t"], "arms": [{"name": "a", "cost": {}, "tasks": {"t": scored}}]}
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert read(tmp_path / "result.json").arms["a"].seeds == {1: 5.0, 2: 0.0}


def test_what_was_published_is_drawn_where_it_belongs():
    law = read(FOLDER / "results" / "experts_same_total.json")
    (band,) = figures.panels(law)[0].bands
    dense = law.arms["mlp, same total"].bits("params").mean
    assert dense / band.high == pytest.approx(1.3)
    assert dense / band.low == pytest.approx(1.5)


def test_arms_said_to_be_of_one_size_are():
    same = read(FOLDER / "results" / "experts_same_total.json").arms
    total, active = (same[f"mlp, same {kind}"].cost for kind in ("total", "active"))
    for name in ("moe, 32 experts, 1 active", "peer, 361 experts"):
        assert same[name].cost["params"] == pytest.approx(total["params"], rel=0.04)
        assert same[name].cost["active_params"] == pytest.approx(active["active_params"], rel=0.04)
    arms = read(FOLDER / "results" / "cdmoe.json").arms
    for kind, cost in (("total", "params"), ("active", "active_params")):
        for name in (name for name in arms if f", {kind} as " in name):
            like = f"{name.split(' as ')[1]}, parallel"
            assert arms[name].cost[cost] == pytest.approx(arms[like].cost[cost], rel=0.005)
