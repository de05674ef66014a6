"""doge_lab asks how few bytes of cache a language model can keep while knowing as many facts.

    from doge_lab import CausalLM, load_run
    run = load_run("model.yaml").resolved()
    model = CausalLM.build(run.model)

Names are imported when they are first used, so that `doge-lab --help` does not wait for torch.
"""

import importlib

_LAZY = {
    "Block": "doge_lab.block",
    "SequenceBlock": "doge_lab.block",
    "StateBlock": "doge_lab.block",
    "BlockConfig": "doge_lab.block",
    "Fixed": "doge_lab.cache",
    "PerToken": "doge_lab.cache",
    "CausalLM": "doge_lab.model",
    "ModelConfig": "doge_lab.model",
    "cost_of": "doge_lab.cost",
    "RunConfig": "doge_lab.config",
    "UserError": "doge_lab.errors",
    "check_block": "doge_lab.testing",
}

__all__ = [*_LAZY, "load_run"]


def __getattr__(name: str) -> object:
    if name == "load_run":
        return importlib.import_module("doge_lab.config").load
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
