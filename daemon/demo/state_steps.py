"""Shared state's own steps: values changed apart, a removal with a new key, a confirmed erasure."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from daemon.demo.steps import all_equal, field, until

if TYPE_CHECKING:
    from daemon.client import LocalClient
    from daemon.demo.machine import Machine
    from daemon.demo.show import Show
    from daemon.json_types import Json
    from p2p.env import Env

STEPS_APART = 20
"""Steps of the counter on each side while they are apart."""
CONFIRMED_S = 90.0
"""Longest wait for a confirmation: members write theirs at their upkeep, each 5 s here."""

ITEMS = {"laptop": ("milk", "bread"), "server": ("bread", "soap")}
NOTE = "The alarm code of the old office is 4711 hash, and nobody should need it any more."


async def apart(show: Show, env: Env, machines: list[Machine], alone: Machine) -> None:
    """Two agents change the same list and the same counter, while nothing connects them."""
    host = machines[0]
    show.step(f"Agents on {host.name} and {alone.name} change the same values while apart")
    clients = {machine.name: await machine.connect() for machine in machines}
    await clients[alone.name].call("net.pause")
    for machine in (host, alone):
        client = clients[machine.name]
        for item in ITEMS[machine.name]:
            await client.call("state.add", {"path": "main/shopping", "value": item})
        for _ in range(STEPS_APART):
            await client.call("state.incr", {"path": "main/visits"})
        where: Json = {"path": "main/meeting", "type": "mv", "value": f"at {machine.name}"}
        await client.call("state.set", cast("dict[str, Json]", where))
    show.note(f"each sees {STEPS_APART} visits; {host.name} took bread off its list meanwhile")
    await clients[host.name].call("state.remove", {"path": "main/shopping", "value": "bread"})
    began = env.now()
    await clients[alone.name].call("net.resume")
    healed = await until(lambda: all_equal(list(clients.values())))
    show.check("connected again, all three hold the same records", healed, began)
    values = [await _values(client) for client in clients.values()]
    show.check("and see the same values", all(value == values[0] for value in values))
    shopping, visits, meeting = values[0]
    show.check(f"visits: {visits}, none lost, without a lock", visits == 2 * STEPS_APART)
    show.check(
        f"shopping: {', '.join(shopping)} (bread was added where the removal was not known)",
        shopping == ["bread", "milk", "soap"],
    )
    show.check(f"meeting: both answers stand until somebody decides: {meeting}", len(meeting) == 2)
    for client in clients.values():
        await client.aclose()


async def _values(client: LocalClient) -> tuple[list[str], int, list[str]]:
    cells = [
        field(await client.call("state.get", {"path": path}), "value")
        for path in ("main/shopping", "main/visits", "main/meeting")
    ]
    shopping, visits, meeting = cells
    return (
        sorted(cast("list[str]", shopping)),
        cast("int", visits),
        sorted(cast("list[str]", meeting)),
    )


async def removal(show: Show, env: Env, machines: list[Machine]) -> None:
    """The guest that turned hostile is taken out, and the others get a new key."""
    host = machines[0]
    show.step(f"{host.name} takes the hostile guest out of the group")
    client = await host.connect()
    guest = next(row for row in await _members(client) if field(row, "role") == "read")
    said = await host.covey("group", "remove", "home", str(field(guest, "peer_id")), "--dry-run")
    for line in said.rstrip().splitlines():
        show.note(line.strip())
    began = env.now()
    await host.covey("group", "remove", "home", str(field(guest, "peer_id")), "--yes")
    clients = [await machine.connect() for machine in machines]

    async def out_everywhere() -> bool:
        return all([len(await _members(one)) == len(machines) for one in clients])

    show.check("it is out, on all three, with a new key", await until(out_everywhere), began)
    for one in [client, *clients]:
        await one.aclose()


async def _members(client: LocalClient) -> list[Json]:
    return cast("list[Json]", await client.call("group.members", {"group": "home"}))


async def erasure(show: Show, env: Env, machines: list[Machine]) -> None:
    """A note that all three hold is erased on one, and the others say so, signed."""
    host = machines[0]
    show.step(f"A note that all three hold is erased on {host.name}")
    clients = [await machine.connect() for machine in machines]
    stored = await clients[0].call("memory.remember", {"text": NOTE})
    ident = str(field(stored, 0, "id"))

    async def holders() -> int:
        asked = await clients[0].call("state.holders", {"id": ident})
        return len(cast("list[Json]", field(asked, "held") or []))

    async def everywhere() -> bool:
        return await holders() == len(machines)

    show.check("it is on three disks", await until(everywhere))
    began = env.now()
    await host.covey("erase", ident, "--yes")

    async def confirmed() -> bool:
        rows = cast("list[Json]", await clients[0].call("sync.erasure", {"group": "home"}))
        return len(cast("list[Json]", field(rows, 0, "confirmed") or [])) == len(machines) - 1

    both = await until(confirmed, CONFIRMED_S)
    show.check("both others confirm that it is gone, each by a signed record", both, began)
    for line in (await host.covey("erase", "--status")).rstrip().splitlines():
        show.note(line.strip())
    found = [
        field(await one.call("memory.recall", {"query": "alarm code old office"}), "hits", 0, "id")
        for one in clients
    ]
    show.check("no recall on any of the three finds it", ident not in found)
    for one in clients:
        await one.aclose()
