"""Search spaces: a run configuration with holes.

    {choice: [a, b, ...]}                    one of the values; a value may be a hole, or a block or list with holes
    {int: [low, high], step: 1, log: false}  both ends included
    {float: [low, high], log: true}
    per_layer: true                          in a hole below a layer with `repeat`: drawn for each repeat

A draw is called by its flat path: `model.layers.1.sequence.type`. What is drawn within a choice comes below its label
(`model.layers.1.sequence.attention.n_kv_heads`), so that one name always has one distribution; a layer's repeats are
told apart as `layers.1[0]`, `layers.1[1]`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from doge_lab.errors import UserError, shortened
from doge_lab.strict import number

Scalar = str | int | float | bool | None

HoleKind = Literal["choice", "int", "float"]
_KINDS: tuple[HoleKind, ...] = ("choice", "int", "float")
_ALLOWED: dict[HoleKind, set[str]] = {
    "choice": {"choice", "per_layer"},
    "int": {"int", "step", "log", "per_layer"},
    "float": {"float", "log", "per_layer"},
}


_LARGEST = {"int": 2**53, "float": 1e300}
"""Of a bound: beyond it a study's database, which holds floats, rounds or overflows."""
_MOST_LAYERS = 1000
_LONGEST_LABEL = 80


@dataclass(frozen=True)
class Hole:
    """A place to fill. `labels` name the choices (a block by its type).

    `low` and `high` bound a number; both can be drawn, so that `high` is a whole number of steps above `low`.
    """

    kind: HoleKind
    choices: tuple[Any, ...] = ()
    labels: tuple[Scalar, ...] = ()
    low: float = 0
    high: float = 0
    step: int = 1
    log: bool = False

    @property
    def values(self) -> tuple[Scalar, ...]:
        """What is examined: every choice, or both ends of a range."""
        return self.labels if self.kind == "choice" else tuple(dict.fromkeys((self.low, self.high)))


class Draw(Protocol):
    """Chooses: the label of a choice, or a number."""

    def __call__(self, name: str, hole: Hole) -> Scalar: ...


def fill(space: Any, draw: Draw, path: str = "", name: str = "") -> Any:
    """The space with every hole filled by `draw`. `path` is the place, `name` what a draw there is called."""
    if is_hole(space):
        hole = parse_hole(space, path)
        drawn = draw(f"{name}.type" if _of_blocks(hole, name) else name, hole)
        if hole.kind != "choice":
            return drawn
        return fill(hole.choices[hole.labels.index(drawn)], draw, path, f"{name}.{drawn}")
    if isinstance(space, dict):
        return {key: fill(value, draw, _join(path, key), _join(name, key)) for key, value in space.items()}
    if isinstance(space, list):
        filled: list[Any] = []
        for index, value in enumerate(space):
            filled += _fill_entry(value, draw, _join(path, index), _join(name, index))
        return filled
    return space


def _of_blocks(hole: Hole, name: str) -> bool:
    mappings = (choice for choice in hole.choices if isinstance(choice, dict))
    return name.endswith((".sequence", ".state")) or any("type" in choice for choice in mappings)


def _fill_entry(entry: Any, draw: Draw, path: str, name: str) -> Iterator[Any]:
    """One entry of a list: filled, or for a layer in which something is drawn per layer, one for each repeat."""
    if not (isinstance(entry, dict) and entry.keys() & {"sequence", "state"} and _has_per_layer(entry)):
        yield fill(entry, draw, path, name)
        return
    repeat = _repeats(fill(entry.get("repeat", 1), draw, f"{path}.repeat", f"{name}.repeat"), f"{path}.repeat")
    apart = {key: _has_per_layer(value) for key, value in entry.items() if key != "repeat"}
    layer: dict[str, Any] = {}
    for index in range(repeat):
        for key, differs in apart.items():
            if differs or not index:
                own = f"{name}[{index}]" if differs else name
                layer[key] = fill(entry[key], draw, f"{path}.{key}", f"{own}.{key}")
        yield dict(layer)


def _repeats(written: Any, path: str) -> int:
    repeat = number(written)
    if repeat is None or repeat not in range(1, _MOST_LAYERS + 1):
        raise UserError(f"repeat must be a whole number from 1 to {_MOST_LAYERS}, not {shortened(written)}", path)
    return int(repeat)


def _has_per_layer(node: Any) -> bool:
    if isinstance(node, dict):
        drawn_apart = is_hole(node) and node.get("per_layer") is True
        return drawn_apart or any(_has_per_layer(value) for value in node.values())
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
        raise UserError(
            f"a hole of kind `{kind}` has no {shortened(min(unknown))}; it has {sorted(_ALLOWED[kind])}", path
        )
    _flag(written, "per_layer", path)
    return _parse_choice(written["choice"], path) if kind == "choice" else _parse_range(kind, written, path)


def _flag(written: Mapping[str, Any], name: str, path: str) -> bool:
    value = written.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"`{name}` is true or false, not {shortened(value)}", path)
    return value


