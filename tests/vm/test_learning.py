# SPDX-License-Identifier: GPL-2.0
"""What is learned, and what never is."""

import socket
import struct
import time

import pytest

from lab.both import both
from lab.held import Queue
from lab.kernel import wait_until
from lab.traffic import Datagrams, Stream


def nothing_fast(router, conversation, reason, count=20):
    """Runs a conversation of which no packet may be fast, all for one reason."""
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(count)
    after = router.control.stats() - before
    assert after.fast == 0
    assert after.slow[reason] >= 2 * count, after.reasons()
    return after


@pytest.fixture
def datagrams(router):
    return router.until_removed(Datagrams(router.lan, router.wan, router.WAN))


def test_switched_off_nothing_is_learned(router, datagrams):
    datagrams.warm_up()
    datagrams.exchange(10)
    stats = router.control.stats()
    assert (stats.fast, stats.flows, stats.devices, sum(stats.slow.values())) == (0, 0, 0, 0)


@both
def test_one_way_traffic_is_not_established(router, datagrams):
    router.control.enable()
    for _ in range(20):
        assert datagrams.request()
    stats = router.control.stats()
    assert (stats.fast, stats.learned) == (0, 0)
    assert stats.reasons() == {"not-established": 20}


@both
def test_each_direction_is_learned_from_its_own_packets(router, datagrams):
    router.control.enable()
    datagrams.exchange(1)
    time.sleep(0.3)
    for _ in range(10):
        assert datagrams.reply()
    flows = router.control.flows()
    assert [flow["reply"] for flow in flows] == [1]
    flow, = flows
    assert flow["source"] == router.WAN and flow["nat-destination"] == router.LAN
    assert flow["in-ifindex"] == router.router.index("wan0")
    assert flow["out-ifindex"] == router.router.index("lan0")


@both
def test_a_connection_of_four_packets_is_not_learned(router, datagrams):
    """But one that goes on, with the third of either direction."""
    router.control.enable(learn_after=3)
    datagrams.warm_up()
    before = router.control.stats()
    for port in range(1000, 1008):
        short = router.until_removed(Datagrams(router.lan, router.wan, router.WAN, port))
        short.exchange(2)
    after = router.control.stats() - before
    assert after.reasons() == {"learning": 32}
    # An exception is made now and then.
    assert after.learned <= 1

    def directions():
        return {flow["reply"] for flow in router.control.flows() if port in (flow["source-port"], flow["destination-port"])}
    assert short.request()
    assert directions() >= {0}
    assert short.reply()
    assert directions() == {0, 1}


@both
def test_the_packet_that_a_flow_is_made_of_confirms_it(router, datagrams):
    """With its third packet a direction is learned, and the fourth is fast."""
    router.control.enable(learn_after=3)
    datagrams.warm_up()
    other = router.until_removed(Datagrams(router.lan, router.wan, router.WAN, 8))
    before = router.control.stats()
    other.exchange(3)
    after = router.control.stats() - before
    assert (after.fast, after.learned) == (0, 2)
    assert after.reasons() == {"learning": 6}
    other.exchange(5)
    assert (router.control.stats() - before).fast == 10


@both
def test_no_packet_confirms_a_flow_that_has_others_behind_it(router, datagrams):
    """They would be overtaken: here by what comes while they are with a program behind a queue."""
    router.router.nft("""
        table inet held {
            chain forward {
                type filter hook forward priority filter + 10;
                meta l4proto udp queue num 5
            }
        }
        """)
    queue = router.until_removed(Queue(router.router, 5))
    router.control.enable(learn_after=3)
    datagrams.warm_up()
    other = router.until_removed(Datagrams(router.lan, router.wan, router.WAN, 8))
    other.exchange(2)
    before = router.control.stats()
    with queue.held():
        sent = [other.send() for _ in range(2)]
    assert other.receive(2) == sent
    assert (router.control.stats() - before).learned == 1
    assert other.request()
    assert (router.control.stats() - before).fast == 0, "it confirms the flow"
    assert other.request()
    assert (router.control.stats() - before).fast == 1


def test_devices_are_attached_by_themselves_and_only_those(router, datagrams):
    router.control.enable()
    assert router.control.stats().devices == 0
    datagrams.warm_up()
    assert router.control.stats().devices == 2


@both
def test_the_marked_stay_slow(router, datagrams):
    router.router.nft("""
        table ip mark_all {
            chain forward {
                type filter hook forward priority mangle;
                ct mark set ct mark or 0x08000000
            }
        }
    """)
    router.control.enable()
    nothing_fast(router, datagrams, "marked")


