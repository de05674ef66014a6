"""What a batch of each task costs against a training step on it: data must not be what a run waits for.

    python benchmarks/tasks.py            under a minute
    python benchmarks/tasks.py --json     the same as JSON

Every task at its defaults, drawing fresh sequences, 64 of them; the model has two layers of attention and a perceptron,
32 wide. One thread, CPU time. Both sides take turns; times are medians, the ratio is the median of the ratios within a
round.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from doge_lab.model import CausalLM, ModelConfig
from doge_lab.optim import TrainConfig
from doge_lab.strict import validate
from doge_lab.tasks import Batch, Metrics, Predict, TaskData, get, names, parse
from doge_lab.train import train

SIZE = 64
ROUNDS = 9
STEPS = 2
"""Training steps of a round, all on its batch."""
LAYER = {"repeat": 2, "sequence": {"type": "attention", "n_heads": 2}, "state": "mlp"}


class Repeated(TaskData):
    """One batch, over and over, so that training times no generation."""

    def __init__(self, batch: Batch) -> None:
        self.shown = batch

    def batch(self, step: int, size: int) -> Batch:
        return self.shown

    def evaluate(self, predict: Predict) -> Metrics:
        raise NotImplementedError

    def exposures(self, sequences: int) -> float:
        return float(sequences)

    def data_hash(self) -> str:
        raise NotImplementedError


def measure(name: str) -> dict[str, Any]:
    """One row: a batch drawn and trained on in turn, after a round to warm up."""
    task = parse({"type": name, **({"n_train": None} if "n_train" in get(name).model_fields else {})})
    config = validate(ModelConfig, {"d_model": 32, "vocab_size": task.vocab_size, "layers": [LAYER]})
    model = CausalLM.build(config)
    task = task.sized_for(sum(parameter.numel() for parameter in model.parameters()))
    data = task.data(seed=0, scored_on="validation")
    taken: list[tuple[float, float]] = []
    for index in range(1 + ROUNDS):
        began = time.process_time()
        batch = data.batch(index, SIZE)
        drawn = time.process_time() - began
        done = train(model, Repeated(batch), TrainConfig(steps=STEPS, batch_size=SIZE))
        taken.append((drawn, done.cpu_seconds / STEPS))
    del taken[0]
    return {
        "task": name,
        "tokens": batch.inputs.shape[1],
        "batch_seconds": statistics.median(drawn for drawn, _ in taken),
        "step_seconds": statistics.median(step for _, step in taken),
        "batch_to_step": statistics.median(drawn / step for drawn, step in taken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name) for name in names()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| task | tokens | batch of 64, ms | training step, ms | batch / step |\n|---|---:|---:|---:|---:|")
    for row in rows:
        times = f"{1e3 * row['batch_seconds']:.2f} | {1e3 * row['step_seconds']:.1f} | {row['batch_to_step']:.3f}"
        print(f"| {row['task']} | {row['tokens']} | {times} |")


if __name__ == "__main__":
    main()
