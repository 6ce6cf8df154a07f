"""The table of methods: complete, documented, and served without a fault inside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from daemon.agents import SCOPE_VERBS, assumed
from daemon.methods import all_methods
from daemon.rpc.openrpc import describe
from daemon.rpc.registry import Call, Empty, Registry, Tool, method

DOCUMENT = Path("docs/specs/local-rpc.openrpc.json")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.of(all_methods())


def test_the_committed_document_is_what_the_code_says(registry: Registry) -> None:
    written = json.loads(DOCUMENT.read_text())
    built = json.loads(json.dumps(describe(registry)))
    assert written == built, "run: python -m daemon.rpc.openrpc > docs/specs/local-rpc.openrpc.json"


def test_every_method_is_described_and_scoped(registry: Registry) -> None:
    assert len(registry) > 30
    for entry in registry:
        assert entry.summary.endswith(".")
        assert entry.name.count(".") == 1
        assert entry.scope in {"", "owner"} | SCOPE_VERBS, entry.name
        assert entry.since == (1, 0)


def test_params_refuse_what_they_do_not_know(registry: Registry) -> None:
    for entry in registry:
        assert entry.params.__struct_config__.forbid_unknown_fields, entry.name
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(b'{"surely_unknown": 1}', type=entry.params)


def test_what_writes_memory_is_marked_and_nothing_that_reads_is(registry: Registry) -> None:
    writing = {entry.name for entry in registry if entry.mutates}
    assert writing == {
        "group.rollback",
        "job.cancel",
        "job.retry_gaps",
        "job.submit",
        "state.add",
        "state.change",
        "state.delete",
        "state.incr",
        "state.remove",
        "state.set",
        "fed.join",
        "fed.leave",
        "fed.submit",
        "memory.erase",
        "memory.feedback",
        "memory.forget",
        "memory.maintain",
        "memory.quarantine_reject",
        "memory.quarantine_release",
        "memory.remember",
        "memory.resolve",
        "trust.distrust",
        "trust.endorse",
    }
    for entry in registry.tools().values():
        assert entry.tool is not None
        assert entry.tool.read_only is not entry.mutates
        assert entry.tool.name == entry.name.replace(".", "_")
        assert entry.tool.summary


def test_agents_do_not_reach_what_is_the_persons_by_default(registry: Registry) -> None:
    agent = assumed("helper")
    allowed = {entry.name for entry in registry if agent.allows(entry.scope)}
    for name in ("daemon.stop", "agents.add", "invite.join", "invite.create", "peers.accept",
                 "net.pause", "config.show", "peers.rename", "group.create"):  # fmt: skip
        assert name not in allowed
    assert {"memory.recall", "memory.remember", "peers.list", "daemon.status"} <= allowed


@method("test.first", scope="read", tool=Tool(name="test_first"))
async def first(call: Call, p: Empty) -> Empty:
    """Say nothing."""
    del call
    return p


def test_names_must_not_collide() -> None:
    other = replace(first, name="test.second")
    with pytest.raises(ValueError, match=r"test\.first is declared twice"):
        Registry([first, first])
    with pytest.raises(ValueError, match="tool test_first"):
        Registry([first, other])


def test_a_method_needs_a_docstring_and_a_params_struct() -> None:
    async def silent(call: Call, p: Empty) -> Empty:
        del call
        return p

    async def loose(call: Call, p: int) -> Empty:
        """Take a number."""
        del call, p
        return Empty()

    with pytest.raises(TypeError, match="docstring"):
        method("test.silent", scope="")(silent)
    with pytest.raises(TypeError, match=r"msgspec\.Struct"):
        method("test.loose", scope="")(loose)  # type: ignore[type-var]
