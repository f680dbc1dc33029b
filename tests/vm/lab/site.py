# SPDX-License-Identifier: GPL-2.0
"""Two sites and what protects the packets between them: the topology of the proof against clear text."""

import contextlib
import os
import re
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

from .devices import links
from .kernel import wait_until
from .namespace import Namespace, collecting
from .traffic import Datagrams, Wire

#: In every packet of the conversation: where it is seen on the WAN, something was not encrypted.
SIGN = b"not to be seen by anybody on the WAN"

KEY = "0x" + "4a" * 20
BLOCKED = 1000

ADDRESSES = {
    "ipv4": {"lan": "10.{}.0.2", "gateway": "10.{}.0.1", "net": "10.{}.0.0/24", "around": "10.{}.0.0/16",
             "wan": "192.0.2.{}", "other": "198.51.100.{}", "prefix": 24, "single": 32, "wide": 31,
             "anywhere": "0.0.0.0", "option": "-4", "table": "ip", "unreachable": ("icmp", "type", 3)},
    "ipv6": {"lan": "fd00:{}::2", "gateway": "fd00:{}::1", "net": "fd00:{}::/64", "around": "fd00:{}::/32",
             "wan": "2001:db8::{}", "other": "2001:db8:1::{}", "prefix": 64, "single": 128, "wide": 127,
             "anywhere": "::", "option": "-6", "table": "ip6", "unreachable": ("ipv6-icmp", "type", 1)},
}


class End:
    """One site's gateway, and the host whose packets are protected."""

    def __init__(self, gateway, host, number, words):
        self.gateway, self.host, self.number = gateway, host, number
        self.wan = words["wan"].format(number)
        self.other = words["other"].format(number)
        self.net = words["net"].format(number)
        self.around = words["around"].format(number)
        self.address = words["lan"].format(number)


