# SPDX-License-Identifier: GPL-2.0
"""Packets that arrive on a port of a bridge go past it, as long as it would let them in as before."""

import contextlib
import json
import socket
import struct
import subprocess
import time

import pytest
from lab import devices
from lab.both import both
from lab.kernel import Received, wait_until
from lab.topology import Router
from lab.traffic import Datagrams, Stream, Wire
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from test_devices import Counters

COUNT = 50

#: Packets that are slow in the time of a test, and so meet the bridge, and the one of each direction that does after
#: something has changed.
FEW = COUNT // 5


@pytest.fixture
def received():
    looking = Received()
    yield looking
    looking.close()


class Bridged:
    """A router whose LAN is a bridge, and a conversation that is fast."""

    def __init__(self, received, family="ipv4", kind="bridge", conversation=Datagrams):
        self._received = received
        self.router = Router(lan=getattr(devices, kind), family=family)
        self.namespace, self.lan, self.control = self.router.router, self.router.lan, self.router.control
        #: The devices above the ports.
        self.above = ["lan0b", "lan0"] if kind in ("bridge_with_vlans", "bridge_with_a_trunk") else ["lan0"]
        self.control.enable()
        self.conversation = self.converse(conversation)
        self.settle()

    def converse(self, kind=Datagrams, **options):
        """One more conversation, which becomes fast."""
        conversation = kind(self.lan, self.router.wan, self.router.WAN, **options)
        self.router.until_removed(conversation).warm_up()
        return conversation

    def settle(self):
        """Whatever has just changed, packets have met since."""
        # Rules may have changed, too.
        time.sleep(0.3)
        self.conversation.exchange(5)

    def run(self, *command):
        """Runs a command on the router."""
        return self.namespace.run(*command)

    def meet(self, run=None):
        """How many packets the bridge has given the router, how many of these it says it has received, and how many
        were fast from there, while the conversation goes on."""
        def seen():
            counters = Counters(self.namespace)
            return (self._received.count(self.above[0]), min(counters.of(device)[0] for device in self.above),
                    self.control.stats().packets[0])
        before = seen()
        (run or (lambda: self.conversation.exchange(COUNT)))()
        return tuple(after - then for after, then in zip(seen(), before))

    def go_past(self):
        """The conversation's packets go past the bridge, by which they are counted."""
        met, packets, fast = self.meet()
        assert met <= FEW
        assert packets >= COUNT
        assert fast >= COUNT * 0.9

    def arrive(self, send):
        """How many datagrams of the conversation arrive, of as many as are sent."""
        with contextlib.closing(Wire(self.router.wan, "eth0", outgoing=False)) as wire:
            for _ in range(COUNT):
                send()
            return len(wire.packets(protocol=17))


@pytest.fixture
def make(received):
    made = []

    def make(*arguments, **options):
        made.append(Bridged(received, *arguments, **options))
        return made[-1]
    yield make
    for bridged in made:
        bridged.router.remove()


@both
@pytest.mark.parametrize("kind", ["bridge", "bridge_that_filters", "bridge_with_vlans", "bridge_with_a_trunk"])
@pytest.mark.parametrize("conversation", [Datagrams, Stream], ids=["udp", "tcp"])
def test_fast_packets_do_not_meet_the_bridge(make, family, kind, conversation):
    make(family, kind, conversation).go_past()


