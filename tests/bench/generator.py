# SPDX-License-Identifier: GPL-2.0
"""The kernel's packet generator, injecting packets as if a device had received them."""

import re
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from network import ETHERNET, IPV6

# pktgen's own headers: its magic, a sequence number, and a time that we have it leave out.
MAGIC = 0xBE9BE955
TTL = 32
LINK_HEADER = 14
TAG = 4

# Of the thread that asks, whose namespace need not be that of the others.
CONTROL = Path("/proc/thread-self/net/pktgen")


@dataclass(frozen=True)
class Flows:
    """A number of flows: all pairs of a source port and a destination port.

    The generator counts both up at once. The numbers of ports have no common factor, so it meets all
    pairs."""

    sources: int = 1
    destinations: int = 1
    first_source: int = 10_000

    FIRST_DESTINATION = 40_000

    @property
    def count(self):
        """How many there are."""
        return self.sources * self.destinations

    def parts(self, number):
        """So many parts of them, of the same size."""
        sources = self.sources // number
        return [Flows(sources, self.destinations, self.first_source + at * sources) for at in range(number)]

    def ports(self, number):
        """Those of the `number`th packet of a batch. The generator counts up before it sends: it begins with the second of
        each range."""
        return (self.first_source + number % self.sources, self.FIRST_DESTINATION + number % self.destinations)

    def source_range(self):
        """First and last but one source port, as the generator wants them."""
        return self.first_source, self.first_source + self.sources

    def destination_range(self):
        """The same for destination ports."""
        return self.FIRST_DESTINATION, self.FIRST_DESTINATION + self.destinations


class Generator:
    """Sends packets of one family through the router, or their answers."""

    def __init__(self, network, family):
        self._network = network
        self._family = family
        # The namespace that packets are injected in.
        self._place = network.router

    def send(self, flows, size, count):
        """Injects `count` packets of `size` bytes, from the IP header on, on the router's LAN port. Gives
        how long that took, in nanoseconds a packet."""
        return self.batches(flows, size, count, 1)[0]

    def batches(self, flows, size, count, times):
        """Does the same so many times. Each time it begins with the same flow."""
        self.prepare(flows, size, count)
        return [self._start(self._sender[1], count) for _ in range(times)]

    @property
    def _sender(self):
        """Who sends, and on which device of the place where packets are injected."""
        return self._network.source, self._network.lan_port

    def row(self, batches, size, count):
        """Has batches ready to be sent in a row, as often as is wanted: each of `count` packets of these flows. They have
        to be closed."""
        self.prepare(batches[0], size, count, more=batches[1:])
        port = self._sender[1]
        return Row(self._place, [port, *(self.device(port, number) for number in range(1, len(batches)))], count)

    def prepare(self, flows, size, count, cpu=0, more=()):
        """Has the generator of a processor ready to do what `send` does, and then the same with each of `more`."""
        network = self._network
        self._prepare(network.source, "lan0", network.lan, (self._family.host, self._family.server),
                      [(some.source_range(), some.destination_range()) for some in (flows, *more)], size, count, cpu)

    def answer(self, flows, to, size):
        """Injects an answer to each flow on the WAN port. Gives how long that took, as `send` does."""
        network = self._network
        self._prepare(network.sink, "wan0", network.wan, (self._family.server, to),
                      [(flows.destination_range(), flows.source_range())], size, flows.count)
        return self._start(network.wan_port, flows.count)

    @staticmethod
    def device(port, cpu):
        """What the generator of a processor calls a port: one device can't be two processors'."""
        return f"{port}@{cpu}" if cpu else port

    def _prepare(self, host, device, kind, ends, batches, size, count, cpu=0):
        """Has the generator send as `host` does, to the router's device, batch by batch. `batches`: the ranges of ports
        at either end."""
        (source, destination), port = ends, self.device(kind.port(device), cpu)
        if self._family is IPV6:
            addresses = [f"src6 {source}", f"dst6 {destination}"]
        else:
            addresses = [f"src_min {source}", f"src_max {source}", f"dst_min {destination}", f"dst_max {destination}"]
        settings = [
            "xmit_mode netif_receive", "flag !SHARED", "flag UDPCSUM", "flag NO_TIMESTAMP", "delay 0",
            f"src_mac {host.mac('eth0')}", f"dst_mac {self._place.mac(port if kind.is_point_to_point else device)}",
            f"pkt_size {size + LINK_HEADER + TAG * bool(kind.tag)}", f"count {count}",
            *([f"vlan_id {kind.tag}"] if kind.tag else []),
            *addresses,
        ]
        names = [port, *(self.device(port, number) for number in range(1, len(batches)))]
        with self._place.inside():
            _use(f"kpktgend_{cpu}", names)
            for name, ports in zip(names, batches, strict=True):
                for setting in [*settings, *(f"udp_{side}_{end} {number}"
                                             for side, numbers in zip(("src", "dst"), ports, strict=True)
                                             for end, number in zip(("min", "max"), numbers, strict=True))]:
                    _write(name, setting)

    def start(self):
        """Has the generators of all processors send what they were prepared for."""
        with self._place.inside():
            _write("pgctrl", "start")

    def said(self, name):
        """What is said of a device, as a generator calls it."""
        with self._place.inside():
            return (CONTROL / name).read_text(encoding="ascii")

    def _start(self, device, count):
        with self._place.inside():
            # The result is no longer that of the last time.
            _write(device, f"count {count}")
            _write("pgctrl", "start")
            return taken(lambda: (CONTROL / device).read_text(encoding="ascii"), count)


