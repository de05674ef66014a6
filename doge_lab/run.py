"""One run: one task, one model trained from scratch, one folder with its record.

FOLDER/record.jsonl        what happened, as `doge_lab.record` says
FOLDER/model.safetensors   the trained weights
FOLDER/checkpoint.safetensors   while it runs, for runs that take longer than half a minute
FOLDER/continue.safetensors     what a longer training may go on from (`doge_lab.stored`)
"""

import contextlib
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from doge_lab import digest
from doge_lab.config import RunConfig
from doge_lab.determinism import deterministic
from doge_lab.errors import UserError
from doge_lab.identity import Source, identity, source
from doge_lab.model import CausalLM
from doge_lab.optim import TrainConfig
from doge_lab.record import Writer
from doge_lab.stored import CHECKPOINT, CONTINUE, WEIGHTS, Events, set_aside, stored
from doge_lab.tasks import Metrics, ScoredOn, Task, TaskData
from doge_lab.train import Diverged, StepReport, predictor, save_tensors, steps_in, train

PACKAGES = ("torch", "numpy", "einx", "transformers", "optuna", "pydantic", "sentencepiece")
"""Their versions go into the record, where they are installed."""

OnReport = Callable[[StepReport], None]
Accept = Callable[[CausalLM, TaskData], None]
"""Looks at a trained model before it counts as one; raises `BreaksContract`."""


class BreaksContract(RuntimeError):
    """A trained model does not keep a promise of the contract. A result about its blocks, not a fault of the lab."""


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    """Memory that is out is a `MemoryError`, whatever PyTorch calls it: no fault of a block."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in said or "not enough memory" in said:
            raise MemoryError(said) from None
        raise


@_memory_told()
def execute(
    run: RunConfig,
    task: Task,
    folder: Path,
    *,
    scored_on: ScoredOn = "test",
    device: str = "cpu",
    on_report: OnReport = lambda report: None,
    accept: Accept = lambda model, data: None,
) -> dict[str, Any]:
    """Train and score the resolved `run` on one of its tasks; returns the record's last event.

    A folder that holds this very run finished is read, not run again; unfinished, it is continued from its
    checkpoint. What other code computed is set aside and trained again: the event then says why (`replaces`). A longer
    training goes on from a shorter one of this run where the schedule allows it.
    Raises `UserError` when the folder holds another run, `Diverged` when the loss stops being a number,
    `BreaksContract` when `accept` does.
    """
    computed_by, config = source(run, task), run.train_config(task)
    before = stored(folder, asked(run, task, scored_on), computed_by, config)
    if finished := _finished(folder, before.events):
        return finished
    if before.aside:
        set_aside(folder, forget=before.start is None)
    folder.mkdir(parents=True, exist_ok=True)
    data = task.data(seed=run.seed, scored_on=scored_on)
    cost = run.cost()
    write = Writer(folder)
    facts = {**asked(run, task, scored_on), "task": task.label, "data_hash": data.data_hash(), "cost": cost.dump()}
    continues = {"continues": steps_in(before.start)} if before.start else {}
    write("start", **facts, **continues, **_provenance(computed_by, device), config=run.dump())
    model = CausalLM.build(run.model, seed=run.seed, device=torch_device(device))
    try:
        metrics, took = _trained_and_scored(model, data, config, folder, write, on_report, before.start)
        accept(model, data)
    except (Diverged, BreaksContract) as error:
        write("failed", reason=str(error), **({"contract": _contract()} if isinstance(error, BreaksContract) else {}))
        raise
    metrics |= per_parameter(metrics, cost.params, cost.active_params)
    save_tensors(model.state_dict(), folder / WEIGHTS)
    end = write("end", metrics=metrics, **took, **({"replaces": before.replaces} if before.replaces else {}))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return end


def _trained_and_scored(
    model: CausalLM,
    data: TaskData,
    config: TrainConfig,
    folder: Path,
    write: Writer,
    on_report: OnReport,
    start: Path | None,
) -> tuple[Metrics, dict[str, Any]]:
    """The scores, and what the record's end says besides: what it took, and whether it can be repeated to the bit."""

    def report(point: StepReport) -> None:
        write("report", step=point.step, loss=point.loss, aux_loss=point.aux_loss, lr=point.lr, seconds=point.seconds)
        on_report(point)

    device = model.embed.weight.device
    with deterministic(device) as exceptions:
        files = {"checkpoint": folder / CHECKPOINT, "start": start, "keep": folder / CONTINUE}
        trained = train(model, data, config, on_report=report, **files)
        wall, cpu = time.monotonic(), time.process_time()
        metrics = data.evaluate(predictor(model))
    if not math.isfinite(metrics["bits"]):
        raise Diverged(f"the model's answers are not finite after {config.steps} steps")
    metrics["exposures"] = data.exposures(config.steps * config.batch_size)
    wall_seconds = trained.wall_seconds + time.monotonic() - wall
    facts = {
        "wall_seconds": wall_seconds,
        "cpu_seconds": trained.cpu_seconds + time.process_time() - cpu,
        "gpu_seconds": wall_seconds if device.type == "cuda" else 0.0,  # how long a GPU was held
        "deterministic": not exceptions,
    }
    because = {"because": f"no deterministic form of {', '.join(exceptions)}"} if exceptions else {}
    return metrics, {**facts, **because}


