"""Values that the blocks of a deployment file have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Tokens = Annotated[int, Field(gt=0, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Block(BaseModel):
    """A block: no other keys than its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def as_list(value: Any) -> Any:
    """A list as it is; anything else as the only entry of one."""
    return value if isinstance(value, list) else [value]


def unique(values: list[Any]) -> list[Any]:
    """The list itself. Raises ValueError where it is empty or holds a value twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value!r} is listed twice")
    if not values:
        raise ValueError("the list is empty")
    return values
