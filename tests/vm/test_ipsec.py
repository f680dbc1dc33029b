# SPDX-License-Identifier: GPL-2.0
"""IPsec flows stay on the slow path, whatever happens and whatever rules there are; and nothing that
ought to be encrypted leaves in clear, nothing that ought to have been comes in."""

import socket
import time

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from lab import leaks
from lab.traffic import Datagrams, Stream, Wire

ESP = 50

MASQUERADE = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "wan0" masquerade
    }
}
"""

# What `fasttrack enable` installs for IPv4.
BYPASS = """
table ip bypass {
    chain postrouting {
        type nat hook postrouting priority srcnat - 1;
        rt ipsec exists snat ip to ip saddr
    }
}
"""


def inner(wire, tunnel, seconds=0.3):
    """Packets on a wire that carry the LANs' addresses in clear."""
    return [packet for packet in wire.packets(seconds=seconds)
            if {packet[IP].src, packet[IP].dst} & {tunnel.LAN_A, tunnel.LAN_B}]


@pytest.fixture
def plain(tunnel):
    """A conversation that no policy is about: from the LAN to the stranger."""
    tunnel.stranger.ip("route", "replace", "10.1.0.0/24", "via", tunnel.A)
    conversation = Datagrams(tunnel.lan_a, tunnel.stranger, tunnel.STRANGER)
    yield conversation
    conversation.close()


def test_a_tunnel_stays_slow_and_encrypted_without_any_rule(tunnel, tunnelled, wan):
    tunnel.control.enable()
    tunnelled.warm_up()
    before = tunnel.control.stats()
    wan.frames(0.1)
    tunnelled.exchange(20)
    after = tunnel.control.stats() - before
    assert after.fast == 0
    assert after.flows == 0
    assert after.reasons() == {"ipsec": 40}
    packets = wan.packets()
    assert sum(packet[IP].proto == ESP for packet in packets) == 40
    leaks.none([packet for packet in packets if packet[IP].src == tunnel.LAN_A])


