"""One plain training loop: deterministic from its arguments, resumable, the same on a CPU and a GPU.

A checkpoint is one safetensors file, replaced whole: weights, optimiser state and, in its header, the step. The
batch of a step is a function of the step, so nothing else has to be remembered.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from doge_lab.model import CausalLM
from doge_lab.optim import TrainConfig, build_optimizer, lr_at
from doge_lab.tasks import Batch, Predict, TaskData
from doge_lab.tasks.base import IGNORE

CHECKPOINT_SECONDS = 30.0
CURVE_POINTS = 40


class Diverged(RuntimeError):
    """The loss stopped being a number. A result about the model, not a fault of the lab."""


@dataclass(frozen=True)
class StepReport:
    """One point of the curve: `loss` in nats per answer (auxiliary losses apart), seconds since the loop began."""

    step: int
    steps: int
    loss: float
    aux_loss: float
    lr: float
    seconds: float


def train(
    model: CausalLM,
    data: TaskData,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    on_report: Callable[[StepReport], None] = lambda report: None,
) -> None:
    """Train `model` in place, on the device where it lies, continuing from `checkpoint` when that file exists.

    Raises `Diverged` when the loss is not finite: every report (about 40 a run) checks it.
    """
    optimizer = build_optimizer(model, config)
    start = load_checkpoint(checkpoint, model, optimizer) if checkpoint and checkpoint.exists() else 0
    every = max(1, config.steps // CURVE_POINTS)
    began = saved = time.monotonic()
    model.train()
    for step in range(start, config.steps):
        lr = lr_at(step, config)
        loss, aux_loss = _step(model, optimizer, data.batch(step, config.batch_size), config, lr)
        if step % every == 0 or step == config.steps - 1:
            now = time.monotonic()
            report = StepReport(step + 1, config.steps, loss.item(), aux_loss.item(), lr, now - began)
            if not math.isfinite(report.loss):
                raise Diverged(f"the loss is {report.loss} at step {step + 1} of {config.steps}")
            on_report(report)
            if checkpoint and now - saved > CHECKPOINT_SECONDS:
                save_checkpoint(checkpoint, model, optimizer, step + 1)
                saved = now
    model.eval()


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


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, optimiser state and step into one file, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    save_tensors(tensors, path, {"step": json.dumps(step)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote; returns how many steps were done."""
    with safe_open(path, "pt") as file:
        step = int(json.loads(file.metadata()["step"]))
    tensors = load_file(path)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, written beside its place and moved there, so that it is whole or absent."""
    beside = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, beside, metadata)
    beside.replace(path)
