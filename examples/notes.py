"""Remember and recall from a Python program, over the local socket.

Run `covey up` first, then: python examples/notes.py "what to look for"
"""

from __future__ import annotations

import json
import sys

import trio

from daemon.client import LocalClient


async def main(query: str) -> None:
    """Store a note and look for it."""
    printed = await trio.run_process(["covey", "paths", "--json"], capture_stdout=True)
    paths = json.loads(printed.stdout)
    client = await LocalClient.connect(paths["socket"])
    await client.call(
        "memory.remember",
        {"text": "Trio cancels a whole nursery when one task fails.", "tags": ["python"]},
    )
    answer = await client.call("memory.recall", {"query": query, "limit": 3})
    for hit in answer["hits"]:
        author = hit["author"]
        print(f"{hit['trust']:.2f}  {author['agent']}@{author['device']}  {hit['text']}")
    await client.aclose()


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "trio nursery")
