# SPDX-License-Identifier: GPL-2.0
"""What somebody on the WAN sends to have it arrive behind gateway A, though nobody there ought to get it."""

import hmac
import socket
import struct
import time

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from .site import SIGN, Conversation
from .traffic import Wire

ESP = socket.IPPROTO_ESP
PORT = Conversation.PORT
AUTHENTICATION_KEY = b"known to whom it may concern"[:20]

#: Numbers of the states that gateway A has besides its own.
UNNAMED, NARROW = 0x998, 0x999


class Injector:
    """On the WAN, in front of gateway A of a site, with a conversation that A's host takes part in."""

    def __init__(self, site, conversation):
        self._site, self._conversation = site, conversation
        self._wan = Wire(site.wan, "a0")
        self._lan = Wire(site.a.host, "eth0", outgoing=False)
        self._serial = 0
        self._add_states()

    def _add_states(self):
        """Two more that A decrypts by what comes from B. No policy asks for the first one; the second one is
        for other addresses. Their packets are only authenticated, so that they can be made by hand."""
        site = self._site
        elsewhere = ("198.18.0.0/24", "198.19.0.0/24") if site.family == "ipv4" else ("fd01::/64", "fd02::/64")
        open_to_all = ("enc", "ecb(cipher_null)", "", "auth", "hmac(sha1)", "0x" + AUTHENTICATION_KEY.hex())
        for spi, words in ((UNNAMED, ("reqid", 99)),
                           (NARROW, ("reqid", 1, "sel", "src", elsewhere[0], "dst", elsewhere[1]))):
            site.state(site.a, site.b, site.a, spi, *words, *open_to_all)

    # What can be sent: each gives `count` frames.

    def clear_text_twin(self, count):
        """Packets with the addresses and ports of the conversation, in clear."""
        return [self._ethernet() / self._inner() for _ in range(count)]

    def by_a_state_no_policy_names(self, count):
        """The same, decrypted by a valid state of the same peer that the policy's template does not name."""
        return [self._by(UNNAMED) for _ in range(count)]

    def by_a_state_for_other_addresses(self, count):
        """The same, decrypted by a valid state whose selector does not cover them."""
        return [self._by(NARROW) for _ in range(count)]

    def replayed(self, count):
        """Packets of the conversation, encrypted by B, that have arrived before."""
        return self._captured(count)

    def with_a_wrong_icv(self, count):
        """The like, not seen before, whose integrity check value is not right."""
        frames = []
        for frame in self._captured(count):
            esp = bytearray(self._esp(frame))
            # No number that has been used, nor one that will be.
            esp[4:8] = struct.pack("!I", struct.unpack("!I", esp[4:8])[0] + 10_000)
            esp[-1] ^= 0xff
            frames.append(self._carried(bytes(esp)))
        return frames

    KINDS = [clear_text_twin, by_a_state_no_policy_names, by_a_state_for_other_addresses, replayed, with_a_wrong_icv]

    def inject(self, frames):
        """Sends frames. Gives how many packets of the conversation arrived at A's host, and what A's IPsec
        has counted, without the zeros."""
        before = self._site.ipsec_counters()
        self._arrived(0.05)
        for frame in frames:
            self._wan.put(frame)
        arrived, deadline = 0, time.monotonic() + 5
        while True:
            arrived += self._arrived(0.1)
            counted = {name: count - before[name] for name, count in self._site.ipsec_counters().items()
                       if count != before[name]}
            if arrived + sum(counted.values()) >= len(frames) or time.monotonic() > deadline:
                break
        # What arrives and is counted as well is late.
        return arrived + self._arrived(0.2), counted

    def close(self):
        """Gives the sockets back."""
        self._wan.close()
        self._lan.close()

    def _arrived(self, seconds):
        return sum(packet[UDP].sport == PORT for packet in self._lan.packets(protocol=socket.IPPROTO_UDP,
                                                                             seconds=seconds))

    def _addresses(self):
        """Of the conversation's answers, as they are protected: source, destination, port there."""
        if self._site.kind == "transport":
            return self._site.b.wan, *self._conversation.seen_from
        return self._site.b.address, *self._conversation.source

    def _ip(self, source, destination, **more):
        if self._site.family == "ipv6":
            if "proto" in more:
                more["nh"] = more.pop("proto")
            return IPv6(src=source, dst=destination, **more)
        return IP(src=source, dst=destination, **more)

    def _ethernet(self):
        site = self._site
        return Ether(src=site.b.gateway.mac("wan0"), dst=site.a.gateway.mac("wan0"))

    def _inner(self):
        """A packet of the conversation's answers."""
        source, destination, port = self._addresses()
        self._serial += 1
        return (self._ip(source, destination) / UDP(sport=PORT, dport=port)
                / (SIGN + struct.pack("!I", self._serial)))

    def _by(self, spi):
        """A frame that A decrypts by the state of that number."""
        inner = self._inner()
        if self._site.kind == "transport":
            # As it is summed with its addresses.
            number, content = socket.IPPROTO_UDP, bytes(inner)[len(inner) - len(inner[UDP]):]
        else:
            number, content = (socket.IPPROTO_IPIP, socket.IPPROTO_IPV6)[self._site.family == "ipv6"], bytes(inner)
        padding = -(len(content) + 2) % 4
        esp = (struct.pack("!II", spi, self._serial) + content + bytes(range(1, padding + 1))
               + bytes([padding, number]))
        return self._carried(esp + hmac.digest(AUTHENTICATION_KEY, esp, "sha1")[:12])

    def _carried(self, esp):
        """A frame from B to A with a packet that has been encrypted."""
        source, destination = self._site.b.wan, self._site.a.wan
        if self._site.kind == "encapsulated":
            return self._ethernet() / self._ip(source, destination) / UDP(sport=4500, dport=4500) / esp
        return self._ethernet() / self._ip(source, destination, proto=ESP) / esp

    def _captured(self, count):
        """The last frames of a few with which B answers."""
        self._wan.frames(0.05)
        for _ in range(count):
            self._conversation.request(timeout=0.3)
            self._conversation.reply(timeout=2)
        towards_a = bytes.fromhex(self._site.a.gateway.mac("wan0").replace(":", ""))
        frames = [frame for frame in self._wan.frames(0.2) if frame[:6] == towards_a and self._esp(frame)]
        assert len(frames) >= count, f"only {len(frames)} answers of B were seen"
        return frames[-count:]

    def _esp(self, frame):
        """What is encrypted in a frame; nothing if that is nothing."""
        packet = Ether(frame).payload
        number, start = (packet.nh, 14 + 40) if self._site.family == "ipv6" else (packet.proto, 14 + 20)
        if self._site.kind == "encapsulated" and number == socket.IPPROTO_UDP:
            return frame[start + 8:]
        return frame[start:] if number == ESP else b""
