# SPDX-License-Identifier: GPL-2.0
"""IPsec flows on the fast path do what they do on the slow path: in tunnels of every kind, of either version of IP,
and from one to another; headers, figures, limits, path MTU and large packets included."""

import contextlib
import re
import socket
import time

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether

from lab import leaks
from lab.branches import HUB, INNER, Branches
from lab.site import Expirations, Questions, ipsec_counters
from lab.traffic import Datagrams, Stream, Wire, is_whole, protocol_in

COUNT = 10
FAMILIES = ("ipv4", "ipv6")
#: Who looks at no connection has none counted.
TRACKING = """
    table inet tracking {
        chain forward { type filter hook forward priority 0; ct state invalid drop; }
    }
"""
MASQUERADE = """
    table inet nat {
        chain postrouting {
            type nat hook postrouting priority srcnat;
            oifname "tunnel*" snat ip to 10.1.0.77
            oifname "tunnel*" snat ip6 to fd00:1::77
        }
    }
"""


@pytest.fixture
def make_branches():
    made = []

    def make(*arguments, **options):
        made.append(Branches(*arguments, **options))
        return made[-1]

    yield make
    for branches in made:
        branches.remove()


def accelerate(branches):
    """Without samples among the packets that are counted."""
    branches.control.enable(ipsec="accelerate", sample_interval=60_000)


def datagrams_to(branches, number=2, family="ipv4", port=7):
    """From the LAN to a branch."""
    address = branches.host(number, family)
    return branches.until_removed(
        Datagrams(branches.lan, branches.branches[number], address, port, listen=(address, port)))


def stream_to(branches, family, port=80):
    """From the LAN to branch 2."""
    address = branches.host(2, family)
    return branches.until_removed(
        Stream(branches.lan, branches.branches[2], address, port, listen=(address, port)))


def becomes_fast(branches, talk, run=None):
    """Both directions are fast, after a while; in transport mode it is the one that is sent."""
    run = run or (lambda: talk.exchange(5))
    ways, slow = (1, {"ipsec"}) if "transport" in branches.kinds.values() else (2, set())
    deadline = time.monotonic() + 20
    while True:
        before = branches.control.stats()
        run()
        after = branches.control.stats() - before
        if min(after.packets[:ways]) >= 5 and set(after.reasons()) <= slow:
            return
        assert time.monotonic() < deadline, (after.packets, after.reasons())
        time.sleep(0.1)


def moved(branches, run):
    """What a run adds to the figures of the hub's states."""
    before = branches.figures()
    run()
    after = branches.figures()
    return {state: tuple(now - then for now, then in zip(after[state], before[state])) for state in after}


def accounted(branches, run):
    """What a run adds to what conntrack counts of the hub's datagrams: packets and bytes of each direction, by version
    of IP; and to the figures of its states."""
    def now():
        return [int(count) for family in FAMILIES
                for pair in re.findall(r"packets=(\d+) bytes=(\d+)", branches.hub.run("conntrack", "-L", "-f", family, "-p", "udp"))
                for count in pair]
    before = now()
    figures = moved(branches, run)
    after = now()
    assert len(after) == len(before)
    return [later - then for later, then in zip(after, before)], figures


def other_than_esp(frames):
    """Those that are something else, also in UDP."""
    return [frame for frame in frames if protocol_in(frame) != socket.IPPROTO_ESP and not is_encapsulated(frame)]


def is_encapsulated(frame):
    """Whether it is ESP in UDP, whose number is not 0 (RFC 3948, section 2)."""
    at = 54 if frame[12:14] == b"\x86\xdd" else 34
    return (protocol_in(frame) == socket.IPPROTO_UDP and frame[at:at + 4] == 2 * (4500).to_bytes(2)
            and frame[at + 8:at + 12] != bytes(4))


# Every kind of tunnel.


@pytest.mark.parametrize("outer", FAMILIES)
@pytest.mark.parametrize("kind", ["policy", "interface", "vti"])
def test_both_directions_are_fast(make_branches, kind, outer):
    branches = make_branches(kind, outer)
    branches.hub.sysctl("net.netfilter.nf_conntrack_acct", 1)
    branches.hub.nft(TRACKING)
    talks = [datagrams_to(branches, family=family) for family in FAMILIES]

    def run():
        for talk in talks:
            talk.exchange(COUNT)
            talk.exchange(COUNT, size=700)
    run()
    slow = counts, figures_of = accounted(branches, run)
    assert counts[::2] == 4 * [2 * COUNT]
    assert sum(figures[1] for figures in figures_of.values()) == 2 * 2 * 2 * COUNT
    excluded(branches, talks)
    accelerate(branches)
    for talk in talks:
        becomes_fast(branches, talk)
    wire = branches.wire()
    before = branches.control.stats()
    assert accounted(branches, run) == slow
    after = branches.control.stats() - before
    assert after.packets == (4 * COUNT, 4 * COUNT), after.reasons()
    frames = wire.frames()
    leaks.none(other_than_esp(frames))
    assert len(frames) == 8 * COUNT
    for family in FAMILIES:
        stream = stream_to(branches, family)
        becomes_fast(branches, stream)
        before = branches.control.stats()
        for _ in range(2):
            stream.send(b"there" * 20_000)
            stream.send(b"back!" * 20_000, back=True)
        after = branches.control.stats() - before
        # In bytes, as one packet may be many that arrived at once.
        assert min(after.bytes) >= 100_000, (family, after.bytes, after.packets, after.reasons())
        # At first neither the hosts nor the hub's routes know what fits into the tunnel.
        assert set(after.reasons()) <= {"mtu", "stale-route"}, (family, after.packets, after.reasons())
    leaks.none(other_than_esp(wire.frames()))


