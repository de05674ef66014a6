"""`doge-lab challenge`: where a new block stands among the blocks of the shelf."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_lab.cli.options import look_here, print_json, wide_console
from doge_lab.cli.training import INTERRUPTED, add_training, train
from doge_lab.errors import UserError

if TYPE_CHECKING:
    from doge_lab.challenge.frame import Frame
    from doge_lab.challenge.newcomer import Newcomer
    from doge_lab.experiment.config import Experiment


def add(commands: Any) -> None:
    parser = commands.add_parser("challenge", help="a new block against the shelf", description=__doc__)
    parser.add_argument("block", metavar="package.module:Class|FILE.py|NAME", help="the challenger")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--quick", action="store_true", help="two tasks, the nearest rivals trained anew, the rest as stored (default)"
    )
    mode.add_argument("--full", action="store_true", help="every task, the whole shelf, larger models: for a GPU")
    parser.add_argument("--rivals", type=int, help="how many rivals to train beside it (default 3; --full: all)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the block (repeatable)"
    )
    parser.add_argument("--allow-faults", action="store_true", help="let checks pass that the block declares as faults")
    add_training(parser, "results/challenge-BLOCK")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab import registry
    from doge_lab.challenge.frame import Frame
    from doge_lab.challenge.newcomer import load
    from doge_lab.challenge.standing import standing
    from doge_lab.yamlfile import with_overrides

    look_here()
    newcomer = load(options.block, with_overrides({}, options.set))
    frame = Frame(newcomer.kind, "full" if options.full else "quick")
    options.allow_import = [newcomer.package] if newcomer.package else []
    for package in options.allow_import:
        registry.allow_import(package)
    experiment = _experiment(newcomer, frame, options)
    if said := _failed(newcomer, experiment, options):
        return _refuse(newcomer, said, as_json=options.json)
    out = options.out or Path("results") / f"challenge-{newcomer.name}"
    result, interrupted = train(experiment, out, options)
    facts = {
        "block": newcomer.written,
        "kind": newcomer.kind,
        "name": newcomer.name,
        "mode": frame.mode,
        "frame": frame.written(),
        "code": result["code"],
        **standing(result, newcomer.name, frame.stored()),
    }
    if interrupted:
        print(INTERRUPTED)
        return 130
    _write(facts, out)
    if options.json:
        print_json({"page": str(out / "challenge.html"), **facts})
    else:
        _print(facts, out)
    return 0


def _experiment(newcomer: "Newcomer", frame: "Frame", options: argparse.Namespace) -> "Experiment":
    """The challenger and the rivals that are trained beside it, chosen by cost before anything is trained."""
    from doge_lab.challenge.standing import nearest
    from doge_lab.experiment.config import arms_of
    from doge_lab.experiment.result import costs

    if options.rivals is not None and options.rivals < 0:
        raise UserError(f"must be at least 0, not {options.rivals}", "--rivals")
    stored = frame.stored()
    names = [name for name in frame.shelf() if not (newcomer.of_the_shelf and name == newcomer.name)]
    if stored is not None:
        (arm,) = arms_of(frame.experiment({newcomer.name: newcomer.written}))
        known = [each for each in stored["arms"] if each["name"] in names]
        names = nearest({"cost": costs(arm)}, known, 3 if options.rivals is None else options.rivals)
    elif options.rivals is not None:
        names = names[: options.rivals]
    return frame.experiment({newcomer.name: newcomer.written, **dict(zip(names, names, strict=True))})


def _failed(newcomer: "Newcomer", experiment: "Experiment", options: argparse.Namespace) -> list[str]:
    from doge_lab.challenge.newcomer import failures
    from doge_lab.experiment.config import arms_of

    run = next(arm.run for arm in arms_of(experiment) if arm.name == newcomer.name)
    return failures(newcomer, run, allow_faults=options.allow_faults)


def _refuse(newcomer: "Newcomer", said: list[str], *, as_json: bool) -> int:
    """A block that breaks the contract is not compared: a leak would win everything."""
    if as_json:
        print_json({"name": newcomer.name, "failed_checks": said})
    else:
        print(f"{newcomer.name} does not keep the contract, so it is not compared:")
        print("\n".join(f"  {line}" for line in said))
        print("`doge-lab check` shows every check; docs/blocks.md says what they ask.")
    return 1


def _write(facts: dict[str, Any], out: Path) -> None:
    from doge_lab.files import write_text_atomically
    from doge_lab.report.challenge import page

    write_text_atomically(out / "challenge.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
    write_text_atomically(out / "challenge.html", page(facts))


def _print(facts: dict[str, Any], out: Path) -> None:
    from doge_lab.report.challenge import summary, table

    console = wide_console()
    console.print(table(facts))
    for line in summary(facts):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"Page: {out / 'challenge.html'}", highlight=False, soft_wrap=True)
