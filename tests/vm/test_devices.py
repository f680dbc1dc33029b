# SPDX-License-Identifier: GPL-2.0
"""Kinds of device: packets are fast from and to each of them, and arrive as they do on the slow path."""

import contextlib
import json
import re
import subprocess
import time

import pytest
from lab import devices, leaks
from lab.both import both
from lab.kernel import wait_until
from lab.topology import Router
from lab.traffic import Datagrams, Stream, Wire, hops_left

COUNT = 30

#: No rule asks for the device that a packet came in by.
NO_FIREWALL = """
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state invalid drop
    }
}
"""

MASQUERADE = NO_FIREWALL + """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan0" masquerade
    }
}
"""


@pytest.fixture
def make_router(family):
    made = []

    def make(**options):
        made.append(Router(family=family, **options))
        return made[-1]

    yield make
    for router in made:
        router.remove()


def conversations(router, kinds=(Datagrams, Stream)):
    """UDP and TCP from the LAN to the WAN."""
    return [router.until_removed(kind(router.lan, router.wan, router.WAN)) for kind in kinds]


class Counters:
    """Packets and bytes that each device of a namespace has received and sent."""

    def __init__(self, namespace):
        found = json.loads(namespace.run("ip", "-j", "-s", "link"))
        self._of = {device["ifname"]: tuple(device["stats64"][way][unit] for way in ("rx", "tx")
                                            for unit in ("packets", "bytes"))
                    for device in found}

    def of(self, device):
        """Those of a device."""
        return self._of[device]

    def since(self, before):
        """The difference, by device."""
        return {name: tuple(now - then for now, then in zip(self._of[name], before._of[name]))
                for name in self._of}


def counted(router, run):
    """What a run adds to the counters of the router's devices, and to the statistics."""
    devices_before, before = Counters(router.router), router.control.stats()
    run()
    # Devices in software count some packets a moment after they have arrived.
    time.sleep(0.2)
    return Counters(router.router).since(devices_before), router.control.stats() - before


def alike(slow, fast, kind):
    """Whether the same traffic was counted alike by a device."""
    # Some packets more are the neighbours' questions, which the slow path asks too. And on a slow machine
    # TCP may acknowledge each message by a packet of its own, or with the next one.
    tolerance = 4 if kind is Datagrams else COUNT
    return (all((a >= COUNT) == (b >= COUNT) for a, b in zip(slow[::2], fast[::2]))
            and all(abs(a - b) <= tolerance for a, b in zip(slow[::2], fast[::2]))
            and all(abs(a - b) <= tolerance * 150 for a, b in zip(slow[1::2], fast[1::2])))


def fast_as_slow(router, kinds=(Datagrams, Stream), ways=(True, True), by=None, uncounted=(),
                 enters="lan0", returns="wan0"):
    """The same traffic slow, then fast: it arrives, by the same devices, which count it alike.

    `ways` says which of original and reply are to be fast, `by` the reason of those that are not.
    """
    for conversation in conversations(router, kinds):
        conversation.warm_up()
        slow, stats = counted(router, lambda: conversation.exchange(COUNT))
        assert stats.fast == 0
        router.control.enable()
        conversation.warm_up()
        fast, stats = counted(router, lambda: conversation.exchange(COUNT))
        for packets, expected in zip(stats.packets, ways):
            if expected:
                assert packets >= COUNT * 0.9, (stats.packets, stats.reasons())
            else:
                assert packets == 0, (stats.packets, stats.reasons())
        if by:
            assert stats.slow[by] >= COUNT, stats.reasons()
        for name in slow:
            if name not in uncounted:
                assert alike(slow[name], fast[name], type(conversation)), (name, slow[name], fast[name])
        # Found without a list of devices. What stays slow may be a flow, too, that is never confirmed.
        found = {(flow["in-ifindex"], flow["out-ifindex"]) for flow in router.control.flows()}
        index = router.router.index
        possible = (index(enters), index("wan0")), (index(returns), index("lan0"))
        assert {way for way, expected in zip(possible, ways) if expected} <= found <= set(possible)
        router.control.disable()


KINDS = ["link", "card", "vlan", "qinq", "bridge", "bridge_that_filters", "bridge_with_vlans", "bond_active_backup",
         "bond_balance_xor", "macvlan", "tun", "tap", "gre", "gre_with_checksum", "ipip", "ip6tnl", "ip6gre", "vxlan",
         "l2tp", "wireguard"]

#: What does for IPv6 what the other does for IPv4.
IPV6_KIND = {"ipip": "sit", "l2tp": "l2tp_without_udp"}

#: For IPv6 both sides in one test, to keep the number of tests down.
sides = pytest.mark.parametrize("family, sides", [("ipv4", ["lan"]), ("ipv4", ["wan"]), ("ipv6", ["lan", "wan"])],
                                ids=["ipv4-lan", "ipv4-wan", "ipv6-both"], indirect=["family"])


