"""The registry as an OpenRPC 1.3.2 document: what `rpc.discover` answers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import msgspec

import daemon
from daemon.errors import BY_CODE
from daemon.json_types import any_json
from daemon.rpc.registry import API

if TYPE_CHECKING:
    from daemon.json_types import Json
    from daemon.rpc.registry import Method, Registry

_REF = "#/components/schemas/{name}"


def describe(registry: Registry) -> dict[str, Json]:
    """Build the document.

    Args:
        registry: the methods.

    Returns:
        OpenRPC 1.3.2, deterministic: methods by name, errors by code.
    """
    entries = list(registry)
    types: list[object] = []
    for entry in entries:
        types += [entry.params, entry.result]
    schemas, components = msgspec.json.schema_components(
        types, schema_hook=any_json, ref_template=_REF
    )
    for schema in components.values():
        # Python 3.13 takes a docstring's indentation off, older ones leave it: the same for all.
        if isinstance(text := schema.get("description"), str):
            schema["description"] = inspect.cleandoc(text)
    methods: list[Json] = [
        _method(entry, schemas[2 * i], schemas[2 * i + 1], components)
        for i, entry in enumerate(entries)
    ]
    errors: list[Json] = [
        {"code": kind.code, "name": kind.name, "exit": kind.exit_code, "remedy": kind.remedy}
        for kind in BY_CODE.values()
    ]
    return {
        "openrpc": "1.3.2",
        "info": {
            "title": "Covey local RPC",
            "version": f"{API[0]}.{API[1]}",
            "x-covey-version": daemon.__version__,
        },
        "methods": methods,
        "components": {"schemas": components},
        "x-errors": errors,
    }


def _method(
    entry: Method,
    params: dict[str, Json],
    result: dict[str, Json],
    components: dict[str, dict[str, Json]],
) -> dict[str, Json]:
    schema = components.get(entry.params.__name__, params)
    required = schema.get("required", [])
    properties = schema.get("properties", {})
    listed: list[Json] = []
    if isinstance(properties, dict):
        for name, value in properties.items():
            is_required = isinstance(required, list) and name in required
            listed.append({"name": name, "required": is_required, "schema": value})
    return {
        "name": entry.name,
        "summary": entry.summary,
        "paramStructure": "by-name",
        "params": listed,
        "result": {"name": "result", "schema": result},
        "x-scope": entry.scope,
        "x-mutates": entry.mutates,
        "x-since": f"{entry.since[0]}.{entry.since[1]}",
    }


def main() -> None:
    """Print the document: docs/specs/local-rpc.openrpc.json is this output."""
    import json
    import sys

    from daemon.methods import all_methods
    from daemon.rpc.registry import Registry

    json.dump(describe(Registry.of(all_methods())), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