def asked(run: RunConfig, task: Task, scored_on: ScoredOn) -> dict[str, Any]:
    """What tells one run from another, whatever the source that computes it."""
    steps = run.train_config(task).steps
    return {"identity": identity(run, task), "steps": steps, "seed": run.seed, "scored_on": scored_on}


def _finished(folder: Path, events: Events) -> dict[str, Any] | None:
    """The last event of a run that came to its end, good or (raised) bad."""
    last = events[-1] if events else {"event": "none"}
    if last["event"] == "failed" and not last.get("contract"):
        raise Diverged(last["reason"])
    if last["event"] == "failed" and last["contract"] == _contract():  # else other checks have judged it
        raise BreaksContract(last["reason"])
    if last["event"] != "end" or not (folder / WEIGHTS).exists():
        return None
    return {name: fact for name, fact in last.items() if name != "replaces"}  # that was news when it was trained


def _contract() -> str:
    """Names the checks that judge a trained model."""
    return Source(digest.as_loaded(("doge_lab.testing",))).name


def torch_device(name: str) -> torch.device:
    """The device called `name`. Raises `UserError` when this machine has none such."""
    try:
        if torch.device(name).type not in ("cpu", "cuda"):
            raise RuntimeError("only these are supported")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name!r} cannot be used here ({reason}); use cpu, cuda or cuda:N", "--device"
        ) from None
    return device


def code_version() -> dict[str, Any]:
    """Version of doge_lab and, in a git checkout, its commit and whether files were changed since."""
    found: dict[str, Any] = {"doge_lab": metadata.version("doge-lab")}
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        try:
            found["commit"] = _git(root, "rev-parse", "HEAD")
            found["dirty"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            pass
    return found


def _git(root: Path, *words: str) -> str:
    asked = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10)
    return asked.stdout.strip()


def _provenance(computed_by: Source, device: str) -> dict[str, Any]:
    return {
        "source": computed_by.name,
        "modules": computed_by.modules,
        "code": code_version(),
        "packages": dict(_installed(PACKAGES)),
        "python": platform.python_version(),
        "machine": {"device": device, "processor": _processor(device)},
        "threads": torch.get_num_threads(),
    }


def _installed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _processor(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def per_parameter(metrics: Metrics, params: int, active_params: int) -> Metrics:
    """Bits per parameter and per active parameter, to stand beside `metrics`."""
    return {"bits_per_param": metrics["bits"] / params, "bits_per_active_param": metrics["bits"] / active_params}
