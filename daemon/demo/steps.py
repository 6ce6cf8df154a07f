"""The steps of the demo, each a thing Covey promises, done for real and checked."""

from __future__ import annotations

import json
import sys
from textwrap import shorten
from typing import TYPE_CHECKING, cast

import trio
from mcp import Client, StdioServerParameters

from daemon.client import CallFailed, LocalClient
from daemon.demo.corpus import write_notes
from daemon.demo.hostile import joined_guest
from p2p.identity import PeerId, peer_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.demo.machine import Machine
    from daemon.demo.show import Show
    from daemon.json_types import Json
    from p2p.env import Env

NOTES_MAX = 6000
WRITERS = 8
KILL_AFTER_WRITES = 200
OFFLINE_NOTES = 25
SETTLE_S = 30.0
POLL_S = 0.05


def field(value: Json, *path: str | int) -> Json:
    """A value deep inside a JSON answer; None where the path ends early."""
    for key in path:
        if isinstance(value, dict) and isinstance(key, str):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = SETTLE_S) -> bool:
    """Whether `condition` came true in time."""
    with trio.move_on_after(within_s):
        # What is awaited lives in other processes: there is no event to wait for.
        while not await condition():  # noqa: ASYNC110
            await trio.sleep(POLL_S)
        return True
    return False


async def start(show: Show, env: Env, machines: list[Machine]) -> None:
    """Three daemons, three homes."""
    show.step("Three daemons start, as on three machines of yours")
    for machine in machines:
        began = env.now()
        await machine.covey("up")
        status = await machine.covey_json("status")
        peer = peer_text(bytes.fromhex(str(status["node_id"])))
        show.check(
            f"{machine.name:8} ready, peer {peer[:8]}…{peer[-8:]}, process {machine.pid}",
            True,
            began,
        )


async def pair(show: Show, env: Env, first: Machine, others: list[Machine]) -> None:
    """A ticket each; both screens show the same six words."""
    show.step(f"{first.name} invites the others: one ticket, one command")
    for other in others:
        began = env.now()
        watcher = await first.connect()
        await watcher.call("events.subscribe", {"topics": ["group"]})
        invite = await first.covey_json("invite", "--no-wait")
        ticket = str(invite["ticket"])
        joined = await other.covey_json("join", ticket, "--yes")
        words = field(joined, "check_words")
        seen = await _words_seen(watcher, str(invite["invite"]))
        await watcher.aclose()
        show.check(f"{other.name} joined with a ticket of {len(ticket)} characters", words, began)
        show.check(f"both show: {' '.join(map(str, cast('list[Json]', words)))}", seen == words)


async def _words_seen(watcher: LocalClient, invite: str) -> Json:
    with trio.move_on_after(SETTLE_S):
        while True:
            event = await watcher.notification()
            if (
                event.get("name") == "group.member_joined"
                and field(event, "data", "invite") == invite
            ):
                words = field(event, "data", "check_words")
                return list(words.split()) if isinstance(words, str) else words
    return None


async def digest(client: LocalClient) -> tuple[Json, Json]:
    """What a machine holds of `home`: how many records, and one hash over all of them."""
    answer = await client.call("sync.digest", {"group": "home"})
    return field(answer, "records"), field(answer, "digest")


async def all_equal(clients: list[LocalClient]) -> bool:
    """Whether all hold the same records."""
    return len({await digest(client) for client in clients}) == 1


async def import_text(show: Show, env: Env, machines: list[Machine]) -> None:
    """The standard library's documentation, imported on one, replicated to all."""
    show.step("Real text: the documentation of Python's standard library")
    first = machines[0]
    path = first.home / "python-docs.jsonl"
    count = write_notes(path, notes_max=NOTES_MAX)
    began = env.now()
    done = await first.covey_json("import", str(path))
    seconds = env.now() - began
    stored = cast("int", field(done, "stored") or 0)
    show.check(
        f"{stored:,} memories imported on {first.name}, durable, {stored / seconds:,.0f} a second",
        stored > count * 0.9,
        began,
    )
    clients = [await machine.connect() for machine in machines]
    equal = await until(lambda: all_equal(clients))
    records, value = await digest(clients[0])
    show.check(
        f"all three hold the same {records:,} signed records ({str(value)[:16]})", equal, began
    )
    for client in clients:
        await client.aclose()


def relay(machine: Machine, agent: str) -> StdioServerParameters:
    """How an MCP client starts the relay."""
    return StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "daemon", "mcp"],
        env={**machine.env, "COVEY_AGENT": agent},
    )


async def agents(show: Show, env: Env, writer: Machine, reader: Machine) -> None:
    """An agent here remembers, an agent there recalls, through MCP."""
    show.step("An agent remembers on one machine, another recalls it on the other, by MCP")
    text = (
        "Decision: the release is cut on Thursdays after the nightly soak is green; Mira approves."
    )
    async with Client(relay(writer, "claude-code")) as client:
        began = env.now()
        stored = await client.call_tool("memory_remember", {"text": text, "kind": "decision"})
        identifier = str(field(_structured(stored.structured_content), "id"))
        show.check(f"claude-code on {writer.name} remembers; acknowledged", identifier, began)
    seen = await reader.connect()
    arrived = await until(lambda: _has(seen, identifier))
    show.check(f"on {reader.name}", arrived, began)
    await seen.aclose()
    async with Client(relay(reader, "cursor")) as client:
        began = env.now()
        found = await client.call_tool("memory_recall", {"query": "who approves the release"})
        took_ms = (env.now() - began) * 1000
    hits = field(_structured(found.structured_content), "hits")
    show.check(f"cursor on {reader.name} recalls it, first of {_count(hits)}", hits, began)
    show.hits([_row(hit) for hit in cast("list[Json]", hits or [])[:3]])
    top = field(hits, 0)
    show.check(
        f"signed by claude-code on {writer.name}, trust {field(top, 'trust')}, {took_ms:.1f} ms",
        field(top, "text") == text
        and field(top, "author", "agent") == "claude-code"
        and field(top, "author", "device") == writer.name
        and field(top, "author", "relation") == "own_device",
    )


