"""What all groups of settings share: limits, help texts and plain values."""

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from spectacles.core.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]


class Settings:
    """Base of all groups of settings: one with a value out of range is never built. Raises UserError."""

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain_limits(cls, values: Any, build: Callable[[Any], Self]) -> Self:
        try:
            return build(values)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] not in ("greater_than_equal", "less_than_equal"):
                raise
            name = str(first["loc"][0])
            raise UserError(f"--{name} {first['input']} is out of range: use {_limits(cls, name)}.") from None


def _limits(config_class: Any, name: str) -> str:
    metadata = config_class.__pydantic_fields__[name].metadata
    limits = {key: getattr(part, key) for part in metadata for key in ("ge", "le") if hasattr(part, key)}
    return f"{limits['ge']:g} to {limits['le']:g}" if "le" in limits else f"{limits['ge']:g} or more"


@cache
def help_texts(config_class: type) -> dict[str, str]:
    """field -> the docstring under it, the class's own and inherited ones."""
    known = [getattr(base, "__pydantic_fields__", {}) for base in reversed(config_class.__mro__)]
    return {name: field.description for part in known for name, field in part.items() if field.description}


def to_plain(config: Any) -> dict[str, Any]:
    """The config as YAML- and JSON-ready values, in the order of its fields."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def select(config: Any, config_class: type) -> Any:
    """The part of a larger config that `config_class` knows."""
    return config_class(**{field.name: getattr(config, field.name) for field in fields(config_class)})
