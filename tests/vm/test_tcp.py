# SPDX-License-Identifier: GPL-2.0
"""The life of a TCP connection, segment by segment, and of a UDP one that only one side speaks on.

The segments are made by hand, for hosts that don't exist: nobody answers of his own accord.
"""

import time

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from lab.both import both
from lab.kernel import wait_until
from lab.topology import Router
from lab.traffic import Datagrams, Stream, Wire

RULES = """
table ip filter {
    counter invalid { }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter name invalid drop
        ct state established,related accept
        iifname "lan0" accept
    }
}
"""

pytestmark = both

#: The sides of a connection.
CLIENT, SERVER = 0, 1


class Hosts:
    """Two hosts of which there are only addresses, one on either side of the router."""

    def __init__(self, router):
        self.router = router
        self._addresses = router.address("10.0.0.77"), router.address("192.0.2.77")
        sides = ((router.lan, "lan0"), (router.wan, "wan0"))
        self._macs = []
        self.wires = []
        for (namespace, device), address in zip(sides, self._addresses):
            mac = namespace.mac("eth0")
            router.router.ip("neigh", "replace", address, "lladdr", mac, "dev", device, "nud", "permanent")
            self._macs.append((mac, router.router.mac(device)))
            self.wires.append(router.until_removed(Wire(namespace, "eth0", outgoing=False)))

    def send(self, side, segment, timeout=3.0, put=Wire.put):
        """Sends a segment, by what is given for that. Gives whether it came out on the other side."""
        wire = self.wires[1 - side]
        wire.frames(0)
        source, destination = self._macs[side]
        put(self.wires[side], Ether(src=source, dst=destination)
            / self.router.ip_header(src=self._addresses[side], dst=self._addresses[1 - side]) / segment)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for frame in wire.frames(0.05):
                seen = Ether(frame)
                if TCP in seen and all(getattr(seen[TCP], field) == getattr(segment, field)
                                       for field in ("sport", "dport", "seq", "ack", "flags")):
                    return True
        return False


class Connection:
    """A TCP connection between them."""

    def __init__(self, hosts, client_port=40000, start=(1000, 0xfffff000)):
        # The server's sequence numbers are about to wrap.
        self._hosts = hosts
        self._ports = (client_port, 80)
        self.next = list(start)
        self.acknowledged = [0, 0]

    def send(self, side, flags, data=b"", timeout=3.0, **fields):
        """A segment that follows on what the side has sent so far, but for the given fields. Gives whether
        it arrived."""
        sequence = fields.pop("seq", self.next[side])
        acknowledgement = fields.pop("ack", self.next[1 - side] if "A" in flags else 0)
        put = fields.pop("put", Wire.put)
        segment = TCP(sport=self._ports[side], dport=self._ports[1 - side], flags=flags,
                      seq=sequence & 0xffffffff, ack=acknowledgement & 0xffffffff,
                      window=fields.pop("window", 60000), **fields) / data
        return self._hosts.send(side, segment, timeout, put)

    def advance(self, side, flags, data=b"", **fields):
        """The same, which has to arrive and moves the side on."""
        assert self.send(side, flags, data, **fields), (side, flags)
        self.next[side] = self.next[side] + len(data) + ("S" in flags) + ("F" in flags) & 0xffffffff

    def open(self):
        """The handshake."""
        self.advance(CLIENT, "S", ack=0)
        self.advance(SERVER, "SA")
        self.advance(CLIENT, "A")

    def exchange(self, count=1):
        """Data each way, acknowledged by the other's."""
        for _ in range(count):
            self.advance(CLIENT, "PA", b"c" * 100)
            self.advance(SERVER, "PA", b"s" * 200)

    def make_fast(self):
        """Has both directions learned."""
        control = self._hosts.router.control
        self.exchange(2)
        deadline = time.monotonic() + 10
        while True:
            before = control.stats()
            self.exchange(4)
            after = control.stats() - before
            if min(after.packets) >= 3:
                return
            assert time.monotonic() < deadline, (after.packets, after.reasons())
            time.sleep(0.1)

    def is_fast(self):
        """More data, which goes the fast way."""
        control = self._hosts.router.control
        before = control.stats()
        self.exchange(8)
        after = control.stats() - before
        assert min(after.packets) >= 4 and set(after.reasons()) <= {"sampled"}, (after.packets, after.reasons())

    def state(self):
        """What conntrack calls it; none if it does not know it."""
        for line in self._hosts.router.conntrack("-L", "-p", "tcp").splitlines():
            if f"sport={self._ports[0]} " in line:
                return line.split()[3]
        return None

    def timeout(self):
        """Seconds that conntrack gives it."""
        for line in self._hosts.router.conntrack("-L", "-p", "tcp").splitlines():
            if f"sport={self._ports[0]} " in line:
                return int(line.split()[2])
        return None


