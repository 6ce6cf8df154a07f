"""The tool list made of the real registry: what is in it, how big it is, what it accepts."""

from __future__ import annotations

import json
from typing import cast

import msgspec
import pytest

from daemon.errors import RpcError
from daemon.mcp.resources import FIXED, decode_uri_untrusted
from daemon.mcp.schema import field_descriptions, input_schema
from daemon.mcp.tools import TOOLS_BYTES_MAX, ToolEntry, build_tools
from daemon.methods import all_methods
from daemon.rpc.registry import Registry
from memory.model import Query

REGISTRY = Registry.of(all_methods())
TOOLS = build_tools(REGISTRY, "standard")
SAMPLES: dict[str, dict[str, object]] = {
    "memory_feedback": {"id": "ab" * 32, "outcome": "useful", "note": "it was"},
    "memory_forget": {"id": "ab" * 32, "reason": "wrong"},
    "memory_get": {"ids": ["ab" * 32]},
    "memory_history": {"id": "ab" * 32},
    "memory_recall": {"query": "x", "scope": ["a", "b"], "tags": ["t"], "trust_min": 0.2},
    "memory_remember": {
        "text": "x",
        "claim": {"subject": "build", "attribute": "node", "value": "22"},
        "source": {"uri": "https://example.org"},
        "supersedes": ["ab" * 32],
    },
    "peers_list": {},
}


def hints(name: str) -> tuple[bool, ...]:
    return tuple(TOOLS[name].hints.values())


def test_first_version_has_these_tools() -> None:
    assert set(SAMPLES) <= set(TOOLS)


def test_names_are_the_methods_with_underscores_and_sorted() -> None:
    assert list(TOOLS) == sorted(TOOLS)
    for name, entry in TOOLS.items():
        assert name == entry.method.name.replace(".", "_")


def test_list_fits_its_limit() -> None:
    listed = json.dumps([entry.listed() for entry in TOOLS.values()], separators=(",", ":"))
    assert len(listed) <= TOOLS_BYTES_MAX, "as it is sent"


def test_what_any_object_may_hold_takes_no_byte() -> None:
    properties = cast("dict[str, dict[str, object]]", TOOLS["job_submit"].schema["properties"])
    assert properties["params"] == {"type": "object", "description": "for the handler"}


def test_hints_are_those_of_the_specification() -> None:
    # read only, destructive, idempotent, open world
    assert hints("memory_recall") == (True, False, True, False)
    assert hints("memory_get") == (True, False, True, False)
    assert hints("memory_history") == (True, False, True, False)
    assert hints("memory_remember") == (False, False, False, False)
    assert hints("memory_forget") == (False, True, True, False)
    assert hints("peers_list") == (True, False, True, False)


def test_tool_that_changes_something_never_says_it_only_reads() -> None:
    for entry in TOOLS.values():
        assert entry.hints["readOnlyHint"] != entry.method.mutates


@pytest.mark.parametrize("name", list(TOOLS))
def test_every_tool_and_argument_says_what_it_is(name: str) -> None:
    entry = TOOLS[name]
    assert len(entry.description) > 20
    properties = cast("dict[str, dict[str, object]]", entry.schema["properties"])
    silent = [key for key, value in properties.items() if "description" not in value]
    assert len(silent) <= 1, silent
    assert entry.schema["additionalProperties"] is False
    assert "$ref" not in json.dumps(entry.schema)


@pytest.mark.parametrize("name", list(SAMPLES))
def test_arguments_of_the_schema_become_params_of_the_method(name: str) -> None:
    entry = TOOLS[name]
    params = entry.params(SAMPLES[name])
    assert isinstance(params, entry.method.params)
    known = set(cast("dict[str, object]", entry.schema["properties"]))
    assert set(SAMPLES[name]) <= known


@pytest.mark.attack
@pytest.mark.parametrize("name", list(SAMPLES))
@pytest.mark.parametrize(
    "bad", [{"role": "owner"}, {"unknown": 1}, {"text": 5, "query": [], "id": {}, "ids": "x"}]
)
def test_other_arguments_are_refused_with_the_list_of_right_ones(
    name: str, bad: dict[str, object]
) -> None:
    # An agent may not call itself the owner: `role` is no argument of memory_remember.
    with pytest.raises(RpcError) as refused:
        TOOLS[name].params({**SAMPLES[name], **bad})
    assert refused.value.name == "invalid_params"
    assert "Its arguments are:" in refused.value.remedy


def test_error_of_an_adapter_is_a_wrong_argument() -> None:
    with pytest.raises(RpcError) as refused:
        TOOLS["memory_recall"].params({"query": "x", "detail": "everything"})
    assert refused.value.name == "invalid_params"


def test_profiles_choose() -> None:
    core = build_tools(REGISTRY, "core")
    assert core
    assert all(name.startswith("memory_") for name in core)
    readonly = build_tools(REGISTRY, "readonly")
    assert "memory_recall" in readonly
    assert "memory_remember" not in readonly
    assert all(entry.hints["readOnlyHint"] for entry in readonly.values())


@pytest.mark.parametrize("fixed", FIXED)
def test_fixed_resources_are_methods_with_these_arguments(fixed: object) -> None:
    target = decode_uri_untrusted(fixed.uri)  # type: ignore[attr-defined]
    assert target is not None
    method = REGISTRY.get(target.method)
    assert method is not None
    assert isinstance(target.params(method.params), method.params)


def test_memory_resource_is_a_get_of_its_id() -> None:
    target = decode_uri_untrusted("covey://memory/" + "0f" * 4)
    assert target is not None
    assert target.method == "memory.get"
    method = REGISTRY.get("memory.get")
    assert method is not None
    assert target.params(method.params).ids == ["0f" * 4]  # type: ignore[attr-defined]


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    a: int


class Outer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Something.

    Attributes:
        title: a field that is called like a keyword,
            described on two lines.
        inner: another struct.
        maybe: a number or nothing.

    And more words.
    """

    title: str
    inner: Inner | None = None
    maybe: int | None = None
    many: list[Inner] = []
    flag: bool = False
    count: int = 3


def test_schema_is_short_and_complete() -> None:
    inner = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert input_schema(Outer) == {
        "type": "object",
        "properties": {
            "title": {
                "type": "string",
                "description": "a field that is called like a keyword, described on two lines",
            },
            "inner": {**inner, "description": "another struct"},
            "maybe": {"type": "integer", "description": "a number or nothing"},
            "many": {"type": "array", "items": inner},
            "flag": {"type": "boolean"},
            "count": {"type": "integer", "default": 3},
        },
        "required": ["title"],
        "additionalProperties": False,
    }


def test_field_descriptions_end_with_their_section() -> None:
    assert set(field_descriptions(Outer)) == {"title", "inner", "maybe"}
    assert "query" in field_descriptions(Query)


def test_tool_entry_without_a_tool_is_a_bug() -> None:
    method = REGISTRY.get("memory.list")
    assert method is not None
    entry = ToolEntry(name="x", method=method, arguments=method.params, schema={}, description="x")
    with pytest.raises(ValueError, match="no tool"):
        _ = entry.hints
