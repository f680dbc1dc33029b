# SPDX-License-Identifier: GPL-2.0
"""The networks of the benchmark: a source, a router and a sink, each a network namespace.

    source ------- lan0 router wan0 ------- sink

Either of the router's devices may lie on others, see `Kind`; the lowest one is the port then, `lan0p` or `wan0p`.

Nothing is ever sent by the source: packets are injected on the router's ports, so that what is measured
begins where a driver hands a packet to the kernel. Whatever reaches the source or the sink is counted and
dropped at their ingress hooks.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.devices import PppoeSession
from lab.namespace import Namespace


@dataclass(frozen=True)
class Family:
    """An IP version, and the addresses that are used with it."""

    version: int
    host: str
    lan: str
    wan: str
    gateway: str
    server: str
    length: int
    nft: str

    @property
    def name(self):
        """What it is called."""
        return f"IPv{self.version}"

    def __str__(self):
        return self.name


IPV4 = Family(4, "10.0.0.2", "10.0.0.1", "192.0.2.1", "192.0.2.2", "198.51.100.10", 24, "ip")
IPV6 = Family(6, "2001:db8:1::2", "2001:db8:1::1", "2001:db8:2::1", "2001:db8:2::2", "2001:db8:3::a", 64, "ip6")
FAMILIES = (IPV4, IPV6)

DROP = """
table netdev sink {
    chain arrival {
        type filter hook ingress device eth0 priority 0; policy drop
        counter drop
    }
}
"""


def firewall(count):
    """A rule set of `count` rules, none of which matches, so that packets meet all of them, and a counter."""
    rules = [f"udp dport {number} drop" if number % 2 else f"ip daddr 203.0.{number >> 8}.{number & 255} drop"
             for number in range(1, count)]
    return "\n".join(
        ["table inet firewall {", "chain forward {", "type filter hook forward priority filter; policy accept",
         *(["ct state invalid drop"] if count else []), *rules, "counter", "}", "}", ""])


MASQUERADE = """
table {family} nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept
        oifname wan0 masquerade
    }}
}}
"""

# Connections are tracked if there is any rule that has to do with them, here one that no packet meets.
TRACK = "table inet track {\nchain unused {\nct state invalid drop\n}\n}\n"

# Longer than any measurement: time goes by quickly for those who wait.
NEVER_S = 1_000_000


VLAN = 7
SESSION = 5


@dataclass(frozen=True)
class Kind:
    """What the router's device is."""

    name: str
    # What lies on the port, if anything: given the namespace, port and device, and the host at the other end, makes
    # the device. What it gives is closed in the end.
    make: Callable | None = None
    # The VLAN that packets on the cable are of; 0 stands for none.
    tag: int = 0
    # The device that learns where hosts are, if there is one, as the device's name goes on.
    bridge: str | None = None
    # Whether there is only one host to be reached, which needs no address.
    is_point_to_point: bool = False

    def port(self, device):
        """The lowest device, which packets arrive on and leave by."""
        return f"{device}p" if self.make else device


def _vlan(router, port, device, _host):
    router.ip("link", "add", "link", port, "name", device, "type", "vlan", "id", VLAN)


def _bridge(router, port, device, _host):
    router.ip("link", "add", device, "type", "bridge")
    router.ip("link", "set", port, "master", device)


def _filtering_bridge(router, port, device, _host):
    """With the router in a VLAN, of which the port is an untagged one."""
    below = f"{device}b"
    router.ip("link", "add", below, "type", "bridge", "vlan_filtering", 1, "vlan_default_pvid", 0)
    router.ip("link", "set", port, "master", below)
    router.run("bridge", "vlan", "add", "dev", port, "vid", VLAN, "pvid", "untagged")
    router.run("bridge", "vlan", "add", "dev", below, "vid", VLAN, "self")
    router.ip("link", "set", below, "up")
    _vlan(router, below, device, _host)


def _trunk_bridge(router, port, device, _host):
    """The same, with a port for tagged packets."""
    _filtering_bridge(router, port, device, _host)
    router.run("bridge", "vlan", "del", "dev", port, "vid", VLAN)
    router.run("bridge", "vlan", "add", "dev", port, "vid", VLAN)


def _pppoe(router, port, device, host):
    """A session that the host knows nothing of: it only receives."""
    return PppoeSession(router, device, port, host.mac("eth0"), SESSION)


ETHERNET = Kind("ethernet")
# Only kernels for real machines have it. What arrives by it cannot be injected on the port.
PPPOE = Kind("pppoe", _pppoe, is_point_to_point=True)
KINDS = (
    Kind("vlan", _vlan, tag=VLAN),
    Kind("bridge", _bridge, bridge=""),
    Kind("vlan-on-bridge", _filtering_bridge, bridge="b"),
    Kind("vlan-on-trunk", _trunk_bridge, tag=VLAN, bridge="b"),
)


