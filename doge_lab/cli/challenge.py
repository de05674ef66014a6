"""`doge-lab challenge`: where a new block stands among the blocks of the shelf."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_lab.cli.options import facts_alone, in_range, look_here, print_json, wide_console
from doge_lab.cli.training import add_training, train, writing_to

if TYPE_CHECKING:
    from doge_lab.challenge.frame import Frame
    from doge_lab.challenge.newcomer import Newcomer
    from doge_lab.experiment.config import Arm

NEAREST = 3
"""Rivals trained anew by --quick."""


def add(commands: Any) -> None:
    parser = commands.add_parser("challenge", help="a new block against the shelf", description=__doc__)
    parser.add_argument("block", metavar="package.module:Class|FILE.py|NAME", help="the challenger")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--quick", action="store_true", help="two tasks, the nearest rivals trained anew, the rest as stored (default)"
    )
    mode.add_argument("--full", action="store_true", help="every task, the whole shelf, larger models: for a GPU")
    parser.add_argument(
        "--rivals", type=int, help=f"rivals to train beside it, the nearest in cost (default {NEAREST}; --full: all)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of the block (repeatable)"
    )
    parser.add_argument("--allow-faults", action="store_true", help="let checks pass that the block declares as faults")
    add_training(parser, "results/challenge-BLOCK")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.challenge.frame import Frame
    from doge_lab.challenge.newcomer import failures, load
    from doge_lab.challenge.standing import standing
    from doge_lab.experiment.config import arms_of
    from doge_lab.yamlfile import with_overrides

    in_range("--rivals", options.rivals, 0, 1000)
    look_here()
    with facts_alone():
        newcomer = load(options.block, with_overrides({}, options.set))
        options.allow_import = [newcomer.package] if newcomer.package else []
        frame = Frame(newcomer.kind, "full" if options.full else "quick")
        (arm,) = arms_of(frame.experiment({newcomer.name: newcomer.written}))
        said = failures(newcomer, arm.run, allow_faults=options.allow_faults)
    if said:
        return _refuse(newcomer, said, as_json=options.json)
    out = options.out or Path("results") / newcomer.folder
    rivals = _rivals(newcomer, arm, frame, options.rivals)
    experiment = frame.experiment({newcomer.name: newcomer.written, **dict(zip(rivals, rivals, strict=True))})
    result, code = train(experiment, out, options)
    if code:
        return code
    stored = frame.stored()
    facts = {
        "block": newcomer.written,
        "kind": newcomer.kind,
        "name": newcomer.name,
        "mode": frame.mode,
        "frame": frame.written(),
        "code": result["code"],
        "stored_code": stored["code"] if stored else None,
        "device": options.device,
        **standing(
            result, newcomer.name, stored, clock="cpu_seconds" if options.device.startswith("cpu") else "seconds"
        ),
    }
    _write(facts, out)
    if options.json:
        print_json({"page": str(out / "challenge.html"), **facts})
    else:
        _print(facts, out)
    return 0 if all(cell["bits"] for cell in facts["rows"][0]["tasks"].values()) else 1


def _rivals(newcomer: "Newcomer", arm: "Arm", frame: "Frame", count: int | None) -> list[str]:
    """Those that are trained beside the challenger: by cost, before anything is trained."""
    from doge_lab.challenge.standing import nearest
    from doge_lab.experiment.result import costs

    others = [each for each in frame.priced() if not (newcomer.of_the_shelf and each["name"] == newcomer.name)]
    if count is None and frame.mode == "quick":
        count = NEAREST
    return nearest({"cost": costs(arm)}, others, count)


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

    with writing_to(out):
        write_text_atomically(out / "challenge.json", json.dumps(facts, indent=1, allow_nan=False) + "\n")
        write_text_atomically(out / "challenge.html", page(facts))


def _print(facts: dict[str, Any], out: Path) -> None:
    from doge_lab.report.challenge import summary, table

    console = wide_console()
    console.print(table(facts))
    for line in summary(facts):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"Page: {out / 'challenge.html'}", highlight=False, soft_wrap=True)
