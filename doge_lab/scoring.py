"""Scores of a model that was trained elsewhere, on the tasks of a run file, without training."""

import time
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from doge_lab.config import RunConfig
from doge_lab.errors import UserError
from doge_lab.model import CausalLM
from doge_lab.run import per_parameter, torch_device
from doge_lab.tasks import Metrics
from doge_lab.train import predictor


def score(run: RunConfig, weights: Path, *, device: str = "cpu") -> dict[str, Metrics]:
    """The scores of a model trained elsewhere on the tasks of the resolved `run`, on test data, by task.

    Raises `UserError` unless `weights` is a safetensors file that holds the model's tensors and no others.
    """
    model = CausalLM.build(run.model, seed=run.seed, device=torch_device(device)).eval()
    _load_exactly(model, weights)
    cost, scores = run.cost(), {}
    for task in run.tasks:
        began = time.monotonic()
        metrics = task.data(seed=run.seed, scored_on="test").evaluate(predictor(model))
        metrics |= per_parameter(metrics, cost.params, cost.active_params)
        scores[task.label] = {**metrics, "seconds": time.monotonic() - began}
    return scores


def _load_exactly(model: CausalLM, weights: Path) -> None:
    try:
        given = load_file(weights)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", str(weights)) from None
    except SafetensorError as error:
        raise UserError(f"is no whole safetensors file ({str(error)[:100]})", str(weights)) from None
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ given.keys()):
        what = "lacks" if name in wanted else "holds"
        raise UserError(f"{what} {name!r}, which the model {'has' if name in wanted else 'has not'}", str(weights))
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            shapes = f"{list(given[name].shape)}, the model's is {list(tensor.shape)}"
            raise UserError(f"{name!r} has shape {shapes}", str(weights))
    model.load_state_dict(given)
