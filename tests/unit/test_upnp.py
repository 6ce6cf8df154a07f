"""UPnP's texts: a real router's are read, and what is out of form or leads elsewhere is refused."""

from __future__ import annotations

import ipaddress

import pytest

from p2p.errors import DecodeError
from p2p.nat.upnp import (
    DEPTH_MAX,
    ELEMENTS_MAX,
    FAULTS,
    REPLY_BYTES_MAX,
    SEARCH_TARGETS,
    SERVICES,
    TEXT_CHARACTERS_MAX,
    Control,
    HttpReply,
    HttpUrl,
    SoapReply,
    decode_description_untrusted,
    decode_http_untrusted,
    decode_soap_untrusted,
    decode_ssdp_untrusted,
    decode_xml_untrusted,
    encode_call,
    encode_get,
    encode_search,
    external_address_untrusted,
    parse_http_url_untrusted,
    resolve_untrusted,
)
from tests.helpers import vectors

LOCATION = HttpUrl("10.77.1.1", 42557, "/rootDesc.xml")
WAN_IP = "urn:schemas-upnp-org:service:WANIPConnection:1"


def golden(name: str) -> bytes:
    replies = vectors.load("upnp.json")["replies"]
    assert isinstance(replies, dict)
    return str(replies[name]).encode("ascii")


def body(name: str) -> bytes:
    reply = decode_http_untrusted(golden(name))
    assert reply is not None
    return reply.body


# --- a real router --------------------------------------------------------------------------------


def test_the_answer_to_a_search_is_read() -> None:
    assert decode_ssdp_untrusted(golden("search answer")) == LOCATION


def test_the_description_leads_to_the_service() -> None:
    assert decode_description_untrusted(body("description"), LOCATION) == [
        Control(
            "urn:schemas-upnp-org:service:WANIPConnection:2",
            HttpUrl("10.77.1.1", 42557, "/ctl/IPConn"),
        )
    ]


def test_answers_to_calls_are_read() -> None:
    address = decode_soap_untrusted(body("GetExternalIPAddress"))
    assert external_address_untrusted(address.values["NewExternalIPAddress"]) == (
        ipaddress.IPv4Address("45.77.1.1")
    )
    entry = decode_soap_untrusted(body("GetSpecificPortMappingEntry")).values
    assert (entry["NewInternalClient"], entry["NewInternalPort"]) == ("10.77.1.2", "15001")
    assert decode_soap_untrusted(body("AddPortMapping")).fault == 0
    assert decode_soap_untrusted(body("AddPortMapping refused")).fault == 606
    assert decode_soap_untrusted(body("GetSpecificPortMappingEntry of none")).fault == 714


def test_a_reply_is_whole_when_its_length_says_so() -> None:
    data = golden("description")
    whole = decode_http_untrusted(data, at_end=False)
    assert whole is not None
    assert whole.status == 200
    for size in range(0, len(data), 37):
        assert decode_http_untrusted(data[:size], at_end=False) is None
        with pytest.raises(DecodeError):
            decode_http_untrusted(data[:size])


# --- what we say ----------------------------------------------------------------------------------


def test_a_search_has_the_lines_that_devices_ask_for() -> None:
    assert encode_search(SEARCH_TARGETS[0]).decode("ascii").split("\r\n") == [
        "M-SEARCH * HTTP/1.1",
        "HOST: 239.255.255.250:1900",
        'MAN: "ssdp:discover"',
        "MX: 2",
        "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1",
        "",
        "",
    ]


def test_a_document_is_asked_for() -> None:
    assert encode_get(LOCATION) == (
        b"GET /rootDesc.xml HTTP/1.1\r\nHost: 10.77.1.1:42557\r\nConnection: close\r\n\r\n"
    )


