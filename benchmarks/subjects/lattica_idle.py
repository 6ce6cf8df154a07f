"""An idle Lattica 1.0.21 node; runs in that peer's own environment."""

from __future__ import annotations

import sys
import time

from lattica import Lattica

node = Lattica.builder().with_mdns(False).with_upnp(False).build()
time.sleep(3)
print("ready", flush=True)
sys.stdin.readline()
