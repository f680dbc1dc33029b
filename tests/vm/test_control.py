# SPDX-License-Identifier: GPL-2.0
"""The control interface, by a client that knows nothing but its specification."""

import errno
import socket
import struct

import pytest

from lab.control import NlError
from lab.traffic import Datagrams, Stream

DEFAULTS = {
    "enabled": 0, "mark-value": 0x08000000, "mark-mask": 0x08000000, "tcp-timeout": 30000,
    "udp-timeout": 30000, "sample-interval": 1000, "table-size": 131072,
    "ipsec": "exclude", "learn-after": 3,
}


def test_a_namespace_starts_switched_off(router):
    assert router.control.config() == DEFAULTS


def test_values_are_kept_and_others_left_alone(router):
    router.control.set(tcp_timeout=60_000, mark_value=0x30, mark_mask=0xf0)
    assert router.control.config() == DEFAULTS | {"tcp-timeout": 60_000, "mark-value": 0x30, "mark-mask": 0xf0}


@pytest.mark.parametrize("config, attribute, why", [
    ({"enabled": 2}, "enabled", "0 or 1"),
    ({"mark_value": 3, "mark_mask": 1}, "mark-value", "outside of mark-mask"),
    ({"tcp_timeout": 999}, "tcp-timeout", "between 1 s and 1 day"),
    ({"udp_timeout": 86_400_001}, "udp-timeout", "between 1 s and 1 day"),
    ({"sample_interval": 0}, "sample-interval", "between 100 ms and 1 min"),
    ({"table_size": 15}, "table-size", "between 16 and 4194304"),
    ({"table_size": 0xffffffff}, "table-size", "between 16 and 4194304"),
    ({"ipsec": 2}, "ipsec", "exclude"),
    ({"learn_after": 0}, "learn-after", "between 1 and 15"),
    ({"learn_after": 16}, "learn-after", "between 1 and 15"),
])
def test_what_cannot_be_is_refused_with_the_reason(router, config, attribute, why):
    with pytest.raises(NlError) as refusal:
        router.control.set(**({"udp_timeout": 5000} | config))
    message = refusal.value.nl_msg
    assert why in message.extack["msg"]
    assert message.extack["bad-attr"] == f".{attribute}"
    assert router.control.config() == DEFAULTS, "all or nothing"


def test_an_unknown_flow_cannot_be_dropped(router):
    router.control.enable()
    with pytest.raises(NlError) as refusal:
        router.control.flush(id=999)
    assert refusal.value.error == -errno.ENOENT or refusal.value.error == errno.ENOENT
    assert "no flow has this id" in refusal.value.nl_msg.extack["msg"]


def test_without_rights_one_can_look_but_not_touch(router):
    script = """
import sys
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[2])
from pyynl.lib import NlError, YnlFamily
family = YnlFamily(sys.argv[3], schema="")
family.do("config-get", {})
family.do("stats-get", {})
for command in ("config-set", "flow-flush", "flow-get"):
    try:
        (family.dump if command == "flow-get" else family.do)(command, {})
    except NlError as refusal:
        assert abs(refusal.error) == 1, refusal
    else:
        raise AssertionError(command)
print("as it should be")
"""
    from lab.control import SHARE, SPECIFICATION
    done = router.router.status("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
                                "python3", "-B", "-c", script, SHARE / "ynl", SHARE, SPECIFICATION)
    assert done.stdout == "as it should be\n", done.stderr


def test_namespaces_know_nothing_of_each_other(router):
    from lab.control import Control
    router.control.enable()
    other = router.until_removed(Control(router.lan))
    assert other.config() == DEFAULTS
    conversation = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    assert router.control.flows() and not other.flows()


def test_a_flow_is_described(router):
    router.control.enable()
    conversation = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    conversation.exchange(5)
    _, port = conversation.source
    flow, = router.control.flows(reply=0)
    expected = {
        "family": socket.AF_INET, "source": router.LAN, "destination": router.WAN, "source-port": port,
        "destination-port": 7, "nat-source": router.WAN_GATEWAY, "nat-destination": router.WAN,
        "nat-source-port": port, "nat-destination-port": 7, "in-ifindex": router.router.index("lan0"),
        "out-ifindex": router.router.index("wan0"), "state": "fast", "mtu": 1500, "conntrack-mark": 0,
    }
    assert {key: flow[key] for key in expected} == expected
    listed = router.router.run("conntrack", "-L", "-p", "udp", "-o", "id")
    assert f"id={flow['conntrack-id']}" in listed


def test_a_thousand_flows_are_listed_once_each(router):
    router.control.enable()
    first = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    first.warm_up()
    sink = router.until_removed(router.wan.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sink.bind(("0.0.0.0", 99))
    for _ in range(500):
        with router.lan.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.connect((router.WAN, 99))
            for _ in range(2):
                source.send(b"ping")
                _, back = sink.recvfrom(100)
                sink.sendto(b"pong", back)
                source.recv(100)
    flows = router.control.flows()
    assert len(flows) == router.control.stats().flows >= 900
    assert len({flow["id"] for flow in flows}) == len(flows)


def test_events_tell_what_comes_and_goes(router):
    router.control.listen()
    router.control.enable()
    conversation = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    conversation.exchange(5)
    router.router.run("conntrack", "-U", "-p", "udp", "--mark", "0x08000000/0x08000000")
    conversation.exchange(1)
    events = router.control.events()
    names = [name for name, _ in events]
    assert names == ["config-ntf", "flow-new-ntf", "flow-new-ntf", "flow-gone-ntf", "flow-gone-ntf"]
    assert events[0][1]["enabled"] == 1
    assert {event["gone-reason"] for name, event in events if name == "flow-gone-ntf"} == {"marked"}
    assert all(event["packets"] >= 5 for name, event in events if name == "flow-gone-ntf")


def test_changing_the_size_of_the_table_drops_the_flows_and_goes_on(router):
    router.control.enable()
    conversation = router.until_removed(Datagrams(router.lan, router.wan, router.WAN))
    conversation.warm_up()
    router.control.set(table_size=1024)
    assert router.control.stats().flows == 0
    conversation.warm_up()
    before = router.control.stats()
    conversation.exchange(10)
    assert (router.control.stats() - before).fast >= 18


def test_malformed_messages_are_refused_and_lose_nothing(router):
    """Random bytes behind a correct header, to every command."""
    import random
    router.control.enable()
    stream = router.until_removed(Stream(router.lan, router.wan, router.WAN))
    stream.warm_up()
    family = router.control._family.nlproto.family_id
    netlink_generic, request_ack = 16, 5
    source = random.Random(7)
    with router.router.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_generic) as wire:
        wire.bind((0, 0))
        wire.settimeout(2)
        for n in range(500):
            body = source.randbytes(source.randrange(0, 64))
            if n % 2:
                # Well-formed attributes with random numbers and lengths.
                body = b"".join(struct.pack("=HH", 4 + size, source.randrange(12)) + source.randbytes(size)
                                + b"\0" * (-size % 4) for size in source.choices(range(9), k=3))
            message = struct.pack("=BBH", source.randrange(12), 1, 0) + body
            wire.send(struct.pack("=IHHII", 16 + len(message), family, request_ack, n, 0) + message)
            assert wire.recv(65536)
    router.control.set(enabled=1, mark_value=0x08000000, mark_mask=0x08000000)
    stream.exchange(3)
    before = router.control.stats()
    stream.exchange(10)
    assert (router.control.stats() - before).fast >= 15
