"""`memory.export`: the memory page by page, for a file that the client writes."""

from __future__ import annotations

import msgspec

from daemon.rpc.registry import Call, method
from memory.export import ExportPage, export_page


class ExportParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A page of the memory.

    Attributes:
        scope: one scope or several; default all the caller may read.
        cursor: of the page before; 0 for the first.
        limit: at most 500; a page also ends at a mebibyte of text.
    """

    scope: str | list[str] | None = None
    cursor: int = 0
    limit: int = 200


@method("memory.export", scope="read")
async def export(call: Call, p: ExportParams) -> ExportPage:
    """Hand out memories whole, in the order in which they came; the client writes the file."""
    services = call.services
    caller = call.context.caller()
    now_ms = services.env.wall_ms()
    return await services.db.read(
        lambda c: export_page(c, caller, p.scope, cursor=p.cursor, limit=p.limit, now_ms=now_ms)
    )
