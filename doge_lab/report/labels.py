"""Words and numbers as people read them, the same in the terminal and on the page."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from doge_lab import registry
from doge_lab.errors import UserError
from doge_lab.search.front import Direction
from doge_lab.stats import Interval, t_interval

_COSTS = {
    "params": "parameters",
    "embedding_params": "embedding parameters",
    "active_params": "active parameters per token",
    "flops_per_token": "FLOPs per token",
    "cache_bytes": "cache bytes per sequence",
}
_TITLES = {**_COSTS, "recall.bits": "recall, bits per sequence"}
_TASKS = {"capacity": "knowledge"}
METRICS = {
    "bits": "bits",
    "bits_per_param": "bits per parameter",
    "bits_per_active_param": "bits per active parameter",
    "saturation": "share of the table held",
    "exposures": "exposures of each fact",
    "accuracy": "accuracy",
    "guess_bits": "bits of a guesser who knows which answers occur",
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_COUNTED_AT_CONTEXT = ("cache_bytes", "flops_per_token")
ARROWS: dict[Direction, str] = {"minimize": "↓", "maximize": "↑"}


def is_exact(objective: str) -> bool:
    """True for what is counted before training: the same on any data and for any seed."""
    return objective in _COSTS


def printable(text: object) -> str:
    """`text` on one line, without the control characters that would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text))


def objective_title(name: str, context: int | None = None, cache_dtype: str | None = None) -> str:
    """`cache_bytes` -> `cache bytes per sequence at 32 tokens, bf16`; `capacity.bits` -> `knowledge, bits`."""
    if name in _TITLES:
        title = _TITLES[name]
        if name in _COUNTED_AT_CONTEXT and context is not None:
            title += f" at {context:,} {plural(context, 'token')}"
        if name == "cache_bytes" and cache_dtype is not None:
            title += f", {_DTYPES.get(cache_dtype, printable(cache_dtype))}"
        return title
    task, dot, metric = name.rpartition(".")
    if not dot:
        return printable(name)
    return f"{task_title(task)}, {METRICS.get(metric, printable(metric))}"


def task_title(task: str) -> str:
    """`capacity` -> `knowledge`."""
    return _TASKS.get(task, printable(task))


def number(value: float) -> str:
    """Four figures or all digits before the point: 18,420 ; 12.35 ; 0.00123 ; 0."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{3 - math.floor(math.log10(abs(value)))}f}" if abs(value) >= 1e-4 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """What was measured, one value per seed: `1,842 ± 35`, half the 95 % t interval; of one seed `≈1,840`."""
    return plus_minus(t_interval(values))


def plus_minus(interval: Interval) -> str:
    """A mean with half its interval; without one three figures, for more would claim what one seed cannot know."""
    mean, half, _ = interval
    if half is None:
        return f"≈{rough(mean)}"
    if half == 0 or not math.isfinite(half):
        return f"{number(mean)} ± {number(half)}"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


def rough(value: float) -> str:
    """Three figures: 36,700 ; 51.8 ; 0.223."""
    value = float(f"{value:.3g}")
    return number(value) if abs(value) >= 1000 or not math.isfinite(value) else f"{value:#.3g}".rstrip(".")


def objective_value(objective: str, values: Sequence[float]) -> str:
    """Values of an objective by seed, written out: a count is exact and the same for every seed."""
    return number(values[0]) if is_exact(objective) else spread(values)


def chance(probability: float) -> str:
    """Two figures, but never certain: of a few seeds nothing is."""
    return "above 0.99" if probability > 0.994 else f"{probability:.2f}"


def seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def sentence(said: str) -> str:
    """`said` with a capital and a full stop."""
    return f"{said[0].upper()}{said[1:]}." if said else ""


def plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def binary_bytes(value: float) -> str:
    """512 B, 1.5 KiB, 2 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def duration(seconds: float) -> str:
    """42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def model_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `model` part of a run's configuration."""
    model = config.get("model", config)
    return model if isinstance(model, Mapping) else {}


def layers_of(config: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """The pattern as (how many layers in a row, sequence block, state block), equal neighbours joined."""
    rows = [
        (int(layer.get("repeat", 1)), block_label("sequence", layer["sequence"]), block_label("state", layer["state"]))
        for layer in model_of(config).get("layers", ())
    ]
    return [(sum(row[0] for row in group), *names) for names, group in groupby(rows, key=lambda row: row[1:])]


def model_label(config: Mapping[str, Any]) -> str:
    """A model on one line: `d32: short_conv | 2 × attention(n_kv_heads=1)+glu(67)`; defaults are left out."""
    if not model_of(config):
        return "(no configuration)"
    layers = [
        (f"{repeat} × " if repeat > 1 else "") + ("+".join(name for name in names if name != "none") or "none")
        for repeat, *names in layers_of(config)
    ]
    others = model_options(config)
    return f"d{model_of(config).get('d_model')}: {' | '.join(layers)}" + (f" ({others})" if others else "")


def model_options(config: Mapping[str, Any]) -> str:
    """What a model declares beside its layers, where it differs from the defaults."""
    written = {name: value for name, value in model_of(config).items() if name not in _LABELLED}
    return _joined(_changed(written, _model_defaults()))


_LABELLED = ("layers", "d_model", "vocab_size")


def block_label(kind: Any, written: Any) -> str:
    """`attention(n_kv_heads=1)`: a block with the options that differ from its defaults, its width unnamed."""
    if isinstance(written, str):
        return printable(written)
    name = str(written.get("type"))
    width_option, defaults = _block_defaults(kind, name)
    options = _changed({key: value for key, value in written.items() if key != "type"}, dict(defaults))
    width = [printable(options.pop(width_option))] if width_option in options else []
    inside = ", ".join(width + ([_joined(options)] if options else []))
    return printable(name) + (f"({inside})" if inside else "")


def _changed(written: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key not in defaults or plain(defaults[key]) != plain(value)}


def _joined(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{printable(key)}={_option(value)}" for key, value in options.items())


def _option(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(value)


@functools.cache
def _block_defaults(kind: Any, name: str) -> tuple[str | None, tuple[tuple[str, Any], ...]]:
    """A block's width option and its defaults; nothing for a block that cannot be found here."""
    try:
        block = registry.get(kind, name)
    except (UserError, ImportError):
        return None, ()
    return block.width_option, tuple(_defaults(block.Config).items())


@functools.cache
def _model_defaults() -> Mapping[str, Any]:
    from doge_lab.model import ModelConfig  # torch: only when a model is named

    return _defaults(ModelConfig)


def _defaults(config: Any) -> dict[str, Any]:
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in config.model_fields.items()
        if not field.is_required()
    }


def plain(value: Any) -> Any:
    """Mappings and sequences as dicts and lists, as JSON and YAML write them; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
