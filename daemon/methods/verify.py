"""`memory.verify`: the database against its signed records."""

from __future__ import annotations

from pathlib import Path

import trio

from daemon.restore import read_erased_ids
from daemon.rpc.registry import Call, Empty, method
from daemon.verify import Slice, StoreCheck, VerifyReport, step
from p2p.identity import verify as verify_signature


@method("memory.verify", scope="admin")
async def verify(call: Call, p: Empty) -> VerifyReport:
    """Check every record, text and index entry again; read-only, in slices, with progress."""
    del p
    services = call.services
    erased = read_erased_ids(Path(services.paths.state))
    check = StoreCheck(erased, verify_signature)
    walk = check.walk()
    at: Slice | None = next(walk)
    while at is not None:
        await call.progress(at.done, at.total or None, at.what)
        at = await services.db.read(lambda connection: step(walk, connection))
        # A reader is lent for a slice: others come in between.
        await trio.lowlevel.checkpoint()
    return check.report()
