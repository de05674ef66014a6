"""The command `doge-lab`. One file per command; each imports what it needs when it runs, so that --help is quick."""

from collections.abc import Sequence

from doge_lab import signals


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 a check failed, 2 unusable input, 128 + n after signal n.

    Without `words` it is the program itself, and hears the signals before anything else is imported.
    """
    if words is None:
        signals.take_over()
    try:
        from doge_lab.cli.program import run

        return run(words)
    finally:
        signals.end_if_stopped()
