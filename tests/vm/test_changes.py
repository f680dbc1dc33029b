# SPDX-License-Identifier: GPL-2.0
"""What changes underneath flows that are fast.

Everything here is done twice on the same router: with fasttrack off, and with it on. What a change does
to traffic has to be the same: where packets go, to whom, and which are lost. What conntrack counts is
compared with what nftables counts at the very first place where it can, on the device.

The changes in here take effect at once, which is to say: for every packet that is sent after the command
that makes the change has returned. Those that are noticed later are at the end of the file, with the
time that it takes at most.
"""

import contextlib
import re
import socket
import struct
import threading
import time

import pytest

from lab.crossroads import FAMILIES, Crossroads, Datagrams, IPv4, IPv6, Stream
from lab.kernel import wait_until
from lab.namespace import Namespace
from lab.topology import link
from lab.traffic import Wire

PROTOCOLS = ["udp", "tcp"]

#: What a frame says that it contains, which nobody listens to.
LOCAL_EXPERIMENT = 0x88b5

COUNTERS = """
table netdev ingress {{
    counter original {{ }}
    counter reply {{ }}
    chain lan {{
        type filter hook ingress device "lan0" priority -500;
        {protocol} dport {port} counter name original
    }}
    chain wan0 {{
        type filter hook ingress device "wan0" priority -500;
        {protocol} sport {port} counter name reply
    }}
    chain wan1 {{
        type filter hook ingress device "wan1" priority -500;
        {protocol} sport {port} counter name reply
    }}
}}
"""


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture
def make_cross(family):
    made = []

    def make(**options):
        made.append(Crossroads(family, **options))
        return made[-1]

    yield make
    for cross in made:
        cross.remove()


@pytest.fixture
def cross(make_cross):
    return make_cross()


def check_accounting(cross, talk):
    """Conntrack has counted every packet and byte that came in."""
    def counted():
        found = []
        for name in ("original", "reply"):
            words = cross.router.run("nft", "list", "counter", "netdev", "ingress", name).split()
            found.append(tuple(int(words[words.index(unit) + 1]) for unit in ("packets", "bytes")))
        return found

    def listed():
        return [tuple(map(int, pair)) for pair in re.findall(r"packets=(\d+) bytes=(\d+)", talk.entry())]

    # A late acknowledgement may come in between.
    wait_until(lambda: counted() == listed(), 3, f"exact accounting: {counted()} {listed()}", pause=0.2)


def counted(cross, port):
    """What conntrack has counted of conversations of datagrams with a port, in all zones: packets and bytes there, and
    back."""
    pairs = [tuple(map(int, pair)) for pair in re.findall(r"packets=(\d+) bytes=(\d+)", cross.router.run(
        "conntrack", "-L", "-f", cross.family.conntrack, "-p", "udp", "--orig-port-dst", port))]
    return [sum(column) for way in (pairs[::2], pairs[1::2]) for column in zip(*way)]


def check_counting(cross, *talks, count=5):
    """Conntrack counts every packet and byte of conversations of datagrams with one port, where what has come before
    has been counted elsewhere, or by nobody."""
    before = counted(cross, talks[0].port)
    for talk in talks:
        talk.exchange(count)
    packets, headers = count * len(talks), {"IPv4": 28, "IPv6": 48}[cross.family.name]
    size = count * sum(talk.size + headers for talk in talks)
    assert counted(cross, talks[0].port) == [now + then for now, then in zip([packets, size] * 2, before)]


def new_talk(cross, protocol, port, fast, learn_after=1, **options):
    """A conversation that is slow, or fast, with counters for its packets."""
    cross.router.nft(COUNTERS.format(protocol=protocol, port=port))
    talk = cross.talk(protocol, port, **options)
    if fast:
        cross.control.enable(learn_after=learn_after)
        talk.make_fast()
    else:
        talk.exchange(8)
    # Late acknowledgements.
    time.sleep(0.1)
    return talk


def end_talk(cross):
    cross.router.run("nft", "delete", "table", "netdev", "ingress")
    if cross.control.config()["enabled"]:
        cross.control.disable()


def hops(cross):
    """The link-layer addresses of the next hops."""
    return {name: cross.far.mac(name) for name in ("eth0", "eth0b", "eth1")}


# What is done to the router, how it is undone, and where packets go after it: a way and the device whose
# link-layer address they have; None if nowhere.


class Change:
    protocol = None
    #: What has to be there before anything is sent.
    arrange = lambda self, cross: None
    prepare = undo = lambda self, cross: None
    #: Where the client's packets go afterwards; with IPv6, if that is elsewhere.
    to = (0, "eth0")
    to_with_ipv6 = False
    #: Whether the server's packets go on.
    answered = True
    #: Whether the counters go on counting.
    counted = True
    #: Whether conntrack has to see another answer until the connection is established again.
    forgotten = False
    #: Whether what is on its way while it is made may be lost, on the slow path, too.
    takes_along = False
    #: The port that those datagrams come from which nobody waits for.
    source = None

    def leads_to(self, family):
        """Where the client's packets go afterwards."""
        return self.to_with_ipv6 if family.name == "IPv6" and self.to_with_ipv6 is not False else self.to


class OtherGateway(Change):
    to = (0, "eth0b")

    def make(self, cross):
        cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.other_hop)

    def undo(self, cross):
        cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[0][1])


class OtherDevice(OtherGateway):
    to = (1, "eth1")

    def make(self, cross):
        cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[1][1])


class RouteDeleted(Change):
    to = (1, "eth1")

    def make(self, cross):
        cross.router.ip("route", "del", cross.family.far_net)

    def undo(self, cross):
        cross.router.ip("route", "add", cross.family.far_net, "via", cross.family.ways[0][1])


class DefaultRouteToTheOtherWan(Change):
    to = (1, "eth1")

    def prepare(self, cross):
        cross.router.ip("route", "replace", "default", "via", cross.family.ways[0][1])
        cross.router.ip("route", "del", cross.family.far_net)

    def make(self, cross):
        cross.router.ip("route", "replace", "default", "via", cross.family.ways[1][1])

    def undo(self, cross):
        cross.router.ip("route", "add", cross.family.far_net, "via", cross.family.ways[0][1])


class MoreSpecificRoute(Change):
    to = (1, "eth1")

    def make(self, cross):
        cross.router.ip("route", "add", f"{cross.family.far}/{cross.family.host}", "via", cross.family.ways[1][1])

    def undo(self, cross):
        cross.router.ip("route", "del", f"{cross.family.far}/{cross.family.host}")


class Blackhole(MoreSpecificRoute):
    to = None

    def make(self, cross):
        cross.router.ip("route", "add", "blackhole", f"{cross.family.far}/{cross.family.host}")


class NoRouteBack(Change):
    """The other direction has its route changed, and only that one is affected."""
    answered = False

    def make(self, cross):
        cross.router.ip("route", "add", "blackhole", f"{cross.family.lan}/{cross.family.host}")

    def undo(self, cross):
        cross.router.ip("route", "del", f"{cross.family.lan}/{cross.family.host}")


class Rule(Change):
    to = (1, "eth1")

    def prepare(self, cross):
        cross.router.ip(cross.family.option, "route", "replace", "default", "via", cross.family.ways[1][1],
                        "table", 100)

    def make(self, cross):
        cross.router.ip(cross.family.option, "rule", "add", "to", cross.family.far, "lookup", 100)

    def undo(self, cross):
        cross.router.ip(cross.family.option, "rule", "del", "to", cross.family.far, "lookup", 100)


class RuleByMark(Rule):
    """By one that packets are given before they are routed."""

    def prepare(self, cross):
        super().prepare(cross)
        cross.router.nft(f"""
            table {cross.family.table} marking {{
                chain prerouting {{
                    type filter hook prerouting priority mangle;
                    iifname "lan0" meta mark set 0x200
                }}
            }}
        """)

    def make(self, cross):
        cross.router.ip(cross.family.option, "rule", "add", "fwmark", "0x200", "lookup", 100)

    def undo(self, cross):
        cross.router.ip(cross.family.option, "rule", "del", "fwmark", "0x200", "lookup", 100)
        cross.router.nft(f"delete table {cross.family.table} marking")


class RouteInATableThatWasPassedOver(Change):
    """A rule leads to a table that had no route, until now."""
    to = (1, "eth1")

    def prepare(self, cross):
        cross.router.ip(cross.family.option, "rule", "add", "to", cross.family.far, "lookup", 100)

    def make(self, cross):
        cross.router.ip(cross.family.option, "route", "add", "default", "via", cross.family.ways[1][1], "table", 100)

    def undo(self, cross):
        cross.router.ip(cross.family.option, "route", "del", "default", "table", 100)
        cross.router.ip(cross.family.option, "rule", "del", "to", cross.family.far, "lookup", 100)


class RouteThatSendsOnDeleted(Change):
    """A route of the table that a rule leads to sends lookups on to the next one, until now."""
    to = (1, "eth1")

    def prepare(self, cross):
        option = cross.family.option
        cross.router.ip(option, "route", "add", "default", "via", cross.family.ways[1][1], "table", 100)
        cross.router.ip(option, "route", "add", "throw", cross.family.far_net, "table", 100)
        cross.router.ip(option, "rule", "add", "to", cross.family.far, "lookup", 100)

    def make(self, cross):
        cross.router.ip(cross.family.option, "route", "del", "throw", cross.family.far_net, "table", 100)

    def undo(self, cross):
        cross.router.ip(cross.family.option, "rule", "del", "to", cross.family.far, "lookup", 100)
        cross.router.ip(cross.family.option, "route", "flush", "table", 100)