def excluded(branches, talks):
    """Nothing of a tunnel is fast unless that is asked for, also what is given to an interface and does not show yet
    that it will be encrypted, and what a VTI gives, which keeps no record of having decrypted it. No rules are there."""
    branches.control.enable(sample_interval=60_000)
    for _ in range(4):
        for talk in talks:
            talk.exchange(2)
        # The devices are attached after the first packets asked for it.
        time.sleep(0.15)
    for talk in talks:
        before = branches.control.stats()
        talk.exchange(COUNT)
        after = branches.control.stats() - before
        assert after.packets == (0, 0) and after.reasons() == {"ipsec": 2 * COUNT}, (after.packets, after.reasons())
    assert not branches.control.flows()


def in_a_vrf(branches):
    """Has the hub's LAN and the interface to branch 2 be in a VRF, of which the table alone leads there. What is around
    the packets is routed without it."""
    branches.hub.ip_batch([
        "link add vrf0 type vrf table 10", "link set vrf0 up",
        *(f"link set {device} master vrf0" for device in ("lan0", "tunnel2")),
        *(f"route add {words['net'].format(2)} dev tunnel2 table 10" for words in INNER.values())])
    for option in ("-4", "-6"):
        assert "tunnel2" not in branches.hub.ip(option, "route", "show", "table", "main")


@pytest.mark.parametrize("outer", FAMILIES)
def test_an_interface_in_a_vrf(make_branches, outer):
    """It is as outside of one, until it leaves it: then its routes are not those of the LAN any more."""
    branches = make_branches("interface", outer)
    in_a_vrf(branches)
    branches.hub.sysctl("net.netfilter.nf_conntrack_acct", 1)
    branches.hub.nft(TRACKING)
    wire = branches.wire()
    talks = [datagrams_to(branches, family=family) for family in FAMILIES]

    def run():
        for talk in talks:
            talk.exchange(COUNT)
    run()
    slow = counts, _ = accounted(branches, run)
    assert counts[::2] == 4 * [COUNT]
    excluded(branches, talks)
    accelerate(branches)
    for talk in talks:
        becomes_fast(branches, talk)
    leaks.none(other_than_esp(wire.frames()))
    before = branches.control.stats()
    assert accounted(branches, run) == slow
    after = branches.control.stats() - before
    assert after.packets == (2 * COUNT, 2 * COUNT), after.reasons()
    frames = wire.frames()
    leaks.none(other_than_esp(frames))
    assert len(frames) == 4 * COUNT
    for family in FAMILIES:
        stream = stream_to(branches, family)
        becomes_fast(branches, stream)
    for talk in talks:
        becomes_fast(branches, talk)
    branches.hub.ip("link", "set", "tunnel2", "nomaster")
    leaks.none(other_than_esp(wire.frames()))
    before = branches.control.stats()
    for talk in talks:
        for _ in range(COUNT):
            # It may be told that there is no route.
            with contextlib.suppress(OSError):
                talk.send()
    frames = wire.frames()
    leaks.none(other_than_esp(frames))
    assert not frames
    assert (branches.control.stats() - before).packets == (0, 0)


def twins(branches, source, destination, ports):
    """In clear, as from the WAN: packets with the addresses and ports of those of a branch for another one."""
    around = Ether(src=branches.branches[source].mac("eth0"), dst=branches.hub.mac("wan0"))
    for family, ip in zip(FAMILIES, (IP, IPv6)):
        packet = around / ip(src=branches.host(source, family), dst=branches.host(destination, family))
        for number in range(COUNT):
            yield packet / UDP(sport=ports[0], dport=ports[1]) / number.to_bytes(32)


def let_in(branches, wire):
    """Has clear-text twins of what comes by the tunnels that are by policy arrive: none goes on to the other branch.
    Gives what IPsec counts of them. Beside an interface or a VTI no policy is for them here."""
    counted, ports = [], {2: (7001, 7), 3: (7, 7001)}
    expected = {"secpath-mismatch": 2 * COUNT} if branches.control.config()["enabled"] else {}
    for source, destination in ((2, 3), (3, 2)):
        if branches.kinds[source] != "policy":
            continue
        frames = [bytes(frame) for frame in twins(branches, source, destination, ports[source])]
        leaks.none(other_than_esp(wire.frames(0.05)))
        before, stats = ipsec_counters(branches.hub), branches.control.stats()
        for frame in frames:
            wire.put(frame)
        leaks.none(wire.frames(0.1))
        after = branches.control.stats() - stats
        assert after.fast == 0 and after.reasons() == expected, (after.packets, after.reasons())
        counted.append({name: count - before[name] for name, count in ipsec_counters(branches.hub).items()
                        if count != before[name]})
        assert sum(counted[-1].values()) == len(frames), counted
    return counted


