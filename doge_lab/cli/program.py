"""The commands, their parser, and what becomes of the exceptions that end them."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from doge_lab import signals
from doge_lab.cli import (
    blocks,
    challenge,
    check,
    compare,
    describe,
    output,
    report,
    rerun,
    scale,
    schema,
    score,
    search,
    tasks,
    train,
)
from doge_lab.errors import UserError, cut

COMMANDS = (blocks, tasks, describe, check, train, score, rerun, search, compare, scale, challenge, report, schema)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {cut(' '.join(message.split()), 500)} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="doge-lab",
        description="How few bytes of cache can a language model keep while knowing as many facts?",
        epilog="Start with: doge-lab search search_spaces/cache_vs_knowledge.yaml",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def run(words: Sequence[str] | None) -> int:
    """Run a command; returns its exit code."""
    output.accept_any_text()
    options = build_parser().parse_args(words)
    try:
        code = int(options.run(options))
        output.flush()
        return code
    except UserError as error:
        print(f"doge-lab: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"doge-lab: not enough memory: {error}; make tables, sequences or batches smaller", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        signals.tell(stopped)
        return signals.exit_code(stopped)
    except BrokenPipeError:
        output.discard()
        return 0  # the reader of our output has seen enough
    except OSError as error:  # any file or output that cannot be read or written and that no command tells better
        output.discard()
        said = UserError(error.strerror or str(error), file=str(error.filename or "output"))
        print(f"doge-lab: {said}", file=sys.stderr)
        return 2
