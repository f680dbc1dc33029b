# SPDX-License-Identifier: GPL-2.0
"""Measuring what a packet costs.

It is measured in a few batches, of which the median counts: the kernel does other things once in a while.
The first batches are not counted: they confirm what was learned, and whatever happens for the first time
happens in them. Then some more packets are captured and compared with what was sent, byte by byte, and
counters are compared with what the path claims.
"""

import statistics

from capture import Capture, differences, first_identity, link_addresses
from network import MASQUERADE, TRACK
from paths import NotTaken

# What is sent before anything is measured.
SMALL = 64

# A batch begins right after a tick of the kernel's clock, and ends before the next one, at least if its packets
# are fast: a tick takes as long as several packets.
BATCH = 640
BATCHES = 7
WARM_UP = 2
# As many as wait in a socket, however large they are.
CAPTURED = 64
# How often a cell is measured again if a packet of it was sampled.
TRIES = 3


def establish(network, generator, family, flows, nat, accounting):
    """Has conntrack see a packet and an answer of each flow."""
    network.router.sysctl("net.netfilter.nf_conntrack_acct", int(accounting))
    network.router.nft(TRACK)
    if nat:
        network.router.nft(MASQUERADE.format(family=family.nft))
    generator.send(flows, SMALL, flows.count)
    generator.answer(flows, family.wan if nat else family.host, SMALL)
    found = int(network.run("conntrack", "-C"))
    if found != flows.count:
        raise AssertionError(f"{found} connections instead of {flows.count}")


def measure(network, path, generator, family, flows, size, source, batches=BATCHES):
    """Nanoseconds, and so instructions, for a packet; having made sure that it is about the path."""
    for _ in range(TRIES):
        generator.batches(flows, size, BATCH, WARM_UP)
        before = path.counters(network, family)
        figures = generator.batches(flows, size, BATCH, batches)
        with Capture(network) as capture:
            generator.send(flows, size, CAPTURED)
            packets = capture.packets()
        after = path.counters(network, family)
        grown = {name: after[name] - before[name] for name in before}
        sent = BATCH * batches + CAPTURED
        if grown.get("fast") == 0:
            raise NotTaken
        if not grown.get("sampled"):
            break
    expected = path.expected(sent)
    if grown != expected:
        raise AssertionError(f"counters grew by {grown} instead of {expected}")
    if not path.is_taken(network, flows):
        raise AssertionError("not all flows are offloaded")
    if len(packets) != CAPTURED * path.arrives:
        raise AssertionError(f"{len(packets)} packets captured instead of {CAPTURED * path.arrives}")
    link = link_addresses(*path.link_addresses(network))
    identity = first_identity([packet for _, _, packet in packets])
    for number, (vlan, addresses, packet) in enumerate(packets, 1):
        if vlan != network.wan.tag:
            raise AssertionError(f"packet {number}: VLAN {vlan} instead of {network.wan.tag}")
        if addresses != link:
            raise AssertionError(f"packet {number}: from and for {addresses.hex(':')} instead of {link.hex(':')}")
        wrong = differences(packet, number, identity, family, flows, size, source if path.tracked else family.host, path.hops)
        if wrong:
            raise AssertionError(wrong)
    return round(statistics.median(figures), 1)