@pytest.mark.parametrize("outer", FAMILIES)
@pytest.mark.parametrize("kinds", [
    ("policy", "policy"), ("interface", "interface"), ("vti", "vti"),
    ("policy", "interface"), ("interface", "vti"), ("vti", "policy"),
], ids="-".join)
def test_from_one_tunnel_to_another(make_branches, kinds, outer):
    """And nothing that came in clear goes on into the other one as if it had come by the first."""
    branches = make_branches(kinds, outer)
    client, server = branches.branches[2], branches.branches[3]
    talks = []
    for family in FAMILIES:
        address = branches.host(3, family)
        talks.append(branches.until_removed(Datagrams(client, server, address, source=(branches.host(2, family), 7001),
                                                      listen=(address, 7))))

    def run():
        for talk in talks:
            talk.exchange(COUNT)
    wire = branches.wire()
    run()
    slow = moved(branches, run)
    assert [figures[1] for figures in slow.values()] == [2 * COUNT] * 4
    refused = let_in(branches, wire)
    excluded(branches, talks)
    accelerate(branches)
    for talk in talks:
        becomes_fast(branches, talk)
    leaks.none(other_than_esp(wire.frames()))
    before = branches.control.stats()
    assert moved(branches, run) == slow
    after = branches.control.stats() - before
    assert after.packets == (2 * COUNT, 2 * COUNT), after.reasons()
    frames = wire.frames()
    leaks.none(other_than_esp(frames))
    assert len(frames) == 8 * COUNT
    assert let_in(branches, wire) == refused
    # All goes on.
    for talk in talks:
        becomes_fast(branches, talk)


# What is around the packets.


def outer_headers(branches, wire, talk):
    """What the headers around a few requests have in common, without what is different in each."""
    wire.frames(0.02)
    for _ in range(3):
        assert talk.request(size=100)
    found = set()
    # What has arrived has passed it.
    for packet in map(Ether, wire.frames(0.02)):
        ip = packet.payload
        if ip.src != branches.address(HUB):
            continue
        if ip.version == 4:
            found.add((ip.version, ip.ihl, ip.tos, ip.len, int(ip.flags), ip.frag, ip.ttl, ip.proto))
        else:
            found.add((ip.version, ip.tc, ip.fl, ip.plen, ip.hlim, ip.nh))
    assert len(found) == 1, found
    return found


OPTIONS = {
    "none": (),
    "no ECN": ("flag", "noecn", "flag", "af-unspec"),
    "no DSCP": ("extra-flag", "dont-encap-dscp"),
    "may be fragmented": ("flag", "nopmtudisc", "flag", "af-unspec"),
    "a mark": ("output-mark", "0x55"),
}


@pytest.mark.parametrize("kind, outer", [
    ("policy", "ipv4"), ("policy", "ipv6"), ("interface", "ipv6"), ("vti", "ipv4"), ("encapsulated", "ipv4")])
def test_outer_headers_and_marks_are_those_of_the_slow_path(make_branches, kind, outer):
    branches = make_branches(kind, outer)
    branches.hub.nft("""
        table netdev seen {
            counter marked { }
            chain wan { type filter hook egress device "wan0" priority 0; meta mark 0x55 counter name marked; }
        }
    """)
    expedited_and_ecn = 0xba
    talks = [datagrams_to(branches, family=family) for family in FAMILIES]
    wire = branches.wire()
    branches.control.enable(sample_interval=60_000)
    for talk in talks:
        talk.set_tos(expedited_and_ecn)
    seen = {}
    for generation, (name, options) in enumerate(OPTIONS.items(), 1):
        branches.states(2, generation=generation, out=options)
        branches.states(2, generation=generation - 1, verb="delete")
        found = []
        for mode in ("exclude", "accelerate"):
            branches.control.set(ipsec=mode)
            for talk in talks:
                talk.exchange(1)
                if mode == "accelerate":
                    becomes_fast(branches, talk)
            before, marked = branches.control.stats(), branches.hub.counter("netdev seen", "marked")
            found.append([outer_headers(branches, wire, talk) for talk in talks])
            assert (branches.control.stats() - before).packets[0] == (6 if mode == "accelerate" else 0)
            found[-1].append(branches.hub.counter("netdev seen", "marked") - marked)
        assert found[0] == found[1], name
        seen[name] = found[0]
    # It does make a difference.
    assert seen["none"] != seen["no ECN"] and seen["none"] != seen["no DSCP"]
    assert [header[-1] for header in seen.values()] == [0, 0, 0, 0, 6]
    if outer == "ipv4":
        assert seen["none"] != seen["may be fragmented"]


#: What a rule gives to what the LAN host sends, and what of that is on the packets that leave by the WAN.
CLASSES = """
    table inet classes {
        chain forward {
            type filter hook forward priority 0;
            iifname "lan0" meta mark set 0x33 meta priority set 1:2
            iifname "lan0" ip dscp set af21
            iifname "lan0" ip6 dscp set af21
        }
    }
    table netdev seen {
        counter encrypted { }
        counter with_mark { }
        counter with_priority { }
        counter with_dscp { }
        chain wan {
            type filter hook egress device "wan0" priority 0;
            meta l4proto != { udp, esp } accept
            counter name encrypted
            meta mark 0x33 counter name with_mark
            meta priority 1:2 counter name with_priority
            ip dscp af21 counter name with_dscp
            ip6 dscp af21 counter name with_dscp
        }
    }
"""


