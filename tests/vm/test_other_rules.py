# SPDX-License-Identifier: GPL-2.0
"""Rules that do something else than to accept and to drop, and rules of iptables."""

import contextlib
import socket
import time

import pytest

from lab.both import both
from lab.held import Queue
from lab.kernel import wait_until
from lab.topology import Router
from lab.traffic import Datagrams, Stream

COUNT = 30
IP_TRANSPARENT = 19


@pytest.fixture
def datagrams(router):
    return router.until_removed(Datagrams(router.lan, router.wan, router.WAN))


def fast(router, conversation, count=COUNT):
    """A conversation both of whose directions are fast."""
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(count)
    stats = router.control.stats() - before
    assert min(stats.packets) >= count * 0.9, (stats.packets, stats.reasons())
    return stats


def slow(router, conversation, reason, count=COUNT):
    """One of which none is, for a reason."""
    conversation.exchange(2)
    before = router.control.stats()
    conversation.exchange(count)
    stats = router.control.stats() - before
    assert stats.fast == 0 and stats.slow[reason] >= 2 * count, (stats.packets, stats.reasons())


MARK = """
table ip exclude {
    chain forward {
        type filter hook forward priority mangle;
        meta l4proto udp ct mark set ct mark or 0x08000000
    }
}
"""


# Rules that hand packets to a program.


@both
def test_a_program_behind_a_queue_sees_samples_or_all_that_is_excluded(router, datagrams):
    router.router.nft("""
        table ip held {
            chain forward {
                type filter hook forward priority filter + 10;
                meta l4proto udp queue num 5
            }
        }
        """)
    queue = router.until_removed(Queue(router.router, 5))
    datagrams.exchange(COUNT)
    assert queue.seen == 2 * COUNT
    router.control.enable()
    datagrams.warm_up()
    seen = queue.seen
    stats = fast(router, datagrams)
    # Those before that were slow, too.
    assert queue.seen - seen <= sum(stats.slow.values()) + 20
    router.router.nft(MARK)
    seen = queue.seen
    slow(router, datagrams, "marked")
    assert queue.seen - seen == 2 * COUNT + 4


def test_a_transparent_proxy_takes_over_a_fast_flow(router, datagrams):
    """What it gets is for the router itself, which nothing is learned of."""
    proxy = router.until_removed(router.router.socket(socket.AF_INET, socket.SOCK_DGRAM))
    proxy.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    proxy.bind(("0.0.0.0", 5000))
    proxy.settimeout(2)
    router.router.ip("rule", "add", "fwmark", 1, "lookup", 100)
    router.router.ip("route", "add", "local", "default", "dev", "lo", "table", 100)
    router.control.enable()
    fast(router, datagrams)
    router.router.nft("""
        table ip divert {
            chain prerouting {
                type filter hook prerouting priority mangle;
                iifname "lan0" udp dport 7 tproxy to :5000 meta mark set 1 accept
            }
        }
        """)
    before = router.control.stats()
    for _ in range(COUNT):
        sent = datagrams.send()
        assert proxy.recv(65536) == sent
    assert (router.control.stats() - before).packets[0] == 0
    router.router.nft("delete table ip divert")
    fast(router, datagrams)


# Rules that limit.


def test_a_limit_of_connections_holds_while_they_are_fast(router):
    """They are counted when they begin, which no flow does."""
    router.router.nft("""
        table ip limits {
            set clients { type ipv4_addr; flags dynamic; }
            chain forward {
                type filter hook forward priority filter - 10;
                iifname "lan0" ct state new add @clients { ip saddr ct count over 2 } reject with tcp reset
            }
        }
        """)
    router.control.enable()

    def connect(port):
        return router.until_removed(Stream(router.lan, router.wan, router.WAN, port))
    first, second = connect(80), connect(81)
    for stream in (first, second):
        fast(router, stream)
    with pytest.raises(ConnectionRefusedError):
        connect(82)
    first.reset()

    def connects():
        with contextlib.suppress(ConnectionRefusedError):
            return connect(83)
    fast(router, wait_until(connects, 10, pause=0.3))


