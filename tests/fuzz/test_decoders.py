"""Whatever bytes come, a decoder answers with its one error, in bounded time and memory.

Every function named `*_untrusted` is found by reading the source, and every state machine of the
wire is fed too. All inputs follow from a seed. Controls plant a bug of each kind and demand that it
is found.
"""

from __future__ import annotations

import sys

import pytest

from p2p.errors import DecodeError
from tests.helpers import fuzz, fuzz_targets
from tests.helpers.fuzz import Target

TARGETS = {target.name: target for target in fuzz_targets.all_targets()}
FAST_COUNT = 300
SLOW_COUNT = 30_000
SLOW_S = 4.0
"""Each of some fifty targets; together what the layer may take. `make fuzz` goes on longer."""
CORPUS_FILES_MAX = 64
CORPUS_BYTES_MAX = 4096


@pytest.mark.attack
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_raise_only_the_one_error(name: str) -> None:
    finding = fuzz.run(TARGETS[name], seed=1, count=FAST_COUNT)
    assert finding is None, str(finding)


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutated_inputs_raise_only_the_one_error(name: str) -> None:
    finding = fuzz.run(TARGETS[name], seed=2, count=SLOW_COUNT, seconds=SLOW_S)
    assert finding is None, str(finding)


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_stays_harmless(name: str) -> None:
    target = TARGETS[name]
    for data in fuzz.corpus_of(target):
        finding = fuzz.try_input(target, data, measure=False)
        assert finding is None, str(finding)


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    if not fuzz.CORPUS.is_dir():
        return
    folders = {target.corpus.name for target in TARGETS.values()}
    for folder in fuzz.CORPUS.iterdir():
        assert folder.name in folders, f"{folder.name}: no such target"
        files = list(folder.iterdir())
        assert len(files) <= CORPUS_FILES_MAX
        assert all(file.stat().st_size <= CORPUS_BYTES_MAX for file in files)


def check_every_untrusted_function_is_a_target() -> None:
    names = {target.name for target in fuzz_targets.all_targets()}
    found = fuzz_targets.discover()
    assert len(found) > 20
    covered = {*names, *fuzz_targets.METHODS}
    forgotten = sorted(set(found) - covered)
    assert not forgotten, f"{forgotten} take more than bytes or text: write them an adapter"
    assert set(fuzz_targets.METHODS.values()) <= names
    assert set(fuzz_targets.METHODS) <= set(found)


def test_every_untrusted_function_is_a_target() -> None:
    check_every_untrusted_function_is_a_target()


def test_a_run_repeats() -> None:
    target = TARGETS["p2p.wire.multiaddr:decode_addr_untrusted"]
    first = list(fuzz.inputs(target, seed=3, count=200))
    assert list(fuzz.inputs(target, seed=3, count=200)) == first
    assert list(fuzz.inputs(target, seed=4, count=200)) != first


def test_good_seeds_reach_past_the_front_door() -> None:
    # Mutating only refused inputs would test the first line of each decoder.
    refusing = []
    for name, target in TARGETS.items():
        accepted = 0
        for data in target.seeds:
            try:
                target.call(data)
            except target.allowed:
                continue
            accepted += 1
        if accepted == 0:
            refusing.append(name)
    assert not refusing, f"no seed of these is accepted: {refusing}"


# --- controls: a bug of each kind is found --------------------------------------------------------


def planted_index_error(data: bytes) -> object:
    if len(data) < 4 or data[0] != 0x92:
        raise DecodeError("not ours")
    return data[data[1]]


def planted_recursion(data: bytes, depth: int = 0) -> object:
    if data[depth : depth + 1] == b"[":
        return planted_recursion(data, depth + 1)
    raise DecodeError("not ours")


def planted_allocation(data: bytes) -> object:
    size = int.from_bytes(data[:4], "big")
    return bytearray(min(size, 1 << 27))


def planted_unicode(data: bytes) -> object:
    return data.decode()


def planted_assertion(data: bytes) -> object:
    assert not data.endswith(b"\xff\xff\xff"), "our own bug"
    return None


@pytest.mark.parametrize(
    ("planted", "problem"),
    [
        (planted_index_error, "raised IndexError"),
        (planted_recursion, "raised RecursionError"),
        (planted_allocation, "bytes of memory"),
        (planted_unicode, "raised UnicodeDecodeError"),
        (planted_assertion, "raised AssertionError"),
    ],
)
def test_control_a_planted_bug_is_found(planted: object, problem: str) -> None:
    assert callable(planted)
    target = Target(
        f"planted:{getattr(planted, '__name__', '')}",
        planted,
        (DecodeError,),
        (b"\x92\x02abc", b"\x92\x01xyz"),
    )
    finding = fuzz.run(target, seed=1, count=FAST_COUNT)
    assert finding is not None
    assert problem in str(finding)
    assert len(finding.data) < sys.maxsize
    again = fuzz.try_input(target, finding.data, measure=True)
    assert again is not None
    assert problem in str(again)


def test_control_slow_code_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "INPUT_S_MAX", 0.0)
    target = Target("planted:slow", sum, (), (b"a" * 1000,))
    finding = fuzz.run(target, seed=1, count=1)
    assert finding is not None
    assert " s for " in finding.problem


def test_control_a_decoder_without_an_adapter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = dict(fuzz_targets.ADAPTERS)
    del adapters["p2p.replication.ops:decode_payload_untrusted"]
    monkeypatch.setattr(fuzz_targets, "ADAPTERS", adapters)
    with pytest.raises(AssertionError, match="write them an adapter"):
        check_every_untrusted_function_is_a_target()
