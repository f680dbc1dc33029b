# SPDX-License-Identifier: GPL-2.0
"""What a packet of an IPsec tunnel costs the router.

    source ------- lan0 router wan0 ======= sink, which is the other gateway, too

On the way out packets are injected on the router's LAN port, and encrypted by it. On the way in they are injected
behind the other gateway, which encrypts them. From either figure is taken what it costs to drop the packets at the
ingress hook of the router's device: what is left is the router's own work, and sending.

The cipher that does nothing shows the work without cryptography. The router has what any router with a tunnel has on every
way: a masquerade that leaves out what IPsec is going to encrypt.
"""

import re
import statistics

import paths
import report
from generator import Distant, Flows, Generator
from measure import BATCH, BATCHES, SMALL, TRIES, WARM_UP
from network import IPV4, TRACK, Network
from paths import NotTaken

CIPHERS = {
    "null": ("auth", "digest_null", "", "enc", "ecb(cipher_null)", ""),
    "gcm(aes)": ("aead", "rfc4106(gcm(aes))", "0x" + "4a" * 20, 128),
}
SIZES = (SMALL, 1400)
OUT, IN = "out", "in"
# The states of either direction, and what they are called in headers.
SPIS = {OUT: 0x100, IN: 0x200}
LAN, FAR = "10.0.0.0/24", "198.51.100.0/24"
MASQUERADE = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept
        oifname wan0 rt ipsec missing masquerade
    }
}
"""


class Exclude(paths.Fasttrack):
    """fasttrack as it is by default: it leaves IPsec alone."""

    name, title = "exclude", "fasttrack, exclude"
    forwarded = meets_rules = True

    def expected(self, packets):
        return super().expected(packets) | {"fast": 0, "slow": packets}


class Accelerate(paths.Fasttrack):
    """fasttrack, with IPsec on the fast path."""

    name, title = "accelerate", "fasttrack, accelerate"

    def enter(self, network, family):
        paths.control(network, "set ipsec accelerate")
        super().enter(network, family)

    def leave(self, network):
        super().leave(network)
        paths.control(network, "set ipsec exclude")


class Dropped(paths.Drop):
    """Packets as they reach the router."""

    def __init__(self, port):
        self._port = port

    def enter(self, network, family):
        network.router.nft(f"table netdev dropping {{\nchain port {{\ntype filter hook ingress device {self._port} "
                           "priority 0; policy accept\ndrop\n}\n}\n")

    def leave(self, network):
        network.run("nft", "delete", "table", "netdev", "dropping")


ONLY_HERE = (Accelerate(), Exclude())
PATHS = (*ONLY_HERE, paths.Slow(), paths.Flowtable())
# In the order in which they are shown.
SHOWN = (PATHS[0], PATHS[3], PATHS[2], PATHS[1])


class Tunnelled(Network):
    """The network, with a tunnel between the router and the sink."""

    def __init__(self, name=""):
        super().__init__(name=name)
        far = self.sink
        far.sysctl("net.ipv4.ip_forward", 1)
        far.ip("addr", "add", f"{IPV4.gateway}/{IPV4.length}", "dev", "eth0")
        far.ip("neigh", "add", IPV4.wan, "lladdr", self.router.mac("wan0"), "dev", "eth0", "nud", "permanent")
        far.ip("link", "add", Distant.DEVICE, "type", "dummy")
        far.ip("link", "set", Distant.DEVICE, "up")
        far.ip("route", "add", FAR, "dev", Distant.DEVICE)
        far.ip("route", "add", LAN, "via", IPV4.wan)
        for gateway, own, peer, here, there in ((self.router, IPV4.wan, IPV4.gateway, LAN, FAR),
                                                (far, IPV4.gateway, IPV4.wan, FAR, LAN)):
            for direction, nets, ends in (("out", (here, there), (own, peer)), ("fwd", (there, here), (peer, own)),
                                          ("in", (there, here), (peer, own))):
                gateway.ip("xfrm", "policy", "add", "src", nets[0], "dst", nets[1], "dir", direction,
                           "tmpl", "src", ends[0], "dst", ends[1], "proto", "esp", "reqid", 1, "mode", "tunnel")

    def use(self, cipher):
        """Has the tunnel's states use a cipher."""
        for gateway in (self.router, self.sink):
            gateway.ip("xfrm", "state", "flush")
            for way, ends in ((OUT, (IPV4.wan, IPV4.gateway)), (IN, (IPV4.gateway, IPV4.wan))):
                gateway.ip("xfrm", "state", "add", "src", ends[0], "dst", ends[1], "proto", "esp",
                           "spi", hex(SPIS[way]), "reqid", 1, "mode", "tunnel", *CIPHERS[cipher])

    def transformed(self, way):
        """How many packets the router's state of a direction has transformed."""
        listed = self.run("ip", "-s", "xfrm", "state", "get", "src", *((IPV4.wan, "dst", IPV4.gateway) if way == OUT
                          else (IPV4.gateway, "dst", IPV4.wan)), "proto", "esp", "spi", hex(SPIS[way]))
        return int(re.search(r"\d+\(bytes\), (\d+)\(packets\)", listed)[1])

    def reached(self, way):
        """How many packets have reached the end of the way."""
        host = self.sink if way == OUT else self.source
        words = self.run("nft", "list", "table", "netdev", "sink", host=host).split()
        return int(words[words.index("packets") + 1])


