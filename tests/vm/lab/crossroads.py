# SPDX-License-Identifier: GPL-2.0
"""A router with two ways to a distant host, and conversations of which each message's fate is told.

Everything that depends on the address family is in an object of its own.
"""

import itertools
import select
import socket
import struct
import time

from .control import Control
from .devices import links
from .namespace import Namespace
from .traffic import Wire

_SERIAL = itertools.count(1)


class IPv4:
    """Addresses, and what they are called."""

    name = "IPv4"
    #: For `ip -4`, `conntrack -f`, nft's tables, and sockets.
    option, conntrack, table, socket = "-4", "ipv4", "ip", socket.AF_INET
    host, net = 32, 24
    lan, lan_gateway, lan_net = "10.0.0.2", "10.0.0.1", "10.0.0.0/24"
    #: Another host there.
    other_lan = "10.0.0.3"
    #: Of each way to the distant host: the router's address, and the next hop's.
    ways = (("192.0.2.1", "192.0.2.2"), ("198.51.100.1", "198.51.100.2"))
    #: Another next hop on the first way's link.
    other_hop = "192.0.2.3"
    far, far_net = "203.0.113.7", "203.0.113.0/24"
    #: nft's word for addresses, and some that are nobody's.
    address_type, nobody = "ipv4_addr", "10.9.0.0/16"
    #: The protocol of errors, and the type and code of the one about packets that are too large.
    icmp, too_big = 1, b"\3\4"

    @staticmethod
    def numbered(number):
        """An address that nobody has."""
        return f"10.{number >> 8 & 255}.{number & 255}.1"

    @staticmethod
    def prepare_lan(host):
        """There is nothing to be done."""

    @classmethod
    def prepare_router(cls, router):
        """Has it forward, and not ask where packets come from."""
        cls.forward(router, True)
        router.sysctl("net.ipv4.conf.all.rp_filter", 0)
        router.sysctl("net.ipv4.conf.default.rp_filter", 0)

    @staticmethod
    def prepare_host(host):
        """Has it accept its addresses on every device, but answer for each only on its own."""
        for device in ("all", "default"):
            host.sysctl(f"net.ipv4.conf.{device}.rp_filter", 0)
            host.sysctl(f"net.ipv4.conf.{device}.arp_ignore", 1)
            host.sysctl(f"net.ipv4.conf.{device}.arp_announce", 2)

    @staticmethod
    def forward(router, wanted):
        """Whether a router forwards."""
        router.sysctl("net.ipv4.ip_forward", int(wanted))

    @staticmethod
    def forward_by_device(router):
        """Has it decide for each device what it forwards that arrives there: all, for now."""

    @staticmethod
    def forward_from(router, device, wanted):
        """Whether it forwards what arrives by a device."""
        router.sysctl(f"net.ipv4.conf.{device}.forwarding", int(wanted))

    @staticmethod
    def be_found(host, wanted):
        """Whether a host answers those who ask for its link-layer address, on the first way."""
        host.sysctl("net.ipv4.conf.eth0.arp_ignore", 1 if wanted else 8)

    @staticmethod
    def moved(hop, mac, asker, answer):
        """A frame by which a host says that it has another link-layer address: to all, or as an answer to
        somebody, given by his addresses, who has not asked."""
        from scapy.layers.l2 import ARP, Ether
        if answer:
            address, hardware = asker
            return Ether(src=mac, dst=hardware) / ARP(op=2, hwsrc=mac, psrc=hop, hwdst=hardware, pdst=address)
        return Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=mac, psrc=hop, pdst=hop)


