"""`doge-lab tasks`: what it lists is what files may say, and its ladders can be pasted into one."""

from pathlib import Path

import pytest
import yaml
from test_cli import answer, complaint

from doge_lab import tasks
from doge_lab.cli import main
from doge_lab.config import parse
from doge_lab.experiment.config import arms_of, load

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "mad.yaml"


def printed(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_every_task_is_listed_with_its_options(capsys):
    rows = answer(capsys, "tasks", "--json")
    assert [row["name"] for row in rows] == tasks.names()
    for row in rows:
        assert row["summary"]
        assert "://" in row["source"]
        assert {option["name"] for option in row["options"]} == set(tasks.get(row["name"]).model_fields) - {"type"}
        assert all(option["description"] for option in row["options"])
        assert "rungs" not in row
    (recall,) = answer(capsys, "tasks", "recall", "--json")
    assert recall in rows
    assert {"name": "n_eval", "default": 512, "description": "Sequences that are scored."} in recall["options"]


def test_a_table_lists_tasks_and_with_a_name_its_options(capsys):
    listed = printed(capsys, "tasks")
    assert all(name in listed for name in tasks.names())
    one = printed(capsys, "tasks", "mad_recall")
    assert "n_train" in one
    assert "12800" in one
    assert "Source: Poli et al. 2024" in one
    assert "mano" not in one


@pytest.mark.parametrize("name", ["mad_noisy_recall", "mad_memorisation", "recall"])
def test_a_ladder_can_be_pasted_under_tasks(capsys, name):
    pasted = yaml.safe_load(printed(capsys, "tasks", name, "--ladder"))
    expected = tasks.rungs(tasks.parse(name))
    assert pasted[0] == {"type": name}
    model = {"d_model": 8, "layers": [{"sequence": "none", "state": "none"}]}
    assert list(parse({"model": model, "tasks": pasted}).tasks) == expected
    (row,) = answer(capsys, "tasks", name, "--ladder", "--json")
    assert row["rungs"] == pasted


def test_the_ladders_of_all_tasks_are_one_list(capsys):
    pasted = yaml.safe_load(printed(capsys, "tasks", "--ladder"))
    assert [entry["type"] for entry in pasted if "name" not in entry] == tasks.names()


def test_an_unknown_task_gets_a_line(capsys):
    assert (
        complaint(capsys, "tasks", "mad_recal")
        == "doge-lab: no task is named 'mad_recal'; did you mean 'mad_recall'?\n"
    )


def test_the_shipped_experiment_asks_all_six_of_every_arm():
    arms = arms_of(load(EXPERIMENT))
    assert [arm.name for arm in arms] == ["attention", "linear attention", "delta rule"]
    for arm in arms:
        assert {task.type for task in arm.run.tasks} == {name for name in tasks.names() if name.startswith("mad_")}
        assert arm.run.model.layers[0].sequence.type == "short_conv"
