"""Search spaces: a run configuration with holes.

    {choice: [a, b, ...]}                    one of the values; a value may be a whole block with holes of its own
    {int: [low, high], step: 1, log: false}  both ends included
    {float: [low, high], log: true}
    per_layer: true                          in a hole below a layer with `repeat`: drawn for each repeat

A draw is called by its flat path: `model.layers.1.sequence.type`; the options of a chosen block come below its name
(`model.layers.1.sequence.attention.n_kv_heads`), so that one name always has one distribution; a layer's repeats are
told apart as `layers.1[0]`, `layers.1[1]`.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from doge_lab.errors import UserError

Scalar = str | int | float | bool | None

HoleKind = Literal["choice", "int", "float"]
_KINDS: tuple[HoleKind, ...] = ("choice", "int", "float")
_ALLOWED: dict[HoleKind, set[str]] = {
    "choice": {"choice", "per_layer"},
    "int": {"int", "step", "log", "per_layer"},
    "float": {"float", "log", "per_layer"},
}


@dataclass(frozen=True)
class Hole:
    """A place to fill. `labels` name the choices (a block by its type); `low`, `high` bound a number."""

    kind: HoleKind
    choices: tuple[Any, ...] = ()
    labels: tuple[Scalar, ...] = ()
    low: float = 0
    high: float = 0
    step: int = 1
    log: bool = False


class Draw(Protocol):
    """Chooses: the label of a choice, or a number."""

    def __call__(self, name: str, hole: Hole) -> Scalar: ...


def fill(space: Any, draw: Draw, path: str = "", name: str = "") -> Any:
    """The space with every hole filled by `draw`. `path` is the place, `name` what a draw there is called."""
    if is_hole(space):
        hole = parse_hole(space, path)
        blocks = any(isinstance(choice, dict) for choice in hole.choices) or name.endswith((".sequence", ".state"))
        drawn = draw(f"{name}.type" if blocks else name, hole)
        if hole.kind != "choice":
            return drawn
        chosen = hole.choices[hole.labels.index(drawn)]
        return fill(chosen, draw, path, f"{name}.{drawn}" if isinstance(chosen, dict) else name)
    if isinstance(space, dict):
        return {key: _fill_value(key, value, draw, path, name) for key, value in space.items()}
    if isinstance(space, list):
        return [fill(value, draw, _join(path, index), _join(name, index)) for index, value in enumerate(space)]
    return space


def _fill_value(key: str, value: Any, draw: Draw, path: str, name: str) -> Any:
    if key != "layers" or not isinstance(value, list):
        return fill(value, draw, _join(path, key), _join(name, key))
    layers = []
    for index, layer in enumerate(value):
        layer_path, layer_name = _join(path, f"{key}.{index}"), _join(name, f"{key}.{index}")
        layers += list(_fill_layer(layer, draw, layer_path, layer_name))
    return layers


def _fill_layer(layer: Any, draw: Draw, path: str, name: str) -> Iterator[Any]:
    """One filled entry, or one for each repeat when something below is drawn per layer."""
    if not isinstance(layer, dict) or not _has_per_layer(layer):
        yield fill(layer, draw, path, name)
        return
    repeat = fill(layer.get("repeat", 1), draw, f"{path}.repeat", f"{name}.repeat")
    if not isinstance(repeat, int) or repeat < 1:
        raise UserError(f"repeat must be a positive whole number, not {repeat!r}", f"{path}.repeat")
    body = {key: value for key, value in layer.items() if key != "repeat"}
    shared: dict[str, Scalar] = {}

    for index in range(repeat):
        own = f"{name}[{index}]"
        yield {
            key: fill(
                value,
                draw if _has_per_layer(value) else _remembered(draw, shared),
                _join(path, key),
                _join(own if _has_per_layer(value) else name, key),
            )
            for key, value in body.items()
        }


def _remembered(draw: Draw, drawn: dict[str, Scalar]) -> Draw:
    """Draw each name once: what is not drawn per layer is shared by the repeats."""

    def draw_once(name: str, hole: Hole) -> Scalar:
        if name not in drawn:
            drawn[name] = draw(name, hole)
        return drawn[name]

    return draw_once


def _has_per_layer(node: Any) -> bool:
    if isinstance(node, dict):
        return bool(is_hole(node) and node.get("per_layer")) or any(_has_per_layer(value) for value in node.values())
    return isinstance(node, list) and any(_has_per_layer(value) for value in node)


def is_hole(node: Any) -> bool:
    return isinstance(node, dict) and any(kind in node for kind in _KINDS) and "type" not in node


def parse_hole(written: Mapping[str, Any], path: str) -> Hole:
    """Read a hole. Raises `UserError` with its path."""
    kinds: list[HoleKind] = [kind for kind in _KINDS if kind in written]
    if len(kinds) != 1:
        raise UserError(f"a hole is one of choice, int, float; this has {', '.join(kinds)}", path)
    kind = kinds[0]
    unknown = set(written) - _ALLOWED[kind]
    if unknown:
        raise UserError(f"a hole of kind `{kind}` has no {sorted(unknown)[0]!r}; it has {sorted(_ALLOWED[kind])}", path)
    if kind == "choice":
        return _parse_choice(written["choice"], path)
    bounds = written[kind]
    number = int if kind == "int" else (int, float)
    if not (
        isinstance(bounds, list)
        and len(bounds) == 2
        and all(isinstance(bound, number) and not isinstance(bound, bool) for bound in bounds)
        and bounds[0] <= bounds[1]
    ):
        raise UserError(f"`{kind}` needs [low, high] with low <= high, not {bounds!r}", path)
    low, high = bounds
    log, step = bool(written.get("log", False)), written.get("step", 1)
    if log and low <= 0:
        raise UserError(f"`log: true` needs a low end above 0, not {low}", path)
    if not isinstance(step, int) or step < 1 or (log and step != 1):
        raise UserError(f"`step` must be a positive whole number, and 1 with `log: true`; not {step!r}", path)
    return Hole(kind, low=low, high=high, step=step, log=log)


def _parse_choice(choices: Any, path: str) -> Hole:
    if not isinstance(choices, list) or not choices:
        raise UserError(f"`choice` needs a list of at least one value, not {choices!r}", path)
    labels: list[Scalar] = []
    for index, choice in enumerate(choices):
        if choice in choices[:index]:
            raise UserError(f"{choice!r} is listed twice", path)
        label = plain = _label(choice, path)
        count = 1
        while label in labels:
            count += 1
            label = f"{plain}-{count}"
        labels.append(label)
    return Hole("choice", choices=tuple(choices), labels=tuple(labels))


def _label(choice: Any, path: str) -> Scalar:
    if isinstance(choice, dict):
        if not isinstance(choice.get("type"), str):
            raise UserError(f"a mapping to choose needs a `type`, which names it; {choice!r} has none", path)
        return str(choice["type"])
    if isinstance(choice, list):
        return str(choice)
    return choice


def holes(space: Any) -> dict[str, Hole]:
    """Every hole that can be met, by name, whatever is chosen elsewhere."""
    found: dict[str, Hole] = {}
    for _ in alternatives(space, lambda name, hole: found.setdefault(name, hole)):
        pass
    return found


def alternatives(space: Any, on_hole: Callable[[str, Hole], Any] = lambda name, hole: None) -> Iterator[Any]:
    """Fillings that together take every branch of every choice, and both ends of every number, at least once.

    Not the product of all choices: each is varied alone, the others at their first value.
    """
    pending: list[dict[str, Scalar]] = [{}]
    known: set[str] = set()
    while pending:
        fixed = pending.pop()
        met: dict[str, Hole] = {}

        yield fill(deepcopy(space), _first_value(fixed, met))
        for name, hole in met.items():
            on_hole(name, hole)
            if name not in known:
                known.add(name)
                pending += [{**fixed, name: value} for value in _values(hole)[1:]]


def _first_value(fixed: Mapping[str, Scalar], met: dict[str, Hole]) -> Draw:
    """Draw what is fixed, else the first value; note every hole that is met."""

    def draw(name: str, hole: Hole) -> Scalar:
        met[name] = hole
        return fixed.get(name, _values(hole)[0])

    return draw


def _values(hole: Hole) -> tuple[Scalar, ...]:
    if hole.kind == "choice":
        return hole.labels
    cast = int if hole.kind == "int" else float
    return tuple(dict.fromkeys((cast(hole.low), cast(hole.high))))


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)