class Site:
    """LAN host - gateway A = IPsec = gateway B - LAN host, with two links between the gateways. fasttrack is
    on A. The gateways' addresses may be of another version of IP than the hosts'. Unless it is not wanted, a
    conversation between the hosts goes on all the time."""

    def __init__(self, kind, family, serial, conversing=True, outer=None):
        self.kind, self.family, self.outer = kind, family, outer or family
        self.words = ADDRESSES[family] | {name: ADDRESSES[self.outer][name] for name in ("wan", "other", "anywhere")}
        names = ("lana", "gwa", "wan", "gwb", "lanb")
        self.spaces = lan_a, gwa, self.wan, gwb, lan_b = [Namespace(f"{name}p{serial}") for name in names]
        self.a, self.b = End(gwa, lan_a, 1, self.words), End(gwb, lan_b, 2, self.words)
        self._closing = []
        self.spi = 0x100
        if "ipv6" in (family, self.outer):
            for space in (lan_a, gwa, gwb, lan_b):
                space.enable_ipv6()
        ports = [(side, number, gateway) for side, gateway in (("a", gwa), ("b", gwb)) for number in (0, 1)]
        links(*((self.wan, f"{side}{number}", gateway, f"wan{number}") for side, number, gateway in ports),
              *((end.host, "eth0", end.gateway, "lan0") for end in (self.a, self.b)))
        self.wan.ip_batch([*(f"link add link{number} type bridge mcast_snooping 0" for number in (0, 1)),
                           *(f"link set link{number} up" for number in (0, 1)),
                           *(f"link set {side}{number} master link{number}" for side, number, _ in ports)])
        for end in (self.a, self.b):
            end.gateway.sysctl("net.ipv4.ip_forward", 1)
            if family == "ipv6":
                end.gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
            for scope in ("all", "wan0", "wan1", "lan0"):
                end.gateway.sysctl(f"net.ipv4.conf.{scope}.rp_filter", 0)
        with collecting(*self.spaces):
            self._address_hosts()
        self.protect()
        if conversing:
            self.conversation = self.until_closed(Conversation(self))

    def _address_hosts(self):
        """Gives everybody addresses."""
        for end in (self.a, self.b):
            self._address(end.host, "eth0", end.address)
            self._address(end.gateway, "lan0", self.words["gateway"].format(end.number))
            self._address(end.gateway, "wan0", end.wan)
            self._address(end.gateway, "wan1", end.other)
            end.host.ip("route", "add", "default", "via", self.words["gateway"].format(end.number))

    def _address(self, namespace, device, address):
        prefix = ADDRESSES["ipv6" if ":" in address else "ipv4"]["prefix"]
        namespace.ip("addr", "add", f"{address}/{prefix}", "dev", device)

    def ends(self):
        """Both, each with the other one."""
        return (self.a, self.b), (self.b, self.a)

    @property
    def far(self):
        """Who A's host talks to, and by which address."""
        if self.kind == "transport":
            return self.b.gateway, self.b.wan
        return self.b.host, self.b.address

    def datagrams(self):
        """A conversation that takes place when somebody asks for it."""
        namespace, address = self.far
        port = Conversation.PORT
        # Its answers come from there, whichever way they go.
        return self.until_closed(Datagrams(self.a.host, namespace, address, port, listen=(address, port)))

    def until_closed(self, closable):
        """Closes something when the site is."""
        self._closing.append(closable)
        return closable

    def selector(self, own, peer, wide=False):
        """What is protected, as the gateway of `own` sends it, in words of `ip xfrm policy`; or more than
        that."""
        if self.kind == "transport":
            single = self.words["wide" if wide else "single"]
            words = ("src", f"{own.wan}/{single}", "dst", f"{peer.wan}/{single}", "proto", "udp")
        elif wide:
            words = ("src", own.around, "dst", peer.around)
        else:
            words = ("src", own.net, "dst", peer.net)
        return words

    @property
    def of_device(self):
        """What policies and states of a device have that others do not."""
        return {"interface": ("if_id", 42), "vti": self._mark}.get(self.kind, ())

    @property
    def _mark(self):
        return ("mark", 42) if self.kind == "vti" else ()

    @property
    def device(self):
        """What the gateways send to that has the other LAN behind it, if that is a device of its own."""
        return {"interface": "xfrm0", "vti": "vti0"}.get(self.kind)

    @property
    def mode(self):
        return "transport" if self.kind == "transport" else "tunnel"

    def lead(self, own, peer):
        """Has the gateway of `own` send what is for the other LAN to where it is protected."""
        gateway = own.gateway
        if self.device:
            what = ("xfrm", "if_id", 42)
            if self.kind == "vti":
                what = ("vti6" if self.family == "ipv6" else "vti", "local", own.wan, "remote", peer.wan, "key", 42)
            gateway.ip("link", "add", self.device, "type", *what)
            gateway.ip("link", "set", self.device, "up")
            gateway.ip("route", "add", peer.net, "dev", self.device)
        elif self.kind != "transport" and self.family == self.outer:
            gateway.ip("route", "add", peer.net, "via", peer.wan)
        elif self.kind != "transport":
            gateway.ip("route", "add", peer.net, "dev", "wan0")

    def protect(self):
        """Sets up both ends."""
        with collecting(self.a.gateway, self.b.gateway):
            self._protect()

    def _protect(self):
        for own, peer in self.ends():
            gateway = own.gateway
            self.lead(own, peer)
            if self.kind == "encapsulated":
                self.until_closed(decapsulating(gateway, self.family))
            self.policies(own, peer, "add")
            # What is not protected does not leave: then clear text is never right.
            self.forbid(own, peer, "add", BLOCKED)
            if self.kind == "interface":
                # Nor is it let in beside the interface, as the policies of other kinds have it.
                gateway.ip("xfrm", "policy", "add", *self.selector(peer, own), "dir", "fwd", "priority", BLOCKED,
                           "action", "block")
        if self.kind == "transport":
            # Nor as what an error is about.
            self.a.gateway.ip("xfrm", "policy", "add", *self.selector(self.a, self.b)[:4], "proto",
                              *self.words["unreachable"], "dir", "out", "priority", BLOCKED, "action", "block")
        self.translate()
        self.states(self.spi)

    def translate(self):
        """Has what A's LAN host sends come from the gateway itself, if the mode is transport mode."""
        if self.ruleset:
            self.a.gateway.nft(self.ruleset)

    @property
    def ruleset(self):
        """A's rules, without fasttrack's: none, or those by which what its LAN host sends comes from the gateway itself,
        of which transport mode is."""
        if self.kind != "transport":
            return ""
        return f"""
            table inet source {{
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    oifname "wan*" snat {self.words["table"]} to {self.a.wan}
                }}
            }}
        """

    def policies(self, own, peer, verb):
        """Adds or deletes the policies of one end."""
        with own.gateway.collecting():
            for direction in ("out", "fwd", "in"):
                self.policy(own, peer, verb, direction)

    def policy(self, own, peer, verb, direction, priority=100, more=(), selecting=(), reqid=1):
        """Adds, updates or deletes one; what it is about may be narrowed by further words, and it may be for other states
        than there are."""
        source, destination = (own, peer) if direction == "out" else (peer, own)
        words = [*self.selector(source, destination), *selecting, *self.of_device, "dir", direction]
        if verb != "delete":
            ends = ("src", source.wan, "dst", destination.wan) if self.mode == "tunnel" else ()
            words += ["priority", priority, *more, "tmpl", *ends, "proto", "esp", "reqid", reqid, "mode", self.mode]
        own.gateway.ip("xfrm", "policy", verb, *words)

    def exempt(self, own, peer, verb, direction, priority=10):
        """Adds or deletes a policy that lets packets pass in clear."""
        source, destination = (own, peer) if direction == "out" else (peer, own)
        own.gateway.ip("xfrm", "policy", verb, *self.selector(source, destination), "proto", "udp", "dir", direction,
                       *(("priority", priority) if verb != "delete" else ()))

    def forbid(self, own, peer, verb, priority):
        """Adds or updates the policy that lets nothing leave in clear."""
        own.gateway.ip("xfrm", "policy", verb, *self.selector(own, peer, wide=True), *self.of_device,
                       "dir", "out", "priority", priority, "action", "block")

    def states(self, spi, *limit, key=KEY, out=()):
        """Adds the states of both directions, at both ends; some words may be for what A sends only."""
        for source, destination in self.ends():
            # Nobody sends what cannot be received yet.
            for end in (destination, source):
                more = out if end is source is self.a else ()
                self.state(end, source, destination, spi + source.number, "reqid", 1, *limit, *more,
                           "aead", "rfc4106(gcm(aes))", key, 128)

    def state(self, end, source, destination, spi, *words):
        """Adds one state, at one end. The last of the words are those that say what encrypts."""
        more = self.of_device
        if self.kind == "encapsulated":
            more += ("encap", "espinudp", 4500, 4500, self.words["anywhere"])
        end.gateway.ip("xfrm", "state", "add", "src", source.wan, "dst", destination.wan, "proto", "esp",
                       "spi", hex(spi), "mode", self.mode, "replay-window", 32, *words, *more)

    def merge(self):
        """Has the gateways merge what arrives on the WAN. If ESP is offloaded they decrypt it before that, and what it was
        passes the device again, also in transport mode (`xfrm_input`)."""
        for end in (self.a, self.b):
            for device in ("wan0", "wan1"):
                end.gateway.run("ethtool", "-K", device, "gro", "on")
        users = Path(f"/sys/module/{'esp6' if self.outer == 'ipv6' else 'esp4'}_offload/refcnt").read_text(encoding="ascii")
        assert int(users) > 0, "no state is offloaded"

    def ipsec_counters(self):
        """What A's IPsec has refused and what failed, by the names that /proc/net/xfrm_stat has for it."""
        return ipsec_counters(self.a.gateway)

    def forget_states(self, spi):
        """Deletes those that are still there."""
        for end in (self.a, self.b):
            for source, destination in self.ends():
                end.gateway.status("ip", "xfrm", "state", "delete", "src", source.wan, "dst", destination.wan,
                                   "proto", "esp", "spi", hex(spi + source.number), *self._mark)

    def rekey(self):
        """Others in their place."""
        old, self.spi = self.spi, self.spi + 16
        self.states(self.spi, key="0x" + f"{self.spi % 251 + 1:02x}" * 20)
        self.forget_states(old)

    def wires(self):
        """Both links, where nobody decrypts anything."""
        return [self.until_closed(Wire(self.wan, f"a{number}")) for number in (0, 1)]

    def close(self):
        """Removes it all."""
        for closable in reversed(self._closing):
            closable.close()
        for space in self.spaces:
            space.remove()


