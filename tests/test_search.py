"""Searches: what is finished is kept, whoever dies; what is too dear is never trained; repeats become seeds."""

from pathlib import Path

import pytest
from strange_blocks import SOURCE
from tiny_search import search, tiny

from doge_lab import registry
from doge_lab.engine.seeds import derived
from doge_lab.errors import UserError
from doge_lab.files import only_one
from doge_lab.record import read_record
from doge_lab.report import write_report
from doge_lab.report.page import page
from doge_lab.report.pairs import more_seeds
from doge_lab.search import asking, confirmation
from doge_lab.search.config import load_space, parse_space
from doge_lab.search.coordinator import Coordinator
from doge_lab.search.storage import the_study
from doge_lab.search.study import read_results


def test_one_worker_is_deterministic(tmp_path, in_process):
    first, again = (search(tiny(sampler="tpe"), tmp_path / name) for name in ("first", "again"))
    assert [trial.values for trial in first.trials] == [trial.values for trial in again.trials]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "qmc", "gp"])
def test_every_sampler_searches(tmp_path, in_process, sampler):
    results = search(tiny(sampler=sampler, confirm_seeds=0), tmp_path)
    assert {trial.state for trial in results.trials} == {"complete"}


def test_a_candidate_drawn_again_gets_another_seed_and_the_front_its_mean(tmp_path, in_process):
    results = search(tiny(trials=5, confirm_seeds=0), tmp_path)
    for candidate in results.candidates:
        seeds = [trial.seed for trial in candidate.trials]
        assert len(set(seeds)) == len(seeds)
        bits = [trial.values["capacity.bits"] for trial in candidate.trials]
        assert candidate.values["capacity.bits"] == pytest.approx(sum(bits) / len(bits))
    assert len(results.candidates) == 2


def test_the_front_is_confirmed_on_tables_it_was_not_chosen_on(tmp_path, in_process):
    results = search(tiny(confirm_seeds=2), tmp_path)
    starts = [read_record(folder)[0] for folder in (tmp_path / "runs").iterdir()]
    hashes = {on: {start["data_hash"] for start in starts if start["scored_on"] == on} for on in ("validation", "test")}
    assert not hashes["validation"] & hashes["test"]
    assert all(len(candidate.confirmed) == 2 for candidate in results.front)


def test_a_candidate_over_budget_is_rejected_untrained(tmp_path, in_process):
    results = search(
        tiny(state=[{"type": "mlp", "d_hidden": 400}, "none"], constraints={"params": {"max": 5000}}), tmp_path
    )
    states = {trial.state for trial in results.trials}
    assert states == {"complete", "rejected"}
    rejected = [trial for trial in results.trials if trial.state == "rejected"]
    assert all(trial.reason.startswith("outside the constraints: params is 13") for trial in rejected)
    assert sum(trial.state == "complete" for trial in results.trials) == 4


def test_an_impossible_match_is_rejected_with_its_reason(tmp_path, in_process):
    written = {**tiny(state=[{"type": "mlp", "d_hidden": 4}, "mlp"]), "match": {"params": 3000}}
    results = search(written, tmp_path)
    rejected = {trial.reason for trial in results.trials if trial.state == "rejected"}
    assert len(rejected) == 1
    assert "nothing is left free" in rejected.pop()
    assert all(trial.cost["params"] in range(2970, 3031) for trial in results.trials if trial.state == "complete")


