# SPDX-License-Identifier: GPL-2.0
"""The proof against clear text: whatever changes under flows that IPsec protects, nothing of them is seen on
the WAN; for every way to protect them, both versions of IP, and both things that can be made of IPsec."""

import itertools
import json
import re
import time

import pytest

from lab import findings, kernel
from lab.site import SIGN, Conversation, Site, offloading

SERIAL = itertools.count(1)

KINDS = ["policy", "transport", "encapsulated", "interface"]
MODES = ["exclude", "accelerate"]
FAMILIES = ["ipv4", "ipv6"]


def fasttrack(site, *words):
    return site.a.gateway.run("fasttrack", *words)


def fast_packets(site):
    """Packets that took the fast path, there and back."""
    fast = json.loads(fasttrack(site, "-j", "list", "stats"))["fasttrack"][1]["stats"]["fast"]
    return fast["original"]["packets"], fast["reply"]["packets"]


# What is changed, at gateway A unless both have to agree. Each leaves what it found.


def another_policy(site):
    """One that is like the other one and goes before it, and then goes."""
    for verb in ("add", "delete"):
        for direction, port in (("out", "dport"), ("fwd", "sport")):
            words = () if site.kind == "transport" else ("proto", "udp")
            site.policy(site.a, site.b, verb, direction, 50, selecting=(*words, port, Conversation.PORT))
        time.sleep(0.3)


def policy_gone(site):
    site.policy(site.a, site.b, "delete", "out")
    time.sleep(0.3)
    site.policy(site.a, site.b, "add", "out")


def policy_replaced(site):
    for direction in ("out", "fwd"):
        site.policy(site.a, site.b, "update", direction)


def policies_reordered(site):
    """One that forbids it goes before the other one, and then behind it."""
    for priority in (10, 2000):
        site.forbid(site.a, site.b, "update", priority)
        time.sleep(0.3)


def policy_expires(site):
    site.policy(site.a, site.b, "delete", "out")
    site.policy(site.a, site.b, "add", "out", 100, ("limit", "time-hard", 1))
    kernel.wait_until(lambda: not re.search(r"dir out priority 100\b", site.a.gateway.ip("xfrm", "policy")), 60,
                      "the policy's end")
    time.sleep(0.3)
    site.policy(site.a, site.b, "add", "out")


def rekeyed(site):
    for _ in range(3):
        site.rekey()
        time.sleep(0.2)


def states_gone(site):
    site.forget_states(site.spi)
    time.sleep(0.3)
    site.states(site.spi)


def states_expire(site):
    for limit in (("limit", "time-hard", 1), ("limit", "byte-hard", 2000)):
        site.forget_states(site.spi)
        site.spi += 16
        site.states(site.spi, *limit)
        own = f"spi 0x{site.spi + site.a.number:08x}"
        kernel.wait_until(lambda own=own: own not in site.a.gateway.ip("xfrm", "state"), 60, "the state's end")
        time.sleep(0.3)
        site.forget_states(site.spi)
        site.spi += 16
        site.states(site.spi)


def route_moved(site):
    """The peer is reached over the other link, and then again over the first one."""
    option, single = site.words["option"], site.words["single"]
    for verb in ("add", "del"):
        for own, peer in site.ends():
            own.gateway.ip(option, "route", verb, f"{peer.wan}/{single}", "via", peer.other, "dev", "wan1")
        time.sleep(0.3)


def masquerade_added(site):
    site.a.gateway.nft("""
        table inet later {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                oifname "wan*" masquerade
            }
        }
    """)
    time.sleep(0.3)
    site.a.gateway.run("conntrack", "-F", check=False)
    time.sleep(0.3)
    site.a.gateway.run("nft", "delete", "table", "inet", "later")


def module_reloaded(site):
    mode = "accelerate" if "ipsec accelerate" in fasttrack(site, "list", "config") else "exclude"
    kernel.unload()
    time.sleep(0.3)
    kernel.load()
    fasttrack(site, "set", "ipsec", mode)
    fasttrack(site, "enable")


def rules_flushed(site):
    # Without its own source NAT, nothing that a transport's policy is about would be left.
    what = ("delete", "table", "inet", "fasttrack") if site.kind == "transport" else ("flush", "ruleset")
    site.a.gateway.run("nft", *what)
    time.sleep(0.3)
    fasttrack(site, "enable")


def mode_changed(site):
    now = "accelerate" if "ipsec accelerate" in fasttrack(site, "list", "config") else "exclude"
    other = "exclude" if now == "accelerate" else "accelerate"
    for mode in (other, now):
        fasttrack(site, "set", "ipsec", mode)
        time.sleep(0.3)


CHANGES = [another_policy, policy_gone, policy_replaced, policies_reordered, policy_expires, rekeyed, states_gone,
           states_expire, route_moved, masquerade_added, module_reloaded, rules_flushed, mode_changed]


# Of a VTI nothing is to be seen in a packet, neither before it nor behind it.
WAYS = [(kind, family, mode) for kind in [*KINDS, "vti"] for family in FAMILIES for mode in MODES]


#: What the tables say.
CLEAR = "in clear of all packets seen on the WAN while this changed, mode {mode}"


def fast_ways(kind, mode):
    """Directions of the conversation that are fast."""
    # What was decrypted in transport mode does not pass a device again.
    return {"exclude": 0, "accelerate": 1 if kind == "transport" else 2}[mode]


@pytest.mark.parametrize(("kind", "family", "mode"), WAYS)
def test_nothing_in_clear(kind, family, mode):
    look_for_clear_text(kind, family, mode)


@pytest.mark.parametrize(("kind", "family"), [("policy", "ipv4"), ("transport", "ipv6")])
def test_nothing_in_clear_where_esp_is_offloaded(kind, family):
    """Without a device for that: encrypted where a packet is given to a device, decrypted where it is merged."""
    with offloading():
        look_for_clear_text(kind, family, "accelerate", ", offload")


def look_for_clear_text(kind, family, mode, how=""):
    """Changes everything under a conversation."""
    title = CLEAR.format(mode=mode) + how
    site = Site(kind, family, next(SERIAL))
    try:
        if how:
            site.merge()
        fasttrack(site, "set", "ipsec", mode)
        fasttrack(site, "enable")
        site.conversation.goes_on()
        wires = site.wires()
        table, sum_of_fast, between = [], 0, 0
        for change in CHANGES:
            time.sleep(0.3)
            before = fast_packets(site)
            site.conversation.goes_on(least=40)
            fast = tuple(now - then for now, then in zip(fast_packets(site), before))
            between += sum(SIGN in frame for wire in wires for frame in wire.frames(0.01))
            change(site)
            # Also what was under way when the change was over.
            site.conversation.goes_on()
            seen = [frame for wire in wires for frame in wire.frames(0.05)]
            clear = sum(SIGN in frame for frame in seen)
            table.append((change.__name__, fast, len(seen), clear))
            findings.note(title, change.__name__, f"{kind} {family}", f"{clear} of {len(seen)}")
            sum_of_fast += sum(fast)
        findings.note(title, "fast before these", f"{kind} {family}", sum_of_fast)
        ways = fast_ways(kind, mode)
        assert all(sum(count > 0 for count in fast) == ways for _, fast, _, _ in table), table
        assert not between + sum(clear for _, _, _, clear in table), (between, table)
        assert not sum(wire.missed() for wire in wires), "not every frame was looked at"
        assert all(packets for _, _, packets, _ in table), table
    finally:
        site.close()
