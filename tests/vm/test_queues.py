# SPDX-License-Identifier: GPL-2.0
"""Queues on the device that packets leave by: those of fast flows are put where the slow path puts them."""

import contextlib
import json
import subprocess

import pytest

from lab import devices
from lab.both import both
from lab.topology import Router
from lab.traffic import Datagrams, Stream, Wire

COUNT = 30

MARK = """
table ip stamp {
    chain forward {
        type filter hook forward priority mangle;
        oifname "wan0" %s
    }
}
"""



@pytest.fixture
def make_router(family):
    made = []

    def make(rule=None, **options):
        router = Router(family=family, **options)
        made.append(router)
        # Questions for neighbours would be in the queues, too.
        router.know_neighbours()
        if rule:
            router.router.nft(MARK % rule)
        return router

    yield make
    for router in made:
        router.remove()


def tc(router, *arguments):
    return router.router.run("tc", *arguments)


def packets(router, what, device="wan0"):
    """What each queue, or class, or tin of cake, of a device has sent: packets by its number."""
    if what == "tin":
        cake, = json.loads(tc(router, "-s", "-j", "qdisc", "show", "dev", device))
        return {number: tin["sent_packets"] for number, tin in enumerate(cake["tins"])}
    found = json.loads(tc(router, "-s", "-j", what, "show", "dev", device))
    return {entry["handle"]: entry.get("stats", entry)["packets"] for entry in found}


def sent_by(router, what, run, device="wan0"):
    """The queues, or classes, by which a run's packets were sent, with their numbers."""
    before = packets(router, what, device)
    run()
    after = packets(router, what, device)
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


def as_slow(router, kind, what="class", tos=None, device="wan0"):
    """A conversation slow, then fast: its packets are sent by the same queues of a device. Gives which."""
    conversation = router.until_removed(kind(router.lan, router.wan, router.WAN))
    if tos is not None:
        conversation.set_tos(tos)
    conversation.warm_up()
    before = router.control.stats()
    slow = sent_by(router, what, lambda: conversation.exchange(COUNT), device)
    assert (router.control.stats() - before).fast == 0
    router.control.enable()
    conversation.warm_up()
    before = router.control.stats()
    fast = sent_by(router, what, lambda: conversation.exchange(COUNT), device)
    stats = router.control.stats() - before
    router.control.disable()
    conversation.close()
    assert min(stats.packets) >= COUNT * 0.9, (stats.packets, stats.reasons())
    assert slow.keys() == fast.keys(), (slow, fast)
    for name in slow:
        # TCP acknowledges sometimes more and sometimes less.
        few = 1 if kind is Datagrams else COUNT
        assert abs(slow[name] - fast[name]) <= few and fast[name] >= COUNT, (slow, fast)
    return set(fast)


@both
@pytest.mark.parametrize("qdisc", ["fq_codel", "cake", "fq", "pfifo_fast", "sfq"])
def test_every_packet_passes_the_queue(make_router, qdisc):
    router = make_router()
    tc(router, "qdisc", "replace", "dev", "wan0", "root", "handle", "1:", qdisc)
    for kind in (Datagrams, Stream):
        assert as_slow(router, kind, "qdisc") == {"1:"}


@both
def test_the_time_of_arrival_is_not_taken_for_one_of_departure(make_router):
    """With a capture packets are given the time at which they arrive, in the field in which `fq` finds the
    one at which they are to leave."""
    router = make_router()
    tc(router, "qdisc", "replace", "dev", "wan0", "root", "handle", "1:", "fq")
    with contextlib.closing(Wire(router.router, "lan0")):
        assert as_slow(router, Datagrams, "qdisc") == {"1:"}
    dropped, = (entry["drops"] for entry in json.loads(tc(router, "-s", "-j", "qdisc", "show", "dev", "wan0")))
    assert dropped == 0


def with_classes(router, device="wan0"):
    """A hierarchy of which class 1:30 gets what nobody else does."""
    tc(router, "qdisc", "replace", "dev", device, "root", "handle", "1:", "htb", "default", "30")
    for number in (10, 20, 30):
        tc(router, "class", "add", "dev", device, "parent", "1:", "classid", f"1:{number}", "htb", "rate", "1gbit")


