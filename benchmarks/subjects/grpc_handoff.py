"""An update handed over by a gRPC unary call and added up; runs in that peer's own environment.

Usage: grpc_handoff.py serve ITEMS | grpc_handoff.py client ITEMS PORT
"""

from __future__ import annotations

import json
import resource
import sys
from concurrent import futures

import grpc
import numpy as np

UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def cpu_s():
    """User and system seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Adder(grpc.GenericRpcHandler):
    """Adds every message to a sum, without a check or a weight."""

    def __init__(self, items):
        self.total = np.zeros(items, np.float32)

    def service(self, _):
        """One method."""
        return grpc.unary_unary_rpc_method_handler(self.add)

    def add(self, request, _):
        """Add; answer with the last element."""
        np.add(self.total, np.frombuffer(request, np.float32), out=self.total)
        return str(float(self.total[-1])).encode()


def serve(items):
    """Serve until the pipe ends; tell the CPU seconds so far when asked."""
    server = grpc.server(futures.ThreadPoolExecutor(1), options=UNLIMITED)
    server.add_generic_rpc_handlers((Adder(items),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"cpu_s": cpu_s()}), flush=True)
    server.stop(0)


def client(items, port):
    """Hand over as often as asked; answer with this process's CPU seconds for it."""
    update = np.arange(items, dtype=np.float32) % 1000
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
    call = channel.unary_unary("/a/b")
    call(update.tobytes(), timeout=60)
    print("ready", flush=True)
    for line in sys.stdin:
        before = cpu_s()
        for _ in range(int(line)):
            call(update.tobytes(), timeout=120)
        print(json.dumps({"cpu_s": cpu_s() - before}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        client(int(sys.argv[2]), sys.argv[3])