def counters(space, table):
    """What the named counters of a table have counted, in packets."""
    text = space.run("nft", "list", "counters", "table", *table.split())
    return {name: int(count) for name, count in re.findall(r"counter (\w+) {\s*packets (\d+)", text)}


@pytest.mark.parametrize("kind, outer", [
    ("policy", "ipv4"), ("interface", "ipv6"), ("vti", "ipv4"), ("encapsulated", "ipv4"), ("transport", "ipv4"),
    ("transport", "ipv6")])
def test_a_mark_a_priority_and_a_dscp_that_rules_set_are_on_what_is_encrypted(make_branches, kind, outer):
    """Each packet that leaves for the branch has them, slow or fast."""
    branches = make_branches(kind, outer)
    branches.hub.nft(CLASSES)
    talks = [datagrams_to(branches, family=family) for family in ([outer] if kind == "transport" else FAMILIES)]
    sent = COUNT * len(talks)
    wire = branches.wire()
    for mode in ("exclude", "accelerate"):
        branches.control.enable(ipsec=mode, sample_interval=60_000)
        for talk in talks:
            talk.exchange(1)
            if mode == "accelerate":
                becomes_fast(branches, talk)
        before, stats = counters(branches.hub, "netdev seen"), branches.control.stats()
        for talk in talks:
            talk.exchange(COUNT)
        after = branches.control.stats() - stats
        assert after.packets[0] == (sent if mode == "accelerate" else 0), (mode, after.packets, after.reasons())
        found = {name: count - before[name] for name, count in counters(branches.hub, "netdev seen").items()}
        assert found == dict.fromkeys(("encrypted", "with_mark", "with_priority", "with_dscp"), sent), mode
    leaks.none(other_than_esp(wire.frames()))


#: What comes from the branch meets it on the WAN.
CONGESTION = """
    table netdev congestion {
        chain branch { type filter hook ingress device "port2" priority 0; ip ecn set ce; ip6 ecn set ce; }
    }
"""


@pytest.mark.parametrize("kind, outer", [
    ("policy", "ipv4"), ("policy", "ipv6"), ("interface", "ipv6"), ("vti", "ipv4"), ("encapsulated", "ipv4"),
    ("encapsulated", "ipv6")])
def test_congestion_that_a_tunnel_met_is_passed_on(make_branches, kind, outer):
    """What is marked on the way is marked inside, too, as on the slow path, also of a flow that was learned before."""
    branches = make_branches(kind, outer)
    talks = [datagrams_to(branches, family=family) for family in FAMILIES]
    capable, met = 0x02, 0x03
    lan = branches.until_removed(Wire(branches.lan, "eth0", outgoing=False))
    for talk in talks:
        talk.set_tos(capable, back=True)
    for mode in ("exclude", "accelerate"):
        branches.control.enable(ipsec=mode, sample_interval=60_000)
        for talk in talks:
            talk.exchange(1)
            if mode == "accelerate":
                becomes_fast(branches, talk)
        for expected in (capable, met):
            if expected == met:
                branches.wan.nft(CONGESTION)
            lan.frames(0.02)
            before = branches.control.stats()
            for talk in talks:
                talk.exchange(3)
            after = branches.control.stats() - before
            assert after.packets[1] == (6 if mode == "accelerate" else 0), (mode, after.packets, after.reasons())
            arrived = [packet.payload for packet in lan.packets(seconds=0.02)]
            assert [ip.tos if ip.version == 4 else ip.tc for ip in arrived] == 6 * [expected], mode
        branches.wan.run("nft", "delete", "table", "netdev", "congestion")


# What a path takes.

#: What the WAN takes from some moment on: near the least that each version of IP inside has to be given.
LOWERED = {"ipv4": 1280, "ipv6": 1400}
#: Of a datagram, inside.
HEADERS = {"ipv4": 28, "ipv6": 48}


def too_large(branches, packet, mtu):
    """What a router on the WAN says of a packet that the hub has sent."""
    if branches.outer == "ipv6":
        return (IPv6(src=branches.address(2), dst=branches.address(HUB))
                / ICMPv6PacketTooBig(mtu=mtu) / bytes(packet)[:1000])
    return (IP(src=branches.address(2), dst=branches.address(HUB))
            / ICMP(type=3, code=4, nexthopmtu=mtu) / bytes(packet)[:28])


def told_mtu(branches, address):
    """What the LAN host knows of the path."""
    words = branches.lan.ip("route", "get", address).split()
    return int(words[words.index("mtu") + 1]) if "mtu" in words else None


def answers(lan):
    """What has been said on the LAN of packets that are too large: by whom, to whom, the MTU, and of what."""
    found = set()
    for packet in lan.packets(seconds=0.1):
        ip, message = packet.payload, packet.payload.payload
        if ICMPv6PacketTooBig in packet:
            mtu = message.mtu
        elif ICMP in packet and (message.type, message.code) == (3, 4):
            mtu = message.nexthopmtu
        else:
            continue
        of = message.payload
        found.add((ip.src, ip.dst, mtu, of.src, of.dst, of.payload.sport, of.payload.dport))
    return found


