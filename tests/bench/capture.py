# SPDX-License-Identifier: GPL-2.0
"""Looks at packets that reach the sink, and says what is wrong with them."""

import ipaddress
import socket
import struct

from generator import LINK_HEADER, MAGIC, TTL

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_AUXDATA = 8
TP_STATUS_VLAN_VALID = 0x10
UDP = 17
# How much of a frame are its addresses.
ADDRESSES = 12


class Capture:
    """Gets what arrives at the sink while it is open."""

    def __init__(self, network):
        self._socket = network.sink.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind(("eth0", ETH_P_ALL))

    def packets(self):
        """The packets so far: the VLAN that each is of, its addresses on the link, and what it is from the IP header on."""
        found = []
        while True:
            try:
                data, control, *_ = self._socket.recvmsg(65536, 256, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.append((_vlan(control), data[:ADDRESSES], data[LINK_HEADER + _session_header(data):]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()


def _vlan(control):
    """The VLAN that the kernel says a packet is of; 0 stands for none."""
    for level, kind, data in control:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, tci = struct.unpack("=I12xH2x", data)
            return tci & 0xFFF if status & TP_STATUS_VLAN_VALID else 0
    return 0


def _session_header(data):
    """How long the headers of PPPoE and PPP are, if there are any in front of IPv4."""
    is_session = data[LINK_HEADER - 2:LINK_HEADER] == b"\x88\x64" and data[LINK_HEADER:LINK_HEADER + 4] == b"\x11\0\0\5"
    return 8 if is_session and data[LINK_HEADER + 6:LINK_HEADER + 8] == b"\0\x21" else 0


def link_addresses(destination, source):
    """How a frame begins that is for one address, and from another one."""
    return bytes.fromhex((destination + source).replace(":", ""))


def first_identity(packets):
    """What IPv4 tells the first of these packets by. The others count up from there."""
    return struct.unpack_from("!H", packets[0], 4)[0] if packets else 0


def differences(packet, number, identity, family, flows, size, source, hops):
    """What is wrong with a packet, the `number`th of those that the generator has sent, of which the first one had this
    identity: it has to be what was sent, but for the source address and `hops`."""
    if len(packet) != size:
        return f"{len(packet)} bytes instead of {size}"
    wanted = expected(number, identity, family, flows, size, source, hops)
    if packet == wanted:
        return None
    at = next(at for at, (got, right) in enumerate(zip(packet, wanted, strict=True)) if got != right)
    return f"packet {number}: byte {at} is {packet[at]:#04x} instead of {wanted[at]:#04x}"


def expected(number, identity, family, flows, size, source, hops):
    """A packet as it has to reach the sink: see `differences`."""
    header_len = 20 if family.version == 4 else 40
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(family.server).packed
    payload_len = size - header_len - 8
    payload = struct.pack("!IIII", MAGIC, number, 0, 0).ljust(payload_len, b"\0")
    udp = struct.pack("!HHHH", *flows.ports(number), payload_len + 8, 0) + payload
    checksum = internet_checksum(addresses + struct.pack("!II", payload_len + 8, UDP) + udp)
    udp = udp[:6] + struct.pack("!H", checksum or 0xFFFF) + udp[8:]
    if family.version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, size, (identity + number - 1) & 0xFFFF, 0,
                             TTL - hops, UDP, 0) + addresses
        header = header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:]
    else:
        header = struct.pack("!IHBB", 6 << 28, size - header_len, UDP, TTL - hops) + addresses
    return header + udp


def internet_checksum(data):
    """The checksum of RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[:len(data) & ~1]))
    if len(data) & 1:
        total += data[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