class NextHopObject(Change):
    to = (1, "eth1")

    def prepare(self, cross):
        cross.router.ip("nexthop", "add", "id", 1, "via", cross.family.ways[0][1], "dev", "wan0")
        cross.router.ip("route", "replace", cross.family.far_net, "nhid", 1)

    def make(self, cross):
        cross.router.ip("nexthop", "replace", "id", 1, "via", cross.family.ways[1][1], "dev", "wan1")

    def undo(self, cross):
        cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[0][1])
        cross.router.ip("nexthop", "del", "id", 1)


class RouteByNextHopObjectDeleted(NextHopObject):
    def make(self, cross):
        cross.router.ip("route", "del", cross.family.far_net, "nhid", 1)


class OneOfTwoHopsDown(Change):
    """A route leads by either of two hops, each connection by one. That one goes: its device is switched off."""

    def prepare(self, cross):
        nexthops = (("nexthop", "via", hop, "dev", f"wan{way}") for way, (_, hop) in enumerate(cross.family.ways))
        cross.router.ip("route", "replace", cross.family.far_net, *(word for words in nexthops for word in words))
        self._wires = cross.wires()

    def make(self, cross):
        way, = {way for seen in self._wires.by_port(0).values() for way, _ in seen}
        self.to = (1 - way, f"eth{1 - way}")
        self.leave(cross, way)

    def leave(self, cross, way):
        self._way = way
        # Answers have to come by the other one as well.
        cross.far.ip("route", "replace", cross.family.lan_net, "via", cross.family.ways[1 - way][0])
        cross.router.ip("link", "set", f"wan{way}", "down")

    def undo(self, cross):
        cross.router.ip("link", "set", f"wan{self._way}", "up")
        cross.router.ip("route", "del", cross.family.far_net)
        cross.router.ip("route", "add", cross.family.far_net, "via", cross.family.ways[0][1])
        cross.far.ip("route", "replace", cross.family.lan_net, "via", cross.family.ways[0][0])


class HopOfAGroupDeleted(OneOfTwoHopsDown):
    """Of next-hop objects in a group. The group goes on without it, and no route is changed."""

    def prepare(self, cross):
        for way, (_, hop) in enumerate(cross.family.ways):
            cross.router.ip("nexthop", "add", "id", 1 + way, "via", hop, "dev", f"wan{way}")
        cross.router.ip("nexthop", "add", "id", 3, "group", "1/2")
        cross.router.ip("route", "replace", cross.family.far_net, "nhid", 3)
        self._wires = cross.wires()

    def leave(self, cross, way):
        cross.router.ip("nexthop", "del", "id", 1 + way)

    def undo(self, cross):
        cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[0][1])
        cross.router.ip("nexthop", "flush")


class NeighbourChanged(Change):
    to = (0, "eth0b")

    def make(self, cross):
        cross.router.ip("neigh", "replace", cross.family.ways[0][1], "lladdr", cross.far.mac("eth0b"), "dev", "wan0")

    def undo(self, cross):
        cross.router.ip("neigh", "replace", cross.family.ways[0][1], "lladdr", cross.far.mac("eth0"), "dev", "wan0",
                        "nud", "reachable")


class NeighbourAnnounced(Change):
    """A host says to all that it has the next hop's address, by ARP, or an advertisement of IPv6; then the old one."""
    to = (0, "eth0b")

    def arrange(self, cross):
        cross.router.sysctl(f"net.{cross.family.conntrack}.neigh.wan0.locktime", 0)

    def make(self, cross, device="eth0b"):
        hop, mac = cross.family.ways[0][1], cross.far.mac(device)
        with contextlib.closing(Wire(cross.far, "eth0")) as wire:
            wire.put(cross.family.moved(hop, mac, None, False))
        wait_until(lambda: mac in cross.router.run("ip", "neigh", "show", hop), 5, "the new address")

    def undo(self, cross):
        self.make(cross, "eth0")


class NeighbourDeleted(Change):
    def make(self, cross):
        cross.router.ip("neigh", "del", cross.family.ways[0][1], "dev", "wan0")


class NeighbourFailed(Change):
    def make(self, cross):
        cross.router.ip("neigh", "replace", cross.family.ways[0][1], "dev", "wan0", "nud", "failed")


class NeighbourThatDoesNotAnswer(Change):
    to = None

    def prepare(self, cross):
        # A host that asks for the router's address tells its own.
        cross.far.ip("neigh", "replace", cross.family.ways[0][0], "lladdr", cross.router.mac("wan0"), "dev", "eth0",
                     "nud", "permanent")

    def make(self, cross):
        cross.family.be_found(cross.far, False)
        cross.router.ip("neigh", "replace", cross.family.ways[0][1], "dev", "wan0", "nud", "failed")

    def undo(self, cross):
        cross.family.be_found(cross.far, True)
        cross.router.ip("neigh", "replace", cross.family.ways[0][1], "lladdr", cross.far.mac("eth0"), "dev", "wan0",
                        "nud", "reachable")


class AddressRemoved(Change):
    """With its last address a device also loses its routes; with IPv6 only the one of that address' net."""
    to = (1, "eth1")
    to_with_ipv6 = (0, "eth0")
    answered = None

    def make(self, cross):
        cross.router.ip("addr", "del", f"{cross.family.ways[0][0]}/{cross.family.net}", "dev", "wan0")

    def undo(self, cross):
        cross.router.ip("addr", "add", f"{cross.family.ways[0][0]}/{cross.family.net}", "dev", "wan0")
        cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[0][1])


class OneOfTwoAddressesRemoved(Change):
    """Routes by way of a gateway remain then, though that of the address' own net goes."""

    def prepare(self, cross):
        cross.router.ip("addr", "add", f"{cross.family.numbered(300)}/{cross.family.host}", "dev", "wan0")

    def make(self, cross):
        cross.router.ip("addr", "del", f"{cross.family.ways[0][0]}/{cross.family.net}", "dev", "wan0")

    def undo(self, cross):
        cross.router.ip("addr", "add", f"{cross.family.ways[0][0]}/{cross.family.net}", "dev", "wan0")
        cross.router.ip("addr", "del", f"{cross.family.numbered(300)}/{cross.family.host}", "dev", "wan0")


class DeviceDown(AddressRemoved):
    to_with_ipv6 = (1, "eth1")
    answered = False
    takes_along = True

    def make(self, cross):
        cross.router.ip("link", "set", "wan0", "down")

    def undo(self, cross):
        cross.router.ip("link", "set", "wan0", "up")
        cross.router.ip("route", "add", cross.family.far_net, "via", cross.family.ways[0][1])


class DeviceRenamed(Change):
    # Nftables no longer counts on a device of another name.
    counted = False

    def make(self, cross):
        cross.router.ip("link", "set", "wan0", "name", "wan7")

    def undo(self, cross):
        cross.router.ip("link", "set", "wan7", "name", "wan0")


class DeviceOfARoutingRuleRenamed(Rule):
    """The kernel looks for the device that a rule names when there is a new name, not for each packet; and that is no
    change of the routes."""
    to, counted = (0, "eth0"), False

    def prepare(self, cross):
        super().prepare(cross)
        cross.router.ip(cross.family.option, "rule", "add", "iif", "lan0", "lookup", 100)

    def make(self, cross):
        cross.router.ip("link", "set", "lan0", "name", "lan7")

    def undo(self, cross):
        cross.router.ip("link", "set", "lan7", "name", "lan0")
        cross.router.ip(cross.family.option, "rule", "del", "iif", "lan0", "lookup", 100)


class DeviceRenamedAsARuleSays(Rule):
    """A rule of nftables is about packets from a device that gets this name only now; and that is no change of the
    rules."""
    counted = False

    def prepare(self, cross):
        super().prepare(cross)
        cross.router.ip(cross.family.option, "rule", "add", "fwmark", "0x200", "lookup", 100)
        cross.router.nft(f"""
            table {cross.family.table} marking {{
                chain prerouting {{
                    type filter hook prerouting priority mangle;
                    iifname "lan7" meta mark set 0x200
                }}
            }}
        """)

    def make(self, cross):
        cross.router.ip("link", "set", "lan0", "name", "lan7")

    def undo(self, cross):
        cross.router.ip("link", "set", "lan7", "name", "lan0")
        cross.router.ip(cross.family.option, "rule", "del", "fwmark", "0x200", "lookup", 100)
        cross.router.nft(f"delete table {cross.family.table} marking")


class DeviceMadeAPort(Change):
    """What arrives by it arrives by the bridge then, of which the firewall lets nothing pass."""
    to = None

    def prepare(self, cross):
        cross.router.ip("link", "add", "br7", "type", "bridge")
        cross.router.ip("link", "set", "br7", "up")
        cross.router.nft(f"""
            table {cross.family.table} bridged {{
                chain forward {{
                    type filter hook forward priority 10;
                    iifname "br7" drop
                }}
            }}
        """)

    def make(self, cross):
        cross.router.ip("link", "set", "lan0", "master", "br7")

    def undo(self, cross):
        cross.router.ip("link", "del", "br7")
        cross.router.nft(f"delete table {cross.family.table} bridged")


class ForwardingOff(Change):
    to, answered = None, False

    def make(self, cross):
        cross.family.forward(cross.router, False)

    def undo(self, cross):
        cross.family.forward(cross.router, True)