def ipsec_counters(gateway):
    """What a gateway's IPsec has refused and what failed, by the names that /proc/net/xfrm_stat has for it."""
    with gateway.inside():
        words = Path("/proc/thread-self/net/xfrm_stat").read_text(encoding="ascii").split()
    return dict(zip(words[::2], map(int, words[1::2])))


def figures(gateway):
    """Of each of its states: bytes, packets, sequence numbers in and out, and what it has refused."""
    found = {}
    for part in re.split(r"(?m)^src ", gateway.ip("-s", "xfrm", "state"))[1:]:
        octets, packets = re.search(r"(\d+)\(bytes\), (\d+)\(packets\)", part).groups()
        incoming, outgoing = re.search(r"seq 0x(\w+), oseq 0x(\w+)", part).groups()
        refused = re.search(r"replay-window \d+ replay (\d+) failed (\d+)", part).groups()
        found[re.search(r"spi 0x(\w+)", part)[1]] = (
            int(octets), int(packets), int(incoming, 16), int(outgoing, 16), *map(int, refused))
    return found


def decapsulating(gateway, family):
    """A socket by which a gateway takes ESP in UDP."""
    udp_encap, espinudp = 100, 2
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    made = gateway.socket(kind, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_UDP, udp_encap, espinudp)
    made.bind((ADDRESSES[family]["anywhere"], 4500))
    return made


@contextlib.contextmanager
def offloading():
    """The kernel's own offload of ESP, without a device for it, for states made meanwhile: see `Site.merge`."""
    modules = ["esp4_offload", "esp6_offload"]
    subprocess.run(["modprobe", "--all", *modules], check=True)
    try:
        yield
    finally:
        # States hold them, until the last packet has gone.
        def are_gone():
            _have_packets_freed()
            return subprocess.run(["modprobe", "--remove", *modules]).returncode == 0
        wait_until(are_gone, 15, "their removal")


