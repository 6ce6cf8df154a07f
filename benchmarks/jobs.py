"""Jobs: three real daemons on loopback, and the parts of the engine in simulations.

    python -m benchmarks jobs [--quick]
        [--only noop|one|expr|kills|cancel|liars|fanout|routing|tables|experience]

Rates are of whole jobs, from the client's submit to the event that says done, rows kept in the
journal on the way. The simulations run the product's judge on peers that lie or lose; how they are
set is docs/specs/jobs.md s.7 and the docstrings in `benchmarks/job_sims`.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import trio

from benchmarks import job_cancel, job_kills, job_peers
from benchmarks.job_sims import experience, expr_rate, fanout, liars, replay, routing
from benchmarks.memory.data import DataMissing
from benchmarks.node import BlockingClient, DaemonUnderTest
from benchmarks.processes import cpu_s
from benchmarks.report import Target, percentile
from benchmarks.two_daemons import NO_MODEL, join, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.node import Json
    from benchmarks.report import Options, Report

TASKS: Final = 20_000
TASKS_QUICK: Final = 5_000
ROUNDS: Final = 5
SINGLES: Final = 200
WATCH_S: Final = 20
ALONE: Final = "20 % always, adaptive"
RARE: Final = "20 %, 1 in 10, adaptive"
RARE_QUORUM: Final = "20 %, 1 in 10, quorum:3"


def run(options: Options, report: Report) -> None:
    """Measure."""
    if options.wants("noop") or options.wants("one"):
        _daemons(options, report)
    if options.wants("expr"):
        _expr(options, report)
    if options.wants("kills"):
        job_kills.run(options, report)
    if options.wants("cancel"):
        job_cancel.run(options, report)
    if options.wants("liars"):
        _liars(options, report)
    if options.wants("fanout"):
        _fanout(options, report)
    if options.wants("routing"):
        _routing(options, report)
    if options.wants("tables"):
        _tables(options, report)
    if options.wants("experience"):
        _experience(options, report)


# ---- daemons


def _daemons(options: Options, report: Report) -> None:
    with ExitStack() as stack:
        boss, *others = [stack.enter_context(DaemonUnderTest(**NO_MODEL)) for _ in range(3)]
        for other in others:
            join(boss, other)
        settle(boss, *others)
        client = BlockingClient(boss.socket_path)
        _one_job(client, 100)  # sessions are open, code is warm
        if options.wants("noop"):
            _noop(options, report, boss, client)
        if options.wants("one"):
            _one(report, client)
        client.close()


def _noop(options: Options, report: Report, boss: DaemonUnderTest, client: BlockingClient) -> None:
    count = TASKS_QUICK if options.quick else TASKS
    ours, pool, cpu = [], [], []
    for _ in range(options.rounds if options.quick else ROUNDS):
        pool.append(_pool_rate(count))
        before = cpu_s(boss.pid)
        ours.append(count / _one_job(client, count))
        cpu.append((cpu_s(boss.pid) - before) * 1e6 / count)
    report.value(
        f"no-op tasks, coordinator + 2 peers, {count:,} a job",
        statistics.median(ours),
        unit="tasks/s",
        target=Target(">=", 5000),
        yardstick="process pool of 2 in this run, tasks/s",
        yardstick_value=statistics.median(pool),
    )
    report.value(
        "coordinator's CPU a task, submit and watch included",
        statistics.median(cpu),
        unit="us",
        target=Target("<=", 200),
    )
    job_peers.run(report, statistics.median(ours), tasks=TASKS_QUICK, singles=SINGLES)


def _one(report: Report, client: BlockingClient) -> None:
    """What a task adds to a job: jobs of one row and of none take turns."""
    empty_ms, single_ms = [], []
    for _ in range(SINGLES):
        empty_ms.append(_one_job(client, 0) * 1000)
        single_ms.append(_one_job(client, 1) * 1000)
    frame = percentile(empty_ms, 0.5)
    for share, name, most in ((0.5, "p50", 2.0), (0.99, "p99", 10.0)):
        report.value(
            f"one task, beyond the p50 of a job without rows, {name}",
            percentile(single_ms, share) - frame,
            unit="ms",
            target=Target("<=", most),
            yardstick="Ray p50 1.9, Dask 11.7, not in this run",
        )
        report.value(
            f"a job of one task, submit to done, both durable, {name}",
            percentile(single_ms, share),
            unit="ms",
        )


def _expr(options: Options, report: Report) -> None:
    rounds, sessions = (3, 1600) if options.quick else (7, 3200)
    try:
        found = trio.run(expr_rate.rates, rounds, sessions)
    except ImportError:
        report.missing("fresh expr sessions", "the extra `expr` is not installed")
        return
    for name in ("1 row a task", "32 rows a task"):
        report.value(
            f"fresh expr sessions on a node, {name}",
            statistics.median(found[name]),
            unit="/s",
            target=Target(">=", 1500),
            yardstick="bare Monty in this run, sessions/s",
            yardstick_value=statistics.median(found["bare"]),
        )


def _one_job(client: BlockingClient, count: int) -> float:
    """Seconds from submit to done.

    Raises:
        RuntimeError: it did not end well.
    """
    rows: Json = [{"n": n} for n in range(count)]
    spec: Json = {"handler": "echo@1", "rows": rows, "batch": {"kind": "per_row"}, "cache": "off"}
    began = time.perf_counter()
    answer = client.call("job.submit", {"spec": spec})
    assert isinstance(answer, dict)
    states = [data.get("state") for data in _events(client, str(answer["job_id"]))]
    took = time.perf_counter() - began
    if states[-1] != "done":
        raise RuntimeError(f"the job ended {states[-1]}")
    return took


def _events(client: BlockingClient, job: str) -> Iterator[dict[str, Json]]:
    since: Json = 0
    while True:
        answer = client.call("job.watch", {"id": job, "since_seq": since, "wait_s": WATCH_S})
        assert isinstance(answer, dict)
        events = answer["events"]
        assert isinstance(events, list)
        for event in events:
            assert isinstance(event, dict)
            if event["name"] == "state" and isinstance(event["data"], dict):
                yield event["data"]
        since = answer["last_seq"]
        if answer["final"]:
            return


def _nothing(number: int) -> int:
    return number


def _pool_rate(count: int) -> float:
    """Tasks a second of the standard library's pool: no journal, no encryption, one machine."""
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_nothing, range(10)))
        began = time.perf_counter()
        for future in [pool.submit(_nothing, n) for n in range(count)]:
            future.result()
        return count / (time.perf_counter() - began)


