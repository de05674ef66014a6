"""The base of everything that is read from a file: frozen, no unknown names, errors that a user can act on."""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from doge_lab.errors import Conflict, UserError, did_you_mean, shortened

Model = TypeVar("Model", bound=BaseModel)
_NUMBER = re.compile(r"[-+]?(\d+|(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?)", re.ASCII)
"""YAML 1.2's decimal numbers."""
LONGEST_NUMBER = 40


def number(value: Any) -> int | float | None:
    """`value` where it is a finite number or text that writes one, else None: a bool is no number.

    YAML 1.1, and so the reader, takes `1e-3` for text, since it has no point and no sign in its exponent.
    """
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and (found := _NUMBER.fullmatch(value)):
        value = int(value) if found[1].isdigit() else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _strict(part) for key, part in schema.items()}
    if schema.get("type") == "bool":
        return schema | {"strict": True}
    if schema.get("type") in ("int", "float"):
        return core_schema.no_info_before_validator_function(_read_number, schema | {"strict": True})
    return schema


def _read_number(value: Any) -> Any:
    """Text that writes a number as that number, and a whole float as an int, which both kinds of field take."""
    read = number(value) if isinstance(value, str) else value
    if isinstance(read, float) and read.is_integer():
        return int(read)
    return value if read is None else read


class Unknown(UserError):
    """A name that no option has."""


class Strict(BaseModel):
    """A pydantic model whose field docstrings are its documentation and which refuses what it does not know.

    A bool is no number, a number no bool, and text is neither, save that text may write a number (`number`).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, written: Any) -> Any:
        if isinstance(written, Mapping):
            for name in written:
                if name not in cls.model_fields:
                    raise Unknown(f"unknown option {shortened(name)}{did_you_mean(str(name), list(cls.model_fields))}")
        return written

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler, /) -> CoreSchema:
        """Pydantic's own schema, every scalar in it made strict: `ConfigDict(strict=True)` refuses lists for tuples."""
        schema: CoreSchema = _strict(handler(source))
        return schema


def validate(model: type[Model], written: Any) -> Model:
    """`model.model_validate`, raising `UserError` with the path inside what was written."""
    try:
        return model.model_validate(written)
    except ValidationError as error:
        raise user_error(error) from None


def user_error(error: ValidationError) -> UserError:
    """The first problem as one line; says how many more there are."""
    first, *others = error.errors()
    # A list of which no entry can be read is also told to be too short: no mistake of its own.
    others = [other for other in others if other["loc"] != first["loc"][: len(other["loc"])]]
    # Where a field takes several types, pydantic puts the one that it tried into the path.
    path = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-before["))
    cause = first.get("ctx", {}).get("error")
    more = f" (and {len(others)} more)" if others else ""
    if isinstance(cause, UserError):
        # Found when every field was read: what is no rule between them is found earlier, or below one of them.
        kind = Conflict if not first["loc"] and not isinstance(cause, Unknown) else UserError
        return kind(cause.message + more, ".".join(part for part in (path, cause.path) if part))
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = "" if first["type"] == "missing" else f", not {shortened(first['input'])}"
    hint = "; YAML reads yes, no, on and off as true and false" if isinstance(first["input"], bool) else ""
    return UserError(f"{message}{given}{hint}{more}", path)
