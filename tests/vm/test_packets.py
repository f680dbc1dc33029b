# SPDX-License-Identifier: GPL-2.0
"""Kinds of packet, as devices and their offloads make them: each arrives with correct contents and
checksums.

Where the WAN has no offloads, its host computes the checksums of what arrives there itself.
"""

import contextlib
import re
import socket
import time

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether

from lab import devices
from lab.both import both
from lab.devices import link, offloading
from lab.kernel import Checksums, wait_until
from lab.topology import Router
from lab.traffic import ETH_P_IP, Datagrams, Generator, Stream, Wire, family_of, hops_left, is_whole

COUNT = 30
#: One that IPv6 knows, too.
SMALL_MTU = 1280
BULK = bytes(range(256)) * 8192


@pytest.fixture
def make_router(family):
    made = []

    def make(**options):
        made.append(Router(family=family, **options))
        made[-1].control.enable()
        return made[-1]

    yield make
    for router in made:
        router.remove()


def conversation(router, kind):
    """A conversation from the LAN to the WAN that is fast."""
    made = router.until_removed(kind(router.lan, router.wan, router.WAN))
    made.warm_up()
    return made


def moved(router, run):
    """What the statistics say of a run."""
    before = router.control.stats()
    run()
    return router.control.stats() - before


def mostly_fast(stats, least=COUNT * 0.9):
    assert min(stats.packets) >= least, (stats.packets, stats.reasons())


def both_ways(stream):
    stream.send(BULK)
    stream.send(BULK, back=True)


# Segments that are made of several.


@both
@pytest.mark.parametrize("lan, wan", [(offloading(link), offloading(link)), (offloading(link), link)],
                         ids=["end to end", "split by the router"])
def test_large_tcp_segments(make_router, lan, wan):
    router = make_router(lan=lan, wan=wan)
    stream = conversation(router, Stream)
    stats = moved(router, lambda: both_ways(stream))
    assert stats.fast >= 0.9 * (stats.fast + sum(stats.slow.values())), stats.reasons()
    # More than would fit into one on the wire.
    assert stats.bytes[0] > len(BULK) * 0.5 and stats.bytes[0] / stats.packets[0] > 2000
    assert router.router.counter("ip filter", "invalid") == 0


# One version of IP for each.
@pytest.mark.parametrize("family, kind", [
    ("ipv4", "vlan"), ("ipv6", "bridge_with_vlans"), ("ipv4", "gre"), ("ipv6", "vxlan"), ("ipv4", "wireguard"),
    ("ipv6", "pppoe")], indirect=["family"])
def test_large_tcp_segments_for_a_device_above_another(make_router, kind):
    """They are split below it, or for it, by the router."""
    if kind == "pppoe" and not devices.has_pppoe():
        pytest.skip("this kernel has no PPPoE: that of the flavour amd64 has")
    router = make_router(lan=offloading(link), wan=getattr(devices, kind))
    stream = conversation(router, Stream)
    there, back = (moved(router, lambda: stream.send(BULK, back)) for back in (False, True))
    for stats in there, back:
        assert stats.fast >= 0.9 * (stats.fast + sum(stats.slow.values())), stats.reasons()
    assert there.bytes[0] > len(BULK) * 0.5 and there.bytes[0] / there.packets[0] > 2000
    assert back.bytes[1] > len(BULK) * 0.5
    assert router.router.counter("ip filter", "invalid") == 0


@both
def test_large_tcp_segments_that_the_router_has_merged(make_router):
    router = make_router()
    for device in ("lan0", "wan0"):
        router.router.run("ethtool", "-K", device, "gro", "on")
    stream = conversation(router, Stream)
    stats = moved(router, lambda: both_ways(stream))
    assert stats.fast >= 0.9 * (stats.fast + sum(stats.slow.values())), stats.reasons()
    assert stats.bytes[0] / stats.packets[0] > 1600
    assert router.router.counter("ip filter", "invalid") == 0


@both
def test_datagrams_that_the_sender_gives_in_one(make_router):
    router = make_router(lan=offloading(link))
    datagrams = conversation(router, Datagrams)
    sent, received = [], []

    def run():
        for _ in range(COUNT):
            sent.extend(datagrams.send_in_one(8, 1000))
            received.extend(datagrams.receive(8))
    stats = moved(router, run)
    assert received == sent
    assert stats.packets[0] >= COUNT * 0.9, (stats.packets, stats.reasons())
    assert stats.bytes[0] / stats.packets[0] > 8000