def _structured(content: object) -> Json:
    answer: Json = json.loads(json.dumps(content))
    return answer


def _count(hits: Json) -> int:
    return len(hits) if isinstance(hits, list) else 0


def _row(hit: Json) -> tuple[str, str, str, str]:
    text = str(field(hit, "text") or field(hit, "title"))
    trust = cast("float", field(hit, "trust") or 0.0)
    author = str(field(hit, "author", "agent"))
    device = str(field(hit, "author", "device"))
    return shorten(text, 60, placeholder=" …"), author, device, f"{trust:.2f}"


async def _has(client: LocalClient, identifier: str) -> bool:
    try:
        answer = await client.call("memory.get", {"ids": [identifier]})
    except CallFailed:
        return False
    return bool(field(answer, "hits"))


async def kill(show: Show, env: Env, victim: Machine) -> None:
    """SIGKILL while eight writers write: every acknowledged memory must be there afterwards."""
    show.step(f"{victim.name} is killed with SIGKILL in the middle of writes")
    acknowledged: list[str] = []
    enough = trio.Event()

    async def write(number: int) -> None:
        client = await victim.connect()
        count = 0
        while True:
            text = f"Measurement {number}.{count}: sensor {number} reads {count * 7 % 997} mV."
            try:
                answer = await client.call("memory.remember", {"text": text})
            except EOFError:
                return
            acknowledged.append(str(field(answer, 0, "id") or field(answer, "id")))
            count += 1
            if len(acknowledged) >= KILL_AFTER_WRITES:
                enough.set()

    async with trio.open_nursery() as nursery:
        for number in range(WRITERS):
            nursery.start_soon(write, number)
        await enough.wait()
        victim.kill()
    show.note(f"{len(acknowledged)} writes were acknowledged before it died")
    began = env.now()
    await victim.covey("up")
    client = await victim.connect()
    show.check("it comes back", True, began)
    there = [identifier for identifier in acknowledged if await _has(client, identifier)]
    show.check(
        f"{len(there)} of {len(acknowledged)} acknowledged memories are there",
        len(there) == len(acknowledged) > 0,
    )
    await client.aclose()


async def part_and_heal(show: Show, env: Env, machines: list[Machine], alone: Machine) -> None:
    """A machine is cut off, both sides write, the cut heals."""
    show.step(f"{alone.name} is cut off from the others; both sides go on writing")
    clients = {machine.name: await machine.connect() for machine in machines}
    await clients[alone.name].call("net.pause")
    for number in range(OFFLINE_NOTES):
        for machine in (machines[0], alone):
            text = f"Written on {machine.name} while apart, number {number}."
            await clients[machine.name].call("memory.remember", {"text": text})
    sets = {name: str((await digest(client))[1])[:8] for name, client in clients.items()}
    apart = ", ".join(f"{name} {value}" for name, value in sets.items())
    show.check(f"their sets differ: {apart}", sets[alone.name] != sets[machines[0].name])
    began = env.now()
    await clients[alone.name].call("net.resume")
    healed = await until(lambda: all_equal(list(clients.values())))
    held = {name: await digest(client) for name, client in clients.items()}
    records, value = held[alone.name]
    show.check(f"healed: all three hold {records:,} records ({str(value)[:16]})", healed, began)
    if not healed:
        show.note(", ".join(f"{name}: {count:,}" for name, (count, _) in held.items()))
    for client in clients.values():
        await client.aclose()


async def attack(show: Show, env: Env, victim: Machine) -> None:
    """A guest joins properly and then pushes a forged record and a stranger's."""
    show.step("A guest with a real ticket turns hostile")
    began = env.now()
    invite = await victim.covey_json("invite", "--no-wait", "--role", "read")
    watcher = await victim.connect()
    await watcher.call("events.subscribe", {"topics": ["sync"]})
    status = await victim.covey_json("status")
    peer = PeerId(bytes.fromhex(str(status["node_id"])))
    async with joined_guest(env, str(invite["ticket"])) as guest:
        show.check("it joins, as anybody with a ticket may", guest.group, began)
        before = await digest(watcher)
        for name, wire in (
            (f"a note in {victim.name}'s name, signed by somebody else", guest.forged(peer)),
            ("a note of a stranger, correctly signed", guest.of_a_stranger()),
        ):
            began = env.now()
            await guest.push(peer, wire)
            reason = await _refusal(watcher)
            show.check(f"refused: {name}", reason, began)
            show.note(f"reason given in the log and as an event: {reason}")
    answer = await watcher.call(
        "memory.recall", {"query": "deploy password changed", "trust_min": 0}
    )
    texts = [str(field(hit, "text")) for hit in cast("list[Json]", field(answer, "hits") or [])]
    show.check("nothing of it can be recalled", not any("evil.example" in text for text in texts))
    show.check("the set of records is as before the attack", await digest(watcher) == before)
    await watcher.aclose()


async def _refusal(watcher: LocalClient) -> str:
    with trio.move_on_after(SETTLE_S):
        while True:
            event = await watcher.notification()
            if event.get("name") == "record.refused":
                return str(field(event, "data", "reason"))
    return ""
