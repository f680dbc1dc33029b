# SPDX-License-Identifier: GPL-2.0
"""Conntrack is as right as if it had seen every packet."""

import re
import time

import pytest

from lab.both import both
from lab.kernel import wait_until
from lab.traffic import Datagrams, Stream

pytestmark = both


def entry(router, protocol):
    """The one connection that conntrack lists: its timeout, and packets and bytes each way if counted."""
    line, = router.conntrack("-L", "-p", protocol).splitlines()
    timeout = int(line.split()[2])
    counts = [tuple(map(int, pair)) for pair in re.findall(r"packets=(\d+) bytes=(\d+)", line)]
    return timeout, counts


@pytest.mark.parametrize("kind", [Datagrams, Stream])
def test_accounting_is_exact(router, kind):
    """Counted by conntrack: what nftables counts before conntrack at the very first and the very last
    place where it can, on devices, fast or slow."""
    router.router.sysctl("net.netfilter.nf_conntrack_acct", 1)
    router.router.nft("""
        table netdev count {
            counter original { }
            counter reply { }
            chain lan0 {
                type filter hook ingress device "lan0" priority -500;
                ip protocol { tcp, udp } counter name original
            }
            chain wan0 {
                type filter hook ingress device "wan0" priority -500;
                ip protocol { tcp, udp } counter name reply
            }
        }
    """)
    router.control.enable()
    conversation = router.until_removed(kind(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    conversation.exchange(100, size=333)
    protocol = {Datagrams: "udp", Stream: "tcp"}[kind]
    time.sleep(0.2)
    _, counts = entry(router, protocol)
    for direction, (packets, size) in zip(("original", "reply"), counts):
        text = router.router.run("nft", "list", "counter", "netdev", "count", direction).split()
        assert packets == int(text[text.index("packets") + 1])
        # There the Ethernet header is no part of the length either.
        assert size == int(text[text.index("bytes") + 1])
    stats = router.control.stats()
    assert stats.fast >= 190, stats.reasons()
    flows = {flow["reply"]: flow for flow in router.control.flows()}
    for reply in (0, 1):
        assert flows[reply]["packets"] == stats.packets[reply]
        assert flows[reply]["bytes"] == stats.bytes[reply]


def test_every_packet_is_fast_or_has_one_reason(router):
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    count = 0
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        datagrams.exchange(10)
        count += 20
    stats = router.control.stats()
    assert stats.fast + sum(stats.slow.values()) == count, (count, stats.packets, stats.reasons())


def test_a_busy_udp_connection_does_not_expire(router):
    router.router.sysctl("net.netfilter.nf_conntrack_udp_timeout", 3)
    router.router.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", 3)
    router.control.enable(sample_interval=60_000)
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    before = router.control.stats()
    for _ in range(30):
        datagrams.exchange(1)
        time.sleep(0.2)
    after = router.control.stats() - before
    assert after.gone["conntrack"] == 0
    assert after.fast >= 55, after.reasons()
    assert entry(router, "udp")[0] <= 3


def test_an_idle_stream_keeps_the_timeout_of_an_established_one(router):
    """All data is acknowledged, but by packets that conntrack did not see."""
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    stream.send(b"d" * 300_000)
    stream.send(b"d" * 300_000, back=True)
    wait_until(lambda: entry(router, "tcp")[0] > 400_000, 4, "the timeout of an established connection")
    time.sleep(1.5)
    assert entry(router, "tcp")[0] > 400_000


def test_a_bulk_transfer_upsets_nothing(router):
    """Samples return to conntrack in the middle of it, far ahead of what conntrack saw before."""
    router.control.enable(sample_interval=100)
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    before = router.control.stats()
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        stream.send(b"b" * 1_000_000)
        stream.send(b"b" * 1_000_000, back=True)
    after = router.control.stats() - before
    assert after.slow["sampled"] >= 10, after.reasons()
    assert after.fast > 1000
    assert router.router.counter("ip filter", "invalid") == 0


def test_after_long_in_the_fast_path_a_stream_goes_on_in_the_slow_one(router):
    router.control.enable(sample_interval=60_000)
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    stream.send(b"b" * 3_000_000)
    stream.send(b"b" * 3_000_000, back=True)
    router.control.disable()
    stream.send(b"b" * 300_000)
    stream.send(b"b" * 300_000, back=True)
    assert router.router.counter("ip filter", "invalid") == 0
