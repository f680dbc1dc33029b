# SPDX-License-Identifier: GPL-2.0
"""The kernel's packet generator, injecting packets as if a device had received them."""

import re
from dataclasses import dataclass
from pathlib import Path

from network import IPV6

# pktgen's own headers: its magic, a sequence number, and a time that we have it leave out.
MAGIC = 0xBE9BE955
TTL = 32
LINK_HEADER = 14

CONTROL = Path("/proc/net/pktgen")


@dataclass(frozen=True)
class Flows:
    """A number of flows: all pairs of a source port and a destination port.

    The generator counts both up at once. The numbers of ports have no common factor, so it meets all
    pairs."""

    sources: int = 1
    destinations: int = 1

    FIRST_SOURCE = 10_000
    FIRST_DESTINATION = 40_000

    @property
    def count(self):
        """How many there are."""
        return self.sources * self.destinations

    def source_range(self):
        """First and last but one source port, as the generator wants them."""
        return self.FIRST_SOURCE, self.FIRST_SOURCE + self.sources

    def destination_range(self):
        """The same for destination ports."""
        return self.FIRST_DESTINATION, self.FIRST_DESTINATION + self.destinations


class Generator:
    """Sends packets of one family through the router, or their answers."""

    def __init__(self, network, family):
        self._network = network
        self._family = family

    def send(self, flows, size, count):
        """Injects `count` packets of `size` bytes, from the IP header on, on the router's LAN port. Gives
        how long that took, in nanoseconds a packet."""
        return self.batches(flows, size, count, 1)[0]

    def batches(self, flows, size, count, times):
        """Does the same so many times. Each time it begins with the same flow."""
        self._prepare("lan0", self._family.host, self._family.server, flows.source_range(),
                      flows.destination_range(), size, count)
        return [self._start("lan0", count) for _ in range(times)]

    def answer(self, flows, to, size):
        """Injects an answer to each flow on the WAN port. Gives how long that took, as `send` does."""
        self._prepare("wan0", self._family.server, to, flows.destination_range(), flows.source_range(), size,
                      flows.count)
        return self._start("wan0", flows.count)

    def _prepare(self, device, source, destination, source_ports, destination_ports, size, count):
        router = self._network.router
        if self._family is IPV6:
            addresses = [f"src6 {source}", f"dst6 {destination}"]
        else:
            addresses = [f"src_min {source}", f"src_max {source}", f"dst_min {destination}", f"dst_max {destination}"]
        settings = [
            "xmit_mode netif_receive", "flag !SHARED", "flag UDPCSUM", "flag NO_TIMESTAMP", "delay 0",
            f"dst_mac {router.mac(device)}", f"pkt_size {size + LINK_HEADER}", f"count {count}",
            *addresses,
            *(f"udp_{side}_{end} {port}" for side, ports in (("src", source_ports), ("dst", destination_ports))
              for end, port in zip(("min", "max"), ports, strict=True)),
        ]
        with router.inside():
            _write("kpktgend_0", "rem_device_all")
            _write("kpktgend_0", f"add_device {device}")
            for setting in settings:
                _write(device, setting)

    def _start(self, device, count):
        with self._network.router.inside():
            _write("pgctrl", "start")
            result = (CONTROL / device).read_text(encoding="ascii")
        found = re.search(r"OK: (\d+)\(\S+ usec, (\d+) ", result)
        if not found or int(found[2]) != count:
            raise AssertionError(f"the generator says: {result.splitlines()[-1]}")
        return int(found[1]) * 1000 / count


def _write(name, text):
    (CONTROL / name).write_text(text + "\n", encoding="ascii")
