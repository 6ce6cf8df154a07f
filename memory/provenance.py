"""Who wrote a memory, where and when, in the forms people see."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, cast

from memory.errors import RefusedError
from memory.model import Author

if TYPE_CHECKING:
    from memory.model import Relation

MS_PER_DAY: Final = 86_400_000

PERSON: Final = "you"
"""Shown name of the person at the terminal, who has no agent name."""

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# libp2p peer id of an Ed25519 key: identity multihash of the key's 36-byte protobuf message.
_PEER_PREFIX: Final = bytes.fromhex("002408011220")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH: Final = _EPOCH.replace(tzinfo=None)
_RELATIONS: Final = {"own": "own", "own_device": "own_device"}


@lru_cache(maxsize=1024)
def peer_text(device: bytes) -> str:
    """A device key as its peer id, base58. Source: libp2p peer-ids specification."""
    number = int.from_bytes(_PEER_PREFIX + device, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    # The prefix begins with one zero byte, which base58 writes as one leading 1.
    return "1" + "".join(reversed(digits))


def iso(at_ms: int) -> str:
    """Unix milliseconds as ISO 8601 UTC, to the second."""
    at = _NAIVE_EPOCH + timedelta(milliseconds=at_ms)
    return at.isoformat(timespec="seconds") + "Z"


def parse_iso(text: str, name: str) -> int:
    """ISO 8601 as Unix milliseconds; without a zone it is UTC.

    Raises:
        RefusedError: `invalid`, naming the argument.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError as exc:
        raise RefusedError(
            "invalid", f"{name} is not an ISO 8601 date such as 2026-11-25T13:45:00Z"
        ) from exc
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return (at - _EPOCH) // timedelta(milliseconds=1)


def hlc_ms(hlc: int) -> int:
    """The Unix milliseconds in a hybrid clock's reading."""
    return hlc >> 16


def thread_id(owner: bytes, name: str) -> bytes:
    """16 bytes that only this owner's records can reach: nobody writes into another's thread."""
    return hashlib.sha256(owner + name.encode()).digest()[:16]


def author_of(device: bytes, agent: str, device_name: str | None, cls: str, role: str) -> Author:
    """The shown author of a memory.

    Args:
        device: key of the writing device.
        agent: signed agent name.
        device_name: given or published name, None for the end of its peer id.
        cls: relation of the author: own, own_device, invited or other.
        role: tool and web say that the author only passed the text on.
    """
    relation = role if role in ("tool", "web") else _RELATIONS.get(cls, "peer")
    return Author(
        agent=agent or PERSON,
        device=device_name or peer_text(device)[-8:],
        device_id=device.hex(),
        relation=cast("Relation", relation),
    )
