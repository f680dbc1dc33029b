# SPDX-License-Identifier: GPL-2.0
"""A hub and branches, each with an IPsec tunnel to the hub: of whatever kind, and of either version of IP around
packets of either version."""

import itertools

from .control import Control
from .devices import link, links
from .namespace import Namespace, collecting
from .site import ADDRESSES, decapsulating, figures
from .traffic import Wire

_SERIAL = itertools.count(1)

#: What is inside of the tunnels: of every site a host, its net, and what all sites' nets are part of.
INNER = {
    "ipv4": {"host": "10.{}.0.2", "gateway": "10.{}.0.1", "net": "10.{}.0.0/24", "all": "10.0.0.0/8", "length": "24",
             "single": "32"},
    # To be used at once.
    "ipv6": {"host": "fd00:{}::2", "gateway": "fd00:{}::1", "net": "fd00:{}::/64", "all": "fd00::/16",
             "length": "64 nodad", "single": "128 nodad"},
}
#: What is around them.
OUTER = {"ipv4": ("192.0.2.{}", 24), "ipv6": ("2001:db8::{}", 64)}

HUB = 1
KEY = "0x" + "4a" * 20
CIPHER = f"aead rfc4106(gcm(aes)) {KEY} 128"


class Branches:
    """A LAN host behind the hub, and branches 2, 3, ... whose hosts are their gateways themselves. fasttrack is on
    the hub, whose devices are lan0 and wan0. The hub's end of a tunnel is a policy, an xfrm interface (`interface`)
    or a VTI (`vti`); the latter two are called `tunnelN`. It is the same for every branch, or one for each. ESP can be
    `encapsulated` in UDP, by policy; or there is no tunnel (`transport`), and what is for the branch's gateway comes
    from the hub, by source NAT."""

    def __init__(self, kind="policy", outer="ipv4", count=1, offloads=False):
        serial = next(_SERIAL)
        kinds = [kind] * count if isinstance(kind, str) else kind
        #: The kind of tunnel by branch.
        self.kinds = dict(enumerate(kinds, 2))
        self.outer = outer
        self.lan, self.hub, self.wan = (Namespace(f"{name}b{serial}") for name in ("lan", "hub", "wan"))
        self.branches = {number: Namespace(f"branch{number}b{serial}") for number in self.kinds}
        self._closing = []
        for space in (self.lan, self.hub, *self.branches.values()):
            space.enable_ipv6()
            space.sysctl("net.ipv4.ip_forward", 1)
            space.sysctl("net.ipv6.conf.all.forwarding", 1)
            space.sysctl("net.ipv4.conf.all.rp_filter", 0)
            space.sysctl("net.ipv4.conf.default.rp_filter", 0)
        link(self.lan, "eth0", self.hub, "lan0", offloads)
        ends = {HUB: (self.hub, "wan0")} | {number: (gateway, "eth0") for number, gateway in self.branches.items()}
        links(*((self.wan, f"port{number}", *end) for number, end in ends.items()))
        self.wan.ip_batch(["link add br0 type bridge mcast_snooping 0", "link set br0 up",
                           *(f"link set port{number} master br0" for number in ends)])
        with collecting(self.lan, self.hub, *self.branches.values()):
            self._configure(ends)
        self.control = self.until_removed(Control(self.hub))

    def _configure(self, ends):
        """Addresses, routes, and what protects the packets."""
        for number, (gateway, device) in ends.items():
            gateway.ip("addr", "add", f"{self.address(number)}/{OUTER[self.outer][1]}", "dev", device)
        gateways = [words["gateway"].format(HUB) for words in INNER.values()]
        self.lan.ip_batch(
            [f"addr add {words['host'].format(HUB)}/{words['length']} dev eth0" for words in INNER.values()]
            + [f"route add default via {gateway}" for gateway in gateways])
        self.hub.ip_batch(
            f"addr add {gateway}/{words['length']} dev lan0" for gateway, words in zip(gateways, INNER.values()))
        for number in self.branches:
            self._connect(number)
            self.states(number)

    def address(self, number):
        """The outer address of a site's gateway."""
        return OUTER[self.outer][0].format(number)

    def host(self, number, family="ipv4"):
        """The inner address of a site's host; where there is no tunnel it is the only one."""
        if self.kinds.get(number) == "transport":
            return self.address(number)
        return INNER[family]["host"].format(number)

    def _connect(self, number):
        """Devices, routes and policies of both ends of a tunnel."""
        if self.kinds[number] == "transport":
            self._connect_without_tunnel(number)
            return
        if self.kinds[number] == "encapsulated":
            for gateway in (self.hub, self.branches[number]):
                self.until_removed(decapsulating(gateway, self.outer))
        at_hub, at_branch = self._device(number), []
        device = f"tunnel{number}" if at_hub else "wan0"
        for words in INNER.values():
            host, net, everything = words["host"].format(number), words["net"].format(number), words["all"]
            at_branch += [f"addr add {host}/{words['single']} dev lo",
                          f"route add {everything} dev eth0 src {host}",
                          *self._policies(number, HUB, net, everything)]
            at_hub += [f"route add {net} dev {device}",
                       *self._policies(HUB, number, everything, net, self._selecting(number))]
        self.hub.ip_batch(at_hub)
        self.branches[number].ip_batch(at_branch)

    def _connect_without_tunnel(self, number):
        """Policies of both ends, and the source NAT by which they are for what the LAN host sends."""
        words = ADDRESSES[self.outer]
        for own, peer, gateway in ((HUB, number, self.hub), (number, HUB, self.branches[number])):
            gateway.ip_batch(
                f"xfrm policy add src {self.address(source)}/{words['single']} "
                f"dst {self.address(destination)}/{words['single']} proto {protocol} dir {direction} "
                f"tmpl proto esp reqid {number} mode transport"
                for direction, source, destination in (("out", own, peer), ("fwd", peer, own), ("in", peer, own))
                for protocol in ("udp", "tcp"))
        self.hub.nft(f"""
            table inet source {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    oifname "wan0" snat {words["table"]} to {self.address(HUB)}
                }}
            }}
        """)

    def _device(self, number):
        """What makes the device by which the hub reaches a branch, if that is one of its own."""
        if self.kinds[number] in ("policy", "encapsulated"):
            return []
        name = f"tunnel{number}"
        kind = f"type xfrm dev wan0 if_id {number}"
        if self.kinds[number] == "vti":
            kind = f"type {'vti' if self.outer == 'ipv4' else 'vti6'} local {self.address(HUB)} "\
                   f"remote {self.address(number)} key {number}"
        return [f"link add {name} {kind}", f"link set {name} up"]

    def _selecting(self, number):
        """By what the hub's policies and states are told from those of other tunnels."""
        return {"interface": f"if_id {number}", "vti": f"mark {number}"}.get(self.kinds[number], "")

    def _policies(self, own, peer, here, there, selecting=""):
        for direction, source, destination in (("out", own, peer), ("fwd", peer, own), ("in", peer, own)):
            nets = (here, there) if direction == "out" else (there, here)
            yield (f"xfrm policy add src {nets[0]} dst {nets[1]} dir {direction} {selecting} "
                   f"tmpl src {self.address(source)} dst {self.address(destination)} proto esp "
                   f"reqid {max(own, peer)} mode tunnel")

    def states(self, number, *options, generation=0, verb="add", out=(), into=()):
        """Adds, or deletes, the states of both directions, at both ends; with more options, or some for what the
        hub sends only, or receives."""
        mode = "mode transport" if self.kinds[number] == "transport" else "mode tunnel flag af-unspec"
        around = f"encap espinudp 4500 4500 {ADDRESSES[self.outer]['anywhere']}" if self.kinds[number] == "encapsulated" else ""
        for gateway, selecting in ((self.hub, self._selecting(number)), (self.branches[number], "")):
            lines = []
            for source, destination in ((HUB, number), (number, HUB)):
                line = [f"xfrm state {verb} src {self.address(source)} dst {self.address(destination)} proto esp "
                        f"spi {spi(number, source, generation)}"]
                if verb == "add":
                    more = (out if source == HUB else into) if gateway is self.hub else ()
                    line += ["reqid", number, mode, CIPHER, around, selecting, *options, *more]
                elif self.kinds[number] == "vti":
                    line.append(selecting)
                lines.append(" ".join(map(str, line)))
            gateway.ip_batch(lines)

    def figures(self):
        """Those of the hub's states."""
        return figures(self.hub)

    def wire(self):
        """Everything that passes the hub's link to the WAN, where nobody decrypts anything."""
        return self.until_removed(Wire(self.wan, f"port{HUB}"))

    def until_removed(self, closable):
        """Closes something when it all is removed."""
        self._closing.append(closable)
        return closable

    def remove(self):
        """Removes it all."""
        for closable in reversed(self._closing):
            closable.close()
        for space in (self.lan, self.hub, self.wan, *self.branches.values()):
            space.remove()


def spi(number, source, generation=0):
    """What tells the states apart."""
    return 0x1000 * number + 0x10 * generation + (1 if source == HUB else 2)