@pytest.fixture
def router(family):
    topology = Router(firewall=RULES, family=family)
    topology.control.enable()
    yield topology
    topology.remove()


@pytest.fixture
def hosts(router):
    return Hosts(router)


@pytest.fixture
def connection(hosts):
    """One that is open, and fast."""
    connection = Connection(hosts)
    connection.open()
    connection.make_fast()
    return connection


def invalid(router):
    return router.router.counter("ip filter", "invalid")


def test_a_handshake_that_is_not_finished_teaches_nothing(router, hosts):
    only_asked, only_answered = (Connection(hosts, port) for port in (40001, 40002))
    only_asked.advance(CLIENT, "S", ack=0)
    only_answered.advance(CLIENT, "S", ack=0)
    only_answered.advance(SERVER, "SA")
    for _ in range(3):
        # Asked again.
        assert only_asked.send(CLIENT, "S", seq=1000, ack=0)
        assert only_answered.send(SERVER, "SA", seq=0xfffff000)
    stats = router.control.stats()
    assert (stats.fast, stats.learned, stats.flows) == (0, 0, 0)
    assert only_answered.state() == "SYN_RECV"
    # And finished it is one like any other.
    only_answered.advance(CLIENT, "A")
    only_answered.make_fast()
    assert invalid(router) == 0


def test_both_close_at_once(router, connection):
    before = router.control.stats()
    # Neither has seen the other's.
    ends = tuple(connection.next)
    connection.advance(CLIENT, "FA")
    connection.advance(SERVER, "FA", ack=ends[CLIENT])
    connection.advance(CLIENT, "A")
    connection.advance(SERVER, "A")
    assert connection.state() == "TIME_WAIT"
    wait_until(lambda: router.control.stats().flows == 0, 3)
    after = router.control.stats() - before
    assert after.departures() == {"closed": 2}
    assert after.fast == 0
    assert invalid(router) == 0


def test_half_closed_the_other_half_goes_on_for_long(router, connection):
    """Slowly: conntrack has to see the end of it."""
    connection.advance(CLIENT, "FA")
    connection.advance(SERVER, "A")
    assert connection.state() == "CLOSE_WAIT"
    before = router.control.stats()
    deadline = time.monotonic() + 3
    count = 0
    while time.monotonic() < deadline or count < 20:
        connection.advance(SERVER, "PA", b"d" * 1000)
        connection.advance(CLIENT, "A")
        count += 1
    after = router.control.stats() - before
    assert after.fast == 0
    assert after.slow["tcp-state"] >= 2 * count, after.reasons()
    assert connection.state() == "CLOSE_WAIT"
    connection.advance(SERVER, "FA")
    connection.advance(CLIENT, "A")
    assert connection.state() == "TIME_WAIT"
    assert invalid(router) == 0
    assert router.control.stats().flows == 0


