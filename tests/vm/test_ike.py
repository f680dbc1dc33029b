# SPDX-License-Identifier: GPL-2.0
"""Tunnels that strongSwan negotiates, configured as the examples say: they are fast where that is wanted, slow
where it is not, and nothing of them leaves in clear, whatever the IKE daemon does."""

import itertools
import json
import re
import time

import pytest

from lab import findings, leaks
from lab.control import Control
from lab.ike import Ike
from lab.kernel import wait_until
from lab.traffic import Stream
from test_proof import CLEAR

_SERIAL = itertools.count(1)

MODES = ["exclude", "accelerate"]

# What the daemon says of itself.
CHILD_REKEYED = r"outbound CHILD_SA lans\{\d+\} established"
IKE_REKEYED = r"IKE_SA site\[\d+\] rekeyed between"
GIVEN_UP = "giving up after"


@pytest.fixture
def site():
    """Makes sites as they are wanted."""
    made = []

    def make(*words, **more):
        one = Ike(*words[:2], next(_SERIAL), *words[2:], **more)
        made.append(one)
        one.control = Control(one.a.gateway)
        one.a.gateway.run("fasttrack", "enable")
        return one

    yield make
    for one in made:
        if hasattr(one, "control"):
            one.control.close()
        one.close()


def choose(site, mode):
    """Has this become of IPsec from now on."""
    run = site.a.gateway.run
    run("fasttrack", "set", "ipsec", mode)
    run("fasttrack", "enable")
    if mode == "accelerate":
        # As the manual says how to take the mark from those that had it before.
        run("conntrack", "-U", "--mark", "0/0x08000000", check=False)


def fast(site, least=40):
    """The share of packets that were fast, there and back, of some that arrive now."""
    before, arrived = site.control.stats(), list(site.conversation.arrived)
    site.goes_on(least)
    after = site.control.stats() - before
    moved = [now - then for now, then in zip(site.conversation.arrived, arrived)]
    return tuple(packets / of for packets, of in zip(after.packets, moved)), after.reasons()


def becomes(site, mode):
    """What is expected of the mode comes about."""
    if mode == "accelerate":
        deadline = time.monotonic() + 30
        # Inbound transport mode stays slow.
        ways = 1 if site.kind == "transport" else 2
        while min((found := fast(site))[0][:ways]) <= 0.5:
            assert time.monotonic() < deadline, f"not fast: {found}"
    else:
        share, reasons = fast(site)
        assert share == (0, 0), share
        assert mode is None or reasons.get("ipsec", 0) >= 40, reasons


def restarted(site):
    """The daemon is stopped, which takes its policies and states, and started again."""
    site.daemons[0].stop()
    time.sleep(0.5)
    site.daemons[0].start()


def killed(site):
    """The daemon dies, and is started again. Its states would stay: nobody but the kernel knows of them any more, which
    goes back to them as soon as the daemon gives up those that it made later."""
    site.daemons[0].kill()
    time.sleep(0.5)
    site.a.gateway.ip("xfrm", "state", "flush")
    site.daemons[0].start()


def renewed(site):
    """The connection is closed, and made again by the next packets."""
    site.daemons[0].swanctl("--terminate", "--ike", "site")


CHANGES = [restarted, killed, renewed]


# B never begins to negotiate. If both begin at once, as they may when the next packets find no connection any more, each
# may close what the other one has made.
ANSWERING = """
connections {
    site {
        children {
            lans {
                start_action = none
                dpd_action = clear
                close_action = none
            }
        }
    }
}
"""


@pytest.mark.parametrize("kind, family, outer, more_of_b", [
    ("policy", "ipv4", "ipv4", ""), ("policy", "ipv6", "ipv6", ""), ("interface", "ipv6", "ipv4", ""),
    ("interface", "ipv4", "ipv6", ANSWERING), ("encapsulated", "ipv4", "ipv4", ""), ("encapsulated", "ipv6", "ipv6", ""),
    ("transport", "ipv4", "ipv4", ""), ("transport", "ipv6", "ipv6", "")],
    ids=["policy-ipv4", "policy-ipv6", "interface-ipv6-ipv4", "interface-ipv4-ipv6", "encapsulated-ipv4",
         "encapsulated-ipv6", "transport-ipv4", "transport-ipv6"])