class IPv6:
    """The same of IPv6."""

    name = "IPv6"
    option, conntrack, table, socket = "-6", "ipv6", "ip6", socket.AF_INET6
    host, net = 128, 64
    lan, lan_gateway, lan_net = "fd00:a::2", "fd00:a::1", "fd00:a::/64"
    other_lan = "fd00:a::3"
    ways = (("2001:db8::1", "2001:db8::2"), ("2001:db8:1::1", "2001:db8:1::2"))
    other_hop = "2001:db8::3"
    far, far_net = "2001:db8:f::7", "2001:db8:f::/64"
    address_type, nobody = "ipv6_addr", "fd00:9::/32"
    icmp, too_big = 58, b"\2\0"

    @staticmethod
    def numbered(number):
        """An address that nobody has."""
        return f"fd00:99::{number + 1:x}"

    @staticmethod
    def prepare_lan(host):
        """Has it speak IPv6."""
        host.enable_ipv6()

    @classmethod
    def prepare_router(cls, router):
        """Has it speak IPv6, and forward."""
        router.enable_ipv6()
        cls.forward(router, True)

    @staticmethod
    def prepare_host(host):
        """Has it speak IPv6; for each address it answers only on its own device."""
        host.enable_ipv6()

    @staticmethod
    def forward(router, wanted):
        """Whether a router forwards."""
        router.sysctl("net.ipv6.conf.all.forwarding", int(wanted))

    @classmethod
    def forward_by_device(cls, router):
        """Has it decide for each device what it forwards that arrives there: all, for now."""
        cls.forward(router, False)
        for device in ("lan0", "wan0", "wan1"):
            cls.forward_from(router, device, True)

    @staticmethod
    def forward_from(router, device, wanted):
        """Whether it forwards what arrives by a device, if it does not forward everything."""
        router.sysctl(f"net.ipv6.conf.{device}.force_forwarding", int(wanted))

    @staticmethod
    def be_found(host, wanted):
        """Whether a host answers those who ask for its link-layer address."""
        if wanted:
            host.nft("delete table ip6 deaf")
        else:
            host.nft("""
                table ip6 deaf {
                    chain input {
                        type filter hook input priority filter;
                        icmpv6 type nd-neighbor-solicit drop
                    }
                }
            """)

    @staticmethod
    def moved(hop, mac, asker, answer):
        """A frame by which a host says that it has another link-layer address: to all, or as an answer to
        somebody, given by his addresses, who has not asked."""
        from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6 as Header
        from scapy.layers.l2 import Ether
        address, hardware = asker if answer else ("ff02::1", "33:33:00:00:00:01")
        return (Ether(src=mac, dst=hardware) / Header(src=hop, dst=address, hlim=255)
                / ICMPv6ND_NA(tgt=hop, R=0, S=int(answer), O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac))


FAMILIES = [IPv4, IPv6]

FIREWALL = """
table {table} filter {{
    counter invalid {{ }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid counter name invalid drop
        ct state established,related accept
        iifname "lan*" accept
    }}
}}
"""

MASQUERADE = """
table {table} nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        oifname "wan*" masquerade
    }}
}}
"""


