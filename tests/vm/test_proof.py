# SPDX-License-Identifier: GPL-2.0
"""The proof against clear text: whatever changes under flows that IPsec protects, nothing of them is seen on
the WAN; for every way to protect them, both versions of IP, and both things that can be made of IPsec."""

import contextlib
import itertools
import json
import re
import socket
import time

import pytest

from lab import findings, kernel, leaks
from lab.site import BLOCKED, SIGN, Conversation, Site, offloading
from lab.traffic import Wire, protocol_in

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


def choose(site, mode):
    """Has this become of IPsec from now on."""
    fasttrack(site, "set", "ipsec", mode)
    site.ipsec = mode


def counter(site, name):
    """What the counter of a rule with this comment has counted."""
    rules = site.a.gateway.run("nft", "list", "ruleset")
    return int(re.search(rf"counter packets (\d+) .*comment \"{name}", rules)[1])


@contextlib.contextmanager
def refusing(site):
    """Meanwhile IPsec refuses what the site's gateway A has to send."""
    before = site.ipsec_counters()
    yield
    after = site.ipsec_counters()
    assert any(count > before[name] for name, count in after.items() if name.startswith("XfrmOut")), "it had no effect"


# What is changed, at gateway A unless both have to agree. Each leaves what it found, and looks whether it had an effect
# where none would be seen otherwise.


def another_policy(site):
    """One that is like the other one and goes before it, and then goes."""
    for verb in ("add", "delete"):
        for direction, port in (("out", "dport"), ("fwd", "sport")):
            words = () if site.kind == "transport" else ("proto", "udp")
            site.policy(site.a, site.b, verb, direction, 50, selecting=(*words, port, Conversation.PORT))
        time.sleep(0.3)


def policy_gone(site):
    with refusing(site):
        site.policy(site.a, site.b, "delete", "out")
        time.sleep(0.3)
    site.policy(site.a, site.b, "add", "out")


def policy_replaced(site):
    """By one for states that there are none of, and that by what there was before."""
    for reqid in (99, 1):
        with refusing(site) if reqid == 99 else contextlib.nullcontext():
            for direction in ("out", "fwd"):
                site.policy(site.a, site.b, "update", direction, reqid=reqid)
            time.sleep(0.3)


def policies_reordered(site):
    """One that forbids it goes before the other one, and then behind it; and the other one behind that, and back."""
    with refusing(site):
        site.forbid(site.a, site.b, "update", 10)
        time.sleep(0.3)
    site.forbid(site.a, site.b, "update", BLOCKED)
    with refusing(site):
        site.policy(site.a, site.b, "update", "out", 2 * BLOCKED)
        time.sleep(0.3)
    site.policy(site.a, site.b, "update", "out")


def expires_while_fast(site, begin, is_over, what):
    """Begins something that lasts for as many seconds as it is told to, and waits for its end. If IPsec is accelerated
    packets have to be fast meanwhile, however long the machine takes for that."""
    for seconds in (1, 3, 9):
        begin(seconds)
        # By nothing that there was before.
        before, _ = fast_packets(site)
        kernel.wait_until(is_over, 60, f"the end of {what}", pause=0.2)
        time.sleep(0.3)
        if site.ipsec == "exclude" or fast_packets(site)[0] > before + 5:
            return
    raise AssertionError(f"nothing was fast by {what}")


def policy_expires(site):
    def begin(seconds):
        site.a.gateway.status("ip", "xfrm", "policy", "delete", *site.selector(site.a, site.b), *site.of_device, "dir", "out")
        site.policy(site.a, site.b, "add", "out", 100, ("limit", "time-hard", seconds))
    with refusing(site):
        expires_while_fast(site, begin,
                           lambda: not re.search(r"dir out priority 100\b", site.a.gateway.ip("xfrm", "policy")), "a policy")
    site.policy(site.a, site.b, "add", "out")


def rekeyed(site):
    for _ in range(3):
        site.rekey()
        time.sleep(0.2)


def states_gone(site):
    with refusing(site):
        site.forget_states(site.spi)
        time.sleep(0.3)
    site.states(site.spi)


def states_expire(site):
    def begin(*limit):
        site.forget_states(site.spi)
        site.spi += 16
        site.states(site.spi, "limit", *limit)

    def is_over():
        return f"spi 0x{site.spi + site.a.number:08x}" not in site.a.gateway.ip("xfrm", "state")
    with refusing(site):
        expires_while_fast(site, lambda seconds: begin("time-hard", seconds), is_over, "a state, by time")
        # Of some 70 bytes each.
        expires_while_fast(site, lambda times: begin("byte-hard", 4000 * times), is_over, "a state, by bytes")
    site.forget_states(site.spi)
    site.spi += 16
    site.states(site.spi)


