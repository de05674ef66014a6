"""A second look at a trained candidate, by another process than the one that trained it: what the worker does.

Only the saved weights reach it. It runs every check on the candidate's blocks, asks the whole model what it was asked
after training and more, and scores it again: as it was recorded, and token by token through a live cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from doge_lab.config import RunConfig
from doge_lab.cost import held_cache_bytes
from doge_lab.engine.checks import cases_of, examine, remembered, verdict
from doge_lab.errors import one_line
from doge_lab.model import CausalLM
from doge_lab.objective import as_trained, evaluate, require_sound, run_folder
from doge_lab.run import BreaksContract, torch_device
from doge_lab.stored import WEIGHTS
from doge_lab.tasks import Metrics, Task, TaskData
from doge_lab.testing.assembled import Assembled, through_cache
from doge_lab.testing.trained import check_model, decoding, faults_of
from doge_lab.train import predictor

Alive = Callable[..., None]

SAME, CACHED = 1e-6, 1e-3
"""Bits that two scores of one model may differ by, as a share of what there is to know: with the saved weights, and
through a live cache in float32."""


def audit(
    run: RunConfig, folder: Path, *, device: str, allow_faults: bool, alive: Alive = lambda *_: None
) -> dict[str, Any]:
    """What is found wrong with a candidate trained below `folder`, and what was measured on the way.

    `alive` is called after each step, which may take seconds.

    reason: the first promise that is not kept, empty when all are. not_asked: which were not, and why.
    cache_bytes_held: of one row at the search's context. tasks: label -> bits, bits_through_cache (in float32),
    bits_through_held_cache (in the type that is counted).
    """
    found: dict[str, Any] = {"reason": "", "not_asked": [], "cache_bytes_held": None, "tasks": {}}
    try:
        recorded = evaluate(run, folder, scored_on="validation", device=device).metrics
        trained = [_Trained.load(run, task, folder, device) for task in run.tasks]
        # first of all: what is trained here, by a check, may learn again what the weights do not hold
        for each in trained:
            found["tasks"][each.task.label] = each.scored_again(recorded[each.task.label])
            alive()
        for each in trained:
            found["not_asked"] += each.asked_again()
            alive()
        found["cache_bytes_held"] = _held(trained[0].models[0], run) if trained else None
        require_blocks(run, allow_faults=allow_faults, alive=alive)
    except BreaksContract as error:
        found["reason"] = str(error)
    except Exception as error:  # a block may raise anything
        found["reason"] = one_line(error)
    return found


@dataclass(frozen=True)
class _Trained:
    """What training left of one task: two models with the saved weights, which began with others."""

    run: RunConfig
    task: Task
    data: TaskData
    models: tuple[CausalLM, CausalLM]

    @classmethod
    def load(cls, run: RunConfig, task: Task, folder: Path, device: str) -> "_Trained":
        saved = load_file(run_folder(folder, run, task, "validation") / WEIGHTS)
        where = torch_device(device)
        first, second = (CausalLM.build(run.model, seed=run.seed + other, device=where).eval() for other in (1, 2))
        for model in (first, second):
            model.load_state_dict(saved)
        return cls(run, task, task.data(seed=run.seed, scored_on="validation"), (first, second))

    def scored_again(self, recorded: Metrics) -> dict[str, float]:
        """The bits of the model, asked in three ways, which must be those recorded."""
        held = getattr(torch, self.run.model.cache_dtype)
        bits = {
            "bits": self.data.evaluate(predictor(self.models[0]))["bits"],
            "bits_through_cache": self.data.evaluate(through_cache(self.models, torch.float32))["bits"],
            "bits_through_held_cache": self.data.evaluate(through_cache(self.models, held))["bits"],
        }
        _require_bits(bits["bits"], recorded, SAME, "with the weights that were saved")
        if not faults_of(decoding, self.models[0]):
            _require_bits(bits["bits_through_cache"], recorded, CACHED, "through a live cache")
        return bits

    def asked_again(self) -> list[str]:
        """Ask the model everything; returns what was not asked, and why."""
        results = [result for case in self._cases() for result in check_model(case, thorough=True)]
        require_sound(results)
        return [f"{self.task.label}: {each.message}" for each in results if each.status == "known_fault"]

    def _cases(self) -> Iterator[Assembled]:
        """On what it was trained, and on what is scored where that is of another length."""
        trained = as_trained(self.run, self.task, *self.models, self.data)
        yield trained
        if trained.tokens.shape[1] == self.task.context:
            return
        seen: list[Tensor] = []
        ask = predictor(self.models[0])
        self.data.evaluate(lambda inputs: (seen.append(inputs), ask(inputs))[1])  # type: ignore[func-returns-value]
        longest = max(seen, key=lambda inputs: inputs.shape[1])
        yield Assembled(*self.models, longest[: len(trained.tokens)].to(trained.device), seed=self.run.seed)


def require_blocks(run: RunConfig, *, allow_faults: bool, alive: Alive = lambda *_: None) -> None:
    """Every check on every block, at this width."""
    for case in cases_of(run.dump(), full=True):
        results = remembered(case)
        results = examine(case, on_result=alive) if results is None else results
        if said := verdict(case, results, allow_faults=allow_faults):
            raise BreaksContract(said)


def _require_bits(found: float, recorded: Metrics, share: float, how: str) -> None:
    bits = recorded["bits"]
    if not abs(found - bits) <= share * recorded.get("max_bits", abs(bits)):
        raise BreaksContract(f"the score is {bits:.6g} bits as recorded, and {found:.6g} {how}")


def _held(model: CausalLM, run: RunConfig) -> int:
    held, declared = held_cache_bytes(model, run.context), run.cost().cache_bytes
    if held != declared:
        raise BreaksContract(f"{declared:,} bytes of cache are declared for {run.context} tokens, {held:,} are held")
    return held