class Crossroads:
    """LAN host - router = two ways = a distant host.

    The router's devices are lan0, wan0 and wan1; the distant host's eth0 and eth1 are the next hops on
    them, and beside eth0 there is eth0b, another next hop on the same link. Routed to the distant net by
    the first way, and by default by the second one.
    """

    def __init__(self, family=IPv4, masquerade=False, routed=True):
        number = next(_SERIAL)
        self.family = family
        self.lan, self.router, self.far = (Namespace(f"{name}{number}") for name in ("cl", "cr", "cf"))
        family.prepare_lan(self.lan)
        family.prepare_router(self.router)
        family.prepare_host(self.far)
        links((self.lan, "eth0", self.router, "lan0"),
              *((self.far, f"eth{way}", self.router, f"wan{way}") for way in range(len(family.ways))))
        self.lan.ip_batch([f"addr add {family.lan}/{family.net} dev eth0",
                           f"route add default via {family.lan_gateway}"])
        self.far.ip_batch([
            *(f"addr add {hop}/{family.net} dev eth{way}" for way, (_, hop) in enumerate(family.ways)),
            "link add eth0b link eth0 type macvlan mode bridge",
            "link set eth0b up",
            f"addr add {family.other_hop}/{family.host} dev eth0b",
            f"addr add {family.far}/{family.host} dev lo",
            f"route add {family.lan_net} via {family.ways[0][0]}",
        ])
        self.router.ip_batch([
            f"addr add {family.lan_gateway}/{family.net} dev lan0",
            *(f"addr add {own}/{family.net} dev wan{way}" for way, (own, _) in enumerate(family.ways)),
            *((f"route add {family.far_net} via {family.ways[0][1]}",
               f"route add default via {family.ways[1][1]}") if routed else ()),
        ])
        self.router.nft(FIREWALL.format(table=family.table))
        if masquerade:
            self.router.nft(MASQUERADE.format(table=family.table))
        self.router.sysctl("net.netfilter.nf_conntrack_acct", 1)
        self._closing = []
        self.control = self.until_removed(Control(self.router))

    def until_removed(self, closable):
        """Closes something when the topology is removed."""
        self._closing.append(closable)
        return closable

    def talk(self, protocol, port=7, **options):
        """A conversation between the LAN host and the distant one."""
        kind = {"udp": Datagrams, "tcp": Stream}[protocol]
        return self.until_removed(kind(self, self.lan, self.far, self.family.far, port, **options))

    def wires(self):
        """What arrives at the distant host, by device."""
        return Wires(self)

    def remove(self):
        """Removes it all."""
        for closable in self._closing:
            closable.close()
        for namespace in (self.lan, self.router, self.far):
            namespace.remove()


class Wires:
    """What the router sends to the distant host. Each frame is seen once, on the link that it came by."""

    def __init__(self, cross):
        self._cross = cross
        self._wires = [cross.until_removed(Wire(cross.far, f"eth{way}", outgoing=False)) for way in (0, 1)]
        for way in (0, 1):
            cross.far.ip("link", "set", f"eth{way}", "promisc", "on")

    def clear(self):
        """Forgets what was seen."""
        for wire in self._wires:
            wire.frames(0.1)

    def seen(self, port):
        """Pairs of a way and a destination address, with how many packets to `port` took it."""
        return self.by_port().get(port, {})

    def by_port(self, seconds=0.3):
        """The same of every destination port, of what comes within this time on each device, too."""
        from scapy.layers.inet import TCP, UDP
        from scapy.layers.l2 import Ether
        found = {}
        for way, wire in enumerate(self._wires):
            for packet in map(Ether, wire.frames(seconds)):
                for kind in (UDP, TCP):
                    if kind in packet:
                        seen = found.setdefault(packet[kind].dport, {})
                        seen[way, packet.dst] = seen.get((way, packet.dst), 0) + 1
        return found

    def numbers(self, port, sign):
        """The numbered datagrams to `port` that end in `sign`: pairs of the way and destination address,
        and the number."""
        found = []
        for way, wire in enumerate(self._wires):
            for frame in wire.frames(0.1):
                frame = bytes(frame)
                at = frame.find(sign)
                if at > 12 and frame[at - 10:at - 8] == struct.pack("!H", port):
                    found.append(((way, frame[:6].hex(":")), int.from_bytes(frame[at - 4:at], "big")))
        return found


class Talk:
    """A conversation in which every message is asked about: did it arrive?"""

    def __init__(self, cross, port):
        self.cross = cross
        self.port = port

    def both(self, count=1, timeout=3.0):
        """`count` messages each way. Gives how many of either arrived."""
        return tuple(sum(column) for column in
                     zip(*((self.say(timeout=timeout), self.say(back=True, timeout=timeout))
                           for _ in range(count))))

    def exchange(self, count=1):
        """The same; all have to arrive."""
        assert self.both(count) == (count, count)

    def make_fast(self):
        """Lets both directions be learned, and shows that they are fast."""
        control = self.cross.control
        self.exchange(3)
        # The devices are attached after the first packets asked for it.
        deadline = time.monotonic() + 10
        while True:
            before = control.stats()
            self.exchange(5)
            after = control.stats() - before
            if min(after.packets) >= 4:
                return
            assert time.monotonic() < deadline, (after.packets, after.reasons())
            time.sleep(0.1)

    def entry(self):
        """conntrack's line about it, or none."""
        lines = [line for line in
                 self.cross.router.run("conntrack", "-L", "-f", self.cross.family.conntrack, "-p", self.protocol,
                                       "--orig-port-dst", self.port).splitlines() if f"dport={self.port}" in line]
        return lines[-1] if lines else None