def test_only_the_masked_bits_count(router, datagrams):
    router.router.nft("""
        table ip mark_all {
            chain forward {
                type filter hook forward priority mangle;
                ct mark set 0xf7ffffff
            }
        }
    """)
    router.control.enable()
    datagrams.warm_up()
    before = router.control.stats()
    datagrams.exchange(20)
    assert (router.control.stats() - before).fast >= 38
    router.control.set(mark_value=0x10, mark_mask=0xf0)
    datagrams.exchange(5)
    before = router.control.stats()
    datagrams.exchange(20)
    assert (router.control.stats() - before).fast >= 38
    router.control.set(mark_value=0xf0, mark_mask=0xf0)
    nothing_fast(router, datagrams, "marked")


@both
def test_untracked_stays_slow(router, datagrams):
    router.router.nft("""
        table ip no_tracking {
            chain prerouting {
                type filter hook prerouting priority raw;
                notrack
            }
        }
        flush chain ip filter forward
        add rule ip filter forward accept
    """)
    router.control.enable()
    nothing_fast(router, datagrams, "untracked")


def test_connections_with_a_helper_stay_slow(router):
    router.router.nft("""
        table ip helpers {
            ct helper ftp-standard {
                type "ftp" protocol tcp
            }
            chain prerouting {
                type filter hook prerouting priority filter;
                tcp dport 21 ct helper set "ftp-standard"
            }
        }
    """)
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN, 21))
    nothing_fast(router, stream, "helper")


@both
def test_connections_through_a_syn_proxy_stay_slow(router):
    """The router has answered the client itself, and moves the server's sequence numbers."""
    router.router.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    router.router.nft("""
        table ip proxy {
            chain prerouting {
                type filter hook prerouting priority raw;
                iifname "lan0" tcp dport 80 tcp flags syn notrack
            }
            chain forward {
                type filter hook forward priority filter - 1;
                iifname "lan0" tcp dport 80 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
            }
        }
        insert rule ip filter forward ct state untracked accept
    """)
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN, 80))
    nothing_fast(router, stream, "sequence-adjusted")


@both
def test_a_related_connection_is_fast_once_established(router):
    """The data connection of FTP: expected by the control connection, which stays slow."""
    router.router.nft("""
        table ip helpers {
            ct helper ftp-standard {
                type "ftp" protocol tcp
            }
            chain prerouting {
                type filter hook prerouting priority filter;
                tcp dport 21 ct helper set "ftp-standard"
            }
        }
    """)
    router.control.enable()
    control = router.until_removed(Stream(router.lan, router.wan, router.WAN, 21))
    answer = b"229 Entering Extended Passive Mode (|||51210|)" if router.is_v6 else \
        b"227 Entering Passive Mode (192,0,2,2,200,10)"
    control.send(answer + b"\r\n", back=True)
    data = router.until_removed(Stream(router.lan, router.wan, router.WAN, 200 * 256 + 10))
    data.warm_up()
    before = router.control.stats()
    data.exchange(20)
    assert (router.control.stats() - before).fast >= 38


@both
def test_the_handshake_is_slow_and_the_stream_fast(router):
    router.control.enable()
    # A first connection attaches the devices.
    router.until_removed(Stream(router.lan, router.wan, router.WAN, 81)).warm_up()
    before = router.control.stats()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.exchange(30)
    after = router.control.stats() - before
    assert after.fast >= 50, after.reasons()
    assert after.slow["not-established"] >= 1
    flows = router.control.flows(**{"protocol": "0x6"})
    assert {flow["reply"] for flow in flows if flow["packets"] > 20} == {0, 1}


@both
def test_rewriting_that_is_no_nat_stays_slow(router):
    """Rules give requests another port after NAT, and answers the old one before conntrack sees them: to it the
    connection is an established one."""
    router.router.nft("""
        table ip rewriting {
            chain prerouting {
                type filter hook prerouting priority raw;
                iifname "wan0" udp sport 9 udp sport set 7
            }
            chain postrouting {
                type filter hook postrouting priority 200;
                oifname "wan0" udp dport 7 udp dport set 9
            }
        }
    """)
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN, listen=(router.anywhere, 9)))
    datagrams.warm_up()
    before = router.control.stats()
    datagrams.exchange(20)
    stats = router.control.stats() - before
    assert stats.fast == 0
    # What arrives with another port than conntrack's has no flow.
    assert stats.reasons() == {"mangled": 20, "learning": 20}
    entry = router.conntrack("-L", "-p", "udp", "--orig-port-dst", "7")
    assert "dport=7" in entry and "UNREPLIED" not in entry


