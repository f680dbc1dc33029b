# SPDX-License-Identifier: GPL-2.0
"""IPsec that a network card is to do: the crypto of ESP, by a simulated one."""

import re
import time

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP

from lab import leaks
from lab.both import both
from lab.sim import Cards
from lab.topology import Router
from lab.traffic import Datagrams, Wire

COUNT = 10
KEY = "0x" + "4a" * 20
SPI = 0x100


class Protected(Datagrams):
    """A conversation of which the requests never arrive, as nobody has encrypted them; the answers do."""

    def __init__(self, router, far):
        super().__init__(router.lan, router.wan, far, listen=(far, 7))
        self.seen_from = (router.LAN, self.source[1])

    def warm_up(self):
        self.run(2)
        # The devices are attached after the first packets asked for it.
        time.sleep(0.5)
        self.run(6)

    def run(self, count):
        """Sends so many each way."""
        for _ in range(count):
            self.send()
            assert self.reply(), "an answer was lost"


@pytest.fixture
def router(family):
    cards = []

    def card(*ends, **_options):
        cards.append(Cards(*ends[:4]))
        return cards[0]

    made = Router(firewall=None, wan=card, family=family)
    made.card, = cards
    yield made
    made.remove()


def protect(router, far):
    """A tunnel from the router, whose card is to encrypt, to the other host, of which a policy for all but itself is."""
    net = router.address("10.0.0.0/24")
    ends = (router.WAN_GATEWAY, router.WAN)
    router.wan.ip("addr", "add", f"{far}/{router.host}", "dev", "lo")
    router.router.ip("route", "add", far, "via", router.WAN)
    for namespace, own in ((router.router, ends), (router.wan, ends[::-1])):
        for number, (source, destination) in enumerate((ends, ends[::-1])):
            outwards = (source, destination) == own
            card_does = namespace is router.router and outwards
            namespace.ip("xfrm", "state", "add", "src", source, "dst", destination, "proto", "esp", "spi", SPI + number,
                         "reqid", 1, "mode", "tunnel", "aead", "rfc4106(gcm(aes))", KEY, 128,
                         *(("offload", "dev", "wan0", "dir", "out") if card_does else ()))
            inner = (net, f"{far}/{router.host}")
            for direction in ("out",) if outwards else ("in", "fwd"):
                of_whom = inner if (source == ends[0]) else inner[::-1]
                namespace.ip("xfrm", "policy", "add", "src", of_whom[0], "dst", of_whom[1], "dir", direction, "tmpl",
                             "src", source, "dst", destination, "proto", "esp", "reqid", 1, "mode", "tunnel")


def used(router):
    """How many packets the state outwards has had."""
    text = router.router.ip("-s", "xfrm", "state", "get", "dst", router.WAN, "proto", "esp", "spi", SPI)
    return int(re.search(r"lifetime current:\s+\d+\(bytes\), (\d+)\(packets\)", text)[1])


def marks(router):
    """Those of the conversation's connection."""
    return {int(mark) for mark in re.findall(r"dport=7 .* mark=(\d+)", router.conntrack("-L", "-p", "udp"))}


def arrived(router, wire):
    """What has arrived at the other host: the SPI and the number of each packet, all of which are ESP."""
    found = []
    for packet in wire.packets(source=router.WAN_GATEWAY):
        ip = packet[IPv6 if router.is_v6 else IP]
        esp = ip[ESP]
        found.append((esp.spi, esp.seq))
    return found


@both
def test_what_a_card_encrypts_is_excluded_and_accelerated_as_all_else(router):
    far = router.address("198.51.100.2")
    protect(router, far)
    router.router.run("fasttrack", "enable")
    talk = router.until_removed(Protected(router, far))
    wire = router.until_removed(Wire(router.wan, "eth0", outgoing=False))
    for mode in ("exclude", "accelerate", "exclude"):
        router.router.run("fasttrack", "set", "ipsec", mode)
        router.router.run("fasttrack", "enable")
        # Who had the mark has it no more, if anybody had.
        router.router.run("conntrack", "-U", "--mark", "0/0x08000000", check=False)
        talk.warm_up()
        wire.frames(0.1)
        before, had, told = router.control.stats(), used(router), router.card.encrypted()
        talk.run(COUNT)
        after = router.control.stats() - before
        assert after.packets == ((COUNT, COUNT) if mode == "accelerate" else (0, 0)), (mode, after.reasons())
        assert [spi for spi, _ in arrived(router, wire)] == COUNT * [SPI]
        assert (used(router) - had, router.card.encrypted()) == (COUNT, (1, told[1] + COUNT)), mode
        assert marks(router) == {0x08000000 if mode == "exclude" else 0}, mode


@both
def test_nothing_in_clear_when_a_card_has_lost_its_state(router):
    far = router.address("198.51.100.2")
    protect(router, far)
    router.router.run("fasttrack", "set", "ipsec", "accelerate")
    router.router.run("fasttrack", "enable")
    talk = router.until_removed(Protected(router, far))
    wire = router.until_removed(Wire(router.wan, "eth0", outgoing=False))
    talk.warm_up()
    before = router.control.stats()
    talk.run(COUNT)
    assert (router.control.stats() - before).packets == (COUNT, COUNT)
    wire.frames(0.1)
    router.router.ip("xfrm", "state", "delete", "dst", router.WAN, "proto", "esp", "spi", SPI)
    assert router.card.encrypted()[0] == 0
    talk.run(COUNT)
    leaks.none(arrived(router, wire))
    leaks.none(wire.packets(source=router.LAN))
