# SPDX-License-Identifier: GPL-2.0
"""Kinds of device between a host and a router.

A kind is a function that joins two namespaces, `kind(host, "eth0", router, "lan0")`, so that both have a
device of the given name to give addresses to. What lies below such a device is named after it: its
ports are `lan0p` and `lan0q`. The functions know nothing of the addresses that the devices get; what
carries tunnels has addresses of its own.
"""

import array
import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import select
import socket
import struct
import subprocess
import threading

from .namespace import collecting

_CARRIERS = itertools.count(1)


def link(a, device_a, b, device_b, offloads=False):
    """A cable (veth). Without offloads, packets are as they would be on one: whole, with their
    checksums, no longer than the MTU."""
    links((a, device_a, b, device_b), offloads=offloads)


def links(*cables, offloads=False):
    """Cables, see `link`."""
    with collecting(*{a for a, *_ in cables}):
        for a, device_a, b, device_b in cables:
            a.ip("link", "add", device_a, "type", "veth", "peer", "name", device_b, "netns", b.name)
    for a, device_a, b, device_b in cables:
        for namespace, device in ((a, device_a), (b, device_b)):
            if not offloads:
                namespace.without_offloads(device)
            namespace.up(device)


#: The link-layer addresses of the guest's cards at both ends of its cables, see `--cables` of scripts/vm.
_CABLES = [[f"52:54:00:ca:0{end}:0{number}" for end in (0, 1)] for number in range(10)]


def card(host, host_device, router, router_device, offloads=False):
    """A cable between two network cards of the guest's own, with what their driver can do. They come back when their
    namespace goes."""
    subprocess.run(["modprobe", "virtio_net"], check=True)
    devices = json.loads(subprocess.run(["ip", "-j", "link", "show"], capture_output=True, check=True).stdout)
    names = {device["address"]: device["ifname"] for device in devices}
    cable = next((ends for ends in _CABLES if names.keys() >= set(ends)), None)
    assert cable, "the guest has no cable left: see --cables of scripts/vm"
    for address, (namespace, device) in zip(cable, _ends(host, host_device, router, router_device)):
        subprocess.run(["ip", "link", "set", names[address], "netns", namespace.name, "name", device], check=True)
        namespace.up(device)


def offloading(kind):
    """The kind with offloads, where others have none."""
    def with_offloads(host, host_device, router, router_device, offloads=False):
        return kind(host, host_device, router, router_device, True)
    return with_offloads


def _ends(host, host_device, router, router_device):
    return (host, host_device), (router, router_device)


def _add(namespace, device, *what):
    namespace.ip("link", "add", *what)
    namespace.up(device)


def tagged(*tags):
    """A kind: VLANs, the outer one first, as pairs of a protocol and a number."""
    def kind(host, host_device, router, router_device, offloads=False):
        link(host, f"{host_device}p", router, f"{router_device}p", offloads)
        for namespace, device in _ends(host, host_device, router, router_device):
            below = f"{device}p"
            for depth, (protocol, number) in enumerate(tags, 1):
                name = device if depth == len(tags) else f"{device}s"
                _add(namespace, name, "link", below, "name", name, "type", "vlan",
                     "protocol", protocol, "id", number)
                below = name
    return kind


vlan = tagged(("802.1Q", 7))
qinq = tagged(("802.1ad", 8), ("802.1Q", 7))


def bridged(*options):
    """A kind: the router has a bridge. The host has a second cable to it, `eth1`, with the same address."""
    def kind(host, host_device, router, router_device, offloads=False):
        link(host, host_device, router, f"{router_device}p", offloads)
        link(host, "eth1", router, f"{router_device}q", offloads)
        host.ip("link", "set", "eth1", "address", host.mac(host_device))
        with router.collecting():
            router.ip("link", "add", router_device, "address", "02:00:00:00:0b:01", "type", "bridge", *options)
            for port in "pq":
                router.ip("link", "set", f"{router_device}{port}", "master", router_device)
        router.up(router_device)
    return kind


bridge = bridged()
#: It filters by VLAN; its ports and itself are untagged ones of VLAN 1, and it has the address itself.
bridge_that_filters = bridged("vlan_filtering", 1, "vlan_default_pvid", 1)


