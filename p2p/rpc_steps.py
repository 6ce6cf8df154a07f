"""Run a coroutine in the current task and learn whether it had to wait.

A task that reads a stream can run a handler itself, as long as somebody else reads on once the
handler waits. trio does not tell, but the coroutine protocol does: what a coroutine yields is the
request to wait, so the first yield is the moment.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator


@types.coroutine
def waited(
    work: Coroutine[object, object, None], when: Callable[[], None]
) -> Generator[object, object, bool]:
    """Await `work`, in the current task and with all its errors and cancellation.

    Args:
        work: what to run.
        when: called once, right before `work` first waits for anything; never if it does not.

    Returns:
        Whether it waited.
    """
    try:
        request = work.send(None)
    except StopIteration:
        return False
    try:
        when()
    except BaseException:
        work.close()
        raise
    while True:
        try:
            try:
                answer = yield request
            except BaseException as error:  # noqa: ASYNC103, BLE001 - handed to `work`
                request = work.throw(error)
            else:
                request = work.send(answer)
        except StopIteration:
            return True
