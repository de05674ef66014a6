"""A slice of `fuzz.py`, which runs alone with as many mutations as one likes."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.skipif(sys.platform != "linux", reason="children are held to limits that only Linux has")
def test_forty_mutations_are_each_one_line():
    ran = subprocess.run([sys.executable, FUZZ, "--mutations", "40", "--seed", "0"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("40 mutations, 0 faults\n")


def test_the_script_finds_what_it_looks_for(tmp_path, monkeypatch):
    """Otherwise it could pass over anything."""
    sys.modules.pop("fuzz", None)
    import fuzz

    def broken(words):
        if words == ["raises"]:
            raise ValueError("unread")
        if words == ["talks"]:
            print("one\ntwo", file=sys.stderr)
        while words == ["hangs"]:
            pass
        return bytearray(4 * 2**30) and 0 if words == ["eats"] else {"talks": 2, "crashes": 3}.get(words[0], 0)

    monkeypatch.setattr(fuzz, "main", broken)
    monkeypatch.setattr(fuzz, "CPU_SECONDS", 1)
    found = {word: fuzz.fault([word], tmp_path) for word in ("good", "raises", "talks", "crashes", "eats", "hangs")}
    assert found.pop("good") == ""
    expected = {"raises": "traceback", "talks": "not one short line", "crashes": "exit code 3", "eats": "traceback"}
    for word, said in {**expected, "hangs": "takes more than 1 s"}.items():
        assert found[word].startswith(said), found
