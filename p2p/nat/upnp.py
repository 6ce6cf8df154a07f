"""UPnP's Internet Gateway Device: what is said to find one and to have it forward a port.

Three dialogues, each text that a stranger may have written: SSDP (a search by multicast, answered
with the place of a description), the description (XML over HTTP: which services, where), and SOAP
calls (XML over HTTP). Everything read is bounded and typed here; sockets are
`p2p.nat.upnp_client`'s.

A hostile gateway, or somebody on the link who answers in its place, may send huge or endless
replies, XML that grows when it is read, or addresses elsewhere. So an answer counts only if it
leads to the gateway's own address, XML with a document type is refused, and depth, number and
length of its elements are limited. Source: UPnP Device Architecture 1.1 s.1.3; UPnP IGD
WANIPConnection:1 and :2; docs/specs/portmap.md s.3.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.parsers import expat

from p2p.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

SSDP_GROUP: Final = "239.255.255.250"
SSDP_PORT: Final = 1900
SSDP_BYTES_MAX: Final = 2048
"""Longest answer to a search. Real ones have some 400 bytes."""
SEARCH_TARGETS: Final = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
)
SERVICES: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
"""Services that map ports, in the order in which they are tried."""
REPLY_BYTES_MAX: Final = 64 * 1024
"""Longest HTTP reply, head and body. Descriptions have some 5 KiB, SOAP replies below 1 KiB."""
HEAD_BYTES_MAX: Final = 8 * 1024
DEPTH_MAX: Final = 16
"""Elements within one another. A description needs ten."""
ELEMENTS_MAX: Final = 1000
"""Elements of a document: real ones have 150. So many take 3 ms, in which nobody else is served."""
TEXT_CHARACTERS_MAX: Final = 1024
"""Text of one element that is kept; more of it is refused."""
PATH_CHARACTERS_MAX: Final = 1024

_URL: Final = re.compile(r"http://([0-9]{1,3}(?:\.[0-9]{1,3}){3})(?::([0-9]{1,5}))?(/[!-~]*)?\Z")
_PATH: Final = re.compile(r"[!-~]*\Z")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\Z")
_ARGUMENT: Final = re.compile(r"[A-Za-z0-9 ._:-]*\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,6}\Z")

NO_SUCH_ENTRY: Final = 714
PORT_TAKEN: Final = 718
SAME_PORT_ONLY: Final = 724
PERMANENT_ONLY: Final = 725
FAULTS: Final = {
    402: "it did not like our arguments",
    501: "it failed inside",
    606: "it does not allow this machine to map ports",
    PORT_TAKEN: "the port is mapped for somebody else",
    SAME_PORT_ONLY: "it maps a port to the same number only",
    PERMANENT_ONLY: "it makes permanent mappings only",
    728: "it has no room for another mapping",
}
"""What error codes of WANIPConnection mean."""


# --- addresses ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HttpUrl:
    """An `http` address at an IPv4 address; names are not followed."""

    host: str
    port: int
    path: str


def parse_http_url_untrusted(text: str) -> HttpUrl:
    """Read `http://192.168.1.1:5000/rootDesc.xml`.

    Raises:
        DecodeError: another scheme, a name, no such address or port, a path out of form.
    """
    found = _URL.match(text) if len(text) <= PATH_CHARACTERS_MAX else None
    if found is None:
        raise DecodeError("UPnP: not an http address at an IPv4 address")
    try:
        host = str(ipaddress.IPv4Address(found[1]))
    except ValueError:
        raise DecodeError("UPnP: not an http address at an IPv4 address") from None
    port = int(found[2] or 80)
    if not 0 < port < 65_536:
        raise DecodeError("UPnP: no such port")
    return HttpUrl(host, port, found[3] or "/")


def resolve_untrusted(base: HttpUrl, reference: str) -> HttpUrl:
    """A reference in a description as an address; it stays on the host of `base`.

    Raises:
        DecodeError: it leads to another host, or is out of form.
    """
    if "://" in reference:
        url = parse_http_url_untrusted(reference)
        if url.host != base.host:
            raise DecodeError("UPnP: a service on another host than its description")
        return url
    if len(reference) > PATH_CHARACTERS_MAX or not _PATH.match(reference):
        raise DecodeError("UPnP: a path out of form")
    if reference.startswith("/"):
        return HttpUrl(base.host, base.port, reference)
    return HttpUrl(base.host, base.port, base.path.rpartition("/")[0] + "/" + reference)


# --- search ---------------------------------------------------------------------------------------


def encode_search(target: str) -> bytes:
    """A search for devices of a type; they answer within two seconds."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {SSDP_GROUP}:{SSDP_PORT}",
        'MAN: "ssdp:discover"',
        "MX: 2",
        f"ST: {target}",
        "",
        "",
    )
    return "\r\n".join(lines).encode("ascii")