class Network:
    """The three namespaces."""

    def __init__(self, lan=ETHERNET, wan=ETHERNET, name=""):
        self.lan, self.wan = lan, wan
        self.lan_port, self.wan_port = lan.port("lan0"), wan.port("wan0")
        self._closing = []
        self.source, self.router, self.sink = (Namespace(host + name) for host in ("source", "router", "sink"))
        self._connect(self.source, "lan0", lan)
        self._connect(self.sink, "wan0", wan)
        router = self.router
        for host in (self.source, self.sink):
            host.nft(DROP)
        for setting in ("all.disable_ipv6", "default.disable_ipv6", "lan0.disable_ipv6", "wan0.disable_ipv6"):
            router.sysctl(f"net.ipv6.conf.{setting}", 0)
        for family in FAMILIES:
            flag = ("nodad",) if family is IPV6 else ()
            router.ip("addr", "add", f"{family.lan}/{family.length}", "dev", "lan0", *flag)
            router.ip("addr", "add", f"{family.wan}/{family.length}", "dev", "wan0", *flag)
            router.ip(f"-{family.version}", "route", "add", "default", "via", family.gateway)
            for address, device, host, kind in ((family.host, "lan0", self.source, lan),
                                                (family.gateway, "wan0", self.sink, wan)):
                if kind.is_point_to_point:
                    continue
                router.ip("neigh", "add", address, "lladdr", host.mac("eth0"), "dev", device, "nud", "permanent")
        router.sysctl("net.ipv4.ip_forward", 1)
        router.sysctl("net.ipv6.conf.all.forwarding", 1)
        # As behind a network card that has verified the checksums.
        router.sysctl("net.netfilter.nf_conntrack_checksum", 0)
        for timeout in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream", "nf_flowtable_udp_timeout"):
            router.sysctl(f"net.netfilter.{timeout}", NEVER_S)

    @staticmethod
    def settle(seconds=60):
        """Waits until the routers have said all about IPv6 that they have to. Where the clock counts
        instructions, whoever sleeps does not wait."""
        time.sleep(seconds)

    def queue(self):
        """Gives the router's lowest devices a queue: without one they are given packets at once."""
        for port in (self.lan_port, self.wan_port):
            self.run("tc", "qdisc", "add", "dev", port, "root", "pfifo")

    def unqueue(self):
        """Takes it from them."""
        for port in (self.lan_port, self.wan_port):
            self.run("tc", "qdisc", "del", "dev", port, "root")

    def run(self, *command, host=None):
        """Runs a command on the router, or on another host; gives what it printed. It sees files as we do:
        `ip netns exec` has them mounted anew each time, which takes longer than most commands do."""
        with (host or self.router).inside():
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def _connect(self, host, device, kind):
        router, port = self.router, kind.port(device)
        router.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        for namespace, end in ((router, port), (host, "eth0")):
            # Checksums are complete when a packet is sent, as on a wire.
            namespace.run("ethtool", "-K", end, "tx", "off")
            namespace.ip("link", "set", end, "addrgenmode", "none", "up")
        if not kind.make:
            return
        if made := kind.make(router, port, device, host):
            self._closing.append(made)
        router.ip("link", "set", device, "addrgenmode", "none", "up")
        if kind.bridge is not None:
            # The host never says where it is.
            vlan = ("vlan", VLAN) if kind.bridge else ()
            router.run("bridge", "fdb", "replace", host.mac("eth0"), "dev", port, "master", "static", *vlan)

    def arrived(self):
        """How many packets have reached the sink."""
        words = self.run("nft", "list", "table", "netdev", "sink", host=self.sink).split()
        return int(words[words.index("packets") + 1])

    def forwarded(self, family):
        """How many packets the router's IP layer says it has forwarded."""
        with self.router.inside():
            if family is IPV6:
                lines = Path("/proc/thread-self/net/snmp6").read_text(encoding="ascii").splitlines()
                return int(dict(line.split() for line in lines)["Ip6OutForwDatagrams"])
            names, values, *_ = Path("/proc/thread-self/net/snmp").read_text(encoding="ascii").splitlines()
        return int(dict(zip(names.split(), values.split(), strict=True))["ForwDatagrams"])

    def add_rules(self, count=30):
        """Gives the router its rules."""
        self.router.nft(firewall(count))

    def met_rules(self):
        """How many packets have met all of them."""
        words = self.run("nft", "list", "table", "inet", "firewall").split()
        return int(words[words.index("packets") + 1])

    def remove_rules(self):
        """Takes them away."""
        self.run("nft", "delete", "table", "inet", "firewall")

    def clear(self):
        """No rules, and no connections."""
        self.router.nft("flush ruleset\n")
        self.run("conntrack", "-F")

    def remove(self):
        """Removes it all."""
        for closable in self._closing:
            closable.close()
        for namespace in (self.source, self.router, self.sink):
            namespace.remove()
