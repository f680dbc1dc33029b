# SPDX-License-Identifier: GPL-2.0
"""IPsec flows on the fast path, on request: encrypted on the way out, and let in only as decrypted."""

import subprocess
import time

import pytest
from scapy.layers.inet import IP

from lab import leaks
from lab.kernel import load, unload
from test_ipsec import ESP, MASQUERADE, BYPASS, inner, twins_are_dropped, xfrm_stat


def accelerate(tunnel, **more):
    tunnel.control.enable(ipsec="accelerate", **more)


def becomes_fast(tunnel, conversation):
    """Both directions are fast, after a while."""
    conversation.warm_up()
    before = tunnel.control.stats()
    conversation.exchange(20)
    after = tunnel.control.stats() - before
    assert min(after.packets) >= 18, (after.packets, after.reasons())


def is_encrypted(tunnel, conversation, wan):
    """What passes the WAN from now on is ESP, one packet for each message."""
    wan.frames(0.1)
    conversation.exchange(20)
    packets = wan.packets()
    assert sum(packet[IP].proto == ESP for packet in packets) == 40
    leaks.none([packet for packet in packets if packet[IP].src == tunnel.LAN_A])


def test_both_directions_are_fast_and_encrypted(tunnel, tunnelled, wan):
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    is_encrypted(tunnel, tunnelled, wan)
    flows = {flow["reply"]: flow for flow in tunnel.control.flows()}
    assert {reply: flow["ipsec"] for reply, flow in flows.items()} == {0: {"encrypted"}, 1: {"decrypted"}}


def test_the_clear_text_twin_is_dropped(tunnel, tunnelled):
    accelerate(tunnel)
    tunnelled.warm_up()
    tunnelled.exchange(20)
    before = tunnel.control.stats()
    twins_are_dropped(tunnel, tunnelled)
    after = tunnel.control.stats() - before
    assert after.slow["secpath-mismatch"] == 10
    tunnelled.exchange(5)


def test_what_another_state_has_decrypted_is_dropped(tunnel, tunnelled):
    """One of the same peer, which the policy for the LANs does not name: it has another reqid."""
    for gateway in (tunnel.a, tunnel.b):
        gateway.ip("xfrm", "state", "add", "src", tunnel.B, "dst", tunnel.A, "proto", "esp", "spi", "0x999",
                   "reqid", 99, "mode", "tunnel", "aead", "rfc4106(gcm(aes))", tunnel.KEY, 128)
    accelerate(tunnel, sample_interval=60_000)
    becomes_fast(tunnel, tunnelled)
    # Gateway B sends what it sends to the LAN through it, of which A has not been told anything.
    tunnel.policy(tunnel.b, "delete", "10.2.0.0/24", "10.1.0.0/24", "out")
    tunnel.b.ip("xfrm", "policy", "add", "src", "10.2.0.0/24", "dst", "10.1.0.0/24", "dir", "out", "tmpl", "src",
                tunnel.B, "dst", tunnel.A, "proto", "esp", "reqid", 99, "mode", "tunnel")
    # The flow is still fast in the other direction; of this one the slow path lets nothing in.
    before = tunnel.control.stats()
    mismatches = int(xfrm_stat(tunnel.a, "XfrmInTmplMismatch"))
    for _ in range(10):
        assert tunnelled.request()
        leaks.none(tunnelled.reply(timeout=0.1))
    after = tunnel.control.stats() - before
    assert after.packets == (10, 0) and after.slow["secpath-mismatch"] == 10, (after.packets, after.reasons())
    assert int(xfrm_stat(tunnel.a, "XfrmInTmplMismatch")) - mismatches == 10


def rekey(tunnel, old, new):
    """New states for both directions, then the old ones go."""
    for gateway in (tunnel.a, tunnel.b):
        for source, destination, spi in ((tunnel.A, tunnel.B, 0x100), (tunnel.B, tunnel.A, 0x200)):
            gateway.ip("xfrm", "state", "add", "src", source, "dst", destination, "proto", "esp",
                       "spi", hex(spi + new), "reqid", 1, "mode", "tunnel", "aead", "rfc4106(gcm(aes))",
                       "0x" + f"{new + 16:02x}" * 20, 128)
    for gateway in (tunnel.a, tunnel.b):
        for source, destination, spi in ((tunnel.A, tunnel.B, 0x100), (tunnel.B, tunnel.A, 0x200)):
            gateway.ip("xfrm", "state", "delete", "src", source, "dst", destination, "proto", "esp",
                       "spi", hex(spi + old))


