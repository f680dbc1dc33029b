# SPDX-License-Identifier: GPL-2.0
"""Very many flows, and more than there is room for."""

import os
import re
import socket
import struct
import threading
from pathlib import Path

import pytest

from lab.both import both
from lab.kernel import wait_until
from lab.topology import Router
from lab.traffic import Datagrams, Generator, family_of

RULES = """
table ip filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan0" accept
    }
}
"""

#: Connections that come and go in the largest test, with IPv4. A processor that is not emulated takes a million.
COUNT = int(os.environ.get("FASTTRACK_TEST_FLOWS", "100000"))

pytestmark = both


class Strangers:
    """UDP conversations between two hosts that don't exist: of each a question, an answer, and then one
    more of both, by which the flows are learned."""

    #: So many ask before the first is answered.
    AT_ONCE = 5000

    def __init__(self, router):
        addresses = [router.address(address) for address in ("10.0.0.77", "192.0.2.77")]
        self._sides = []
        for (namespace, device), own, other in zip(((router.lan, "lan0"), (router.wan, "wan0")),
                                                   addresses, reversed(addresses)):
            mac = namespace.mac("eth0")
            router.router.ip("neigh", "replace", own, "lladdr", mac, "dev", device, "nud", "permanent")
            self._sides.append(router.until_removed(
                Generator(namespace, "eth0", own, other, (mac, router.router.mac(device)))))
        #: Conversations so far.
        self.count = 0

    def meet(self, count=1, rounds=2):
        """`count` conversations that there have not been before."""
        while count > 0:
            # Each block of 60 000 has its port of the other side.
            block, at = divmod(self.count, 60_000)
            some = min(count, self.AT_ONCE, 60_000 - at)
            ports = range(1024 + at, 1024 + at + some), range(1024 + block, 1025 + block)
            for _ in range(rounds):
                for side, order in zip(self._sides, (ports, ports[::-1])):
                    side.send(some, *order)
            self.count += some
            count -= some


@pytest.fixture
def router(family):
    topology = Router(firewall=RULES, family=family)
    # Half-minute timeouts would keep all of them at once.
    for name in ("udp_timeout", "udp_timeout_stream"):
        topology.router.sysctl(f"net.netfilter.nf_conntrack_{name}", 8)
    yield topology
    topology.remove()


@pytest.fixture
def much_conntrack():
    """Room for many connections; the limit is the same for all namespaces."""
    files = [Path("/proc/sys/net/netfilter/nf_conntrack_max"), Path("/sys/module/nf_conntrack/parameters/hashsize")]
    before = [file.read_text(encoding="ascii") for file in files]
    for file in files:
        file.write_text(str(max(4 * COUNT, 65536)), encoding="ascii")
    yield
    for file, text in zip(files, before):
        file.write_text(text, encoding="ascii")


@pytest.fixture
def conversation(router):
    """One that is fast, and remains so."""
    router.control.enable()
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()
    return datagrams


CACHE = Path("/sys/kernel/slab/fasttrack_flow")


def shrink():
    """Has the flows' cache give back what is empty."""
    (CACHE / "shrink").write_text("1", encoding="ascii")


def objects():
    """Flows that the kernel has memory for."""
    shrink()
    return int((CACHE / "objects").read_text(encoding="ascii").split()[0])


def cache_bytes():
    """What the flows' cache takes of memory."""
    order, slabs = (int((CACHE / name).read_text(encoding="ascii").split()[0]) for name in ("order", "slabs"))
    return (4096 << order) * slabs


def in_the_background(work):
    """Runs something in a thread; gives it, and a list that what it raised is put into."""
    errors = []

    def run():
        try:
            work()
        except Exception as error:  # pylint: disable=broad-except
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


class Arrivals:
    """What arrives of the strangers' packets, though nobody has their addresses."""

    def __init__(self, router):
        self._hosts = (router.lan, router.wan)
        version = "ip6" if router.is_v6 else "ip"
        for host, address in zip(self._hosts, ("10.0.0.77", "192.0.2.77")):
            host.nft(f"""
                table netdev arriving {{
                    counter strangers {{ }}
                    chain arriving {{
                        type filter hook ingress device eth0 priority 0;
                        {version} daddr {router.address(address)} counter name strangers
                    }}
                }}
                """)

    def count(self):
        """How many there were so far."""
        return sum(host.counter("netdev arriving", "strangers") for host in self._hosts)