def protocol(router):
    """What tc calls the version of IP."""
    return "ipv6" if router.is_v6 else "ip"


def add_filter(router, *arguments, device="wan0"):
    tc(router, "filter", "add", "dev", device, "parent", "1:", "protocol", protocol(router), "prio", 1, *arguments)


@pytest.fixture(params=[Datagrams, Stream])
def kind(request):
    return request.param


@both
def test_a_class_by_default(make_router, kind):
    router = make_router()
    with_classes(router)
    assert as_slow(router, kind) == {"1:30"}


@both
def test_a_class_by_priority(make_router, kind):
    router = make_router("meta priority set 1:10")
    with_classes(router)
    assert as_slow(router, kind) == {"1:10"}


@both
def test_a_class_by_priority_of_the_type_of_service(make_router):
    """The IP layer makes a priority of it, by which `prio` chooses a band; that of IPv6 does not."""
    router = make_router()
    tc(router, "qdisc", "replace", "dev", "wan0", "root", "handle", "1:", "prio")
    # What is interactive, what is not, and what is background.
    for tos, band in (0x10, "1:1"), (0x00, "1:2"), (0x08, "1:3"):
        assert as_slow(router, Datagrams, tos=tos) == {"1:2" if router.is_v6 else band}


@both
def test_a_class_by_mark(make_router, kind):
    router = make_router("meta mark set 0x20")
    with_classes(router)
    add_filter(router, "handle", "0x20", "fw", "flowid", "1:20")
    assert as_slow(router, kind) == {"1:20"}


@both
def test_a_class_by_mark_of_the_connection(make_router, kind):
    router = make_router("ct mark set 0x20 meta mark set ct mark")
    with_classes(router)
    add_filter(router, "handle", "0x20", "fw", "flowid", "1:20")
    assert as_slow(router, kind) == {"1:20"}


#: What a sender's DSCP makes of its packets.
BY_DSCP = "ip dscp ef meta mark set 0x20\n        oifname \"wan0\" ip dscp cs1 meta priority set 1:10"


def lower_device(kind):
    """A kind of device that lies on another one, where queues are."""
    if kind == "pppoe" and not devices.has_pppoe():
        pytest.skip("this kernel has no PPPoE: that of the flavour amd64 has")
    return {"wan": getattr(devices, kind)}


# One version of IP for each.
below = pytest.mark.parametrize("family, wide", [("ipv4", "vlan"), ("ipv6", "bridge"), ("ipv4", "pppoe")],
                                indirect=["family"])


@below
def test_classes_of_the_device_below(make_router, wide):
    """A shaper is usually there, where packets are whole; they have mark and priority with them."""
    router = make_router(BY_DSCP, **lower_device(wide))
    with_classes(router, "wan0p")
    tc(router, "filter", "add", "dev", "wan0p", "parent", "1:", "protocol", "all", "prio", 1,
       "handle", "0x20", "fw", "flowid", "1:20")
    for tos, classid in (0xb8, "1:20"), (0x20, "1:10"):
        assert classid in as_slow(router, Datagrams, tos=tos, device="wan0p")


@below
def test_the_tins_of_a_cake_on_the_device_below(make_router, wide):
    """By DSCP, which it finds behind a tag of a VLAN, but not behind what PPPoE adds."""
    router = make_router(**lower_device(wide))
    tc(router, "qdisc", "replace", "dev", "wan0p", "root", "handle", "1:", "cake", "diffserv4")
    # The first one is for what nobody waits for, the second one for the most, the last one for voice.
    for tin, tos in (0, 0x20), (3, 0xb8):
        seen = as_slow(router, Datagrams, "tin", tos=tos, device="wan0p")
        assert (1 if wide == "pppoe" else tin) in seen


FLOWER = ("flower", "ip_tos", "0xb8/0xfc", "flowid", "1:20")
U32 = ("u32", "match", "ip", "dsfield", "0xb8", "0xfc", "flowid", "1:20")
U32_IPV6 = ("u32", "match", "ip6", "priority", "0xb8", "0xfc", "flowid", "1:20")

