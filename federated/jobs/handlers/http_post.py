"""One POST of JSON over HTTP/1.1, and nothing more of HTTP than that.

No redirect is followed, no proxy is asked, no variable of the environment is read, no cookie is
kept and no compressed answer is taken: the operator's address is the only place that anything
goes to. Every answer has a cap. Time limits belong to the caller.
"""

from __future__ import annotations

import email.utils
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import h11
import trio

from federated.errors import HandlerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HEADER_BYTES_MAX: Final = 32_768
RETRY_AFTER_S_MAX: Final = 3600.0
_BLOCK_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go.

    Attributes:
        secure: whether by TLS.
        host: name or address.
        port: of the server.
        path: what stands before the path of a request; without a slash at its end.
    """

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """The endpoint of a URL that the settings have checked."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        assert parts.hostname is not None
        port = parts.port or (443 if secure else 80)
        return cls(secure, parts.hostname, port, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        body: whole.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def retry_after_s(self) -> float:
        """What Retry-After says, as seconds or as a date beside the answer's own; else 0."""
        text = self.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), RETRY_AFTER_S_MAX)
        try:
            then = email.utils.parsedate_to_datetime(text)
            now = email.utils.parsedate_to_datetime(self.headers.get("date", ""))
            wait_s = (then - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return min(max(wait_s, 0.0), RETRY_AFTER_S_MAX)


async def post_json(
    endpoint: Endpoint,
    path: str,
    body: bytes,
    *,
    token: str = "",
    bytes_max: int,
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """Send `body` and return the answer, whatever its status.

    Args:
        endpoint: where to.
        path: behind the endpoint's.
        body: JSON.
        token: for the header Authorization; none if empty.
        bytes_max: of the answer's body.
        tls: None: the system's authorities, names checked.

    Raises:
        HandlerError: `unavailable`: not reached, or not the one it should be; `output`: the answer
            is longer than `bytes_max`; `bad_output`: it is not HTTP.
    """
    try:
        stream = await _connected(endpoint, tls)
        async with stream:
            return await _exchanged(stream, _request(endpoint, path, body, token), body, bytes_max)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as error:
        raise HandlerError("unavailable", f"{endpoint.authority}: {error}") from error
    except h11.RemoteProtocolError as error:
        raise HandlerError("bad_output", f"{endpoint.authority}: {error}") from error


async def _connected(endpoint: Endpoint, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    if not endpoint.secure:
        return stream
    context = tls or ssl.create_default_context()
    secure = trio.SSLStream(stream, context, server_hostname=endpoint.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(secure)
        raise
    return secure


def _request(endpoint: Endpoint, path: str, body: bytes, token: str) -> h11.Request:
    headers = [
        ("Host", endpoint.authority),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Accept", "application/json"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    return h11.Request(method="POST", target=endpoint.path + path, headers=headers)


async def _exchanged(
    stream: trio.abc.Stream, request: h11.Request, body: bytes, bytes_max: int
) -> Reply:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES_MAX)
    sent = b"".join(
        http.send(event) or b"" for event in (request, h11.Data(data=body), h11.EndOfMessage())
    )
    await stream.send_all(sent)
    status = 0
    headers: Mapping[str, str] = {}
    found = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(_BLOCK_BYTES)))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, _texts(event.headers.raw_items())
            if headers.get("content-encoding", "identity") != "identity":
                raise HandlerError("bad_output", "a compressed answer, which was not asked for")
        elif isinstance(event, h11.Data):
            found += event.data
            if len(found) > bytes_max:
                raise HandlerError("output", f"more than {bytes_max} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Reply(status, headers, bytes(found))
        elif not isinstance(event, h11.InformationalResponse):
            raise HandlerError("bad_output", "it closed the connection before it answered")


def _texts(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