def passes(talk, size):
    """Whether a datagram of a size arrives."""
    sent, behind = talk.probe(size), talk.probe(32)
    arrived = []
    while behind not in arrived:
        arrived += talk.receive(1) or pytest.fail("a small datagram was lost")
    return sent in arrived


def narrow(branches, wire, talk):
    """A router on the WAN says of the next packet what it does not take any more."""
    wire.frames(0.05)
    assert talk.request(size=1300)
    encrypted = next(frame for frame in wire.frames(0.3) if len(frame) > 1300)
    wire.put(Ether(src=branches.branches[2].mac("eth0"), dst=branches.hub.mac("wan0"))
             / too_large(branches, Ether(encrypted).payload, branches.lowered))
    time.sleep(0.2)


@pytest.mark.parametrize("kind, outer, inner, masquerade", [
    ("policy", "ipv4", "ipv4", False), ("policy", "ipv6", "ipv4", False), ("interface", "ipv4", "ipv4", False),
    ("interface", "ipv6", "ipv4", True), ("vti", "ipv4", "ipv4", True), ("vti", "ipv6", "ipv4", False),
    ("policy", "ipv4", "ipv6", False), ("policy", "ipv6", "ipv6", False), ("interface", "ipv4", "ipv6", False),
    ("interface", "ipv6", "ipv6", True), ("vti", "ipv6", "ipv6", False), ("encapsulated", "ipv4", "ipv4", False),
    ("encapsulated", "ipv6", "ipv6", False)])
def test_a_path_mtu_that_the_wan_lowers(make_branches, kind, outer, inner, masquerade):
    """The LAN host is told what the tunnel takes from now on, as without fasttrack: by the same router, the same
    size, which passes; one byte more does not."""
    branches = make_branches(kind, outer)
    branches.lowered = LOWERED[inner]
    # Else a packet that is too large now and then remains without an answer.
    branches.hub.sysctl("net.ipv4.icmp_ratemask", 0)
    branches.hub.sysctl("net.ipv6.icmp.ratelimit", 0)
    if masquerade:
        branches.hub.nft(MASQUERADE)
    talk = datagrams_to(branches, family=inner)
    talk.set_probing()
    lan, wire = (branches.until_removed(Wire(branches.lan, "eth0", outgoing=False)), branches.wire())
    address = branches.host(2, inner)
    found = []
    for accelerated in (False, True):
        for space in (branches.lan, branches.hub):
            for option in ("-4", "-6"):
                space.ip(option, "route", "flush", "cache")
        if accelerated:
            accelerate(branches)
            becomes_fast(branches, talk)
        assert talk.request(size=1300) and told_mtu(branches, address) is None
        before = branches.control.stats()
        lan.frames(0.05)
        narrow(branches, wire, talk)
        assert (branches.control.stats() - before).packets[0] == accelerated
        wire.frames(0.05)
        # At first it may be the hub that finds it out.
        tries = [passes(talk, 1300) for _ in range(4)]
        said, mtu = answers(lan), told_mtu(branches, address)
        assert said and mtu, (tries, said, mtu)
        if accelerated:
            becomes_fast(branches, talk, lambda: talk.exchange(5, size=800))
        before = branches.control.stats()
        at_the_edge = [passes(talk, mtu - HEADERS[inner] + more) for more in (0, 1)]
        after = branches.control.stats() - before
        # The one that is too large may be refused only by what it is given to.
        assert after.packets[0] in ((3, 4) if accelerated else (0,)), (after.packets, after.reasons())
        # Nothing larger has left.
        assert all(len(frame) <= 14 + branches.lowered for frame in wire.frames(0.1))
        found.append((tries, said, mtu, at_the_edge))
    assert found[0] == found[1]
    assert at_the_edge == [True, False] and not any(tries)


@pytest.mark.parametrize("kind, outer, inner", [
    ("policy", "ipv4", "ipv4"), ("policy", "ipv6", "ipv6"), ("interface", "ipv4", "ipv6"),
    ("interface", "ipv6", "ipv4")])