def taken(read, count):
    """How long `count` packets took, in nanoseconds a packet, from what the generator says, which `read` reads."""
    elapsed, idle = timed(read, count)
    return (elapsed - idle) * 1000 / count


def timed(read, count):
    """For how long the generator has been at it, and for how much of that something else ran, in microseconds.
    It may say that it has been started before its thread has run."""
    for _ in range(1000):
        text = read()
        found = re.search(r"OK: (\d+)\(c\d+\+d(\d+)\) usec, (\d+) ", text)
        if found and int(found[3]) == count:
            return int(found[1]), int(found[2])
        time.sleep(0.02)
    raise AssertionError(f"the generator says: {text.splitlines()[-1]}")


def _use(thread, names):
    """Has a thread of the generator use these ports, and nothing else. It gives up what it had only when it
    runs, which may be after the command for it has returned."""
    if _devices(thread):
        _write(thread, "rem_device_all")
    for _ in range(1000):
        if not _devices(thread):
            for name in names:
                _write(thread, f"add_device {name}")
            return
        time.sleep(0.02)
    raise AssertionError(f"the generator does not give up {_devices(thread)}")


def _devices(thread):
    """What a thread of the generator has."""
    text = (CONTROL / thread).read_text(encoding="ascii")
    return re.search(r"Running:(.*)\nStopped:(.*)\n", text).expand(r"\1\2").split()


class Row:
    """Batches that are sent in a row, again and again. To start takes longer than many batches: the generator waits for
    an eighth of a second to see whether all is over."""

    def __init__(self, place, devices, count):
        self._place, self._count = place, count
        with place.inside():
            self._control = (CONTROL / "pgctrl").open("wb", buffering=0)
            self._devices = [(CONTROL / name).open("rb+", buffering=0) for name in devices]

    def start(self):
        """Has them sent. Who does so in several networks at once needs a thread for each, since the generator is that
        of the thread's namespace."""
        for device in self._devices:
            device.write(f"count {self._count}\n".encode())
        with self._place.inside():
            self._control.write(b"start\n")

    def took(self):
        """What the least interrupted one but the first took, in nanoseconds a packet. All of them are under way from
        the start, and end one after the other. The first one fetches what others have thrown out of the caches."""
        ends = sorted(timed(lambda device=device: _said(device), self._count) for device in self._devices)
        took = [end - before - idle for (before, _), (end, idle) in pairwise(ends)]
        return min(took) * 1000 / self._count

    def close(self):
        """Gives the files back."""
        for file in (self._control, *self._devices):
            file.close()


def _said(device):
    """What the generator says of a batch."""
    device.seek(0)
    return device.read().decode()


class Distant(Generator):
    """Sends the answers, from behind the other end of a tunnel: they are encrypted before they reach the
    router."""

    DEVICE = "far0"

    def __init__(self, network, family):
        super().__init__(network, family)
        self._place = network.sink

    def prepare(self, flows, size, count, cpu=0, more=()):
        """As that of a generator, as are the others."""
        network, family = self._network, self._family
        self._prepare(network.sink, self.DEVICE, ETHERNET, (family.server, family.host),
                      [(some.destination_range(), some.source_range()) for some in (flows, *more)], size, count, cpu)

    @property
    def _sender(self):
        return self._network.sink, self.DEVICE


def _write(name, text):
    (CONTROL / name).write_text(text + "\n", encoding="ascii")