def test_a_stream_through_the_tunnel(tunnel, wan):
    tunnel.control.enable()
    stream = Stream(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    stream.warm_up()
    stream.send(b"z" * 200_000)
    stream.send(b"z" * 200_000, back=True)
    assert tunnel.control.stats().fast == 0
    leaks.none(inner(wan, tunnel))
    stream.close()


def test_plain_flows_beside_the_tunnel_are_fast(tunnel, plain, tunnelled):
    tunnel.control.enable()
    tunnelled.exchange(3)
    plain.warm_up()
    before = tunnel.control.stats()
    plain.exchange(20)
    tunnelled.exchange(20)
    after = tunnel.control.stats() - before
    assert after.fast >= 38
    assert after.slow["ipsec"] == 40


def clear_text_twin(tunnel, source, destination, sport, dport, payload=b"twin"):
    """A frame that a stranger on the WAN sends to gateway A, with the inner addresses of a flow."""
    return (Ether(src=tunnel.stranger.mac("eth0"), dst=tunnel.a.mac("wan0"))
            / IP(src=source, dst=destination) / UDP(sport=sport, dport=dport) / payload)


def twins_are_dropped(tunnel, conversation):
    """Sends the clear-text twin of the conversation's replies; none may reach the LAN."""
    _, port = conversation.source
    lan = Wire(tunnel.lan_a, "eth0", outgoing=False)
    stranger = Wire(tunnel.stranger, "eth0")
    lan.frames(0.1)
    mismatches = int(xfrm_stat(tunnel.a, "XfrmInTmplMismatch")) + int(xfrm_stat(tunnel.a, "XfrmInNoPols"))
    for _ in range(10):
        stranger.put(clear_text_twin(tunnel, tunnel.LAN_B, tunnel.LAN_A, 7, port))
    arrived = [packet for packet in lan.packets() if b"twin" in bytes(packet)]
    counted = int(xfrm_stat(tunnel.a, "XfrmInTmplMismatch")) + int(xfrm_stat(tunnel.a, "XfrmInNoPols"))
    lan.close()
    stranger.close()
    leaks.none(arrived)
    assert counted - mismatches == 10


def xfrm_stat(namespace, name):
    """A counter of /proc/net/xfrm_stat."""
    for line in namespace.run("cat", "/proc/net/xfrm_stat").splitlines():
        key, value = line.split()
        if key == name:
            return value
    raise AssertionError(f"no counter {name}")


def test_the_clear_text_twin_of_a_tunnelled_flow_is_dropped(tunnel, tunnelled):
    tunnel.control.enable()
    tunnelled.warm_up()
    tunnelled.exchange(20)
    twins_are_dropped(tunnel, tunnelled)
    tunnelled.exchange(5)
    assert tunnel.control.stats().fast == 0


def test_the_twin_of_a_flow_that_was_plain_before(tunnel, wan):
    """The flow is fast in clear; then policies for it appear; then its clear text is a twin."""
    for namespace in (tunnel.a, tunnel.b):
        namespace.ip("xfrm", "policy", "flush")
    conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    tunnel.control.enable()
    conversation.warm_up()
    before = tunnel.control.stats()
    conversation.exchange(20)
    assert (tunnel.control.stats() - before).fast >= 38
    for gateway, own, peer, here, there in ((tunnel.a, tunnel.A, tunnel.B, 1, 2),
                                            (tunnel.b, tunnel.B, tunnel.A, 2, 1)):
        own_net, peer_net = f"10.{here}.0.0/24", f"10.{there}.0.0/24"
        tunnel.policy(gateway, "add", own_net, peer_net, "out", (own, peer))
        tunnel.policy(gateway, "add", peer_net, own_net, "fwd", (peer, own))
        tunnel.policy(gateway, "add", peer_net, own_net, "in", (peer, own))
    wan.frames(0.1)
    before = tunnel.control.stats()
    conversation.exchange(20)
    assert (tunnel.control.stats() - before).fast == 0
    leaks.none(inner(wan, tunnel))
    twins_are_dropped(tunnel, conversation)
    conversation.close()


def test_a_policy_stops_a_fast_flow_at_once(tunnel, plain, wan):
    """A block policy: from the moment that it is acknowledged no packet of the flow passes."""
    tunnel.control.enable()
    plain.warm_up()
    before = tunnel.control.stats()
    plain.exchange(20)
    assert (tunnel.control.stats() - before).fast >= 38
    tunnel.a.ip("xfrm", "policy", "add", "src", "10.1.0.0/24", "dst", f"{tunnel.STRANGER}/32",
                "dir", "out", "action", "block")
    wan.frames(0.1)
    before = tunnel.control.stats()
    assert not plain.request(timeout=0.3)
    after = tunnel.control.stats() - before
    assert after.fast == 0
    leaks.none(inner(wan, tunnel))
    # And when it has gone, it goes on.
    tunnel.a.ip("xfrm", "policy", "delete", "src", "10.1.0.0/24", "dst", f"{tunnel.STRANGER}/32",
                "dir", "out")
    plain.exchange(5)


def bypass_policy(tunnel, verb):
    """Exempts the flow between the LANs from the tunnel, on both gateways."""
    for gateway, here, there in ((tunnel.a, 1, 2), (tunnel.b, 2, 1)):
        for direction, source, destination in (("out", here, there), ("fwd", there, here), ("in", there, here)):
            gateway.ip("xfrm", "policy", verb, "src", f"10.{source}.0.2/32", "dst",
                       f"10.{destination}.0.2/32", "dir", direction,
                       *(("priority", 0) if verb == "add" else ()))


def lower_the_tunnels_priority(tunnel):
    """So that a bypass policy goes before it."""
    for gateway in (tunnel.a, tunnel.b):
        gateway.ip("xfrm", "policy", "flush")
    for gateway, own, peer, here, there in ((tunnel.a, tunnel.A, tunnel.B, 1, 2),
                                            (tunnel.b, tunnel.B, tunnel.A, 2, 1)):
        own_net, peer_net = f"10.{here}.0.0/24", f"10.{there}.0.0/24"
        for direction, source, destination, outer in (("out", own_net, peer_net, (own, peer)),
                                                      ("fwd", peer_net, own_net, (peer, own)),
                                                      ("in", peer_net, own_net, (peer, own))):
            tunnel.policy(gateway, "add", source, destination, direction, outer, "priority", 100)


def test_deleting_a_bypass_policy_encrypts_a_fast_flow_at_once(tunnel, wan):
    """Routes do not expire when a policy is deleted: only the module's own ear tells it."""
    lower_the_tunnels_priority(tunnel)
    bypass_policy(tunnel, "add")
    conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    tunnel.control.enable()
    conversation.warm_up()
    before = tunnel.control.stats()
    conversation.exchange(20)
    assert (tunnel.control.stats() - before).fast >= 38
    assert inner(wan, tunnel)
    bypass_policy(tunnel, "delete")
    wan.frames(0.1)
    before = tunnel.control.stats()
    conversation.exchange(20)
    after = tunnel.control.stats() - before
    assert after.fast == 0
    leaks.none(inner(wan, tunnel))
    assert after.slow["ipsec"] >= 36, after.reasons()
    conversation.close()


def test_an_expiring_bypass_policy_does_too(tunnel, wan):
    lower_the_tunnels_priority(tunnel)
    bypass_policy(tunnel, "add")
    # One that lasts two seconds, in place of the one that lasts.
    tunnel.a.ip("xfrm", "policy", "delete", "src", "10.1.0.2/32", "dst", "10.2.0.2/32", "dir", "out")
    conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    tunnel.control.enable()
    tunnel.a.ip("xfrm", "policy", "add", "src", "10.1.0.2/32", "dst", "10.2.0.2/32", "dir", "out",
                "priority", 0, "limit", "time-hard", 4)
    conversation.warm_up()
    before = tunnel.control.stats()
    conversation.exchange(20)
    assert (tunnel.control.stats() - before).fast >= 38
    time.sleep(4.5)
    wan.frames(0.1)
    for _ in range(10):
        conversation.request(timeout=0.05)
    clear = [packet for packet in inner(wan, tunnel) if packet[IP].src == tunnel.LAN_A]
    leaks.none(clear)
    conversation.close()


def test_masquerade_with_the_bypass_stays_encrypted(tunnel, tunnelled, wan):
    tunnel.a.nft(MASQUERADE + BYPASS)
    tunnel.control.enable()
    tunnelled.warm_up()
    wan.frames(0.1)
    before = tunnel.control.stats()
    tunnelled.exchange(20)
    assert (tunnel.control.stats() - before).fast == 0
    packets = wan.packets()
    leaks.none([packet for packet in packets if packet[IP].proto != ESP])
    assert len(packets) == 40


def test_masquerade_without_it_leaves_in_clear(tunnel, tunnelled, wan):
    """Not by fasttrack's doing: this is what the bypass is for."""
    tunnel.b.nft("table ip reverse {\n chain postrouting {\n type filter hook postrouting priority 0\n }\n}")
    tunnel.b.ip("xfrm", "policy", "flush")
    tunnel.a.nft(MASQUERADE)
    tunnelled.request(timeout=0.5)
    clear = [packet for packet in wan.packets(protocol=17) if packet[IP].src == tunnel.A]
    assert clear


def test_a_policy_without_a_state(tunnel, wan):
    """Larval: packets are dropped or queued until a state comes, and never leave in clear."""
    for larval_drop in (1, 0):
        tunnel.a.sysctl("net.core.xfrm_larval_drop", larval_drop)
        tunnel.a.ip("xfrm", "state", "flush")
        conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B, 100 + larval_drop)
        tunnel.control.set(enabled=1)
        wan.frames(0.1)
        for _ in range(5):
            assert not conversation.request(timeout=0.05)
        leaks.none(inner(wan, tunnel))
        assert tunnel.control.stats().flows == 0
        conversation.close()