def test_the_mtu_of_the_wan_changed(make_branches, kind, outer, inner):
    """By the administrator. What the LAN host is told, and what passes, is as without fasttrack; and when it is as it
    was all passes again."""
    branches = make_branches(kind, outer)
    branches.hub.sysctl("net.ipv4.icmp_ratemask", 0)
    branches.hub.sysctl("net.ipv6.icmp.ratelimit", 0)
    talk = datagrams_to(branches, family=inner)
    talk.set_probing()
    lan, wire = branches.until_removed(Wire(branches.lan, "eth0", outgoing=False)), branches.wire()
    # No multiple of anything that packets are padded to.
    mtu = LOWERED[inner] + 3
    found = []
    for accelerated in (False, True):
        if accelerated:
            accelerate(branches)
            becomes_fast(branches, talk, lambda: talk.exchange(5, size=1300))
        assert passes(talk, 1300)
        branches.hub.ip("link", "set", "wan0", "mtu", mtu)
        lan.frames(0.05)
        wire.frames(0.05)
        # What is too large at first is found out by the interface, and then by the hub.
        tries = [passes(talk, 1300) for _ in range(4)]
        said, told = answers(lan), told_mtu(branches, branches.host(2, inner))
        assert said and told, (tries, said, told)
        if accelerated:
            becomes_fast(branches, talk, lambda: talk.exchange(5, size=800))
        before = branches.control.stats()
        at_the_edge = [passes(talk, told - HEADERS[inner] + more) for more in (0, 1)]
        after = branches.control.stats() - before
        # The one that is too large may be refused only by what it is given to.
        assert after.packets[0] in ((3, 4) if accelerated else (0,)), (after.packets, after.reasons())
        frames = wire.frames(0.1)
        leaks.none(other_than_esp(frames))
        assert max(map(len, frames)) <= 14 + mtu
        branches.hub.ip("link", "set", "wan0", "mtu", 1500)
        for space in (branches.lan, branches.hub):
            for option in ("-4", "-6"):
                space.ip(option, "route", "flush", "cache")
        if accelerated:
            becomes_fast(branches, talk, lambda: talk.exchange(5, size=1300))
        found.append((tries, said, told, at_the_edge, passes(talk, 1300)))
    assert found[0] == found[1]
    assert found[0][-1] and not any(tries) and at_the_edge == [True, False]


@pytest.mark.parametrize("outer", FAMILIES)
def test_a_path_mtu_that_the_wan_lowers_in_transport_mode(make_branches, outer):
    """What is encrypted behind source NAT nobody tells the LAN host about. What arrives then, and in packets of which
    size, is as without fasttrack, of whatever size it is."""
    branches = make_branches("transport", outer)
    branches.lowered = LOWERED["ipv6"]
    branches.hub.sysctl("net.ipv4.icmp_ratemask", 0)
    branches.hub.sysctl("net.ipv6.icmp.ratelimit", 0)
    talk = datagrams_to(branches, family=outer)
    talk.set_probing()
    lan, wire = branches.until_removed(Wire(branches.lan, "eth0", outgoing=False)), branches.wire()
    # From what fits, with all that is around it, to what does not.
    sizes = range(branches.lowered - 100, branches.lowered + 40)[::4]
    found = []
    for accelerated in (False, True):
        for space in (branches.lan, branches.hub):
            for option in ("-4", "-6"):
                space.ip(option, "route", "flush", "cache")
        if accelerated:
            accelerate(branches)
            becomes_fast(branches, talk)
        narrow(branches, wire, talk)
        if accelerated:
            becomes_fast(branches, talk, lambda: talk.exchange(5, size=800))
        wire.frames(0.05)
        lan.frames(0.05)
        before = branches.control.stats()
        # One that the small one behind it has overtaken is sent once more.
        arrived = [passes(talk, size) or passes(talk, size) for size in sizes]
        after = branches.control.stats() - before
        leaving = {len(frame) for frame in wire.frames(0.1) if Ether(frame).src == branches.hub.mac("wan0")}
        found.append((arrived, leaving, answers(lan), told_mtu(branches, branches.address(2))))
        assert all(length <= 14 + branches.lowered for length in leaving)
        # All that fit, and the small ones behind each.
        assert not accelerated or after.packets[0] >= len(sizes) + 10, (after.packets, after.reasons())
    assert found[0] == found[1]
    assert arrived[0]


# Packets that are made of several.


def large(branches, talk, way, length, run, slow=None):
    """What a run of a conversation sends one way is fast, some of it in packets that are larger than those on the
    WAN; the figures of states are those of the slow path, if these are given."""
    becomes_fast(branches, talk)
    # What is merged depends on how packets meet.
    for _ in range(10):
        before = branches.control.stats()
        figures = moved(branches, run)
        after = branches.control.stats() - before
        assert after.bytes[way] > 0.95 * length, (after.bytes, after.reasons())
        assert slow in (None, figures), (slow, figures)
        # On the WAN they are of the usual size.
        on_wan = max(packets for _, packets, *_ in figures.values())
        assert on_wan >= length / 1500
        if after.packets[way] < on_wan:
            return
    raise AssertionError(f"no large packets: {after.packets}, {on_wan}")


#: Of datagrams: how often as many are sent at once, and how many bytes they are.
BURSTS, BURST, SIZE = 4, 8, 1000
#: Where packets of a branch wait.
QUEUE = ("dev", "eth0", "root", "netem")


def in_one(talk):
    """Datagrams that the sender's kernel is given as one."""
    for _ in range(BURSTS):
        sent = talk.send_in_one(BURST, SIZE)
        assert talk.receive(BURST) == sent


def together(talk):
    """Datagrams that are sent one by one, as what is to be encrypted by the sender itself has to be."""
    for _ in range(BURSTS):
        sent = [talk.send(SIZE) for _ in range(BURST)]
        assert talk.receive(BURST) == sent


@pytest.mark.parametrize("kind, outer, masquerade", [
    ("policy", "ipv4", False), ("policy", "ipv6", False), ("interface", "ipv4", True), ("interface", "ipv6", False),
    ("vti", "ipv4", False), ("vti", "ipv6", True), ("encapsulated", "ipv4", False), ("encapsulated", "ipv6", False)])
