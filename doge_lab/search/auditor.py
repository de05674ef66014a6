"""A second look at a trained candidate, by another process than the one that trained it: what the worker does.

Only the saved weights reach it. It runs every check on the candidate's blocks, asks the whole model what it was asked
after training and more, and scores it again: as it was recorded, and token by token through a live cache.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from doge_lab.config import RunConfig
from doge_lab.cost import held_cache_bytes
from doge_lab.model import CausalLM
from doge_lab.objective import as_trained, evaluate, require_sound, run_folder
from doge_lab.run import WEIGHTS, BreaksContract, torch_device
from doge_lab.search.vetting import examine, remembered, suspects_of, verdict
from doge_lab.tasks import Metrics, Task, TaskData
from doge_lab.testing.assembled import Assembled, through_cache
from doge_lab.testing.runner import CheckResult, one_line
from doge_lab.testing.trained import check_model, decoding
from doge_lab.train import predictor

Pair = tuple[CausalLM, CausalLM]
SAME, CACHED = 1e-6, 1e-3
"""Bits that two scores of one model may differ by, as a share of what there is to know: with the saved weights, and
through a live cache in float32."""


def audit(run: RunConfig, folder: Path, *, device: str, allow_faults: bool) -> dict[str, Any]:
    """What is found wrong with a candidate trained below `folder`, and what was measured on the way.

    reason: the first promise that is not kept, empty when all are. not_asked: which were not, and why.
    cache_bytes_held: of one row at the search's context. tasks: label -> bits, bits_through_cache (in float32),
    bits_through_held_cache (in the type that is counted).
    """
    found: dict[str, Any] = {"reason": "", "not_asked": [], "cache_bytes_held": None, "tasks": {}}
    try:
        _require_blocks(run, allow_faults=allow_faults)
        recorded = evaluate(run, folder, scored_on="validation", device=device)
        for task in run.tasks:
            models = _loaded(run, run_folder(folder, run, task, "validation") / WEIGHTS, device)
            data = task.data(seed=run.seed, scored_on="validation")
            cases = _cases(run, task, models, data)
            results = [result for case in cases for result in check_model(case, thorough=True)]
            found["not_asked"] += [f"{task.label}: {each.message}" for each in results if each.status == "known_fault"]
            require_sound(results)
            found["tasks"][task.label] = _scored_again(models, data, recorded.metrics[task.label], results)
            found["cache_bytes_held"] = _held(models[0], run)
    except BreaksContract as error:
        found["reason"] = str(error)
    except Exception as error:  # a block may raise anything
        found["reason"] = f"{type(error).__name__}: {one_line(error)}"
    return found


def _require_blocks(run: RunConfig, *, allow_faults: bool) -> None:
    """Every check on every block, at this width."""
    for suspect in suspects_of(run.dump(), full=True):
        results = remembered(suspect)
        said = verdict(suspect, examine(suspect) if results is None else results, allow_faults=allow_faults)
        if said:
            raise BreaksContract(said)


def _loaded(run: RunConfig, weights: Path, device: str) -> Pair:
    """Two models with the saved weights; what they begin with is not theirs."""
    saved, where = load_file(weights), torch_device(device)
    first, second = (CausalLM.build(run.model, seed=run.seed + other, device=where).eval() for other in (1, 2))
    for model in (first, second):
        model.load_state_dict(saved)
    return first, second


def _cases(run: RunConfig, task: Task, models: Pair, data: TaskData) -> Iterator[Assembled]:
    """On what it was trained, and on what is scored where that is of another length."""
    trained = as_trained(run, task, *models, data)
    yield trained
    if trained.tokens.shape[1] == task.context:
        return
    seen: list[Tensor] = []
    ask = predictor(models[0])

    def predict(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return ask(inputs)

    data.evaluate(predict)
    longest = max(seen, key=lambda inputs: inputs.shape[1])
    yield Assembled(*models, longest[: len(trained.tokens)].to(trained.device), seed=run.seed)


def _scored_again(models: Pair, data: TaskData, recorded: Metrics, results: list[CheckResult]) -> dict[str, float]:
    """The bits of one model by three ways, which must be those that were recorded."""
    held = getattr(torch, models[0].config.cache_dtype)
    bits = {
        "bits": data.evaluate(predictor(models[0]))["bits"],
        "bits_through_cache": data.evaluate(through_cache(models, torch.float32))["bits"],
        "bits_through_held_cache": data.evaluate(through_cache(models, held))["bits"],
    }
    whole = float(recorded.get("max_bits", abs(recorded["bits"])))
    _require_bits(bits["bits"], recorded["bits"], SAME * whole, "with the weights that were saved")
    if not any(each.name == decoding.name and each.status == "known_fault" for each in results):
        _require_bits(bits["bits_through_cache"], recorded["bits"], CACHED * whole, "through a live cache")
    return bits


def _require_bits(found: float, recorded: float, allowed: float, how: str) -> None:
    if not abs(found - recorded) <= allowed:
        raise BreaksContract(f"the score is {recorded:.6g} bits as recorded, and {found:.6g} {how}")


def _held(model: CausalLM, run: RunConfig) -> int:
    held, declared = held_cache_bytes(model, run.context), run.cost().cache_bytes
    if held != declared:
        raise BreaksContract(f"{declared:,} bytes of cache are declared for {run.context} tokens, {held:,} are held")
    return held