def test_a_call_has_its_action_and_arguments_in_order() -> None:
    request = encode_call(
        HttpUrl("192.168.1.1", 5000, "/ctl"), WAN_IP, "DeletePortMapping",
        {"NewRemoteHost": "", "NewExternalPort": "15001", "NewProtocol": "TCP"},
    )  # fmt: skip
    head, _, content = request.decode("ascii").partition("\r\n\r\n")
    assert f'SOAPAction: "{WAN_IP}#DeletePortMapping"' in head.split("\r\n")
    assert f"Content-Length: {len(content)}" in head.split("\r\n")
    assert content == (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:DeletePortMapping xmlns:u="{WAN_IP}"><NewRemoteHost></NewRemoteHost>'
        "<NewExternalPort>15001</NewExternalPort><NewProtocol>TCP</NewProtocol>"
        "</u:DeletePortMapping></s:Body></s:Envelope>\r\n"
    )


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://192.168.1.1:5000/rootDesc.xml", HttpUrl("192.168.1.1", 5000, "/rootDesc.xml")),
        ("http://192.168.1.1", HttpUrl("192.168.1.1", 80, "/")),
        ("http://192.168.1.1/a?b=c#d", HttpUrl("192.168.1.1", 80, "/a?b=c#d")),
    ],
)
def test_an_http_address_is_read(text: str, url: HttpUrl) -> None:
    assert parse_http_url_untrusted(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://192.168.1.1/",
        "http://router.local/",
        "http://192.168.1.1@203.0.113.1/",
        "http://user:word@192.168.1.1/",
        "http://192.168.1.1:0/",
        "http://192.168.1.1:65536/",
        "http://192.168.1.300/",
        "http://192.168.001.1/",
        "http://[fe80::1]/",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/\r\nHost: other",
        "http://192.168.1.1/" + "a" * 1024,
        "file:///etc/passwd",
        "//203.0.113.1/",
    ],
)
def test_anything_else_is_no_address_to_follow(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_http_url_untrusted(text)


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("/ctl/IPConn", "/ctl/IPConn"),
        ("ctl/IPConn", "/upnp/ctl/IPConn"),
        ("http://10.77.1.1:42557/x", "/x"),
        ("//203.0.113.1/x", "//203.0.113.1/x"),  # a path to us, whatever browsers think
    ],
)
def test_a_reference_stays_with_the_router(reference: str, path: str) -> None:
    base = HttpUrl("10.77.1.1", 42557, "/upnp/rootDesc.xml")
    assert resolve_untrusted(base, reference) == HttpUrl("10.77.1.1", 42557, path)


@pytest.mark.parametrize(
    "reference",
    ["http://203.0.113.1/ctl", "http://router.local/ctl", "/a\r\nb", "/a b", "x" * 1025],
)
def test_a_reference_elsewhere_or_out_of_form_is_refused(reference: str) -> None:
    with pytest.raises(DecodeError):
        resolve_untrusted(LOCATION, reference)


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"HTTP/1.1 200 OK", b"NOTIFY * HTTP/1.1"),
        (b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found"),
        (b"device:InternetGatewayDevice:1\r\nUSN", b"device:MediaServer:1\r\nUSN"),
        (b"LOCATION", b"PLACE"),
        (b"http://10.77.1.1:42557", b"http://router.example"),
        (b"OPT:", b"X: " + b"x" * 2048 + b"\r\nOPT:"),
    ],
)
def test_answers_that_lead_to_no_router_are_refused(old: bytes, new: bytes) -> None:
    data = golden("search answer")
    assert old in data
    with pytest.raises(DecodeError):
        decode_ssdp_untrusted(data.replace(old, new))


# --- HTTP -----------------------------------------------------------------------------------------


def test_chunks_are_put_together() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + b"5;x=y\r\nhello\r\n6\r\n there\r\n0\r\n\r\n"
    assert decode_http_untrusted(data, at_end=False) == HttpReply(200, b"hello there")
    for size in range(len(data)):
        assert decode_http_untrusted(data[:size], at_end=False) is None


def test_without_a_length_the_end_of_the_connection_is_the_end() -> None:
    data = b"HTTP/1.0 200 OK\r\n\r\nhello"
    assert decode_http_untrusted(data, at_end=False) is None
    assert decode_http_untrusted(data) == HttpReply(200, b"hello")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\r\n\r\n", "no status"),
        (b"SSH-2.0-x\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "a negative length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n", "a length over the limit"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", "a huge length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n", "no chunk size"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\na\r\n0\r\n\r\n",
            "a big chunk",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000, "a head over 8 KiB"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(REPLY_BYTES_MAX), "a reply over 64 KiB"),
    ],
)
@pytest.mark.parametrize("at_end", [False, True])
def test_a_reply_out_of_form_is_refused(data: bytes, why: str, at_end: bool) -> None:
    with pytest.raises(DecodeError):
        decode_http_untrusted(data, at_end=at_end)
    assert why