def test_large_packets_are_split_before_they_are_encrypted(make_branches, kind, outer, masquerade):
    """What the LAN host has not yet split, and what the hub has merged after decrypting it: of TCP and of UDP. The
    branch sums what it has decrypted itself, and what arrives on the LAN is looked at."""
    branches = make_branches(kind, outer, offloads=True)
    branches.hub.run("ethtool", "-K", "wan0", "gro", "on")
    decrypting = "tunnel2" if kind in ("interface", "vti") else "wan0"
    branches.hub.run("ethtool", "-K", decrypting, "rx-udp-gro-forwarding", "on")
    branches.wan.nft("""
        table netdev seen {
            counter clear { }
            chain wan {
                type filter hook ingress devices = { port1, port2 } priority 0;
                meta l4proto { tcp, udp } th dport != 4500 counter name clear
            }
        }
    """)
    if masquerade:
        branches.hub.nft(MASQUERADE)
    data = b"z" * 150_000
    for family in FAMILIES:
        stream = stream_to(branches, family)
        out = datagrams_to(branches, family=family)
        address = branches.host(HUB, family)
        back = branches.until_removed(Datagrams(branches.branches[2], branches.lan, address,
                                                source=(branches.host(2, family), 7001), listen=(address, 7)))
        branches.control.disable()
        slow = [moved(branches, lambda run=run, talk=talk: run(talk)) for run, talk in ((in_one, out), (together, back))]
        assert [sorted(packets for _, packets, *_ in of.values()) for of in slow] == 2 * [[0, BURSTS * BURST]]
        accelerate(branches)
        # What the path takes is found out.
        for way in (False, True):
            stream.send(data, back=way)
        wire = branches.wire()
        large(branches, stream, 0, len(data), lambda to=stream: to.send(data))
        large(branches, out, 0, BURSTS * BURST * SIZE, lambda to=out: in_one(to), slow[0])
        # So many leave at a time, and meet at the hub. Once as it has merged them, and once as its device splits them
        # again.
        branches.branches[2].run("tc", "qdisc", "add", *QUEUE, "slot", "20ms", "packets", BURST)
        for offload in ("on", "off"):
            branches.hub.run("ethtool", "-K", "lan0", "tx", offload)
            lan = branches.until_removed(Wire(branches.lan, "eth0", outgoing=False))
            large(branches, stream, 1, len(data), lambda to=stream: to.send(data, back=True))
            large(branches, back, 0, BURSTS * BURST * SIZE, lambda to=back: together(to), slow[1])
            arrived = lan.frames(0.1)
            assert len(arrived) > 20
        assert all(len(frame) <= 1514 and is_whole(frame) for frame in arrived)
        branches.branches[2].run("tc", "qdisc", "del", *QUEUE)
        branches.hub.run("ethtool", "-K", "lan0", "tx", "on")
        frames = wire.frames(0.1)
        leaks.none(other_than_esp(frames))
        assert all(len(frame) <= 1514 for frame in frames)
    leaks.none(branches.wan.counter("netdev seen", "clear"))


@pytest.mark.parametrize("outer", FAMILIES)
def test_large_packets_are_split_before_they_are_encrypted_in_transport_mode(make_branches, outer):
    """Datagrams are fast then. TCP, of which conntrack has to see both directions or none, is as slow as what is
    received."""
    branches = make_branches("transport", outer, offloads=True)
    # Nobody tells it about what is around its packets.
    branches.lan.ip("link", "set", "eth0", "mtu", 1400)
    data = b"z" * 150_000
    stream, talk = stream_to(branches, outer), datagrams_to(branches, family=outer)
    slow = moved(branches, lambda: in_one(talk))
    assert sorted(packets for _, packets, *_ in slow.values()) == [0, BURSTS * BURST]
    accelerate(branches)
    wire = branches.wire()
    large(branches, talk, 0, BURSTS * BURST * SIZE, lambda: in_one(talk), slow)
    before = branches.control.stats()
    for way in (False, True):
        stream.send(data, back=way)
    after = branches.control.stats() - before
    assert after.fast == 0 and set(after.reasons()) == {"learning", "ipsec"}, (after.packets, after.reasons())
    frames = wire.frames(0.1)
    leaks.none(other_than_esp(frames))
    assert frames and all(len(frame) <= 1514 for frame in frames)


# States.


@pytest.mark.parametrize("limit, way, kind, outer, inner", [
    ("packet", "out", "policy", "ipv4", "ipv4"), ("byte", "out", "policy", "ipv4", "ipv4"),
    ("packet", "into", "policy", "ipv4", "ipv4"), ("packet", "out", "policy", "ipv6", "ipv6"),
    ("byte", "into", "policy", "ipv6", "ipv4"), ("byte", "out", "interface", "ipv6", "ipv4"),
    ("packet", "into", "encapsulated", "ipv4", "ipv6")])
