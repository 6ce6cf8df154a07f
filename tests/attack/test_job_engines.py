"""An engine is asked only where the operator said so, on this machine or behind proven TLS."""

from __future__ import annotations

import msgspec
import pytest

from federated.errors import HandlerError
from federated.jobs.config import JobsConfig
from federated.jobs.engines.dask import DaskEngine, dask_engines, scheduler_address
from federated.jobs.engines.tasks import Code, compute, decode_answers, encode_call
from federated.jobs.handlers.base import Batch, BatchRow
from tests.helpers.memories import InlineOffload

FILES = {"engines_ca": "/ca.pem", "engines_cert": "/cert.pem", "engines_key": "/key.pem"}


@pytest.mark.parametrize(
    "address",
    [
        "dask://192.0.2.7:8786",
        "dask://scheduler.example:8786",
        "dask://127.0.0.1.example:8786",
        "dask://127.0.0.1@192.0.2.7:8786",
        "dask://localhost@192.0.2.7:8786",
        "dask://[::ffff:192.0.2.7]:8786",
        "dask://0.0.0.0:8786",
        "dask://127.0.0.1",
        "dask://127.0.0.1:99999",
        "dask://127.0.0.1:8786/../x",
        "dask://127.0.0.1:8786?x=1",
        "tcp://127.0.0.1:8786",
        "ray://127.0.0.1:10001",
        "tls://user@192.0.2.7:8786",
        "tls://",
        "",
    ],
)
def test_an_address_elsewhere_is_no_engine(address: str) -> None:
    with pytest.raises(ValueError, match="engines"):
        JobsConfig(engines=(address,), **FILES)  # type: ignore[arg-type]


def test_tls_needs_its_files() -> None:
    with pytest.raises(ValueError, match="needs engines_ca"):
        JobsConfig(engines=("tls://192.0.2.7:8786",))
    config = JobsConfig(engines=("tls://192.0.2.7:8786", "dask://[::1]:8786"), **FILES)  # type: ignore[arg-type]
    assert list(dask_engines(config, InlineOffload())) == list(config.engines)
    assert scheduler_address(config.engines[0]) == "tls://192.0.2.7:8786"
    assert scheduler_address(config.engines[1]) == "tcp://[::1]:8786"


async def test_an_engine_without_its_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federated.jobs.engines.dask.installed", lambda: False)
    engine = DaskEngine("dask://127.0.0.1:8786", None, InlineOffload())
    with pytest.raises(HandlerError, match=r"covey\[dask\]"):
        await engine.start()
    await engine.close()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x91" * 100_000, msgspec.msgpack.encode([{"answers": 1}]), b"\x90",
     msgspec.msgpack.encode([{"answers": []}, {"answers": []}]),
     msgspec.msgpack.encode([{"answers": [[1, {}, "", "more"]]}]),
     msgspec.msgpack.encode([{"error": "x", "code": "y"}])],
)  # fmt: skip
def test_an_answer_that_is_none_fails_its_tasks_alone(data: bytes) -> None:
    with pytest.raises(HandlerError, match="bad_output"):
        decode_answers(data, 1)


def test_what_a_function_does_wrong_is_an_answer() -> None:
    batch = Batch(rows=[BatchRow(k=0, row={"n": 1})], params={})
    for run, error in (
        ("no.such:thing", "unavailable"),
        ("json:no_such", "unavailable"),
        ("json:JSONDecodeError", "exception"),
        ("builtins:len", "exception"),
        ("sys:exc_info", "exception"),
    ):
        (answer,) = decode_answers(compute(encode_call(Code(run=run), [batch], 100)), 1)
        assert answer.error == error, run
    big = Batch(rows=[BatchRow(k=0, row={"n": "x" * 1000})], params={})
    (answer,) = decode_answers(compute(encode_call(Code(builtin="echo@1"), [big], 100)), 1)
    assert answer.error == "output"
