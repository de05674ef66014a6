"""`doge-lab search`: search a space for the Pareto front of measured bytes against measured bits."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_lab import signals
from doge_lab.cli.options import add_file, add_json, consent, devices, in_range, print_json, wide_console
from doge_lab.cli.training import add_job_timeout

if TYPE_CHECKING:
    from doge_lab.search.coordinator import Coordinator
    from doge_lab.search.front import Trial

PHASES = {
    "check": "checking that every block of the space keeps the contract",
    "audit": "looking at the trained models of the front again",
    "confirm": "training the front again on fresh test data",
}


def add(commands: Any) -> None:
    parser = commands.add_parser("search", help="search a space", description=__doc__)
    add_file(parser, "a search space")
    parser.add_argument("--trials", type=int, help="candidates to train (default: what the space says)")
    parser.add_argument("--workers", type=int, help="processes that train (default: a core or a GPU each)")
    parser.add_argument("--out", type=Path, help="folder of the study and the report (default: results/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler and of the candidates (default 0)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda (all GPUs), cuda:1 ...")
    parser.add_argument("--resume", action="store_true", help="continue the search in --out")
    parser.add_argument(
        "--skip-failing", action="store_true", help="leave out blocks that fail the contract instead of stopping"
    )
    add_job_timeout(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from doge_lab.search.config import load_space
    from doge_lab.search.coordinator import Coordinator
    from doge_lab.search.study import writing_to

    consent(options)
    in_range("--seed", options.seed, 0, 2**31 - 1)
    trials = [f"search.trials={options.trials}"] if options.trials is not None else []
    space = load_space(options.file, [*options.set, *trials])
    out = options.out or Path("results") / space.name
    search = Coordinator(
        space,
        out,
        devices(options.device, options.workers),
        seed=options.seed,
        resume=options.resume,
        allow_import=options.allow_import,
        skip_failing=options.skip_failing,
        job_timeout=options.job_timeout,
    )
    try:
        _watched(search, quiet=options.json)
    except KeyboardInterrupt as stopped:
        if search.phase == "check":
            raise
        signals.tell(stopped, "what is finished is kept; --resume continues")
        _finish(search, options)
        return signals.exit_code(stopped)
    with writing_to(out):
        return _finish(search, options)


def _watched(search: "Coordinator", *, quiet: bool) -> None:
    """Run the search under the live view."""
    from rich.console import Console

    from doge_lab.report.live import LiveFront

    console = Console(stderr=True, quiet=quiet)
    with LiveFront(search.space.search.objectives, search.space.search.trials, console=console) as view:
        trials: tuple[Trial, ...] = ()
        seen = -1

        def show(search: "Coordinator") -> None:
            nonlocal trials, seen
            if search.phase != "check" and search.changes != seen:
                trials, seen = search.results().trials, search.changes
            training = ", ".join(f"trial {number}: {note}" for number, note in search.notes.items() if number >= 0)
            view.update(
                trials,
                running=sum(trial.state == "running" for trial in trials),
                note=PHASES.get(search.phase, training),
            )

        search.on_change = show
        search.run()


def _finish(search: "Coordinator", options: argparse.Namespace) -> int:
    """Write the report and say what was found. The exit code: 1 when no trial was completed."""
    from doge_lab.report import write_report
    from doge_lab.report.honesty import outdated_lines
    from doge_lab.report.pairs import warnings
    from doge_lab.report.table import front_table

    results = search.results()
    written = write_report(results, search.directory)
    if options.json:
        print_json(
            {
                "directory": str(search.directory),
                "report": str(written["report.html"]),
                "trials": {
                    state: sum(trial.state == state for trial in results.trials)
                    for state in ("complete", "rejected", "failed", "running")
                },
                "failures": results.failures,
                "ended_early": results.ended_early,
                "front": json.loads(written["front.json"].read_text(encoding="utf-8")),
                "struck": json.loads(written["struck.json"].read_text(encoding="utf-8")),
            }
        )
        return int(not results.candidates)
    console = wide_console()
    if results.candidates:
        console.print(front_table(results))
    else:
        console.print("No sound model was trained, so there is no front.")
    ended = f"The search ended early: {results.ended_early}." if results.ended_early else ""
    failed = [f"{count} trials failed: {reason}" for reason, count in results.failures.items()]
    for line in filter(None, (*outdated_lines(results), *warnings(results), *failed, ended)):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"Report: {written['report.html']}", highlight=False, soft_wrap=True)
    return int(not results.candidates)
