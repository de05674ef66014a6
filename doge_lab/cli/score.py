"""`doge-lab score`: score weights that were trained elsewhere, without training."""

import argparse
from pathlib import Path
from typing import Any

from doge_lab.cli.options import add_file, add_json, consent, facts_alone, print_json
from doge_lab.cli.train import print_scores
from doge_lab.errors import UserError, in_file


def add(commands: Any) -> None:
    parser = commands.add_parser("score", help="score weights trained elsewhere", description=__doc__)
    add_file(parser, "a run file: the model and the tasks to score it on")
    parser.add_argument("--weights", type=Path, required=True, help="a safetensors file with the model's weights")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.config import load
    from doge_lab.run import torch_device
    from doge_lab.scoring import score

    consent(options)
    torch_device(options.device)
    with in_file(options.file):
        run = load(options.file, options.set).resolved()
        if not run.tasks:
            raise UserError("there is nothing to score; add tasks, such as `tasks: [{type: capacity}]`", "tasks")
    with facts_alone():
        metrics = score(run, options.weights, device=options.device)
    facts = {
        "name": run.name,
        "weights": str(options.weights),
        "trained": "elsewhere",
        "seed": run.seed,
        "seeds": 1,
        "cost": run.cost().dump(),
        "tasks": metrics,
    }
    if options.json:
        print_json(facts)
    else:
        print_scores(facts, f"Trained elsewhere ({options.weights}); one set of weights, so no interval.")
    return 0
