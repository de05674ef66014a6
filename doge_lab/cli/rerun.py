"""`doge-lab rerun`: repeat a recorded run and say whether it agrees."""

import argparse
from pathlib import Path
from typing import Any

from doge_lab.cli.options import add_json, consent, print_json


def add(commands: Any) -> None:
    parser = commands.add_parser("rerun", help="repeat a recorded run", description=__doc__)
    parser.add_argument("record", type=Path, metavar="RECORD", help="a run's folder, or its record.jsonl")
    parser.add_argument("--out", type=Path, help="folder of the new run (default: RUN-rerun beside it)")
    parser.add_argument("--device", help="cpu, cuda ... (default: the recorded one)")
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="consent to importing blocks that the record names as PACKAGE.module:Class (repeatable)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.rerun import load, repeat

    consent(options)
    recorded = load(options.record)
    folder = recorded.folder.resolve()
    out = options.out or folder.with_name(f"{folder.name}-rerun")
    with _bar(quiet=options.json) as bar:
        shown = bar.add_task(recorded.task.label, total=None)
        verdict = repeat(
            recorded,
            out,
            device=options.device or recorded.device,
            on_report=lambda point: bar.update(shown, completed=point.step, total=point.steps),
        )
    if options.json:
        facts = {"agrees": verdict.agrees, "exact": verdict.exact, "differences": verdict.differences}
        print_json({**facts, "setup_differs": verdict.setup, "bits": verdict.bits, "out": str(out)})
    else:
        print(_sentence(verdict.agrees, verdict.exact, verdict.differences))
        if verdict.setup:
            print(f"Not the same as recorded: {', '.join(verdict.setup)}.")
        print(f"bits: {verdict.bits[0]} recorded, {verdict.bits[1]} now. New run: {out}")
    return 0 if verdict.agrees else 1


def _sentence(agrees: bool, exact: bool, differences: list[str]) -> str:
    asked = "to the bit" if exact else "within the task's interval, or 5 % where it has none"
    return f"Agrees {asked}." if agrees else f"Differs (asked to agree {asked}): {', '.join(differences)}."


def _bar(*, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, quiet=quiet)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