class ForwardingOffOnOneDevice(Change):
    """Packets that arrive there are no longer forwarded, others are."""
    to = None

    def prepare(self, cross):
        cross.family.forward_by_device(cross.router)

    def make(self, cross):
        cross.family.forward_from(cross.router, "lan0", False)

    def undo(self, cross):
        cross.family.forward_from(cross.router, "lan0", True)


class RuleThatDrops(Change):
    to = None

    def make(self, cross):
        cross.router.nft(f"insert rule {cross.family.table} filter forward th dport {{ 7, 8 }} drop")

    def undo(self, cross):
        chain = cross.router.run("nft", "-a", "list", "chain", cross.family.table, "filter", "forward")
        handle, = re.findall(r"th dport .* drop # handle (\d+)", chain)
        cross.router.nft(f"delete rule {cross.family.table} filter forward handle {handle}")


class SetElementRemoved(Change):
    to, answered = None, None

    def prepare(self, cross):
        table = cross.family.table
        cross.router.nft(f"""
            table {table} lists {{
                set allowed {{ type inet_service; elements = {{ 7, 8 }}; }}
                chain forward {{
                    type filter hook forward priority filter + 10; policy accept;
                    th dport != @allowed iifname "lan0" drop
                }}
            }}
        """)

    def make(self, cross):
        cross.router.nft(f"delete element {cross.family.table} lists allowed {{ 7, 8 }}")

    def undo(self, cross):
        cross.router.nft(f"delete table {cross.family.table} lists")


class SetElementAdded(Change):
    """To a set of ranges of addresses, and ports: another kind of set than one of plain values."""
    to = None

    def prepare(self, cross):
        family, table = cross.family, cross.family.table
        cross.router.nft(f"""
            table {table} lists {{
                set denied {{
                    type {family.address_type} . inet_service
                    flags interval
                    elements = {{ {family.nobody} . 1-6 }}
                }}
                chain forward {{
                    type filter hook forward priority filter + 10; policy accept;
                    {table} daddr . th dport @denied drop
                }}
            }}
        """)

    def make(self, cross):
        cross.router.nft(f"add element {cross.family.table} lists denied {{ {cross.family.far_net} . 5-9 }}")

    def undo(self, cross):
        cross.router.nft(f"delete table {cross.family.table} lists")


class RuleSetReplaced(Change):
    """All of it in one go, as distributions' start scripts do it, by one that refuses the flow."""
    to, answered = None, False

    def make(self, cross):
        self._rules = cross.router.run("nft", "list", "table", cross.family.table, "filter")
        counters = cross.router.run("nft", "list", "table", "netdev", "ingress")
        cross.router.nft(f"""
            flush ruleset
            {counters}
            table {cross.family.table} filter {{
                chain forward {{
                    type filter hook forward priority filter; policy drop;
                    ct state invalid accept
                }}
            }}
        """)

    def undo(self, cross):
        cross.router.nft(f"delete table {cross.family.table} filter\n{self._rules}")


class RuleSetReloaded(Change):
    """All of it, by the same again: nothing is lost."""

    def make(self, cross):
        rules = cross.router.run("nft", "list", "ruleset")
        cross.router.nft(f"flush ruleset\n{rules}")


class ConntrackFlushed(Change):
    """All entries go, and the next packets make new ones, also in the middle of a connection."""
    # The new ones begin to count anew.
    counted = False
    forgotten = True

    def make(self, cross):
        cross.router.run("conntrack", "-F", "-f", cross.family.conntrack)


class ConntrackEntryDeleted(ConntrackFlushed):
    def make(self, cross):
        cross.router.run("conntrack", "-D", "-f", cross.family.conntrack, "-p", "udp", "--orig-port-src", self.source)


class ConntrackEntryChanged(Change):
    """Its mark, to one that is not the excluded one, and its timeout."""

    def make(self, cross, mark=0x42, timeout=300):
        changed = cross.router.run("conntrack", "-U", "-f", cross.family.conntrack, "-p", "udp",
                                   "--orig-port-src", self.source, "--mark", mark, "--timeout", timeout)
        assert f"mark={mark} " in changed

    def undo(self, cross):
        self.make(cross, 0, 30)


class AccountingSwitchedOff(Change):
    def make(self, cross):
        cross.router.sysctl("net.netfilter.nf_conntrack_acct", 0)

    def undo(self, cross):
        cross.router.sysctl("net.netfilter.nf_conntrack_acct", 1)


class MtuLowered(Change):
    """To one that all packets still fit in."""

    def make(self, cross):
        cross.router.ip("link", "set", "wan0", "mtu", 1280)

    def undo(self, cross):
        cross.router.ip("link", "set", "wan0", "mtu", 1500)


def on_one_bridge(cross):
    """Has both ways be ports of a bridge of the router, and the next hop be at the first one. Its device at the other
    one has the same address."""
    family, (own, hop) = cross.family, cross.family.ways[0]
    cross.far.ip("link", "set", "eth1", "address", cross.far.mac("eth0"))
    cross.far.ip("addr", "flush", "dev", "eth1")
    cross.router.ip("link", "add", "br0", "type", "bridge")
    cross.router.ip("link", "set", "br0", "up")
    for way in (0, 1):
        cross.router.ip("addr", "flush", "dev", f"wan{way}")
        cross.router.ip("link", "set", f"wan{way}", "master", "br0")
    cross.router.ip("addr", "add", f"{own}/{family.net}", "dev", "br0")
    cross.router.ip("route", "replace", family.far_net, "via", hop)


