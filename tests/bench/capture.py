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


class Capture:
    """Gets what arrives at the sink while it is open."""

    def __init__(self, network):
        self._socket = network.sink.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind(("eth0", ETH_P_ALL))

    def packets(self):
        """The packets so far: the VLAN that each is of, and what it is from the IP header on."""
        found = []
        while True:
            try:
                data, control, *_ = self._socket.recvmsg(65536, 256, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            found.append((_vlan(control), data[LINK_HEADER + _session_header(data):]))

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


def differences(packet, number, family, flows, size, source, hops):
    """What is wrong with a packet, the `number`th that was captured: it has to be what the generator
    sent, but for the source address and `hops`."""
    if len(packet) != size:
        return f"{len(packet)} bytes instead of {size}"
    header_len = 20 if family.version == 4 else 40
    ports = struct.unpack_from("!HH", packet, header_len)
    for port, (first, end) in zip(ports, (flows.source_range(), flows.destination_range()), strict=True):
        if not first <= port < end:
            return f"port {port}"
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(family.server).packed
    payload_len = size - header_len - 8
    first, = struct.unpack_from("!I", packet, header_len + 12)
    payload = struct.pack("!IIII", MAGIC, first, 0, 0).ljust(payload_len, b"\0")
    udp = struct.pack("!HHHH", *ports, payload_len + 8, 0) + payload
    checksum = internet_checksum(addresses + struct.pack("!II", payload_len + 8, UDP) + udp)
    udp = udp[:6] + struct.pack("!H", checksum or 0xFFFF) + udp[8:]
    if family.version == 4:
        identity, = struct.unpack_from("!H", packet, 4)
        header = struct.pack("!BBHHHBBH", 0x45, 0, size, identity, 0, TTL - hops, UDP, 0) + addresses
        header = header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:]
    else:
        header = struct.pack("!IHBB", 6 << 28, size - header_len, UDP, TTL - hops) + addresses
    expected = header + udp
    if packet == expected:
        return None
    for at, (got, wanted) in enumerate(zip(packet, expected, strict=True)):
        if got != wanted:
            return f"packet {number}: byte {at} is {got:#04x} instead of {wanted:#04x}"
    return None


def internet_checksum(data):
    """The checksum of RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[:len(data) & ~1]))
    if len(data) & 1:
        total += data[-1] << 8
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