# ---- simulations


def _liars(options: Options, report: Report) -> None:
    seeds = 5 if options.quick else 20
    for name, wrong_max, executions_max in (
        (ALONE, 0.05, 1.25),
        (RARE, 0.3, None),
        (RARE_QUORUM, 0.02, None),
    ):
        found = liars.median(liars.runs(liars.TABLE[name], seeds))
        title = f"liars, {name}, {seeds} seeds"
        report.value(f"{title}: wrong rows", found.wrong, unit="%", target=Target("<=", wrong_max))
        bound = None if executions_max is None else Target("<=", executions_max)
        report.value(f"{title}: executions a row", found.executions, unit="", target=bound)
        report.value(
            f"{title}: honest peers quarantined", found.honest_out, unit="", target=Target("=", 0)
        )


def _fanout(options: Options, report: Report) -> None:
    seeds = 4 if options.quick else 12
    for name, baseline, most in (
        ("schedule", "plain pull, two ahead", 1.6),
        ("schedule, 30 % die", "leases only, 30 % die", 2.0),
    ):
        ours = fanout.runs(fanout.TABLE[name], seeds)
        plain = fanout.runs(fanout.TABLE[baseline], seeds)
        title = f"fan-out, {name}, median of {seeds} seeds"
        report.value(
            f"{title}: time beside the ideal",
            fanout.ratio(ours),
            unit="x",
            target=Target("<=", most),
            yardstick=f"{baseline}, in this run",
            yardstick_value=fanout.ratio(plain),
        )
        report.value(
            f"{title}: executions beyond one a task",
            fanout.extra(ours),
            unit="%",
            target=Target("<=", 5),
        )
        report.value(f"{title}: rows done", fanout.done(ours), unit="%", target=Target(">=", 100))


def _routing(options: Options, report: Report) -> None:
    try:
        requests = routing.trace(options.data)
    except DataMissing as missing:
        report.missing("requests to models with caches", str(missing))
        return
    seeds = 1 if options.quick else 5
    for name, least in (("fresh views", 0.9), ("views 10 s old", 0.75)):
        ours, loaded = (
            statistics.median(
                routing.in_time(requests, routing.TABLE[setting], seed=seed)
                for seed in range(1, seeds + 1)
            )
            for setting in (name, f"least loaded, {name}")
        )
        report.value(
            f"requests to models with caches, {name}, median of {seeds} seeds: in time",
            ours,
            unit="share",
            target=Target(">=", least),
            yardstick="least loaded, in this run",
            yardstick_value=loaded,
        )


def _tables(options: Options, report: Report) -> None:
    try:
        tables = replay.gold_tables(options.data)
    except DataMissing as missing:
        report.missing("WideSearch tables through faulty peers", str(missing))
        return
    seeds = 1 if options.quick else 5
    for name, faults, bounds in (
        ("losses only", replay.LOSS_ONLY, {"complete": 100.0, "executions": 1.15}),
        ("losses and 5 % wrong cells", replay.WRONG_CELLS, {"row_f1": 98.0, "executions": 2.7}),
    ):
        filled = replay.median([replay.Replay(faults, seed).fill(tables) for seed in range(seeds)])
        title = f"WideSearch tables, {name}, {seeds} seeds"
        if "complete" in bounds:
            target = Target(">=", bounds["complete"])
            report.value(f"{title}: complete", filled.complete, unit="%", target=target)
        else:
            target = Target(">=", bounds["row_f1"])
            report.value(f"{title}: Row F1", filled.row_f1, unit="", target=target)
        target = Target("<=", bounds["executions"])
        report.value(f"{title}: executions a row", filled.executions, unit="", target=target)


def _experience(options: Options, report: Report) -> None:
    seeds = 5 if options.quick else experience.SEEDS
    found = experience.everybody(seeds)
    learned, oracle, ucb = found["learned"], found["oracle"], found["ucb"]
    for yardstick, named in (("fixed 8", "8, the best of 1, 8 and 32"), ("best fixed", "the best")):
        fixed = found[yardstick]
        for part, ours, theirs, most, rival, least in (
            ("jobs 1-50", learned.first, fixed.first, oracle.first, ucb.first, 4.0),
            ("jobs 51-200", learned.later, fixed.later, oracle.later, ucb.later, 5.0),
        ):
            report.value(
                f"batch sizes learned, {seeds} seeds, {part}: utility beyond fixed size {named}",
                (ours / theirs - 1) * 100,
                unit="%",
                target=Target(">=", least),
                yardstick=f"oracle; UCB {(rival / theirs - 1) * 100:.1f}",
                yardstick_value=(most / theirs - 1) * 100,
            )
