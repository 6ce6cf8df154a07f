"""The command loop that every subject shares. Standard library and trio only: peers run it too."""

from __future__ import annotations

import json
import statistics
import sys
import time

import trio

WARM_UP = 50


async def request_response(call, count):
    """Call `count` times in turn; p50 in microseconds."""
    for _ in range(WARM_UP):
        await call()
    took = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        took.append(time.perf_counter() - start)
    return {"p50_us": statistics.median(took) * 1e6, "seconds": sum(took)}


async def serve_commands(commands):
    """Answer `name arg` lines from standard input with one JSON line each."""
    print("ready", flush=True)
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        name, *args = line.split()
        start = time.perf_counter()
        answer = await commands[name](*map(int, args))
        answer.setdefault("seconds", time.perf_counter() - start)
        print(json.dumps(answer), flush=True)