def main(selection, say):
    """Measures and reports. Gives the exit status."""
    network = Tunnelled()
    generators = {OUT: Generator(network, IPV4), IN: Distant(network, IPV4)}
    cells = []
    for cipher in CIPHERS:
        network.use(cipher)
        dropped = {(way, size): drop(network, generators[way], way, size) for way in generators for size in SIZES}
        for path in PATHS:
            if selection.path and path.name not in selection.path:
                continue
            for (way, size), figure in one_path(network, generators, path).items():
                more = None if figure is None else round(figure - dropped[way, size], 1)
                cells.append({"path": path.name, "cipher": cipher, "way": way, "bytes": size, "instructions": more})
                say(f"{path.title}, {cipher}, {way}, {size} B: "
                    f"{'no packet took this path' if more is None else round(more)}")
    show(cells)
    report.write("ipsec.json", report.lines({"cells": cells}))
    return judge(cells)


def drop(network, generator, way, size):
    """What it costs to bring a packet to the router and drop it there."""
    path = Dropped(network.lan_port if way == OUT else network.wan_port)
    path.enter(network, IPV4)
    generator.batches(Flows(), size, BATCH, WARM_UP)
    figures = generator.batches(Flows(), size, BATCH, BATCHES)
    path.leave(network)
    return statistics.median(figures)


def one_path(network, generators, path):
    """What packets of either direction cost on a path, by direction and size."""
    network.router.nft(TRACK)
    network.router.nft(MASQUERADE)
    path.enter(network, IPV4)
    for _ in range(3):
        for generator in generators.values():
            generator.send(Flows(), SMALL, 1)
    network.add_rules()
    found = {}
    for way, generator in generators.items():
        for size in SIZES:
            try:
                found[way, size] = measure(network, generator, path, way, size)
            except NotTaken:
                found[way, size] = None
    network.remove_rules()
    path.leave(network)
    network.clear()
    return found


def counters(network, path, way):
    """Numbers that tell which way packets took."""
    found = path.counters(network, IPV4)
    # The other gateway's own packets would be counted as the sink's.
    del found["arrived"], found["forwarded"]
    if "fast" in found:
        fast = paths.statistics(network)["fast"]
        found["fast"] = fast["original" if way == OUT else "reply"]["packets"]
    return found | {"reached": network.reached(way), "transformed": network.transformed(way)}


def measure(network, generator, path, way, size):
    """Instructions for a packet, having made sure that it is about the path."""
    for _ in range(TRIES):
        generator.batches(Flows(), size, BATCH, WARM_UP)
        before = counters(network, path, way)
        figures = generator.batches(Flows(), size, BATCH, BATCHES)
        after = counters(network, path, way)
        grown = {name: after[name] - before[name] for name in before}
        if not grown.get("sampled"):
            break
    sent = BATCH * BATCHES
    expected = {name: value for name, value in path.expected(sent).items() if name in grown}
    expected |= {"reached": sent, "transformed": sent}
    if isinstance(path, paths.Flowtable) and grown["met rules"] == sent:
        raise NotTaken
    if grown != expected:
        raise AssertionError(f"{path.title}, {way}, {size} bytes: counters grew by {grown} instead of {expected}")
    return statistics.median(figures)


def by_place(cells):
    """Figures by what they are about, and then by path."""
    found = {}
    for cell in cells:
        place = cell["cipher"], cell["way"], cell["bytes"]
        found.setdefault(place, {})[cell["path"]] = cell["instructions"]
    return found


def show(cells):
    """Prints a table."""
    found = by_place(cells)
    print("\nInstructions a packet of a tunnel takes from the router's ingress hook on\n")
    print(f"{'':26}" + "".join(f"{path.title:>24}" for path in SHOWN) + f"{'saved':>12}")
    for (cipher, way, size), row in found.items():
        figures = [row.get(path.name) for path in SHOWN]
        saved = ""
        if row.get("accelerate") and row.get("slow"):
            saved = f"{row['slow'] - row['accelerate']:12.0f}"
        print(f"  {f'{cipher}, {way}, {size} B':24}"
              + "".join(f"{'-':>24}" if figure is None else f"{figure:24.0f}" for figure in figures) + saved)
    print()


def judge(cells):
    """Whether it is worth anything. Gives the exit status."""
    status = 0
    for place, row in by_place(cells).items():
        for other in ("slow", "flowtable"):
            if row.get("accelerate") and row.get(other) and row["accelerate"] >= row[other]:
                print(f"{place}: no cheaper than {other}")
                status = 1
    return status
