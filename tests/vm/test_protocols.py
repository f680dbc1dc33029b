# SPDX-License-Identifier: GPL-2.0
"""Protocols besides TCP and UDP that a router carries between two hosts."""

import socket

import pytest

from lab.both import both
from lab.traffic import Datagrams, Stream, family_of

NO_NAT = """
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        ct state established,related accept
        iifname "lan0" accept
    }
}
"""

GRE, ESP, AH, UDPLITE, IPIP, SIXINFOUR, L2TP, ETHERIP, OSPF = 47, 50, 51, 136, 4, 41, 115, 97, 89

#: With the one rule set, and with the router's own.
with_and_without_nat = pytest.mark.parametrize("rules", [NO_NAT, None], ids=["no NAT", "masquerade"])


QUIET = """
    table inet quiet {
        chain output {
            type filter hook output priority 0;
            icmp type destination-unreachable drop
            icmpv6 type destination-unreachable drop
        }
    }
"""


class Packets(Datagrams):
    """A conversation in packets of a protocol without ports, which begin with `head`."""

    def __init__(self, client, server, address, protocol, head=b""):
        # A host whose kernel knows the protocol would say that it has no such tunnel.
        for host in (client, server):
            host.nft(QUIET)
        family = family_of(address)
        self._head = head
        self._is_v6 = family == socket.AF_INET6
        self._server = server.socket(family, socket.SOCK_RAW, protocol)
        self._client = client.socket(family, socket.SOCK_RAW, protocol)
        self._client.connect((address, 0))
        self._sent = 0
        self.seen_from = None

    def _payload(self, size):
        return self._head + super()._payload(size)

    def _read(self, packet):
        return packet if self._is_v6 else packet[20:]


def fast(router, conversation, count=30):
    """Runs a conversation that has to be fast. Gives how the counters moved."""
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(count)
    after = router.control.stats() - before
    assert min(after.packets) >= count * 0.9, (after.packets, after.reasons())
    return after


def slow(router, conversation, count=10):
    """Runs one of which nothing may be fast. Gives how the counters moved."""
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(count)
    after = router.control.stats() - before
    assert after.fast == 0, (after.packets, after.reasons())
    return after


@both
@pytest.mark.parametrize("protocol", [ESP, GRE, UDPLITE, L2TP, ETHERIP],
                         ids=["ESP", "GRE", "UDP-Lite", "L2TPv3", "EtherIP"])
@with_and_without_nat
def test_a_protocol_without_ports_is_fast(router, protocol, rules):
    """By its addresses, also those that NAT gives it: these have no checksum over them. (That of UDP-Lite
    has, but conntrack does not know the protocol, and rewrites no more than that either.)"""
    if rules:
        router.router.nft("flush ruleset\n" + rules)
    router.control.enable()
    packets = router.until_removed(Packets(router.lan, router.wan, router.WAN, protocol, bytes(8)))
    fast(router, packets)
    assert packets.seen_from[0] == (router.LAN if rules else router.WAN_GATEWAY)
    assert {flow["protocol"] for flow in router.control.flows()} == {hex(protocol)}


def test_authentication_headers_pass_through_ipv4(router):
    router.router.nft("flush ruleset\n" + NO_NAT)
    router.control.enable()
    fast(router, router.until_removed(Packets(router.lan, router.wan, router.WAN, AH, bytes(12))))


@pytest.mark.parametrize("family", ["ipv6"], indirect=True)
def test_authentication_headers_stay_slow_with_ipv6(router):
    """There they are extension headers, which conntrack looks behind."""
    router.router.nft("flush ruleset\n" + NO_NAT)
    router.control.enable()
    # Next header ESP, length 4 words, and what there is to authenticate.
    head = bytes([ESP, 1]) + bytes(10)
    packets = router.until_removed(Packets(router.lan, router.wan, router.WAN, AH, head))
    after = slow(router, packets)
    assert after.slow["ip-options"] == 20, after.reasons()


@both
@with_and_without_nat
def test_tunnels_pass_through(router, rules):
    """Each version of IP in each."""
    if rules:
        router.router.nft("flush ruleset\n" + rules)
    router.control.enable()
    for protocol in (IPIP, SIXINFOUR):
        packets = router.until_removed(Packets(router.lan, router.wan, router.WAN, protocol, bytes(20)))
        fast(router, packets)
        assert packets.seen_from[0] == (router.LAN if rules else router.WAN_GATEWAY)