def route_multicast(router, group):
    """Has the router send on to its WAN what the host of its LAN sends to a group."""
    lan, wan = (router.router.index(device) for device in ("lan0", "wan0"))
    # <linux/mroute.h>, <linux/mroute6.h>: first the devices get numbers, here 0 and 1.
    init, add_device, add_route = 200, 202, 204
    if router.is_v6:
        family, level, protocol = socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPPROTO_ICMPV6
        devices = [struct.pack("HBBHI", number, 0, 1, index, 0) for number, index in enumerate((lan, wan))]
        route = b"".join(struct.pack("HHI16sI", family, 0, 0, socket.inet_pton(family, address), 0)
                         for address in (router.LAN, group)) + struct.pack("HI28x", 0, 1 << 1)
    else:
        family, level, protocol = socket.AF_INET, socket.IPPROTO_IP, socket.IPPROTO_IGMP
        by_index = 8
        devices = [struct.pack("HBBIi4x", number, by_index, 1, 0, index) for number, index in enumerate((lan, wan))]
        route = b"".join(map(socket.inet_aton, (router.LAN, group))) + struct.pack("H32s18x", 0, bytes([0, 1]))
    # What it is told holds as long as it is there.
    routing = router.until_removed(router.router.socket(family, socket.SOCK_RAW, protocol))
    routing.setsockopt(level, init, 1)
    for device in devices:
        routing.setsockopt(level, add_device, device)
    routing.setsockopt(level, add_route, route)


@both
def test_forwarded_multicast_stays_slow(router, datagrams):
    """It leaves the IP layer as what the router itself sends to a group; nor could anybody answer with its address."""
    router.control.enable()
    # So that the devices are attached.
    datagrams.warm_up()
    family, group = (socket.AF_INET6, "ff0e::77") if router.is_v6 else (socket.AF_INET, "239.0.0.77")
    route_multicast(router, group)
    sender = router.until_removed(router.lan.socket(family, socket.SOCK_DGRAM))
    sender.bind((router.LAN, 0))
    receiver = router.until_removed(router.wan.socket(family, socket.SOCK_DGRAM))
    receiver.bind((group, 7000))
    receiver.settimeout(2)
    lan, wan = router.lan.index("eth0"), router.wan.index("eth0")
    if router.is_v6:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, lan)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
        membership = struct.pack("16sI", socket.inet_pton(family, group), wan)
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    else:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("8xi", lan))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        membership = struct.pack("4s4xi", socket.inet_aton(group), wan)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    before = router.control.stats()
    for number in range(20):
        sender.sendto(bytes([number]), (group, 7000))
        assert receiver.recv(100) == bytes([number])
    after = router.control.stats() - before
    assert (after.fast, after.learned, after.reasons()) == (0, 0, {})


@both
def test_nothing_local_is_learned(router):
    """Traffic of the router's own is none of fasttrack's."""
    router.control.enable()
    own = router.until_removed(Datagrams(router.lan, router.router, router.LAN_GATEWAY))
    own.warm_up()
    own.exchange(10)
    stats = router.control.stats()
    assert (stats.fast, stats.learned, sum(stats.slow.values())) == (0, 0, 0)


def test_a_full_table_leaves_new_flows_slow_and_old_ones_fast(router):
    router.control.enable(table_size=16)
    conversations = [router.until_removed(Datagrams(router.lan, router.wan, router.WAN, 1000 + n))
                     for n in range(12)]
    conversations[0].warm_up()
    for conversation in conversations[1:]:
        conversation.exchange(4)
    stats = router.control.stats()
    assert stats.flows == 16
    assert stats.slow["table-full"] > 0
    before = router.control.stats()
    conversations[0].exchange(20)
    after = router.control.stats() - before
    assert after.fast >= 38, after.reasons()
    # As flows go, others get their place.
    router.control.flush()
    wait_until(lambda: conversations[-1].exchange(3) or router.control.stats().flows >= 2)


def test_packets_that_had_a_mark_before_stay_slow(router, datagrams):
    """What gave it to them may have meant something by it that the memo does not know of."""
    router.router.nft("""
        table netdev early {
            chain ingress {
                type filter hook ingress device "lan0" priority 0;
                udp dport 7 meta mark set 7
            }
        }
    """)
    router.control.enable()
    datagrams.warm_up()
    before = router.control.stats()
    datagrams.exchange(10)
    after = router.control.stats() - before
    assert after.packets[0] == 0
    assert after.slow["packet-mark"] == 10, after.reasons()
    assert after.packets[1] >= 9
    # Each of them once.
    assert after.fast + sum(after.slow.values()) == 20, (after.packets, after.reasons())


def test_a_route_with_an_encapsulation_of_its_own_stays_slow(router, datagrams):
    """Here one for tunnel devices, of which the plain one that it goes out by takes no notice."""
    router.control.enable()
    router.router.ip("route", "add", f"{router.WAN}/32", "encap", "ip", "id", 7, "dst", router.WAN, "dev", "wan0")
    datagrams.warm_up()
    before = router.control.stats()
    datagrams.exchange(10)
    after = router.control.stats() - before
    assert after.packets[0] == 0
    assert after.slow["route-type"] == 10, after.reasons()
    assert after.packets[1] >= 9