# --- XML ------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return b"<a>" * depth + b"</a>" * depth


BOMB = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>"""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing"),
        (b"<a>", "an open end"),
        (b"<a></b>", "crossed elements"),
        (b"<html><br></html>", "HTML"),
        (b"<a>&undefined;</a>", "an entity of nobody's"),
        (BOMB, "entities"),
        (BOMB.decode().encode("utf-16"), "entities in another encoding"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "a document type elsewhere"),
        (nested(DEPTH_MAX + 1), "too deep"),
        (b"<a>" + b"<b/>" * ELEMENTS_MAX + b"</a>", "too many elements"),
        (b"<a>" + b"x" * (TEXT_CHARACTERS_MAX + 1) + b"</a>", "a long text"),
        (b"<a>" + b"x<!---->" * (TEXT_CHARACTERS_MAX + 1) + b"</a>", "a text in pieces"),
        (b"<a>\xff</a>", "no UTF-8"),
    ],
)
def test_xml_out_of_form_or_bounds_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError):
        decode_xml_untrusted(data)
    assert why


def test_xml_within_its_bounds_is_read() -> None:
    assert len(decode_xml_untrusted(nested(DEPTH_MAX))) == 1
    assert len(decode_xml_untrusted(b"<a>" + b"<b/>" * (ELEMENTS_MAX - 1) + b"</a>")) == 999
    (leaf,) = decode_xml_untrusted(b"<s:a xmlns:s='x'><s:b> &lt;text&gt; </s:b></s:a>")
    assert (leaf.parent_name, leaf.name, leaf.text) == ("a", "b", "<text>")


def description(*services: tuple[str, str], base: str = "") -> bytes:
    rows = "".join(
        f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>"
        for kind, url in services
    )
    return f"<root>{base}<device><serviceList>{rows}</serviceList></device></root>".encode()


def test_services_come_in_our_order_and_others_are_left_out() -> None:
    data = description((SERVICES[2], "/ppp"), ("urn:x:service:Layer3Forwarding:1", "/l3"),
                       (SERVICES[0], "/ip"))  # fmt: skip
    assert [control.url.path for control in decode_description_untrusted(data, LOCATION)] == [
        "/ip",
        "/ppp",
    ]
    assert decode_description_untrusted(b"<root/>", LOCATION) == []


def test_a_service_elsewhere_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode_description_untrusted(description((WAN_IP, "http://203.0.113.1/ctl")), LOCATION)
    base = "<URLBase>http://203.0.113.1/</URLBase>"
    with pytest.raises(DecodeError):
        decode_description_untrusted(description((WAN_IP, "/ctl"), base=base), LOCATION)
    near = "<URLBase>http://10.77.1.1:80/</URLBase>"
    (control,) = decode_description_untrusted(description((WAN_IP, "ctl"), base=near), LOCATION)
    assert control.url == HttpUrl("10.77.1.1", 80, "/ctl")


def test_faults_say_what_they_mean() -> None:
    assert SoapReply({}, 606).reason == FAULTS[606]
    assert SoapReply({}, 999).reason == "it answered with error 999"
    with pytest.raises(DecodeError):
        decode_soap_untrusted(b"<a><faultcode>s</faultcode><faultstring>x</faultstring></a>")
    with pytest.raises(DecodeError):
        decode_soap_untrusted(b"<a><UPnPError><errorCode>x</errorCode></UPnPError></a>")


@pytest.mark.parametrize("text", ["", "0.0.0.0"])
def test_a_router_without_a_line_has_no_address(text: str) -> None:
    assert external_address_untrusted(text) is None


@pytest.mark.parametrize("text", ["x", "::1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.4/8"])
def test_an_address_out_of_form_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        external_address_untrusted(text)
