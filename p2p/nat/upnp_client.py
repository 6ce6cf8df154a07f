"""UPnP over real sockets: find the gateway's service, call it.

Every exchange ends within three seconds and 64 KiB, whatever the other side does. Answers to the
search count only from the gateway's own address, and only if they lead there. Source:
docs/specs/portmap.md s.3.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

import trio

from p2p.errors import DecodeError, Unreachable
from p2p.nat.portmap import Grant
from p2p.nat.upnp import (
    NO_SUCH_ENTRY,
    PERMANENT_ONLY,
    PORT_TAKEN,
    REPLY_BYTES_MAX,
    SEARCH_TARGETS,
    SSDP_BYTES_MAX,
    SSDP_GROUP,
    SSDP_PORT,
    HttpReply,
    decode_description_untrusted,
    decode_http_untrusted,
    decode_soap_untrusted,
    decode_ssdp_untrusted,
    encode_call,
    encode_get,
    encode_search,
    external_address_untrusted,
)

if TYPE_CHECKING:
    import ipaddress
    import random

    from p2p.nat.gateway import Gateway
    from p2p.nat.upnp import Control, HttpUrl, SoapReply

log = logging.getLogger("covey.p2p.upnp")

EXCHANGE_S: Final = 3.0
"""Time for one request and its reply, and for the search."""
SEARCH_AGAIN_S: Final = 1.0
"""Multicast is lost at times: the search goes out a second time."""
ANSWERS_MAX: Final = 64
"""Answers to a search looked at: the other devices of the link answer too, or somebody floods."""
CONTROLS_MAX: Final = 3
"""Services tried of one description."""
PORT_TRIES: Final = 4
"""The port we would like, and three drawn ones."""
PORT_MIN: Final = 10_000
PORT_MAX: Final = 32_767
DESCRIPTION: Final = "covey"
"""What the router shows beside the mapping."""


class UpnpClient:
    """One gateway.

    Args:
        gateway: whom to ask, and from which address.
        rng: draws other ports.
        ssdp_port: where it is searched; another one in tests only.
        exchange_s: how long a search, or a request with its reply, may take.
    """

    def __init__(
        self,
        gateway: Gateway,
        rng: random.Random,
        *,
        ssdp_port: int = SSDP_PORT,
        exchange_s: float = EXCHANGE_S,
    ) -> None:
        self._gateway = gateway
        self._exchange_s = exchange_s
        self._rng = rng
        self._ssdp_port = ssdp_port
        self._control: Control | None = None

    async def map(self, internal_port: int, external_port: int, lifetime_s: float) -> Grant:
        """Have a TCP port forwarded to us.

        Args:
            internal_port: ours.
            external_port: the one we would like; another if it is taken.
            lifetime_s: for how long, in seconds; some routers make permanent mappings only.

        Raises:
            Unreachable: the gateway does not speak UPnP, or refused.
        """
        if self._control is None:
            self._control = await self._find()
        port, lease_s = external_port, int(lifetime_s)
        reason = ""
        for _ in range(PORT_TRIES + 1):
            reply = await self._add(internal_port, port, lease_s)
            reason = reply.reason
            if not reply.fault:
                return Grant(
                    kind="upnp",
                    external_ip=await self.external_address(),
                    external_port=port,
                    lifetime_s=lifetime_s,
                )
            if reply.fault == PERMANENT_ONLY and lease_s:
                lease_s = 0
            elif reply.fault == PORT_TAKEN:
                port = self._rng.randint(PORT_MIN, PORT_MAX)
            else:
                break
        raise Unreachable(f"UPnP: {reason}")

    async def external_address(self) -> ipaddress.IPv4Address | None:
        """The gateway's external address; None if it has none.

        Raises:
            Unreachable: it does not answer, or refused.
        """
        reply = await self._call("GetExternalIPAddress", {})
        if reply.fault:
            raise Unreachable(f"UPnP: {reply.reason}")
        try:
            return external_address_untrusted(reply.values.get("NewExternalIPAddress", ""))
        except DecodeError as error:
            raise Unreachable(f"UPnP: {error}") from None

    async def forwards(self, internal_port: int, external_port: int) -> bool:
        """Whether the mapping is still there and still ours.

        Raises:
            Unreachable: it does not answer.
        """
        reply = await self._call("GetSpecificPortMappingEntry", _entry(external_port))
        if reply.fault == NO_SUCH_ENTRY:
            return False
        if reply.fault:
            return True  # it does not say; the next renewal will
        told = reply.values.get("NewInternalClient"), reply.values.get("NewInternalPort")
        return told == (str(self._gateway.own), str(internal_port))

    async def unmap(self, external_port: int) -> None:
        """End a mapping.

        Raises:
            Unreachable: it does not answer, or refused.
        """
        reply = await self._call("DeletePortMapping", _entry(external_port))
        if reply.fault not in (0, NO_SUCH_ENTRY):
            raise Unreachable(f"UPnP: {reply.reason}")

    async def _add(self, internal_port: int, external_port: int, lease_s: int) -> SoapReply:
        return await self._call(
            "AddPortMapping",
            {
                **_entry(external_port),
                "NewInternalPort": str(internal_port),
                "NewInternalClient": str(self._gateway.own),
                "NewEnabled": "1",
                "NewPortMappingDescription": DESCRIPTION,
                "NewLeaseDuration": str(lease_s),
            },
        )

    async def _call(self, action: str, arguments: dict[str, str]) -> SoapReply:
        if self._control is None:
            self._control = await self._find()
        control = self._control
        request = encode_call(control.url, control.service, action, arguments)
        try:
            return decode_soap_untrusted((await self._exchange(control.url, request)).body)
        except DecodeError as error:
            raise Unreachable(f"UPnP: {error}") from None
        except Unreachable:
            self._control = None  # it may have restarted at another port: search anew next time
            raise

    async def _find(self) -> Control:
        """The first service of the gateway that knows an external address, or the first at all."""
        location = await self._search()
        reply = await self._exchange(location, encode_get(location))
        try:
            controls = decode_description_untrusted(reply.body, location)[:CONTROLS_MAX]
        except DecodeError as error:
            raise Unreachable(f"UPnP: {error}") from None
        if not controls:
            raise Unreachable("UPnP: the router has no service that maps ports")
        for control in controls[:-1]:
            # A router with two lines has two services, of which one may be unplugged.
            self._control = control
            try:
                if await self.external_address() is not None:
                    return control
            except Unreachable:
                continue
            finally:
                self._control = None
        return controls[-1]

    # --- sockets ---

    async def _search(self) -> HttpUrl:
        """Where the gateway's description is.

        Raises:
            Unreachable: it did not answer, or this machine has no network.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.bind((str(self._gateway.own), 0))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, self._gateway.own.packed)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
            with trio.move_on_after(self._exchange_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_searches, sock)
                    found = await self._first_answer(sock)
                    nursery.cancel_scope.cancel()
                if found is not None:
                    return found
        except OSError as error:
            raise Unreachable(f"UPnP: {error.strerror}") from None
        finally:
            trio.lowlevel.notify_closing(sock)
            sock.close()
        raise Unreachable("UPnP: the router does not answer")

    async def _send_searches(self, sock: socket.socket) -> None:
        # To the gateway alone too: some access points drop multicast.
        places = ((SSDP_GROUP, self._ssdp_port), (str(self._gateway.address), self._ssdp_port))
        for _ in range(2):
            for target in SEARCH_TARGETS:
                for place in places:
                    try:
                        sock.sendto(encode_search(target), place)
                    except OSError as error:
                        log.debug("search_not_sent", extra={"f": {"why": error.strerror}})
            await trio.sleep(SEARCH_AGAIN_S)

    async def _first_answer(self, sock: socket.socket) -> HttpUrl | None:
        gateway = str(self._gateway.address)
        for _ in range(ANSWERS_MAX):
            await trio.lowlevel.wait_readable(sock)
            try:
                data, remote = sock.recvfrom(SSDP_BYTES_MAX + 1)
                if str(remote[0]) != gateway:
                    continue
                url = decode_ssdp_untrusted(data)
            except (DecodeError, OSError):
                continue
            if url.host == gateway:
                return url
            log.info("upnp_leads_elsewhere", extra={"f": {"host": url.host}, "remote": True})
        return None

    async def _exchange(self, url: HttpUrl, request: bytes) -> HttpReply:
        """Send a request over a connection of its own and read the reply.

        Raises:
            Unreachable: no connection, no whole reply in time, too long or out of form.
        """
        assert url.host == str(self._gateway.address), "a call that would leave for elsewhere"
        try:
            with trio.move_on_after(self._exchange_s):
                stream = await trio.open_tcp_stream(url.host, url.port)
                try:
                    await stream.send_all(request)
                    return await _read_reply(stream)
                finally:
                    await trio.aclose_forcefully(stream)
        except (OSError, trio.BrokenResourceError, DecodeError) as error:
            raise Unreachable(f"UPnP: {error}") from None
        raise Unreachable("UPnP: the router was too slow")


async def _read_reply(stream: trio.SocketStream) -> HttpReply:
    held = bytearray()
    while True:
        data = await stream.receive_some(REPLY_BYTES_MAX + 1)
        held += data
        reply = decode_http_untrusted(bytes(held), at_end=not data)
        if reply is not None:
            return reply


def _entry(external_port: int) -> dict[str, str]:
    return {
        "NewRemoteHost": "",
        "NewExternalPort": str(external_port),
        "NewProtocol": "TCP",
    }