def bridge_with_vlans(host, host_device, router, router_device, offloads=False):
    """The router has a bridge that filters by VLAN; the host's port is an untagged one of VLAN 7, the
    router's own is tagged."""
    link(host, host_device, router, f"{router_device}p", offloads)
    link(host, "eth1", router, f"{router_device}q", offloads)
    below = f"{router_device}b"
    router.ip("link", "add", below, "type", "bridge", "vlan_filtering", 1, "vlan_default_pvid", 0)
    for port in "pq":
        router.ip("link", "set", f"{router_device}{port}", "master", below)
        router.run("bridge", "vlan", "add", "dev", f"{router_device}{port}", "vid", 7, "pvid", "untagged")
    router.run("bridge", "vlan", "add", "dev", below, "vid", 7, "self")
    router.ip("link", "set", below, "up")
    _add(router, router_device, "link", below, "name", router_device, "type", "vlan", "id", 7)


def bridge_with_a_trunk(host, host_device, router, router_device, offloads=False):
    """The same, with tagged ports, behind which the host has VLANs of its own."""
    for name, port in ((host_device, "p"), ("eth1", "q")):
        link(host, f"{name}p", router, f"{router_device}{port}", offloads)
        _add(host, name, "link", f"{name}p", "name", name, "type", "vlan", "id", 7)
    below = f"{router_device}b"
    router.ip("link", "add", below, "type", "bridge", "vlan_filtering", 1, "vlan_default_pvid", 0)
    for port in "pq":
        router.ip("link", "set", f"{router_device}{port}", "master", below)
        router.run("bridge", "vlan", "add", "dev", f"{router_device}{port}", "vid", 7)
    router.run("bridge", "vlan", "add", "dev", below, "vid", 7, "self")
    router.ip("link", "set", below, "up")
    _add(router, router_device, "link", below, "name", router_device, "type", "vlan", "id", 7)


def bonded(mode):
    """A kind: two cables, bonded at both ends."""
    def kind(host, host_device, router, router_device, offloads=False):
        for port in "pq":
            link(host, f"{host_device}{port}", router, f"{router_device}{port}", offloads)
        for namespace, device in _ends(host, host_device, router, router_device):
            with namespace.collecting():
                namespace.ip("link", "add", device, "type", "bond", "mode", mode, "miimon", 50,
                             *(("xmit_hash_policy", "layer3+4") if mode == "balance-xor" else ()))
                for port in "pq":
                    namespace.ip("link", "set", f"{device}{port}", "down")
                    namespace.ip("link", "set", f"{device}{port}", "master", device)
                if mode == "active-backup":
                    # Both ends use the same cable.
                    namespace.ip("link", "set", device, "type", "bond", "primary", f"{device}p")
            namespace.up(device)
    return kind


bond_active_backup = bonded("active-backup")
bond_balance_xor = bonded("balance-xor")


def _alone(router, below):
    """Has a device not answer for the addresses of those above it."""
    router.sysctl(f"net.ipv4.conf.{below}.arp_ignore", 1)


def macvlan(host, host_device, router, router_device, offloads=False):
    """The router has a macvlan."""
    link(host, host_device, router, f"{router_device}p", offloads)
    _alone(router, f"{router_device}p")
    _add(router, router_device, "link", f"{router_device}p", "name", router_device,
         "type", "macvlan", "mode", "bridge")


def ipvlan(host, host_device, router, router_device, offloads=False):
    """The router has an ipvlan. Only what is for the router's own addresses arrives on it, the rest on
    the device below."""
    link(host, host_device, router, f"{router_device}p", offloads)
    _alone(router, f"{router_device}p")
    _add(router, router_device, "link", f"{router_device}p", "name", router_device,
         "type", "ipvlan", "mode", "l2")


def vrf(host, host_device, router, router_device, offloads=False):
    """The router's device is part of the VRF `vrf0`, table 10."""
    link(host, host_device, router, router_device, offloads)
    if router.status("ip", "link", "show", "vrf0").returncode != 0:
        _add(router, "vrf0", "vrf0", "type", "vrf", "table", 10)
    router.ip("link", "set", router_device, "master", "vrf0")


