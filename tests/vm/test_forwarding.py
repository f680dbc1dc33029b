# SPDX-License-Identifier: GPL-2.0
"""What is fast arrives as it would have on the slow path."""

import pytest

from lab.both import both
from lab.topology import Router
from lab.traffic import Datagrams, Stream

NO_NAT = """
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state invalid drop
    }
}
"""

PORT_REWRITE = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan0" meta l4proto { tcp, udp } snat to 192.0.2.1:20000-20999
    }
}
"""


@pytest.fixture(params=["as on a wire", "with offloads"])
def make_router(request, family):
    made = []

    def make(**options):
        made.append(Router(offloads=request.param == "with offloads", family=family, **options))
        return made[-1]

    yield make
    for router in made:
        router.remove()


def both_ways_fast(router, conversation, count=50, **options):
    """Runs a conversation of which nearly all packets have to be fast in both directions."""
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(count, **options)
    after = router.control.stats() - before
    original, reply = after.packets
    assert original >= count * 0.9, (after.packets, after.reasons())
    assert reply >= count * 0.9, (after.packets, after.reasons())
    return after


@both
@pytest.mark.parametrize("rules", [NO_NAT, PORT_REWRITE, None], ids=["no NAT", "port rewrite", "masquerade"])
@pytest.mark.parametrize("kind", [Datagrams, Stream])
def test_from_the_lan(make_router, kind, rules):
    router = make_router(**({"firewall": rules} if rules else {}))
    router.control.enable()
    conversation = kind(router.lan, router.wan, router.WAN)
    both_ways_fast(router, conversation)
    address, port = conversation.seen_from
    assert address == (router.LAN if rules is NO_NAT else router.WAN_GATEWAY)
    if rules is PORT_REWRITE:
        assert 20000 <= port <= 20999
    conversation.close()


@both
def test_to_the_lan_by_dnat_with_another_port(make_router):
    router = make_router()
    router.control.enable()
    datagrams = Datagrams(router.wan, router.lan, router.WAN_GATEWAY, 8053, listen=(router.anywhere, 53))
    both_ways_fast(router, datagrams)
    datagrams.close()
    stream = Stream(router.wan, router.lan, router.WAN_GATEWAY, 8080, listen=(router.anywhere, 80))
    both_ways_fast(router, stream)
    stream.close()


@both
def test_bulk_transfer(make_router):
    router = make_router()
    router.control.enable()
    stream = Stream(router.lan, router.wan, router.WAN)
    stream.warm_up()
    before = router.control.stats()
    stream.send(bytes(range(256)) * 16384)
    stream.send(bytes(range(256)) * 16384, back=True)
    after = router.control.stats() - before
    slow = sum(after.slow.values())
    assert after.fast > 100 and slow <= 0.05 * after.fast, (after.packets, after.reasons())
    assert router.router.counter("ip filter", "invalid") == 0
    stream.close()


def test_ipv4_by_way_of_an_ipv6_gateway(router):
    """The next hop is a neighbour of IPv6, whose cached header says so."""
    for namespace, device, address in ((router.router, "wan0", "fe80::1"), (router.wan, "eth0", "fe80::2")):
        namespace.enable_ipv6()
        namespace.ip("addr", "add", f"{address}/64", "dev", device, "nodad")
    router.router.ip("route", "replace", f"{router.WAN}/32", "via", "inet6", "fe80::2", "dev", "wan0")
    router.control.enable()
    both_ways_fast(router, router.until_removed(Datagrams(router.lan, router.wan, router.WAN)))


@both
@pytest.mark.parametrize("size", [0, 1, 7, 18, 19, -1, None], ids=lambda size: "all" if size is None else size)
def test_every_length(router, size):
    size = router.most if size is None else size % router.most
    router.control.enable()
    datagrams = Datagrams(router.lan, router.wan, router.WAN)
    both_ways_fast(router, datagrams, 10, size=max(size, 4))
    datagrams.close()


@both
def test_udp_without_checksum(router):
    router.control.enable()
    datagrams = Datagrams(router.lan, router.wan, router.WAN)
    datagrams.set_checksum(False)
    both_ways_fast(router, datagrams)
    datagrams.close()
