"""Read an export from an asyncio program: no Covey in it, only SQLite.

Run `covey up` first, then: python examples/read_export_asyncio.py [scope]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import aiosqlite

NEWEST = """
SELECT m.at, a.agent, a.device_name, m.trust, m.text
FROM memory m JOIN author a ON a.id = m.author JOIN scope s ON s.id = m.scope
WHERE s.name = ? ORDER BY m.at DESC LIMIT 3
"""


async def covey(*words: str) -> None:
    """Run a command."""
    process = await asyncio.create_subprocess_exec("covey", *words)
    if await process.wait() != 0:
        sys.exit(f"covey {words[0]} failed")


async def main(scope: str) -> None:
    """Export a scope and print its newest memories."""
    await covey("remember", "Exports open with any SQLite.", "--scope", scope, "--quiet")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.db"
        await covey("export", str(path), "--scope", scope, "--quiet")
        async with aiosqlite.connect(path) as database:
            async with database.execute("SELECT count(*) FROM memory") as cursor:
                row = await cursor.fetchone()
                print(f"{row[0] if row else 0} memories in {scope}")
            async with database.execute(NEWEST, (scope,)) as cursor:
                async for at, agent, device, trust, text in cursor:
                    print(f"{at[:10]}  {trust:.2f}  {agent}@{device}  {text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "examples"))