@both
def test_datagrams_that_arrive_in_one(make_router):
    router = make_router(offloads=True)
    datagrams = conversation(router, Datagrams)
    datagrams.accept_in_one()
    whole = []

    def run():
        for _ in range(COUNT):
            sent = b"".join(datagrams.send_in_one(8, 1000))
            data, size = datagrams.receive_in_one()
            assert data == sent[:len(data)] and size == 1000
            while len(data) < len(sent):
                more, _ = datagrams.receive_in_one()
                data += more
            assert data == sent
            whole.append(size)
    stats = moved(router, run)
    assert stats.packets[0] >= COUNT * 0.9, (stats.packets, stats.reasons())
    assert stats.bytes[0] / stats.packets[0] > 8000


@both
@pytest.mark.parametrize("feature", ["rx-udp-gro-forwarding", "rx-gro-list"])
def test_datagrams_that_the_router_has_merged(make_router, feature):
    """Into a packet with room for all of them, or into a list of packets with headers of their own."""
    router = make_router()
    router.router.run("ethtool", "-K", "lan0", "gro", "on", feature, "on")
    datagrams = conversation(router, Datagrams)
    sink = Wire(router.wan, "eth0", outgoing=False)

    def run():
        for _ in range(COUNT):
            sent = datagrams.send_in_one(8, 1000)
            assert datagrams.receive(8) == sent

    def arrived():
        packets = sink.packets(source=router.WAN_GATEWAY, protocol=17, seconds=2)
        assert len(packets) == 8 * COUNT and all(is_whole(bytes(packet)) for packet in packets)
        return [hops_left(packet.payload) for packet in packets]
    stats = moved(router, run)
    assert stats.bytes[0] / stats.packets[0] > 2000, (stats.packets, stats.bytes, stats.reasons())
    fast = arrived()
    router.control.disable()
    run()
    slow = arrived()
    sink.close()
    # The kernel takes one from the first of a list only.
    assert fast == slow and 63 in fast


@both
def test_tcp_that_the_router_has_merged_into_a_list(make_router):
    router = make_router()
    for device in ("lan0", "wan0"):
        router.router.run("ethtool", "-K", device, "gro", "on", "rx-gro-list", "on")
    stream = conversation(router, Stream)
    stats = moved(router, lambda: both_ways(stream))
    assert stats.fast >= 0.9 * (stats.fast + sum(stats.slow.values())), stats.reasons()
    assert stats.bytes[0] / stats.packets[0] > 1600
    assert router.router.counter("ip filter", "invalid") == 0


@both
def test_large_segments_for_a_device_of_a_smaller_mtu(make_router):
    router = make_router(offloads=True)
    # A sample would be the first that is too large, on a slow machine.
    router.control.set(sample_interval=60_000)
    stream = conversation(router, Stream)
    router.router.ip("link", "set", "wan0", "mtu", SMALL_MTU)
    stats = moved(router, lambda: stream.send(BULK))
    # The router said so, and the sender made its segments smaller.
    assert stats.slow["mtu"] + stats.slow["stale-route"] >= 1, stats.reasons()
    stats = moved(router, lambda: stream.send(BULK))
    assert stats.packets[0] >= 0.9 * (stats.packets[0] + stats.slow["mtu"]) and stats.packets[0] > 20
    assert stats.slow["mtu"] == 0, stats.reasons()


# Checksums.


