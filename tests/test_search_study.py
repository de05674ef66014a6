"""The study on disk: read by name, wherever it lies, whatever it holds."""

import logging
import sqlite3
import threading
import time

import optuna
import pytest
from tiny_search import search, tiny

from doge_lab.errors import UserError
from doge_lab.report import write_report
from doge_lab.search import storage
from doge_lab.search.storage import open_storage, the_study
from doge_lab.search.study import read_results

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished search of four trials."""
    search(tiny(trials=2, confirm_seeds=0), tmp_path / "out")
    return tmp_path / "out"


def test_objectives_are_kept_by_name_when_their_lines_change_places(finished):
    before = read_results(finished)
    written = tiny(trials=4, confirm_seeds=0)
    written["search"]["objectives"] = {"capacity.bits": "maximize", "cache_bytes": "minimize"}
    after = search(written, finished, resume=True)
    assert list(after.objectives) == list(before.objectives)
    assert len(after.trials) == 4
    for trial in (*after.trials, *read_results(finished).trials):
        assert trial.values == {
            "cache_bytes": trial.cost["cache_bytes"],
            "capacity.bits": trial.metrics["capacity"]["bits"],
        }


@pytest.mark.parametrize("change", [{"params": "minimize"}, {"capacity.bits": "minimize"}])
def test_other_objectives_are_refused_on_resume(finished, change):
    written = tiny(trials=4)
    written["search"]["objectives"] = {"cache_bytes": "minimize", "capacity.bits": "maximize", **change}
    with pytest.raises(UserError, match=r"was searched with other search\.objectives; choose another --out"):
        search(written, finished, resume=True)


@pytest.mark.parametrize("name", ["a?b", "50%20", "a#b", "with space", "漢字", "a;b&c"])
def test_any_legal_path_holds_a_study(tmp_path, name):
    out = tmp_path / name / "out"
    results = search(tiny(trials=1, confirm_seeds=0), out)
    assert (out / "study.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    write_report(results, out)
    assert read_results(out).trials[0].state == "complete"
    assert "How the best value" not in (out / "report.html").read_text(encoding="utf-8")


def damaged(path, **changes):
    content = bytearray(path.read_bytes())
    for start in range(0, len(content), 97):
        content[start] ^= 0x5A
    path.write_bytes(content)


def two_studies(path):
    optuna.create_study(storage=open_storage(path), study_name="another")


def another_program_s(path):
    path.unlink()
    optuna.create_study(storage=open_storage(path), study_name="test")


def emptied(path):
    path.write_bytes(b"")


def deleted_inside(path):
    optuna.delete_study(study_name="test", storage=open_storage(path))


def another_database(path):
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text)")


def a_folder(path):
    path.unlink()
    path.mkdir()


def an_attribute_of_another_type(path):
    study, _ = the_study(path)
    study.set_user_attr("confirmed", [1, 2])


def a_name_that_is_no_text(path):
    path.write_bytes(path.read_bytes().replace(b"model.layers", b"mod\xffl.layers"))


def another_version(path):
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damaged, "the study is damaged"),
        (two_studies, "holds 2 studies ('test', 'another') instead of one"),
        (another_program_s, "holds 'test', which is no search of doge_lab"),
        (emptied, "holds no study"),
        (deleted_inside, "holds 0 studies (none) instead of one"),
        (another_database, "holds no study"),
        (a_folder, "is a folder, where the study of a search should be"),
        (an_attribute_of_another_type, "the study is damaged"),
        (a_name_that_is_no_text, "the study is damaged (OperationalError: Could not decode to UTF-8"),
        (another_version, "the study is damaged (RuntimeError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_study_is_one_line_with_the_way_out(finished, damage, words):
    damage(finished / "study.db")
    for use in (read_results, lambda out: search(tiny(trials=3), out, resume=True)):
        with pytest.raises(UserError) as error:
            use(finished)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        assert str(finished / "study.db") in str(error.value)
    assert list((finished / "runs").iterdir())


def test_damage_is_told_once_and_not_by_optuna_as_well(finished, caplog):
    a_name_that_is_no_text(finished / "study.db")
    logger = logging.getLogger("optuna")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(UserError):
            read_results(finished)
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_trial_added_by_hand_is_named_and_left_out(finished):
    study, opened = the_study(finished / "study.db")
    study.add_trial(optuna.create_trial(values=[0.0, 10.0**9]))
    storage.close_storage(opened)
    results = read_results(finished)
    assert results.trials[-1].reason == "added by hand: doge_lab did not measure it"
    assert results.trials[-1].number not in [number for each in results.front for number in [each.number]]
    assert search(tiny(trials=3, confirm_seeds=0), finished, resume=True).trials[-1].state == "complete"


@pytest.mark.parametrize("name", ["front.json", "report.html", "trials.csv", "front"])
def test_a_report_that_cannot_be_written_names_the_file(finished, name):
    results = read_results(finished)
    (finished / name).write_text("") if name == "front" else (finished / name / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name}.*cannot be written.*then: doge-lab report"):
        write_report(results, finished)


def test_a_locked_database_is_waited_for_and_said_once(finished, monkeypatch, caplog):
    monkeypatch.setattr(storage, "BUSY", 0.01)
    viewer = sqlite3.connect(finished / "study.db", check_same_thread=False, isolation_level=None)
    viewer.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.6, viewer.rollback).start()
    began = time.monotonic()
    study, _ = the_study(finished / "study.db")
    study.set_user_attr("waited", True)
    assert time.monotonic() - began > 0.4
    assert 1 <= caplog.text.count("the study is locked by another program") <= 2


def test_a_database_that_stays_locked_is_no_full_disk(finished, monkeypatch):
    monkeypatch.setattr(storage, "BUSY", 0.01)
    monkeypatch.setattr(storage, "PATIENCE", 0.1)
    viewer = sqlite3.connect(finished / "study.db", isolation_level=None)
    viewer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match="is locked by another program; close it and try again"):
        read_results(finished)
    with pytest.raises(UserError, match="is locked by another program"):
        search(tiny(trials=3), finished, resume=True)
    viewer.rollback()


def test_the_choices_of_a_finished_search_can_grow(finished):
    before = read_results(finished)
    after = search(tiny(("mlp", "none", "glu"), trials=12, confirm_seeds=0), finished, resume=True)
    assert len(after.trials) >= 12
    for old, new in zip(before.trials, after.trials, strict=False):
        assert (old.number, old.state, old.params, old.values) == (new.number, new.state, new.params, new.values)
    assert "glu" in {str(trial.params.get("model.layers.0.state.type")) for trial in after.trials}
    assert not list(finished.glob(".study*"))


@pytest.mark.parametrize(("state", "words"), [(("mlp",), "no longer holds"), ("glu", "no longer holds")])
def test_a_space_that_lost_choices_is_refused(finished, state, words):
    with pytest.raises(UserError, match=f"was searched with another space: .*{words}"):
        search(tiny(state if isinstance(state, tuple) else (state,)), finished, resume=True)
