"""`doge-lab compare`: named architectures under one fair protocol, tuned on validation and scored on test."""

import argparse
from pathlib import Path
from typing import Any

from doge_lab.cli.options import add_file, consent, print_json, wide_console
from doge_lab.cli.training import INTERRUPTED, add_training, train


def add(commands: Any) -> None:
    parser = commands.add_parser("compare", help="compare named architectures fairly", description=__doc__)
    add_file(parser, "an experiment")
    add_training(parser, "results/NAME")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.experiment.config import load
    from doge_lab.experiment.result import RESULT
    from doge_lab.report.arms import arms_table, doubts

    consent(options)
    experiment = load(options.file, options.set)
    out = options.out or Path("results") / str(experiment.name)
    result, interrupted = train(experiment, out, options)
    if options.json:
        print_json({"result": str(out / RESULT), **result})
    else:
        console = wide_console()
        console.print(arms_table(result))
        for line in doubts(result):
            console.print(line, markup=False, soft_wrap=True)
        if interrupted:
            console.print(INTERRUPTED)
        console.print(f"Result: {out / RESULT}", highlight=False, soft_wrap=True)
    return 130 if interrupted else 0
