# SPDX-License-Identifier: GPL-2.0
"""Packets that are lists of packets: where one of them ends and the next one begins is not changed."""

import socket

import pytest

from lab import devices
from lab.devices import link
from lab.topology import Router
from lab.traffic import Datagrams, Stream, Wire

COUNT = 30

NO_NAT = """
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan0" accept
    }
}
"""


@pytest.fixture
def make_router():
    made = []

    def make(**options):
        made.append(Router(**options))
        made[-1].control.enable()
        return made[-1]

    yield make
    for router in made:
        router.remove()


class Association(Stream):
    """An SCTP association."""

    TYPE = (socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    NODELAY = (socket.IPPROTO_SCTP, 3)


def test_sctp_that_the_sender_gives_in_one(make_router):
    """Of such a list the first packet is nothing but headers; all else is for the router to split."""
    router = make_router(lan=devices.offloading(link), firewall=NO_NAT)
    association = router.until_removed(Association(router.lan, router.wan, router.WAN, 5000))
    association.warm_up()
    large = Wire(router.router, "lan0", outgoing=False)
    before = router.control.stats()
    for _ in range(3):
        association.send(bytes(range(256)) * 800)
    stats = router.control.stats() - before
    frames = large.frames()
    large.close()
    lists = [frame for frame in frames if len(frame) > 1514]
    assert len(lists) >= 10 and max(map(len, lists)) > 3000
    assert stats.packets[0] <= len(frames) - len(lists), (stats.packets, len(frames), len(lists))
    assert stats.slow["mangled"] == len(lists), (len(lists), stats.reasons())
    # Small ones are no lists.
    before = router.control.stats()
    association.exchange(COUNT)
    stats = router.control.stats() - before
    assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())


def test_small_datagrams_that_the_router_has_merged_into_a_list_under_a_capture(make_router):
    """With a capture there are two who have a packet, so that its headers are copied before they are changed. They are
    all that the first packet has."""
    router = make_router()
    router.router.run("ethtool", "-K", "lan0", "gro", "on", "rx-gro-list", "on")
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    capture = Wire(router.router, "lan0", outgoing=False)
    before = router.control.stats()
    for _ in range(COUNT):
        sent = datagrams.send_in_one(8, 4)
        assert datagrams.receive(8) == sent
    stats = router.control.stats() - before
    capture.close()
    assert stats.packets[0] >= 3
    # More than one to a packet.
    assert stats.bytes[0] / stats.packets[0] > 40, (stats.packets, stats.bytes, stats.reasons())
