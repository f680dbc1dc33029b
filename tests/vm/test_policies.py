# SPDX-License-Identifier: GPL-2.0
"""Policies and states that are not there yet, come, and go, under flows that are fast in clear or encrypted; source
NAT that moves flows into a policy and out of one; marks. In both modes, over both versions of IP."""

import re
import socket
import time

import pytest

from lab import leaks
from lab.control import Control
from lab.ike import example
from lab.kernel import wait_until
from lab.site import BLOCKED, SIGN, Conversation, Questions, Site, figures
from lab.traffic import Datagrams, protocol_in
from test_proof import FAMILIES, MODES, SERIAL, fasttrack

#: What the messages of `Datagrams` are filled with.
FILLING = b"\xa5" * 16


@pytest.fixture
def make_site():
    made = []

    def make(family, kind="policy", **options):
        site = Site(kind, family, next(SERIAL), **options)
        made.append(site)
        site.control = site.until_closed(Control(site.a.gateway))
        return site

    yield make
    for site in made:
        site.close()


def seen(wires, seconds=0.1):
    """Frames on the WAN since the last time, of both links."""
    return [frame for wire in wires for frame in wire.frames(seconds)]


def in_clear(frames):
    """Those that nobody encrypted."""
    return [frame for frame in frames if SIGN in frame or FILLING in frame]


def fast(site, conversation, ways):
    """The conversation goes on, fast in so many directions and slow in the other ones."""
    conversation.warm_up()
    before = site.control.stats()
    conversation.exchange(20)
    after = site.control.stats() - before
    # One or two may be samples.
    assert sorted(packets >= 17 for packets in after.packets) == [False] * (2 - ways) + [True] * ways, (
        after.packets, after.reasons())
    assert ways or after.fast == 0, after.packets


