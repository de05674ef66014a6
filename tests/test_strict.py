"""What a file may write where a number, a bool or text is asked for."""

import pytest
from pydantic import Field

from doge_lab.errors import UserError, shortened
from doge_lab.strict import Strict, number, validate


class Everything(Strict):
    """One field of each kind, as blocks and tasks declare them."""

    n: int = 1
    x: float = 1.0
    flag: bool = False
    sizes: tuple[int, ...] = ()
    maybe: int | None = None
    name: str = ""


@pytest.mark.parametrize(
    "written",
    [
        {"n": True},
        {"n": False},
        {"x": True},
        {"sizes": [1, True]},
        {"maybe": False},
        {"name": True},
        {"name": 3},
        {"flag": 1},
        {"flag": 0.0},
        {"flag": "false"},
        {"flag": "yes"},
        {"n": 1.5},
        {"n": "four"},
        {"n": "1_000"},
        {"x": "nan"},
        {"x": "1e999"},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_one_line(written):
    with pytest.raises(UserError) as error:
        validate(Everything, written)
    (name,) = written
    assert str(error.value).startswith(name)
    assert "function" not in str(error.value)


def test_what_yaml_reads_as_a_bool_is_said():
    with pytest.raises(UserError, match=r"n: .*False; YAML reads yes, no, on and off as true and false"):
        validate(Everything, {"n": False})


def test_one_mistake_in_a_list_is_counted_once():
    class Listed(Strict):
        parts: tuple[Everything, ...] = Field(min_length=1)

    with pytest.raises(UserError, match=r"^parts.0.n: .*true and false$"):
        validate(Listed, {"parts": [{"n": True}]})
    with pytest.raises(UserError, match=r"^parts.0.n: .*\(and 2 more\)$"):
        validate(Listed, {"parts": [{"n": True, "x": True}, {"flag": 1}]})


def test_text_may_write_a_number():
    read = validate(Everything, {"n": "1e3", "x": "1e-3", "sizes": ["2", 4.0], "maybe": "8"})
    assert (read.n, read.x, read.sizes, read.maybe) == (1000, 1e-3, (2, 4), 8)
    assert all(type(value) is int for value in (read.n, read.maybe, *read.sizes))
    assert validate(Everything, {"x": 3}).x == 3.0


@pytest.mark.parametrize(
    ("written", "expected"),
    [("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("-5", -5), ("+2.", 2.0), (7, 7), (0.5, 0.5)]
    + [(value, None) for value in (True, None, "", "yes", "0x10", "1_0", "٣", "1e999", float("inf"), [1], "9" * 5000)],
)
def test_number(written, expected):
    assert number(written) == expected
    assert type(number(written)) is type(expected)


@pytest.mark.parametrize("long", ["x" * 10_000, ["word"] * 10_000, 10**10_000, {"a": 10**10_000}], ids=type)
def test_nothing_long_is_repeated_whole(long):
    assert len(shortened(long)) < 130
