"""How bytes and words are broken for `fuzz.py`."""

import random
import re

NASTY = (
    *("yes", "no", "null", "~", "''", "-1", "0", "1.5", ".nan", ".inf", "1e999", "1:30", "0x1F", "2024-01-01"),
    *("9" * 5000, "-" + "9" * 60, "18446744073709551616", "x" * 3000, "é", "\u202e", "<<", "|", "#", "- - -", "%s%n"),
    *("[" * 600, "{a: " * 60, "&a [*a]", "*a", "{<<: 1}", "[1, [2, {a: 3}]]", "{choice: []}", "{int: [9, 1]}"),
    *("!!bool maybe", '!!int ""', "!!float x", "!!binary a", "!!timestamp x", "!!python/object/apply:os.system [x]"),
    *("{type: mlp}", "os:path", "../..", "a/b", "model"),
)
"""Values in the place of another: of other types, hostile to readers; none only large, which would train long."""
OPTIONS = ("--json", "--set", "--out", "--trials", "--workers", "--seed", "--device", "--threads", "--allow-import")
_VALUE = re.compile(r"[A-Za-z0-9_.+-]+")


def broken_bytes(whole: bytes, draw: random.Random, *, text: bool) -> tuple[bytes, str]:
    """The bytes with something broken in them, and what."""
    start = draw.randrange(len(whole))
    end = min(len(whole), start + draw.choice((1, 2, 8, 64)))
    kinds = ["flip", "flips", "cut", "remove", "repeat", "zero"] + ["value"] * 6 * text
    kind = draw.choice(kinds)
    said = f"{kind} at {start}"
    if kind == "flip":
        return whole[:start] + bytes([whole[start] ^ 1 << draw.randrange(8)]) + whole[start + 1 :], said
    if kind == "flips":
        flipped = bytearray(whole)
        for _ in range(20):
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        return bytes(flipped), said
    if kind == "cut":
        return whole[:start], said
    if kind == "remove":
        return whole[:start] + whole[end:], said
    if kind == "repeat":
        return whole[:end] + whole[start:end] + whole[end:], said
    if kind == "zero":
        return whole[:start] + bytes(end - start) + whole[end:], said
    found = draw.choice(list(_VALUE.finditer(whole.decode())))
    nasty = draw.choice(NASTY)
    before, after = whole.decode()[: found.start()], whole.decode()[found.end() :]
    return (before + nasty + after).encode(), f"{found[0]} -> {nasty[:40]}"


def broken_word(words: list[str], draw: random.Random) -> tuple[list[str], str]:
    """The words of a command, one of them (not the command) taken out, doubled, replaced or broken."""
    index = draw.randrange(1, len(words))
    word, nasty = words[index], draw.choice(NASTY)
    name, equals, _ = word.partition("=")
    other = draw.choice((
        [],
        [word, word],
        [nasty],
        [f"{name}={nasty}" if equals else nasty],
        [f"{name}={nasty}" if equals else f"{word}{nasty}"],
        [word.replace(".", "..", 1)],
        [nasty + equals + word],
        [draw.choice(OPTIONS), word],
        [word, draw.choice(OPTIONS), nasty],
    ))  # fmt: skip
    return [*words[:index], *other, *words[index + 1 :]], f"{word} -> {' '.join(other)[:40]}"
