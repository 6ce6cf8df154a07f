"""Be an agent: use Covey's tools over MCP, with the official SDK, through the relay.

Run `covey up` first, then: python examples/mcp_agent.py
"""

from __future__ import annotations

import os

import trio
from mcp import Client, StdioServerParameters

# The relay is started by the client, as Claude Code or Cursor would start it.
RELAY = StdioServerParameters(
    command="covey", args=["mcp"], env={**os.environ, "COVEY_AGENT": "example-agent"}
)


async def main() -> None:
    """List the tools, remember, recall."""
    async with Client(RELAY) as client:
        tools = await client.list_tools()
        print("tools:", ", ".join(tool.name for tool in tools.tools))
        await client.call_tool(
            "memory_remember",
            {"text": "The staging database is reset every night at 02:00.", "kind": "lesson"},
        )
        found = await client.call_tool("memory_recall", {"query": "when is staging reset"})
        print(found.content[0].text)


if __name__ == "__main__":
    trio.run(main)
