"""Rounds' own step: one answer over three machines' data, a model that outlives a kill."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import trio

from daemon.demo.corpus import write_notes
from daemon.demo.steps import field, until
from federated.rounds.numeric.tensors import schema_of
from federated.rounds.statefile import load_state, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from daemon.client import LocalClient
    from daemon.demo.machine import Machine
    from daemon.demo.show import Show
    from daemon.json_types import Json
    from p2p.env import Env

TEXTS: Final = 3000
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
MODEL: Final = "letters"
DEADLINE_S: Final = 5.0
TOP: Final = 5
EPSILON: Final = 4.0
WORDS_MAX: Final = 60_000
LETTERS_TOLD: Final = 6
SDS: Final = 6
"""Standard deviations within which noise stays: one run in a hundred million goes beyond."""
ROUND_S: Final = 60.0


async def together(show: Show, env: Env, machines: list[Machine], folder: Path) -> None:
    """Ask three machines' texts one question, then train on them while one is killed."""
    victim = machines[-1]
    show.step(f"three machines compute together, no server; {victim.name} is killed in a round")
    shares = _shares(folder / "read.jsonl", len(machines))
    clients = [await machine.connect() for machine in machines]
    await until(lambda: _all_there(clients[0], len(machines) - 1))
    await _mean(show, env, clients, shares)
    await _top_words(show, env, clients, shares)
    paths = await _found(clients, folder)
    updates = [_letters(texts) for texts in shares]
    for client, path, update in zip(clients[:-1], paths, updates, strict=False):
        await _submit(client, path, update)
    await until(lambda: _training(clients[-1]))
    victim.kill()
    show.note(f"{victim.name} was killed (kill -9) while the round waited for its update")
    began = env.now()
    model = await _round(clients[0])
    merged = load_state(_path(folder, model))["share"]
    await _verdicts(show, clients[0], np.asarray(merged), updates[:-1], victim, began)
    await victim.covey("up")
    began = env.now()
    back = await victim.connect()
    with trio.move_on_after(ROUND_S):
        await until(lambda: _has_root(back, str(model["root"])))
    caught_up = await _has_root(back, str(model["root"]))
    show.check(f"{victim.name} comes back and has the same model", caught_up, began)
    for client in (*clients[:-1], back):
        await client.aclose()


def _shares(target: Path, count: int) -> list[list[str]]:
    """Texts of Python's documentation, each machine's own third."""
    write_notes(target, notes_max=TEXTS)
    texts = [
        str(json.loads(line)["text"]) for line in target.read_text(encoding="utf-8").splitlines()
    ]
    return [texts[index::count] for index in range(count)]


async def _all_there(client: LocalClient, count: int) -> bool:
    peers = cast("list[Json]", await client.call("peers.list"))
    return sum(bool(field(peer, "connected") or field(peer, "path")) for peer in peers) >= count


async def _mean(show: Show, env: Env, clients: list[LocalClient], shares: list[list[str]]) -> None:
    """The mean length of everybody's texts, which nobody sees."""
    answers: dict[int, Json] = {}
    began = env.now()

    async def ask(index: int) -> None:
        answers[index] = await clients[index].call(
            "fed.stat",
            {
                "kind": "mean", "name": "length of a text", "expected": len(clients),
                "values": [float(len(text)) for text in shares[index]],
            },
        )  # fmt: skip

    async with trio.open_nursery() as nursery:
        for index in range(len(clients)):
            nursery.start_soon(ask, index)
    everything = np.array([len(text) for share in shares for text in share], np.float64)
    said = [float(str(field(answers[index], "mean", "value"))) for index in answers]
    show.check(
        f"mean length of {len(everything):,} texts on three machines: {said[0]:.2f} characters,"
        " as plain numpy says of all of them",
        np.allclose(said, everything.mean(), rtol=1e-12),
        began,
    )


