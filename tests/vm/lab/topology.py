# SPDX-License-Identifier: GPL-2.0
"""The topologies of the tests."""

import itertools
import re

from .control import Control
from .devices import link, links
from .namespace import Namespace, collecting

_SERIAL = itertools.count(1)


FIREWALL = """
table ip filter {
    counter invalid { }
    counter established { }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter name invalid drop
        ct state established,related counter name established accept
        iifname "lan0" accept
        ct status dnat accept
    }
}
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        iifname "wan0" tcp dport 8080 dnat to 10.0.0.2:80
        iifname "wan0" udp dport 8053 dnat to 10.0.0.2:53
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan0" masquerade
    }
}
"""


#: Addresses of IPv4, and what stands for them where a topology is made for IPv6.
IPV6_FOR = {
    "10.0.0.2": "fd00:a::2",
    "10.0.0.1": "fd00:a::1",
    "10.0.0.77": "fd00:a::77",
    "10.0.0.0/24": "fd00:a::/64",
    "192.0.2.2": "2001:db8::2",
    "192.0.2.1": "2001:db8::1",
    "192.0.2.77": "2001:db8::77",
    "192.0.2.0/24": "2001:db8::/64",
    "198.51.100.1": "2001:db8:1::1",
    "198.51.100.2": "2001:db8:1::2",
}


def ipv6_dialect(rules):
    """Rules for IPv6 that say what the given ones say for IPv4."""
    for old, new in IPV6_FOR.items():
        old = re.escape(old)
        rules = re.sub(rf"{old}:(?=\d)", f"[{new}]:", rules)
        rules = re.sub(rf"{old}(?![\d.])", new, rules)
    rules = re.sub(r"\bip protocol\b", "ip6 nexthdr", rules)
    return re.sub(r"\bip (filter|nat|saddr|daddr|dscp|ecn|[a-z_]+ (?=\{))", r"ip6 \1", rules)