class PppoeSession:
    """One end of a PPPoE session, without the discovery and the negotiation that usually come first."""

    AF_PPPOX, PX_PROTO_OE = 24, 0
    GCHAN, ATTCHAN, NEWUNIT, CONNECT = 0x80047437, 0x40047438, 0xc004743e, 0x4004743a

    def __init__(self, namespace, device, below, peer, number):
        libc = ctypes.CDLL(None, use_errno=True)
        self._files = []
        with namespace.inside():
            # Python knows no addresses of this family.
            end = self._keep(libc.socket(self.AF_PPPOX, socket.SOCK_STREAM, self.PX_PROTO_OE))
            address = struct.pack("=HIH6s16s", self.AF_PPPOX, self.PX_PROTO_OE, socket.htons(number),
                                  bytes.fromhex(peer.replace(":", "")), below.encode())
            if libc.connect(end, address, len(address)):
                raise OSError(ctypes.get_errno(), "PPPoE session")
            channel = self._ioctl(end, self.GCHAN)
            attached, made = (self._keep(os.open("/dev/ppp", os.O_RDWR)) for _ in range(2))
            self._ioctl(attached, self.ATTCHAN, channel)
            unit = self._ioctl(made, self.NEWUNIT, -1)
            self._ioctl(attached, self.CONNECT, unit)
        namespace.ip("link", "set", f"ppp{unit}", "name", device)
        namespace.ip("link", "set", device, "up", "mtu", 1492)

    def _keep(self, file):
        if file < 0:
            raise OSError(ctypes.get_errno(), "PPPoE session")
        self._files.append(file)
        return file

    @staticmethod
    def _ioctl(file, request, value=0):
        number = array.array("i", [value])
        fcntl.ioctl(file, request, number, True)
        return number[0]

    def close(self):
        """Ends it."""
        for file in self._files:
            os.close(file)


def has_pppoe():
    """Whether the kernel has PPPoE, as that of Debian's flavour amd64 has."""
    return subprocess.run(["modinfo", "pppoe"], capture_output=True, check=False).returncode == 0


def pppoe_over(below):
    """A kind: a PPPoE session between the two, on devices of another kind."""
    def kind(host, host_device, router, router_device, offloads=False):
        for module in ("ppp_generic", "pppoe"):
            router.run("modprobe", module)
        below(host, f"{host_device}p", router, f"{router_device}p", offloads)
        ends = _ends(host, host_device, router, router_device)
        closing = contextlib.ExitStack()
        for (namespace, device), (other, there) in zip(ends, reversed(ends)):
            closing.callback(PppoeSession(namespace, device, f"{device}p", other.mac(f"{there}p"), 5).close)
        return closing
    return kind


pppoe = pppoe_over(link)


class Pump:
    """Carries packets between two character devices, as whoever reads and writes them would."""

    def __init__(self, a, b):
        self._ends = (a, b)
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self):
        a, b = self._ends
        other = {a: b, b: a}
        wanted, timeout = [a, b, self._stop], None
        while ready := select.select(wanted, [], [], timeout)[0]:
            for end in ready:
                if end == self._stop:
                    # What is on its way, as the end of a connection, still arrives.
                    wanted, timeout = [a, b], 0.3
                    continue
                try:
                    os.write(other[end], os.read(end, 65536 + 64))
                except OSError:
                    # The other end is down.
                    continue

    def close(self):
        """Ends it."""
        os.write(self._stopping, b"x")
        self._thread.join()
        for end in (*self._ends, self._stop, self._stopping):
            os.close(end)


IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x2, 0x1000, 0x4000


def open_tun(namespace, device, flags):
    """Makes a tun or tap device. Gives the descriptor of whoever is behind it."""
    tunsetiff = 0x400454ca
    with namespace.inside():
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(end, tunsetiff, struct.pack("16sH22x", device.encode(), flags | IFF_NO_PI))
    namespace.ip("link", "set", device, "up")
    return end


def carried(flags):
    """A kind: a tun or tap at either end, and a process that carries packets between them."""
    def kind(host, host_device, router, router_device, offloads=False):
        return Pump(*(open_tun(namespace, device, flags)
                      for namespace, device in _ends(host, host_device, router, router_device)))
    return kind


tun = carried(IFF_TUN)
tap = carried(IFF_TAP)


def carried_by(below, is_v6=False):
    """What a tunnel goes through: devices of a kind, with addresses. A function that makes it, and gives its
    number, and for both ends namespace, device, own and peer's address."""
    def carrier(host, host_device, router, router_device, offloads):
        number = next(_CARRIERS) % 250 + 1
        if is_v6:
            host.enable_ipv6()
            router.enable_ipv6()
        below(host, f"{host_device}p", router, f"{router_device}p", offloads)
        net, length = (f"fd00:c:{number}::", 64) if is_v6 else (f"172.16.{number}.", 24)
        own, peer = f"{net}2", f"{net}1"
        host.ip("addr", "add", f"{own}/{length}", "dev", f"{host_device}p")
        router.ip("addr", "add", f"{peer}/{length}", "dev", f"{router_device}p")
        return number, ((host, host_device, own, peer), (router, router_device, peer, own))
    return carrier


