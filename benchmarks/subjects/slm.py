"""SuperLocalMemory 4.1.18 through its own daemon and client; runs in that peer's own environment.

Commands on stdin, an answer object a line: `fill N`, `recall K` (K questions over what was filled),
`writers P W` (P processes of W writes each), `stop` at the end: its daemon outlives its client.
Its cross-encoder is switched off: its model can only be had online. Rate limits are lifted, as
Covey's are in the same run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

HOME = tempfile.mkdtemp(prefix="slm-bench-")
BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


os.environ.update(
    HOME=HOME,
    SLM_DATA_DIR=f"{HOME}/data",
    SLM_DAEMON_PORT=str(free_port()),
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    SLM_NON_INTERACTIVE="1",
    SLM_SKIP_LAYA="1",
    SLM_MESH_DISCOVERY="off",
    SLM_RATE_LIMIT_WRITE="1000000",
    SLM_RATE_LIMIT_READ="1000000",
    PATH=f"{BIN}:{os.environ['PATH']}",
)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.needles import corpus, queries  # noqa: E402 - after the path above


def slm(*words: str) -> None:
    """One of its commands."""
    subprocess.run(
        [str(BIN / "slm"), *words], check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr
    )


def put(text: str) -> None:
    """Write one memory, as its own clients do.

    Raises:
        RuntimeError: it gave no receipt.
    """
    from superlocalmemory.cli.daemon import daemon_request

    answer = daemon_request(
        "POST",
        "/remember",
        {"content": text, "tags": ""},
        verify_health=False,
        timeout_seconds=120,
    )
    if not answer or "fact_ids" not in answer:
        raise RuntimeError(f"no receipt: {str(answer)[:80]}")


def fill(count: int) -> dict[str, float]:
    """Store the needle corpus."""
    took = []
    for note in corpus(count):
        start = time.perf_counter()
        put(note.text)
        took.append(time.perf_counter() - start)
    took.sort()
    return {"p50_ms": 1e3 * took[len(took) // 2], "p95_ms": 1e3 * took[int(len(took) * 0.95)]}


def recall(count: int, filled: int) -> dict[str, float]:
    """Ask; milliseconds, and how often the right note is first."""
    from superlocalmemory.cli.daemon import daemon_request

    took = []
    first = 0
    asked = queries(corpus(filled), count + 5)
    for number, (question, text) in enumerate(asked):
        start = time.perf_counter()
        answer = daemon_request(
            "GET",
            f"/recall?q={quote(question)}&limit=10&session_id=bench",
            verify_health=False,
            timeout_seconds=120,
        )
        if number < 5:
            continue
        took.append(time.perf_counter() - start)
        found = [
            (hit.get("source_content") or hit.get("content") or "").strip()
            for hit in (answer or {}).get("results", [])
        ]
        first += found[:1] == [text]
    took.sort()
    return {
        "p50_ms": 1e3 * took[len(took) // 2],
        "p95_ms": 1e3 * took[int(len(took) * 0.95)],
        "hit1": first / count,
    }


def _write(process: int, writes: int, ready, results) -> None:  # type: ignore[no-untyped-def]
    errors = 0
    ready.wait(240)
    start = time.time()
    for number in range(writes):
        try:
            put(f"writer {process} note {number}: gateway {process * 1000 + number} moved to rack")
        except RuntimeError:
            errors += 1
    results.put((start, time.time(), errors))


def writers(processes: int, writes: int) -> dict[str, float]:
    """Several processes write at once."""
    ready, results = multiprocessing.Barrier(processes), multiprocessing.Queue()
    started = [
        multiprocessing.Process(target=_write, args=(n, writes, ready, results))
        for n in range(processes)
    ]
    for process in started:
        process.start()
    done = [results.get(timeout=580) for _ in started]
    for process in started:
        process.join(20)
    seconds = max(end for _, end, _ in done) - min(start for start, _, _ in done)
    return {"per_s": processes * writes / seconds, "errors": sum(e for _, _, e in done)}


def main() -> None:
    """Serve commands until stdin ends."""
    (Path(HOME) / "data").mkdir()
    slm("mode", "a")
    path = Path(HOME) / "data" / "config.json"
    settings = json.loads(path.read_text())
    settings["retrieval"]["use_cross_encoder"] = False
    path.write_text(json.dumps(settings))
    start = time.perf_counter()
    slm("serve", "start")
    print(f"ready {time.perf_counter() - start:.2f}", flush=True)
    filled = 0
    for line in sys.stdin:
        verb, *words = line.split()
        numbers = [int(word) for word in words]
        answer: dict[str, float] = {}
        if verb == "fill":
            filled = numbers[0]
            answer = fill(filled)
        elif verb == "recall":
            answer = recall(numbers[0], filled)
        elif verb == "writers":
            answer = writers(*numbers)
        else:
            stop()
        print(json.dumps(answer), flush=True)


def stop() -> None:
    """End its daemon, whatever became of its client."""
    slm("serve", "stop")
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            ours = f"SLM_DATA_DIR={HOME}/data".encode() in entry.read_bytes().split(b"\0")
        except OSError:
            continue
        pid = int(entry.parent.name)
        if ours and pid not in (os.getpid(), os.getppid()):
            os.kill(pid, signal.SIGTERM)
    shutil.rmtree(HOME, ignore_errors=True)


if __name__ == "__main__":
    main()
