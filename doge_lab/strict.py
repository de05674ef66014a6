"""The base of everything that is read from a file: frozen, no unknown names, errors that a user can act on."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from doge_lab.errors import UserError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A pydantic model whose field docstrings are its documentation and which refuses what it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, written: Any) -> Any:
        if isinstance(written, Mapping):
            for name in written:
                if name not in cls.model_fields:
                    raise UserError(f"unknown option {name!r}{did_you_mean(str(name), list(cls.model_fields))}")
        return written


def validate(model: type[Model], written: Any) -> Model:
    """`model.model_validate`, raising `UserError` with the path inside what was written."""
    try:
        return model.model_validate(written)
    except ValidationError as error:
        raise user_error(error) from None


def user_error(error: ValidationError) -> UserError:
    """The first problem as one line; says how many more there are."""
    first, *others = error.errors()
    path = ".".join(str(part) for part in first["loc"])
    cause = first.get("ctx", {}).get("error")
    more = f" (and {len(others)} more)" if others else ""
    if isinstance(cause, UserError):
        return UserError(cause.message + more, cause.path).under(path)
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = "" if first["type"] == "missing" else f", not {_shortened(first['input'])}"
    return UserError(f"{message}{given}{more}", path)


def _shortened(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
