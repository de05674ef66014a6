"""Text that hangs, grows or breaks a reader is one line, in a file and in `--set` alike."""

import time

import pytest

from doge_lab.config import load
from doge_lab.errors import UserError
from doge_lab.plaindata import DEEPEST, from_json, from_yaml
from doge_lab.yamlfile import with_overrides

BOMB = "{a: &a [1,2,3,4,5,6,7,8,9,0]" + "".join(
    f", {name}: &{name} [{','.join(['*' + before] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "nested lists": ("[" * 500 + "]" * 500, "nested too deeply"),
    "nested mappings": ("{a: " * 60 + "1" + "}" * 60, "nested too deeply"),
    "open lists": ("[" * 5000, "nested too deeply"),
    "aliases that multiply": (BOMB + "}", "holds more than 20,000 values"),
    "merges that multiply": (
        "{a: &a {k: 1}"
        + "".join(
            f", {b}: &{b} {{<<: [{','.join(['*' + a] * 10)}]}}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "}",
        "holds more than 20,000",
    ),
    "a long text, often": ("{a: &a '" + "x" * 10_000 + "', b: [" + "*a, " * 1000 + "]}", "holds more than 20,000"),
    "nesting by aliases": (
        "{a0: &a0 [1]" + "".join(f", a{i + 1}: &a{i + 1} [*a{i}]" for i in range(60)) + "}",
        "nested too deeply",
    ),
    "a circle": ("&a [*a]", "refers to itself"),
    "many values": ("[" + "0," * 30_000 + "]", "holds more than 20,000 values"),
    "bool": ("!!bool maybe", "'maybe' is no bool"),
    "int": ('!!int ""', "'' is no int"),
    "float": ("!!float x", "'x' is no float"),
    "timestamp": ("!!timestamp x", "could not determine a constructor"),
    "binary": ("!!binary aGVsbG8=", "could not determine a constructor"),
    "set": ("!!set {a, b}", "could not determine a constructor"),
    "object": ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "digits": ("9" * 4000, "a number of 4,000 digits"),
    "base 60": ("!!int 1" + ":1" * 400, "a number of 801 digits"),
    "surrogate": (r'"\ud800"', "no text"),
    "a list as a key": ("{[a]: 1}", "not valid YAML"),
    "merged text": ("{<<: text}", "expected a mapping"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("place", ["file", "--set"])
def test_hostile_yaml_is_one_line_within_seconds(run_file, place, text, message):
    if place == "file":
        run_file.write_text(f"name: {text}\n")
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        load(run_file, [f"seed={text}"] if place == "--set" else [])
    assert time.monotonic() - began < 10
    assert message in str(error.value)
    assert place in str(error.value) or str(run_file) in str(error.value)
    assert len(str(error.value).replace(str(run_file), "")) < 300


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" * 60 + "]" * 60, "9" * 5000, "NaN", "[-Infinity]", '"\\ud800"', '{"a": 1, "a": 2}', "{"]
)
def test_hostile_json_is_one_line(text):
    with pytest.raises(UserError) as error:
        from_json(text)
    assert len(str(error.value)) < 200


def test_a_path_of_set_is_guarded_too(run_file):
    with pytest.raises(UserError, match="nested too deeply"):
        load(run_file, [".".join(["x"] * 5000) + "=1"])
    with pytest.raises(UserError, match="is not an index below 1"):
        load(run_file, [f"model.layers.{'9' * 5000}.repeat=1"])


def test_what_is_as_deep_as_allowed_is_read():
    assert from_yaml("[" * DEEPEST + "]" * DEEPEST)
    assert from_yaml("day: 2024-01-31") == {"day": "2024-01-31"}  # JSON has no dates


def test_no_number_is_read_in_another_base_in_silence(run_file):
    written = ["010", "1:30", "-1:30.5", "190:20:30", "10", "0", "0.5", "-07", "1_000", "0x1F"]
    read = [from_yaml(text) for text in written]
    assert read == ["010", "1:30", "-1:30.5", "190:20:30", 10, 0, 0.5, "-07", 1000, 31]
    assert load(run_file, ["seed=010"]).seed == 10
    with pytest.raises(UserError, match="valid integer, not '1:30'"):
        load(run_file, ["seed=1:30"])


def test_merge_keys_work_and_explicit_keys_win():
    text = """
    base: &a {x: 1, y: 1}
    other: {deep: {er: &b {<<: *a, y: 2}}}
    both: {<<: [*b, {x: 9, z: 9}], z: 3}
    plain: {"<<": 1}
    """
    read = from_yaml(text)
    assert read["other"]["deep"]["er"] == {"x": 1, "y": 2}
    assert read["both"] == {"x": 1, "y": 2, "z": 3}
    assert read["plain"] == {"<<": 1}
    with pytest.raises(UserError, match="line 3: 'y' is written twice"):
        from_yaml("a: &a {x: 1}\nb:\n  {<<: *a, y: 1, y: 2}")


def test_a_model_may_be_written_with_merge_keys(run_file):
    layer = "{<<: *layer, repeat: 2}"
    run_file.write_text(
        "model:\n  d_model: 16\n  vocab_size: 8\n  layers:\n"
        f"    - &layer {{sequence: attention, state: mlp}}\n    - {layer}\n"
    )
    assert [entry.repeat for entry in load(run_file).model.layers] == [1, 2]


def test_what_is_shared_in_the_text_is_not_shared_in_the_data():
    read = with_overrides(from_yaml("{a: &a {x: 1}, b: *a}"), ["b.x=2"])
    assert read == {"a": {"x": 1}, "b": {"x": 2}}
