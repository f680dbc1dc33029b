# SPDX-License-Identifier: GPL-2.0
"""What the IP layer would have refused, or answered, is not forwarded by the fast path.

Each test puts frames on the LAN host's side of an established, fast flow, and looks at what comes out
on the WAN.
"""

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether

from lab.both import both
from lab.traffic import Datagrams, Wire

COUNT = 10


class Injector:
    """A fast flow, and frames that would be its packets."""

    def __init__(self, router):
        self.router = router
        # Without samples, which would be slow for that reason.
        router.control.enable(sample_interval=60_000)
        self.datagrams = Datagrams(router.lan, router.wan, router.WAN)
        self.datagrams.warm_up()
        self.wire = Wire(router.lan, "eth0")
        self.sink = Wire(router.wan, "eth0", outgoing=False)
        self.sink.frames(0.1)

    def frame(self, payload=b"injected", **fields):
        """A frame of the flow, with other values for some fields of the IP header."""
        source, port = self.datagrams.source
        ethernet = Ether(src=self.router.lan.mac("eth0"), dst=self.router.router.mac("lan0"))
        if self.router.is_v6 and "ttl" in fields:
            fields["hlim"] = fields.pop("ttl")
        ip = self.router.ip_header(src=source, dst=self.router.WAN, **fields)
        return ethernet / ip / UDP(sport=port, dport=7) / payload

    def send(self, frame):
        """Sends a frame several times. Gives how the counters moved and what arrived."""
        before = self.router.control.stats()
        for _ in range(COUNT):
            self.wire.put(frame)
        arrived = [packet for packet in self.sink.packets(source=self.router.WAN_GATEWAY)
                   if b"injected" in bytes(packet)]
        return self.router.control.stats() - before, arrived

    def close(self):
        self.datagrams.close()
        self.wire.close()
        self.sink.close()


@pytest.fixture
def injector(router):
    return router.until_removed(Injector(router))


@both
def test_a_correct_frame_is_fast(injector):
    after, arrived = injector.send(injector.frame())
    assert len(arrived) == COUNT
    assert after.packets[0] >= COUNT - 1, after.reasons()
    for packet in arrived:
        assert (packet.hlim if injector.router.is_v6 else packet.ttl) == 63
        checksum = packet[UDP].chksum
        rebuilt = Ether(bytes(packet))
        del rebuilt[UDP].chksum
        assert Ether(bytes(rebuilt))[UDP].chksum == checksum


@both
def test_what_else_a_header_says_is_kept(injector):
    """Traffic class, ECN's part of it included, and flow label, or what IPv4 has in their place."""
    if injector.router.is_v6:
        kept = {"tc": 0xb9, "fl": 0x12345}
    else:
        kept = {"tos": 0xb9, "id": 0x1234, "flags": 2}
    # The first one is slow, and has the flow expect its DSCP.
    after, _ = injector.send(injector.frame(**kept))
    assert set(after.reasons()) == {"dscp"}, after.reasons()
    after, arrived = injector.send(injector.frame(**kept))
    assert after.packets[0] == len(arrived) == COUNT, after.reasons()
    for packet in arrived:
        assert {name: getattr(packet.payload, name) for name in kept} == kept


def mac_of_another_host(injector):
    # A promiscuous port hands such frames up, marked as someone else's.
    injector.router.router.ip("link", "set", "lan0", "promisc", "on")
    frame = injector.frame()
    frame[Ether].dst = "02:00:00:00:00:99"
    return frame


@both
def test_a_frame_for_another_host(injector):
    after, arrived = injector.send(mac_of_another_host(injector))
    assert not arrived
    assert after.fast == 0
    assert after.reasons() == {"other-host": COUNT}


def with_header_byte(frame, offset, value):
    """The frame as bytes with one byte of its IP header changed, under a correct header checksum."""
    raw = bytearray(bytes(frame))
    if raw[14] >> 4 == 6:
        raw[14 + offset] = value
        return bytes(raw)
    header = raw[14:34]
    header[offset] = value
    header[10:12] = b"\0\0"
    total = sum(int.from_bytes(header[at:at + 2], "big") for at in range(0, 20, 2))
    total = (total & 0xffff) + (total >> 16)
    total = (total & 0xffff) + (total >> 16)
    header[10:12] = (0xffff - total).to_bytes(2, "big")
    return bytes(raw[:14] + header + raw[34:])