def test_nothing_in_clear_whatever_the_daemons_do(site, kind, family, outer, more_of_b):
    one = site(kind, family, outer, more_of_b=more_of_b)
    one.goes_on()
    for mode in MODES:
        choose(one, mode)
        watch = one.watch()
        becomes(one, mode)
        for change in CHANGES:
            frames, clear = watch.frames, watch.clear
            change(one)
            one.goes_on()
            becomes(one, mode)
            clear = watch.clear - clear
            findings.note(CLEAR.format(mode=mode), f"daemon {change.__name__}", f"{kind} {family}",
                          f"{clear} of {watch.frames - frames}", clear)
        frames, clear = watch.end()
        leaks.none(clear, frames)
    if kind == "transport":
        return
    # And a stream.
    stream = Stream(one.a.host, one.b.host, one.b.address, 7001)
    stream.warm_up()

    def there_and_back():
        for back in (False, True):
            stream.send(b"z" * 200_000, back)
    # At first the hosts do not know what fits into the tunnel.
    there_and_back()
    before = one.control.stats()
    there_and_back()
    after = one.control.stats() - before
    stream.close()
    # In bytes, as one packet may be many that arrived at once.
    assert min(after.bytes) >= 100_000, (after.bytes, after.packets, after.reasons())


REKEYING = """
connections {
    site {
        rekey_time = 11s
        over_time = 60s
        rand_time = 0s
        children {
            lans {
                rekey_time = 4s
                life_time = 60s
                rand_time = 0s
            }
        }
    }
}
"""


@pytest.mark.parametrize("kind", ["policy", "interface"])
def test_rekeying_loses_no_more_than_on_the_slow_path(site, capsys, kind):
    """CHILD_SA and IKE_SA, again and again under way."""
    one = site(kind, "ipv4", "ipv4", more_of_a=REKEYING)
    one.goes_on()
    lost = {}
    for mode in MODES:
        choose(one, mode)
        becomes(one, mode)
        watch = one.watch()
        before = list(one.conversation.lost)
        sent, ike_rekeyed = sum(one.conversation.arrived), said(one, IKE_REKEYED)
        for _ in range(3):
            child_rekeyed = said(one, CHILD_REKEYED)
            wait_until(lambda many=child_rekeyed: said(one, CHILD_REKEYED) > many, 60, "another CHILD_SA")
            becomes(one, mode)
        wait_until(lambda: said(one, IKE_REKEYED) > ike_rekeyed, 60, "another IKE_SA")
        becomes(one, mode)
        lost[mode] = sum(now - then for now, then in zip(one.conversation.lost, before))
        frames, clear = watch.end()
        with capsys.disabled():
            print(f"{kind} {mode}: of {sum(one.conversation.arrived) - sent} {lost[mode]} lost, {frames} frames")
        leaks.none(clear, frames)
    assert lost["accelerate"] <= lost["exclude"], lost


#: Of iperf3: packets a second each way, of so many bytes, for so many seconds, in which several CHILD_SAs and an IKE_SA
#: have their turn.
RATE, SIZE, SECONDS = 150, 1000, 17


def loaded(site):
    """Has iperf3 send datagrams both ways through the tunnel for a while. Gives how many, and how many were lost."""
    server = site.b.host.start("iperf3", "--server", "--one-off", "--bind", site.b.address)
    listening = ("ss", "-Hltn", "sport = :5201")
    wait_until(lambda: site.b.host.run(*listening), 20, "the server of iperf3")
    result = json.loads(site.a.host.run(
        "iperf3", "--client", site.b.address, "--udp", "--bidir", "--time", SECONDS, "--length", SIZE,
        "--bitrate", 8 * SIZE * RATE, "--window", "1M", "--json"))
    server.wait(30)
    streams = [stream["udp"] for stream in result["end"]["streams"]]
    assert len(streams) == 2, result["end"]
    return sum(udp["packets"] for udp in streams), sum(udp["lost_packets"] for udp in streams)


