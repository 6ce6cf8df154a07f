"""NAT-PMP over a real socket: ask, ask again, take the gateway's answer.

The socket is connected to the gateway, so that the kernel drops what others send, and tells at once
when nobody listens there. Source: RFC 6886 s.3.1; docs/specs/portmap.md s.2.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import DecodeError, Unreachable
from p2p.nat.natpmp import (
    GIVE_UP_S,
    PORT,
    SEND_AT_S,
    AddressReply,
    MapReply,
    Refusal,
    Reply,
    decode_natpmp_untrusted,
    encode_ask_address,
    encode_map_tcp,
)
from p2p.nat.portmap import Grant

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2p.nat.gateway import Gateway

REPLY_BYTES_MAX: Final = 64
"""A reply has at most 16 bytes; a longer one is none."""
REPLIES_MAX: Final = 64
"""Datagrams looked at for one answer: the gateway, or who can forge its address, floods us."""


class NatPmpClient:
    """One gateway.

    Args:
        gateway: whom to ask, and from which address.
        port: of the gateway; another one in tests only.
        give_up_s: how long an answer may take.
    """

    def __init__(self, gateway: Gateway, *, port: int = PORT, give_up_s: float = GIVE_UP_S) -> None:
        self._gateway = gateway
        self._port = port
        self._give_up_s = give_up_s

    async def map(self, internal_port: int, external_port: int, lifetime_s: float) -> Grant:
        """Have a TCP port forwarded to us.

        Args:
            internal_port: ours.
            external_port: the one we would like.
            lifetime_s: for how long, in seconds.

        Raises:
            Unreachable: the gateway does not speak NAT-PMP, or refused.
        """
        address = await self.external_address()
        request = encode_map_tcp(internal_port, external_port, int(lifetime_s))
        reply = await self._ask(
            request, lambda got: isinstance(got, MapReply) and got.internal_port == internal_port
        )
        assert isinstance(reply, MapReply)
        return Grant(
            kind="nat-pmp",
            external_ip=address.usable,
            external_port=reply.external_port,
            lifetime_s=reply.lifetime_s,
            epoch_s=reply.epoch_s,
        )

    async def external_address(self) -> AddressReply:
        """The gateway's external address and clock.

        Raises:
            Unreachable: the gateway does not speak NAT-PMP, or refused.
        """
        reply = await self._ask(encode_ask_address(), lambda got: isinstance(got, AddressReply))
        assert isinstance(reply, AddressReply)
        return reply

    async def unmap(self, internal_port: int) -> None:
        """End the mapping of a port.

        Raises:
            Unreachable: no answer, or a refusal.
        """
        await self._ask(
            encode_map_tcp(internal_port, 0, 0),
            lambda got: isinstance(got, MapReply) and got.internal_port == internal_port,
        )

    async def _ask(self, request: bytes, is_answer: Callable[[Reply], bool]) -> Reply:
        is_map = len(request) > 2
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        problem = "no answer"
        try:
            sock.setblocking(False)
            sock.bind((str(self._gateway.own), 0))
            sock.connect((str(self._gateway.address), self._port))
            with trio.move_on_after(self._give_up_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_send_again, sock, request)
                    reply = await _receive(sock, is_answer, is_map=is_map)
                    nursery.cancel_scope.cancel()
                if isinstance(reply, Refusal):
                    problem = reply.reason
                elif isinstance(reply, OSError):
                    problem = _reason(reply)
                else:
                    return reply
        except OSError as error:
            problem = _reason(error)
        finally:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        raise Unreachable(f"NAT-PMP: {problem}")


async def _send_again(sock: socket.socket, request: bytes) -> None:
    before_s = 0.0
    for at_s in SEND_AT_S:
        await trio.sleep(at_s - before_s)
        before_s = at_s
        try:
            sock.send(request)
        except OSError:
            return  # the reader sees the same error, or the next one may get through


async def _receive(
    sock: socket.socket, is_answer: Callable[[Reply], bool], *, is_map: bool
) -> Reply | OSError:
    """The answer, or what the socket says instead of one."""
    for _ in range(REPLIES_MAX):
        await trio.lowlevel.wait_readable(sock)
        try:
            reply = decode_natpmp_untrusted(sock.recv(REPLY_BYTES_MAX))
        except (BlockingIOError, InterruptedError, DecodeError):
            continue
        except OSError as error:
            return error
        if is_answer(reply) or (isinstance(reply, Refusal) and reply.is_map == is_map):
            return reply
    return OSError(errno.EPROTO, "it sends much and answers nothing")


def _reason(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "the router does not speak it"
    return error.strerror or os.strerror(error.errno or 0)
