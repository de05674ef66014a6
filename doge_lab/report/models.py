"""What follows from a front model's configuration alone, recomputed for the page: its cache at every context."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from doge_lab.errors import UserError
from doge_lab.report.labels import model_of, plain

CONTEXTS = tuple(2**power for power in range(17))


@dataclass(frozen=True)
class ModelFacts:
    """cache_bytes: context in tokens -> bytes of one sequence. faults: check -> why a block cannot pass it.

    problem: why nothing could be computed, empty when it could.
    """

    cache_bytes: Mapping[int, int] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def model_facts(config: Mapping[str, Any], context: int) -> ModelFacts:
    """Count the model at `context` and at powers of two; needs torch, but computes nothing with it."""
    import torch

    from doge_lab.cache import nbytes
    from doge_lab.model import CausalLM, ModelConfig
    from doge_lab.strict import validate

    try:
        # The vocabulary may be left to the tasks; no cache depends on it.
        written = {**plain(model_of(config)), "vocab_size": model_of(config).get("vocab_size") or 1}
        with torch.device("meta"):
            model = CausalLM(validate(ModelConfig, written))
    except (UserError, ImportError) as error:
        return ModelFacts(problem=str(error))
    dtype = getattr(torch, model.config.cache_dtype)
    specs = [block.cache_spec() for block in model.sequence_blocks()]
    curve = {tokens: sum(nbytes(spec, tokens, dtype) for spec in specs) for tokens in sorted({*CONTEXTS, context})}
    faults = {check: reason for block in model.blocks() for check, reason in block.known_faults().items()}
    return ModelFacts(curve, faults)