def decode_ssdp_untrusted(data: bytes) -> HttpUrl:
    """Where the description of a gateway that answered our search is.

    Raises:
        DecodeError: too long, no answer to a search for a gateway, no place at an IPv4 address.
    """
    if len(data) > SSDP_BYTES_MAX:
        raise DecodeError("SSDP: an answer over 2048 bytes")
    status, headers = _head(data.partition(b"\r\n\r\n")[0])
    if status != 200 or headers.get("st") not in SEARCH_TARGETS:
        raise DecodeError("SSDP: not an answer of a gateway")
    return parse_http_url_untrusted(headers.get("location", ""))


def _head(head: bytes) -> tuple[int, Mapping[str, str]]:
    """Status and headers, their names in lower case; the first of a name counts."""
    first, *lines = head.split(b"\r\n")
    found = _STATUS.match(first)
    if found is None:
        raise DecodeError("HTTP: no status line")
    headers: dict[str, str] = {}
    for line in lines[:64]:
        name, colon, value = line.partition(b":")
        if colon:
            key = name.strip().lower().decode("ascii", "replace")
            headers.setdefault(key, value.strip().decode("ascii", "replace"))
    return int(found[1]), headers


# --- HTTP -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HttpReply:
    """A whole reply."""

    status: int
    body: bytes


def encode_get(url: HttpUrl) -> bytes:
    """A request for a document."""
    return _request("GET", url, {}, b"")


def encode_call(url: HttpUrl, service: str, action: str, arguments: Mapping[str, str]) -> bytes:
    """A SOAP call.

    Args:
        url: the service's control address.
        service: its type, one of `SERVICES`.
        action: what to do.
        arguments: in the order of the service's description; letters, digits, `. : - _` and spaces.
    """
    assert all(_ARGUMENT.match(value) for value in arguments.values()), "an argument needs escaping"
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode("ascii")
    headers = {
        "Content-Type": 'text/xml; charset="utf-8"',
        "SOAPAction": f'"{service}#{action}"',
        "Content-Length": str(len(body)),
    }
    return _request("POST", url, headers, body)


