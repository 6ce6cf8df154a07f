"""`memory.export`: the memory page by page, for a file that the client writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from daemon.rpc.registry import Call, method
from memory.transfer.export import Exported, ExportPage, export_page

if TYPE_CHECKING:
    import apsw

    from memory.seams import Scanner


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

    def page(connection: apsw.Connection) -> ExportPage:
        found = export_page(
            connection, caller, p.scope, cursor=p.cursor, limit=p.limit, now_ms=now_ms
        )
        for memory in found.memories:
            _without_secrets(memory, services.scanner)
        return found

    return await services.db.read(page)


def _without_secrets(memory: Exported, scanner: Scanner) -> None:
    """What may stand in the memory of this machine may still not leave it in a file."""
    # Whole, because a secret may go over the end of a piece.
    scanned = scanner.scan("".join(memory.chunks), foreign=True)
    if scanned.redactions:
        memory.chunks = [scanned.text]
    memory.title = scanner.scan(memory.title, foreign=True).text
    if memory.claim is not None:
        value = scanner.scan(memory.claim.value, foreign=True).text
        memory.claim = msgspec.structs.replace(memory.claim, value=value)