_carrier, _carrier_over_v6 = carried_by(link), carried_by(link, is_v6=True)


NUMBER = object()


def tunnel(*what, carrier=_carrier):
    """A kind: a tunnel of the kernel's, made by `ip link add` with the given arguments and addresses.
    `NUMBER` stands for one that no other tunnel of the router has."""
    def kind(host, host_device, router, router_device, offloads=False):
        number, ends = carrier(host, host_device, router, router_device, offloads)
        arguments = [number if word is NUMBER else word for word in what]
        for namespace, device, own, peer in ends:
            _add(namespace, device, device, *arguments, "local", own, "remote", peer)
    return kind


gre = tunnel("type", "gre", "ttl", 64)
gre_with_checksum = tunnel("type", "gre", "ttl", 64, "csum")
ipip = tunnel("type", "ipip", "ttl", 64)
sit = tunnel("type", "sit", "ttl", 64)
ip6tnl = tunnel("type", "ip6tnl", "mode", "any", "encaplimit", "none", carrier=_carrier_over_v6)
ip6gre = tunnel("type", "ip6gre", "encaplimit", "none", carrier=_carrier_over_v6)
vxlan_with_checksum = tunnel("type", "vxlan", "id", NUMBER, "dstport", 4789, "udpcsum")
vxlan = tunnel("type", "vxlan", "id", NUMBER, "dstport", 4789)


def l2tp_in(*encapsulation):
    """A kind: an Ethernet session of L2TPv3."""
    def kind(host, host_device, router, router_device, offloads=False):
        number, ends = _carrier(host, host_device, router, router_device, offloads)
        for namespace, device, own, peer in ends:
            namespace.ip_batch([
                f"l2tp add tunnel tunnel_id {number} peer_tunnel_id {number} local {own} remote {peer} "
                f"encap {' '.join(encapsulation)}",
                f"l2tp add session name {device} tunnel_id {number} session_id {number} peer_session_id {number}",
                f"link set {device} up"])
    return kind


l2tp = l2tp_in("udp", "udp_sport", "1701", "udp_dport", "1701")
l2tp_without_udp = l2tp_in("ip")


def wireguard_through(carrier):
    """A kind: a WireGuard tunnel."""
    def kind(host, host_device, router, router_device, offloads=False):
        number, ends = carrier(host, host_device, router, router_device, offloads)
        port = 51820 + number
        private = [end[0].run("wg", "genkey") for end in ends]
        public = [end[0].run("wg", "pubkey", stdin=key).strip() for end, key in zip(ends, private)]
        for (namespace, device, _, peer), key, known in zip(ends, private, reversed(public)):
            namespace.ip("link", "add", device, "type", "wireguard")
            namespace.run("wg", "set", device, "listen-port", port, "private-key", "/dev/stdin", "peer", known,
                          "allowed-ips", "0.0.0.0/0,::/0", "endpoint", f"{peer}:{port}", stdin=key)
            namespace.ip("link", "set", device, "up")
    return kind


wireguard = wireguard_through(_carrier)


def xfrmi(host, host_device, router, router_device, offloads=False):
    """An IPsec tunnel with an interface of its own."""
    _, ends = _carrier(host, host_device, router, router_device, offloads)
    key = "0x" + "5c" * 20
    for namespace, device, own, peer in ends:
        with namespace.collecting():
            _add(namespace, device, device, "type", "xfrm", "dev", f"{device}p", "if_id", 9)
            for source, destination in ((own, peer), (peer, own)):
                namespace.ip("xfrm", "state", "add", "src", source, "dst", destination, "proto", "esp",
                             "spi", "0x" + source.split(".")[-1] + "00", "reqid", 9, "mode", "tunnel",
                             "if_id", 9, "flag", "af-unspec", "aead", "rfc4106(gcm(aes))", key, 128)
            for direction, source, destination in (("out", own, peer), ("fwd", peer, own), ("in", peer, own)):
                for everything in ("0.0.0.0/0", "::/0"):
                    namespace.ip("xfrm", "policy", "add", "src", everything, "dst", everything,
                                 "dir", direction, "if_id", 9, "tmpl", "src", source, "dst", destination,
                                 "proto", "esp", "reqid", 9, "mode", "tunnel")