@pytest.mark.parametrize("family, offset, value, what", [
    ("ipv4", 0, 0x55, "version 5"),
    ("ipv4", 0, 0x44, "header length 16"),
    ("ipv4", 3, 200, "total length beyond the frame"),
    ("ipv4", 3, 27, "total length too short for UDP"),
    ("ipv6", 0, 0x50, "version 5"),
    ("ipv6", 5, 200, "payload length beyond the frame"),
    ("ipv6", 5, 7, "payload length too short for UDP"),
], ids=lambda value: value if isinstance(value, str) else "", indirect=["family"])
def test_a_bad_header(injector, offset, value, what):
    after, arrived = injector.send(with_header_byte(injector.frame(), offset, value))
    assert not arrived, what
    assert after.fast == 0
    assert after.slow["bad-header"] == COUNT, after.reasons()


def test_a_bad_header_checksum(injector):
    after, arrived = injector.send(injector.frame(chksum=0x1234))
    assert not arrived
    assert after.fast == 0
    assert after.slow["bad-header"] == COUNT, after.reasons()


@both
def test_padding_is_cut_off(injector):
    before = bytes(injector.frame(payload=b"injected"))
    after, arrived = injector.send(before + b"\xee" * 20)
    assert after.packets[0] >= COUNT - 1, after.reasons()
    assert len(arrived) == COUNT
    for packet in arrived:
        assert b"\xee" * 4 not in bytes(packet)
        assert len(bytes(packet)) == len(before)


@both
def test_ip_options_stay_slow(injector):
    from scapy.layers.inet import IPOption_NOP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
    if injector.router.is_v6:
        frame = injector.frame()
        frame[IPv6].payload = IPv6ExtHdrDestOpt() / frame[UDP]
        frame[IPv6].nh = 60
    else:
        frame = injector.frame(options=[IPOption_NOP()] * 4)
    after, arrived = injector.send(frame)
    assert len(arrived) == COUNT
    assert after.fast == 0
    assert after.slow["ip-options"] == COUNT, after.reasons()


@both
def test_fragments_stay_slow_and_arrive_whole(router):
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.set_do_not_fragment(False)
    datagrams.warm_up()
    before = router.control.stats()
    for _ in range(5):
        assert datagrams.request(4000)
    after = router.control.stats() - before
    assert after.packets[0] == 0
    assert after.slow["fragment"] == 5, after.reasons()


def icmp(sink, router, ipv4, ipv6):
    """The IP packets with ICMP messages of a type and code, given for each family, that a wire saw."""
    number, (kind, code) = (58, ipv6) if router.is_v6 else (1, ipv4)
    ips = (packet.payload for packet in sink.packets(protocol=number))
    return [ip for ip in ips if bytes(ip)[router.header:router.header + 2] == bytes([kind, code])]


@both
def test_the_last_hop_is_answered(injector):
    answers = Wire(injector.router.lan, "eth0", outgoing=False)
    after, arrived = injector.send(injector.frame(ttl=1))
    assert not arrived
    assert after.fast == 0
    assert after.slow["ttl"] == COUNT, after.reasons()
    exceeded = icmp(answers, injector.router, (11, 0), (3, 0))
    assert exceeded and all(ip.src == injector.router.LAN_GATEWAY for ip in exceeded)
    answers.close()


@both
def test_too_large_with_df_is_answered(injector):
    router = injector.router
    router.router.ip("link", "set", "wan0", "mtu", 1300)
    answers = Wire(router.lan, "eth0", outgoing=False)
    dont_fragment = {} if router.is_v6 else {"flags": "DF"}
    after, arrived = injector.send(injector.frame(payload=b"injected" + b"x" * 1400, **dont_fragment))
    assert not arrived
    assert after.fast == 0
    assert after.slow["mtu"] + after.slow["stale-route"] >= COUNT - 1, after.reasons()
    needed = icmp(answers, router, (3, 4), (2, 0))
    assert needed and bytes(needed[0])[router.header + 6:router.header + 8] == (1300).to_bytes(2, "big")
    answers.close()


def test_too_large_without_df_is_fragmented(injector):
    injector.router.router.ip("link", "set", "wan0", "mtu", 1000)
    before = injector.router.control.stats()
    for _ in range(COUNT):
        injector.wire.put(injector.frame(payload=b"injected" + b"x" * 1200))
    fragments = injector.sink.packets(source=injector.router.WAN_GATEWAY)
    assert len(fragments) == 2 * COUNT
    assert (injector.router.control.stats() - before).fast == 0


@both
def test_vlan_tagged_frames_are_none_of_the_untagged_devices(injector):
    from scapy.layers.l2 import Dot1Q
    plain = injector.frame()
    tagged = Ether(src=plain.src, dst=plain.dst) / Dot1Q(vlan=7) / plain[Ether].payload
    after, arrived = injector.send(tagged)
    assert not arrived
    assert after.fast == 0