def test_a_states_limit_is_met_by_the_same_packet(make_branches, limit, way, kind, outer, inner):
    """Then somebody is asked for another state to send by, and nothing leaves in clear; or nothing is let in."""
    branches = make_branches(kind, outer)
    questions = branches.until_removed(Questions(branches.hub))
    talk = datagrams_to(branches, family=inner)
    amount = {"packet": 30, "byte": 30 * 100}[limit]
    passed = {}
    for generation, mode in enumerate(("exclude", "accelerate"), 1):
        branches.control.enable(ipsec=mode, sample_interval=60_000)
        branches.states(2, generation=generation, **{way: ("limit", f"{limit}-hard", amount)})
        branches.states(2, generation=generation - 1, verb="delete")
        wire = branches.wire()
        before = branches.control.stats()
        count = 0
        # The other direction's state has no limit.
        while count < 60 and talk.request(size=72, timeout=0.5 if way == "out" else 2):
            if not talk.reply(size=72, timeout=0.5 if way == "into" else 2):
                assert way == "into"
                break
            count += 1
            time.sleep(0.01)
        passed[mode] = count
        after = branches.control.stats() - before
        if mode == "accelerate":
            assert min(after.packets) > 10, after.reasons()
        leaks.none(other_than_esp(wire.frames()))
        talk.send(72)
        assert way == "into" or questions.one()
        branches.hub.ip("xfrm", "state", "flush")
        branches.branches[2].ip("xfrm", "state", "flush")
        branches.states(2, generation=generation)
        talk.drain()
    assert passed["exclude"] == passed["accelerate"] and 0 < passed["exclude"] < 60


@pytest.mark.parametrize("way, kind, outer, inner", [
    ("out", "policy", "ipv4", "ipv4"), ("into", "interface", "ipv6", "ipv6")])
def test_a_state_that_expires_ends_what_is_fast_by_it(make_branches, way, kind, outer, inner):
    """By time, under way: till then all packets are fast. Then it is as behind another limit."""
    branches = make_branches(kind, outer)
    questions = branches.until_removed(Questions(branches.hub))
    talk = datagrams_to(branches, family=inner)
    accelerate(branches)
    becomes_fast(branches, talk)
    wire = branches.wire()
    branches.states(2, generation=1, **{way: ("limit", "time-hard", 4)})
    branches.states(2, generation=0, verb="delete")
    becomes_fast(branches, talk)
    before = branches.control.stats()
    deadline = time.monotonic() + 30
    count = 0
    while talk.request(timeout=1):
        count += 1
        if not talk.reply(timeout=1):
            assert way == "into"
            break
        assert time.monotonic() < deadline, "it does not expire"
        time.sleep(0.02)
    after = branches.control.stats() - before
    # The last ones each way may have come behind it.
    assert count > 10 and min(after.packets) >= count - 1, (count, after.packets, after.reasons())
    assert way == "into" or questions.one()
    leaks.none(other_than_esp(wire.frames()))


@pytest.mark.parametrize("limit, way", [("packet", "out"), ("byte", "into")])
def test_that_a_state_should_be_replaced_is_told_after_the_same_packet(make_branches, limit, way):
    """By its soft limit. All goes on."""
    branches = make_branches()
    told = branches.until_removed(Expirations(branches.hub))
    talk = datagrams_to(branches)
    amount = {"packet": 30, "byte": 30 * 100}[limit]
    passed = {}
    for generation, mode in enumerate(("exclude", "accelerate"), 1):
        branches.control.enable(ipsec=mode, sample_interval=60_000)
        branches.states(2, generation=generation, **{way: ("limit", f"{limit}-soft", amount)})
        branches.states(2, generation=generation - 1, verb="delete")
        before = branches.control.stats()
        passed[mode] = 0
        while not told.soft() and passed[mode] < 60:
            talk.exchange(1, size=72)
            passed[mode] += 1
        after = branches.control.stats() - before
        if mode == "accelerate":
            assert min(after.packets) > 10, after.reasons()
        talk.exchange(5)
        assert not told.soft()
    assert passed["exclude"] == passed["accelerate"] and 0 < passed["exclude"] < 60


@pytest.mark.parametrize("kind, outer, inner", [
    ("policy", "ipv4", "ipv4"), ("policy", "ipv6", "ipv6"), ("interface", "ipv4", "ipv6"), ("vti", "ipv6", "ipv4"),
    ("encapsulated", "ipv4", "ipv4")])
def test_what_is_played_again_is_refused(make_branches, kind, outer, inner):
    branches = make_branches(kind, outer)
    branches.states(2, "replay-window", 32, generation=1)
    branches.states(2, generation=0, verb="delete")
    talk = datagrams_to(branches, family=inner)
    found = []
    for mode in ("exclude", "accelerate"):
        branches.control.enable(ipsec=mode, sample_interval=60_000)
        talk.exchange(1)
        if mode == "accelerate":
            becomes_fast(branches, talk)
        wire = branches.wire()
        talk.exchange(3)
        replies = [frame for frame in wire.frames() if Ether(frame).payload.src == branches.address(2)]
        assert len(replies) == 3

        def run():
            for frame in replies:
                wire.put(frame)
            time.sleep(0.3)
            talk.exchange(3)
        found.append(moved(branches, run))
    assert found[0] == found[1]
    assert sum(figures[4] for figures in found[0].values()) == 3