async def _top_words(
    show: Show, env: Env, clients: list[LocalClient], shares: list[list[str]]
) -> None:
    """The most frequent words of everybody's texts, each reported with noise that hides it."""
    answers: dict[int, Json] = {}
    words = [_words(texts) for texts in shares]
    began = env.now()

    async def ask(index: int) -> None:
        items = cast("list[Json]", words[index])
        params: dict[str, Json] = {
            "items": items, "k": TOP, "epsilon": EPSILON, "name": "words", "expected": len(clients),
        }  # fmt: skip
        answers[index] = await clients[index].call("fed.top_k", params)

    async with trio.open_nursery() as nursery:
        for index in range(len(clients)):
            nursery.start_soon(ask, index)
    rows = cast("list[Json]", field(answers[0], "top_k", "items") or [])
    found = [str(field(row, "item")) for row in rows]
    # A report carries six letters of its word: nobody's whole word leaves a machine.
    counted = Counter(word[:LETTERS_TOLD] for share in words for word in share)
    near = [
        abs(float(str(field(row, "count"))) - counted[word]) <= SDS * float(str(field(row, "sd")))
        for row, word in zip(rows, found, strict=True)
    ]
    show.check(
        f"most frequent of {counted.total():,} words, from reports with noise of their own"
        f" (epsilon {EPSILON:g} a word): {', '.join(found)}; the counts are right within it",
        len(found) == TOP and all(near),
        began,
    )


def _words(texts: list[str]) -> list[str]:
    return re.findall(r"[a-z]+", " ".join(texts).lower())[:WORDS_MAX]


def _letters(texts: list[str]) -> NDArray[np.float32]:
    """How often each letter occurs in a machine's own texts: what it would move the model to."""
    joined = "".join(texts).lower()
    counts = np.array([joined.count(letter) for letter in LETTERS], np.float64)
    shares: NDArray[np.float32] = (counts / counts.sum()).astype(np.float32)
    return shares


async def _found(clients: list[LocalClient], folder: Path) -> list[Path]:
    """Everybody joins the model; files that hold what they submit."""
    first = {"share": np.zeros(len(LETTERS), np.float32)}
    start = folder / "first.safetensors"
    write_state(start, schema_of(first), first)

    async def join(client: LocalClient) -> None:
        await client.call(
            "fed.join",
            {
                "name": MODEL, "path": str(start), "expected": len(clients), "rule": "mean",
                "codec": "f32", "clip": 100.0, "first_deadline_s": DEADLINE_S,
            },
        )  # fmt: skip

    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(join, client)
    return [folder / f"update-{index}.safetensors" for index in range(len(clients))]


async def _submit(client: LocalClient, path: Path, update: NDArray[np.float32]) -> None:
    state = {"share": update}
    write_state(path, schema_of(state), state)
    await client.call("fed.submit", {"name": MODEL, "round": 0, "path": str(path)})


async def _training(client: LocalClient) -> bool:
    models = cast("list[Json]", await client.call("fed.status"))
    phases = {"training", "committing"}
    return any(field(model, "phase") in phases for model in models)


async def _round(client: LocalClient) -> dict[str, Json]:
    answer = await client.call("fed.wait", {"name": MODEL, "after_round": 0, "timeout_s": ROUND_S})
    return cast("dict[str, Json]", field(answer, "model"))


async def _has_root(client: LocalClient, root: str) -> bool:
    models = cast("list[Json]", await client.call("fed.status"))
    return any(field(model, "root") == root for model in models)


def _path(folder: Path, model: dict[str, Json]) -> Path:
    return folder / str(model["path"])  # the path is a whole one


async def _verdicts(
    show: Show, client: LocalClient, merged: NDArray[np.float32],
    updates: list[NDArray[np.float32]], victim: Machine, began: float,
) -> None:  # fmt: skip
    wanted = np.mean(np.array(updates, np.float64), axis=0)
    show.check(
        "the others' round ends with the mean of their updates, as plain numpy has it",
        np.allclose(merged, wanted, atol=1e-6),
        began,
    )
    history = cast("list[Json]", await client.call("fed.history", {"name": MODEL, "limit": 1}))
    members = cast("list[Json]", field(history, 0, "members") or [])
    fates = {str(field(one, "machine")): str(field(one, "status")) for one in members}
    told = ", ".join(f"{name} {fate}" for name, fate in sorted(fates.items()))
    show.check(f"and says who took part: {told}", fates.get(victim.name) in {"late", "lost"})