@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
def test_a_reset_ends_a_connection_only_if_it_is_the_next_thing_that_can_come(router, connection, side):
    """As the kernel's own test has it (conntrack_rst_invalid.pkt): conntrack knows where the fast path is."""
    known = {flow["id"] for flow in router.control.flows()}
    # What is next is what has been acknowledged, for both sides.
    connection.advance(CLIENT, "A")
    count = 0
    for offset in (-0x40000000, 1_000_000, 0x7ff00000, -1):
        for flags in ("R", "RA"):
            before = invalid(router)
            assert not connection.send(side, flags, seq=connection.next[side] + offset, window=0, timeout=0.3)
            count += 1
            assert invalid(router) == before + 1, offset
            assert connection.state() == "ESTABLISHED"
    # Within the window, but not the next: for the host to challenge.
    assert connection.send(side, "R", seq=connection.next[side] + 42, window=0, ack=0)
    assert connection.state() == "ESTABLISHED"
    connection.is_fast()
    connection.advance(CLIENT, "A")
    assert {flow["id"] for flow in router.control.flows()} == known
    before = router.control.stats()
    connection.advance(side, "RA", window=0)
    assert connection.state() == "CLOSE"
    wait_until(lambda: router.control.stats().flows == 0, 3)
    after = router.control.stats() - before
    assert after.gone["closed"] == 2
    assert after.fast == 0
    assert invalid(router) == count


#: By how much a segment is ahead of what is next, and what it acknowledges of what has been sent.
OUTSIDE = [(100_000_000, 100_000_000), (0x7ff00000, 0x7ff00000), (0x20000000, 0), (0, 0x20000000),
           (-0x40000000, -0x40000000)]


@pytest.mark.parametrize("side", [CLIENT, SERVER], ids=["client", "server"])
def test_segments_far_outside_the_window_do_not_end_a_connection(router, hosts, connection, side):
    """From somebody who knows addresses and ports, but not the sequence numbers. Conntrack judges them as if there were
    no fast path, and the connection goes on, fast and slow."""
    router.control.set(sample_interval=60000)

    def judged(connection):
        """What becomes of each: whether it arrives, whether conntrack calls it invalid, and whether the fast path has
        left it to conntrack for what it is."""
        found = []
        for ahead, acknowledged in OUTSIDE:
            already, before = invalid(router), router.control.stats()
            arrived = connection.send(side, "PA", b"!", timeout=0.15, seq=connection.next[side] + ahead,
                                      ack=connection.next[1 - side] + acknowledged)
            after = router.control.stats() - before
            assert after.fast == 0
            found.append((arrived, invalid(router) - already, after.slow["tcp-flags"]))
            # The next packets are fast, if others are.
            before = router.control.stats()
            connection.exchange(1)
            assert (router.control.stats() - before).fast in (0, 2)
        return found
    connection.make_fast()
    fast = judged(connection)
    router.control.disable()
    # One that has never been fast: conntrack may have been told something that it remembers.
    never = Connection(hosts, 40001)
    never.open()
    never.exchange(4)
    slow = judged(never)
    # What is far behind conntrack takes for something that is sent again.
    assert slow == [(False, 1, 0)] * 4 + [(True, 0, 0)]
    assert fast == [(arrived, refused, 1) for arrived, refused, _ in slow]
    before = invalid(router)
    connection.exchange(5)
    assert invalid(router) == before
    router.control.enable()
    connection.make_fast()
    assert connection.state() == "ESTABLISHED"
    connection.advance(CLIENT, "FA")
    connection.advance(SERVER, "FA")
    connection.advance(CLIENT, "A")
    assert connection.state() == "TIME_WAIT"
    assert invalid(router) == before


def test_keepalives_keep_an_idle_connection(router, connection):
    """Their sequence number has been acknowledged before. Conntrack's timeout is that of an established
    connection all the time, and ends when they do."""
    router.router.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 4)
    # It has to be read anew, by a sample.
    time.sleep(1.1)
    connection.exchange(2)
    before = router.control.stats()
    for _ in range(8):
        time.sleep(1)
        assert connection.send(CLIENT, "A", seq=connection.next[CLIENT] - 1)
        assert connection.send(SERVER, "A")
        assert connection.timeout() in (2, 3, 4)
    after = router.control.stats() - before
    assert after.gone["conntrack"] == 0
    assert invalid(router) == 0
    connection.exchange(2)
    # And without them.
    wait_until(lambda: connection.state() is None, 12, "the end of the entry")
    wait_until(lambda: router.control.stats().flows == 0, 3)


