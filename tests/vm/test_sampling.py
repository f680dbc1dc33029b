# SPDX-License-Identifier: GPL-2.0
"""Now and then a packet of each flow takes the slow path, and what it meets there counts."""

import os
import time

import pytest

from lab.both import both
from lab.kernel import wait_until
from lab.traffic import Datagrams

pytestmark = both


@pytest.fixture
def datagrams(router):
    router.control.enable()
    conversation = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    conversation.exchange(5)
    return conversation


def test_one_packet_a_second_and_direction(router, datagrams):
    before = router.control.stats()
    started = time.monotonic()
    while time.monotonic() - started < 5:
        datagrams.exchange(10)
    seconds = time.monotonic() - started
    sampled = (router.control.stats() - before).slow["sampled"]
    assert 2 * (seconds - 2) <= sampled <= 2 * (seconds + 2)


def test_a_flow_goes_on_when_its_packets_come_through_another_processor(router, datagrams):
    """There the routes of IPv6 are other ones, which lead to the same place."""
    processors = sorted(os.sched_getaffinity(0))
    assert len(processors) > 1
    try:
        known = None
        for processor in processors * 2:
            os.sched_setaffinity(0, {processor})
            before = router.control.stats()
            while (router.control.stats() - before).slow["sampled"] < 2:
                datagrams.exchange(10)
            flows = {flow["id"] for flow in router.control.flows()}
            assert known in (None, flows)
            known = flows
    finally:
        os.sched_setaffinity(0, processors)


def test_the_rules_count_samples(router, datagrams):
    before = router.router.counter("ip filter", "established")
    started = time.monotonic()
    while time.monotonic() - started < 3:
        datagrams.exchange(5)
    assert router.router.counter("ip filter", "established") - before >= 3


def test_a_rule_that_drops_an_established_flow_stops_it(router, datagrams):
    datagrams.exchange(5)
    router.router.nft("insert rule ip filter forward udp dport 7 drop")
    added = time.monotonic()
    while datagrams.request(timeout=0.2):
        assert time.monotonic() - added < 1.5 + 0.2
    # And it stays stopped.
    for _ in range(20):
        assert not datagrams.request(timeout=0.02)


def test_a_flow_whose_samples_do_not_come_out_is_dropped(router, datagrams):
    router.router.nft("insert rule ip filter forward udp dport 7 drop")
    before = router.control.stats()

    def lost():
        datagrams.request(timeout=0.01)
        return (router.control.stats() - before).gone["sample-lost"] >= 1

    wait_until(lost, 10, "a flow gone for a lost sample")


def test_what_the_slow_path_does_now_the_fast_path_does_after_the_sample(router, datagrams):
    """Mark, priority and DSCP are those that the rules give."""
    router.router.nft("""
        table ip stamp {
            chain forward {
                type filter hook forward priority mangle;
                iifname "lan0" meta mark set 0x42 meta priority set 1:6 ip dscp set cs3
            }
        }
        table netdev seen {
            counter stamped { }
            counter other { }
            chain egress {
                type filter hook egress device "wan0" priority 0;
                ip protocol udp meta mark 0x42 meta priority 1:6 ip dscp cs3 counter name stamped return
                ip protocol udp counter name other
            }
        }
    """)
    time.sleep(1.1)
    datagrams.exchange(3)
    other = router.router.counter("netdev seen", "other")
    stamped = router.router.counter("netdev seen", "stamped")
    before = router.control.stats()
    datagrams.exchange(20)
    assert (router.control.stats() - before).packets[0] >= 18
    assert router.router.counter("netdev seen", "stamped") - stamped == 20
    assert router.router.counter("netdev seen", "other") == other
    flow, = router.control.flows(reply=0)
    assert (flow["packet-mark"], flow["priority"], flow["dscp-in"], flow["dscp-out"]) == (0x42, 0x10006, 0, 24)


def test_another_dscp_is_another_question(router, datagrams):
    """A flow that changes its DSCP is decided about anew, and DSCP and ECN pass through."""
    datagrams.set_tos(0xb8 | 1)
    before = router.control.stats()
    datagrams.exchange(20)
    after = router.control.stats() - before
    assert after.slow["dscp"] >= 1
    assert after.packets[0] >= 17
    flow, = router.control.flows(reply=0)
    assert (flow["dscp-in"], flow["dscp-out"]) == (46, 46)