@sides
@pytest.mark.parametrize("kind", KINDS)
def test_fast_from_and_to(make_router, family, kind, sides):
    if family == "ipv6":
        kind = IPV6_KIND.get(kind, kind)
    fast_as_slow(make_router(**{side: getattr(devices, kind) for side in sides}))


@sides
def test_fast_from_and_to_pppoe(make_router, sides):
    if subprocess.run(["modinfo", "pppoe"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel has no PPPoE: that of the flavour amd64 has")
    fast_as_slow(make_router(**{side: devices.pppoe for side in sides}))


# For IPv6 they are above.
@pytest.mark.parametrize("kind", ["vlan", "bridge_with_vlans", "gre", "vxlan", "wireguard"])
def test_fast_between_two_of_a_kind(make_router, kind):
    fast_as_slow(make_router(lan=getattr(devices, kind), wan=getattr(devices, kind)))


@both
def test_fast_from_and_to_a_vlan_whose_tags_are_in_the_packets(make_router):
    """The cable does not carry tags beside the packet, as hardware that knows nothing of VLANs."""
    router = make_router(lan=devices.vlan)
    for namespace, device in ((router.lan, "eth0p"), (router.router, "lan0p")):
        namespace.run("ethtool", "-K", device, "txvlan", "off", "rxvlan", "off")
    fast_as_slow(router)


@both
def test_fast_on_a_vrf(make_router):
    # To the firewall packets come in by the VRF's own device. That counts what passes it in the IP
    # layer, where fast packets are not.
    router = make_router(lan=devices.vrf, wan=devices.vrf, firewall=MASQUERADE)
    fast_as_slow(router, uncounted=("vrf0",))


@both
def test_a_device_that_leaves_its_vrf_takes_no_packets_with_it(make_router):
    """The routes of the VRF are not those of the device any more."""
    router = make_router(lan=devices.vrf, wan=devices.vrf, firewall=MASQUERADE)
    router.control.enable()
    datagrams, = conversations(router, [Datagrams])
    datagrams.warm_up()
    router.router.ip("link", "set", "lan0", "nomaster")
    net = router.address("10.0.0.0/24")
    wait_until(lambda: "lan0" in router.router.ip(router.option, "route", "show", net))
    sink = Wire(router.wan, "eth0", outgoing=False)

    def run():
        for _ in range(COUNT):
            # It may be told that there is no route.
            with contextlib.suppress(OSError):
                datagrams.send()
    moved, stats = counted(router, run)
    assert stats.fast == 0
    assert moved["lan0"][0] >= COUNT / 2
    assert not sink.packets(protocol=17)
    sink.close()


@both
@pytest.mark.parametrize("side", ["lan", "wan"])
def test_fast_between_a_vrf_and_none(make_router, side):
    router = make_router(**{side: devices.vrf}, firewall=NO_FIREWALL)
    for net, device, its_side in (("10.0.0.0/24", "lan0", "lan"), ("192.0.2.0/24", "wan0", "wan")):
        table = ("table", "main") if its_side == side else ("vrf", "vrf0")
        router.router.ip("route", "add", router.address(net), "dev", device, *table)
    fast_as_slow(router, uncounted=("vrf0",))


@both
def test_fast_to_and_from_an_ipvlan_that_has_the_address(make_router):
    fast_as_slow(make_router(wan=devices.ipvlan))


@both
def test_fast_past_an_ipvlan_that_has_not(make_router):
    """Of what is for other hosts the device below keeps what arrives, and sees nothing of what leaves."""
    fast_as_slow(make_router(lan=devices.ipvlan, firewall=NO_FIREWALL), enters="lan0p")


def conntrack_counted(router):
    """What conntrack has counted of datagrams: packets and bytes of both directions."""
    return [tuple(map(int, pair)) for pair in re.findall(r"packets=(\d+) bytes=(\d+)",
                                                         router.conntrack("-L", "-p", "udp"))]


@both
@pytest.mark.parametrize("kind", ["bridge", "bridge_with_vlans"])
def test_a_host_that_moves_to_another_port_of_a_bridge(make_router, kind):
    router = make_router(lan=getattr(devices, kind))
    router.router.sysctl("net.netfilter.nf_conntrack_acct", 1)
    router.lan.ip("link", "set", "eth1", "address", router.lan.mac("eth0"))
    router.control.enable()
    for conversation in conversations(router):
        conversation.warm_up()
        for old, new, port_left, port_taken in (("eth0", "eth1", "lan0p", "lan0q"),
                                                ("eth1", "eth0", "lan0q", "lan0p")):
            router.lan.ip("addr", "del", f"{router.LAN}/{router.net}", "dev", old)
            router.lan.ip("link", "set", new, "up")
            router.lan.ip("addr", "add", f"{router.LAN}/{router.net}", "dev", new)
            router.lan.ip("route", "replace", "default", "via", router.LAN_GATEWAY, "dev", new)
            before = conntrack_counted(router)
            # Its next packet tells the bridge.
            conversation.exchange(3)
            at_the_old_port = Wire(router.router, port_left)
            devices_moved, stats = counted(router, lambda: conversation.exchange(COUNT))
            assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
            assert not at_the_old_port.packets()
            at_the_old_port.close()
            received, _, sent, _ = devices_moved[port_taken]
            assert min(received, sent) >= COUNT
            if isinstance(conversation, Datagrams):
                # With headers; nothing else arrives.
                packets, size = COUNT + 3, 32 + 8 + router.header
                assert conntrack_counted(router) == [(a + packets, b + packets * size) for a, b in before]
    assert not router.control.stats().gone["device"]


@pytest.fixture
def bridge_firewall():
    """Bridges show their packets to the IP layer's hooks."""
    subprocess.run(["modprobe", "br_netfilter"], check=True)
    yield
    subprocess.run(["modprobe", "-r", "br_netfilter"], check=True)


@both
def test_packets_that_a_bridge_has_shown_to_the_firewall_stay_slow(bridge_firewall, make_router):
    """They have their connection before they arrive on the bridge. To the bridge they are fast."""
    router = make_router(lan=devices.bridge)
    router.router.sysctl(f"net.bridge.bridge-nf-call-ip{'6' if router.is_v6 else ''}tables", 1)
    fast_as_slow(router, [Datagrams], ways=(False, True), by="unsupported")


@both
def test_a_bond_whose_port_fails(make_router):
    router = make_router(wan=devices.bond_active_backup)
    router.control.enable()

    def both_use(port):
        for namespace, device in ((router.router, "wan0"), (router.wan, "eth0")):
            wait_until(lambda: f"Currently Active Slave: {device}{port}\n" in
                       namespace.run("cat", f"/proc/net/bonding/{device}"))
    for conversation in conversations(router):
        both_use("p")
        conversation.warm_up()
        router.router.ip("link", "set", "wan0p", "down")
        both_use("q")
        conversation.exchange(3)
        moved, stats = counted(router, lambda: conversation.exchange(COUNT))
        assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
        assert min(moved["wan0q"][0], moved["wan0q"][2]) >= COUNT
        router.router.ip("link", "set", "wan0p", "up")


@both
def test_fast_into_a_dummy(make_router):
    """What is sent into a dummy is gone: so the route leads there after the flow was learned."""
    router = make_router(firewall=NO_FIREWALL)
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    router.router.ip("link", "add", "dummy0", "type", "dummy")
    router.router.ip("link", "set", "dummy0", "up")
    router.router.ip("route", "add", f"{router.WAN}/{router.host}", "dev", "dummy0")
    sink = Wire(router.router, "dummy0")

    def send():
        for _ in range(COUNT):
            datagrams.send()
    send()
    sink.packets()
    moved, stats = counted(router, send)
    assert stats.packets[0] >= COUNT * 0.9, (stats.packets, stats.reasons())
    # A new device tells of the groups that it listens to, with IPv6.
    assert COUNT <= moved["dummy0"][2] <= COUNT + (4 if router.is_v6 else 0)
    assert moved["wan0"][2] == 0
    arrived = sink.packets(destination=router.WAN)
    sink.close()
    assert len(arrived) == COUNT and all(hops_left(packet.payload) == 63 for packet in arrived)
    assert {packet.load[:4] for packet in arrived} == {
        number.to_bytes(4, "big") for number in range(datagrams.sent - COUNT + 1, datagrams.sent + 1)}


@both
@pytest.mark.parametrize("side", ["lan", "wan"])
def test_an_xfrm_interface_encrypts_and_has_decrypted_what_is_fast_only_if_asked_for(make_router, side):
    """The interface is the device that packets are sent to, and they do not show that it will transform them. All the
    same both directions are slow, unless IPsec is accelerated."""
    router = make_router(**{side: devices.xfrmi}, firewall=NO_FIREWALL)
    outside = router.until_removed(Wire(router.router, f"{side}0p"))
    fast_as_slow(router, [Datagrams], ways=(False, False), by="ipsec")
    router.control.set(ipsec="accelerate")
    fast_as_slow(router, [Stream])
    seen = outside.packets()
    leaks.none([packet for packet in seen if getattr(packet.payload, "proto", "IPv6") != 50])
    assert len(seen) > 6 * COUNT


# What a VLAN or a bridge would be sent past: each is put on the router's device, and gives a function that says
# how many packets it has seen.

def capture(router):
    """A capture on the upper device."""
    wire = router.until_removed(Wire(router.router, "wan0", incoming=False))
    return lambda: len(wire.frames())


def discipline(router):
    """A queueing discipline on the upper device."""
    router.router.run("tc", "qdisc", "add", "dev", "wan0", "root", "handle", "7:", "pfifo")
    return lambda: json.loads(router.router.run("tc", "-j", "-s", "qdisc", "show", "dev", "wan0"))[0]["packets"]


def classifier(router):
    """A classifier at the egress of the upper device."""
    router.router.run("tc", "qdisc", "add", "dev", "wan0", "clsact")
    router.router.run("tc", "filter", "add", "dev", "wan0", "egress", "matchall", "action", "pass")

    def seen():
        found = json.loads(router.router.run("tc", "-j", "-s", "filter", "show", "dev", "wan0", "egress"))
        return next(action["stats"]["packets"] for item in found for action in
                    item.get("options", {}).get("actions", ()))
    return seen


def egress_hook(router):
    """A chain at the egress of the upper device."""
    router.router.nft("""
        table netdev upper {
            counter seen { }
            chain leaving {
                type filter hook egress device wan0 priority 0;
                counter name seen
            }
        }
        """)
    return lambda: router.router.counter("netdev upper", "seen")


@pytest.mark.parametrize("kind, family", [("vlan", "ipv4"), ("bridge", "ipv4"), ("bridge_with_vlans", "ipv6")],
                         indirect=["family"])
@pytest.mark.parametrize("obstacle", [capture, discipline, classifier, egress_hook], ids=lambda each: each.__name__)
def test_what_is_put_on_a_vlan_or_a_bridge_sees_fast_packets(make_router, kind, obstacle):
    router = make_router(wan=getattr(devices, kind))
    router.control.enable()
    datagrams, = conversations(router, [Datagrams])
    datagrams.warm_up()
    seen = obstacle(router)
    # Rules may have changed.
    datagrams.exchange(3)
    time.sleep(0.3)
    datagrams.exchange(3)
    before = seen()
    moved, stats = counted(router, lambda: datagrams.exchange(COUNT))
    assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
    # A capture begins anew when it has been read.
    assert COUNT <= seen() - (0 if obstacle is capture else before) <= COUNT + 4
    assert COUNT <= moved["wan0"][2] <= COUNT + 4
    # By either of a bridge's ports: the host answers on both of its own.
    assert COUNT <= sum(moved.get(port, (0, 0, 0))[2] for port in ("wan0p", "wan0q")) <= COUNT + 4


@pytest.mark.parametrize("reorders", ["on", "off"])
def test_the_priority_of_a_vlan(make_router, reorders):
    """What the slow path gives a packet as priority is in its tag, whoever adds that."""
    router = make_router(wan=devices.vlan, firewall=NO_FIREWALL + """
        table ip mangle {
            chain postrouting {
                type filter hook postrouting priority mangle;
                oifname "wan0" meta priority set 0:3
            }
        }
        """)
    router.router.ip("link", "set", "wan0", "type", "vlan", "reorder_hdr", reorders, "egress-qos-map", "3:5")
    router.wan.nft("""
        table netdev tags {
            counter right { }
            chain arriving {
                type filter hook ingress device eth0p priority 0;
                vlan id 7 vlan pcp 5 counter name right
            }
        }
        """)
    router.control.enable()
    datagrams, = conversations(router, [Datagrams])
    datagrams.warm_up()
    before = router.wan.counter("netdev tags", "right")
    moved, stats = counted(router, lambda: datagrams.exchange(COUNT))
    assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
    assert router.wan.counter("netdev tags", "right") - before == COUNT
    assert COUNT <= moved["wan0"][2] <= COUNT + 4


def test_the_address_of_a_vlan_and_of_its_neighbour(make_router):
    """The kernel caches no header for a VLAN: it is made of what is known at the time."""
    router = make_router(wan=devices.vlan)
    router.control.enable()
    datagrams, = conversations(router, [Datagrams])
    datagrams.warm_up()
    router.router.ip("link", "set", "wan0", "address", "02:00:00:00:77:01")
    router.wan.ip("link", "set", "eth0", "address", "02:00:00:00:77:02")
    router.wan.ip("neigh", "flush", "dev", "eth0")
    router.router.ip("neigh", "replace", router.WAN, "lladdr", "02:00:00:00:77:02", "dev", "wan0")
    router.wan.nft("""
        table netdev addresses {
            counter right { }
            chain arriving {
                type filter hook ingress device eth0 priority 0;
                ether saddr 02:00:00:00:77:01 ether daddr 02:00:00:00:77:02 meta l4proto udp counter name right
            }
        }
        """)
    datagrams.exchange(3)
    before = router.wan.counter("netdev addresses", "right")
    _, stats = counted(router, lambda: datagrams.exchange(COUNT))
    assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
    assert router.wan.counter("netdev addresses", "right") - before == COUNT
