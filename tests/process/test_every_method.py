"""Every method of a real daemon, with params that a hostile or broken client might send."""

from __future__ import annotations

import json
import random
import string
from typing import TYPE_CHECKING

import pytest

from daemon.cli.client import Client, CliError
from daemon.paths import resolve
from tests.helpers.daemons import Home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemon.json_types import Json

# These do what they say: the daemon would end, or go offline.
LEFT_OUT = {"daemon.stop", "net.pause", "rpc.hello"}
ROUNDS = 12


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "h")
    made.up()
    yield made
    made.stop()


def some_value(dice: random.Random, depth: int = 0) -> Json:
    """A JSON value, often an odd one."""
    choice = dice.randrange(9 if depth < 3 else 6)
    match choice:
        case 0:
            return None
        case 1:
            return dice.choice([True, False])
        case 2:
            return dice.choice([0, -1, 1, 2**31, 2**63, -(2**63), 10**30])
        case 3:
            return dice.choice([0.0, -1.5, 1e308])
        case 4:
            letters = string.ascii_letters + "\x00\x1b\u202e\ud7ff/…🦊'\";--"
            return "".join(dice.choices(letters, k=dice.choice([0, 1, 8, 64, 300])))
        case 5:
            return dice.choice(["home", "private/x", "a/b/c", "2026-11-25", "f" * 64, "COVEY1AAAA"])
        case 6 | 7:
            return [some_value(dice, depth + 1) for _ in range(dice.randrange(4))]
        case _:
            return {f"k{i}": some_value(dice, depth + 1) for i in range(dice.randrange(4))}


def fitting(dice: random.Random, schema: Json, components: dict[str, Json], depth: int = 0) -> Json:
    """A value that fits a schema, mostly: the interesting ones pass the decoder."""
    if not isinstance(schema, dict) or depth > 4 or dice.random() < 0.05:
        return some_value(dice)
    if isinstance(reference := schema.get("$ref"), str):
        return fitting(dice, components[reference.rsplit("/", 1)[1]], components, depth + 1)
    if isinstance(options := schema.get("anyOf"), list):
        return fitting(dice, dice.choice(options), components, depth + 1)
    if isinstance(values := schema.get("enum"), list):
        return dice.choice(values)
    match schema.get("type"):
        case "string":
            return dice.choice(
                [
                    "",
                    "node",
                    "node 22",
                    "a" * 64,
                    "home",
                    "team/x",
                    "2026-01-01",
                    "x" * 5000,
                    "\x00",
                ]
            )
        case "integer":
            return dice.choice([-1, 0, 1, 3, 10**6, 2**40])
        case "number":
            return dice.choice([-1.0, 0, 0.5, 1.5, 1e300])
        case "boolean":
            return dice.choice([True, False])
        case "array":
            count = dice.choice([0, 1, 2, 30])
            return [fitting(dice, schema.get("items"), components, depth + 1) for _ in range(count)]
        case "object":
            properties = schema.get("properties")
            if not isinstance(properties, dict):
                return {}
            return {
                name: fitting(dice, inner, components, depth + 1)
                for name, inner in properties.items()
                if dice.random() < 0.6
            }
    return some_value(dice)


def refusal(client: Client, name: str, params: dict[str, Json]) -> CliError | None:
    """How the daemon refused the call, None if it did not."""
    try:
        client.call(name, params)
    except CliError as error:
        return error
    return None


@pytest.mark.attack
def test_no_params_reach_a_fault_inside(home: Home) -> None:
    dice = random.Random(20)
    paths = resolve({"COVEY_HOME": str(home.folder), "HOME": str(home.folder)})
    client = Client([paths.socket], timeout_s=30.0)
    document = client.call("rpc.discover")
    assert isinstance(document, dict)
    components = document["components"]
    assert isinstance(components, dict)
    schemas = components["schemas"]
    assert isinstance(schemas, dict)
    methods = document["methods"]
    assert isinstance(methods, list)
    answered = 0
    for entry in methods:
        assert isinstance(entry, dict)
        name = str(entry["name"])
        if name in LEFT_OUT:
            continue
        listed = entry["params"]
        assert isinstance(listed, list)
        for _ in range(ROUNDS):
            params: dict[str, Json] = {}
            for param in listed:
                assert isinstance(param, dict)
                if param["required"] or dice.random() < 0.5:
                    params[str(param["name"])] = fitting(dice, param["schema"], schemas)
            refused = refusal(client, name, params)
            answered += refused is None
            if refused is not None:
                shown = f"{name} {json.dumps(params)[:300]}"
                assert refused.name not in {"internal", "deadline", "error"}, shown
                assert refused.remedy, name
    client.close()
    assert answered > 100
    assert "rpc_bug" not in {line["event"] for line in home.log()}
    home.ok("remember", "still in order")
    assert home.texts("still order") == ["still in order"]