def test_rekeying_goes_on_fast_and_encrypted(tunnel, tunnelled, wan):
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    for number in range(3):
        rekey(tunnel, number, number + 1)
        becomes_fast(tunnel, tunnelled)
        is_encrypted(tunnel, tunnelled, wan)


def test_whoever_follows_the_states_slows_nothing_down(tunnel, tunnelled):
    """The kernel reports how far they have got with every other packet then."""
    accelerate(tunnel)
    monitor = tunnel.a.start("ip", "xfrm", "monitor", stdout=subprocess.PIPE, text=True)
    tunnelled.warm_up()
    becomes_fast(tunnel, tunnelled)
    monitor.kill()
    reports = monitor.communicate()[0].count("Async event")
    assert reports >= 10, reports


@pytest.mark.parametrize("what", ["state", "policy"])
def test_when_a_state_or_policy_goes_nothing_leaves_by_it(tunnel, tunnelled, wan, what):
    """Without a state packets wait or are dropped; without a policy, another one forbids them."""
    if what == "policy":
        tunnel.policy(tunnel.a, "add", "10.1.0.0/16", "10.2.0.0/16", "out", None, "priority", 1000, "action", "block")
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    wan.frames(0.1)
    before = tunnel.control.stats()
    if what == "state":
        tunnel.a.ip("xfrm", "state", "delete", "src", tunnel.A, "dst", tunnel.B, "proto", "esp", "spi", "0x100")
    else:
        tunnel.policy(tunnel.a, "delete", "10.1.0.0/24", "10.2.0.0/24", "out")
    for _ in range(5):
        assert not tunnelled.request(timeout=0.05)
    assert (tunnel.control.stats() - before).packets[0] == 0
    leaks.none(wan.packets())
    # What the flow holds of them is given back though no packet brings anything new.
    deadline = time.monotonic() + 10
    while tunnel.control.flows(reply=0):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_masquerade_with_the_bypass_is_fast_and_encrypted(tunnel, tunnelled, wan):
    tunnel.a.nft(MASQUERADE + BYPASS)
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    is_encrypted(tunnel, tunnelled, wan)


def test_a_mark_still_keeps_a_connection_slow(tunnel, tunnelled, wan):
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    tunnel.a.run("conntrack", "-U", "-p", "udp", "--mark", "0x08000000/0x08000000")
    before = tunnel.control.stats()
    is_encrypted(tunnel, tunnelled, wan)
    assert (tunnel.control.stats() - before).fast == 0
    # As the manual says how to take it from those that had it before.
    tunnel.a.run("conntrack", "-U", "-p", "udp", "--mark", "0/0x08000000")
    becomes_fast(tunnel, tunnelled)


def test_back_to_exclude(tunnel, tunnelled, wan):
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    before = tunnel.control.stats()
    tunnel.control.set(ipsec="exclude")
    after = tunnel.control.stats() - before
    assert after.flows == 0
    assert after.gone["ipsec"] == 2
    is_encrypted(tunnel, tunnelled, wan)
    assert (tunnel.control.stats() - before).fast == 0


def test_unloading_under_way_leaves_all_encrypted(tunnel, tunnelled, wan):
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    wan.frames(0.1)
    unload()
    is_encrypted(tunnel, tunnelled, wan)
    load()


def test_a_device_that_leaves_is_not_held(tunnel, tunnelled):
    accelerate(tunnel)
    becomes_fast(tunnel, tunnelled)
    tunnel.a.ip("link", "del", "wan0")
    assert not tunnel.control.flows()


def test_what_is_too_large_is_left_to_the_slow_path(tunnel, tunnelled, wan):
    """The tunnel's MTU is smaller than the devices'."""
    # Nothing else sends that very packet there.
    accelerate(tunnel, sample_interval=60_000)
    becomes_fast(tunnel, tunnelled)
    before = tunnel.control.stats()
    assert not tunnelled.request(size=1472, timeout=0.3)
    assert (tunnel.control.stats() - before).slow["mtu"] == 1
    leaks.none(inner(wan, tunnel))