@pytest.mark.parametrize("kind, family", [("policy", "ipv4"), ("interface", "ipv6")])
def test_rekeying_under_load_loses_no_more_than_on_the_slow_path(site, capsys, kind, family):
    """The load is iperf3's, in both directions at once."""
    one = site(kind, family, more_of_a=REKEYING)
    one.goes_on()
    share = {}
    for mode in MODES:
        choose(one, mode)
        becomes(one, mode)
        watch, before = one.watch(), one.control.stats()
        rekeyed = said(one, CHILD_REKEYED), said(one, IKE_REKEYED)
        packets, lost = loaded(one)
        rekeyed = [now - then for now, then in zip((said(one, CHILD_REKEYED), said(one, IKE_REKEYED)), rekeyed)]
        after = one.control.stats() - before
        frames, clear = watch.end()
        with capsys.disabled():
            print(f"{kind} {family} {mode}: of {packets} datagrams of iperf3 {lost} lost, {after.fast} packets fast, "
                  f"{rekeyed[0]} CHILD_SAs and {rekeyed[1]} IKE_SAs rekeyed, {frames} frames")
        leaks.none(clear, frames)
        assert rekeyed[0] >= 3 and rekeyed[1] >= 1, rekeyed
        # Fewer than are wanted, if the machine has other things to do.
        assert packets > RATE * SECONDS / 4
        assert after.fast > packets / 2 if mode == "accelerate" else after.fast == 0, (after.fast, after.reasons())
        share[mode] = lost / packets
    # A packet or two are late now and then on a machine that has other things to do.
    assert share["accelerate"] <= share["exclude"] + 0.002, share


def said(site, pattern):
    """How often gateway A's daemon has said something."""
    return site.daemons[0].said(pattern)


# A has the addresses that its devices have; B waits for it, wherever it comes from.
ROAMING = """
connections {
    site {
        local_addrs = %any
    }
}
"""
WAITING = """
connections {
    site {
        remote_addrs = %any
        children {
            lans {
                start_action = none
            }
        }
    }
}
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind, family", [("policy", "ipv4"), ("interface", "ipv4"), ("policy", "ipv6"),
                                          ("interface", "ipv6")])
def test_a_gateway_that_gets_another_address(site, kind, family, mode):
    """MOBIKE: over the other link, then by another address there, then back."""
    one = site(kind, family, more_of_a=ROAMING, more_of_b=WAITING)
    gateway = one.a.gateway
    gateway.ip("route", "add", "default", "via", one.b.other, "dev", "wan1", "metric", 1000)
    choose(one, mode)
    one.goes_on()
    watch = one.watch()
    becomes(one, mode)
    another = one.words["other"].format(11)

    def other_link():
        gateway.ip("link", "set", "wan0", "down")

    def other_address():
        gateway.ip("addr", "del", f"{one.a.other}/{one.words['prefix']}", "dev", "wan1")
        gateway.ip("addr", "add", f"{another}/{one.words['prefix']}", "dev", "wan1")
        gateway.ip("route", "replace", "default", "via", one.b.other, "dev", "wan1", "metric", 1000)

    def back():
        gateway.ip("link", "set", "wan0", "up")
        if kind == "policy":
            gateway.ip("route", "replace", one.b.net, "via", one.b.wan)
        gateway.ip("link", "set", "wan1", "down")

    for move, address in ((other_link, one.a.other), (other_address, another), (back, one.a.wan)):
        move()
        wait_until(lambda to=address: is_end_of(one, to), 60, f"{move.__name__}: states")
        one.goes_on()
        becomes(one, mode)
    frames, clear = watch.end()
    leaks.none(clear, frames)


def is_end_of(site, address):
    """Whether an address is gateway A's end of the states that have keys. Which of B's the daemon finds a way to
    first is for it to say."""
    text = site.a.gateway.ip("xfrm", "state")
    ends = set(re.findall(r"^src (\S+) dst (\S+)\n(?:\t.*\n)*?\taead ", text, re.MULTILINE))
    return any(ends == {(address, peer), (peer, address)} for peer in (site.b.wan, site.b.other))


def mapped(port):
    """Has a gateway's UDP of port 4500 come from another port, as if a NAT were before it. That lets
    nobody in to where nothing has come from."""
    return f"""
        table ip mapping
        delete table ip mapping
        table ip mapping {{
            chain prerouting {{
                type filter hook prerouting priority mangle;
                iifname "wan0" udp dport {{ 4500, 5500, 5600 }} ct state new drop
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                oifname "wan0" udp sport 4500 snat to :{port}
            }}
        }}
    """


def ports(site):
    """The ports, there and back, of the states of gateway A that are encapsulated in UDP."""
    text = site.a.gateway.ip("xfrm", "state")
    return set(re.findall(r"encap type espinudp sport (\d+) dport (\d+)", text))


def test_a_peer_that_a_nat_maps_anew(site):
    """The kernel tells the daemon that ESP comes from another port, and the daemon changes the states."""
    one = site("encapsulated", "ipv4", "ipv4")
    one.goes_on()
    for mode, port in zip(MODES, (5500, 5600)):
        choose(one, mode)
        watch = one.watch()
        becomes(one, mode)
        one.b.gateway.nft(mapped(port))
        one.b.gateway.run("conntrack", "-F", check=False)
        wait_until(lambda to=str(port): ports(one) == {("4500", to), (to, "4500")}, 60, "the states' ports")
        one.goes_on()
        becomes(one, mode)
        frames, clear = watch.end()
        leaks.none(clear, frames)


# The peer is missed after some three seconds.
IMPATIENT = """
retransmit_tries = 2
retransmit_timeout = 1.0
retransmit_base = 1.0
"""
DPD = """
connections {
    site {
        dpd_delay = 1s
    }
}
"""


def peer_missed(site, watch):
    """Waits until gateway A's daemon has missed the other one. Gives how much was in clear before."""
    before, clear = said(site, GIVEN_UP), watch.clear
    deadline = time.monotonic() + 90
    while said(site, GIVEN_UP) == before:
        assert time.monotonic() < deadline, "the peer has not been missed"
        clear = watch.clear
        time.sleep(0.1)
    return clear