@pytest.mark.parametrize("kind", ["bridge", "bridge_with_vlans", "bridge_with_a_trunk"])
def test_counted_as_they_arrived(make, kind):
    """With what is behind short packets to make them as long as Ethernet wants them."""
    bridged = make(kind=kind)
    source = bridged.conversation.source[1]
    frame = (Ether(src=bridged.lan.mac("eth0"), dst=bridged.namespace.mac("lan0"))
             / IP(src=bridged.router.LAN, dst=bridged.router.WAN) / UDP(sport=source, dport=7) / b"12")
    frame = bytes(frame).ljust(60, b"\0")
    wire = bridged.router.until_removed(Wire(bridged.lan, "eth0"))

    def bytes_for(count):
        """What of the bridge's bytes is for so many; neighbours ask nothing meanwhile."""
        before = Counters(bridged.namespace)
        for _ in range(count):
            wire.put(frame)
        time.sleep(0.1)
        counted = Counters(bridged.namespace).since(before)
        return {counted[device][:2] for device in bridged.above}
    bridged.router.know_neighbours()
    bridged.settle()
    bytes_for(3)
    counted = []
    met, _, fast = bridged.meet(lambda: counted.append(bytes_for(COUNT)))
    assert met <= FEW and fast >= COUNT * 0.9
    # Without the Ethernet header.
    assert counted == [{(COUNT, COUNT * 46)}]


def hook_of_the_bridge(place):
    """A rule of the bridge's own family."""
    def obstacle(bridged):
        bridged.namespace.nft(f"""
            table bridge seen {{
                counter seen {{ }}
                chain seen {{ type filter hook {place} priority 0; counter name seen; }}
            }}
            """)
        return lambda: bridged.namespace.counter("bridge seen", "seen")
    obstacle.__name__ = f"bridge_{place}"
    return obstacle


def ingress_hook(bridged):
    """A chain at ingress of the bridge itself."""
    bridged.namespace.nft(f"""
        table netdev upper {{
            counter seen {{ }}
            chain arriving {{ type filter hook ingress device {bridged.above[0]} priority 0; counter name seen; }}
        }}
        """)
    return lambda: bridged.namespace.counter("netdev upper", "seen")


def classifier(bridged):
    """A classifier there."""
    bridged.run("tc", "qdisc", "add", "dev", bridged.above[0], "clsact")
    bridged.run("tc", "filter", "add", "dev", bridged.above[0], "ingress", "matchall", "action", "pass")

    def seen():
        found = json.loads(bridged.run("tc", "-j", "-s", "filter", "show", "dev", bridged.above[0], "ingress"))
        return next(action["stats"]["packets"] for item in found for action in
                    item.get("options", {}).get("actions", ()))
    return seen


def capture(bridged):
    """A capture there."""
    wire = bridged.router.until_removed(Wire(bridged.namespace, bridged.above[0], outgoing=False))
    total = []

    def seen():
        total.extend(wire.frames())
        return len(total)
    return seen


def choice_of_processors(bridged):
    """Other processors are to receive what the bridge lets in."""
    subprocess.run(["ip", "netns", "exec", bridged.namespace.name, "sh", "-c",
                    f"echo 1 > /sys/class/net/{bridged.above[0]}/queues/rx-0/rps_cpus"], check=True)


OBSTACLES = [hook_of_the_bridge("prerouting"), hook_of_the_bridge("input"), ingress_hook, classifier, capture,
             choice_of_processors]


@pytest.mark.parametrize("kind", ["bridge", "bridge_with_vlans"])
@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda each: each.__name__)
def test_what_is_put_on_a_bridge_sees_fast_packets(make, kind, obstacle):
    bridged = make(kind=kind)
    bridged.go_past()
    seen = obstacle(bridged)
    bridged.settle()
    before = seen() if seen else 0
    met, packets, fast = bridged.meet()
    assert fast >= COUNT * 0.9
    assert min(met, packets) >= COUNT
    if seen:
        assert COUNT <= seen() - before <= COUNT + 4