def _have_packets_freed():
    """Has each processor receive something. A packet that another one has done with is freed by the one that made it, when
    that receives again (`skb_attempt_defer_free` in net/core/skbuff.c), and until then holds the states that decrypted it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    allowed = os.sched_getaffinity(0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            receiver.sendto(b"", receiver.getsockname())
    os.sched_setaffinity(0, allowed)


class Questions:
    """What whoever negotiates states for a gateway is asked. Unless somebody listens nobody is, and nothing is kept
    until there is a state."""

    _NETLINK_XFRM, _XFRMNLGRP_ACQUIRE, _XFRM_MSG_ACQUIRE = 6, 1, 0x17

    def __init__(self, gateway):
        self._socket = gateway.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._NETLINK_XFRM)
        self._socket.bind((0, 1 << (self._XFRMNLGRP_ACQUIRE - 1)))
        self._socket.settimeout(10)

    def one(self):
        """Whether the next one is for a state."""
        return struct.unpack_from("=H", self._socket.recv(65536), 4)[0] == self._XFRM_MSG_ACQUIRE

    def close(self):
        """Listens no more."""
        self._socket.close()


class Expirations:
    """What whoever negotiates states for a gateway is told of those that should be replaced, or are gone."""

    _NETLINK_XFRM, _XFRMNLGRP_EXPIRE, _XFRM_MSG_EXPIRE = 6, 2, 0x18
    # Behind the message's header and the state, a `struct xfrm_usersa_info`.
    _HARD = 16 + 224

    def __init__(self, gateway):
        self._socket = gateway.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._NETLINK_XFRM)
        self._socket.bind((0, 1 << (self._XFRMNLGRP_EXPIRE - 1)))
        self._socket.setblocking(False)

    def soft(self):
        """How many states he was told about since the last call that should be replaced."""
        found = 0
        while True:
            try:
                message = self._socket.recv(65536)
            except BlockingIOError:
                return found
            found += struct.unpack_from("=H", message, 4)[0] == self._XFRM_MSG_EXPIRE and not message[self._HARD]

    def close(self):
        """Listens no more."""
        self._socket.close()


class Conversation:
    """Datagrams that go both ways all the time, whether or not they arrive."""

    PORT = 7000

    def __init__(self, site):
        kind = socket.AF_INET6 if site.family == "ipv6" else socket.AF_INET
        far, address = site.far
        self._server = far.socket(kind, socket.SOCK_DGRAM)
        # Its answers come from there, whichever way they go.
        self._server.bind((address, self.PORT))
        self._client = site.a.host.socket(kind, socket.SOCK_DGRAM)
        self._client.connect((address, self.PORT))
        for end in (self._server, self._client):
            end.setblocking(False)
        #: What has arrived, there and back, and what has not, though something later has.
        self.arrived, self.lost = [0, 0], [0, 0]
        self._due = [None, None]
        self._peer = None
        self._number = 0
        self._over = False
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    @property
    def sent(self):
        """The number of the last message, there or back: those with larger ones have been sent after this."""
        return self._number

    @staticmethod
    def number(frame):
        """The number of the message in a frame, if it can be seen; else 0."""
        found = frame.find(SIGN)
        return struct.unpack_from("!I", frame, found + len(SIGN))[0] if found >= 0 else 0

    def _talk(self):
        while not self._over:
            self._number += 1
            message = SIGN + struct.pack("!I", self._number)
            try:
                self._client.send(message)
            except OSError:
                pass
            time.sleep(0.004)
            self._read()
            if self._peer:
                try:
                    self._server.sendto(message, self._peer)
                except OSError:
                    pass
            time.sleep(0.004)
            self._read()

    def _read(self):
        for way, end in enumerate((self._server, self._client)):
            while True:
                try:
                    message, peer = end.recvfrom(2048)
                except OSError:
                    break
                self.arrived[way] += 1
                self._count(way, struct.unpack_from("!I", message, len(SIGN))[0])
                if way == 0:
                    self._peer = peer

    def _count(self, way, number):
        due = number if self._due[way] is None else self._due[way]
        if number < due:
            self.lost[way] -= 1
        else:
            self.lost[way] += number - due
            self._due[way] = number + 1

    def goes_on(self, seconds=60, least=20):
        """Waits until so many more have arrived both ways."""
        before = list(self.arrived)
        deadline = time.monotonic() + seconds
        while any(now - then < least for now, then in zip(self.arrived, before)):
            if time.monotonic() > deadline:
                raise AssertionError(f"only {self.arrived} after {before} have arrived")
            time.sleep(0.02)

    def close(self):
        """Ends it."""
        self._over = True
        self._thread.join()
        self._client.close()
        self._server.close()