def _parse_range(kind: HoleKind, written: Mapping[str, Any], path: str) -> Hole:
    bounds = written[kind]
    ends = [_bound(kind, bound) for bound in bounds] if isinstance(bounds, list) else []
    known = [end for end in ends if end is not None]
    if len(ends) != 2 or len(known) != 2 or known[0] > known[1]:
        whole = ", whole numbers" if kind == "int" else ""
        raise UserError(f"`{kind}` needs [low, high] with low <= high{whole}, not {shortened(bounds)}", path)
    low, high = known
    log, step = _flag(written, "log", path), number(written.get("step", 1))
    if log and low <= 0:
        raise UserError(f"`log: true` needs a low end above 0, not {low}", path)
    if step is None or step < 1 or step != int(step) or (log and step != 1):
        given = shortened(written["step"])
        raise UserError(f"`step` must be a positive whole number, and 1 with `log: true`; not {given}", path)
    if kind == "int":
        high -= (high - low) % int(step)
    return Hole(kind, low=low, high=high, step=int(step), log=log)


def _bound(kind: HoleKind, written: Any) -> int | float | None:
    """The bound as a number of its kind; None where it is none, or too large."""
    value = number(written)
    if value is None or abs(value) > _LARGEST[kind] or (kind == "int" and value != int(value)):
        return None
    return int(value) if kind == "int" else float(value)


def _parse_choice(choices: Any, path: str) -> Hole:
    if not isinstance(choices, list) or not choices:
        raise UserError(f"`choice` needs a list of at least one value, not {shortened(choices)}", path)
    labels: list[Scalar] = []
    for index, choice in enumerate(choices):
        if choice in choices[:index]:
            raise UserError(f"{shortened(choice)} is listed twice", path)
        label = plain = _label(choice, path)
        count = 1
        while label in labels:
            count += 1
            label = f"{plain}-{count}"
        labels.append(label)
    return Hole("choice", choices=tuple(choices), labels=tuple(labels))


def _label(choice: Any, path: str) -> Scalar:
    if isinstance(choice, list):
        return _in_short(choice)[:_LONGEST_LABEL] if _has_hole(choice) else str(choice)
    if isinstance(choice, dict):
        if not (is_hole(choice) or isinstance(choice.get("type"), str)):
            raise UserError(f"a mapping to choose needs a `type`, which names it; {shortened(choice)} has none", path)
        return _in_short(choice)[:_LONGEST_LABEL]
    return choice


def _in_short(value: Any) -> str:
    """`int[2,8]` for a hole, its type for a block, and so on below."""
    if isinstance(value, list):
        return f"[{', '.join(map(_in_short, value))}]"
    if is_hole(value):
        kind = next(kind for kind in _KINDS if kind in value)
        return f"{kind}{_in_short(value[kind]).replace(', ', ',')}"
    if isinstance(value, dict):
        return str(value["type"]) if "type" in value else "/".join(_in_short(part) for part in value.values())
    return str(value)


def _has_hole(node: Any) -> bool:
    if isinstance(node, dict):
        return is_hole(node) or any(_has_hole(value) for value in node.values())
    return isinstance(node, list) and any(_has_hole(value) for value in node)


def holes(space: Any) -> dict[str, Hole]:
    """Every hole that can be met, by name, whatever is chosen elsewhere."""
    found: dict[str, Hole] = {}
    for _ in variations(space, on_hole=lambda name, hole: found.setdefault(name, hole)):
        pass
    return found


def alternatives(space: Any) -> Iterator[Any]:
    """Fillings that together take every branch of every choice, and both ends of every number, at least once."""
    return (filled for _, filled in variations(space))


def variations(
    space: Any,
    base: Mapping[str, Scalar] | None = None,
    on_hole: Callable[[str, Hole], Any] = lambda name, hole: None,
) -> Iterator[tuple[dict[str, Scalar], Any]]:
    """The alternatives, each with what is examined in it: a value, and the choices that lead to it.

    Not the product of all choices: each is varied alone, the others as in `base`, or at their first value.
    """
    pending: list[dict[str, Scalar]] = [{}]
    known: set[str] = set()
    while pending:
        fixed = pending.pop()
        met: dict[str, tuple[Hole, Scalar]] = {}

        yield fixed, fill(space, _noted({**(base or {}), **fixed}, met))
        for name, (hole, drawn) in met.items():
            on_hole(name, hole)
            if name not in known:
                known.add(name)
                pending += [{**fixed, name: value} for value in hole.values if value != drawn]


def _noted(values: Mapping[str, Scalar], met: dict[str, tuple[Hole, Scalar]]) -> Draw:
    """Draw what `values` say, else the first value; note every hole that is met, and what was drawn."""

    def draw(name: str, hole: Hole) -> Scalar:
        drawn = values.get(name, hole.values[0])
        met[name] = hole, drawn
        return drawn

    return draw


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)