@pytest.fixture
def accounted(router):
    """Conntrack counts, and so does nftables where packets of a conversation arrive. Gives what each has counted:
    packets and bytes of both directions."""
    router.router.sysctl("net.netfilter.nf_conntrack_acct", 1)
    router.router.nft("""
        table netdev ingress {
            counter original { }
            counter reply { }
            chain lan0 {
                type filter hook ingress device lan0 priority -500;
                udp dport 7 counter name original
            }
            chain wan0 {
                type filter hook ingress device wan0 priority -500;
                udp sport 7 counter name reply
            }
        }
        """)

    def by_nftables():
        for name in ("original", "reply"):
            words = router.router.run("nft", "list", "counter", "netdev", "ingress", name).split()
            yield tuple(int(words[words.index(unit) + 1]) for unit in ("packets", "bytes"))

    def by_conntrack():
        lines = router.conntrack("-L", "-p", "udp", "--orig-port-dst", 7).splitlines()
        return [tuple(map(int, pair)) for line in lines
                for pair in re.findall(r"packets=(\d+) bytes=(\d+)", line)]

    return lambda: (list(by_nftables()), by_conntrack())


def test_many_flows_come_and_go_beside_one_that_stays(router, accounted, conversation, much_conntrack):
    """All are learned, all go, nothing remains of them, and the one that stays loses nothing."""
    # What comes and goes is the same for both versions of IP, and takes minutes.
    count = COUNT // 10 if router.is_v6 else COUNT
    # Only what others do can make a packet slow.
    router.control.set(table_size=262_144, sample_interval=60_000)
    conversation.warm_up()
    strangers, arrivals = Strangers(router), Arrivals(router)
    before = router.control.stats()
    most = 0
    thread, errors = in_the_background(lambda: strangers.meet(count))
    exchanged = 0
    while thread.is_alive():
        conversation.exchange(5)
        exchanged += 10
        if exchanged % 200 == 0:
            most = max(most, router.control.stats().flows)
    thread.join()
    assert not errors
    lost = 1 - arrivals.count() / (4 * count)
    most = max(most, router.control.stats().flows)
    after = router.control.stats() - before
    # Here and there a packet finds no room in a queue, on so slow a machine.
    assert after.learned >= count * 2 * 0.95, after.learned
    assert after.slow["table-full"] == after.slow["no-memory"] == 0
    assert most > 100
    # The conversation's own packets: nearly all fast, among those of the strangers, of which none is.
    # (A listing may miss a flow while others go. To read one of so many flows takes longer than connections
    # are kept here without a packet.)
    own = []
    for _ in range(5):
        if own:
            break
        thread, errors = in_the_background(lambda: own.extend(router.control.flows(destination=router.WAN)))
        while thread.is_alive():
            conversation.exchange(1)
        thread.join()
        assert not errors
    assert own[0]["packets"] >= exchanged / 2 * 0.95, (own[0]["packets"], exchanged)

    def over():
        conversation.exchange(1)
        return router.control.stats().flows <= 2

    wait_until(over, 30, "the end of all others", pause=0.2)
    after = router.control.stats() - before
    assert after.gone["conntrack"] >= after.learned - 10, after.departures()
    wait_until(lambda: objects() <= 64, 15, "the return of their memory", pause=0.3)
    before = router.control.stats()
    conversation.exchange(20)
    assert (router.control.stats() - before).fast >= 30
    seen, listed = accounted()
    assert seen == listed and min(seen)[0] > exchanged / 2, (seen, listed)
    # The slow path loses no less.
    router.control.disable()
    count, arrived = min(count, 10_000), arrivals.count()
    thread, errors = in_the_background(lambda: strangers.meet(count))
    while thread.is_alive():
        conversation.exchange(5)
    thread.join()
    assert not errors
    assert lost <= 1 - (arrivals.count() - arrived) / (4 * count) + 0.001, lost


