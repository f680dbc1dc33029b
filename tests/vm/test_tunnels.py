# SPDX-License-Identifier: GPL-2.0
"""Tunnels that become narrower under flows that are fast, and tunnels and other devices one above the other.

The WAN is a tunnel, which goes by way of a host in between. Everything is done twice on the same router, with
fasttrack off and with it on, and has to come out the same: how large packets may be, what the sender is told, and by
whom.
"""

import struct

import pytest
from lab import devices
from lab.devices import NUMBER, link, tunnel
from lab.kernel import wait_until
from lab.namespace import Namespace
from lab.topology import FIREWALL, Router
from lab.traffic import Datagrams, Stream, Wire

COUNT = 30
#: What is too large for the path when it has become narrower, and does not leave without fragments, which IPv6 could
#: not do with less.
LARGE, NARROW = 1400, 1350


@pytest.fixture
def between():
    """The host in between, which forwards, and says so if what it is to forward is too large."""
    host = Namespace("between")
    host.enable_ipv6()
    host.sysctl("net.ipv4.ip_forward", 1)
    host.sysctl("net.ipv6.conf.all.forwarding", 1)
    answer_all(host)
    yield host
    host.remove()


def answer_all(host):
    """Else a packet that is too large now and then remains without an answer."""
    for limit in ("icmp_ratelimit", "icmp_ratemask"):
        host.sysctl(f"net.ipv4.{limit}", 0)
    host.sysctl("net.ipv6.icmp.ratelimit", 0)


def by_way_of(between, is_v6=False):
    """What a tunnel goes through: two cables, and the host in between."""
    def carrier(host, host_device, router, router_device, offloads):
        found = []
        start, length = ("fd00:d:{}::", 64) if is_v6 else ("172.16.{}.", 24)
        for end, device, net in ((host, host_device, 2), (router, router_device, 1)):
            here, there = start.format(net), start.format(3 - net)
            own, hop, peer = f"{here}1", f"{here}2", f"{there}1"
            if is_v6:
                end.enable_ipv6()
            link(end, f"{device}p", between, f"to{net}", offloads)
            end.ip("addr", "add", f"{own}/{length}", "dev", f"{device}p")
            between.ip("addr", "add", f"{hop}/{length}", "dev", f"to{net}")
            end.ip("route", "add", f"{there}{'' if is_v6 else 0}/{length}", "via", hop)
            found.append((end, device, own, peer))
        return 1, found
    return carrier


#: For each kind of tunnel: how it is made, and whether its packets may not be fragmented, so that it finds the path's
#: MTU.
TUNNELS = {
    "gre": (lambda carrier: tunnel("type", "gre", "ttl", 64, carrier=carrier), True),
    "ipip": (lambda carrier: tunnel("type", "ipip", "ttl", 64, carrier=carrier), True),
    "vxlan": (lambda carrier: tunnel("type", "vxlan", "id", NUMBER, "dstport", 4789, carrier=carrier), False),
    "vxlan-df": (lambda carrier: tunnel("type", "vxlan", "id", NUMBER, "dstport", 4789, "df", "set", carrier=carrier),
                 True),
    "wireguard": (devices.wireguard_through, False),
    "ip6gre": (lambda carrier: tunnel("type", "ip6gre", "encaplimit", "none", carrier=carrier), True),
    "ip6tnl": (lambda carrier: tunnel("type", "ip6tnl", "mode", "any", "encaplimit", "none", carrier=carrier), True),
}
#: Those that go by way of IPv6.
OVER_IPV6 = ("ip6gre", "ip6tnl")
#: It has no host in between.
SESSION = "pppoe"

WITHOUT_NAT = FIREWALL[:FIREWALL.index("table ip nat")]
FIREWALLS = {"masquerade": FIREWALL, "no-nat": WITHOUT_NAT}


@pytest.fixture
def make_router(between, family):
    made = []

    def make(kind, firewall):
        tunnelled = devices.pppoe if kind == SESSION else TUNNELS[kind][0](by_way_of(between, kind in OVER_IPV6))
        made.append(Router(wan=tunnelled, firewall=FIREWALLS[firewall], family=family))
        router = made[-1]
        # The forwarding of what is too large for a tunnel in which nothing may be fragmented is refused only so.
        router.router.sysctl("net.ipv4.ip_forward_use_pmtu", 1)
        answer_all(router.router)
        return router

    yield make
    for router in made:
        router.remove()


def needs_pppoe():
    """Ends the test where there is none."""
    if not devices.has_pppoe():
        pytest.skip("this kernel has no PPPoE: that of the flavour amd64 has")


