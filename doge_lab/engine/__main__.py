"""`python -m doge_lab.engine PARENT --device cpu` is a worker process; the pool, which is process PARENT, starts it."""

import sys

from doge_lab.engine.fork_server import die_with


def main() -> None:
    die_with(int(sys.argv[1]))  # first: during the imports it would not see that its input has ended
    from doge_lab.engine import worker

    worker.main(sys.argv[2:])


main()
