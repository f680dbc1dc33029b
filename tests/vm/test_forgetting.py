# SPDX-License-Identifier: GPL-2.0
"""A flow is forgotten as soon as what it rests on changes."""

import time

import pytest
from scapy.layers.l2 import Ether

from lab.both import both
from lab.kernel import wait_until
from lab.topology import link
from lab.traffic import Datagrams, Stream, Wire

pytestmark = both


@pytest.fixture
def datagrams(router):
    """A fast conversation."""
    router.control.enable()
    conversation = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(10)
    assert (router.control.stats() - before).fast >= 18
    return conversation


def gone(router, reason, before, count=1, seconds=3):
    """Waits until `count` flows have gone for `reason`."""
    wait_until(lambda: (router.control.stats() - before).gone[reason] >= count, seconds,
               f"{count} flows gone for {reason}")


@pytest.mark.parametrize("how", [("-F",), ("-D", "-p", "udp", "--orig-port-dst", "7")], ids=["flushed", "deleted"])
def test_the_conntrack_entry(router, datagrams, how):
    before = router.control.stats()
    router.conntrack(*how)
    gone(router, "conntrack", before, 2)
    # The first packet afterwards is seen by the firewall as a new connection.
    before = router.control.stats()
    assert datagrams.request()
    after = router.control.stats() - before
    assert after.fast == 0
    assert after.slow["not-established"] == 1


def test_the_packet_right_after_the_entry_was_deleted_is_slow(router, datagrams):
    for _ in range(10):
        router.conntrack("-F")
        before = router.control.stats()
        assert datagrams.request()
        after = router.control.stats() - before
        assert after.fast == 0
        if after.reasons() == {"conntrack-gone": 1}:
            return
        # The flow has been looked at just in between, and is gone already.
        assert after.reasons() == {"not-established": 1}
        datagrams.warm_up()
    raise AssertionError("the flow was gone each time")


def test_the_excluded_mark_takes_effect_at_once(router, datagrams):
    router.conntrack("-U", "-p", "udp", "--mark", "0x08000000/0x08000000")
    before = router.control.stats()
    datagrams.exchange(10)
    after = router.control.stats() - before
    assert after.fast == 0
    assert after.slow["marked"] == 20
    assert router.control.stats().flows == 0


def second_way(router):
    """A second link between router and WAN host, with the WAN host's address also reachable there."""
    link(router.wan, "eth1", router.router, "wan1")
    prefix = 64 if router.is_v6 else 24
    router.wan.ip("addr", "add", f"{router.address('198.51.100.2')}/{prefix}", "dev", "eth1")
    router.router.ip("addr", "add", f"{router.address('198.51.100.1')}/{prefix}", "dev", "wan1")
    for device in ("all", "eth0", "eth1"):
        router.wan.sysctl(f"net.ipv4.conf.{device}.rp_filter", 0)


def test_the_route(router, datagrams):
    # A masqueraded connection would be ended by conntrack itself.
    router.router.nft("flush table ip nat")
    router.conntrack("-F")
    second_way(router)
    datagrams.exchange(5)
    old = Wire(router.wan, "eth0", outgoing=False)
    new = Wire(router.wan, "eth1", outgoing=False)
    router.router.ip("route", "add", f"{router.WAN}/{128 if router.is_v6 else 32}",
                     "via", router.address("198.51.100.2"))
    old.frames(0.1)
    for _ in range(10):
        assert datagrams.request()
    assert len(new.packets(destination=router.WAN)) == 10
    assert not old.packets(destination=router.WAN)
    old.close()
    new.close()


def test_the_neighbours_address(router, datagrams):
    wire = Wire(router.wan, "eth0", outgoing=False)
    router.wan.ip("link", "set", "eth0", "promisc", "on")
    router.router.ip("neigh", "replace", router.WAN, "lladdr", "02:00:00:00:00:42", "dev", "wan0")
    wire.frames(0.1)
    datagrams.request(timeout=0.1)
    frame, = wire.packets(destination=router.WAN)
    assert frame.dst == "02:00:00:00:00:42"
    router.router.ip("neigh", "replace", router.WAN, "lladdr", router.wan.mac("eth0"), "dev", "wan0")
    datagrams.exchange(3)
    wire.close()


def test_a_neighbour_that_is_gone(router, datagrams):
    router.router.ip("neigh", "flush", "dev", "wan0")
    before = router.control.stats()
    datagrams.exchange(10)
    after = router.control.stats() - before
    assert after.slow["no-neighbour"] >= 1
    assert after.fast >= 10


@pytest.mark.parametrize("device", ["lan0", "wan0"])
def test_a_device_down(router, datagrams, device):
    before = router.control.stats()
    router.router.ip("link", "set", device, "down")
    after = router.control.stats() - before
    assert after.gone["device"] == 2
    assert router.control.stats().flows == 0
    router.router.ip("link", "set", device, "up")
    datagrams.exchange(5)


