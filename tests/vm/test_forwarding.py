# SPDX-License-Identifier: GPL-2.0
"""What is fast arrives as it would have on the slow path."""

import contextlib
from pathlib import Path

import pytest

from lab.both import both
from lab.devices import links
from lab.kernel import wait_until
from lab.namespace import Namespace
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


# In and out by the same device.

HAIRPIN = NO_NAT + """
table ip nat {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 8000 dnat to 10.0.0.77:80
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        iifname "lan0" oifname "lan0" masquerade
    }
}
"""


def switched(other):
    """A kind: a switch, to which another host is connected as well."""
    def kind(host, host_device, router, router_device, offloads=False):
        switch = Namespace("switch")
        ports = {"port1": (host, host_device), "port2": (other, "eth0"), "port3": (router, router_device)}
        links(*((switch, port, *end) for port, end in ports.items()), offloads=offloads)
        switch.ip_batch(["link add br0 type bridge mcast_snooping 0", "link set br0 up",
                         *(f"link set {port} master br0" for port in ports)])
        closing = contextlib.ExitStack()
        closing.callback(switch.remove)
        return closing
    return kind


class Turned:
    """A LAN host and another one on the same switch, that only hear of each other by way of the router."""

    def __init__(self, family, way):
        self.has_nat = way == "NAT"
        self.other = Namespace("other")
        if family == "ipv6":
            self.other.enable_ipv6()
        self.router = Router(family=family, lan=switched(self.other), firewall=HAIRPIN if self.has_nat else NO_NAT)
        own, net = self.router.address("10.0.0.77"), self.router.net
        if way == "two nets":
            own, gateway = (self.router.address(f"198.51.100.{host}") for host in (2, 1))
            self.router.router.ip("addr", "add", f"{gateway}/{net}", "dev", "lan0")
            self.other.ip_batch([f"addr add {own}/{net} dev eth0", f"route add default via {gateway}"])
        else:
            self.other.ip_batch([f"addr add {own}/{net} dev eth0"])
        if way == "host routes":
            for host, distant in ((self.router.lan, own), (self.other, self.router.LAN)):
                host.ip("route", "add", f"{distant}/{self.router.host}", "via", self.router.LAN_GATEWAY)
        self._target = (self.router.WAN_GATEWAY, 8000) if self.has_nat else (own, 80)
        for host in (self.router.lan, self.other):
            # They do not do what they are told.
            for scope in ("all", "eth0"):
                host.sysctl(f"net.ipv4.conf.{scope}.accept_redirects", 0)
                host.sysctl(f"net.ipv6.conf.{scope}.accept_redirects", 0)
        self.router.lan.nft("""
            table netdev told {
                counter redirects { }
                chain arriving {
                    type filter hook ingress device eth0 priority 0;
                    icmp type redirect counter name redirects
                    icmpv6 type nd-redirect counter name redirects
                }
            }
            """)

    def conversation(self, kind):
        """One between the two."""
        return self.router.until_removed(kind(self.router.lan, self.other, *self._target,
                                              listen=(self.router.anywhere, 80)))

    def told(self):
        """How often the LAN host has been told of a better way."""
        return self.router.lan.counter("netdev told", "redirects")

    def remove(self):
        """Removes it all."""
        self.router.remove()
        self.other.remove()


@pytest.fixture
def always_told():
    """With IPv4 a host that does not do what it is told is told again all the same. The limits are the same for all
    namespaces."""
    silence = Path("/proc/sys/net/ipv4/route/redirect_silence")
    before = silence.read_text(encoding="ascii")
    silence.write_text("0", encoding="ascii")
    yield
    silence.write_text(before, encoding="ascii")


@pytest.fixture(params=["NAT", "two nets", "host routes"])
def turned(always_told, family, request):
    hosts = Turned(family, request.param)
    yield hosts
    hosts.remove()


@both
def test_out_by_the_device_it_came_by(turned):
    """The sender is told of a better way as by the slow path, which with IPv4 and NAT says nothing, but only when a
    packet is slow, as a sample is."""
    router, index = turned.router, turned.router.router.index("lan0")
    is_silent = turned.has_nat and not router.is_v6

    def since(before):
        conversation.exchange(5)
        return router.control.stats() - before

    for kind in (Datagrams, Stream):
        conversation, before, told = turned.conversation(kind), router.control.stats(), turned.told()
        # With IPv6 that may be a second after it was told of the last conversation.
        wait_until(lambda: since(before) and (is_silent or turned.told() > told), 10, "a redirect by the slow path")
        router.control.enable()
        both_ways_fast(router, conversation)
        assert conversation.seen_from[0] == (router.LAN_GATEWAY if turned.has_nat else router.LAN)
        assert {(flow["in-ifindex"], flow["out-ifindex"]) for flow in router.control.flows()} == {(index, index)}
        before, told = router.control.stats(), turned.told()
        wait_until(lambda: since(before).slow["sampled"] >= 2 and (is_silent or turned.told() > told), 10,
                   "a redirect because of a sample")
        after = since(before)
        assert after.fast > 0 and turned.told() - told <= sum(after.slow.values()), (after.packets, after.reasons())
        router.control.disable()
    assert not (is_silent and turned.told())