def _request(method: str, url: HttpUrl, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [
        f"{method} {url.path} HTTP/1.1",
        f"Host: {url.host}:{url.port}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode("ascii") + body


def decode_http_untrusted(data: bytes, *, at_end: bool = True) -> HttpReply | None:
    """Read a reply; None while more of it is to come.

    Args:
        data: all bytes so far.
        at_end: whether the other side closed the connection.

    Raises:
        DecodeError: not HTTP, over a limit, cut short, chunks out of form.
    """
    if len(data) > REPLY_BYTES_MAX:
        raise DecodeError("HTTP: a reply over 64 KiB")
    head, separator, body = data.partition(b"\r\n\r\n")
    if len(head) > HEAD_BYTES_MAX:
        raise DecodeError("HTTP: a head over 8 KiB")
    if not separator:
        if at_end:
            raise DecodeError("HTTP: the reply was cut short")
        return None
    status, headers = _head(head)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        # Taken apart once: at its end, or at what looks like the last chunk.
        if not at_end and not body.endswith(b"0\r\n\r\n"):
            return None
        return HttpReply(status, _dechunk(body))
    length = headers.get("content-length")
    if length is None:
        return HttpReply(status, body) if at_end else None
    if not _NUMBER.match(length) or int(length) > REPLY_BYTES_MAX:
        raise DecodeError("HTTP: a body over 64 KiB, or of no length")
    if len(body) < int(length):
        if at_end:
            raise DecodeError("HTTP: the reply was cut short")
        return None
    return HttpReply(status, body[: int(length)])


def _dechunk(data: bytes) -> bytes:
    out = bytearray()
    offset = 0
    while True:
        end = data.find(b"\r\n", offset, offset + 32)
        size_text = data[offset:end].partition(b";")[0].strip() if end >= 0 else b""
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,5}", size_text):
            raise DecodeError("HTTP: a chunk of no length")
        size = int(size_text, 16)
        if size == 0:
            return bytes(out)
        start = end + 2
        if data[start + size : start + size + 2] != b"\r\n":
            raise DecodeError("HTTP: a chunk was cut short")
        out += data[start : start + size]
        offset = start + size + 2


# --- XML ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """An element without elements in it."""

    parent: int
    """Number of the element around it: leaves of one parent have the same."""
    parent_name: str
    name: str
    """Without its namespace's prefix."""
    text: str


def decode_xml_untrusted(data: bytes) -> list[Leaf]:
    """The leaves of a document, in order.

    Raises:
        DecodeError: not XML in UTF-8, a document type, over a limit.
    """
    if len(data) > REPLY_BYTES_MAX:
        raise DecodeError("XML: over 64 KiB")
    reader = _LeafReader()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    try:
        parser.Parse(data, True)
    except expat.ExpatError:
        raise DecodeError("XML: out of form") from None
    return reader.leaves


@dataclass
class _Open:
    """An element whose end was not read yet."""

    number: int
    name: str
    pieces: list[str]
    has_elements: bool = False


class _LeafReader:
    """Handlers of one parse."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []
        self._open: list[_Open] = []
        self._count = 0

    def doctype(self, *_: object) -> None:
        """Entities could grow without bound, or name files; nothing that we read has any."""
        raise DecodeError("XML: a document type")

    def start(self, name: str, _: Mapping[str, str]) -> None:
        self._count += 1
        if self._count > ELEMENTS_MAX or len(self._open) >= DEPTH_MAX:
            raise DecodeError("XML: too many elements, or too deep")
        if self._open:
            self._open[-1].has_elements = True
        self._open.append(_Open(self._count, name.rpartition(":")[2], []))

    def characters(self, text: str) -> None:
        pieces = self._open[-1].pieces
        pieces.append(text)
        if sum(map(len, pieces)) > TEXT_CHARACTERS_MAX or len(pieces) > TEXT_CHARACTERS_MAX:
            raise DecodeError("XML: a text over 1024 characters")

    def end(self, _: str) -> None:
        closed = self._open.pop()
        if not closed.has_elements and self._open:
            parent = self._open[-1]
            text = "".join(closed.pieces).strip()
            self.leaves.append(Leaf(parent.number, parent.name, closed.name, text))


# --- what the documents mean ----------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """A service that maps ports, and where it is called."""

    service: str
    url: HttpUrl


def decode_description_untrusted(data: bytes, location: HttpUrl) -> list[Control]:
    """Services of a gateway that map ports, in the order of `SERVICES`.

    Args:
        data: the description.
        location: where it was; services stay on that host.

    Raises:
        DecodeError: as `decode_xml_untrusted`.
    """
    leaves = decode_xml_untrusted(data)
    services: dict[int, dict[str, str]] = {}
    base = location
    for leaf in leaves:
        if leaf.parent_name == "service":
            services.setdefault(leaf.parent, {}).setdefault(leaf.name, leaf.text)
        elif leaf.name == "URLBase" and leaf.text:
            base = resolve_untrusted(location, leaf.text)
    return [
        Control(wanted, resolve_untrusted(base, told["controlURL"]))
        for wanted in SERVICES
        for told in services.values()
        if told.get("serviceType") == wanted and "controlURL" in told
    ]


@dataclass(frozen=True)
class SoapReply:
    """The answer to a call."""

    values: Mapping[str, str]
    fault: int
    """Error code of the service; 0: the call succeeded."""

    @property
    def reason(self) -> str:
        """What the fault means, for people."""
        return FAULTS.get(self.fault, f"it answered with error {self.fault}")


def decode_soap_untrusted(data: bytes) -> SoapReply:
    """Read the body of an answer to a call.

    Raises:
        DecodeError: as `decode_xml_untrusted`; neither an answer nor an error code.
    """
    leaves = decode_xml_untrusted(data)
    values: dict[str, str] = {}
    fault = 0
    for leaf in leaves:
        if leaf.parent_name == "UPnPError" and leaf.name == "errorCode":
            if not _NUMBER.match(leaf.text) or not int(leaf.text):
                raise DecodeError("SOAP: an error without a code")
            fault = int(leaf.text)
        values.setdefault(leaf.name, leaf.text)
    if not fault and "faultstring" in values:
        raise DecodeError("SOAP: an error without a code")
    return SoapReply(values, fault)


def external_address_untrusted(text: str) -> ipaddress.IPv4Address | None:
    """The address in an answer to GetExternalIPAddress; None when the gateway has none.

    Raises:
        DecodeError: it is no address.
    """
    if not text or text == "0.0.0.0":  # noqa: S104 - how a gateway without a line says so
        return None
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise DecodeError("SOAP: not an IPv4 address") from None