by_dscp = pytest.mark.parametrize("by", [{"ipv4": FLOWER, "ipv6": FLOWER}, {"ipv4": U32, "ipv6": U32_IPV6}],
                                  ids=["flower", "u32"])


@both
@by_dscp
def test_a_class_by_dscp_of_the_sender(make_router, by):
    router = make_router()
    with_classes(router)
    add_filter(router, *by[router.family])
    assert as_slow(router, Datagrams, tos=0xb8) == {"1:20"}
    assert as_slow(router, Datagrams, tos=0x20) == {"1:30"}


@both
@by_dscp
def test_a_class_by_dscp_of_the_router(make_router, kind, by):
    router = make_router("ip dscp set ef")
    with_classes(router)
    add_filter(router, *by[router.family])
    assert as_slow(router, kind) == {"1:20"}


@pytest.mark.parametrize("family, wide", [("ipv4", "vlan"), ("ipv6", "bridge")], indirect=["family"])
@by_dscp
def test_a_class_of_the_device_below_by_dscp(make_router, wide, by):
    """Of the sender, and of the router. The tag of a VLAN is beside the packet, and is what filters are for there."""
    router = make_router("ip dscp af41 ip dscp set ef", **lower_device(wide))
    with_classes(router, "wan0p")
    arguments = by[router.family]
    if wide == "vlan" and by["ipv4"] is FLOWER:
        arguments = ("flower", "vlan_ethtype", "ipv4", *FLOWER[1:])
    tc(router, "filter", "add", "dev", "wan0p", "parent", "1:", "protocol",
       "802.1Q" if wide == "vlan" else protocol(router), "prio", 1, *arguments)
    for tos, classid in (0xb8, "1:20"), (0x20, "1:30"), (0x88, "1:20"):
        assert as_slow(router, Datagrams, tos=tos, device="wan0p") == {classid}


