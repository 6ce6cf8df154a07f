"""JSON as a type."""

from __future__ import annotations

from typing import TypeAlias, Union

# A plain `X | Y` of a forward reference is not evaluable at run time in Python 3.11.
Json: TypeAlias = Union[
    bool, int, float, str, "list[Json]", "dict[str, Json]", "tuple[Json, ...]", None
]
"""What a JSON document can hold (tuples are written as arrays)."""


def any_json(kind: type) -> dict[str, Json]:
    """JSON Schema of `object`, which stands for any JSON: a `schema_hook` of msgspec.

    Raises:
        NotImplementedError: another type.
    """
    if kind is object:
        return {"description": "any JSON"}
    raise NotImplementedError
