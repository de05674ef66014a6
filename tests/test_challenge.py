"""A newcomer against the shelf: it is found, checked, set into the same frame, and no more is claimed than was seen."""

import json
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from tiny_search import InProcess

from doge_lab import registry
from doge_lab.challenge.frame import Frame
from doge_lab.challenge.newcomer import load
from doge_lab.cli import main
from doge_lab.errors import UserError
from doge_lab.experiment.config import arms_of

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
    assert found.folder == "challenge-Mine-power-2"
    assert load(mine("other_block"), {"power": 1}).name == "Mine"  # its default


def test_defaults_written_out_make_no_other_block():
    found = load("attention", {"window": None})
    assert found.of_the_shelf
    assert found.name == "attention"


def test_a_block_called_like_a_rival_is_not_taken_for_it(tmp_path, mine):
    path = Path(mine("namesake"))
    path.write_text(path.read_text().replace("class Mine", "class glu"))
    assert load(str(path), {}).name == "namesake:glu"


def test_a_base_class_beside_the_block_is_not_the_block(mine):
    path = Path(mine("with_base"))
    path.write_text(path.read_text() + "\n\nclass Base(StateBlock):\n    pass\n")
    assert load(str(path), {}).name == "Mine"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere.py", "no such file"),
        ("{folder}/json.py", "another module is called 'json'"),
        ("{folder}/my-block.py", "cannot be a module's name"),
        ("{folder}/empty_file.py", "defines no block"),
        ("{folder}/torn_file.py", "cannot be imported: SyntaxError"),
        ("{folder}/quits.py", "cannot be imported: SystemExit"),
        ("atention", "did you mean 'attention'"),
        ("none", "a sequence block and a state block"),
    ],
)
def test_a_block_that_cannot_be_found_is_one_line(tmp_path, mine, word, message):
    for name in ("json", "my-block"):
        mine(name)
    (tmp_path / "empty_file.py").write_text("x = 1\n")
    (tmp_path / "torn_file.py").write_text("def\n")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match=message) as error:
        load(word.format(folder=tmp_path), {})
    assert "\n" not in str(error.value)


def test_a_block_that_breaks_the_contract_is_not_compared(tiny_frame, mine, tmp_path, capsys):
    leak = "+ x.mean(dim=1, keepdim=True)"
    assert main(["challenge", mine("leaky_block", leak), "--out", str(tmp_path / "o")]) == 1
    said = capsys.readouterr().out
    assert "tokens_independent" in said
    assert not (tmp_path / "o").exists()


def test_a_block_that_cannot_be_built_is_one_line(tiny_frame, mine, tmp_path, capsys):
    path = Path(mine("unbuilt"))
    path.write_text(path.read_text().replace("self.reset_parameters()\n", "raise OSError('no\\nway')\n"))
    assert main(["challenge", str(path), "--out", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert "a block cannot be built or counted: OSError: no way" in said
    assert said.count("\n") == 1


def test_a_challenge_is_trained_and_written(tiny_frame, mine, tmp_path, capsys):
    out = tmp_path / "o"
    words = ["challenge", mine("fine_block"), "--rivals", "1", "--workers", "1", "--out", str(out), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["trained"]) for row in facts["rows"]] == [("Mine", "here"), ("fast_feedforward", "here")]
    assert all(row["tasks"]["capacity"]["bits"]["n"] == 2 for row in facts["rows"])
    assert (out / "challenge.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((out / "challenge.json").read_text())["verdict"] == facts["verdict"]


def test_what_a_block_prints_and_is_called_spoils_nothing(tiny_frame, mine, tmp_path, monkeypatch, capsys):
    path = Path(mine("loud"))
    loud = path.read_text().replace("return self.linear", "print('loud')\n        return self.linear")
    path.write_text(loud.replace("    power: int = 1", "    note: str = ''\n        power: int = 1"))
    words = ["challenge", str(path), "--set", "note='[/x] <b>'", "--rivals", "0", "--workers", "1"]
    monkeypatch.setattr("doge_lab.experiment.runner.Pool", InProcess)
    assert main([*words, "--out", str(tmp_path / "o"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "Mine (note: '[/x] <b>')"
    assert main([*words, "--out", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr().out
    assert "Mine (note: '[/x] <b>') met no rival" in shown
    assert "loud" not in shown.replace(str(tmp_path), "")
    assert "<b>'" not in (tmp_path / "o" / "challenge.html").read_text(encoding="utf-8")


def test_an_edited_block_is_trained_again_and_its_rivals_are_not(tiny_frame, mine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("doge_lab.experiment.runner.Pool", InProcess)
    path = Path(mine("edited"))
    words = ["challenge", str(path), "--rivals", "1", "--workers", "1", "--out", str(tmp_path / "o"), "--json"]

    def trained():
        assert main(words) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        return [row["tasks"]["capacity"]["bits"]["mean"] for row in rows], set((tmp_path / "o" / "runs").iterdir())

    first, runs = trained()
    again, same = trained()
    assert (again, same) == (first, runs)
    path.write_text(path.read_text().replace("self.linear(x**", "0.1 * self.linear(x**"))
    sys.modules.pop("edited")
    after, more = trained()
    assert after[0] != first[0]
    assert after[1] == first[1]
    assert more == runs
    assert sum((run / "previous").exists() for run in runs) == 2  # seeds of the challenger


def test_records_of_other_data_are_not_compared_with(monkeypatch):
    frame = Frame("state", "quick")
    assert frame.stored() is not None
    monkeypatch.setattr(Frame, "data", lambda self: {"capacity": "0", "recall": "0"})
    assert frame.stored() is None
