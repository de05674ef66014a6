"""Blocks are found by their file's name, lazily; strangers come in by an entry point or by consent."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from doge_lab import registry
from doge_lab.errors import UserError
from doge_lab.registry import catalogue, find, get, names


def test_every_file_is_a_block_with_a_summary_and_a_source():
    for info in catalogue():
        assert info.summary
        assert info.source != info.where, f"{info.where} has no line starting with `Source:`"
        assert get(info.kind, info.name).kind == info.kind


def test_listing_and_looking_up_import_one_block_alone():
    code = (
        "import sys; from doge_lab import registry; registry.catalogue(); "
        "assert 'torch' not in sys.modules, 'listing imports torch'; registry.get('state', 'mlp'); "
        "found = {m for m in sys.modules if m.startswith('blocks.') and m.count('.') == 2}; "
        "assert found == {'blocks.state.mlp'}, found"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("sequence", "atention", "no sequence block is named 'atention'; did you mean 'attention'?"),
        ("state", "attention", "'attention' is a sequence block, not a state block"),
        ("state", "zzzz", "no state block is named 'zzzz'; known: "),
        ("state", "json:JSONDecoder", "if you trust it, say --allow-import json"),
    ],
)
def test_a_wrong_name_says_what_to_do(kind, name, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace("?", r"\?")):
        get(kind, name)


def test_a_class_by_path_needs_consent_and_must_be_a_block(monkeypatch):
    monkeypatch.setattr(registry, "_allowed_packages", set())
    with pytest.raises(UserError, match="--allow-import blocks"):
        get("state", "blocks.state.mlp:MLP")
    registry.allow_import("blocks.state.mlp:MLP")
    assert get("state", "blocks.state.mlp:MLP").__name__ == "MLP"
    with pytest.raises(UserError, match="is a state block, not a sequence block"):
        get("sequence", "blocks.state.mlp:MLP")
    with pytest.raises(UserError, match="has no 'Nothing'"):
        get("state", "blocks.state.mlp:Nothing")
    with pytest.raises(UserError, match="is not a block class"):
        find("json:JSONDecoder")


def test_none_is_found_in_both_kinds():
    assert [kind for kind, _ in find("none")] == ["sequence", "state"]


def test_an_entry_point_is_a_block_and_a_duplicate_name_raises(monkeypatch):
    mine = EntryPoint("mine", "blocks.state.mlp:MLP", "doge_lab.state")
    taken = EntryPoint("mlp", "blocks.state.mlp:MLP", "doge_lab.state")
    monkeypatch.setattr(registry, "_entry_points", lambda kind: (mine,) if kind == "state" else ())
    assert "mine" in names("state")
    assert get("state", "mine").__name__ == "MLP"
    monkeypatch.setattr(registry, "_entry_points", lambda kind: (taken,) if kind == "state" else ())
    with pytest.raises(UserError, match="two state blocks are named 'mlp'"):
        names("state")


def test_a_folder_called_blocks_that_hides_ours_is_named(tmp_path):
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "__init__.py").touch()
    code = "from doge_lab import registry; registry.names('state')"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert f"the folder {tmp_path / 'blocks'} is called `blocks` and hides doge_lab's own" in ran.stderr
