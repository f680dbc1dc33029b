# SPDX-License-Identifier: GPL-2.0
"""The topologies of the tests."""

import itertools

from .control import Control
from .namespace import Namespace

_SERIAL = itertools.count(1)


def link(a, device_a, b, device_b, offloads=False):
    """Joins two namespaces by a cable. Without offloads, packets are as they would be on one: whole,
    with their checksums, no longer than the MTU."""
    a.run("ip", "link", "add", device_a, "type", "veth", "peer", "name", device_b, "netns", b.name)
    for namespace, device in ((a, device_a), (b, device_b)):
        if not offloads:
            namespace.run("ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off",
                          "gro", "off", check=False)
        namespace.ip("link", "set", device, "up")


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


class Router:
    """LAN host 10.0.0.2 - router - WAN host 192.0.2.2; the router's devices are lan0 and wan0."""

    LAN, WAN = "10.0.0.2", "192.0.2.2"
    LAN_GATEWAY, WAN_GATEWAY = "10.0.0.1", "192.0.2.1"

    def __init__(self, firewall=FIREWALL, offloads=False, controlled=True):
        number = next(_SERIAL)
        self.lan = Namespace(f"lan{number}")
        self.router = Namespace(f"router{number}")
        self.wan = Namespace(f"wan{number}")
        link(self.lan, "eth0", self.router, "lan0", offloads)
        link(self.wan, "eth0", self.router, "wan0", offloads)
        self.lan.ip("addr", "add", f"{self.LAN}/24", "dev", "eth0")
        self.router.ip("addr", "add", f"{self.LAN_GATEWAY}/24", "dev", "lan0")
        self.router.ip("addr", "add", f"{self.WAN_GATEWAY}/24", "dev", "wan0")
        self.wan.ip("addr", "add", f"{self.WAN}/24", "dev", "eth0")
        self.lan.ip("route", "add", "default", "via", self.LAN_GATEWAY)
        # For tests without NAT.
        self.wan.ip("route", "add", "10.0.0.0/24", "via", self.WAN_GATEWAY)
        self.router.sysctl("net.ipv4.ip_forward", 1)
        self.router.sysctl("net.ipv4.conf.all.rp_filter", 0)
        if firewall:
            self.router.nft(firewall)
        self._closing = []
        if controlled:
            self.control = self.until_removed(Control(self.router))

    def until_removed(self, closable):
        """Closes something when the topology is removed."""
        self._closing.append(closable)
        return closable

    def remove(self):
        """Removes it all."""
        for closable in self._closing:
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
        self.wan.ip("link", "add", "br0", "type", "bridge")
        self.wan.ip("link", "set", "br0", "up")
        for side, gateway, lan, address, net in (("a", self.a, self.lan_a, self.A, 1),
                                                 ("b", self.b, self.lan_b, self.B, 2)):
            link(lan, "eth0", gateway, "lan0")
            link(self.wan, f"port{side}", gateway, "wan0")
            self.wan.ip("link", "set", f"port{side}", "master", "br0")
            lan.ip("addr", "add", f"10.{net}.0.2/24", "dev", "eth0")
            lan.ip("route", "add", "default", "via", f"10.{net}.0.1")
            gateway.ip("addr", "add", f"10.{net}.0.1/24", "dev", "lan0")
            gateway.ip("addr", "add", f"{address}/24", "dev", "wan0")
            gateway.sysctl("net.ipv4.ip_forward", 1)
            gateway.sysctl("net.ipv4.conf.all.rp_filter", 0)
            gateway.sysctl("net.ipv4.conf.wan0.rp_filter", 0)
        link(self.wan, "portx", self.stranger, "eth0")
        self.wan.ip("link", "set", "portx", "master", "br0")
        self.stranger.ip("addr", "add", f"{self.STRANGER}/24", "dev", "eth0")
        self.a.ip("route", "add", "10.2.0.0/24", "via", self.B)
        self.b.ip("route", "add", "10.1.0.0/24", "via", self.A)
        self.stranger.ip("route", "add", "10.1.0.0/24", "via", self.A)
        self.protect(self.a, self.A, self.B, 1, 2)
        self.protect(self.b, self.B, self.A, 2, 1)
        self.control = Control(self.a)

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