def seen_at_the_port(cross, way):
    """The next hop sends something by a port of the bridge, which looks for it there from now on."""
    from scapy.layers.l2 import Ether
    mac = cross.far.mac("eth0")
    with contextlib.closing(Wire(cross.far, f"eth{way}")) as wire:
        wire.put(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff", type=LOCAL_EXPERIMENT) / b"here")
    wait_until(lambda: re.search(f"{mac} dev wan{way}", cross.router.run("bridge", "fdb", "show", "br", "br0")), 5)


class OtherPortOfABridge(Change):
    """The flow leads to the bridge, which looks for the port with every packet."""
    to = (1, "eth1")

    def arrange(self, cross):
        on_one_bridge(cross)

    def make(self, cross):
        seen_at_the_port(cross, 1)

    def undo(self, cross):
        seen_at_the_port(cross, 0)


CHANGES = [
    OtherGateway, OtherDevice, RouteDeleted, MoreSpecificRoute, Blackhole, NoRouteBack, Rule,
    RouteInATableThatWasPassedOver, RouteThatSendsOnDeleted, NextHopObject, RouteByNextHopObjectDeleted,
    NeighbourChanged, NeighbourDeleted, NeighbourFailed,
    NeighbourThatDoesNotAnswer, AddressRemoved, DeviceDown, DeviceRenamed, ForwardingOff, ForwardingOffOnOneDevice,
    RuleThatDrops, SetElementRemoved, SetElementAdded, RuleSetReplaced, RuleSetReloaded,
    ConntrackFlushed,
]

#: Of these one protocol for a version of IP has to do; and one version for what is the same for both.
RARE_CHANGES = [(family, protocol, kind) for family, protocol in ((IPv4, "tcp"), (IPv6, "udp")) for kind in (
    DeviceOfARoutingRuleRenamed, OneOfTwoHopsDown, HopOfAGroupDeleted)] + [(IPv6, "udp", kind) for kind in (
        DeviceRenamedAsARuleSays, DeviceMadeAPort)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_at_once(cross, protocol, kind):
    comes_out_the_same(cross, protocol, kind, learn_after=1)


@pytest.mark.parametrize("family, protocol, kind", RARE_CHANGES, indirect=["family"],
                         ids=[f"{family.name}-{protocol}-{kind.__name__}" for family, protocol, kind in RARE_CHANGES])
def test_rare_changes_at_once(cross, protocol, kind):
    comes_out_the_same(cross, protocol, kind, learn_after=1)


# One protocol for each version of IP.
@pytest.mark.parametrize("family, protocol", [(IPv4, "tcp"), (IPv6, "udp")], ids=["IPv4-tcp", "IPv6-udp"],
                         indirect=["family"])
def test_at_once_with_what_is_learned_as_late_as_by_default(cross, protocol):
    comes_out_the_same(cross, protocol, OtherDevice, learn_after=3)


def comes_out_the_same(cross, protocol, kind, learn_after):
    """What a change does to a slow conversation, and to a fast one."""
    wires = cross.wires()
    macs = hops(cross)
    outcome = {}
    for fast, port in ((False, 7), (True, 8)):
        change = kind()
        change.prepare(cross)
        talk = new_talk(cross, protocol, port, fast, learn_after)
        wires.clear()
        before = cross.control.stats()
        change.make(cross)
        to = change.leads_to(cross.family)
        out = [talk.say(timeout=5 if to else 0.2) for _ in range(4)]
        seen = wires.seen(port)
        back = []
        if protocol == "udp" or to:
            back = [talk.say(back=True, timeout=5 if change.answered else 0.2) for _ in range(4)]
        outcome[fast] = (out, back)
        if to:
            way, device = to
            assert all(out), out
            assert set(seen) == {(way, macs[device])}, seen
        else:
            assert not any(out), out
            assert not seen
        if change.answered is not None and back:
            assert all(back) if change.answered else not any(back), back
        after = cross.control.stats() - before
        if not fast:
            assert after.fast == 0
        elif not to:
            assert after.packets[0] == 0, after.packets
        elif protocol == "udp" or change.answered:
            # Fast again: learned, confirmed, fast.
            for _ in range(3):
                talk.say()
            before = cross.control.stats()
            for _ in range(5):
                talk.say()
            after = cross.control.stats() - before
            assert after.packets[0] >= 4, after.reasons()
        if change.counted:
            check_accounting(cross, talk)
        elif protocol == "udp":
            check_counting(cross, talk)
        change.undo(cross)
        # What was lost is sent again, if it is TCP.
        assert talk.say(timeout=20)
        if change.counted:
            check_accounting(cross, talk)
        end_talk(cross)
    assert outcome[True] == outcome[False], outcome


class Pump:
    """Numbered datagrams from the LAN host, as fast as a thread can, that nobody waits for."""

    def __init__(self, cross, port):
        self._socket = cross.lan.socket(cross.family.socket, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._address = (cross.family.far, port)
        self._over = threading.Event()
        #: The number of the last datagram that may have been sent.
        self.number = 0
        self._thread = threading.Thread(target=self._run)

    def start(self):
        self._thread.start()

    @property
    def source(self):
        return self._socket.getsockname()[1]

    def send(self):
        self.number += 1
        try:
            self._socket.sendto(struct.pack("!I", self.number) + b"pump", self._address)
        except OSError:
            # An ICMP error about an earlier one.
            pass

    def _run(self):
        while not self._over.is_set():
            self.send()
            time.sleep(0.002)

    def stop(self):
        if self._thread.ident:
            self._over.set()
            self._thread.join()

    def close(self):
        self.stop()
        self._socket.close()


@pytest.mark.parametrize("kind", [OtherGateway, OtherDevice, Rule, NeighbourChanged, DeviceDown, ForwardingOff,
                                  RuleThatDrops, SetElementAdded, AddressRemoved, ConntrackFlushed], ids=lambda kind: kind.__name__)
def test_in_the_midst_of_traffic(cross, kind):
    """No packet that is sent after the change was acknowledged goes where it went before; and conntrack counts every
    packet, unless some are refused or counting begins anew."""
    wires = cross.wires()
    macs = hops(cross)
    cross.control.enable()
    talk = cross.talk("udp", 7)
    talk.make_fast()
    pump = cross.until_removed(Pump(cross, 7))
    # The answer that makes its connection an established one.
    pump.send()
    server = talk.server_socket
    server.settimeout(2)
    server.sendto(b"answer", server.recvfrom(100)[1])
    pump.start()
    change = kind()
    before = cross.control.stats()
    for _ in range(4):
        change.prepare(cross)
        time.sleep(0.3)
        wires.clear()
        change.make(cross)
        last = pump.number
        time.sleep(0.3)
        # Not waiting: what is not there yet comes later, and would be late.
        found = wires.numbers(7, b"pump")
        late = {where for where, number in found if number > last}
        if to := change.leads_to(cross.family):
            way, device = to
            assert late == {(way, macs[device])}, late
        else:
            assert not late
        change.undo(cross)
    fast = (cross.control.stats() - before).packets[0]
    assert fast > 50, fast
    pump.stop()
    # If nothing was refused, of which the senders would have been told, and so have sent less.
    if kind.to and kind.counted:
        assert counted(cross, 7)[0] == pump.number + talk.said // 2


# Those that are there for one version of IP only mean the same to the module with either.
BACK_AND_FORTH = [(family, kind) for kind in (
    OtherGateway, OtherDevice, RouteDeleted, MoreSpecificRoute, Rule, NextHopObject, NeighbourChanged, NeighbourDeleted,
    NeighbourAnnounced, DeviceRenamed, RuleSetReloaded, MtuLowered) for family in FAMILIES] + [
        (IPv6, DefaultRouteToTheOtherWan), (IPv6, RuleByMark), (IPv4, OneOfTwoAddressesRemoved), (IPv4, DeviceDown),
        (IPv4, ConntrackFlushed), (IPv6, ConntrackEntryDeleted), (IPv4, ConntrackEntryChanged),
        (IPv6, AccountingSwitchedOff), (IPv4, OtherPortOfABridge)]


@pytest.mark.parametrize("family, kind", BACK_AND_FORTH, indirect=["family"],
                         ids=[f"{family.name}-{kind.__name__}" for family, kind in BACK_AND_FORTH])
def test_back_and_forth_in_the_midst_of_traffic_no_more_is_lost_than_slow(cross, kind):
    """Of changes after which packets still arrive, if by another way: nothing, but for what the slow path loses, too."""
    lost = {}
    change = kind()
    change.arrange(cross)
    wires = cross.wires()
    way, device = change.leads_to(cross.family)
    changed = way, hops(cross)[device]
    for fast, port in ((False, 7), (True, 8)):
        talk = new_talk(cross, "udp", port, fast)
        pump = cross.until_removed(Pump(cross, port))
        pump.send()
        server = talk.server_socket
        server.settimeout(2)
        client = server.recvfrom(100)[1]
        server.sendto(b"answer", client)
        wires.clear()
        before, first = cross.control.stats(), pump.number + 1
        change.source = pump.source
        pump.start()
        found, taken_along = [], set()
        for _ in range(2):
            for step in (change.prepare, change.make, change.undo):
                began = pump.number
                step(cross)
                if change.takes_along and step == change.make:
                    taken_along.update(range(began, pump.number + 1))
                time.sleep(0.05)
                if change.forgotten:
                    server.sendto(b"answer", client)
                seen = wires.numbers(port, b"pump")
                assert step != change.make or changed in {where for where, _ in seen}, "none took the new way"
                found += seen
        pump.stop()
        time.sleep(0.2)
        found += wires.numbers(port, b"pump")
        numbers = [number for _, number in found]
        assert len(set(numbers)) == len(numbers) > 50, "some arrived twice, or few were sent"
        sent = set(range(first, pump.number + 1))
        assert set(numbers) <= sent
        lost[fast] = len(sent - set(numbers) - taken_along)
        after = cross.control.stats() - before
        assert after.packets[0] > len(found) / 2 if fast else after.fast == 0, (after.packets, len(found), after.reasons())
        # After others `test_at_once` looks at that.
        if kind not in CHANGES:
            # What has not been read takes the room of what follows.
            server.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while server.recv(100):
                    pass
            check_counting(cross, talk)
        end_talk(cross)
    assert lost[True] <= lost[False], lost


@pytest.mark.parametrize("family", [IPv4], ids=["IPv4"], indirect=True)
def test_a_device_removed_in_the_midst_of_traffic(cross):
    """What is sent when the command has returned goes by the other way, and none of it is lost."""
    cross.control.enable()
    talk = cross.talk("udp", 7)
    talk.make_fast()
    pump = cross.until_removed(Pump(cross, 7))
    pump.send()
    talk.server_socket.settimeout(2)
    talk.server_socket.sendto(b"answer", talk.server_socket.recvfrom(100)[1])
    other = cross.until_removed(Wire(cross.far, "eth1", outgoing=False))
    before = cross.control.stats()
    pump.start()
    time.sleep(0.3)
    assert (cross.control.stats() - before).packets[0] > 20
    cross.router.ip("link", "del", "wan0")
    last = pump.number
    time.sleep(0.3)
    pump.stop()
    numbers = [int.from_bytes(bytes(frame)[42:46]) for frame in other.frames() if b"pump" in bytes(frame)]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) >= set(range(last + 1, pump.number + 1)) and pump.number > last + 20


@pytest.mark.parametrize("how", ["to all", "an answer"])
def test_a_neighbour_that_says_it_has_another_address(cross, how):
    """By ARP, or an advertisement of IPv6. Noticed when the kernel has taken it over; there is no
    acknowledgement."""
    wires = cross.wires()
    macs = hops(cross)
    cross.router.sysctl(f"net.{cross.family.conntrack}.neigh.wan0.locktime", 0)
    cross.control.enable()
    talk = cross.talk("udp")
    talk.make_fast()
    hop, new = cross.family.ways[0][1], macs["eth0b"]
    asker = cross.family.ways[0][0], cross.router.mac("wan0")
    cross.until_removed(Wire(cross.far, "eth0")).put(cross.family.moved(hop, new, asker, how == "an answer"))
    wait_until(lambda: new in cross.router.run("ip", "neigh", "show", hop), 5, "the new address")
    wires.clear()
    before = cross.control.stats()
    talk.exchange(10)
    assert set(wires.seen(7)) == {(0, new)}
    assert (cross.control.stats() - before).packets[0] >= 8
    check_counting(cross, talk)


@pytest.mark.parametrize("how", ["told", "seen"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_next_hop_moves_to_another_port_of_the_routers_bridge(make_cross, protocol, how):
    """The flow leads to the bridge, which looks for the port with every packet."""
    cross = make_cross(routed=False)
    on_one_bridge(cross)
    mac = cross.far.mac("eth0")
    wires = cross.wires()
    # Samples would be sent to the new port anyway.
    cross.control.enable(sample_interval=60000)
    talk = cross.talk(protocol)
    talk.make_fast()
    time.sleep(0.1)
    wires.clear()
    if how == "told":
        # One that its own frames don't move back again.
        cross.router.run("bridge", "fdb", "replace", mac, "dev", "wan1", "master", "static", "sticky")
    else:
        seen_at_the_port(cross, 1)
    before = cross.control.stats()
    if protocol == "udp":
        for _ in range(10):
            assert talk.say()
        assert wires.seen(7) == {(1, mac): 10}
        check_counting(cross, talk)
    else:
        talk.exchange(10)
        # The server answers by the port that it had, which moves it back there.
        assert set(wires.seen(7)) == ({(1, mac)} if how == "told" else {(0, mac), (1, mac)})
    stats = cross.control.stats() - before
    assert stats.packets[0] >= 10 and not stats.reasons(), (stats.packets, stats.reasons())


def seen_on_what_was_moved(wire):
    """The frames on a device that has just been switched off, about which the socket complains once."""
    try:
        return wire.frames()
    except OSError:
        return wire.frames()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_device_that_goes_for_good(make_cross, protocol, how):
    """The flow goes on where the slow path takes it."""
    outcome = {}
    for fast, port in ((False, 7), (True, 8)):
        cross = make_cross()
        cross.router.nft(f"""
            table netdev ingress {{
                counter original {{ }}
                chain lan {{
                    type filter hook ingress device "lan0" priority -500;
                    {protocol} dport {port} counter name original
                }}
            }}
        """)
        talk = cross.talk(protocol, port)
        if fast:
            cross.control.enable()
            talk.make_fast()
        else:
            talk.exchange(8)
        cross.far.ip("route", "replace", cross.family.lan_net, "via", cross.family.ways[1][0])
        time.sleep(0.1)
        if how == "moved":
            cross.router.ip("link", "set", "wan0", "netns", cross.lan.name)
            way = cross.until_removed(Wire(cross.lan, "wan0"))
        else:
            way = None
        other = cross.until_removed(Wire(cross.far, "eth1", outgoing=False))
        if how == "removed":
            cross.router.ip("link", "del", "wan0")
        before = cross.control.stats()
        outcome[fast] = talk.both(8)
        assert outcome[fast] == (8, 8)
        assert way is None or not seen_on_what_was_moved(way)
        assert other.packets(destination=cross.family.far)
        if fast:
            talk.make_fast()
        else:
            assert (cross.control.stats() - before).fast == 0
        time.sleep(0.1)
        words = cross.router.run("nft", "list", "counter", "netdev", "ingress", "original").split()
        packets, size = (int(words[words.index(unit) + 1]) for unit in ("packets", "bytes"))
        assert f"packets={packets} bytes={size}" in talk.entry()
    assert outcome[True] == outcome[False]


class DefaultRouteMoved(Change):
    def make(self, cross):
        cross.router.ip("route", "replace", "default", "via", cross.family.ways[1][1])


class AddressRemovedBelow(Change):
    def make(self, cross):
        cross.router.ip("route", "add", "default", "via", cross.family.ways[1][1], "metric", 2000)
        cross.router.ip("addr", "del", f"{cross.family.ways[0][0]}/{cross.family.net}", "dev", "wan0")
        if cross.family.name == "IPv6":
            # There the route remains.
            cross.router.ip("route", "del", "default", "via", cross.family.ways[0][1])


class DeviceDownBelow(Change):
    def make(self, cross):
        cross.router.ip("route", "add", "default", "via", cross.family.ways[1][1], "metric", 2000)
        cross.router.ip("link", "set", "wan0", "down")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [DefaultRouteMoved, AddressRemovedBelow, DeviceDownBelow],
                         ids=lambda kind: kind.__name__)
def test_masqueraded_flows_lose_their_wan(make_cross, protocol, kind):
    """Conntrack ends a masqueraded connection whose way out changes; what comes after it is a new one, with
    the other address. No packet leaves by the new way with the address of the old one."""
    outcome = {}
    for fast in (False, True):
        cross = make_cross(masquerade=True, routed=False)
        own, hop = cross.family.ways[0]
        cross.router.ip("route", "add", "default", "via", hop)
        talk = cross.talk(protocol)
        if fast:
            cross.control.enable()
            talk.make_fast()
        else:
            talk.exchange(8)
        assert talk.seen_from[0] == own
        time.sleep(0.1)
        old, new = (cross.until_removed(Wire(cross.far, f"eth{way}", outgoing=False)) for way in (0, 1))
        before = cross.control.stats()
        kind().make(cross)
        old.frames(0.1)
        if protocol == "udp":
            outcome[fast] = [talk.say(timeout=0.5) for _ in range(6)] + [talk.seen_from[0]]
            talk.exchange(4)
        else:
            outcome[fast] = [talk.say(timeout=0.5)]
        assert not old.packets(destination=cross.family.far)
        assert {packet.payload.src for packet in new.packets(destination=cross.family.far)} <= {
            cross.family.ways[1][0]}
        if fast and protocol == "udp":
            gone = (cross.control.stats() - before).departures()
            # Or the new connection was learned before anybody looked after the old one's flow.
            assert any(gone.get(reason) for reason in ("conntrack", "device", "replaced")), gone
            talk.make_fast()
        if protocol == "udp":
            check_counting(cross, talk)
    assert outcome[True] == outcome[False]
    if protocol == "udp":
        assert outcome[True][-2:] == [True, cross.family.ways[1][0]]


TWO_WANS = """
    table {table} wans {{
        chain prerouting {{
            type filter hook prerouting priority mangle;
            meta mark set ct mark and 0x3f00
            ct state new iifname "wan0" meta mark set 0x100
            ct state new iifname "wan1" meta mark set 0x200
            ct state new iifname "lan0" th dport 7 meta mark set 0x100
            ct state new iifname "lan0" th dport 8 meta mark set 0x200
            ct mark set ct mark and 0xffffc0ff or meta mark
        }}
        chain incoming {{
            type nat hook prerouting priority dstnat;
            iifname "wan*" th dport 9 dnat to {lan}
        }}
    }}
    insert rule {table} filter forward ct status dnat accept
"""


def with_two_wans(make_cross):
    """As multi-WAN managers do it: a connection gets a mark for its WAN, and its mark decides about the
    table of routes."""
    cross = make_cross(masquerade=True, routed=False)
    option = cross.family.option
    cross.router.ip("route", "add", "default", "via", cross.family.ways[0][1])
    for way in (0, 1):
        cross.router.ip(option, "route", "add", cross.family.lan_net, "dev", "lan0", "table", 100 + way)
        cross.router.ip(option, "route", "add", "default", "via", cross.family.ways[way][1], "table", 100 + way)
        cross.router.ip(option, "rule", "add", "fwmark", f"0x{way + 1}00/0x3f00", "lookup", 100 + way,
                        "priority", 1000 + way)
    cross.router.nft(TWO_WANS.format(table=cross.family.table, lan=cross.family.lan))
    return cross


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_connection_stays_on_its_wan(make_cross, protocol):
    cross = with_two_wans(make_cross)
    wires = cross.wires()
    macs = hops(cross)
    cross.control.enable()
    outward = [cross.talk(protocol, 7 + way) for way in (0, 1)]
    # Begun from outside, on the WAN that is not the default.
    kind = type(outward[0])
    own, hop = cross.family.ways[1]
    inward = cross.until_removed(kind(cross, cross.far, cross.lan, own, 9, source=(hop, 0),
                                      listen=(cross.family.lan, 9)))
    for way, talk in enumerate(outward):
        talk.make_fast()
        assert talk.seen_from[0] == cross.family.ways[way][0]
    inward.make_fast()
    wires.clear()
    before = cross.control.stats()
    for talk in (*outward, inward):
        talk.exchange(10)
    seen = {port: set(wires_seen) for port, wires_seen in wires.by_port().items()}
    assert seen[7] == {(0, macs["eth0"])}
    assert seen[8] == {(1, macs["eth1"])}
    assert seen[inward.source[1]] == {(1, macs["eth1"])}
    after = cross.control.stats() - before
    assert after.fast >= 54, after.reasons()
    if protocol == "udp":
        for talk in (*outward, inward):
            check_counting(cross, talk)


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
def test_a_wan_that_fails_takes_only_its_own_connections_along(make_cross, fast):
    cross = with_two_wans(make_cross)
    own = [way[0] for way in cross.family.ways]
    if fast:
        cross.control.enable()
    talks = [cross.talk("udp", 7 + way) for way in (0, 1)]
    for talk in talks:
        if fast:
            talk.make_fast()
        else:
            talk.exchange(8)
    wires = cross.wires()
    wires.clear()
    cross.router.ip(cross.family.option, "rule", "add", "fwmark", "0x200/0x3f00", "lookup", 100, "priority", 900)
    # The one is ended by conntrack with its next packet, and begins anew by the other WAN.
    assert [talks[1].say(timeout=0.5) for _ in range(4)][1:] == [True] * 3
    assert talks[1].seen_from[0] == own[0]
    before = cross.control.stats()
    assert talks[0].both(10) == (10, 10)
    assert talks[0].seen_from[0] == own[0]
    assert {way for seen in wires.by_port().values() for way, _ in seen} == {0}
    after = cross.control.stats() - before
    assert after.fast >= 18 if fast else after.fast == 0
    for talk in talks:
        check_counting(cross, talk)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_mtu_of_the_way_out_lowered(cross, protocol):
    """Nothing larger leaves, and whoever sent it is told."""
    outcome = {}
    for fast, port in ((False, 7), (True, 8)):
        talk = new_talk(cross, protocol, port, fast, size=1300)
        if fast:
            # One that is due for a sample would be slow for that.
            cross.control.set(sample_interval=60000)
            talk.make_fast()
            time.sleep(0.1)
        wire = cross.until_removed(Wire(cross.router, "wan0", incoming=False))
        told = cross.until_removed(Wire(cross.lan, "eth0", outgoing=False))
        before = cross.control.stats()
        cross.router.ip("link", "set", "wan0", "mtu", 1280)
        wire.frames(0.1)
        if protocol == "udp":
            outcome[fast] = [talk.say(timeout=0.5) for _ in range(3)]
        else:
            outcome[fast] = [talk.say(timeout=10) for _ in range(3)]
        assert all(len(frame) <= 1294 for frame in wire.frames())
        assert [packet for packet in told.packets(protocol=cross.family.icmp)
                if bytes(packet.payload.payload)[:2] == cross.family.too_big]
        after = cross.control.stats() - before
        # The routes change with the MTU, so that the first packet may be one that asks for the new route.
        assert bool(after.slow["mtu"] + after.slow["stale-route"]) == fast, after.reasons()
        talk.size = 500
        before = cross.control.stats()
        talk.exchange(6)
        after = cross.control.stats() - before
        assert after.packets[0] >= 4 if fast else after.fast == 0, after.reasons()
        if protocol == "tcp":
            check_accounting(cross, talk)
        else:
            # Before, they came in fragments, which conntrack does not count one by one.
            check_counting(cross, talk)
        end_talk(cross)
        cross.router.ip("link", "set", "wan0", "mtu", 1500)
        cross.lan.ip(cross.family.option, "route", "flush", "cache")
    assert outcome[True] == outcome[False]
    assert outcome[True][-1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_conntrack_entry_deleted_and_the_others_go_on(cross, protocol):
    kept = new_talk(cross, protocol, 7, True)
    deleted = cross.talk(protocol, 8)
    deleted.make_fast()
    known = {flow["id"] for flow in cross.control.flows()}
    cross.router.run("conntrack", "-D", "-p", protocol, "--orig-port-dst", 8)
    before = cross.control.stats()
    kept.exchange(10)
    # TCP's last acknowledgement comes late.
    time.sleep(0.3)
    after = cross.control.stats() - before
    # But for samples.
    assert min(after.packets) >= 5, after.reasons()
    assert after.fast + after.slow["sampled"] >= 20, after.reasons()
    before = cross.control.stats()
    assert deleted.say()
    after = cross.control.stats() - before
    # The first packet is conntrack's, which finds a new connection; in the middle of one, for TCP. It may
    # still have met the old flow.
    slow = [after.slow[reason] for reason in ("not-established", "tcp-state", "conntrack-gone")]
    assert sum(slow) >= 1, after.reasons()
    assert after.packets[0] == 0
    wait_until(lambda: len(known & {flow["id"] for flow in cross.control.flows()}) == 2)
    check_accounting(cross, kept)


def test_another_mark_that_is_not_the_excluded_one_changes_nothing(cross):
    talk = new_talk(cross, "udp", 7, True)
    cross.router.run("conntrack", "-U", "-p", "udp", "--mark", "0x42")
    before = cross.control.stats()
    talk.exchange(10)
    assert (cross.control.stats() - before).fast >= 18
    assert "mark=66 " in talk.entry()
    assert {flow["conntrack-mark"] for flow in cross.control.flows()} == {0x42}
    check_accounting(cross, talk)


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
def test_a_timeout_that_somebody_set_is_what_packets_make_it_again(cross, fast):
    """A shorter one is made longer by the next packet. A longer one is made shorter again: on the fast path
    by the next sample."""
    talk = new_talk(cross, "udp", 7, fast)

    def set_timeout(timeout):
        cross.router.run("conntrack", "-U", "-p", "udp", "--timeout", timeout)
        return abs(int(talk.entry().split()[2]) - timeout) < 8

    # Conntrack takes two seconds until it calls a UDP connection a stream.
    wait_until(lambda: talk.both() and int(talk.entry().split()[2]) > 100, 10, pause=0.3)
    for timeout in (20, 3000):
        # Until those packets have been told that were fast before, which may be just then.
        wait_until(lambda: set_timeout(timeout), 5, pause=0.3)
        before = cross.control.stats()
        wait_until(lambda: talk.both(5) and 100 < int(talk.entry().split()[2]) <= 120, 5, pause=0.1)
        talk.exchange(5)
        after = cross.control.stats() - before
        assert after.fast > 0 if fast else after.fast == 0
    check_accounting(cross, talk)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_accounting_switched_on_and_off(cross, protocol):
    """A connection has counters if they were on when it began, and counts for as long as it lives."""
    cross.control.enable()
    counted = new_talk(cross, protocol, 7, True)
    cross.router.sysctl("net.netfilter.nf_conntrack_acct", 0)
    counted.exchange(10)
    uncounted = cross.talk(protocol, 8)
    uncounted.make_fast()
    check_accounting(cross, counted)
    cross.router.sysctl("net.netfilter.nf_conntrack_acct", 1)
    before = cross.control.stats()
    counted.exchange(10)
    uncounted.exchange(10)
    assert (cross.control.stats() - before).fast >= 36
    check_accounting(cross, counted)
    assert "packets=" not in uncounted.entry()
    end_talk(cross)


ZONES = """
    table {table} zones {{
        chain before {{
            type filter hook prerouting priority raw;
            iifname "lan0" ct original zone set 1
            iifname "lan1" ct original zone set 2
        }}
        chain prerouting {{
            type filter hook prerouting priority mangle;
            iifname "lan0" ct mark set 1
            iifname "lan1" ct mark set 2
            meta mark set ct mark
        }}
    }}
"""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_customers_with_the_same_addresses(make_cross, protocol):
    """They are told apart by device and conntrack zone, and so are their flows: the same addresses and
    ports, to the same server."""
    cross = make_cross(masquerade=True)
    family = cross.family
    # The second customer's network, which looks like the first one's.
    second = Namespace(f"{cross.lan.name}b")
    family.prepare_lan(second)
    link(second, "eth0", cross.router, "lan1")
    second.ip("addr", "add", f"{family.lan}/{family.net}", "dev", "eth0")
    second.ip("route", "add", "default", "via", family.lan_gateway)
    cross.router.ip("addr", "add", f"{family.lan_gateway}/{family.host}", "dev", "lan1")
    for customer in (0, 1):
        cross.router.ip(family.option, "route", "add", family.lan_net, "dev", f"lan{customer}", "table", 100 + customer)
        cross.router.ip(family.option, "rule", "add", "fwmark", customer + 1, "lookup", 100 + customer)
    cross.router.nft(ZONES.format(table=family.table))
    cross.control.enable()
    source = (family.lan, 5555)
    one = cross.talk(protocol, 7, source=source)
    two = cross.until_removed(type(one)(cross, second, cross.far, family.far, 7, source=source, share=one))
    for talk in (one, two):
        talk.make_fast()
    assert one.seen_from[0] == two.seen_from[0] and one.seen_from[1] != two.seen_from[1]
    assert len(cross.control.flows()) == 4
    before = cross.control.stats()
    one.exchange(10)
    two.exchange(10)
    after = cross.control.stats() - before
    assert min(after.packets) >= 18, after.reasons()
    flows = cross.control.flows(reply=0)
    assert {flow["in-ifindex"] for flow in flows} == {cross.router.index("lan0"), cross.router.index("lan1")}
    assert len({(flow["source"], flow["source-port"], flow["destination"]) for flow in flows}) == 1
    if protocol == "udp":
        check_counting(cross, one, two)
    # One of them goes, and the other one is not touched.
    before = cross.control.stats()
    cross.router.run("conntrack", "-D", "-p", protocol, "--orig-zone", 1)
    two.exchange(10)
    after = cross.control.stats() - before
    assert min(after.packets) >= 8, after.reasons()
    one.close()
    two.close()
    second.remove()


ZONES_BY_HARDWARE = """
    table {table} zones {{
        chain before {{
            type filter hook prerouting priority raw;
            ether saddr {0} ct original zone set 1
            ether saddr {1} ct original zone set 2
        }}
        chain prerouting {{
            type filter hook prerouting priority mangle;
            ether saddr {0} ct mark set 1
            ether saddr {1} ct mark set 2
            meta mark set ct mark
        }}
    }}
"""


@pytest.fixture
def neighbours(make_cross):
    """Two customers with the same addresses behind gateways of their own on one device of the router, which tells them
    apart by where frames come from."""
    cross = make_cross(masquerade=True)
    family = cross.family
    second, address = Namespace(f"{cross.lan.name}b"), family.numbered(1)
    family.prepare_lan(second)
    link(second, "eth0", cross.router, "lan1")
    other = family.other_lan
    second.ip("addr", "add", f"{other}/{family.net}", "dev", "eth0")
    second.ip("route", "add", "default", "via", family.lan_gateway)
    for customer in (cross.lan, second):
        customer.ip("addr", "add", f"{address}/{family.host}", "dev", "lo")
    cross.router.ip("addr", "flush", "dev", "lan0")
    cross.router.ip("link", "add", "lan", "type", "bridge", "mcast_snooping", 0)
    for port in ("lan0", "lan1"):
        cross.router.ip("link", "set", port, "master", "lan")
    cross.router.ip("link", "set", "lan", "up")
    cross.router.ip("addr", "add", f"{family.lan_gateway}/{family.net}", "dev", "lan")
    for number, gateway in enumerate((family.lan, other)):
        cross.router.ip(family.option, "route", "add", f"{address}/{family.host}", "via", gateway, "table", 100 + number)
        cross.router.ip(family.option, "rule", "add", "fwmark", number + 1, "lookup", 100 + number)
    cross.router.nft(ZONES_BY_HARDWARE.format(cross.lan.mac("eth0"), second.mac("eth0"), table=family.table))
    cross.address, cross.second = address, second
    talks = []

    def second_talk(protocol, port, **options):
        """A conversation of the second customer."""
        kind = {"udp": Datagrams, "tcp": Stream}[protocol]
        talks.append(kind(cross, second, cross.far, family.far, port, **{"source": (address, 0)} | options))
        return talks[-1]
    cross.second_talk = second_talk
    yield cross
    for talk in talks:
        talk.close()
    second.remove()


# One protocol for each version of IP.
@pytest.mark.parametrize("family, protocol", [(IPv4, "udp"), (IPv6, "tcp")], ids=["IPv4-udp", "IPv6-tcp"],
                         indirect=["family"])
def test_two_customers_with_the_same_addresses_on_one_device(neighbours, protocol):
    """What the fast path sees of their packets is the same. So the device's connections are slow as soon as one of the
    other customer has been seen, whatever that is about."""
    cross = neighbours
    # Samples would find out, too.
    cross.control.enable(sample_interval=60000)
    source = (cross.address, 5555)
    one = new_talk(cross, protocol, 7, True, source=source)
    cross.second_talk("udp", 9).exchange(1)
    before = cross.control.stats()
    two = cross.second_talk(protocol, 7, source=source, share=one)
    for _ in range(5):
        for talk in (one, two):
            talk.exchange(2)
    assert one.seen_from[0] == two.seen_from[0] and one.seen_from[1] != two.seen_from[1]
    after = cross.control.stats() - before
    assert after.packets[0] == 0 and after.slow["zones"] >= 18, (after.packets, after.reasons())
    assert not cross.control.flows(reply=0)
    # Answers come to addresses of the router's own, which differ.
    assert protocol == "tcp" or after.packets[1] >= 10, after.packets
    cross.router.run("conntrack", "-D", "--orig-zone", 2)
    cross.control.flush()
    one.make_fast()


def test_the_second_customer_on_a_device_begins_with_the_addresses_of_the_first(neighbours):
    """None of its packets is taken for one of the first one's: they come from elsewhere."""
    cross = neighbours
    cross.control.enable(sample_interval=60000)
    source = (cross.address, 5555)
    one = new_talk(cross, "udp", 7, True, source=source)
    two = cross.second_talk("udp", 7, source=source, share=one)
    before = cross.control.stats()
    two.exchange(1)
    assert one.seen_from[0] == two.seen_from[0] and one.seen_from[1] != two.seen_from[1]
    after = cross.control.stats() - before
    assert after.packets[0] == 0 and after.slow["sender"] == 1, (after.packets, after.reasons())
    before = cross.control.stats()
    for talk in (one, two) * 3:
        talk.exchange(2)
    after = cross.control.stats() - before
    assert after.packets[0] == 0 and after.slow["zones"] == 12, (after.packets, after.reasons())
    check_counting(cross, one, two)


@pytest.mark.parametrize("family", [IPv4], ids=["IPv4"], indirect=True)
def test_the_first_customer_on_a_device_has_no_zone_of_its_own(neighbours):
    """Then the second one's packets are taken for the first one's until one of them is a sample."""
    cross = neighbours
    table = cross.family.table
    cross.router.nft(f"flush chain {table} zones before\n"
                     f"add rule {table} zones before ether saddr {cross.second.mac('eth0')} ct original zone set 2")
    cross.control.enable(sample_interval=500)
    source = (cross.address, 5555)
    one = new_talk(cross, "udp", 7, True, source=source)
    two = cross.second_talk("udp", 7, source=source, share=one)
    before = cross.control.stats()
    wait_until(lambda: two.say(timeout=0.1) and two.seen_from[1] != one.seen_from[1], 1, "the sample", pause=0.05)
    assert (cross.control.stats() - before).slow["sampled"] <= 2
    # The first one's own packets have come meanwhile to where they belong.
    check_counting(cross, one, two)


ZONE_BY_DEVICE = """
    table {table} zones {{
        chain before {{
            type filter hook prerouting priority raw;
            iifname "lan0" ct zone set 7
            iifname "wan0" ct zone set 7
        }}
    }}
"""


@pytest.mark.parametrize("zone", [False, True], ids=["no-zone", "zone"])
def test_a_host_that_takes_another_hardware_address(cross, zone):
    """In a zone, which might be that of the address, a packet is looked at anew; the others stay fast."""
    if zone:
        cross.router.nft(ZONE_BY_DEVICE.format(table=cross.family.table))
    cross.control.enable(sample_interval=60000)
    talk = new_talk(cross, "udp", 7, True)
    cross.lan.ip("link", "set", "eth0", "address", "02:00:00:00:08:08")
    before = cross.control.stats()
    for _ in range(10):
        assert talk.say(), "a message was lost"
    after = cross.control.stats() - before
    assert after.slow["sender"] == (1 if zone else 0), after.reasons()
    assert after.packets[0] == (9 if zone else 10), (after.packets, after.reasons())


def counted_in_zone_seven(talk):
    """The packets of a conversation that conntrack has counted in zone 7, and elsewhere."""
    lines = talk.cross.router.run("conntrack", "-L", "-f", talk.cross.family.conntrack, "-p", "udp",
                                  "--orig-port-dst", talk.port).splitlines()
    return [sum(int(packets) for line in lines if ("zone=7" in line) == wanted
                for packets in re.findall(r"packets=(\d+)", line)) for wanted in (True, False)]


@pytest.mark.parametrize("fast", [False, True], ids=["slow", "fast"])
def test_a_zone_that_is_given_to_devices_and_taken_from_them(cross, fast):
    """Either way another entry of conntrack's has the connection from then on. Nothing is lost; all is slow, until
    somebody says that there is one zone only."""
    table = cross.family.table
    talk = cross.talk("udp")
    if fast:
        # Samples would find out, too.
        cross.control.enable(sample_interval=60000)
        talk.make_fast()
    else:
        talk.exchange(8)
    for change, place in ((ZONE_BY_DEVICE.format(table=table), 0), (f"delete table {table} zones", 1)):
        # What has changed before, or been switched on, is no longer just before.
        time.sleep(0.12)
        before, then = counted_in_zone_seven(talk), cross.control.stats()
        cross.router.nft(change)
        talk.exchange(10)
        after, stats = counted_in_zone_seven(talk), cross.control.stats() - then
        assert after[place] == before[place] + 20 and after[1 - place] == before[1 - place], (before, after)
        # Before both sides have been seen in the zone there are other reasons.
        assert stats.fast == 0 and stats.slow["zones"] >= (16 if fast else 0), (stats.packets, stats.reasons())
        check_counting(cross, talk)
        if fast:
            cross.control.flush()
            talk.make_fast()
            check_counting(cross, talk)


def test_rules_that_change_all_the_time_do_not_keep_flows_slow(cross):
    """As with a set that is filled with every name that is resolved: what changes again within a tenth of a
    second is noticed after that."""
    cross.router.nft(f"add table {cross.family.table} names\n"
                     f"add set {cross.family.table} names addresses {{ type {cross.family.address_type}; }}")
    cross.control.enable()
    talk = cross.talk("udp")
    talk.make_fast()
    over = threading.Event()
    changes = []

    def change():
        while not over.is_set():
            changes.append(cross.router.run(
                "nft", "add", "element", cross.family.table, "names", "addresses",
                f"{{ {cross.family.numbered(len(changes))} }}"))

    thread = threading.Thread(target=change)
    thread.start()
    before = cross.control.stats()
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        talk.exchange(10)
    over.set()
    thread.join()
    after = cross.control.stats() - before
    assert len(changes) >= 5
    assert after.slow["revalidating"] >= 5
    # One packet of each direction for a change, and no more than ten changes a second.
    assert after.slow["revalidating"] <= 2 * min(len(changes), 40) + 4, (len(changes), after.reasons())


def test_rules_that_change_right_after_others_count_a_tenth_of_a_second_later(cross):
    """No packet is fast that is sent later than that after the command that forbade it had returned."""
    table = cross.family.table
    cross.router.nft(f"add table {table} names\n"
                     f"add set {table} names addresses {{ type {cross.family.address_type}; }}\n"
                     f"add chain {table} names forward {{ type filter hook forward priority filter - 1; }}")
    cross.control.enable(sample_interval=60000)
    talk = cross.talk("udp")
    talk.make_fast()
    for number in range(3):
        # What has changed before is no longer just before.
        time.sleep(0.12)
        cross.router.nft(f"add element {table} names addresses {{ {cross.family.numbered(number)} }}")
        # It has been noticed, and what follows is not, for a while.
        before = cross.control.stats()
        talk.exchange(1)
        assert (cross.control.stats() - before).slow["revalidating"] >= 1
        cross.router.nft(f"add rule {table} names forward udp dport 7 drop")
        forbidden = time.monotonic()
        sent = forbidden
        while talk.say(timeout=0.3):
            # That, and two ticks of the kernel's clock.
            assert sent - forbidden < 0.1 + 0.008
            sent = time.monotonic()
        for _ in range(5):
            assert not talk.say(timeout=0.02)
        cross.router.nft(f"flush chain {table} names forward")
        wait_until(talk.say, 2)
        talk.make_fast()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_routes_elsewhere_cost_a_flow_one_packet(cross, protocol):
    """Whatever is changed: which routes a flow depends on is not written down."""
    cross.router.ip("link", "add", "other", "type", "dummy")
    cross.router.ip("link", "set", "other", "up")
    cross.control.enable(sample_interval=60000)
    talk = cross.talk(protocol)
    talk.make_fast()
    before = cross.control.stats()
    for number in range(10):
        cross.router.ip("addr", "add", f"{cross.family.numbered(number)}/{cross.family.host}", "dev", "other")
        talk.exchange(10)
    after = cross.control.stats() - before
    slow = sum(after.slow.values())
    # And an acknowledgement that comes in between.
    assert 10 <= slow <= 2 * 2 * 10, after.reasons()
    assert after.slow["stale-route"] >= 10, after.reasons()
    assert after.fast >= 200 - slow


# What IPv4 does not have.
ONLY_IPV6 = pytest.mark.parametrize("family", [IPv6], ids=["IPv6"], indirect=True)


@ONLY_IPV6
def test_a_route_that_expires(cross):
    """Nothing happens then; lookups pass it over, and the kernel clears up much later."""
    wires = cross.wires()
    cross.control.enable(sample_interval=60000)
    talk = cross.talk("udp")
    talk.make_fast()
    cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[0][1], "expires", 4)
    over = time.monotonic() + 4.1
    before = cross.control.stats()
    while time.monotonic() < over - 1:
        assert talk.say()
    # Unless the machine stood still.
    after = cross.control.stats() - before
    assert after.packets[0] > sum(after.slow.values()), after.reasons()
    time.sleep(max(0, over - time.monotonic()))
    wires.clear()
    for _ in range(6):
        assert talk.say()
    assert set(wires.seen(7)) == {(1, cross.far.mac("eth1"))}
    before = cross.control.stats()
    for _ in range(4):
        assert talk.say()
    assert (cross.control.stats() - before).packets[0] == 4


@ONLY_IPV6
def test_advertisements_that_say_the_same_again_change_nothing(cross):
    from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6 as Header
    from scapy.layers.l2 import Ether
    cross.router.sysctl("net.ipv6.conf.wan0.accept_ra", 2)
    mac = cross.far.mac("eth0")
    advertisement = (Ether(src=mac, dst="33:33:00:00:00:01") / Header(src="fe80::77", dst="ff02::1", hlim=255)
                     / ICMPv6ND_RA(routerlifetime=1800)
                     / ICMPv6NDOptPrefixInfo(prefix="2001:db8:77::", prefixlen=64, validlifetime=3600,
                                             preferredlifetime=1800))
    wire = cross.until_removed(Wire(cross.far, "eth0"))
    wire.put(advertisement)
    wait_until(lambda: "2001:db8:77:" in cross.router.run("ip", "-6", "addr", "show", "dev", "wan0")
               and "via fe80::77" in cross.router.run("ip", "-6", "route"), 5, "the advertised net and router")
    cross.control.enable(sample_interval=60000)
    talk = cross.talk("udp")
    # An address is tentative for a while.
    wait_until(lambda: "tentative" not in cross.router.run("ip", "-6", "addr", "show", "dev", "wan0"), 10)
    talk.make_fast()
    before = cross.control.stats()
    for _ in range(10):
        wire.put(advertisement)
        talk.exchange(10)
    after = cross.control.stats() - before
    assert after.fast == 200, after.reasons()


@ONLY_IPV6
@pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])
def test_path_mtus_that_a_stranger_makes_up(cross, guarded):
    """The router believes everyone who says that a packet of its own was too large, and keeps that as a route of the
    packet's destination. That is a change of routes like others; what belongs to no connection can be refused."""
    from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6 as Header
    from scapy.layers.l2 import Ether
    if guarded:
        cross.router.nft("""
            table ip6 guard {
                counter refused { }
                chain input {
                    type filter hook input priority filter;
                    ct state invalid counter name refused drop
                }
            }
        """)
    own, hop = cross.family.ways[0]
    wire = cross.until_removed(Wire(cross.far, "eth0"))

    def tell(number):
        to = f"2001:db8:f::{0x100 + number:x}"
        wire.put(Ether(src=cross.far.mac("eth0"), dst=cross.router.mac("wan0")) / Header(src=hop, dst=own)
                 / ICMPv6PacketTooBig(mtu=1280) / Header(src=own, dst=to, nh=58, plen=1400) / ICMPv6EchoRequest())
        if guarded:
            wait_until(lambda: f"packets {number + 1} "
                       in cross.router.run("nft", "list", "counter", "ip6", "guard", "refused"))
        else:
            wait_until(lambda: to in cross.router.ip("-6", "route", "show", "cache"))

    cross.control.enable(sample_interval=60000)
    talk = cross.talk("udp")
    talk.make_fast()
    before = cross.control.stats()
    for number in range(10):
        tell(number)
        talk.exchange(10)
    after = cross.control.stats() - before
    slow = sum(after.slow.values())
    if guarded:
        assert after.fast == 200, after.reasons()
    else:
        # One packet of each direction.
        assert after.slow["stale-route"] == slow == 2 * 10, after.reasons()
        assert after.fast == 200 - slow


# Noticed by the next sample only: nothing tells anyone about these, and so the flow goes on for as long as
# the sampling interval.


def stops_within(talk, interval, back=False):
    """The flow ends within the interval, and half a second for a slow machine, and remains so."""
    started = time.monotonic()
    while talk.say(back=back, timeout=0.2):
        assert time.monotonic() - started < interval / 1000 + 0.5
    for _ in range(10):
        assert not talk.say(back=back, timeout=0.05)


# IPv6 has no such check.
@pytest.mark.parametrize("family", [IPv4], ids=["IPv4"], indirect=True)
@pytest.mark.parametrize("interval", [100, 1000])
def test_rp_filter_within_the_sampling_interval(cross, interval):
    """The server's packets come by another way than the one that leads to it."""
    cross.control.enable(sample_interval=interval)
    talk = cross.talk("udp")
    cross.router.ip("route", "replace", cross.family.far_net, "via", cross.family.ways[1][1])
    talk.make_fast()
    before = cross.control.stats()
    cross.router.sysctl("net.ipv4.conf.wan0.rp_filter", 1)
    stops_within(talk, interval, back=True)
    # Not in the other direction.
    assert (cross.control.stats() - before).slow["sampled"] >= 1
    for _ in range(10):
        assert talk.say()


def an_element_times_out(cross):
    """Of a set, without anybody being told."""
    table, far = cross.family.table, cross.family.far
    cross.router.nft(f"""
        delete element {table} until granted {{ {far} }}
        add element {table} until granted {{ {far} timeout 1s500ms }}
    """)
    return 1.5


def the_hour_has_come(cross):
    """Of a rule by the time of day, which is in whole seconds."""
    now = time.time()
    then = int(now) + 3
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then))
    cross.router.nft(f'add rule {cross.family.table} until forward meta time >= "{stamp}" drop')
    return then - now


