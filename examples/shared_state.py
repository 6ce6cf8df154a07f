"""Agents on several machines share a to-do list, a counter and a presence map, without a lock.

Run `covey up` first, on every machine, then there: python examples/shared_state.py "write the docs"
Each run adds a task, counts itself and says that it is present; it prints what all of them wrote.
"""

from __future__ import annotations

import json
import platform
import sys

import trio

from daemon.client import LocalClient


async def main(task: str) -> None:
    """Write to all three, then read them."""
    printed = await trio.run_process(["covey", "paths", "--json"], capture_stdout=True)
    client = await LocalClient.connect(json.loads(printed.stdout)["socket"])
    status = await client.call("daemon.status", {})
    machine = str(status.get("name") or platform.node())

    # A set: what two machines add at the same time is all there; a removal takes what it has seen.
    await client.call("state.add", {"path": "main/todo", "value": task})
    # A counter: each machine counts for itself, and the sum is exact.
    await client.call("state.incr", {"path": "main/runs", "by": 1})
    # A map: one entry a machine, so nobody overwrites another's.
    here = {"path": ["main", "presence", machine], "type": "map", "value": {"busy_with": task}}
    done = await client.call("state.set", here)

    todo = await client.call("state.get", {"path": "main/todo"})
    runs = await client.call("state.get", {"path": "main/runs"})
    present = await client.call("state.get", {"path": "main/presence"})
    held = await client.call("state.holders", {"id": done["ids"][-1]})
    print("to do:", ", ".join(sorted(map(str, todo["value"]))))
    print("runs:", runs["value"])
    print("present:", ", ".join(present["keys"]))
    print("on disk of:", ", ".join(held["held"]))
    await client.aclose()


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "write the changelog")
