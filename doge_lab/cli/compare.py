"""`doge-lab compare`: architectures under one fair protocol, tuned on validation and scored on test."""

import argparse
from pathlib import Path
from typing import Any

from doge_lab.cli.options import print_json, wide_console
from doge_lab.cli.training import add_source, add_training, read_source, train


def add(commands: Any) -> None:
    parser = commands.add_parser("compare", help="compare architectures fairly", description=__doc__)
    add_source(parser, most=10)
    add_training(parser, "results/NAME, or the search's folder/compare")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.experiment.result import RESULT
    from doge_lab.report.arms import arms_table, doubts

    candidates = read_source(options)
    folder = candidates.directory
    out = options.out or (folder / "compare" if folder else Path("results") / candidates.name)
    result, code = train(candidates.experiment(), out, options)
    if options.json:
        print_json({"result": str(out / RESULT), **result})
    else:
        console = wide_console()
        console.print(arms_table(result))
        for line in doubts(result):
            console.print(line, markup=False, soft_wrap=True)
        console.print(f"Result: {out / RESULT}", highlight=False, soft_wrap=True)
    return code