@pytest.mark.parametrize("family, ends", [(IPv4, an_element_times_out), (IPv6, an_element_times_out),
                                          (IPv4, the_hour_has_come)],
                         ids=["IPv4-element", "IPv6-element", "IPv4-hour"], indirect=["family"])
def test_what_ends_by_itself_within_the_sampling_interval(cross, ends):
    """There is no change of the rules, but they come to another decision."""
    table, far = cross.family.table, cross.family.far
    cross.router.nft(f"""
        table {table} until {{
            set granted {{
                type {cross.family.address_type}
                flags timeout
                elements = {{ {far} }}
            }}
            chain forward {{
                type filter hook forward priority filter - 5;
                iifname "lan0" {table} daddr != @granted drop
            }}
        }}
    """)
    cross.control.enable()
    talk = cross.talk("udp")
    talk.make_fast()
    started = time.monotonic()
    left = ends(cross)
    over = time.monotonic() + left
    before = cross.control.stats()
    while time.monotonic() < started + left - 0.1:
        assert talk.say()
    stops_within(talk, 1000 * (over + 1 - time.monotonic()))
    after = cross.control.stats() - before
    assert after.packets[0] > 10 * sum(after.slow.values()), (after.packets, after.reasons())


def test_a_mark_that_decides_about_the_route_within_the_sampling_interval(make_cross):
    cross = make_cross()
    table, option = cross.family.table, cross.family.option
    cross.router.ip(option, "route", "add", "default", "via", cross.family.ways[1][1], "table", 100)
    cross.router.ip(option, "rule", "add", "fwmark", "0x200", "lookup", 100)
    cross.router.nft(f"""
        table {table} restore {{
            chain prerouting {{
                type filter hook prerouting priority mangle;
                iifname "lan0" meta mark set ct mark
            }}
        }}
    """)
    wires = cross.wires()
    cross.control.enable(sample_interval=500)
    talk = cross.talk("udp")
    talk.make_fast()
    cross.router.run("conntrack", "-U", "-p", "udp", "--mark", "0x200")
    changed = time.monotonic()
    while time.monotonic() - changed < 1:
        talk.exchange(2)
    wires.clear()
    before = cross.control.stats()
    talk.exchange(20)
    assert {way for way, _ in wires.seen(7)} == {1}
    # A sample may have been among them.
    assert (cross.control.stats() - before).packets[0] >= 10
    assert {flow["packet-mark"] for flow in cross.control.flows(reply=0)} == {0x200}


# IPv4 has only the device's.
@pytest.mark.parametrize("family", [IPv6], ids=["IPv6"], indirect=True)
def test_the_mtu_for_ipv6_within_the_sampling_interval(cross):
    """That of a device for IPv6 alone, which is lowered without any route being changed."""
    cross.control.enable(sample_interval=500)
    talk = cross.talk("udp", size=1300)
    talk.make_fast()
    cross.router.sysctl("net.ipv6.conf.wan0.mtu", 1280)
    changed = time.monotonic()
    while time.monotonic() - changed < 1:
        talk.say(timeout=0.1)
    wire = cross.until_removed(Wire(cross.router, "wan0", incoming=False))
    for _ in range(10):
        talk.say(timeout=0.1)
    frames = wire.frames()
    assert frames and all(len(frame) <= 1294 for frame in frames)
    talk.size = 500
    talk.make_fast()
