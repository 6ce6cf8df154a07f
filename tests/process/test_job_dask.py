"""The same job on this machine, on peers and on a real Dask cluster gives the same bytes.

Needs the extra `dask` in the interpreter that runs the tests: scheduler and worker are started from
it, and so is the helper process that speaks with them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from daemon.wiring import ThreadOffload
from federated.errors import HandlerError
from federated.jobs.config import JobsConfig
from federated.jobs.engines.dask import DaskEngine, dask_engines
from federated.jobs.engines.seam import EngineCall
from federated.jobs.engines.tasks import Code, decode_answers, encode_call
from federated.jobs.handlers.base import Batch, BatchRow
from federated.jobs.handlers.builtin import builtins
from federated.jobs.handlers.registry import ANYBODY, Handlers
from federated.jobs.service import Jobs
from federated.jobs.types import JobSpec, PerRow
from memory.storage.db import Db
from p2p.env import SystemEnv
from tests.helpers.fabrics import MEM, Kit
from tests.helpers.job_engines import MEASURE, NUMBERS, REDUCES, both, result_bytes
from tests.helpers.jobs_kit import FakeDoor, Office
from tests.helpers.need import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from federated.jobs.types import Reduce

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None,
        host="127.0.0.1", protocol="tcp://",
    )
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    cluster.close()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler with one worker of two threads."""
    need("dask")
    script = tmp_path_factory.mktemp("dask") / "cluster.py"
    script.write_text(CLUSTER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        address = process.stdout.readline().strip()
        assert address.startswith("tcp://127.0.0.1:")
        yield address.replace("tcp://", "dask://")
        process.stdin.close()


@pytest.mark.parametrize("reduce", REDUCES, ids=lambda reduce: type(reduce).__name__)
def test_dask_gives_the_same_bytes(tmp_path: Path, cluster: str, reduce: Reduce) -> None:
    async def main() -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await _compare(Kit(MEM, nursery), tmp_path, cluster, reduce)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def _compare(kit: Kit, folder: Path, address: str, reduce: Reduce) -> None:
    office = Office(kit, folder)
    member = await kit.node(1)
    office.ids.append(member.id)
    env, offload = SystemEnv(), ThreadOffload()
    db = Db(folder / "boss.db", env, migrations="federated.migrations")
    offers = [(handler, ANYBODY) for handler in (*builtins(), *both())]
    engines = dask_engines(JobsConfig(engines=(address,)), offload)
    handlers = Handlers(offers, named=lambda _name: None)
    jobs = Jobs(
        FakeDoor(member, office), db, env, offload, handlers, slots=2, engines=engines
    )  # fmt: skip
    await kit.nursery.start(db.run)
    await kit.nursery.start(jobs.run)
    found = {}
    for engine in ("local", address):
        spec = JobSpec(
            handler=MEASURE, rows=list(NUMBERS), reduce=reduce, engine=engine, batch=PerRow(),
            max_retries=1, cache="off",
        )  # fmt: skip
        ident = await jobs.submit(spec, agent="", group=None)
        await jobs.finished(ident)
        found[engine] = await result_bytes(jobs, ident)
    assert found[address] == found["local"]
    assert len(found["local"]) > len(NUMBERS) - 1


def test_a_call_goes_to_the_cluster_and_back(cluster: str) -> None:
    async def main() -> None:
        engine = DaskEngine(cluster, None, ThreadOffload())
        try:
            await engine.start()
            assert engine.capacity == 2
            batch = Batch(rows=[BatchRow(k=7, row={"n": 1.5})], params={})
            calls = [
                EngineCall(ref, f"covey-test-{ref}", encode_call(code, [batch], 1000))
                for ref, code in enumerate([Code(builtin="echo@1"), Code(run="no.such:thing")])
            ]
            await engine.submit_batch(calls)
            answers = {}
            async for done in engine.as_completed():
                assert done.error == ""
                (answers[done.ref],) = decode_answers(done.data, 1)
                if len(answers) == len(calls):
                    break
            assert answers[0].answers == [(7, {"n": 1.5}, "")]
            assert answers[1].error == "unavailable"
        finally:
            with trio.CancelScope(shield=True):
                await engine.close()

    trio.run(main)


def test_a_scheduler_that_is_not_there_is_told() -> None:
    need("dask")

    async def main() -> None:
        engine = DaskEngine("dask://127.0.0.1:1", None, ThreadOffload())
        with pytest.raises(HandlerError, match="unavailable"):
            await engine.start()

    trio.run(main)