class Router:
    """LAN host 10.0.0.2 - router - WAN host 192.0.2.2; the router's devices are lan0 and wan0.

    These are cables unless other kinds are asked for, see `devices`.

    With the family "ipv6" other addresses take their place, and rules that are loaded are translated.
    """

    def __init__(self, firewall=FIREWALL, offloads=False, controlled=True, lan=link, wan=link,
                 family="ipv4"):
        number = next(_SERIAL)
        self.family = family
        self.is_v6 = family == "ipv6"
        self.LAN, self.WAN = self.address("10.0.0.2"), self.address("192.0.2.2")
        self.LAN_GATEWAY, self.WAN_GATEWAY = self.address("10.0.0.1"), self.address("192.0.2.1")
        self.anywhere = "::" if self.is_v6 else "0.0.0.0"
        #: For `ip`.
        self.option = "-6" if self.is_v6 else "-4"
        #: Bits of the nets' addresses that are the same, and of all.
        self.net, self.host = (64, 128) if self.is_v6 else (24, 32)
        #: Length of an IP header, and what of a packet of 1500 bytes is left for UDP's payload.
        self.header = 40 if self.is_v6 else 20
        self.most = 1500 - self.header - 8
        self.lan = Namespace(f"lan{number}")
        self.router = Namespace(f"router{number}", ipv6_dialect if self.is_v6 else None)
        self.wan = Namespace(f"wan{number}")
        if self.is_v6:
            for namespace in (self.lan, self.router, self.wan):
                namespace.enable_ipv6()
        self._closing = []
        for kind, host, device in ((lan, self.lan, "lan0"), (wan, self.wan, "wan0")):
            made = kind(host, "eth0", self.router, device, offloads)
            if made:
                self.until_removed(made)
        self.lan.ip_batch([f"addr add {self.LAN}/{self.net} dev eth0",
                           f"route add default via {self.LAN_GATEWAY}"])
        self.router.ip_batch([f"addr add {self.LAN_GATEWAY}/{self.net} dev lan0",
                              f"addr add {self.WAN_GATEWAY}/{self.net} dev wan0"])
        # The route is for tests without NAT.
        self.wan.ip_batch([f"addr add {self.WAN}/{self.net} dev eth0",
                           f"route add {self.address('10.0.0.0/24')} via {self.WAN_GATEWAY}"])
        self.forward(True)
        self.router.sysctl("net.ipv4.conf.all.rp_filter", 0)
        if firewall:
            self.router.nft(firewall)
        if controlled:
            self.control = self.until_removed(Control(self.router))

    def address(self, ipv4):
        """The address that a topology for IPv4 would have, or what stands for it."""
        return IPV6_FOR[ipv4] if self.is_v6 else ipv4

    def ip_header(self, **fields):
        """A header of the topology's version of IP, for scapy."""
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6
        return (IPv6 if self.is_v6 else IP)(**fields)

    def forward(self, wanted):
        """Whether the router forwards."""
        name = "net.ipv6.conf.all.forwarding" if self.is_v6 else "net.ipv4.ip_forward"
        self.router.sysctl(name, int(wanted))

    def know_neighbours(self):
        """Has nobody on the cables ask for a link-layer address any more."""
        for namespace, device, address, mac in (
                (self.router, "wan0", self.WAN, self.wan.mac("eth0")),
                (self.wan, "eth0", self.WAN_GATEWAY, self.router.mac("wan0")),
                (self.router, "lan0", self.LAN, self.lan.mac("eth0")),
                (self.lan, "eth0", self.LAN_GATEWAY, self.router.mac("lan0"))):
            namespace.ip("neigh", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent")

    def conntrack(self, *arguments):
        """`conntrack` with the given arguments, for the topology's family; gives what it printed."""
        return self.router.run("conntrack", *arguments, "-f", self.family)

    def until_removed(self, closable):
        """Closes something when the topology is removed."""
        self._closing.append(closable)
        return closable

    def remove(self):
        """Removes it all."""
        for closable in reversed(self._closing):
            closable.close()
        for namespace in (self.lan, self.router, self.wan):
            namespace.remove()


class Tunnel:
    """LAN host 10.1.0.2 - gateway A 192.0.2.1 = ESP tunnel = gateway B 192.0.2.2 - LAN host 10.2.0.2.

    The WAN is a bridge, to which a stranger 192.0.2.66 is also connected. fasttrack is on A, whose
    devices are lan0 and wan0.
    """

    LAN_A, LAN_B = "10.1.0.2", "10.2.0.2"
    A, B, STRANGER = "192.0.2.1", "192.0.2.2", "192.0.2.66"
    KEY = "0x" + "4a" * 20

    def __init__(self):
        number = next(_SERIAL)
        self.lan_a, self.a, self.wan, self.b, self.lan_b, self.stranger = (
            Namespace(f"{name}{number}") for name in ("lana", "gwa", "sw", "gwb", "lanb", "stranger"))
        self._all = (self.lan_a, self.a, self.wan, self.b, self.lan_b, self.stranger)
        ports = {"porta": (self.a, "wan0"), "portb": (self.b, "wan0"), "portx": (self.stranger, "eth0")}
        links((self.lan_a, "eth0", self.a, "lan0"), (self.lan_b, "eth0", self.b, "lan0"),
              *((self.wan, port, *end) for port, end in ports.items()))
        self.wan.ip_batch(["link add br0 type bridge mcast_snooping 0", "link set br0 up",
                           *(f"link set {port} master br0" for port in ports)])
        for gateway in (self.a, self.b):
            gateway.sysctl("net.ipv4.ip_forward", 1)
            gateway.sysctl("net.ipv4.conf.all.rp_filter", 0)
            gateway.sysctl("net.ipv4.conf.wan0.rp_filter", 0)
        with collecting(*self._all):
            self._configure()
        self.control = Control(self.a)

    def _configure(self):
        """Addresses, routes, and what protects the packets."""
        for gateway, lan, address, net in ((self.a, self.lan_a, self.A, 1), (self.b, self.lan_b, self.B, 2)):
            lan.ip("addr", "add", f"10.{net}.0.2/24", "dev", "eth0")
            lan.ip("route", "add", "default", "via", f"10.{net}.0.1")
            gateway.ip("addr", "add", f"10.{net}.0.1/24", "dev", "lan0")
            gateway.ip("addr", "add", f"{address}/24", "dev", "wan0")
        self.stranger.ip("addr", "add", f"{self.STRANGER}/24", "dev", "eth0")
        self.a.ip("route", "add", "10.2.0.0/24", "via", self.B)
        self.b.ip("route", "add", "10.1.0.0/24", "via", self.A)
        self.stranger.ip("route", "add", "10.1.0.0/24", "via", self.A)
        self.protect(self.a, self.A, self.B, 1, 2)
        self.protect(self.b, self.B, self.A, 2, 1)

    def protect(self, gateway, own, peer, own_net, peer_net):
        """Sets up one end of the tunnel."""
        for source, destination in ((own, peer), (peer, own)):
            spi = "0x100" if source == self.A else "0x200"
            gateway.ip("xfrm", "state", "add", "src", source, "dst", destination, "proto", "esp",
                       "spi", spi, "reqid", 1, "mode", "tunnel", "aead", "rfc4106(gcm(aes))",
                       self.KEY, 128)
        here, there = f"10.{own_net}.0.0/24", f"10.{peer_net}.0.0/24"
        for direction, source, destination, outer in (("out", here, there, (own, peer)),
                                                      ("fwd", there, here, (peer, own)),
                                                      ("in", there, here, (peer, own))):
            self.policy(gateway, "add", source, destination, direction, outer)

    def policy(self, gateway, verb, source, destination, direction, outer=None, *more):
        """Adds or deletes a policy; without `outer`, one that lets packets through in clear."""
        template = ("tmpl", "src", outer[0], "dst", outer[1], "proto", "esp", "reqid", 1,
                    "mode", "tunnel") if outer else ()
        gateway.ip("xfrm", "policy", verb, "src", source, "dst", destination, "dir", direction,
                   *more, *(template if verb != "delete" else ()))

    def remove(self):
        """Removes it all."""
        self.control.close()
        for namespace in self._all:
            namespace.remove()
