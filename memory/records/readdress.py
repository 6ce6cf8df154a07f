"""Entry bodies whose records got new ids: what was signed anew names the new ones.

Replication signs records again that became void through no fault of their content. A link, a parent
or a verdict among them would name what counts nowhere: a note that was replaced would come back,
and an erasure would miss what was derived. Pure. Source: docs/specs/memory.md, *Bodies*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from memory.bodies import (
    ForgetBody,
    LinkBody,
    NoteBody,
    VerdictBody,
    decode_body_untrusted,
    encode_body,
)
from memory.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memory.bodies import Body


def readdress(plain: bytes, moved: Mapping[bytes, bytes]) -> bytes:
    """The same body with other ids for the records it names.

    Args:
        plain: an entry body; one that this version cannot read comes back as it is.
        moved: id -> the id in its place; others stay.
    """
    try:
        body = decode_body_untrusted(plain)
        there = _readdressed(body, moved)
        return plain if there == body else encode_body(there)
    except DecodeError:
        return plain


def _readdressed(body: Body, moved: Mapping[bytes, bytes]) -> Body:
    match body:
        case NoteBody():
            parents = list(dict.fromkeys(moved.get(p, p) for p in body.derived_from))
            return msgspec.structs.replace(body, derived_from=parents)
        case LinkBody():
            src, dst = moved.get(body.src, body.src), moved.get(body.dst, body.dst)
            return msgspec.structs.replace(body, src=src, dst=dst)
        case VerdictBody():
            evidence = body.evidence and moved.get(body.evidence, body.evidence)
            target = moved.get(body.target, body.target)
            return msgspec.structs.replace(body, target=target, evidence=evidence)
        case ForgetBody():
            targets = list(dict.fromkeys(moved.get(t, t) for t in body.targets))
            return msgspec.structs.replace(body, targets=targets)
        case _:
            return body
