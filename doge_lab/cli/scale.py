"""`doge-lab scale`: does the order of candidates at a small size hold at a larger one?"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_lab.cli.options import facts_alone, print_json, wide_console
from doge_lab.cli.training import add_source, add_training, read_source, train, writing_to
from doge_lab.errors import UserError

FACTORS = {"cpu": [1.0, 3.0], "cuda": [1.0, 10.0, 100.0]}


def add(commands: Any) -> None:
    parser = commands.add_parser("scale", help="does the small predict the large?", description=__doc__)
    add_source(parser, most=5)
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        metavar="F",
        help="sizes, times the candidates' own (default 1 3; on a GPU 1 10 100); the cost grows with their square",
    )
    add_training(parser, "the search's folder/scale, or results/NAME-scale")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.files import write_text_atomically
    from doge_lab.scale.agreement import SCALE, facts_of
    from doge_lab.scale.sizes import experiment_of

    factors = _factors(options)
    candidates = read_source(options)
    with facts_alone():
        if len(candidates.runs) < 2:
            raise UserError(f"holds {len(candidates.runs)} candidate; an order takes two", str(options.source))
        experiment = experiment_of(candidates, factors)
    folder = candidates.directory
    out = options.out or (folder / "scale" if folder else Path("results") / str(experiment.name))
    result, code = train(experiment, out, options)
    if code:
        return code  # half an order predicts nothing
    facts = {"source": str(options.source), **facts_of(result, list(candidates.runs), factors)}
    path = (folder or out) / SCALE
    with writing_to(path.parent):
        write_text_atomically(path, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    if options.json:
        print_json({"scale": str(path), **facts})
    else:
        _print(facts)
        print(f"Result: {path}")
    return 0


def _factors(options: argparse.Namespace) -> list[float]:
    written = options.factors or FACTORS["cuda" if options.device.startswith("cuda") else "cpu"]
    factors = sorted({float(f"{factor:g}") for factor in written})  # as their names write them
    if len(factors) < 2 or not all(1 <= factor <= 1000 for factor in factors):
        raise UserError(f"need two different sizes from 1 to 1000, not {' '.join(map(str, written))}", "--factors")
    return factors


def _print(facts: Mapping[str, Any]) -> None:
    from doge_lab.report.arms import arms_table
    from doge_lab.report.scale import scale_lines

    console = wide_console()
    console.print(arms_table(facts["result"]))
    for line in scale_lines(facts):
        console.print(line, markup=False, soft_wrap=True)