def fast_packets(router, run):
    """How many packets of the original direction are fast in a run."""
    before = router.control.stats()
    run()
    return (router.control.stats() - before).packets[0]


def fares(router, datagrams, size, told):
    """Whether a packet of a size arrives, and what its sender is told: by whom, about which addresses and ports, and
    the MTU."""
    told.frames(0)
    sent, behind = datagrams.probe(size - router.header - 8), datagrams.probe(32)
    arrived = []
    while behind not in arrived:
        arrived += datagrams.receive(1) or pytest.fail("a small packet was lost")
    answers = set()
    for packet in told.packets(protocol=58 if router.is_v6 else 1, seconds=0.1):
        answer, message = packet.payload, bytes(packet.payload)[router.header:]
        if message[:2] == (b"\2\0" if router.is_v6 else b"\3\4"):
            quoted = type(answer)(message[8:])
            ports = struct.unpack("!HH", bytes(quoted.payload)[:4])
            answers.add((answer.src, answer.dst, int.from_bytes(message[4:8]), quoted.src, quoted.dst,
                         ports[0] - datagrams.source[1], ports[1]))
    return sent in arrived, answers


def explore(router, datagrams, narrow, widen):
    """What becomes of a conversation when its tunnel becomes narrower, and wide again: all that is said to its sender,
    the largest packet that passes, and whether one of a byte more does."""
    told = Wire(router.lan, "eth0", outgoing=False)
    assert fares(router, datagrams, LARGE, told) == (True, set())
    narrow()
    said, passes = set(), False
    # What is too large first is found out by the tunnel, and then by the router.
    for _ in range(5):
        arrived, answers = fares(router, datagrams, LARGE, told)
        said |= answers
        passes = arrived
    largest = max((answer[2] for answer in said), default=0)
    at_the_edge = [fares(router, datagrams, size, told)[0] for size in (largest, largest + 1)] if largest else []
    datagrams.exchange(5)
    widen()
    datagrams.exchange(3)
    again = fares(router, datagrams, LARGE, told)
    told.close()
    return {"told": said, "large ones pass": passes, "at the edge": at_the_edge, "wide again": again}


def slow_and_fast(router, conversation, look):
    """What is seen without fasttrack, and with it, of a conversation that is fast then."""
    conversation.exchange(5)
    slow = look()
    # What is found out is not left to samples.
    router.control.enable(sample_interval=60_000)
    conversation.warm_up()
    assert fast_packets(router, lambda: conversation.exchange(COUNT)) >= COUNT * 0.9
    fast = look()
    # It is so afterwards, too.
    conversation.warm_up()
    assert fast_packets(router, lambda: conversation.exchange(COUNT)) >= COUNT * 0.9
    return slow, fast


def on_the_way(between, router, mtu):
    """Sets the MTU of the cable behind the host in between, and has forgotten what was found out about it."""
    between.ip("link", "set", "to2", "mtu", mtu)
    if mtu == 1500:
        def is_forgotten():
            for family in ("-4", "-6"):
                router.router.ip(family, "route", "flush", "cache")
            return not any("mtu" in router.router.ip(family, "route", "show", "cache") for family in ("-4", "-6"))
        wait_until(is_forgotten, 5)
        # What a tunnel of IPv4 finds out, tnl_update_pmtu of net/ipv4/ip_tunnel.c writes into the copy of an IPv6 route
        # that this CPU has, too; of which no flush hears. It goes with the route.
        if router.is_v6:
            route = router.router.ip("-6", "route", "show", "dev", "wan0", "root", "2000::/3").split(" pref ")[0].split()
            router.router.ip("-6", "route", "del", *route, "dev", "wan0")
            router.router.ip("-6", "route", "add", *route, "dev", "wan0")


# What of IPv6 is another combination of what is inside and outside each.
@pytest.mark.parametrize("family, kind, firewall", [
    *(("ipv4", kind, "masquerade") for kind in TUNNELS if kind != "ip6tnl"), ("ipv4", "gre", "no-nat"),
    ("ipv4", "vxlan-df", "no-nat"), ("ipv6", "gre", "masquerade"), ("ipv6", "ip6tnl", "no-nat")], indirect=["family"])
def test_the_path_of_a_tunnel_becomes_narrower(make_router, between, kind, firewall):
    """By the word of a host on the way, of which only the tunnel hears."""
    router = make_router(kind, firewall)
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.set_probing()
    slow, fast = slow_and_fast(router, datagrams, lambda: explore(
        router, datagrams, lambda: on_the_way(between, router, NARROW), lambda: on_the_way(between, router, 1500)))
    assert fast == slow
    if TUNNELS[kind][1]:
        assert slow["told"] and slow["at the edge"] == [True, False] and not slow["large ones pass"]
    else:
        assert not slow["told"] and slow["large ones pass"]
    assert slow["wide again"] == (True, set())


