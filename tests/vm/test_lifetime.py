# SPDX-License-Identifier: GPL-2.0
"""Module, namespaces and devices can go at any moment, under any load, and leave nothing behind.

That nothing is left, and that the kernel does not complain, is checked after every test.
"""

import threading
import time

import pytest

from lab import kernel
from lab.control import Control
from lab.topology import Router
from lab.traffic import Datagrams


class Flood:
    """Datagrams both ways, as fast as one thread can, that nobody waits for."""

    FLOWS = 8

    def __init__(self, router):
        self._conversations = [Datagrams(router.lan, router.wan, router.WAN, 3000 + n) for n in range(self.FLOWS)]
        for conversation in self._conversations:
            conversation.exchange(1)
        self._over = threading.Event()
        #: Datagrams that arrived.
        self.count = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._over.is_set():
            for conversation in self._conversations:
                try:
                    if conversation.request(timeout=0.05) and conversation.reply(timeout=0.05):
                        self.count += 2
                        continue
                except (OSError, AssertionError):
                    pass
                # What was given up arrives late, in place of what is being waited for from then on: nothing
                # would be answered any more, and no connection be established again.
                conversation.drain()

    def close(self):
        self._over.set()
        self._thread.join()
        for conversation in self._conversations:
            conversation.close()


def test_fifty_loads_and_unloads_under_traffic():
    router = Router(controlled=False)
    flood = Flood(router)
    fast = 0
    for n in range(50):
        kernel.load()
        control = Control(router.router)
        control.enable()
        time.sleep(0.15 if n % 10 else 1)
        fast += control.stats().fast
        control.close()
        kernel.unload()
    before = flood.count
    time.sleep(0.3)
    assert flood.count > before, "the traffic goes on"
    assert fast > 100
    flood.close()
    router.remove()


def test_unloading_while_switched_off_and_never_used():
    for _ in range(5):
        kernel.unload()
        kernel.load()


@pytest.mark.parametrize("which", ["router", "lan", "wan"])
def test_a_namespace_removed_under_traffic(which):
    for _ in range(3):
        router = Router()
        router.control.enable()
        flood = Flood(router)
        time.sleep(0.6)
        assert router.control.stats().fast > 0
        router.control.close()
        router.control.close = lambda: None
        removed = getattr(router, which)
        removed.remove()
        removed.remove = lambda: None
        time.sleep(0.2)
        flood.close()
        router.remove()


def test_devices_coming_and_going_under_traffic(router):
    router.control.enable()
    flood = router.until_removed(Flood(router))
    for _ in range(10):
        for device in ("lan0", "wan0"):
            router.router.ip("link", "set", device, "down")
            router.router.ip("link", "set", device, "up")
        time.sleep(0.1)
    before = router.control.stats()
    kernel.wait_until(lambda: (router.control.stats() - before).fast > 0, 10, "fast packets once it is over")
    del flood


def test_configuration_changing_under_traffic(router):
    flood = router.until_removed(Flood(router))
    for n in range(30):
        router.control.set(enabled=n % 3 != 2, table_size=16 << (n % 5))
        router.control.flush()
        router.control.flows()
        router.router.run("conntrack", "-F")
    router.control.set(enabled=1, table_size=1024)
    time.sleep(0.7)
    before = router.control.stats()
    time.sleep(1)
    assert (router.control.stats() - before).fast > 0
    del flood
