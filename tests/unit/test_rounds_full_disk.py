"""A full disk under a model: no vote that is not kept, and the round goes on with room."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

from federated.errors import is_full
from tests.helpers.rounds_office import Team, play_team
from tests.unit.test_rounds_models import join_all, state_of, update_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from federated.rounds.protocol.orders import Persist
    from federated.rounds.workshop import Workshop


def test_a_full_disk_delays_a_member_and_no_other(tmp_path: Path) -> None:
    async def scenario(team: Team) -> None:
        chairs = [await team.seat(number) for number in (1, 2, 3)]
        federations = await join_all(chairs, tmp_path)
        victim = federations[0]
        kept = victim.store.persist
        full = True

        async def persist(promised: Persist, workshop: Workshop) -> None:
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            await kept(promised, workshop)

        victim.store.persist = persist  # type: ignore[method-assign]
        for federation in federations:
            await federation.submit(0, update_of(1.0), 1.0, {})
        with trio.fail_after(200):
            for federation in federations[1:]:
                await federation.wait(0)
        full = False
        with trio.fail_after(300):
            await victim.wait(0)
        assert np.array_equal(state_of(victim)["w"], state_of(federations[1])["w"])
        assert any(kind == "round.storage" for kind, _ in chairs[0].told)

    play_team(scenario, tmp_path, seed=11)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EACCES, "no"), False),
        (ValueError("x"), False),
        (ExceptionGroup("g", [OSError(errno.ENOSPC, "full")]), True),
        (ExceptionGroup("g", [OSError(errno.ENOSPC, "full"), ValueError("x")]), False),
    ],
    ids=["full", "denied", "other", "group", "mixed"],
)
def test_what_counts_as_full(error: Exception, full: bool) -> None:
    check: Callable[[BaseException], bool] = is_full
    assert check(error) is full