@both
@pytest.mark.parametrize("state, lan", [
    ("none", link),
    ("partial", offloading(link)),
    ("unnecessary", devices.wireguard),
    ("complete", devices.vxlan_with_checksum),
], ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("kind", [Datagrams, Stream])
def test_checksums_of_which_the_device_says(make_router, kind, state, lan):
    router = make_router(lan=lan)
    talk = conversation(router, kind)
    with contextlib.closing(Checksums("lan0", router.is_v6)) as checksums:
        stats = moved(router, lambda: talk.exchange(COUNT, size=301))
        counts = checksums.counts()
    mostly_fast(stats)
    assert counts.get(state, 0) >= COUNT * 0.9, counts


@both
def test_tags_that_are_in_the_packet_or_beside_it(make_router):
    """Either way packets reach the VLAN's device without, and leave with the one of the other VLAN."""
    router = make_router(lan=devices.vlan, wan=devices.qinq)
    talks = [conversation(router, kind) for kind in (Datagrams, Stream)]
    # What ethtool calls them is not what it calls them when it is told.
    features = {"txvlan": "tx-vlan-offload", "rxvlan": "rx-vlan-offload",
                "tx-vlan-stag-hw-insert": "tx-vlan-stag-hw-insert", "rx-vlan-stag-hw-parse": "rx-vlan-stag-hw-parse"}
    for wanted in ("off", "on"):
        for namespace, device in ((router.lan, "eth0p"), (router.router, "lan0p"),
                                  (router.router, "wan0p"), (router.wan, "eth0p")):
            namespace.run("ethtool", "-K", device, *(word for name in features for word in (name, wanted)))
            now = dict(re.findall(r"(\S+): (\w+)", namespace.run("ethtool", "-k", device)))
            assert {now[name] for name in features.values()} == {wanted}, now
        for talk in talks:
            mostly_fast(moved(router, lambda: talk.exchange(COUNT)))


TAGGED = """
    table netdev tagged {
        chain lan { type filter hook ingress device lan0 priority 0; vlan pcp 5 counter; }
        chain wan { type filter hook ingress device wan0 priority 0; vlan pcp 5 counter; }
    }
"""


@both
def test_tags_of_priority(make_router):
    """Some providers have them on every packet: of VLAN 0, which is none unless there is a device for it. They stay on
    the link."""
    router = make_router()
    router.router.nft(TAGGED)
    for namespace, feature in ((router.lan, "on"), (router.wan, "off")):
        namespace.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        namespace.run("tc", "filter", "add", "dev", "eth0", "egress", "protocol", "ipv6" if router.is_v6 else "ip",
                      "matchall", "action", "vlan", "push", "id", 0, "priority", 5)
        namespace.run("tc", "filter", "add", "dev", "eth0", "ingress", "protocol", "802.1Q", "matchall", "action", "drop")
        # Beside the packet, and in it.
        namespace.run("ethtool", "-K", "eth0", "txvlan", feature)
    datagrams, stream = [conversation(router, kind) for kind in (Datagrams, Stream)]
    for talk in datagrams, stream:
        mostly_fast(moved(router, lambda: talk.exchange(COUNT)))
    tagged = re.findall(r"packets (\d+)", router.router.run("nft", "list", "table", "netdev", "tagged"))
    assert len(tagged) == 2 and min(map(int, tagged)) >= 2 * COUNT, tagged
    router.router.ip("link", "add", "lan0.0", "link", "lan0", "type", "vlan", "id", 0)
    assert not datagrams.request(timeout=0.5)
    router.router.ip("link", "del", "lan0.0")
    datagrams.exchange(1)


@pytest.mark.parametrize("family", ["ipv4"], indirect=True)
def test_a_tag_of_priority_around_that_of_a_vlan(make_router):
    """It is left to the stack, which takes off both."""
    router = make_router()
    # So that there is a hook on the device.
    datagrams = conversation(router, Datagrams)
    mostly_fast(moved(router, lambda: datagrams.exchange(COUNT)))
    for namespace, device, address in ((router.lan, "eth0", "10.77.0.2/24"), (router.router, "lan0", "10.77.0.1/24")):
        namespace.ip("link", "add", "vlan7", "link", device, "type", "vlan", "id", 7)
        namespace.ip("link", "set", "vlan7", "up")
        namespace.ip("addr", "add", address, "dev", "vlan7")
    router.lan.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
    router.lan.run("tc", "filter", "add", "dev", "eth0", "egress", "protocol", "802.1Q", "matchall",
                   "action", "vlan", "push", "id", 0, "priority", 5)
    router.lan.run("ping", "-c", 3, "-i", 0.2, "-W", 2, "10.77.0.1")
    assert "Sent 0 " not in router.lan.run("tc", "-s", "filter", "show", "dev", "eth0", "egress")


# Packets that others have, too.


@both
def test_a_capture_shows_packets_as_they_arrived(router):
    router.control.enable()
    for device, incoming in (("lan0", True), ("wan0", False)):
        datagrams = conversation(router, Datagrams)
        wire = Wire(router.router, device, incoming=incoming, outgoing=not incoming)
        stats = moved(router, lambda: datagrams.exchange(COUNT))
        mostly_fast(stats)
        seen = wire.packets(destination=router.WAN, seconds=1)
        wire.close()
        assert len(seen) == COUNT
        # Before, or after, what the router does with them.
        source, ttl = (router.LAN, 64) if incoming else (router.WAN_GATEWAY, 63)
        assert all(packet.payload.src == source and hops_left(packet.payload) == ttl and is_whole(bytes(packet))
                   for packet in seen)
        datagrams.close()


@pytest.mark.parametrize("device", [None, "lan0"])
def test_a_socket_for_ip_packets(router, device):
    """DHCP clients have one. The IP layer goes on with a clone of each packet then."""
    another = router.router.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
    if device:
        another.bind((device, ETH_P_IP))
    router.control.enable()
    for kind in (Datagrams, Stream):
        talk = conversation(router, kind)
        mostly_fast(moved(router, lambda: talk.exchange(COUNT)))
        talk.close()
    another.close()


@both
def test_a_mirror_shows_packets_as_they_arrived(router):
    """A classifier on the ingress device sends a copy of everything to another device."""
    router.router.ip("link", "add", "mirror0", "type", "dummy")
    router.router.ip("link", "set", "mirror0", "up")
    router.router.run("tc", "qdisc", "add", "dev", "lan0", "clsact")
    router.router.run("tc", "filter", "add", "dev", "lan0", "ingress", "matchall",
                      "action", "mirred", "egress", "mirror", "dev", "mirror0")
    router.control.enable()
    for kind in (Datagrams, Stream):
        talk = conversation(router, kind)
        mirror = Wire(router.router, "mirror0")
        stats = moved(router, lambda: talk.exchange(COUNT))
        mostly_fast(stats)
        seen = mirror.packets(source=router.LAN, destination=router.WAN, seconds=1)
        mirror.close()
        assert len(seen) >= COUNT
        assert all(hops_left(packet.payload) == 64 and is_whole(bytes(packet)) for packet in seen)


@both
def test_packets_that_a_classifier_redirects_are_not_taken(router):
    """It has them arrive on another device, to which the fast path is attached as well, and where they have a flow."""
    router.router.ip("link", "add", "elsewhere", "type", "dummy")
    router.router.ip("link", "set", "elsewhere", "up")
    router.router.sysctl("net.ipv4.conf.elsewhere.rp_filter", 0)
    router.control.enable()
    datagrams = conversation(router, Datagrams)
    router.router.run("tc", "qdisc", "add", "dev", "lan0", "clsact")
    router.router.run("tc", "filter", "add", "dev", "lan0", "ingress", "matchall",
                      "action", "mirred", "ingress", "redirect", "dev", "elsewhere")
    datagrams.warm_up()
    stats = moved(router, lambda: datagrams.exchange(COUNT))
    elsewhere = router.router.index("elsewhere")
    assert router.control.flows(**{"in-ifindex": elsewhere, "reply": 0})
    assert stats.packets[0] == 0
    assert stats.slow["unsupported"] == COUNT, stats.reasons()
    assert stats.packets[1] >= COUNT * 0.9, (stats.packets, stats.reasons())


@both
def test_packets_with_more_than_one_owner(router):
    """The kernel's packet generator keeps a hold of those that it has a device receive."""
    router.control.enable()
    datagrams = conversation(router, Datagrams)
    sink = Wire(router.wan, "eth0", outgoing=False)
    address, port = datagrams.source
    generator = router.until_removed(Generator(
        router.router, "lan0", address, router.WAN, (router.lan.mac("eth0"), router.router.mac("lan0")),
        way="netif_receive"))
    before = router.control.stats()
    generator.send(COUNT, range(port, port + 1), range(7, 8))
    stats = router.control.stats() - before
    assert stats.fast == 0
    assert stats.slow["unsupported"] == COUNT, stats.reasons()
    arrived = sink.packets(source=router.WAN_GATEWAY, protocol=17, seconds=2)
    sink.close()
    assert len(arrived) == COUNT and all(hops_left(packet.payload) < 64 for packet in arrived)
    datagrams.receive(COUNT, timeout=0.5)
    mostly_fast(moved(router, lambda: datagrams.exchange(COUNT)))


# Room for headers.


@pytest.mark.parametrize("wan", ["gre", "vxlan", "wireguard", "qinq"])
# All there are for one of both.
@pytest.mark.parametrize("family, lan", [("ipv4", "link"), ("ipv4", "tap"), ("ipv4", "tun"), ("ipv6", "tun")],
                         indirect=["family"])
def test_devices_that_need_more_room_for_their_headers(make_router, lan, wan):
    router = make_router(lan=getattr(devices, lan), wan=getattr(devices, wan))
    for kind in (Datagrams, Stream):
        talk = conversation(router, kind)
        for size in (40, 1300):
            mostly_fast(moved(router, lambda: talk.exchange(COUNT, size=size)))


# What the router answers itself.


def answers(router, wire, run):
    """The ICMP messages that a run brings the sender: the message's fixed part and what it quotes, without
    what differs from packet to packet."""
    wire.packets(seconds=0.1)
    run()
    found = []
    for packet in wire.packets(protocol=58 if router.is_v6 else 1, seconds=1):
        answer, message = packet.payload, bytes(packet.payload)[router.header:]
        quoted = type(answer)(message[8:])
        length = quoted.plen if router.is_v6 else quoted.len
        found.append((answer.src, answer.dst, hops_left(answer), message[:2], message[4:8],
                      quoted.src, quoted.dst, hops_left(quoted), length, bytes(quoted.payload)[:6]))
    return found


def too_large(router, datagrams):
    router.router.ip("link", "set", "wan0", "mtu", SMALL_MTU)
    datagrams.set_probing()
    return 1300


def last_hop(router, datagrams):
    datagrams.set_ttl(1)
    return 32


@both
@pytest.mark.parametrize("offence", [too_large, last_hop])
def test_the_router_answers_as_without(make_router, offence):
    router = make_router()
    # All are answered, for it is compared.
    if router.is_v6:
        router.router.sysctl("net.ipv6.icmp.ratelimit", 0)
    else:
        router.router.sysctl("net.ipv4.icmp_ratemask", 0)
    datagrams = conversation(router, Datagrams)
    size = offence(router, datagrams)
    wire = Wire(router.lan, "eth0", outgoing=False)

    def run():
        for _ in range(5):
            datagrams.probe(size)
            time.sleep(0.1)
    # None of the five is a sample.
    router.control.set(sample_interval=60_000)
    # A new MTU is a change that packets which do arrive tell of.
    datagrams.set_ttl(64)
    datagrams.exchange(3)
    offence(router, datagrams)
    before = router.control.stats()
    fast = answers(router, wire, run)
    stats = router.control.stats() - before
    assert stats.packets[0] == 0
    assert stats.slow["mtu" if offence is too_large else "ttl"] >= 4, stats.reasons()
    router.control.disable()
    slow = answers(router, wire, run)
    wire.close()
    assert len(slow) == 5 and fast == slow


# Paths that become narrower.


def fares(router, datagrams, size):
    """How a datagram of a size fares: what the statistics say, and whether it arrives."""
    before = router.control.stats()
    sent = datagrams.probe(size)
    arrived = datagrams.receive(1, timeout=0.5) == [sent]
    return router.control.stats() - before, arrived


def too_large_by_now(router, datagrams, size):
    """None of a few datagrams of a size passes, and each is slow for that."""
    for _ in range(3):
        stats, arrived = fares(router, datagrams, size)
        assert not arrived and stats.packets[0] == 0, stats.reasons()
        # The sample may be due; a smaller one comes out again.
        assert stats.slow["mtu"] + stats.slow["sampled"] == 1, stats.reasons()
        datagrams.probe(100)
        assert datagrams.receive(1)


def small_ones_are_fast(router, datagrams):
    datagrams.probe(32)
    assert datagrams.receive(1)
    mostly_fast(moved(router, lambda: datagrams.exchange(COUNT)))


@both
@pytest.mark.parametrize("lock", [(), ("lock",)], ids=["", "locked"])
def test_a_route_that_gets_an_mtu(make_router, lock):
    """IPv6 takes it for one that counts for what is forwarded only if it is locked."""
    router = make_router()
    datagrams = conversation(router, Datagrams)
    datagrams.set_probing()
    route = (router.address("192.0.2.0/24"), "dev", "wan0", "proto", "kernel",
             *(("metric", 256) if router.is_v6 else ("scope", "link", "src", router.WAN_GATEWAY)))
    _, arrived = fares(router, datagrams, 1400)
    assert arrived
    router.router.ip("route", "replace", *route, "mtu", *lock, 1300)
    datagrams.exchange(3)
    if lock or not router.is_v6:
        too_large_by_now(router, datagrams, 1400)
    else:
        mostly_fast(moved(router, lambda: datagrams.exchange(COUNT, size=1400)))
    small_ones_are_fast(router, datagrams)
    router.router.ip("route", "replace", *route)
    datagrams.exchange(3)
    mostly_fast(moved(router, lambda: datagrams.exchange(COUNT, size=1400)))


# IPv6 has no such configuration.
@pytest.mark.parametrize("family, use_it", [("ipv4", 0), ("ipv4", 1), ("ipv6", 0)], indirect=["family"])
def test_an_mtu_that_the_router_has_learned(make_router, use_it):
    """What a host on the way has told the router counts for what it forwards only if it is configured so."""
    router = make_router()
    if not router.is_v6:
        router.router.sysctl("net.ipv4.ip_forward_use_pmtu", use_it)
    datagrams = conversation(router, Datagrams)
    datagrams.set_probing()
    _, arrived = fares(router, datagrams, 1400)
    assert arrived
    asked = router.until_removed(router.router.socket(family_of(router.WAN), socket.SOCK_DGRAM))
    asked.connect((router.WAN, 9))
    asked.send(b"x")
    wire = Wire(router.wan, "eth0")
    wire.put(Ether(src=router.wan.mac("eth0"), dst=router.router.mac("wan0"))
             / router.ip_header(src=router.WAN, dst=router.WAN_GATEWAY)
             / (ICMPv6PacketTooBig(mtu=1300) if router.is_v6 else ICMP(type=3, code=4, nexthopmtu=1300))
             / (IPv6(src=router.WAN_GATEWAY, dst=router.WAN, nh=17, plen=1380) if router.is_v6 else
                IP(src=router.WAN_GATEWAY, dst=router.WAN, proto=17, len=1400, flags="DF"))
             / UDP(sport=asked.getsockname()[1], dport=9, len=1380, chksum=0))
    wire.close()
    wait_until(lambda: "mtu 1300" in router.router.ip("route", "get", router.WAN))
    datagrams.exchange(3)
    if use_it:
        too_large_by_now(router, datagrams, 1400)
        small_ones_are_fast(router, datagrams)
    else:
        mostly_fast(moved(router, lambda: datagrams.exchange(COUNT, size=1400)))


@both
def test_a_path_that_becomes_narrower_behind_nat(make_router):
    """A router further on tells the sender, of whom it knows the address that NAT has given him. He is told as on the
    slow path, about the packet that he has sent; and what he sends then is fast."""
    router = make_router()
    router.control.disable()
    narrow = router.address("192.0.2.77")
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.set_probing()
    wan = router.until_removed(Wire(router.wan, "eth0"))
    lan = router.until_removed(Wire(router.lan, "eth0", outgoing=False))

    def told():
        """What the sender is told about a packet of his."""
        wan.packets(seconds=0.1)
        datagrams.probe(1400)
        assert datagrams.receive(1)
        too_large = wan.packets(destination=router.WAN, protocol=17, seconds=0.1)[0].payload
        assert too_large.src == router.WAN_GATEWAY
        message = (Ether(src=router.wan.mac("eth0"), dst=router.router.mac("wan0"))
                   / router.ip_header(src=narrow, dst=router.WAN_GATEWAY)
                   / (ICMPv6PacketTooBig(mtu=1300) if router.is_v6 else ICMP(type=3, code=4, nexthopmtu=1300))
                   / bytes(too_large)[:router.header + 8])
        answer, = answers(router, lan, lambda: wan.put(message))
        # What the socket is told it tells with the next one otherwise.
        datagrams.probe(32)
        assert datagrams.receive(1)
        return answer

    datagrams.exchange(3)
    slow = told()
    assert slow[0] == narrow and slow[1] == router.LAN and slow[5:7] == (router.LAN, router.WAN)
    assert slow[4][2:] == (1300).to_bytes(2) and slow[9][:2] == datagrams.source[1].to_bytes(2)
    router.control.enable(sample_interval=60_000)
    datagrams.warm_up()
    known = {flow["id"] for flow in router.control.flows()}
    before = router.control.stats()
    assert told() == slow
    assert (router.control.stats() - before).packets[0] == 2
    mostly_fast(moved(router, lambda: datagrams.exchange(COUNT, size=1200)))
    assert {flow["id"] for flow in router.control.flows()} == known


# Fragments among whole packets.


@both
def test_fragments_do_not_keep_whole_packets_from_being_fast(make_router):
    router = make_router()
    datagrams = conversation(router, Datagrams)
    datagrams.set_do_not_fragment(False)

    def run():
        for _ in range(COUNT // 3):
            datagrams.exchange(1, size=3000)
            datagrams.exchange(9, size=600)
    stats = moved(router, run)
    assert stats.slow["fragment"] == 2 * (COUNT // 3), stats.reasons()
    mostly_fast(stats, COUNT // 3 * 9 * 0.9)