@pytest.mark.parametrize("family, kind", [
    ("ipv4", "gre"), ("ipv6", "vxlan"), ("ipv4", "wireguard"), ("ipv6", "ip6gre"), ("ipv4", SESSION)],
                         indirect=["family"])
def test_the_mtu_of_a_tunnel_changed(make_router, kind):
    """By the administrator. What leaves is no larger, with all that the tunnel adds; it may pad what it carries."""
    if kind == SESSION:
        needs_pppoe()
    router = make_router(kind, "masquerade")
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.set_probing()
    before = int(router.router.ip("-o", "link", "show", "wan0").split(" mtu ")[1].split()[0])
    # No multiple of anything that packets are padded to.
    mtu = 1303

    outside = router.until_removed(Wire(router.router, "wan0p", incoming=False))

    def narrow():
        router.router.ip("link", "set", "wan0", "mtu", mtu)
        outside.frames(0.1)

    def widen():
        # Of a session, whose packets are none of IP, none are seen there.
        sizes.append(max(map(len, outside.frames()), default=None))
        router.router.ip("link", "set", "wan0", "mtu", before)

    sizes = []
    slow, fast = slow_and_fast(router, datagrams, lambda: explore(router, datagrams, narrow, widen))
    assert fast == slow
    assert slow["at the edge"] == [True, False] and {answer[2] for answer in slow["told"]} == {mtu}
    assert sizes[0] == sizes[1] and (kind == SESSION or sizes[0] >= mtu + 14)


@pytest.mark.parametrize("family, kind", [("ipv4", "gre"), ("ipv6", "vxlan-df"), ("ipv4", "wireguard")],
                         indirect=["family"])
def test_a_stream_goes_on_in_a_tunnel_whose_path_becomes_narrower(make_router, between, kind):
    """TCP is told, and sends smaller segments."""
    router = make_router(kind, "masquerade")
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    stream.send(b"a" * 50000)
    on_the_way(between, router, NARROW)
    stream.send(b"b" * 100000)
    assert fast_packets(router, lambda: stream.send(b"c" * 100000)) >= 30


# One above the other.


STACKS = {
    "gre_on_vlan": lambda: tunnel("type", "gre", "ttl", 64, carrier=devices.carried_by(devices.vlan)),
    "ipip_on_bridge": lambda: tunnel("type", "ipip", "ttl", 64, carrier=devices.carried_by(devices.bridge)),
    "vxlan_on_bond": lambda: tunnel("type", "vxlan", "id", NUMBER, "dstport", 4789,
                                    carrier=devices.carried_by(devices.bond_active_backup)),
    "wireguard_in_gre": lambda: devices.wireguard_through(devices.carried_by(devices.gre)),
    "gre_in_wireguard_on_qinq": lambda: tunnel(
        "type", "gre", "ttl", 64, carrier=devices.carried_by(devices.wireguard_through(
            devices.carried_by(devices.qinq)))),
    "vlan_on_vxlan": lambda: on_top_of(devices.vxlan),
    "pppoe_on_vlan": lambda: devices.pppoe_over(devices.vlan),
}


def on_top_of(below):
    """A kind: a VLAN on devices of another kind."""
    def kind(host, host_device, router, router_device, offloads=False):
        closing = below(host, f"{host_device}p", router, f"{router_device}p", offloads)
        for namespace, device in ((host, host_device), (router, router_device)):
            namespace.ip("link", "add", "link", f"{device}p", "name", device, "type", "vlan", "id", 9)
            namespace.ip("link", "set", device, "up")
        return closing
    return kind


@pytest.mark.parametrize("stack", STACKS)
def test_fast_through_devices_one_above_the_other(stack):
    if "pppoe" in stack:
        needs_pppoe()
    router = Router(wan=STACKS[stack]())
    router.control.enable()
    conversations = [router.until_removed(kind(router.lan, router.wan, router.WAN)) for kind in (Datagrams, Stream)]
    for conversation in conversations:
        conversation.warm_up()
        before = router.control.stats()
        conversation.exchange(COUNT, size=1000)
        stats = router.control.stats() - before
        assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
    found = {(flow["in-ifindex"], flow["out-ifindex"]) for flow in router.control.flows()}
    lan, wan = router.router.index("lan0"), router.router.index("wan0")
    assert found == {(lan, wan), (wan, lan)}
    router.remove()