def ways_of(mode):
    """Directions of a protected conversation that are fast."""
    return {"exclude": 0, "accelerate": 2}[mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_until_a_state_has_been_negotiated(make_site, family, mode):
    """With `xfrm_larval_drop` packets are dropped until there is one, without it they are queued: by a bundle
    without a state (`xdst_queue_output`), before they get as far as to be learned from, marked or translated. Once for
    a new connection, once for one that goes on; with the tool's rules, and a masquerade."""
    site = make_site(family, conversing=False)
    site.a.gateway.nft(SOURCE_NAT.format(what="masquerade"))
    enabled(site, mode)
    questions, wires, conversation = site.until_closed(Questions(site.a.gateway)), site.wires(), site.datagrams()
    for larval_drop, new in ((1, True), (1, False), (0, True), (0, False)):
        site.a.gateway.sysctl("net.core.xfrm_larval_drop", larval_drop)
        if new:
            site.a.gateway.run("conntrack", "-F")
        site.forget_states(site.spi)
        seen(wires)
        before = site.control.stats()
        # That of a connection that is gone stays until it is collected.
        known = {flow["id"] for flow in site.control.flows(reply=0)}
        payloads = [conversation.send() for _ in range(5)]
        assert questions.one()
        assert "spi 0x00000000" in site.a.gateway.ip("xfrm", "state")
        frames = seen(wires)
        after = site.control.stats() - before
        assert after.fast == 0
        assert not [flow for flow in site.control.flows(reply=0)
                    if flow["id"] not in known or flow["state"] == "fast"]
        site.spi += 16
        site.states(site.spi)
        # What was queued is encrypted and sent.
        arrived = conversation.receive(5, timeout=0.3 if larval_drop else 60)
        assert arrived == ([] if larval_drop else payloads)
        if new:
            fast(site, conversation, ways_of(mode))
        else:
            conversation.exchange(10)
        assert conversation.seen_from[0] == site.a.address
        is_marked(site, mode)
        frames += seen(wires)
        leaks.none(in_clear(frames))
        assert len(frames) >= 20


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bypass_policy_goes_under_way(make_site, family, mode):
    """A flow that it had exempted is fast in clear. Whatever is sent after the command has returned that deletes it
    is encrypted: a deletion makes no route invalid."""
    site = make_site(family)
    for own, peer in site.ends():
        for direction in ("out", "fwd", "in"):
            site.exempt(own, peer, "add", direction)
    enabled(site, mode)
    site.conversation.goes_on()
    time.sleep(0.5)
    wires = site.wires()
    before = site.control.stats()
    site.conversation.goes_on(least=50)
    assert min((site.control.stats() - before).packets) >= 25
    assert in_clear(seen(wires))
    for own, peer in reversed(site.ends()):
        for direction in ("in", "fwd", "out"):
            site.exempt(own, peer, "delete", direction)
    last = site.conversation.sent
    site.conversation.goes_on(least=50)
    frames = seen(wires)
    late = [Conversation.number(frame) for frame in frames if Conversation.number(frame) > last]
    leaks.none(late)
    assert len(frames) > 100
    before = site.control.stats()
    site.conversation.goes_on()
    assert bool((site.control.stats() - before).fast) == (mode == "accelerate")
    is_marked(site, mode)


def flush(site):
    """Without any policy."""
    for own, _ in site.ends():
        own.gateway.ip("xfrm", "policy", "flush")


def protect(site):
    """With those of the site, B's first. After this nothing of A's leaves in clear."""
    for own, peer in reversed(site.ends()):
        site.policies(own, peer, "add")
        site.forbid(own, peer, "add", BLOCKED)


def enabled(site, mode):
    """With the rules of the tool, and learning with the first packet that can be."""
    fasttrack(site, "set", "ipsec", mode)
    site.control.set(learn_after=1)
    fasttrack(site, "enable")


def is_marked(site, mode):
    """The connection of the site has the mark if IPsec is excluded."""
    assert marks(site)[Conversation.PORT] == (0x08000000 if mode == "exclude" else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_policies_appear(make_site, when, family, mode):
    """Before a flow begins; while it is fast, in clear; and when it is over, with its memo still there. The rules mark it
    with the first packet after that."""
    site = make_site(family, conversing=when == "during")
    enabled(site, mode)
    wires, last = site.wires(), 0
    if when != "before":
        flush(site)
        # Of its first packets.
        unmark(site)
    if when == "during":
        site.conversation.goes_on(least=100)
        before = site.control.stats()
        site.conversation.goes_on(least=50)
        assert min((site.control.stats() - before).packets) >= 25
        assert marks(site)[Conversation.PORT] == 0
        protect(site)
        last = site.conversation.sent
        site.conversation.goes_on(least=50)
        is_marked(site, mode)
        frames = seen(wires)
        assert in_clear(frames)
    else:
        conversation = site.datagrams()
        if when == "after":
            fast(site, conversation, 2)
            assert in_clear(seen(wires))
            assert marks(site)[Conversation.PORT] == 0
            protect(site)
            assert len(site.control.flows()) == 2
        assert conversation.request()
        is_marked(site, mode)
        assert conversation.reply()
        fast(site, conversation, ways_of(mode))
        is_marked(site, mode)
        frames = seen(wires)
        leaks.none(in_clear(frames))
    leaks.none([frame for frame in frames if Conversation.number(frame) > last])
    assert len(frames) > 40


def from_b(site, verb, *words):
    """Adds, updates or deletes what A lets in from B's LAN, of which the policy may have further words."""
    site.policy(site.a, site.b, verb, "fwd", more=words)


def blocked(site):
    """By a policy that is asked before."""
    words = (*site.selector(site.b, site.a), "proto", "udp", "dir", "fwd")
    site.a.gateway.ip("xfrm", "policy", "add", *words, "priority", 10, "action", "block")
    yield
    site.a.gateway.ip("xfrm", "policy", "delete", *words)


def deleted(site):
    """There is none any more that would let it in."""
    from_b(site, "delete")
    yield
    from_b(site, "add")


def expired(site):
    """The same, by itself."""
    from_b(site, "update", "limit", "time-hard", 5)
    fast_if_on(site)
    wait_until(lambda: "dir fwd" not in site.a.gateway.ip("xfrm", "policy", "list", "dir", "fwd", "src", site.b.net), 15)
    yield
    from_b(site, "add")


def of_others(site):
    """From now on other states have to have decrypted it."""
    source, destination = site.b, site.a
    words = (*site.selector(source, destination), "dir", "fwd", "priority", 100, "tmpl", "src", source.wan,
             "dst", destination.wan, "proto", "esp", "mode", site.mode)
    site.a.gateway.ip("xfrm", "policy", "update", *words, "reqid", 99)
    yield
    site.a.gateway.ip("xfrm", "policy", "update", *words, "reqid", 1)


def fast_if_on(site):
    """The site's conversation goes on, fast both ways if fasttrack is on."""
    fast(site, site.talk, 2 if site.control.config()["enabled"] else 0)


@pytest.mark.parametrize("change", [blocked, deleted, expired, of_others], ids=lambda change: change.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_may_not_come_in_any_more(make_site, family, change):
    """What arrives is fast by a decision that the slow path made under the policies of then. After the change none of
    it is let in, and it is counted where it is without fasttrack."""
    site = make_site(family, conversing=False)
    site.talk = site.datagrams()
    found = []
    for on in (False, True):
        # Nothing but the change itself sends a packet to the slow path.
        site.control.set(enabled=int(on), ipsec="accelerate", learn_after=1, sample_interval=60_000)
        fast_if_on(site)
        steps = change(site)
        next(steps)
        stats, counters = site.control.stats(), site.ipsec_counters()
        for _ in range(10):
            assert site.talk.request()
            assert not site.talk.reply(timeout=0.05)
        assert (site.control.stats() - stats).packets[1] == 0
        found.append({name: count - counters[name] for name, count in site.ipsec_counters().items()
                      if count != counters[name]})
        next(steps, None)
        site.talk.exchange(3)
        fast_if_on(site)
    slow, fast_ = found
    assert slow == fast_ and sum(slow.values()) == 10, found


#: Where nobody looks at connections none are counted.
TRACKING = """
table inet tracking {
    chain forward { type filter hook forward priority 0; ct state invalid drop; }
}
"""


@pytest.mark.parametrize("kind, ways", [("encapsulated", 2), ("transport", 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_figures_of_states_are_the_slow_paths(make_site, family, kind, ways):
    """And conntrack's. As `test_branches` has it of tunnels."""
    site = make_site(family, kind=kind, conversing=False)
    site.a.gateway.sysctl("net.netfilter.nf_conntrack_acct", 1)
    site.a.gateway.nft(TRACKING)
    conversation, found = site.datagrams(), []

    def counted():
        """What conntrack has counted, too."""
        line, = re.findall(r".*dport=7000.*", site.a.gateway.run("conntrack", "-L", "-f", family, "-p", "udp"))
        pairs = re.findall(r"packets=(\d+) bytes=(\d+)", line)
        return figures(site.a.gateway) | {"conntrack": tuple(int(count) for pair in pairs for count in pair)}
    for on in (False, True):
        site.control.set(enabled=int(on), ipsec="accelerate", learn_after=1, sample_interval=60_000)
        fast(site, conversation, ways if on else 0)
        before = counted()
        conversation.exchange(20, size=500)
        found.append({state: tuple(now - then for now, then in zip(after, before[state]))
                      for state, after in counted().items()})
    slow, fast_ = found
    assert slow == fast_, found
    assert slow.pop("conntrack")[::2] == (20, 20)
    assert [packets for _, packets, *_ in slow.values()] == [20, 20], found


#: By which rules of which chains connections of a kind are marked, and by which they are only seen. What is given to a
#: device passes output and postrouting once more, encrypted, but without its connection (`xfrmi_scrub_packet`).
RECOGNISED = {
    "policy": ({"decrypted meta ipsec", "forward rt ipsec", "encrypted rt ipsec"}, {"forward meta ipsec", "forward rt ipsec"}),
    # By source NAT into the policy, which forward does not see.
    "transport": ({"decrypted meta ipsec", "encrypted rt ipsec"}, {"forward meta ipsec"}),
    "interface": ({"decrypted meta ipsec", "to_device meta oifkind", "encrypted rt ipsec"},
                  {"forward meta ipsec", "to_device meta oifkind"}),
    "vti": ({"to_device meta oifkind", "encrypted rt ipsec"}, {"to_device meta oifkind"}),
}
RECOGNISED["encapsulated"] = RECOGNISED["policy"]


def recognised(site, verb):
    """The same of the rules that have counted a packet."""
    text = site.a.gateway.run("nft", "list", "table", "inet", "fasttrack")
    return {f"{chain} {what}" for chain, rules in re.findall(rf"chain {verb}_(\w+) {{(.*?)}}", text, re.S)
            for what, count in re.findall(r'([rm]\w+ \w+) (?:exists|"\S*") counter packets (\d+)', rules) if int(count)}


def unmark(site):
    """As the manual says how to take the mark from those that had it before."""
    site.a.gateway.run("conntrack", "-U", "--mark", "0/0x08000000", check=False)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", RECOGNISED)
def test_the_rules_mark_what_the_module_leaves_alone_without_them(make_site, kind, family):
    """A connection gets the mark with its first packet. It is slow with or without; and if IPsec is accelerated the
    rules only count."""
    site = make_site(family, kind=kind, conversing=False)
    talk, mark = site.datagrams(), 0x08000000
    fasttrack(site, "enable")
    assert talk.request()
    assert marks(site)[Conversation.PORT] == mark
    assert talk.reply()
    assert marks(site)[Conversation.PORT] == mark
    assert recognised(site, "mark") == RECOGNISED[kind][0]
    fast(site, talk, 0)
    site.a.gateway.nft("flush ruleset\n" + site.ruleset)
    unmark(site)
    stats = site.control.stats()
    fast(site, talk, 0)
    reasons = (site.control.stats() - stats).reasons()
    assert set(reasons) <= {"ipsec", "learning"} and reasons["ipsec"] >= 40, reasons
    assert marks(site)[Conversation.PORT] == 0
    fasttrack(site, "set", "ipsec", "accelerate")
    fasttrack(site, "enable")
    talk.exchange(1)
    assert recognised(site, "seen") == RECOGNISED[kind][1]
    fast(site, talk, 1 if kind == "transport" else 2)
    assert marks(site)[Conversation.PORT] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["policy", "interface", "vti"])
def test_the_rules_mark_connections_that_begin_on_the_other_side(make_site, kind, family):
    """With the first packet, too, but that a VTI has decrypted it does not show, so there with the answer to it: none is
    fast before."""
    site = make_site(family, kind=kind, conversing=False)
    fasttrack(site, "enable")
    address, port = site.a.address, Conversation.PORT
    talk = site.until_closed(Datagrams(site.b.host, site.a.host, address, port, listen=(address, port)))
    assert talk.request()
    assert marks(site)[port] == (0 if kind == "vti" else 0x08000000)
    assert talk.reply()
    assert marks(site)[port] == 0x08000000


@pytest.mark.parametrize("verb", ["mark", "seen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rules_recognise_nothing_else(make_site, family, verb):
    """Nothing that goes through a tunnel of another kind, which is of the type that a VTI is, nor what does not leave the
    router, by a device that is of no kind."""
    site = make_site(family, conversing=False)
    fasttrack(site, "set", "ipsec", "exclude" if verb == "mark" else "accelerate")
    fasttrack(site, "enable")
    far, *kind = {"ipv4": ("10.9.0.9", "ipip"), "ipv6": ("fd09::9", "ip6tnl", "mode", "any", "encaplimit", "none")}[family]
    single = site.words["single"]
    for own, peer in site.ends():
        own.gateway.ip("link", "add", "other0", "type", *kind, "local", own.wan, "remote", peer.wan)
        own.gateway.ip("link", "set", "other0", "up")
    site.a.gateway.ip("route", "add", f"{far}/{single}", "dev", "other0")
    site.b.gateway.ip("addr", "add", f"{far}/{single}", "dev", "other0")
    site.b.gateway.ip("route", "add", f"{site.a.address}/{single}", "dev", "other0")
    own = site.words["gateway"].format(1)
    ways = [(site.a.host, site.b.gateway, far), (site.a.gateway, site.a.gateway, own)]
    for port, (client, server, address) in enumerate(ways, Conversation.PORT):
        site.until_closed(Datagrams(client, server, address, port, listen=(address, port))).exchange(3)
        assert marks(site)[port] == 0
    assert recognised(site, verb) == set()
    # The rules do count.
    site.until_closed(Datagrams(site.a.host, site.b.host, site.b.address, 7002)).exchange(1)
    assert recognised(site, verb) == RECOGNISED["policy"][verb == "seen"]


def test_each_namespace_has_its_own_mode(make_site):
    """Of two, one accelerates IPsec, and then no more."""
    sites = [make_site("ipv4", conversing=False) for _ in range(2)]
    for site in sites:
        site.talk = site.datagrams()
        fasttrack(site, "enable")
    for modes in (("accelerate", "exclude"), ("exclude", "exclude"), ("exclude", "accelerate")):
        for site, mode in zip(sites, modes):
            fasttrack(site, "set", "ipsec", mode)
            unmark(site)
            site.talk.exchange(5)
        for site, mode in zip(sites, modes):
            fast(site, site.talk, ways_of(mode))


SOURCE_NAT = """
table inet nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        oifname "wan0" {what}
    }}
}}
"""


def nat(site, match, to):
    site.a.gateway.nft(SOURCE_NAT.format(what=f"{match} snat {site.words['table']} to {to}"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_source_nat_into_a_policy(make_site, when, family, mode):
    """The flow's route has no transform until source NAT gives it an address that a policy is for; which is there before
    the flow, or comes when it has been fast in clear. The rules mark it with the first packet of which that is so."""
    site = make_site(family, conversing=False)
    other = unprotected(site)
    nat(site, f"{site.words['table']} saddr {other}", site.words["gateway"].format(1))
    enabled(site, mode)
    wires = site.wires()
    conversation = site.until_closed(Datagrams(site.a.host, site.b.host, site.b.address, Conversation.PORT,
                                               source=(other, 0)))
    if when == "after":
        flush(site)
        fast(site, conversation, 2)
        assert len(in_clear(seen(wires))) > 40
        assert marks(site)[Conversation.PORT] == 0
        protect(site)
    assert conversation.request()
    is_marked(site, mode)
    assert conversation.reply()
    fast(site, conversation, ways_of(mode))
    is_marked(site, mode)
    assert conversation.seen_from[0] == site.words["gateway"].format(1)
    frames = seen(wires)
    leaks.none(in_clear(frames))
    assert len(frames) > 40


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_masqueraded_before_there_was_a_policy(make_site, family, mode):
    """It keeps the address that it has got, of which the policy knows nothing, and so goes on in clear: without fasttrack
    as with it, and with the rules that exempt new connections from NAT. Rules that let nothing leave in clear end that,
    whether it is fast or not, and so does to forget the connection, which then is encrypted."""
    site = make_site(family, conversing=False)
    site.a.gateway.nft(SOURCE_NAT.format(what="masquerade"))
    enabled(site, mode)
    wires, conversation = site.wires(), site.datagrams()

    def goes_on_in_clear():
        seen(wires)
        conversation.exchange(20)
        assert conversation.seen_from[0] == site.a.wan
        return len(in_clear(seen(wires)))

    found = []
    for on in (False, True):
        site.control.set(enabled=int(on))
        flush(site)
        site.a.gateway.run("conntrack", "-F")
        fast(site, conversation, 2 if on else 0)
        protect(site)
        found.append([goes_on_in_clear() for _ in range(2)])
    assert found == 2 * [[40, 40]]

    site.a.gateway.nft(example("never-in-clear.nft", site.a, site.b))
    seen(wires)
    for _ in range(10):
        assert not conversation.request(timeout=0.05)
    leaks.none(in_clear(seen(wires)))
    site.a.gateway.run("nft", "delete", "table", "inet", "never-in-clear")
    assert goes_on_in_clear() == 40

    site.a.gateway.run("conntrack", "-D", "-f", family, "-p", "udp", "--orig-port-dst", Conversation.PORT)
    # The next packet has to be one that a LAN host of the site's sends.
    assert conversation.request()
    is_marked(site, mode)
    fast(site, conversation, ways_of(mode))
    assert conversation.seen_from[0] == site.a.address
    frames = seen(wires)
    leaks.none(in_clear(frames))
    assert len(frames) > 40


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["policy", "encapsulated"])
def test_a_file_that_flushes_the_rules_and_masquerades(make_site, kind, family, mode):
    """As Debian's nftables.conf does, so that the tool's table is gone. An established connection keeps the address
    that the bypass gave it, and goes on encrypted. A new one is masqueraded and leaves in clear, with fasttrack as
    without it, unless rules let nothing leave so, or the tool's are there again."""
    site = make_site(family, kind=kind, conversing=False)
    masquerade = SOURCE_NAT.format(what="masquerade")
    site.a.gateway.nft(masquerade)
    enabled(site, mode)
    wires, port = site.wires(), Conversation.PORT
    conversation = site.until_closed(Conversation(site))

    def established_goes_on(is_on=True):
        """Fast, after a while, or slow. Gives what was on the WAN."""
        deadline = time.monotonic() + 20
        while True:
            before = site.control.stats()
            conversation.goes_on(least=10)
            after = site.control.stats() - before
            if not is_on or mode == "exclude" or min(after.packets) >= 8:
                break
            assert time.monotonic() < deadline, (after.packets, after.reasons())
        assert is_on and mode == "accelerate" or after.fast == 0, after.packets
        # What has arrived has passed them.
        frames = seen(wires, 0.02)
        leaks.none([frame for frame in frames if SIGN in frame])
        assert len(frames) >= 20
        return frames

    def another():
        """A connection that begins now."""
        nonlocal port
        port += 1
        address = site.b.address
        return site.until_closed(Datagrams(site.a.host, site.b.host, address, port, listen=(address, port)))

    established_goes_on()
    assert marks(site)[Conversation.PORT] == (0x08000000 if mode == "exclude" else 0)
    site.a.gateway.nft("flush ruleset\n" + masquerade)
    assert "fasttrack" not in site.a.gateway.run("nft", "list", "tables")
    leaks.none(in_clear(established_goes_on()))

    for is_on in (True, False):
        site.control.set(enabled=int(is_on))
        talk = another()
        talk.exchange(10)
        assert talk.seen_from[0] == site.a.wan
        assert len(in_clear(established_goes_on(is_on))) == 20, is_on
    site.control.set(enabled=1)

    site.a.gateway.nft(example("never-in-clear.nft", site.a, site.b))
    talk = another()
    for _ in range(5):
        assert not talk.request(timeout=0.05)
    leaks.none(in_clear(established_goes_on()))
    site.a.gateway.run("nft", "delete", "table", "inet", "never-in-clear")

    fasttrack(site, "enable")
    talk = another()
    talk.exchange(10)
    assert talk.seen_from[0] == site.a.address
    leaks.none(in_clear(established_goes_on()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_source_nat_out_of_a_policy(make_site, family, mode):
    """The slow path does not encrypt what a policy was for before source NAT; so this is a plain flow, of which no
    packet has the address that a policy is for. With a policy for the new address it ends at once."""
    site = make_site(family, conversing=False)
    nat(site, "", site.a.wan)
    site.control.enable(ipsec=mode)
    wires = site.wires()
    conversation = site.datagrams()
    fast(site, conversation, 2)
    assert conversation.seen_from[0] == site.a.wan
    frames = seen(wires)
    assert in_clear(frames)
    hidden = socket.inet_pton(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, site.a.address)
    leaks.none([frame for frame in frames if hidden in frame])
    site.a.gateway.ip("xfrm", "policy", "add", "src", f"{site.a.wan}/{site.words['single']}", "dst", site.b.net,
                      "dir", "out", "action", "block")
    before = site.control.stats()
    for _ in range(5):
        assert not conversation.request(timeout=0.05)
    after = site.control.stats() - before
    assert after.packets[0] == 0
    leaks.none(in_clear(seen(wires)))


def unprotected(site):
    """Another address of A's LAN host, which no policy is for, and which is reached from everywhere."""
    address = {"ipv4": "172.16.0.2", "ipv6": "fd77::2"}[site.family]
    single = f"{address}/{site.words['single']}"
    site.a.host.ip("addr", "add", single, "dev", "eth0")
    site.a.gateway.ip("route", "add", single, "dev", "lan0")
    site.b.gateway.ip("route", "add", single, "via", site.a.wan)
    return address


def marks(site):
    """The marks of the connections between the LANs, by their ports: after a flush the first packet may be an answer."""
    lines = site.a.gateway.run("conntrack", "-L", "-f", site.family, "-p", "udp").splitlines()
    found = [(re.findall(r"port=(\d+)", line), re.search(r" mark=(\d+)", line)) for line in lines]
    return {int(port): int(mark[1]) for ports, mark in found for port in ports if mark}


POLICY_ROUTING = """
table inet wans {
    chain prerouting {
        type filter hook prerouting priority mangle;
        meta mark set ct mark and 0x3f00
        ct state new iifname "lan0" udp dport 7000 meta mark set 0x100
        ct state new iifname "lan0" udp dport 7001 meta mark set 0x200
        ct mark set ct mark and 0xffffc0ff or meta mark
    }
    chain forward {
        type filter hook forward priority mangle;
        iifname "lan0" ct mark set ct mark or 0x40000000
    }
}
"""


def encrypted_by(mac, frames):
    """Those with ESP that come from a device."""
    own = bytes.fromhex(mac.replace(":", ""))
    return [frame for frame in frames if frame[6:12] == own and protocol_in(frame) == socket.IPPROTO_ESP]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_bits_of_the_mark_are_policy_routings(make_site, family, mode):
    """As multi-WAN managers do it: some bits of a connection's mark say by which WAN it goes, and are saved and
    restored. Of both the tunnel's WANs each connection keeps its own, and its bits. What encrypts has to leave the
    bits there for the route of ESP, which is else looked up without any mark (`xfrm_bundle_create`)."""
    site = make_site(family, conversing=False)
    gateway, option, single = site.a.gateway, site.words["option"], site.words["single"]
    for way, hop in enumerate((site.b.wan, site.b.other)):
        gateway.ip(option, "route", "add", site.b.net, "via", hop, "dev", f"wan{way}", "table", 100 + way)
        gateway.ip(option, "route", "add", f"{site.b.wan}/{single}", *(("via", hop) if way else ()),
                   "dev", f"wan{way}", "table", 100 + way)
        gateway.ip(option, "rule", "add", "fwmark", f"0x{way + 1}00/0x3f00", "lookup", 100 + way)
    gateway.nft(POLICY_ROUTING)
    fasttrack(site, "set", "ipsec", mode)
    fasttrack(site, "enable")
    wires = site.wires()
    conversations = [site.until_closed(Datagrams(site.a.host, site.b.host, site.b.address, Conversation.PORT + way))
                     for way in (0, 1)]
    for output_mark in ((), ("output-mark", "0x10000", "mask", "0xffffc0ff")):
        site.forget_states(site.spi)
        site.spi += 16
        site.states(site.spi, out=output_mark)
        for way, conversation in enumerate(conversations):
            conversation.exchange(3)
            seen(wires)
            fast(site, conversation, ways_of(mode))
            mark = 0x40000000 | (way + 1) << 8 | (0x08000000 if mode == "exclude" else 0)
            assert marks(site)[Conversation.PORT + way] == mark
            frames = [wire.frames(0.1) for wire in wires]
            leaks.none(in_clear(sum(frames, [])))
            by = [len(encrypted_by(gateway.mac(f"wan{link}"), of_link)) for link, of_link in enumerate(frames)]
            expected = way if output_mark else 0
            assert by[expected] > 20 and not by[1 - expected], (output_mark, way, by)


def test_a_rule_keeps_one_tunnelled_connection_slow(make_site):
    """The administrator's own, for one of two connections, in mode `accelerate`: from its first packet on, and
    later if it comes later."""
    site = make_site("ipv4", conversing=False)
    site.a.gateway.nft("""
        table inet own {
            chain prerouting {
                type filter hook prerouting priority mangle;
                udp dport 7001 ct mark set ct mark or 0x08000000
            }
        }
    """)
    fasttrack(site, "set", "ipsec", "accelerate")
    fasttrack(site, "enable")
    wires = site.wires()
    one, other = (site.until_closed(Datagrams(site.a.host, site.b.host, site.b.address, port)) for port in (7000, 7001))
    fast(site, one, 2)
    before = site.control.stats()
    fast(site, other, 0)
    assert (site.control.stats() - before).slow["marked"] >= 40
    site.a.gateway.nft("""
        flush chain inet own prerouting
        add rule inet own prerouting udp dport 7000 ct mark set ct mark or 0x08000000
    """)
    site.a.gateway.run("conntrack", "-U", "-p", "udp", "--orig-port-dst", "7001", "--mark", "0/0x08000000")
    # The rule is for the other direction's packets, so it marks with the next of those.
    one.exchange(2)
    fast(site, one, 0)
    fast(site, other, 2)
    leaks.none(in_clear(seen(wires)))


@pytest.mark.parametrize("kind, family", [
    ("policy", "ipv4"), ("policy", "ipv6"), ("interface", "ipv6"), ("vti", "ipv4"), ("encapsulated", "ipv4"),
    ("encapsulated", "ipv6"), ("transport", "ipv4"), ("transport", "ipv6")])
def test_back_to_exclude_under_way(make_site, kind, family):
    """When the command has returned no protected flow is left, and none comes back; plain ones stay. No rules are
    there."""
    site = make_site(family, kind=kind)
    site.control.enable(ipsec="accelerate")
    # The address that no policy is for.
    to = site.b.other if kind == "transport" else site.b.wan
    plain = site.until_closed(Datagrams(site.a.host, site.b.gateway, to, 9000, source=(unprotected(site), 0),
                                        listen=(to, 9000)))
    far, address = site.far
    others = [site.until_closed(Datagrams(site.a.host, far, address, port, listen=(address, port)))
              for port in range(7001, 7006)]
    # In transport mode what is received stays slow.
    ways = 1 if kind == "transport" else 2
    for _ in range(3):
        site.conversation.goes_on()
        fast_now = [plain, *others]
        for conversation in fast_now:
            conversation.exchange(3)
        time.sleep(0.3)
        for conversation in fast_now:
            conversation.exchange(3)
        tunnelled = [flow for flow in site.control.flows() if flow.get("ipsec")]
        assert len(tunnelled) == 6 * ways, tunnelled
        site.control.set(ipsec="exclude")
        before = site.control.stats()
        left = site.control.flows()
        assert not [flow for flow in left if flow.get("ipsec")]
        assert len(left) == 2, left
        site.conversation.goes_on()
        after = site.control.stats() - before
        assert after.fast == 0 and after.slow["marked"] == 0, (after.packets, after.reasons())
        assert {flow["id"] for flow in site.control.flows()} == {flow["id"] for flow in left}
        site.control.set(ipsec="accelerate")
