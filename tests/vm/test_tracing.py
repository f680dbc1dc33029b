# SPDX-License-Identifier: GPL-2.0
"""How a person who traces gets to see every packet: the flow is put back to the slow path by its mark."""

import re
import subprocess
import threading
import time

import pytest

from lab.crossroads import FAMILIES, Crossroads
from lab.kernel import wait_until

EXCLUDED = "0x08000000"

SELECTORS = {
    "address": "{table} daddr {far}",
    "port": "meta l4proto {{ tcp, udp }} th dport 7",
    "device": 'iifname "lan0"',
}

#: Traced are the packets of both directions; the first chain that a packet meets says so.
TRACE = """
    table {table} trace {{
        chain prerouting {{
            type filter hook prerouting priority raw - 1;
            meta l4proto {{ tcp, udp }} th dport 7 meta nftrace set 1
            meta l4proto {{ tcp, udp }} th sport 7 meta nftrace set 1
        }}
        chain exclude {{
            type filter hook prerouting priority mangle;
            {rule}
        }}
    }}
"""


class Trace:
    """What `nft monitor trace` shows of packets on their way in."""

    def __init__(self, cross):
        job = cross.router.start("stdbuf", "-oL", "nft", "monitor", "trace", stdout=subprocess.PIPE, text=True)
        self._lines = []
        self._reader = threading.Thread(target=lambda: self._lines.extend(iter(job.stdout.readline, "")), daemon=True)
        self._reader.start()
        time.sleep(1)

    def packets(self):
        """How many there were to port 7 and from it, as soon as nothing more is shown."""
        count = -1
        while count < len(self._lines):
            count = len(self._lines)
            time.sleep(2)
        ports = re.findall(r"trace id \S+ \S+ trace prerouting packet: .* sport (\d+) .*dport (\d+)",
                           "".join(self._lines))
        return (sum(to == "7" for _, to in ports), sum(come == "7" for come, _ in ports))


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def cross(request):
    topology = Crossroads(request.param)
    topology.control.enable()
    yield topology
    topology.remove()


def trace(cross, rule):
    cross.router.nft(TRACE.format(table=cross.family.table, rule=rule))


def test_a_fast_flow_shows_its_samples_only(cross):
    """So that nobody takes the absence of a packet in a trace for its absence."""
    trace(cross, "")
    talk = cross.talk("udp")
    talk.make_fast()
    watched = Trace(cross)
    before = cross.control.stats()
    talk.exchange(20)
    after = cross.control.stats() - before
    slow = sum(after.slow.values())
    assert after.fast + slow == 40 and after.fast >= 30
    assert sum(watched.packets()) == slow


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_rule_marks_what_is_traced(cross, protocol, selector):
    """In mangle or earlier, for packets of established connections, too: the next packet meets it."""
    talk = cross.talk(protocol)
    other = cross.talk("udp", 8)
    talk.make_fast()
    other.make_fast()
    chosen = SELECTORS[selector].format(table=cross.family.table, far=cross.family.far)
    trace(cross, f"{chosen} ct mark set ct mark or {EXCLUDED}")
    watched = Trace(cross)
    # The rules have just changed, so the first packet takes the slow path, and the mark with it.
    before = cross.control.stats()
    count = 20
    talk.exchange(count)
    after = cross.control.stats() - before
    assert after.fast == 0, after.packets
    assert after.slow["marked"] >= 2 * count - 4, after.reasons()
    there, back = watched.packets()
    if protocol == "udp":
        assert (there, back) == (count, count)
    else:
        # And acknowledgements.
        assert there >= count and back >= count
    if selector == "port":
        before = cross.control.stats()
        other.exchange(10)
        assert (cross.control.stats() - before).fast >= 18
    # The way back: the rule goes, and the mark.
    cross.router.nft(f"delete table {cross.family.table} trace")
    cross.router.run("conntrack", "-U", "-d", cross.family.far, "--mark", f"0/{EXCLUDED}")
    talk.make_fast()


def test_the_recipe_of_the_readme(cross):
    far = f"{cross.family.table} %s {cross.family.far}"
    for words in ("table inet trace",
                  "chain inet trace prerouting { type filter hook prerouting priority mangle; }",
                  f"rule inet trace prerouting {far % 'daddr'} meta nftrace set 1 ct mark set ct mark or {EXCLUDED}",
                  f"rule inet trace prerouting {far % 'saddr'} meta nftrace set 1"):
        cross.router.run("nft", f"add {words}")
    talk = cross.talk("udp")
    talk.exchange(5)
    watched = Trace(cross)
    before = cross.control.stats()
    talk.exchange(20)
    assert (cross.control.stats() - before).fast == 0
    assert watched.packets() == (20, 20)
    cross.router.nft("delete table inet trace")
    # What has the mark for another reason keeps it.
    cross.router.run("conntrack", "-U", "-d", cross.family.nobody.split("/")[0], "--mark", f"0/{EXCLUDED}", check=False)
    talk.exchange(5)
    assert (cross.control.stats() - before).fast == 0
    cross.router.run("conntrack", "-U", "-d", cross.family.far, "--mark", f"0/{EXCLUDED}")
    talk.make_fast()


def test_a_mark_from_outside(cross):
    """Without any rule, for connections that conntrack lists."""
    trace(cross, "")
    talk = cross.talk("udp")
    talk.make_fast()
    watched = Trace(cross)
    cross.router.run("conntrack", "-U", "-p", "udp", "--orig-port-dst", 7, "--mark", f"{EXCLUDED}/{EXCLUDED}")
    before = cross.control.stats()
    talk.exchange(20)
    after = cross.control.stats() - before
    assert after.fast == 0 and after.slow["marked"] == 40
    assert watched.packets() == (20, 20)
    assert cross.control.stats().flows == 0
    cross.router.run("conntrack", "-U", "-p", "udp", "--mark", f"0/{EXCLUDED}")
    talk.make_fast()


def test_flushing_flows_is_for_a_moment(cross):
    """They are learned again from the packets that follow."""
    talk = cross.talk("udp")
    talk.make_fast()
    cross.router.run("fasttrack", "flush", "flows")
    assert cross.router.run("fasttrack", "list", "flows", "dport", 7).strip() == ""
    before = cross.control.stats()
    talk.exchange(1)
    assert (cross.control.stats() - before).fast == 0
    wait_until(lambda: talk.both(5) and len(cross.control.flows()) == 2, 5)
    talk.make_fast()