def test_source_nat_into_a_policy_is_seen(tunnel, wan):
    """The route of a flow has no transform until source NAT gives it an address that a policy is for."""
    tunnel.a.ip("addr", "add", "10.1.0.77/32", "dev", "lo")
    tunnel.lan_a.ip("addr", "add", "172.16.0.2/32", "dev", "eth0")
    tunnel.a.ip("route", "add", "172.16.0.2/32", "dev", "lan0")
    tunnel.a.nft("""
        table ip nat {
            chain postrouting {
                type nat hook postrouting priority srcnat;
                ip saddr 172.16.0.2 snat to 10.1.0.77
            }
        }
    """)
    conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B, source=("172.16.0.2", 0))
    tunnel.control.enable()
    conversation.warm_up()
    wan.frames(0.1)
    before = tunnel.control.stats()
    conversation.exchange(10)
    after = tunnel.control.stats() - before
    assert after.fast == 0
    leaks.none([packet for packet in wan.packets() if packet[IP].proto != ESP])
    conversation.close()


def test_a_socket_policy_does_not_crash_the_kernel(tunnel):
    """The kernel asks every key manager to read a socket's policy, and one of them is fasttrack's."""
    ip_xfrm_policy = 17
    with tunnel.a.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        with pytest.raises(OSError):
            any_socket.setsockopt(socket.IPPROTO_IP, ip_xfrm_policy, b"\0" * 4)
        with pytest.raises(OSError):
            any_socket.setsockopt(socket.IPPROTO_IP, ip_xfrm_policy, b"\0" * 168)


def test_acquire_reaches_the_real_key_manager(tunnel):
    """A manager that never negotiates must not keep the others from being asked."""
    monitor = tunnel.a.start("ip", "xfrm", "monitor", "acquire", stdout=-1, text=True)
    time.sleep(0.5)
    tunnel.control.enable()
    tunnel.a.ip("xfrm", "state", "flush")
    conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    conversation.request(timeout=0.3)
    time.sleep(0.3)
    monitor.terminate()
    assert "acquire" in monitor.communicate(timeout=5)[0]
    conversation.close()
