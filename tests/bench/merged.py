# SPDX-License-Identifier: GPL-2.0
"""What a datagram costs if the router merges those of a connection where they arrive, and splits them where they leave.

A network card hands over what has come meanwhile, and GRO makes a single packet of what belongs together: with TCP by
itself, with UDP that is to be forwarded only where it has been allowed, by `ethtool -K … rx-udp-gro-forwarding on` or
`rx-gro-list on`. Then whatever the router does is done once for all of it, by any path.

Here a program sends datagrams in bursts, which the source's device splits, so that they arrive in bursts. Checksums are
the devices' affair, as with most network cards; whether to split what has been merged is, too, is said beside the
figures. From each figure is taken what it costs to send such bursts and to drop them where they arrive, one by one.
"""

import socket
import statistics
import time

import paths
import report
from generator import Flows, Generator
from measure import establish
from network import IPV4, Network

SO_SNDBUFFORCE, UDP_SEGMENT = 32, 103
HEADERS = 28
#: Bytes of a datagram.
PAYLOAD = 1400 - HEADERS
#: Datagrams of a burst: less than what is taken from a device at once, and no more than an IP packet can hold.
BURST = 45
#: Bursts of which the median counts, and before them those that do not.
BURSTS, FIRST = 21, 8
PORTS = 10_000, 40_000

ALONE = "one by one"
MERGING = {ALONE: (), "rx-udp-gro-forwarding": ("rx-udp-gro-forwarding",), "rx-gro-list": ("rx-gro-list",)}
WAYS = (paths.Fasttrack(), paths.Flowtable(), paths.Slow())


class Source:
    """A program on the source, which sends bursts."""

    def __init__(self, network):
        host = network.source
        host.ip("addr", "add", f"{IPV4.host}/{IPV4.length}", "dev", "eth0")
        host.ip("neigh", "add", IPV4.lan, "lladdr", network.router.mac(network.lan_port), "dev", "eth0", "nud", "permanent")
        host.ip("route", "add", "default", "via", IPV4.lan)
        network.run("ethtool", "-K", "eth0", "tx", "on", "tx-udp-segmentation", "off", host=host)
        with host.inside():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)
        self._socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, PAYLOAD)
        self._socket.bind((IPV4.host, PORTS[0]))
        self._socket.connect((IPV4.server, PORTS[1]))
        self._burst = bytes(PAYLOAD * BURST)

    def send(self, bursts):
        """Sends so many; by the time that it returns they have arrived. Gives what a datagram took, burst by burst."""
        times = []
        for _ in range(bursts):
            begin = time.monotonic_ns()
            self._socket.send(self._burst)
            times.append((time.monotonic_ns() - begin) / BURST)
        return times


def main(_selection, say):
    """Measures and reports. Gives the exit status."""
    network = Network()
    network.settle()
    network.run("ethtool", "-K", "lan0", "gro", "on")
    source = Source(network)
    dropping = paths.Drop()
    merge(network, ALONE)
    dropping.enter(network, IPV4)
    spared = statistics.median(source.send(FIRST + BURSTS)[FIRST:])
    dropping.leave(network)
    found = []
    for path in WAYS:
        for splits in (False, True):
            network.run("ethtool", "-K", "wan0", "tx", "on", "tx-udp-segmentation", "on" if splits else "off")
            for merging in MERGING:
                figure, packets = one(network, source, path, merging)
                found.append({"path": path.name, "merging": merging, "device splits": splits,
                              "instructions": round(figure - spared, 1), "packets": packets})
                say(f"{path.title}, {merging}, {'split by the device' if splits else 'split by the router'}: "
                    f"{figure - spared:.0f}, in {packets} packets of {BURSTS * BURST} datagrams")
    show(found)
    report.write("merged.json", report.lines({"cells": found}))
    return 0


def merge(network, merging):
    """Has the router merge what arrives in a way."""
    for name in MERGING:
        if name != ALONE:
            network.run("ethtool", "-K", "lan0", name, "on" if name in MERGING[merging] else "off")


def one(network, source, path, merging):
    """What a datagram takes on a path; and as how many packets they reached the sink."""
    establish(network, Generator(network, IPV4), IPV4, Flows(), False, False)
    path.enter(network, IPV4)
    merge(network, merging)
    path.learn(lambda: source.send(FIRST))
    network.add_rules()
    source.send(FIRST)
    before, (packets, size) = path.counters(network, IPV4), arrived(network)
    figure = statistics.median(source.send(BURSTS))
    grown = {name: value - before[name] for name, value in path.counters(network, IPV4).items()}
    packets, size = (now - was for now, was in zip(arrived(network), (packets, size), strict=True))
    merge(network, ALONE)
    network.remove_rules()
    path.leave(network)
    network.clear()
    if size - HEADERS * packets != PAYLOAD * BURST * BURSTS:
        raise AssertionError(f"{path.title}, {merging}: {size} bytes in {packets} packets reached the sink")
    is_slow = isinstance(path, paths.Slow)
    if (grown["met rules"] != 0) != is_slow or grown.get("slow", 0) > grown.get("sampled", 0):
        raise AssertionError(f"{path.title}, {merging}: counters grew by {grown}")
    return figure, packets


def arrived(network):
    """Packets and bytes that have reached the sink."""
    words = network.run("nft", "list", "table", "netdev", "sink", host=network.sink).split()
    return tuple(int(words[words.index(name) + 1]) for name in ("packets", "bytes"))


def show(found):
    """Prints a table."""
    print(f"\nInstructions that a datagram of {PAYLOAD + HEADERS} bytes takes from where it arrives on, in bursts of {BURST}\n")
    for splits in (False, True):
        print(f"{'split by the device' if splits else 'split by the router':26}" + "".join(f"{name:>24}" for name in MERGING))
        for path in WAYS:
            row = [cell for cell in found if (cell["path"], cell["device splits"]) == (path.name, splits)]
            print(f"  {path.title:24}" + "".join(f"{cell['instructions']:24.0f}" for cell in row))
        print()
