"""The one exception that a user is meant to read, and how any other is told in one line."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something the user wrote cannot be used: the message says what, the rule, and the way out, on one line.

    `path` is the place inside what was written, such as `model.layers.0.sequence`; outer callers prepend to it.
    """

    def __init__(self, message: str, path: str = "", file: str = "") -> None:
        super().__init__(message)
        self.message = cut(message, 1000)
        self.path = path
        self.file = file

    def __str__(self) -> str:
        return ": ".join(part for part in (cut(self.file, 300), cut(self.path, 200), self.message) if part)

    def under(self, path: str) -> "UserError":
        """The same error, found below `path`."""
        return type(self)(self.message, ".".join(part for part in (path, self.path) if part), self.file)


class Conflict(UserError):
    """Options that break a rule between them, each of which is right with others."""


@contextmanager
def in_file(file: Path) -> Iterator[None]:
    """Errors about a place inside `file` name the file; those about an option of the command line do not."""
    try:
        yield
    except UserError as error:
        if error.file or error.path.startswith("--"):
            raise
        raise UserError(error.message, error.path, str(file)) from None


def cut(text: str, most: int) -> str:
    """`text` without its middle where it is longer: how it begins, and the way out at its end."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 3 :]}"


def shortened(value: Any, limit: int = 60) -> str:
    """What the user wrote, as a message repeats it: quoted as Python quotes it, and cut where it is long."""
    try:
        text = repr(value[:limit] + "..." if isinstance(value, str) and len(value) > limit else value)
    except ValueError:
        return "a number of thousands of digits"  # which Python does not write out
    return text if len(text) <= 2 * limit else text[:limit] + "..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'attention'?` when `word` is close to a known name, else the known names."""
    close = difflib.get_close_matches(word[:100], known, n=1)  # a long word takes the square of its length
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


LONGEST = 300
"""Characters of another library's message that are kept."""


def one_line(error: BaseException, *, named: bool = True) -> str:
    """Any exception in one bounded line, whatever it does when it is asked for its message.

    `named` puts the exception's type in front, which an assertion that speaks for itself does not need.
    """
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":  # torch's own, of a GPU
        name = "out of memory"
    try:
        said = str(error)[: 10 * LONGEST].strip().splitlines()[:1]
    except BaseException as another:
        said = [f"its message cannot be read ({type(another).__name__})"]
    words = ": ".join([name, *said] if named or not said else said)
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in words)
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
