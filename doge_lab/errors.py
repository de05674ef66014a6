"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user wrote cannot be used: the message says what, the rule, and the way out, on one line.

    `path` is the place inside the user's file, such as `model.layers.0.sequence`; outer callers prepend to it.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def under(self, path: str) -> "UserError":
        """The same error, found below `path`."""
        return UserError(self.message, ".".join(part for part in (path, self.path) if part))


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean 'attention'?` when `word` is close to a known name, else the known names."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