def test_keepalives_that_come_more_rarely_than_flows_are_kept(router, connection):
    router.control.set(tcp_timeout=1000)
    before = router.control.stats()
    for _ in range(2):
        wait_until(lambda: router.control.stats().flows == 0, 6)
        assert connection.send(CLIENT, "A", seq=connection.next[CLIENT] - 1)
        assert connection.send(SERVER, "A")
    assert (router.control.stats() - before).gone["idle"] >= 2
    assert connection.state() == "ESTABLISHED"
    router.control.set(tcp_timeout=30_000)
    connection.make_fast()
    assert invalid(router) == 0


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_the_same_addresses_and_ports_again_right_after_the_end(router, hosts, connection, how):
    # Learned as soon as it can be, or as by default.
    router.control.set(learn_after=1 if how == "closed" else 3)
    for n in range(3):
        if how == "closed":
            connection.advance(CLIENT, "FA")
            connection.advance(SERVER, "FA")
            connection.advance(CLIENT, "A")
        else:
            connection.advance(CLIENT, "R", ack=0)
        old = {flow["id"] for flow in router.control.flows()}
        # Beyond what the last one used, as hosts choose them.
        connection = Connection(hosts, start=(connection.next[CLIENT] + 100_000,
                                              0x10000000 * (n + 1)))
        connection.open()
        connection.make_fast()
        connection.is_fast()
        assert connection.state() == "ESTABLISHED"
        flows = router.control.flows()
        assert len(flows) == 2 and not old & {flow["id"] for flow in flows}
    assert invalid(router) == 0


def test_a_syn_on_a_connection_that_lives(router, connection):
    """Conntrack lets it through, for the server to say what it thinks of it, and nothing changes."""
    known = {flow["id"] for flow in router.control.flows()}
    before = router.control.stats()
    assert connection.send(CLIENT, "S", seq=connection.next[CLIENT] + 500_000_000, ack=0)
    # The challenge.
    assert connection.send(SERVER, "A")
    assert (router.control.stats() - before).slow["tcp-flags"] == 1
    assert connection.state() == "ESTABLISHED"
    connection.is_fast()
    assert {flow["id"] for flow in router.control.flows()} == known
    assert invalid(router) == 0


def test_a_client_that_lost_its_memory_begins_anew_on_a_live_tuple(router, hosts, connection):
    """The server's challenge makes the client reset the old connection, and then it gets a new one."""
    new = Connection(hosts, start=(0x70000000, 0x20000000))
    assert new.send(CLIENT, "S", ack=0)
    assert connection.send(SERVER, "A")
    # What the server acknowledged is the sequence number of the reset.
    assert connection.send(CLIENT, "R", ack=0)
    assert connection.state() == "CLOSE"
    new.open()
    new.make_fast()
    assert new.state() == "ESTABLISHED"
    assert invalid(router) == 0


