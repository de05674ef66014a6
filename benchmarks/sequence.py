"""Every sequence block of the shelf against attention, side by side on one thread: training and decoding.

    python benchmarks/sequence.py            about a minute
    python benchmarks/sequence.py --json     the same as JSON

train: forward and backward of one block, CPU time. decode: one token after a cache filled with T - 1.
Contenders take turns; times are medians, ratios are medians of the ratios within a round.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from doge_lab import registry
from doge_lab.block import SequenceBlock

ROUNDS = 15
SHAPES = ((64, 32, 32), (32, 128, 64), (4, 1024, 128))
"""Batch, tokens, d_model: the default search, and two larger ones."""


def contenders(d_model: int) -> dict[str, SequenceBlock]:
    """Every block with its defaults, and the second form of those that have one."""
    variants: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in registry.names("sequence")}
    del variants["none"]
    variants["attention, 1 kv head"] = ("attention", {"n_kv_heads": 1})
    variants["inner_func_attn, hidden"] = ("inner_func_attn", {"cache": "hidden"})
    blocks = {}
    for label, (name, options) in variants.items():
        torch.manual_seed(0)
        block = registry.get("sequence", name)(d_model, **options)
        assert isinstance(block, SequenceBlock)
        blocks[label] = block
    return blocks


def training(block: SequenceBlock, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        y, _ = block(x)
        y.sum().backward()

    return run


def decoding(block: SequenceBlock, x: torch.Tensor) -> Callable[[], None]:
    cache = block.init_cache(batch=1, capacity=x.shape[1])
    with torch.inference_mode():
        block(x[:1, :-1], None, cache)
    cache.advance(x.shape[1] - 1)

    def run() -> None:
        with torch.inference_mode():
            block(x[:1, -1:], None, cache)

    return run


def race(runs: dict[str, Callable[[], None]]) -> list[dict[str, Any]]:
    """Medians over rounds in which every contender runs once, after two to warm up."""
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(ROUNDS + 2):
        for label, run in runs.items():
            began = time.process_time()
            run()
            times[label].append(time.process_time() - began)
    base = times["attention"][2:]
    return [
        {
            "block": label,
            "seconds": statistics.median(taken[2:]),
            "to_attention": statistics.median(a / b for a, b in zip(taken[2:], base, strict=True)),
        }
        for label, taken in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for batch, tokens, d_model in SHAPES:
        x = torch.randn(batch, tokens, d_model)
        blocks = contenders(d_model)
        for what, make in (("train", training), ("decode", decoding)):
            for row in race({label: make(block, x) for label, block in blocks.items()}):
                rows.append({"what": what, "batch": batch, "tokens": tokens, "d_model": d_model, **row})
    if options.json:
        print(json.dumps({"torch": torch.__version__, "threads": 1, "rounds": ROUNDS, "rows": rows}, indent=2))
        return
    print(f"torch {torch.__version__}, 1 thread, medians of {ROUNDS} rounds; (x) is the ratio to attention")
    for row in rows:
        shape = f"B {row['batch']:>2} T {row['tokens']:>4} D {row['d_model']:>3}"
        print(
            f"{row['what']:<7}{shape}  {row['block']:<26}{row['seconds'] * 1e3:>9.3f} ms  ({row['to_attention']:.2f})"
        )


if __name__ == "__main__":
    main()
