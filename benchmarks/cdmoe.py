"""CDMoE's private experts against their peers, side by side on one thread: routing and experts, forward and backward.

    python benchmarks/cdmoe.py             about two minutes
    python benchmarks/cdmoe.py --quick     about twenty seconds
    python benchmarks/cdmoe.py --json out.json

    fast          blocks/state/cdmoe.py as it trains: staircase search, embedding bags
    reference     the same block with its ops in their reference form: every pair scored, rows gathered, in einx
    einsum        as published: the best k of k² pairs, rows gathered by `nn.functional.embedding`, einsum
    transformers  DogeCDMoE as shipped: every half sorted, every pair scored, rows gathered, matmul (one head only)

The shared perceptron, the same in all of them, is one unit wide here. The last part compares the whole CDMoE with
the other state blocks at the size of the default search.

Times are CPU time of this process: medians of runs in turn, one of each contender after the other, so that
whatever else the machine does falls on all of them. Ratios are medians of the ratios within a round. Memory is what
one pass adds at its peak, in a process of its own.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.state.cdmoe import CDMoE
from blocks.state.glu import GLU
from blocks.state.mlp import MLP
from blocks.state.moe import MoE
from doge_lab.ops.dispatch import REFERENCE, using

Run = Callable[[], None]

# tokens, d_model, n_experts, heads, experts per head
CASES = [
    (1152, 32, 64, 1, 2),
    (1152, 32, 256, 2, 4),
    (2048, 64, 1024, 1, 16),
    (2048, 256, 1024, 4, 16),
    (1024, 256, 16384, 1, 16),
    (1024, 256, 16384, 4, 16),
]
QUICK_CASES = CASES[:3]


class Einsum(nn.Module):
    """The parallel form written down as published, around the weights of `block`."""

    def __init__(self, block: CDMoE) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block, c = self.block, self.block.config
        keys = block.router.keys
        n_keys = keys.shape[2]
        query = block.router.query(x).unflatten(-1, (c.n_experts_heads, 2, -1))
        halves = torch.einsum("bthpc,phnc->pbthn", query, keys)
        (rows, columns), (i, j) = halves.topk(c.n_experts_per_head, dim=-1)
        sums = (rows[..., :, None] + columns[..., None, :]).flatten(-2)
        pairs = (i[..., :, None] * n_keys + j[..., None, :]).flatten(-2)
        scores, best = sums.topk(c.n_experts_per_head, dim=-1)
        experts = pairs.gather(-1, best)
        dots = torch.einsum("btd,bthkd->bthk", x, F.embedding(experts, block.down))
        hidden = block.act(dots) * scores.softmax(-1)
        return block.shared(x) + torch.einsum("bthk,bthkd->btd", hidden, F.embedding(experts, block.up))


class Reference(nn.Module):
    """The block with every op as it is defined."""

    def __init__(self, block: CDMoE) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        with using(REFERENCE):
            return self.block(x)


class Transformers(nn.Module):
    """DogeCDMoE of the same sizes, as it is."""

    def __init__(self, d_model: int, n_experts: int, per_head: int) -> None:
        super().__init__()
        from transformers.models.doge import modeling_doge as doge

        config = doge.DogeConfig(
            hidden_size=d_model,
            intermediate_size=1,
            num_experts=n_experts,
            num_experts_per_tok=per_head,
            num_attention_heads=1,
            is_moe=True,
        )
        self.moe = doge.DogeCDMoE(config)
        for parameter in self.moe.parameters():
            nn.init.normal_(parameter, std=d_model**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)[0]


def contenders(tokens: int, d_model: int, n_experts: int, heads: int, per_head: int) -> dict[str, Run]:
    torch.manual_seed(0)
    options = {"n_experts": n_experts, "n_experts_heads": heads, "n_experts_per_head": per_head}
    options |= {"d_cross_domain": 1, "cross_domain": "glu"}
    fast = CDMoE(d_model, **options)
    modules: dict[str, nn.Module] = {"fast": fast, "reference": Reference(fast), "einsum": Einsum(fast)}
    x = torch.randn(8, tokens // 8, d_model)
    outputs = [module(x) for module in modules.values()]
    assert all(torch.allclose(y, outputs[0], atol=1e-4) for y in outputs), "the contenders disagree"
    if heads == 1:
        modules["transformers"] = Transformers(d_model, n_experts, per_head)
    return {name: step(module, tokens, d_model) for name, module in modules.items()}


def state_blocks() -> dict[str, Run]:
    """State blocks of about 6,000 parameters at d_model 32, and CDMoE with larger tables."""
    torch.manual_seed(0)
    blocks = {
        "mlp": MLP(32, d_hidden=96),
        "mlp, as large as the last": MLP(32, d_hidden=300),
        "glu": GLU(32, d_hidden=64),
        "moe, 4 experts, top 1": MoE(32, n_experts=4, top_k=1, d_expert=16, normalisation="softmax_all"),
        "moe, 4 experts, top 2": MoE(32, n_experts=4, top_k=2, d_expert=16),
        "cdmoe, 64 experts, 1 x 2": CDMoE(32, d_cross_domain=20, n_experts=64),
        "cdmoe, 256 experts, 1 x 2": CDMoE(32, d_cross_domain=20, n_experts=256),
        "cdmoe, 256 experts, 2 x 4": CDMoE(
            32, d_cross_domain=20, n_experts=256, n_experts_heads=2, n_experts_per_head=4
        ),
    }
    return {f"{name} ({block.num_params():,})": step(block, 1152, 32) for name, block in blocks.items()}


def step(module: nn.Module, tokens: int, d_model: int) -> Run:
    # Inputs change from run to run, lest the processor learn the branches of one of them by heart.
    inputs = [torch.randn(8, tokens // 8, d_model).requires_grad_() for _ in range(8)]
    target = torch.randn(8, tokens // 8, d_model)
    calls = iter(range(10**9))

    def run() -> None:
        x = inputs[next(calls) % len(inputs)]
        x.grad = None
        module.zero_grad()
        module(x).backward(target)

    return run


def peak_mb(run: Run) -> float | None:
    """Memory that a second `run` adds at its peak, measured in a fork; None where the system does not tell."""
    libc = ctypes.CDLL(None) if platform.system() == "Linux" else None
    if not hasattr(libc, "malloc_trim"):
        return None
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
        run()
        os.write(write, str((_status_kb("VmHWM") - before) / 1024).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return float(pipe.read() or "nan")


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def in_turn(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time of each run in each round, after a warm-up."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(1000 * (time.process_time() - start))
    return times


def compare(title: str, runs: dict[str, Run], rounds: int, *, memory: bool) -> dict[str, Any]:
    """Print one table; ratios are to the first contender."""
    peaks = {name: peak_mb(run) if memory else None for name, run in runs.items()}
    times = in_turn(runs, rounds)
    first = next(iter(times.values()))
    rows = {}
    print(f"\n{title}\n  {'':34}{'ms':>9}{'ratio':>8}{'peak MB':>9}")
    for name, mine in times.items():
        ratio = statistics.median(time / base for time, base in zip(mine, first, strict=True))
        rows[name] = {"ms": statistics.median(mine), "ratio": ratio, "peak_mb": peaks[name]}
        peak = "" if peaks[name] is None else f"{peaks[name]:9.0f}"
        print(f"  {name:34}{rows[name]['ms']:9.2f}{ratio:8.2f}{peak}", flush=True)
    return {"case": title, "rounds": rounds, "rows": rows}


def machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "device": f"cpu, {names[0] if names else platform.machine()}",
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "threads": torch.get_num_threads(),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small cases and few rounds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("  ".join(f"{name}: {value}" for name, value in machine().items()))
    results = []
    for case in QUICK_CASES if arguments.quick else CASES:
        tokens, d_model, n_experts, heads, per_head = case
        title = f"{tokens} tokens, d_model {d_model}, {n_experts} experts, {heads} x {per_head} per token"
        rounds = 10 if arguments.quick else 30 if tokens * d_model * heads * per_head < 10**7 else 7
        results.append(compare(title, contenders(*case), rounds, memory=True))
    title = "state blocks (parameters), 1152 tokens, d_model 32"
    results.append(compare(title, state_blocks(), 20 if arguments.quick else 100, memory=False))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