@pytest.mark.parametrize("device", ["lan0", "wan0"])
def test_a_device_gone(router, datagrams, device):
    before = router.control.stats()
    started = time.monotonic()
    router.router.ip("link", "del", device)
    # A device that someone holds on to is waited for by whoever removes it.
    assert time.monotonic() - started < 5
    after = router.control.stats() - before
    assert after.gone["device"] == 2
    assert after.devices == 1


def test_a_device_moved_to_another_namespace(router, datagrams):
    started = time.monotonic()
    router.router.ip("link", "set", "wan0", "netns", router.lan.name)
    assert time.monotonic() - started < 5
    stats = router.control.stats()
    assert (stats.flows, stats.devices) == (0, 1)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_idle(router, protocol):
    router.control.enable(**{f"{protocol}_timeout": 1000})
    kind = {"udp": Datagrams, "tcp": Stream}[protocol]
    conversation = router.until_removed(kind(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    before = router.control.stats()
    gone(router, "idle", before, 2, 5)
    # The connection itself lives on.
    assert router.conntrack("-L", "-p", protocol)
    conversation.exchange(5)
    assert router.control.stats().flows == 2


def conntrack_state(router):
    """The TCP states of the connections that conntrack lists."""
    return {line.split()[3] for line in router.conntrack("-L", "-p", "tcp").splitlines()}


@pytest.mark.parametrize("how, states", [
    ("close", {"TIME_WAIT", "CLOSE"}),
    ("reset", {"CLOSE"}),
])
def test_the_end_of_a_stream_is_seen_by_conntrack(router, how, states):
    router.control.enable()
    stream = Stream(router.lan, router.wan, router.WAN)
    stream.warm_up()
    stream.exchange(20)
    stream.send(b"q" * 100_000)
    before = router.control.stats()
    if how == "close":
        stream.close()
    else:
        stream.reset()
    wait_until(lambda: conntrack_state(router) <= states, 3, f"a state in {states}")
    gone(router, "closed", before, 2)
    assert (router.control.stats() - before).slow["tcp-flags"] >= 1
    assert router.router.counter("ip filter", "invalid") == 0
    stream.close()


def test_a_reset_outside_the_window_does_not_end_a_stream(router):
    """An attacker who knows the addresses but not the sequence numbers."""
    from scapy.layers.inet import TCP
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    stream.send(b"q" * 100_000)
    source, port, *_ = stream.client.getsockname()
    wire = Wire(router.lan, "eth0")
    for sequence in (1, 0x40000000, 0x80000000, 0xc0000000):
        wire.put(Ether(src=router.lan.mac("eth0"), dst=router.router.mac("lan0"))
                 / router.ip_header(src=source, dst=router.WAN)
                 / TCP(sport=port, dport=80, flags="R", seq=sequence))
    wire.close()
    assert conntrack_state(router) == {"ESTABLISHED"}
    before = router.control.stats()
    stream.exchange(10)
    assert (router.control.stats() - before).fast >= 18


def test_flush(router, datagrams):
    assert router.control.stats().flows == 2
    before = router.control.stats()
    router.control.flush()
    assert router.control.stats().flows == 0
    datagrams.exchange(10)
    after = router.control.stats() - before
    assert after.gone["flushed"] == 2
    assert after.fast >= 10


def test_one_flow_can_be_dropped(router, datagrams):
    keep, drop = router.control.flows()
    router.control.flush(id=drop["id"])
    assert [flow["id"] for flow in router.control.flows()] == [keep["id"]]


def test_of_a_stream_both_flows_go(router):
    """Conntrack could not understand the answers to what it did not see, if those met no flow."""
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    stream.send(b"s" * 300_000)
    for reply in (0, 1):
        old = {flow["reply"]: flow["id"] for flow in router.control.flows()}
        router.control.flush(id=old[reply])
        # A late acknowledgement may have made new ones.
        assert not {flow["id"] for flow in router.control.flows()} & set(old.values())
        stream.exchange(10)
        assert len(router.control.flows()) == 2
    assert router.router.counter("ip filter", "invalid") == 0


def test_switching_off(router, datagrams):
    before = router.control.stats()
    router.control.disable()
    stats = router.control.stats()
    assert (stats.flows, stats.devices) == (0, 0)
    datagrams.exchange(10)
    after = router.control.stats() - before
    assert after.fast == 0
    assert after.gone["disabled"] == 2
    router.control.enable()
    datagrams.warm_up()
    before = router.control.stats()
    datagrams.exchange(10)
    assert (router.control.stats() - before).fast >= 18


def test_ip_forward_off(router, datagrams):
    router.forward(False)
    before = router.control.stats()
    assert not datagrams.request(timeout=0.2)
    assert (router.control.stats() - before).fast == 0