def repacked(frame, first, ahead=(), pieces=None):
    """A frame's segment once more, behind IPv4 options or IPv6 extension headers, given for both, and in two
    fragments if `first` is how many bytes of it the first one is to have."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
    from scapy.packet import Raw
    # As it is sent, with checksums.
    frame = Ether(bytes(frame))
    ethernet, segment = Ether(src=frame.src, dst=frame.dst), bytes(frame[TCP])
    pieces = [(0, segment)] if first is None else [(0, segment[:first]), (first, segment[first:])]
    for at, piece in pieces:
        more = at + len(piece) < len(segment)
        if IPv6 in frame:
            ip = IPv6(src=frame[IPv6].src, dst=frame[IPv6].dst)
            for header in ahead:
                ip = ip / header
            if first is not None:
                ip = ip / IPv6ExtHdrFragment(offset=at // 8, m=int(more), id=77)
            ip.lastlayer().nh = 6
        else:
            ip = IP(src=frame[IP].src, dst=frame[IP].dst, proto=6, id=77, frag=at // 8, flags="MF" if more else 0,
                    options=list(ahead))
        yield ethernet / ip / Raw(piece)


def in_fragments(wire, frame):
    for fragment in repacked(frame, 200):
        wire.put(fragment)


def in_fragments_in_pieces(wire, frame):
    first, second = repacked(frame, 4800)
    wire.put_in_pieces(first)
    wire.put(second)


def behind_options(wire, frame, first=None):
    from scapy.layers.inet import IPOption_NOP
    from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN
    is_v6 = frame.payload.version == 6
    ahead = [IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])] if is_v6 else [IPOption_NOP()] * 4
    for packet in repacked(frame, first, ahead):
        wire.put(packet)


def in_fragments_behind_options(wire, frame):
    behind_options(wire, frame, 200)


@pytest.mark.parametrize("put", [in_fragments, in_fragments_in_pieces, behind_options, in_fragments_behind_options],
                         ids=lambda put: put.__name__)
def test_what_is_never_fast_finds_conntrack_informed(router, hosts, put):
    """It acknowledges what conntrack has not seen, and is no invalid packet all the same."""
    for host, device in ((router.lan, "lan0"), (router.wan, "wan0")):
        for namespace, name in ((host, "eth0"), (router.router, device)):
            namespace.ip("link", "set", name, "mtu", 9000)
    router.control.set(sample_interval=60000)
    connection = Connection(hosts)
    connection.open()
    connection.make_fast()
    for side in (CLIENT, SERVER, CLIENT):
        for _ in range(7):
            before = router.control.stats()
            connection.advance(1 - side, "PA", b"d" * 7000)
            assert (router.control.stats() - before).fast == 1
        before = router.control.stats()
        connection.advance(side, "PA", b"f" * 5200, put=put)
        assert (router.control.stats() - before).fast == 0
    connection.is_fast()
    assert invalid(router) == 0


def test_a_connection_that_conntrack_has_not_seen_begin(router):
    """It does not know by how much its windows are scaled, and accepts what lies outside of them. So that is fast."""
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    # Until the windows are wide.
    for back in (False, True):
        stream.send(b"a" * 1_000_000, back)
    router.conntrack("-F")
    router.control.enable(sample_interval=60_000)
    stream.warm_up()
    before = router.control.stats()
    for back in (False, True):
        stream.send(b"b" * 1_000_000, back)
    after = router.control.stats() - before
    assert after.slow["tcp-flags"] == 0, after.reasons()
    # In bytes, as one packet may be many that arrived at once.
    assert min(after.bytes) >= 900_000, (after.bytes, after.packets, after.reasons())
    stream.exchange(5)


def test_udp_that_only_one_side_goes_on_with(router):
    """Once it was answered. The entry lives as long as after a packet on the slow path, and no longer."""
    router.router.sysctl("net.netfilter.nf_conntrack_udp_timeout", 4)
    router.router.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", 4)
    router.control.set(udp_timeout=1000)
    datagrams = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    datagrams.warm_up()

    def left():
        lines = router.conntrack("-L", "-p", "udp").splitlines()
        return int(lines[0].split()[2]) if lines else None

    before = router.control.stats()
    count = 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert datagrams.request()
        count += 1
        time.sleep(0.1)
        if count % 10 == 0:
            assert left() in (2, 3, 4)
    after = router.control.stats() - before
    # One of about ten is the sample.
    assert after.packets[0] >= count * 0.7, (count, after.reasons())
    # The other direction is over.
    assert {flow["reply"] for flow in router.control.flows()} == {0}
    assert after.gone["idle"] == 1 and after.gone["conntrack"] == 0
    wait_until(lambda: left() is None, 12, "the end of the entry", pause=0.2)
    wait_until(lambda: router.control.stats().flows == 0, 3)
