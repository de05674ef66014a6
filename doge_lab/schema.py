"""JSON Schema of run and space files, for completion and checking in editors.

It is generated from the same pydantic models that read the files, with the blocks and tasks found by name filled in.
"""

from collections.abc import Callable
from typing import Any

from doge_lab import registry, tasks
from doge_lab.block import Kind
from doge_lab.config import RunConfig
from doge_lab.search.config import SearchConfig

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def run_schema() -> Schema:
    """Schema of a run file."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for kind in registry.KINDS:
        definitions[f"{kind}_block"] = _block_schema(kind)
    definitions["task"] = _named([(name, tasks.get(name).model_json_schema()) for name in tasks.names()])
    filled = _replaced(schema, _fill_marker)
    return {"$schema": _DIALECT, "title": "doge_lab run", **_hoisted(filled)}


def space_schema() -> Schema:
    """Schema of a search space: a run file with a hole allowed at every value, and the `search` section."""
    schema = run_schema()
    search = SearchConfig.model_json_schema()
    schema["$defs"] = {name: _with_holes(definition) for name, definition in schema["$defs"].items()}
    schema["$defs"] |= search.pop("$defs", {})
    schema["properties"] = _with_holes(schema)["properties"]
    schema["properties"]["search"] = search
    schema["title"] = "doge_lab search space"
    return schema


def _block_schema(kind: Kind) -> Schema:
    found = [(name, registry.get(kind, name).Config.model_json_schema()) for name in registry.names(kind)]
    schema = _named(found)
    schema["anyOf"].append({"type": "string", "pattern": "^[\\w.]+:\\w+$", "description": "package.module:Class"})
    return schema


def _named(found: list[tuple[str, Schema]]) -> Schema:
    """A name alone, or a mapping whose `type` is one of the names."""
    mappings = []
    for name, schema in found:
        options = {key: value for key, value in schema["properties"].items() if key != "type"}
        required = [key for key in schema.get("required", []) if key != "type"]
        mappings.append(
            {
                "type": "object",
                "properties": {"type": {"const": name}, **options},
                "required": ["type", *required],
                "additionalProperties": False,
                "$defs": schema.get("$defs", {}),
            }
        )
    return {"anyOf": [{"enum": [name for name, _ in found]}, *mappings]}


def _fill_marker(node: Schema) -> Schema:
    if "x-block" in node:
        return {"$ref": f"#/$defs/{node['x-block']}_block", **_without(node, "x-block")}
    if "x-task" in node:
        return {"$ref": "#/$defs/task", **_without(node, "x-task")}
    return node


def _hoisted(schema: Schema) -> Schema:
    """Definitions nested in blocks and tasks, moved to the top where `$ref` looks for them."""
    found: Schema = {}

    def lift(node: Schema) -> Schema:
        found.update(node.get("$defs", {}))
        return _without(node, "$defs")

    top = _replaced(schema, lift)
    return {**top, "$defs": {name: _without(definition, "$defs") for name, definition in found.items()}}


def _with_holes(schema: Schema) -> Schema:
    """Every property may also be a hole of its values."""

    def open_properties(node: Schema) -> Schema:
        if not isinstance(node.get("properties"), dict):
            return node
        opened = {
            name: value if "const" in value else {"anyOf": [value, *_holes_of(value)], **_annotations(value)}
            for name, value in node["properties"].items()
        }
        return {**node, "properties": opened}

    return _replaced(schema, open_properties)


def _holes_of(value: Schema) -> list[Schema]:
    per_layer = {"per_layer": {"type": "boolean"}}
    numbers = {"minItems": 2, "maxItems": 2, "type": "array"}
    options: list[tuple[str, Schema, Schema]] = [
        ("choice", {"type": "array", "items": value, "minItems": 1}, {}),
        ("int", {**numbers, "items": {"type": "integer"}}, {"step": {"type": "integer"}, "log": {"type": "boolean"}}),
        ("float", {**numbers, "items": {"type": "number"}}, {"log": {"type": "boolean"}}),
    ]
    return [
        {
            "type": "object",
            "properties": {name: schema, **more, **per_layer},
            "required": [name],
            "additionalProperties": False,
        }
        for name, schema, more in options
    ]


def _replaced(node: Any, change: Callable[[Schema], Schema]) -> Any:
    """`node` with `change` applied to every mapping in it, innermost first."""
    if isinstance(node, dict):
        return change({key: _replaced(value, change) for key, value in node.items()})
    if isinstance(node, list):
        return [_replaced(value, change) for value in node]
    return node


def _without(node: Schema, key: str) -> Schema:
    return {name: value for name, value in node.items() if name != key}


def _annotations(value: Schema) -> Schema:
    return {name: value[name] for name in ("description", "default", "title") if name in value}