#: What can be changed about a bridge so that it lets a packet in no more, by the kind of bridge.
REFUSALS = {
    "port_disabled": ("bridge", ("bridge", "link", "set", "dev", "lan0p", "state", 0)),
    "port_locked": ("bridge", ("bridge", "link", "set", "dev", "lan0p", "learning", "off", "locked", "on")),
    "another_address": ("bridge", ("ip", "link", "set", "lan0", "address", "02:00:00:00:0b:77")),
    "not_of_the_vlan": ("bridge_that_filters", ("bridge", "vlan", "del", "dev", "lan0p", "vid", 1)),
    "itself_not_of_the_vlan": ("bridge_that_filters", ("bridge", "vlan", "del", "dev", "lan0", "vid", 1, "self")),
    "vlan_blocked": ("bridge_that_filters",
                     ("bridge", "vlan", "set", "dev", "lan0p", "vid", 1, "state", "blocking")),
    "not_of_the_upper_vlan": ("bridge_with_vlans", ("bridge", "vlan", "del", "dev", "lan0p", "vid", 7)),
    "bridge_not_of_the_upper_vlan": ("bridge_with_vlans", ("bridge", "vlan", "del", "dev", "lan0b", "vid", 7, "self")),
    "tag_not_allowed": ("bridge_with_a_trunk", ("bridge", "vlan", "del", "dev", "lan0p", "vid", 7)),
    "of_another_vlan": ("bridge_with_vlans", ("bridge", "vlan", "add", "dev", "lan0p", "vid", 8, "pvid", "untagged")),
    "filters": ("bridge", ("ip", "link", "set", "lan0", "type", "bridge", "vlan_filtering", 1)),
    "no_port_any_more": ("bridge", ("ip", "link", "set", "lan0p", "nomaster")),
}


@pytest.mark.parametrize("change", REFUSALS)
def test_what_a_bridge_lets_in_no_more_does_not_go_past_it(make, change):
    kind, command = REFUSALS[change]
    bridged = make(kind=kind)
    if change == "filters":
        # Its ports are of VLAN 1, of which untagged packets are, but the port is not that of any.
        bridged.run("bridge", "vlan", "del", "dev", "lan0p", "vid", 1)
        bridged.settle()
    if change == "port_locked":
        bridged.run("bridge", "fdb", "del", bridged.lan.mac("eth0"), "dev", "lan0p", "master")
        bridged.settle()
        # What it has learned since is deleted again below.
    bridged.go_past()
    bridged.run(*command)
    if change == "port_locked":
        bridged.run("bridge", "fdb", "del", bridged.lan.mac("eth0"), "dev", "lan0p", "master")
    before = bridged.control.stats().packets[0]
    assert bridged.arrive(bridged.conversation.send) == 0
    assert bridged.control.stats().packets[0] == before


