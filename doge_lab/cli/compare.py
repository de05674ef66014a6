"""`doge-lab compare`: architectures under one fair protocol, tuned on validation and scored on test."""

import argparse
from pathlib import Path
from typing import Any

from doge_lab.cli.options import add_overrides, consent, facts_alone, print_json, wide_console
from doge_lab.cli.training import add_training, train
from doge_lab.errors import UserError


def add(commands: Any) -> None:
    parser = commands.add_parser("compare", help="compare architectures fairly", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FILE.yaml|FOLDER", help="an experiment, or a search's folder")
    parser.add_argument("--candidates", type=int, default=10, help="most models of a search's front (default 10)")
    add_overrides(parser)
    add_training(parser, "results/NAME, or the search's folder/compare")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.experiment.candidates import load
    from doge_lab.experiment.result import RESULT
    from doge_lab.report.arms import arms_table, doubts

    consent(options)
    if options.candidates < 2:
        raise UserError(f"must be at least 2, not {options.candidates}", "--candidates")
    with facts_alone():
        candidates = load(options.source, options.set, most=options.candidates)
    folder = candidates.directory
    out = options.out or (folder / "compare" if folder else Path("results") / candidates.name)
    result, interrupted = train(candidates.experiment(), out, options)
    if options.json:
        print_json({"result": str(out / RESULT), **result})
    else:
        console = wide_console()
        console.print(arms_table(result))
        for line in doubts(result):
            console.print(line, markup=False, soft_wrap=True)
        console.print(f"Result: {out / RESULT}", highlight=False, soft_wrap=True)
    return 130 if interrupted else 0
