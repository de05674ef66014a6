"""What the blocks of the shelf come to in the frames of `doge-lab challenge --quick`: the records it compares with.

    python benchmarks/shelf.py                       the whole shelf, about half an hour on two cores
    python benchmarks/shelf.py --only NAME ...       these blocks; what is stored of the others stays
    python benchmarks/shelf.py --result KIND FILE    take what `doge-lab compare` already trained

Writes doge_lab/challenge/shelf_sequence.json and shelf_state.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doge_lab import challenge, registry
from doge_lab.challenge.frame import Frame, slim
from doge_lab.cli.options import devices
from doge_lab.experiment.result import result_of
from doge_lab.experiment.runner import Runner
from doge_lab.files import write_text_atomically

FOLDER = Path(challenge.__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--result", nargs=2, metavar=("KIND", "FILE"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    if options.result:
        kind, path = options.result
        store(Frame(kind, "quick"), json.loads(Path(path).read_text(encoding="utf-8")))
        return
    for kind in registry.KINDS:
        frame = Frame(kind, "quick")
        names = [name for name in frame.shelf() if not options.only or name in options.only]
        if names:
            store(frame, trained(frame, names, options.out / f"shelf_{kind}", options.workers))


def trained(frame: Frame, names: Sequence[str], out: Path, workers: int | None) -> dict[str, Any]:
    """The result of these blocks; what lies in `out` already is not trained again."""
    experiment = frame.experiment(dict(zip(names, names, strict=True)))
    runner = Runner(experiment, out, devices("cpu", workers), on_change=_show)
    return result_of(experiment, runner.run())


def store(frame: Frame, result: dict[str, Any]) -> None:
    """Put a result in place of what is stored of its blocks."""
    fresh = slim(result, frame)
    names = {arm["name"] for arm in fresh["arms"]}
    kept = [arm for arm in (frame.stored() or {"arms": []})["arms"] if arm["name"] not in names]
    fresh["arms"] = sorted([*fresh["arms"], *kept], key=lambda arm: str(arm["name"]))
    path = FOLDER / f"shelf_{frame.kind}.json"
    write_text_atomically(path, json.dumps(fresh, allow_nan=False, separators=(",", ":")) + "\n")
    print(f"{path}: {len(fresh['arms'])} blocks, {path.stat().st_size:,} bytes")


def _show(runner: Runner) -> None:
    print(f"\r{runner.done} of {runner.total} runs", end="", flush=True)


if __name__ == "__main__":
    main()
