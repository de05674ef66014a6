"""The digest of a block's source: what it reaches counts, what computes nothing does not."""

import json
import sys

import pytest

from doge_lab import digest, registry

BLOCK = """\
\"\"\"A block.\"\"\"
from torch import nn
from doge_lab.block import StateBlock
{imports}

class Mine(StateBlock):
    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.map = nn.Linear(d_model, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.map.weight, std=self.d_model**-0.5)

    def forward(self, x):
        {body}

    def flops_per_token(self, context):
        return 2 * self.d_model**2
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_allowed_packages", {"mine", "mypack"})
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "helper", "deeper", "mypack")]:
        del sys.modules[name]


def write(folder, imports="from helper import prepared", body="return self.map(prepared(x))"):
    (folder / "mine.py").write_text(BLOCK.format(imports=imports, body=body))
    (folder / "helper.py").write_text("import deeper\n\ndef prepared(x):\n    return deeper.same(x)\n")
    (folder / "deeper.py").write_text("def same(x):\n    return x\n")


def named(folder):
    return digest.digest(digest.reached("mine"))


def test_a_block_of_the_lab_reaches_its_layers_and_no_library():
    reached = digest.reached("blocks.sequence.attention")
    assert {"blocks.sequence.attention", "blocks", "doge_lab.block", "doge_lab.layers.rotary"} <= reached.keys()
    assert not {"torch", "pydantic", "abc", "doge_lab.train", "blocks.sequence.mamba"} & reached.keys()


def test_a_helper_of_a_helper_counts(folder):
    write(folder)
    assert {"mine", "helper", "deeper"} <= digest.reached("mine").keys()
    before = named(folder)
    (folder / "deeper.py").write_text("def same(x):\n    return x + 0.1 * x.roll(-1, dims=1)\n")
    assert named(folder) != before


def test_nothing_is_imported_to_find_it(folder):
    write(folder)
    digest.reached("mine")
    assert not {"mine", "helper", "deeper"} & sys.modules.keys()


def test_comments_docstrings_and_layout_change_nothing(folder):
    write(folder)
    before = named(folder)
    text = (folder / "deeper.py").read_text()
    (folder / "deeper.py").write_text(f'"""Now with a docstring."""\n\n\n# and a comment\n{text}')
    assert named(folder) == before


@pytest.mark.parametrize("imports", ["from . import near", "from .near import f", "import mypack.near"])
def test_every_module_of_the_blocks_own_package_counts(folder, imports):
    package = folder / "mypack"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__", "near", "inner/__init__", "inner/far"):
        (package / f"{name}.py").write_text("def f(x):\n    return x\n")
    (package / "block.py").write_text(f"{imports}\n")
    found = digest.reached("mypack.block").keys()
    assert found == {"mypack", "mypack.block", "mypack.near", "mypack.inner", "mypack.inner.far"}


def test_the_source_of_a_run_holds_what_a_foreign_block_reaches(folder):
    from doge_lab.config import parse
    from doge_lab.identity import source

    def source_of_it():
        for name in ("mine", "helper", "deeper"):
            sys.modules.pop(name, None)
        layer = {"sequence": "none", "state": "mine:Mine"}
        run = parse({"model": {"d_model": 8, "layers": [layer]}, "tasks": ["capacity"]})
        return source(run, run.tasks[0])

    write(folder)
    before = source_of_it()
    assert source_of_it() == before
    assert {"mine", "helper", "deeper", "doge_lab.train", "doge_lab.tasks.capacity"} <= before.modules.keys()
    (folder / "deeper.py").write_text("def same(x):\n    return 2 * x\n")
    after = source_of_it()
    assert after.name != before.name
    assert after.changed(before.modules) == ["deeper"]


@pytest.mark.parametrize(
    ("imports", "body"),
    [
        ("from helper import prepared", "return self.map(prepared(x))"),
        ("import importlib", "return self.map(importlib.import_module('help' + 'er').prepared(x))"),
    ],
    ids=["imported", "imported by a name made up at run time"],
)
def test_a_helper_edited_to_leak_is_examined_again_and_caught(folder, monkeypatch, imports, body):
    from doge_lab.engine.checks import CheckCase, examine, remembered, verdict

    monkeypatch.setenv("DOGE_LAB_CACHE", str(folder / "cache"))
    case = CheckCase("state", "mine:Mine", json.dumps({}), 16)
    write(folder, imports, body)
    assert remembered(case) is None
    assert examine(case) == remembered(case) == []
    (folder / "deeper.py").write_text("def same(x):\n    return x + 0.1 * x.roll(-1, dims=1)\n")
    assert remembered(case) is None
    for name in ("mine", "helper", "deeper"):
        sys.modules.pop(name, None)
    said = verdict(case, examine(case), allow_faults=False)
    assert said.startswith("block mine:Mine fails the check tokens_independent")
    assert verdict(case, remembered(case), allow_faults=False) == said