def test_a_search_that_rejects_everything_gives_up_with_the_reason(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(asking, "REJECTIONS", 5)
    with pytest.raises(
        UserError, match="5 candidates in a row were rejected; the last one: outside the constraints: params is"
    ):
        search(tiny(constraints={"params": {"max": 1}}), tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"), [("Raises", "RuntimeError: a block's own trouble"), ("Diverges", "the loss is nan")]
)
def test_a_block_that_fails_costs_its_trial_only(tmp_path, in_process, strange, name, reason):
    results = search(tiny(state=[strange(name), "mlp"], confirm_seeds=0), tmp_path / "out")
    failed = [trial for trial in results.trials if trial.state == "failed"]
    assert failed
    assert all(trial.reason.startswith(reason) and "\n" not in trial.reason for trial in failed)
    assert {trial.state for trial in results.trials} == {"complete", "failed"}


def test_a_class_in_a_file_needs_consent(strange, monkeypatch):
    monkeypatch.setattr(registry, "_allowed_packages", set())
    with pytest.raises(UserError, match="--allow-import strange"):
        parse_space(tiny(state=[strange("Plain")]), "test")


def test_a_folder_is_not_searched_twice_by_mistake(tmp_path, in_process):
    search(tiny(trials=1, confirm_seeds=0), tmp_path)
    with pytest.raises(UserError, match="already holds a search; say --resume"):
        search(tiny(trials=1), tmp_path)
    with pytest.raises(UserError, match="was searched with another space"):
        search(tiny(state=["none"], trials=1), tmp_path, resume=True)
    with pytest.raises(UserError, match="holds no search to resume"):
        search(tiny(trials=1), tmp_path / "new", resume=True)


def test_a_resumed_sampler_does_not_repeat_its_draws(tmp_path, in_process):
    written = tiny(state=[{"type": "mlp", "d_hidden": {"int": [1, 1000]}}], confirm_seeds=0)
    search(written, tmp_path)
    written["search"]["trials"] = 8
    results = search(written, tmp_path, resume=True)
    drawn = [trial.params["model.layers.0.state.mlp.d_hidden"] for trial in results.trials]
    assert len(set(drawn)) == 8


def test_a_finished_search_takes_more_seeds_and_trains_nothing_else_again(tmp_path, in_process):
    """By the command that the report prints."""
    results = search(tiny(confirm_seeds=1), tmp_path, seed=3)
    write_report(results, tmp_path)
    before = {folder.name for folder in (tmp_path / "runs").iterdir()}
    command = more_seeds(results, str(tmp_path)).split()
    assert command[-2:] == ["--seed", "3"]
    space = load_space(Path(command[2]), [command[command.index("--set") + 1]])
    more = Coordinator(space, tmp_path, ["cpu"], seed=3, resume=True).run()
    assert [trial.values for trial in more.trials] == [trial.values for trial in results.trials]
    seeds = {derived("confirm", 3, index) for index in range(3)}
    assert all(set(candidate.confirmed_seeds) == seeds for candidate in more.front)
    assert all(old.confirmed[0] in new.confirmed for old, new in zip(results.front, more.front, strict=True))
    new = {folder.name for folder in (tmp_path / "runs").iterdir()} - before
    assert len(new) == 2 * len(more.front)
    assert all("test-seed" in name for name in new)


def test_a_resumed_search_keeps_its_seed_name_and_constraints(tmp_path, in_process):
    written = tiny(state=["mlp"], trials=1, confirm_seeds=0)
    search(written, tmp_path, seed=1)
    written["search"]["trials"] = 2
    with pytest.raises(UserError, match="was searched with --seed 1; resume it with the same"):
        search(written, tmp_path, resume=True)
    with pytest.raises(UserError, match="holds the search 'test', not 'other'"):
        search({**written, "name": "other"}, tmp_path, resume=True, seed=1)
    bounded = {**written, "search": {**written["search"], "constraints": {"params": {"max": 10**6}}}}
    with pytest.raises(UserError, match=r"was searched with other search\.constraints; choose another --out"):
        search(bounded, tmp_path, resume=True, seed=1)
    results = search(written, tmp_path, resume=True, seed=1)
    assert [trial.seed for trial in results.trials] == [derived("search", 0, 1, index) for index in range(2)]


def test_a_report_needs_no_block_of_the_search(tmp_path, in_process, strange, monkeypatch):
    search(tiny(state=[strange("Plain")], trials=1, confirm_seeds=0), tmp_path / "out")
    monkeypatch.setattr(registry, "_allowed_packages", set())
    assert read_results(tmp_path / "out").trials[0].state == "complete"


def test_the_study_opens_in_optuna(tmp_path, in_process):
    search(tiny(confirm_seeds=0), tmp_path)
    study, _ = the_study(tmp_path / "study.db")
    assert study.metric_names == ["cache_bytes", "capacity.bits"]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.best_trials


def test_a_leaky_block_never_reaches_a_front(tmp_path, in_process, strange):
    leaky = tiny(state=["mlp", strange("FailsTheContract")], confirm_seeds=0)
    with pytest.raises(
        UserError, match=r"block strange:FailsTheContract fails the check tokens_independent: .+ Mend it, or"
    ):
        search(leaky, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    results = search(leaky, tmp_path / "out", skip_failing=True)
    assert {trial.config["model"]["layers"][0]["state"]["type"] for trial in results.trials if trial.config} == {"mlp"}
    left_out = [trial.reason for trial in results.trials if trial.state == "rejected"]
    assert all("left out: block strange:FailsTheContract fails the check" in reason for reason in left_out)


def test_a_combination_of_options_is_checked_before_it_is_trained(tmp_path, in_process, strange):
    both = {name: {"choice": [False, True]} for name in ("one", "two")}
    results = search(tiny(state=[strange("LeaksTogether", **both)], confirm_seeds=0, trials=24), tmp_path / "out")
    leaky = [trial for trial in results.trials if list(trial.params.values())[-2:] == [True, True]]
    assert {trial.state for trial in leaky} == {"failed", "rejected"}
    assert all("fails the check tokens_independent" in trial.reason for trial in leaky)
    assert sum(trial.state == "failed" for trial in leaky) == 1
    assert {trial.state for trial in results.trials if trial not in leaky} == {"complete"}


def test_a_search_that_finds_nothing_more_keeps_what_it_has(tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(asking, "REJECTIONS", 8)
    widths = [{"type": "mlp", "d_hidden": {"int": [1, 9]}}]
    bounded = tiny(state=widths, trials=99, constraints={"params": {"max": 384}})
    results = search(bounded, tmp_path, seed=1)
    assert results.ended_early.startswith("8 candidates in a row were rejected; the last one: outside the constraints")
    assert 0 < sum(trial.state == "complete" for trial in results.trials) < 99
    assert not any(trial.state == "running" for trial in results.trials)
    assert results.front[0].confirmed
    assert "The search ended early: 8 candidates" in page(results)


def test_two_searches_do_not_share_a_folder(tmp_path, in_process):
    search(tiny(trials=1, confirm_seeds=0), tmp_path)
    with (
        only_one(tmp_path, "search"),
        pytest.raises(UserError, match=r"another search is at work in .+; let it end, or choose another --out"),
    ):
        search(tiny(trials=2, confirm_seeds=0), tmp_path, resume=True)
    assert len(search(tiny(trials=2, confirm_seeds=0), tmp_path, resume=True).trials) == 2


def test_a_confirmation_that_fails_says_why(tmp_path, in_process, strange, monkeypatch):
    monkeypatch.setattr(confirmation, "derived", lambda *key: -5)  # no seed: the run is refused
    (candidate,) = search(tiny(state=["mlp"], trials=1), tmp_path).front
    assert not candidate.confirmed
    assert set(candidate.unconfirmed) == {"-5"}
    assert "Not measured on fresh data from seed -5" in page(read_results(tmp_path))


def test_a_known_fault_needs_to_be_allowed(tmp_path, in_process):
    published = {"type": "inner_func_attn", "n_heads": 2, "fidelity": "published"}
    written = tiny(confirm_seeds=0, trials=1)
    written["model"]["layers"][0]["sequence"] = published
    with pytest.raises(
        UserError, match=r"inner_func_attn \(fidelity: published, n_heads: 2\) fails .+allow_faults: true"
    ):
        search(written, tmp_path / "out")
    written["search"]["allow_faults"] = True
    assert search(written, tmp_path / "out").trials[0].state == "complete"


def test_what_passed_is_not_checked_again_until_its_source_changes(tmp_path, in_process, strange, monkeypatch):
    monkeypatch.setenv("DOGE_LAB_CACHE", str(tmp_path / "cache"))
    examined = []
    monkeypatch.setattr("doge_lab.testing.run_checks", lambda block, *_, **__: examined.append(block.__name__) or [])
    written = tiny(state=[strange("Plain")], trials=1, confirm_seeds=0)
    search(written, tmp_path / "first")
    search(written, tmp_path / "second")
    before = examined.count("Plain")
    (tmp_path / "strange.py").write_text(SOURCE + "\n# a comment computes nothing\n")
    search(written, tmp_path / "third")
    assert before == examined.count("Plain") == 1
    (tmp_path / "strange.py").write_text(SOURCE + "\nchanged = True\n")
    search(written, tmp_path / "fourth")
    assert examined.count("Plain") > before
