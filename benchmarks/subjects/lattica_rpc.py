"""Unary calls of Lattica 1.0.21 over TCP; runs in that peer's own environment.

Usage: lattica_rpc.py serve | lattica_rpc.py client PEER ADDRESS

Its own pickling is left out on both sides: bytes go in and out, which is the fastest it has.
"""

from __future__ import annotations

import fcntl
import json
import socket
import statistics
import struct
import sys
import time

from lattica import ConnectionHandler, Lattica, rpc_method

PAYLOAD = b"x" * 100
WARM_UP = 50
PORT = 4001
"""Free: the network namespace is ours alone, and the peer does not say which port it took."""


class Echo(ConnectionHandler):
    """The service."""

    @rpc_method
    def echo(self, data: bytes) -> bytes:
        """Named for the peer's registry; calls go to the handler below."""
        return data

    def _handle_echo(self, data: bytes) -> bytes:
        return bytes(data)


def loopback_up():
    """A fresh network namespace has its loopback down (netdevice(7): SIOCSIFFLAGS, IFF_UP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))


def make_node(port, *bootstraps):
    """A node that looks for nobody by itself."""
    builder = Lattica.builder().with_mdns(False).with_upnp(False)
    builder = builder.with_listen_addrs([f"/ip4/127.0.0.1/tcp/{port}"])
    return (builder.with_bootstraps(list(bootstraps)) if bootstraps else builder).build()


def serve():
    """Say who and where, then serve until the pipe ends."""
    loopback_up()
    node = make_node(PORT)
    service = Echo(node)
    print(node.peer_id(), f"/ip4/127.0.0.1/tcp/{PORT}", flush=True)
    sys.stdin.read()
    del service


def client(peer, address):
    """Answer `rr COUNT` lines."""
    node = make_node(0, f"{address}/p2p/{peer}")
    service = Echo(node)
    while peer not in node.get_all_peers():
        time.sleep(0.05)
    remote = node.get_client(peer)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line.split()[1])
        took = []
        for _ in range(WARM_UP + count):
            before = time.perf_counter()
            answer = remote.call("Echo.echo", PAYLOAD).result(timeout=10)
            took.append(time.perf_counter() - before)
        if bytes(answer) != PAYLOAD:
            raise ValueError(answer)
        del took[:WARM_UP]
        p50_us = statistics.median(took) * 1e6
        print(json.dumps({"p50_us": p50_us, "seconds": sum(took)}), flush=True)
    del service


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        client(*sys.argv[2:4])