def test_a_limit_of_bytes_is_noticed_by_a_sample(router, datagrams):
    """By what conntrack has counted, in which fast packets are."""
    router.router.sysctl("net.netfilter.nf_conntrack_acct", 1)
    router.router.nft("""
        table ip limits {
            chain forward {
                type filter hook forward priority filter - 10;
                ct original bytes > 100000 drop
            }
        }
        """)
    router.control.enable()
    datagrams.warm_up()
    before = router.control.stats()
    passed = 0
    # With 28 bytes of headers.
    while datagrams.request(size=972):
        passed += 1
        assert passed < 50000
    stats = router.control.stats() - before
    # It may go on for as long as the sampling interval.
    assert passed >= 95 and stats.packets[0] >= 60, (passed, stats.reasons())
    assert not any(datagrams.request(timeout=0.1) for _ in range(10))


def test_a_limit_of_a_rate_holds_for_what_is_excluded_only(router, datagrams):
    """As the README says: the rule sees samples."""
    router.router.nft("""
        table ip limits {
            chain forward {
                type filter hook forward priority filter - 10;
                iifname "lan0" meta l4proto udp limit rate over 1/minute burst 40 packets drop
            }
        }
        """)
    router.control.enable()
    fast(router, datagrams, 4 * COUNT)
    router.router.nft(MARK)
    for _ in range(3 * COUNT):
        datagrams.send()
    assert len(datagrams.receive(3 * COUNT)) <= 40


# Rules of iptables, as it used to be: not by way of nf_tables.


class Legacy:
    """A router whose rules are iptables'."""

    def __init__(self, family):
        self.router = Router(firewall=None, family=family)
        self._command = "ip6tables-legacy" if family == "ipv6" else "iptables-legacy"
        for rule in ("-P FORWARD DROP",
                     "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
                     "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
                     "-A FORWARD -i lan0 -j ACCEPT",
                     "-t nat -A POSTROUTING -o wan0 -j MASQUERADE",
                     "-t mangle -A FORWARD -o wan0 -j MARK --set-mark 0x42",
                     "-t mangle -A POSTROUTING -o wan0 -j DSCP --set-dscp 46"):
            self(rule)

    def __call__(self, rule):
        return self.router.router.run(self._command, "-w", *rule.split())

    def counted(self, target):
        """Packets that rules with a target have counted."""
        lines = self("-t nat -vnxL").splitlines() + self("-vnxL").splitlines() + self("-t mangle -vnxL").splitlines()
        return sum(int(line.split()[0]) for line in lines if target in line.split())


@pytest.fixture
def legacy(family):
    rules = Legacy(family)
    yield rules
    rules.router.remove()


@both
def test_flows_under_rules_of_iptables_are_fast(legacy):
    """And are treated as these say."""
    router = legacy.router
    router.wan.nft("""
        table ip seen {
            counter right { }
            chain arriving {
                type filter hook prerouting priority raw;
                udp dport 7 ip saddr 192.0.2.1 ip dscp ef counter name right
            }
        }
        """ if not router.is_v6 else f"""
        table ip6 seen {{
            counter right {{ }}
            chain arriving {{
                type filter hook prerouting priority raw;
                udp dport 7 ip6 saddr {router.WAN_GATEWAY} ip6 dscp ef counter name right
            }}
        }}
        """)
    router.control.enable()
    for kind in (Stream, Datagrams):
        conversation = router.until_removed(kind(router.lan, router.wan, router.WAN))
        fast(router, conversation)
    before = router.wan.counter("ip6 seen" if router.is_v6 else "ip seen", "right")
    ruled = legacy.counted("MARK")
    fast(router, conversation)
    assert router.wan.counter("ip6 seen" if router.is_v6 else "ip seen", "right") - before >= COUNT
    # Of the requests they have seen samples.
    assert legacy.counted("MARK") - ruled <= COUNT / 2
    assert {flow["packet-mark"] for flow in router.control.flows(reply=0)} == {0x42}


@both
def test_a_rule_of_iptables_is_noticed_by_a_sample_or_when_flows_are_flushed(legacy):
    """Nobody is told of such rules."""
    router = legacy.router
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    drop = "FORWARD -p udp -j DROP"
    router.control.enable(sample_interval=60000)
    fast(router, datagrams)
    legacy(f"-I {drop}")
    # Not yet.
    datagrams.exchange(10)
    router.control.flush()
    assert not any(datagrams.request(timeout=0.1) for _ in range(10))
    legacy(f"-D {drop}")
    fast(router, datagrams)
    router.control.set(sample_interval=100)
    time.sleep(0.2)
    datagrams.exchange(10)
    legacy(f"-I {drop}")
    wait_until(lambda: not datagrams.request(), 10)
    assert not any(datagrams.request(timeout=0.1) for _ in range(10))