def test_two_protocols_between_the_same_hosts_are_two_flows(router):
    router.control.enable()
    for protocol in (ESP, GRE):
        fast(router, router.until_removed(Packets(router.lan, router.wan, router.WAN, protocol, bytes(8))))
    assert router.control.stats().flows == 4


def test_the_gre_of_pptp_stays_slow(router):
    """Conntrack tells its calls apart."""
    router.router.nft("flush ruleset\n" + NO_NAT)
    router.control.enable()
    plain = router.until_removed(Packets(router.lan, router.wan, router.WAN, GRE, bytes(8)))
    fast(router, plain)
    head = bytes.fromhex("3001 880b 0008 0001 00000000")
    call = router.until_removed(Packets(router.lan, router.wan, router.WAN, GRE, head))
    plain.close()
    before = router.control.stats()
    for _ in range(10):
        assert call.request()
    assert (router.control.stats() - before).fast == 0


@both
def test_other_protocols_stay_slow_and_are_not_counted(router):
    router.control.enable()
    # So that the devices are attached.
    fast(router, router.until_removed(Packets(router.lan, router.wan, router.WAN, GRE, bytes(8))))
    flows = router.control.stats().flows
    after = slow(router, router.until_removed(Packets(router.lan, router.wan, router.WAN, OSPF, bytes(8))))
    assert not after.reasons()
    before = router.control.stats()
    answers = router.lan.run("ping", "-c", 10, "-i", 0.05, router.WAN)
    after = router.control.stats() - before
    assert " 10 received" in answers
    assert after.fast == 0 and not after.reasons(), (after.packets, after.reasons())
    assert after.flows == flows


class Association(Stream):
    """An SCTP association."""

    TYPE = (socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    NODELAY = (socket.IPPROTO_SCTP, 3)


@both
@with_and_without_nat
def test_an_sctp_association_is_fast(router, rules):
    """Also with NAT, which leaves the ports as they are if it can: the checksum is not over the addresses."""
    if rules:
        router.router.nft("flush ruleset\n" + rules)
    router.control.enable()
    # The first one attaches the devices.
    for port in (5000, 5001):
        association = router.until_removed(Association(router.lan, router.wan, router.WAN, port))
        after = fast(router, association)
        port = association.client.getsockname()[1]
        assert association.seen_from == (router.LAN if rules else router.WAN_GATEWAY, port)
    assert after.slow["sctp-control"] == 0
    # Its end is seen by conntrack.
    before = router.control.stats()
    association.close()
    assert "ESTABLISHED" in router.conntrack("-L", "-p", "sctp", "--dport", "5000")
    assert "ESTABLISHED" not in router.conntrack("-L", "-p", "sctp", "--dport", "5001")
    assert (router.control.stats() - before).slow["sctp-control"] >= 1


def test_an_sctp_association_whose_ports_are_rewritten_stays_slow(router):
    """Its checksum is over the ports, and cannot be amended."""
    router.router.nft("""
        flush ruleset
        table ip nat {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                oifname "wan0" meta l4proto sctp snat to 192.0.2.1:20000-20999
            }
        }
    """)
    router.control.enable()
    association = router.until_removed(Association(router.lan, router.wan, router.WAN, 5000))
    after = slow(router, association)
    assert after.slow["mangled"] >= 20, after.reasons()


def test_an_sctp_packet_with_the_wrong_tag_stays_slow(router):
    """Somebody who knows the addresses and ports, but not the association."""
    from scapy.layers.l2 import Ether
    from scapy.layers.sctp import SCTP, SCTPChunkData

    from lab.traffic import Wire
    router.router.nft("flush ruleset\n" + NO_NAT)
    router.control.enable()
    association = router.until_removed(Association(router.lan, router.wan, router.WAN, 5000))
    fast(router, association)
    source, port, *_ = association.client.getsockname()
    wire = router.until_removed(Wire(router.lan, "eth0"))
    sink = router.until_removed(Wire(router.wan, "eth0", outgoing=False))
    sink.frames(0.1)
    before = router.control.stats()
    for _ in range(5):
        wire.put(Ether(src=router.lan.mac("eth0"), dst=router.router.mac("lan0"))
                 / router.ip_header(src=source, dst=router.WAN)
                 / SCTP(sport=port, dport=5000, tag=0x12345678) / SCTPChunkData(data=b"forged"))
    assert not [packet for packet in sink.packets() if b"forged" in bytes(packet)]
    after = router.control.stats() - before
    assert after.slow["sctp-control"] == 5, after.reasons()