#: What can be changed about it so that it has to be asked again, without another answer.
CHANGES = {
    "port_isolated": ("bridge", "link", "set", "dev", "lan0p", "isolated", "on"),
    "not_learning": ("bridge", "link", "set", "dev", "lan0p", "learning", "off"),
    "learned_by_hand": ("bridge", "fdb", "replace", "02:00:00:00:0b:88", "dev", "lan0q", "master", "static"),
    "ageing": ("ip", "link", "set", "lan0", "type", "bridge", "ageing_time", 1000),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_the_bridge_meets_the_next_packet(make, change):
    bridged = make()
    # With no sample in between.
    bridged.control.set(sample_interval=60_000)
    bridged.settle()

    def one_by_one():
        bridged.conversation.exchange(3)
    def goes_past():
        return bridged.meet(one_by_one)[0] == 0
    # New devices are announced once more within a second.
    wait_until(goes_past, what="the way past the bridge")
    bridged.run(*CHANGES[change])
    # And so are some changes.
    assert 1 <= bridged.meet(one_by_one)[0] <= 2
    wait_until(goes_past, what="the way past the bridge")


def learned(bridged, address):
    """The port at which the bridge believes an address to be."""
    found = json.loads(bridged.run("bridge", "-j", "fdb", "show", "br", "lan0"))
    return [entry["ifname"] for entry in found if entry["mac"] == address and "permanent" not in str(entry)]


@both
def test_the_bridge_learns_where_a_host_is_that_comes_back_in_silence(make, family):
    """One of its two conversations does not notice that it was away."""
    bridged = make(family)
    bridged.control.set(sample_interval=60_000)
    bridged.router.know_neighbours()
    router, lan = bridged.router, bridged.lan
    other = bridged.converse(port=9)
    bridged.settle()
    other.exchange(5)

    def move(new):
        lan.ip("link", "set", new, "up")
        lan.ip(router.option, "route", "replace", "default", "via", router.LAN_GATEWAY, "dev", new, "onlink")
        lan.ip("neigh", "replace", router.LAN_GATEWAY, "lladdr", bridged.namespace.mac("lan0"), "dev", new,
               "nud", "permanent")
    address = lan.mac("eth0")
    # The answers may come in by either.
    for device in ("all", "eth0", "eth1"):
        lan.sysctl(f"net.ipv4.conf.{device}.rp_filter", 0)
    bridged.conversation.send()
    wait_until(lambda: learned(bridged, address) == ["lan0p"], what="the port")
    move("eth1")
    other.send()
    wait_until(lambda: learned(bridged, address) == ["lan0q"], what="the other port")
    move("eth0")
    bridged.conversation.send()
    wait_until(lambda: learned(bridged, address) == ["lan0p"], what="the port again")
    bridged.conversation.drain()
    other.drain()
    # It has been met for that, and for that only.
    bridged.conversation.exchange(3)
    assert bridged.meet(lambda: bridged.conversation.exchange(10))[0] <= 2


def test_the_bridge_learns_of_everybody_who_sends_packets_of_a_flow(make):
    bridged = make()
    bridged.control.set(sample_interval=60_000)
    bridged.settle()
    stranger = "02:00:00:00:0c:01"
    wire = bridged.router.until_removed(Wire(bridged.lan, "eth0"))
    frame = (Ether(src=stranger, dst=bridged.namespace.mac("lan0")) / IP(src=bridged.router.LAN, dst=bridged.router.WAN)
             / UDP(sport=bridged.conversation.source[1], dport=7) / bytes(32))
    assert learned(bridged, stranger) == []
    wire.put(frame)
    wait_until(lambda: learned(bridged, stranger) == ["lan0p"], what="the stranger's port")


def test_a_bridge_that_counts_by_vlan_meets_all(make):
    bridged = make(kind="bridge_that_filters")
    bridged.go_past()
    bridged.run("ip", "link", "set", "lan0", "type", "bridge", "vlan_stats_enabled", 1)
    bridged.settle()
    met, _, fast = bridged.meet()
    assert met >= COUNT and fast >= COUNT * 0.9
    bridged.run("ip", "link", "set", "lan0", "type", "bridge", "vlan_stats_enabled", 0)
    bridged.settle()
    bridged.go_past()


def test_a_port_that_becomes_one_and_ceases_to_be(make):
    bridged = make()
    bridged.go_past()
    bridged.run("ip", "link", "set", "lan0p", "nomaster")
    bridged.run("ip", "link", "set", "lan0p", "master", "lan0")
    bridged.settle()
    bridged.go_past()
    # Another bridge takes it over: nothing of it is for this one any more.
    bridged.run("ip", "link", "add", "br1", "type", "bridge")
    bridged.run("ip", "link", "set", "br1", "up")
    bridged.run("ip", "link", "set", "lan0p", "master", "br1")
    assert bridged.arrive(bridged.conversation.send) == 0
    bridged.run("ip", "link", "set", "lan0p", "master", "lan0")
    bridged.settle()
    bridged.go_past()
    bridged.run("ip", "link", "del", "lan0")
    assert bridged.arrive(bridged.conversation.send) == 0


def test_nobody_else_can_send_to_what_listens_to_the_bridges(make):
    bridged = make()
    sockets = [line.split() for line in bridged.run("cat", "/proc/net/netlink").splitlines()[1:]]
    # Of routing netlink, with a number that no process has, and in groups.
    listening = [int(number) for _, protocol, number, groups, *_ in sockets
                 if protocol == "0" and int(number) >= 1 << 31 and int(groups, 16)]
    assert len(listening) == 1
    with contextlib.closing(bridged.namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) as stranger:
        stranger.bind((0, 0))
        message = struct.pack("=IHHIIBxHiII", 32, 16, 0, 0, 0, 0, 0, 1, 0, 0)
        with pytest.raises(ConnectionRefusedError):
            stranger.sendto(message, (listening[0], 0))
    bridged.go_past()
