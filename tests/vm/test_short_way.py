# SPDX-License-Identifier: GPL-2.0
"""Packets for a device made of software alone, such as a VLAN, a bridge, a veth or a PPPoE session, are given to it
at once, past its queue."""

import json
import time

import pytest
from lab import devices
from lab.kernel import Queued
from lab.topology import Router
from lab.traffic import Datagrams
from test_devices import capture, classifier, discipline, egress_hook

COUNT = 50

#: For each kind of device, by which of those below it packets leave.
KINDS = {
    "link": (),
    "vlan": ("wan0p",),
    "bridge": ("wan0p", "wan0q"),
    "bridge_with_vlans": ("wan0p", "wan0q"),
    "pppoe": ("wan0p",),
}


def needs(kind):
    """Ends the test where there is no such kind."""
    if kind == "pppoe" and not devices.has_pppoe():
        pytest.skip("this kernel has no PPPoE: that of the flavour amd64 has")


@pytest.fixture
def queued():
    looking = Queued()
    yield looking
    looking.close()


@pytest.mark.parametrize("kind, family", [*((kind, "ipv4") for kind in KINDS), ("vlan", "ipv6"),
                                          ("bridge_with_vlans", "ipv6")])
def test_fast_packets_pass_the_queue_of_a_device_that_has_none(queued, kind, family):
    needs(kind)
    router = Router(wan=getattr(devices, kind), family=family)
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()

    def queued_in(run):
        """How many packets are queued for the device, and for those below it; how many it says it has sent; and
        how many were slow."""
        def seen():
            stats = router.control.stats()
            device, = json.loads(router.router.ip("-j", "-s", "link", "show", "wan0"))
            sent = device["stats64"]["tx"]["packets"]
            return (queued.count("wan0"), sum(map(queued.count, KINDS[kind])), sent, sum(stats.slow.values()))
        before = seen()
        run()
        return tuple(after - then for after, then in zip(seen(), before))

    upper, lower, sent, slow = queued_in(lambda: datagrams.exchange(COUNT))
    # Beside those that are slow there may be a question or two of a neighbour.
    assert upper <= slow + 3
    assert slow <= COUNT / 5
    if KINDS[kind]:
        assert COUNT <= lower <= COUNT + 4
    assert COUNT <= sent <= COUNT + 4
    # With something on the device that is to see them they take its queue: so they would have been seen.
    router.router.run("tc", "qdisc", "add", "dev", "wan0", "clsact")
    router.router.run("tc", "filter", "add", "dev", "wan0", "egress", "matchall", "action", "pass")
    time.sleep(0.1)
    upper, lower, sent, _ = queued_in(lambda: datagrams.exchange(COUNT))
    assert min(upper, sent) >= COUNT
    if KINDS[kind]:
        assert lower >= COUNT
    router.remove()


@pytest.mark.parametrize("obstacle", [capture, discipline, classifier, egress_hook], ids=lambda each: each.__name__)
def test_what_is_put_on_a_session_of_pppoe_sees_fast_packets(obstacle):
    """As on a VLAN or a bridge, see test_devices."""
    needs("pppoe")
    router = Router(wan=devices.pppoe)
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    seen = obstacle(router)
    # Rules may have changed.
    datagrams.exchange(3)
    time.sleep(0.3)
    datagrams.exchange(3)
    already, before = seen(), router.control.stats()
    datagrams.exchange(COUNT)
    stats = router.control.stats() - before
    assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
    # A capture begins anew when it has been read.
    assert seen() - (0 if obstacle is capture else already) == COUNT
    router.remove()
