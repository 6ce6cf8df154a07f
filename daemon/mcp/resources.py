"""The resources `covey://memory/{id}`, `covey://recent` and `covey://status`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeVar

import msgspec

P = TypeVar("P", bound=msgspec.Struct)

MEMORY_TEMPLATE: Final = "covey://memory/{id}"

RECENT_HITS: Final = 20
"""Memories that `covey://recent` lists."""

# Ids are lower-case hex of 64 digits; a unique prefix of 8 or more is read (daemon.md 5).
_MEMORY: Final = re.compile(r"covey://memory/([0-9a-f]{8,64})")


class Fixed(NamedTuple):
    """A resource with a fixed address.

    Attributes:
        uri: its address.
        name: short name.
        description: for people and models.
        method: RPC method it shows.
        arguments: of that method.
    """

    uri: str
    name: str
    description: str
    method: str
    arguments: dict[str, object]


FIXED: Final = (
    Fixed(
        "covey://recent",
        "recent",
        "The newest memories that you may read and that are trusted enough.",
        "memory.list",
        {"limit": RECENT_HITS, "trusted": True},
    ),
    Fixed("covey://status", "status", "How the daemon and its peers are.", "daemon.status", {}),
)


class Target(NamedTuple):
    """What an address stands for.

    Attributes:
        uri: the address, in our spelling.
        method: RPC method that answers.
        arguments: of that method, as JSON would hold them.
    """

    uri: str
    method: str
    arguments: dict[str, object]

    def params(self, struct: type[P]) -> P:
        """The arguments as the method's params."""
        return msgspec.convert(self.arguments, struct)


def decode_uri_untrusted(uri: str) -> Target | None:
    """Read an address; None when it is none of ours."""
    for fixed in FIXED:
        if uri == fixed.uri:
            return Target(fixed.uri, fixed.method, fixed.arguments)
    found = _MEMORY.fullmatch(uri)
    if found is None:
        return None
    return Target(uri, "memory.get", {"ids": [found[1]]})