def route_moved(site):
    """The peer is reached over the other link, and then again over the first one."""
    option, single = site.words["option"], site.words["single"]
    protocol = socket.IPPROTO_UDP if site.kind == "encapsulated" else socket.IPPROTO_ESP
    with contextlib.closing(Wire(site.wan, "a1", outgoing=False)) as wire:
        for verb in ("add", "del"):
            for own, peer in site.ends():
                own.gateway.ip(option, "route", verb, f"{peer.wan}/{single}", "via", peer.other, "dev", "wan1")
            if verb == "add":
                kernel.wait_until(lambda: protocol in map(protocol_in, wire.frames(0.1)), 20, "ESP on the other link")
            time.sleep(0.3)


def masquerade_added(site):
    """Of what is encrypted by policy the rules keep it away. What is given to a device it rewrites, which then may be
    nothing that the device has a policy for; and in transport mode it takes the place of the site's own."""
    by_policy = site.kind in ("policy", "encapsulated")
    own = "no source NAT for what IPsec" if site.family == "ipv4" else "likewise for IPv6"
    exempted = counter(site, own) if by_policy else 0
    site.a.gateway.nft(f"""
        table inet later {{
            chain postrouting {{
                type nat hook postrouting priority srcnat{"" if by_policy else " - 10"};
                oifname {{ "wan0", "wan1", "{site.device or "wan2"}" }} counter masquerade comment "later"
            }}
        }}
    """)

    def has_effect():
        # The connections begin anew: those with a packet from A, rather than with one that it gets, meet the rules.
        site.a.gateway.run("conntrack", "-F", check=False)
        time.sleep(0.3)
        return counter(site, own) > exempted if by_policy else counter(site, "later")
    kernel.wait_until(has_effect, 30, "a connection that masquerading would be about")
    site.a.gateway.run("nft", "delete", "table", "inet", "later")
    site.a.gateway.run("conntrack", "-F", check=False)


def module_reloaded(site):
    kernel.unload()
    time.sleep(0.3)
    kernel.load()
    choose(site, site.ipsec)
    fasttrack(site, "enable")


def rules_flushed(site):
    """All rules, but those without which nothing would be protected."""
    site.a.gateway.nft("flush ruleset\n" + site.ruleset)
    time.sleep(0.3)
    fasttrack(site, "enable")


def mode_changed(site):
    now = site.ipsec
    for mode in ("exclude" if now == "accelerate" else "accelerate", now):
        choose(site, mode)
        # As the manual says how to take the mark from those that had it before.
        site.a.gateway.run("conntrack", "-U", "--mark", "0/0x08000000", check=False)
        before = fast_packets(site)
        site.conversation.goes_on(least=40)
        is_fast = fast_packets(site) != before
        assert is_fast == (mode == "accelerate"), mode


CHANGES = [another_policy, policy_gone, policy_replaced, policies_reordered, policy_expires, rekeyed, states_gone,
           states_expire, route_moved, masquerade_added, module_reloaded, rules_flushed, mode_changed]


WAYS = [(kind, family, mode) for kind in KINDS for family in FAMILIES for mode in MODES]
# Of a VTI nothing is to be seen in a packet, neither before it nor behind it.
WAYS += [("vti", "ipv4", "accelerate"), ("vti", "ipv6", "exclude")]


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
        choose(site, mode)
        fasttrack(site, "enable")
        site.conversation.goes_on()
        change_everything(site, site.wires(), title, fast_ways(kind, mode))
    finally:
        site.close()


def change_everything(site, wires, title, ways):
    """The changes, one after the other."""
    column = f"{site.kind} {site.family}"
    fast_of_all, arrived_of_all = [0, 0], [0, 0]

    @contextlib.contextmanager
    def watching(while_what):
        """Meanwhile nothing is seen in clear, whatever else fails."""
        try:
            yield
        finally:
            frames = [frame for wire in wires for frame in wire.frames(0.05)]
            clear = sum(SIGN in frame for frame in frames)
            findings.note(title, while_what, column, f"{clear} of {len(frames)}", clear)
            leaks.none(clear, while_what, len(frames))
        assert frames, while_what

    for change in CHANGES:
        time.sleep(0.3)
        fast, arrived = fast_packets(site), list(site.conversation.arrived)
        with watching("nothing"):
            site.conversation.goes_on(least=40)
        for way, (then, now) in enumerate(zip(fast, fast_packets(site))):
            fast_of_all[way] += now - then
            arrived_of_all[way] += site.conversation.arrived[way] - arrived[way]
            assert (now > then) == (way < ways), (change.__name__, way, then, now)
        with watching(change.__name__):
            change(site)
            # Also what was under way when the change was over.
            site.conversation.goes_on()
    findings.note(title, "fast of those between these", column,
                  f"{sum(fast_of_all)} of {sum(arrived_of_all)}")
    for way in range(ways):
        assert fast_of_all[way] > arrived_of_all[way] / 2, (fast_of_all, arrived_of_all)
    assert not sum(wire.missed() for wire in wires), "not every frame was looked at"
