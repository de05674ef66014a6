"""Chunked training forms of the shelf against the pure-PyTorch fallbacks of transformers, side by side on one thread.

    python benchmarks/fallbacks.py            some minutes: a fallback may take 20 s a pass
    python benchmarks/fallbacks.py --json     the same as JSON

Forward and backward of one layer with equal widths, CPU time. Both sides take turns; times are medians, the ratio is
the median of the ratios within a round.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba import modeling_mamba as mamba
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.minimax import modeling_minimax as minimax
from transformers.models.qwen3_next import modeling_qwen3_next as qwen
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as griffin
from transformers.models.xlstm import modeling_xlstm as xlstm
from transformers.utils import logging

from doge_lab import registry

SHAPES = ((16, 128, 64), (4, 512, 128))
"""Batch, tokens, d_model."""
ROUNDS = 5
ENOUGH_SECONDS = 60.0
"""No further round once both sides together have taken this long."""

Run = Callable[[Tensor], Tensor]


def fallbacks(d: int) -> Iterator[tuple[str, dict[str, Any], nn.Module, Run]]:
    """Our block's name and options, transformers' layer of the same widths, and how to call it."""
    layer: Any = mamba.MambaMixer(mamba.MambaConfig(hidden_size=d, num_hidden_layers=1), 0)
    yield "mamba", {}, layer, layer
    options = {"n_heads": 4, "d_state": 32}
    config: Any = mamba2.Mamba2Config(
        hidden_size=d, num_heads=4, head_dim=d // 2, n_groups=1, state_size=32, num_hidden_layers=1
    )
    layer = mamba2.Mamba2Mixer(config, 0)
    yield "mamba2", options, layer, layer
    config = qwen.Qwen3NextConfig(
        hidden_size=d,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=d // 4,
        linear_value_head_dim=d // 4,
    )
    layer = qwen.Qwen3NextGatedDeltaNet(config, 0)
    yield "gated_delta_net", {"n_heads": 4, "head_dim": d // 4, "value_dim": d // 4}, layer, layer
    config = kimi.KimiLinearConfig(
        hidden_size=d,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_heads=4,
        linear_head_dim=d // 4,
    )
    layer = kimi.KimiLinearDeltaAttention(config, 0)
    yield "kimi_delta_attention", {"n_heads": 4}, layer, layer
    config = minimax.MiniMaxConfig(
        hidden_size=d,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=d // 4,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    layer = minimax.MiniMaxLightningAttention(config, 0)
    yield "lightning_attention", {"n_heads": 4}, layer, lambda x, layer=layer: layer(x, None, None)[0]
    config = griffin.RecurrentGemmaConfig(
        hidden_size=d, lru_width=d, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1
    )
    layer = griffin.RecurrentGemmaRecurrentBlock(config, 0)
    yield "rg_lru", {"n_heads": 4}, layer, lambda x, layer=layer: layer(x, _positions(x), None, use_cache=False)[0]
    config = xlstm.xLSTMConfig(
        hidden_size=d, num_heads=4, qk_dim_factor=0.5, v_dim_factor=1.0, num_hidden_layers=1, weight_mode="fused"
    )
    layer = xlstm.xLSTMLayer(config)
    yield "mlstm", {"fidelity": "published"}, layer, lambda x, layer=layer: layer(x)[0]


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).expand(len(x), -1)


def seconds(run: Run, x: Tensor) -> float:
    began = time.process_time()
    result = run(x)
    (result if isinstance(result, Tensor) else result[0]).sum().backward()
    return time.process_time() - began


def race(name: str, written: dict[str, Any], theirs: Run, x: Tensor) -> dict[str, Any]:
    """One row: both sides in turn, after a pass of ours to warm up."""
    block: Any = registry.get("sequence", name)(x.shape[-1], **written)
    taken: list[tuple[float, float]] = []
    seconds(lambda x: block(x)[0], x)
    while len(taken) < ROUNDS and sum(map(sum, taken)) < ENOUGH_SECONDS:
        taken.append((seconds(lambda x: block(x)[0], x), seconds(theirs, x)))
    return {
        "block": name,
        "shape": list(x.shape),
        "seconds": statistics.median(ours for ours, _ in taken),
        "transformers_seconds": statistics.median(other for _, other in taken),
        "transformers_to_ours": statistics.median(other / ours for ours, other in taken),
        "rounds": len(taken),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    rows = []
    for shape in SHAPES:
        for name, written, layer, run in fallbacks(shape[-1]):
            layer.train()
            rows.append(race(name, written, run, torch.randn(shape)))
            if not options.json:
                row = rows[-1]
                times = f"ours {1e3 * row['seconds']:.1f} ms  transformers {1e3 * row['transformers_seconds']:.1f} ms"
                print(f"{name:22} {shape}  {times}  ratio {row['transformers_to_ours']:.2f}")
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
