"""One plain training loop: deterministic from its arguments, resumable, the same on a CPU and a GPU.

A checkpoint is one safetensors file, replaced whole: weights, optimiser state and, in its header, the progress. The
batch of a step is a function of the step, so nothing else has to be remembered.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.errors import UserError
from doge_lab.model import CausalLM
from doge_lab.optim import TrainConfig, build_optimizer, lr_at, shared_steps
from doge_lab.tasks import Batch, Predict, TaskData
from doge_lab.tasks.base import IGNORE

CHECKPOINT_SECONDS = 30.0
CURVE_POINTS = 40
_WAY_OUT = "delete it to train from the beginning; what the record holds stays"


class Diverged(RuntimeError):
    """The loss stopped being a number. A result about the model, not a fault of the lab."""


@dataclass(frozen=True)
class StepReport:
    """One point of the curve: `loss` in nats per answer (auxiliary losses apart), wall seconds of training so far."""

    step: int
    steps: int
    loss: float
    aux_loss: float
    lr: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what it took over its sessions: wall and CPU seconds.

    Of a session that was interrupted, those up to its last checkpoint.
    """

    step: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def since(self, began: "Progress", step: int) -> "Progress":
        """At `step`, when this one was reached before the clocks read `began`."""
        now = _clocks()
        wall, cpu = now.wall_seconds - began.wall_seconds, now.cpu_seconds - began.cpu_seconds
        return Progress(step, self.wall_seconds + wall, self.cpu_seconds + cpu)


def _clocks() -> Progress:
    return Progress(0, time.monotonic(), time.process_time())


def train(
    model: CausalLM,
    data: TaskData,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    start: Path | None = None,
    keep: Path | None = None,
    on_report: Callable[[StepReport], None] = lambda report: None,
) -> Progress:
    """Train `model` in place, on the device where it lies, continuing from `checkpoint` when that file exists.

    start: a checkpoint to begin from where there is none. keep: where the state is left at the last step that a longer
    training shares, if there is one.
    Raises `Diverged` when the loss is not finite: every report (about 40 a run) checks it.
    """
    optimizer = build_optimizer(model, config)
    first = checkpoint if checkpoint and checkpoint.exists() else start
    before = load_checkpoint(first, model, optimizer) if first else Progress()
    if before.step > config.steps:
        raise UserError(f"is at step {before.step} of {config.steps}; {_WAY_OUT}", file=str(first))
    every, shared = max(1, config.steps // CURVE_POINTS), shared_steps(config)
    began, saved = _clocks(), time.monotonic()
    model.train()
    for step in range(before.step, config.steps):
        lr = lr_at(step, config)
        loss, aux_loss = _step(model, optimizer, data.batch(step, config.batch_size), config, lr)
        if step % every == 0 or step == config.steps - 1:
            done = before.since(began, step + 1)
            report = StepReport(step + 1, config.steps, loss.item(), aux_loss.item(), lr, done.wall_seconds)
            for name, value in (("loss", report.loss), ("auxiliary loss", report.aux_loss)):
                if not math.isfinite(value):
                    raise Diverged(f"the {name} is {value} at step {step + 1} of {config.steps}")
            on_report(report)
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, model, optimizer, done)
                saved = time.monotonic()
        if keep and step + 1 == shared:
            save_checkpoint(keep, model, optimizer, before.since(began, step + 1))
    model.eval()
    return before.since(began, config.steps)


def _step(
    model: CausalLM, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig, lr: float
) -> tuple[Tensor, Tensor]:
    device = model.embed.weight.device
    inputs, targets = batch.inputs.to(device), batch.targets.to(device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    with _autocast(device, config):
        logits = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)
    aux_loss = sum((stats.loss for stats in model.collect_router_stats()), start=torch.zeros((), device=device))
    (loss + aux_loss).backward()
    if config.clip:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    model.after_step()
    return loss.detach(), aux_loss.detach()


def _autocast(device: torch.device, config: TrainConfig) -> contextlib.AbstractContextManager[Any]:
    if config.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def predictor(model: CausalLM) -> Predict:
    """The function that a task's `evaluate` asks: inputs [B, T] to logits [B, T, V], in float32."""
    device = model.embed.weight.device

    def predict(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(inputs.to(device))
        model.collect_router_stats()
        return logits

    return predict


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: Progress) -> None:
    """Write weights, optimiser state and progress into one file, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    save_tensors(
        tensors, path, {"progress": (progress := json.dumps(asdict(done))), "sha256": _digest(tensors, progress)}
    )


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore what `save_checkpoint` wrote; returns how far it was. Raises `UserError` when the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            written = file.metadata()
        tensors = load_file(path)
        if written["sha256"] != _digest(tensors, written["progress"]):
            raise ValueError("not what was written")
        done = Progress(**json.loads(written["progress"]))
        _restore(tensors, model, optimizer)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error}); {_WAY_OUT}", file=str(path)) from None
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = str(error).partition("\n")[0]
        raise UserError(f"is damaged ({type(error).__name__}: {said}); {_WAY_OUT}", file=str(path)) from None
    return done


def steps_in(path: Path) -> int:
    """How many steps a checkpoint has behind it. Raises `UserError` when it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return int(json.loads(file.metadata()["progress"])["step"])
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"is damaged ({type(error).__name__}); {_WAY_OUT}", file=str(path)) from None


def _restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _digest(tensors: dict[str, Tensor], progress: str) -> str:
    """SHA-256 of all that a checkpoint holds: a flipped bit would change the result in silence."""
    digest = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, written beside its place and moved there, so that it is whole or absent."""
    beside = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, beside, metadata)
    beside.replace(path)