class Datagrams(Talk):
    """By UDP."""

    protocol = "udp"

    def __init__(self, cross, client, server, address, port, size=64, source=None, listen=None, share=None):
        super().__init__(cross, port)
        if share:
            self._server = share.server_socket.dup()
        else:
            self._server = server.socket(cross.family.socket, socket.SOCK_DGRAM)
            self._server.bind(listen or (address, port))
        self._client = client.socket(cross.family.socket, socket.SOCK_DGRAM)
        if source:
            self._client.bind(source)
        self._client.connect((address, port))
        self._number = 0
        self.size = size
        #: Where the client's messages come from, as the server sees it.
        self.seen_from = None

    @property
    def source(self):
        """The client's own address and port."""
        return self._client.getsockname()

    @property
    def said(self):
        """How many messages there were, there and back."""
        return self._number

    @property
    def server_socket(self):
        """The server's socket, which may have other clients."""
        return self._server

    def say(self, back=False, timeout=3.0):
        """One message. Gives whether it arrived; one that arrives later is not taken for another."""
        self._number += 1
        payload = struct.pack("!I", self._number).ljust(self.size, b"\xa5")
        try:
            if back:
                self._server.sendto(payload, self.seen_from)
            else:
                self._client.send(payload)
        except ConnectionRefusedError:
            # An ICMP error about an earlier one.
            return False
        except OSError:
            return False
        sink = self._client if back else self._server
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([sink], [], [], left)[0]:
                break
            try:
                received, sender = sink.recvfrom(65536)
            except OSError:
                continue
            if not back:
                self.seen_from = sender
            if received == payload:
                return True
        return False

    def close(self):
        """Ends it."""
        self._client.close()
        self._server.close()


class Stream(Talk):
    """By TCP."""

    protocol = "tcp"

    def __init__(self, cross, client, server, address, port, size=100, source=None, listen=None, share=None):
        super().__init__(cross, port)
        if share:
            self._listener = share.listener.dup()
        else:
            self._listener = server.socket(cross.family.socket, socket.SOCK_STREAM)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(listen or (address, port))
            self._listener.listen()
        self.client = client.socket(cross.family.socket, socket.SOCK_STREAM)
        if source:
            self.client.bind(source)
        self.client.settimeout(5)
        self.client.connect((address, port))
        self._listener.settimeout(5)
        self.server, self.seen_from = self._listener.accept()
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        self.size = size
        self._due = {False: 0, True: 0}

    @property
    def source(self):
        """The client's own address and port."""
        return self.client.getsockname()

    @property
    def listener(self):
        """The server's listening socket, which may have other clients."""
        return self._listener

    def say(self, back=False, timeout=3.0):
        """One message. Gives whether it, and so all before it, arrived."""
        source, sink = (self.server, self.client) if back else (self.client, self.server)
        deadline = time.monotonic() + timeout
        try:
            source.send(b"\x5a" * self.size)
        except OSError:
            return False
        self._due[back] += self.size
        while self._due[back] > 0 and (left := deadline - time.monotonic()) > 0:
            if not select.select([sink], [], [], left)[0]:
                break
            try:
                received = sink.recv(262144)
            except OSError:
                return False
            if not received:
                return False
            self._due[back] -= len(received)
        return self._due[back] == 0

    def close(self):
        """Ends it at once, without anything being sent any more that a later test could see."""
        for end in (self.client, self.server):
            if end.fileno() >= 0:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
        self._listener.close()