@pytest.mark.parametrize("kind, family", [
    ("policy", "ipv4"), ("interface", "ipv4"), ("policy", "ipv6"), ("interface", "ipv6")])
def test_a_cut_that_the_daemons_notice(site, kind, family):
    """The policies, or the interface, stay; the packets wait or go, and all goes on when the WAN is back.
    Nothing else keeps them from being sent in clear."""
    one = site(kind, family, more_of_a=DPD, settings=IMPATIENT, guarded=False)
    one.goes_on()
    for mode in MODES:
        choose(one, mode)
        watch = one.watch()
        becomes(one, mode)
        one.wan.ip("link", "set", "b0", "nomaster")
        peer_missed(one, watch)
        time.sleep(1)
        one.wan.ip("link", "set", "b0", "master", "link0")
        one.goes_on()
        becomes(one, mode)
        frames, clear = watch.end()
        leaks.none(clear, frames)


CAREFREE = DPD + """
connections {
    site {
        children {
            lans {
                start_action = start
                dpd_action = clear
                close_action = none
            }
        }
    }
}
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_policies_that_go_with_the_peer(site, guarded):
    """A configuration that leaves packets to the routes then: they leave in clear, with fasttrack as without it,
    but not before; and with the rules of the example not at all. With the next SA they are encrypted again."""
    one = site("policy", "ipv4", "ipv4", more_of_a=CAREFREE, settings=IMPATIENT, guarded=guarded)
    one.goes_on()
    for mode in [None, *MODES]:
        if mode:
            choose(one, mode)
        else:
            one.a.gateway.run("fasttrack", "disable")
        watch = one.watch()
        becomes(one, mode)
        one.daemons[1].kill()
        before = peer_missed(one, watch)
        time.sleep(3)
        _, clear = watch.end()
        leaks.none(before)
        if guarded:
            leaks.none(clear)
        else:
            assert clear
        one.daemons[1].start()
        one.daemons[0].swanctl("--initiate", "--child", "lans")
        watch = one.watch()
        one.goes_on()
        becomes(one, mode)
        frames, clear = watch.end()
        leaks.none(clear, frames)
