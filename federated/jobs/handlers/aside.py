"""Something that runs beside the main thing and ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def with_aside(fn: Callable[[], Awaitable[T]], *asides: Callable[[], Awaitable[None]]) -> T:
    """Run `fn` with `asides` beside it, cancel them when it is done, and return its result.

    What `fn` raises comes out as it is, not in a group. An aside ends by itself or by cancellation
    and raises nothing: what it raises is a bug and comes out in a group.
    """
    found: list[T] = []
    raised: list[Exception] = []
    async with trio.open_nursery() as nursery:
        for aside in asides:
            nursery.start_soon(aside)
        try:
            found.append(await fn())
        except Exception as error:  # noqa: BLE001 - raised again below, outside of the nursery
            raised.append(error)
        nursery.cancel_scope.cancel()
    if raised:
        raise raised[0]
    return found[0]