def test_flushing_and_resizing_under_many_flows(router, conversation, much_conntrack):
    strangers = Strangers(router)
    thread, errors = in_the_background(lambda: strangers.meet(COUNT // 20))
    sizes = 0
    while thread.is_alive():
        router.control.set(table_size=(1024, 65536)[sizes % 2])
        sizes += 1
        router.control.flush()
        router.control.flows()
        conversation.exchange(3)
    thread.join()
    assert not errors and sizes >= 2
    # The strangers may have come between the last two of these, and filled a small table.
    router.control.set(table_size=65536)
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(20)
    after = router.control.stats() - before
    assert after.fast >= 30, (after.packets, after.reasons(), sizes)
    router.control.flush()
    wait_until(lambda: objects() <= 64, 15, "the return of their memory", pause=0.3)


def test_a_table_that_attackers_have_filled(router, conversation):
    """What is in it stays fast, what finds no room is slow and counted, and what they cost is bounded: the
    table does not grow, however many come."""
    size = 256
    router.control.set(table_size=size)
    conversation.warm_up()
    strangers = Strangers(router)
    strangers.meet(size)
    wait_until(lambda: router.control.stats().flows == size, 5, "a full table")
    memory = None
    for _ in range(4):
        before = router.control.stats()
        strangers.meet(size)
        conversation.exchange(20)
        after = router.control.stats() - before
        assert after.flows <= size
        assert after.slow["table-full"] >= size / 2, after.reasons()
        # The old one's packets, but for samples.
        assert after.fast >= 34, after.reasons()
        # Those that were dropped, a moment ago, are still waiting for their end.
        memory = max(memory or 0, objects())
        assert memory <= 2 * size + 64, memory
    # They go away by themselves, and there is room again.
    late = router.until_removed(Datagrams(router.lan, router.wan, router.WAN, 9))

    def fits():
        late.exchange(2)
        conversation.exchange(1)
        before = router.control.stats()
        late.exchange(5)
        return (router.control.stats() - before).fast >= 8

    wait_until(fits, 20, "room for a late one", pause=0.2)


def test_the_memory_for_a_million_flows(router, conversation, much_conntrack):
    """Beside the index, which is there from the beginning, each flow takes its own when it is learned, and hardly
    more."""
    router.control.set(table_size=1_000_000)
    stats = router.control.stats()
    assert (stats.flow_bytes, stats.index_bytes) == (192, 16 << 20)
    if not router.is_v6:
        for name in ("udp_timeout", "udp_timeout_stream"):
            router.router.sysctl(f"net.netfilter.nf_conntrack_{name}", 120)
        shrink()
        before, taken = router.control.stats(), cache_bytes()
        Strangers(router).meet(10_000)
        flows, taken = router.control.stats().flows - before.flows, cache_bytes() - taken
        assert flows >= 19_000
        # Six bytes of a connection are what is left over of each page; each processor may have a few that are not full.
        assert 192 <= taken / flows <= 192 + 3 + 64 * 4096 / flows, (taken, flows)
        assert router.control.stats().index_bytes == 16 << 20
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(20)
    assert (router.control.stats() - before).fast >= 30


def test_tcp_connections_come_and_go_beside_one_that_stays(router, conversation):
    """They are opened, learned and closed, or reset, as fast as the hosts can; nothing remains of them."""
    router.control.set(sample_interval=60_000)
    conversation.warm_up()
    listener = router.until_removed(router.wan.socket(family_of(router.WAN), socket.SOCK_STREAM))
    listener.bind((router.WAN, 80))
    listener.listen(64)
    before = router.control.stats()
    count = 100
    for number in range(count):
        client = router.lan.socket(family_of(router.WAN), socket.SOCK_STREAM)
        client.connect((router.WAN, 80))
        server, _ = listener.accept()
        for end, other in ((client, server), (server, client)) * 2:
            end.send(b"x" * 100)
            assert other.recv(100)
        if number % 2:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.close()
        if number % 10 == 0:
            conversation.exchange(1)
    after = router.control.stats() - before
    assert after.learned >= 1.8 * count, after.learned
    wait_until(lambda: router.control.stats().flows <= 2, 5, "the end of all others")
    after = router.control.stats() - before
    assert after.gone["closed"] + after.gone["conntrack"] + after.gone["replaced"] >= after.learned, after.departures()
    assert after.gone["closed"] >= count, after.departures()
    wait_until(lambda: objects() <= 64, 15, "the return of their memory", pause=0.3)
    mostly = router.control.stats()
    conversation.exchange(20)
    assert (router.control.stats() - mostly).fast >= 36


@pytest.mark.parametrize("more", [1, 16, 500])
def test_no_more_flows_than_the_table_has_room_for(router, conversation, more):
    """And every packet that could not become one is counted."""
    size = 64
    router.control.set(table_size=size)
    conversation.warm_up()
    own = router.control.stats().flows
    assert own == 2
    strangers = Strangers(router)
    before = router.control.stats()
    # One side each: the first answer is learned from, and so is the second question.
    strangers.meet((size - own) // 2)
    wait_until(lambda: router.control.stats().flows == size, 5, "a full table")
    full = router.control.stats() - before
    assert full.slow["table-full"] == 0
    before = router.control.stats()
    strangers.meet(more)
    wait_until(lambda: (router.control.stats() - before).slow["table-full"] >= more, 5, "packets that find no room")
    after = router.control.stats() - before
    assert after.flows <= size
    assert after.slow["table-full"] <= 3 * more
    assert conversation.request()


def test_conntrack_full(router, conversation, much_conntrack):
    """What is established goes on, fast; what is new is dropped by conntrack, as ever."""
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    strangers = Strangers(router)
    present = int(router.router.run("sysctl", "-n", "net.netfilter.nf_conntrack_count"))
    limit.write_text(str(present + 50), encoding="ascii")
    strangers.meet(400)
    before = router.control.stats()
    conversation.exchange(30)
    after = router.control.stats() - before
    assert after.fast >= 54, after.reasons()
    assert int(router.router.run("sysctl", "-n", "net.netfilter.nf_conntrack_count")) <= present + 60