@both
def test_classes_of_a_sender_that_changes_its_dscp(make_router):
    """Each datagram is in the class of its own DSCP, however often that changes."""
    router = make_router()
    with_classes(router)
    add_filter(router, *FLOWER)
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()

    def run():
        for n in range(COUNT):
            datagrams.set_tos(0xb8 if n % 3 == 0 else 0)
            datagrams.exchange(1)
    assert sent_by(router, "class", run) == {"1:20": COUNT // 3, "1:30": COUNT - COUNT // 3}


@both
def test_a_filter_at_egress_sees_what_is_fast(make_router):
    """The hook for classifiers on the device that packets leave by."""
    router = make_router()
    tc(router, "qdisc", "add", "dev", "wan0", "clsact")
    tc(router, "filter", "add", "dev", "wan0", "egress", "protocol", protocol(router), "prio", 1,
       "flower", "ip_proto", "udp", "src_ip", router.WAN_GATEWAY, "action", "gact", "ok")

    def matched():
        found = json.loads(tc(router, "-s", "-j", "filter", "show", "dev", "wan0", "egress"))
        return sum(action["stats"]["packets"] for entry in found
                   for action in entry.get("options", {}).get("actions", []))
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    before, stats = matched(), router.control.stats()
    datagrams.exchange(COUNT)
    stats = router.control.stats() - stats
    assert min(stats.packets) >= COUNT * 0.9, stats.reasons()
    assert matched() - before == COUNT


#: The mark of a connection, whose DSCP 46 is in the bits 0xfc, and which says so by 0x100; and what restores it.
MARKED = "ct mark set 0x1b8"
RESTORE = ("matchall", "action", "ctinfo", "dscp", "0xfc", "0x100")


@both
def test_a_class_by_dscp_that_is_restored_where_packets_arrive(make_router, kind):
    """From the connection's mark, as SQM does it for the download."""
    router = make_router(MARKED)
    tc(router, "qdisc", "add", "dev", "wan0", "clsact")
    tc(router, "filter", "add", "dev", "wan0", "ingress", *RESTORE)
    with_classes(router, "lan0")
    add_filter(router, *FLOWER, device="lan0")
    assert as_slow(router, kind, device="lan0") == {"1:20"}


@both
def test_a_class_by_dscp_that_is_restored_where_packets_leave(make_router, kind):
    """Without NAT. With it conntrack's entry is not found by what leaves, see below."""
    router = make_router(MARKED)
    router.router.nft("delete table ip nat")
    tc(router, "qdisc", "add", "dev", "wan0", "clsact")
    tc(router, "filter", "add", "dev", "wan0", "egress", *RESTORE)
    with_classes(router)
    add_filter(router, *FLOWER)
    assert as_slow(router, kind) == {"1:20"}


@both
def test_what_is_restored_where_masqueraded_packets_leave_is_not_for_fast_ones(make_router):
    """Slow packets have their connection with them, fast ones do not; and by the addresses that they leave with it is
    not found."""
    router = make_router(MARKED)
    tc(router, "qdisc", "add", "dev", "wan0", "clsact")
    tc(router, "filter", "add", "dev", "wan0", "egress", *RESTORE)
    with_classes(router)
    add_filter(router, *FLOWER)
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    assert sent_by(router, "class", lambda: datagrams.exchange(COUNT)) == {"1:20": COUNT}
    router.control.enable(sample_interval=60000)
    datagrams.warm_up()
    assert sent_by(router, "class", lambda: datagrams.exchange(COUNT)) == {"1:30": COUNT}


def through_an_ifb(router):
    """Has what arrives from the WAN pass the queue of another device first, as SQM does it. Gives a function that says
    how many packets have."""
    subprocess.run(["modprobe", "ifb", "numifbs=0"], check=True)
    router.router.ip("link", "add", "ifb0", "type", "ifb")
    router.router.ip("link", "set", "ifb0", "up")
    tc(router, "qdisc", "replace", "dev", "ifb0", "root", "handle", "1:", "cake", "bandwidth", "100mbit", "ingress")
    tc(router, "qdisc", "add", "dev", "wan0", "clsact")
    tc(router, "filter", "add", "dev", "wan0", "ingress", "matchall", "action", "mirred", "egress", "redirect",
       "dev", "ifb0")

    def passed():
        device, = json.loads(router.router.ip("-j", "-s", "link", "show", "ifb0"))
        return device["stats64"]["tx"]["packets"]
    return passed


def stays_slow_through_an_ifb(router, conversation, passed):
    """What arrives from the WAN is slow and passes the ifb. What leaves is fast, unless it is TCP: conntrack has to know
    both's windows."""
    before, already = passed(), router.control.stats()
    invalid = router.router.counter("ip filter", "invalid")
    conversation.exchange(COUNT)
    stats = router.control.stats() - already
    few = 4 if isinstance(conversation, Datagrams) else 2 * COUNT
    assert COUNT <= passed() - before <= COUNT + few
    assert stats.packets[1] == 0
    assert stats.slow["unsupported"] >= COUNT, stats.reasons()
    assert stats.packets[0] >= COUNT * 0.9 if isinstance(conversation, Datagrams) else stats.fast == 0, stats.packets
    assert router.router.counter("ip filter", "invalid") == invalid


@both
def test_what_arrives_through_an_ifb_stays_slow(make_router, kind):
    """It goes on past all hooks at ingress."""
    router = make_router()
    passed = through_an_ifb(router)
    conversation = router.until_removed(kind(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    before = passed()
    conversation.exchange(COUNT)
    assert passed() - before >= COUNT
    router.control.enable()
    conversation.warm_up()
    stays_slow_through_an_ifb(router, conversation, passed)


@both
def test_an_ifb_that_is_put_under_a_fast_conversation(make_router, kind):
    """It is noticed when a packet comes out that has not met the hook, of TCP after the next sample."""
    router = make_router()
    router.control.enable()
    conversation = router.until_removed(kind(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(COUNT)
    assert min((router.control.stats() - before).packets) >= COUNT * 0.9
    passed = through_an_ifb(router)
    conversation.warm_up()
    stays_slow_through_an_ifb(router, conversation, passed)
