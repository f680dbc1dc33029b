# SPDX-License-Identifier: GPL-2.0

"""Looks at the WAN: what arrives at the Internet's ports is what the router and the gateway sent there.

The kernel counts, per socket, the packets that pass the socket's filter. Nothing has to be read for that,
so it costs nothing while nothing passes, and counts what it has no room for."""

import ctypes
import socket
import struct

import topology
from system import inside, run

SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23
SO_ATTACH_FILTER = 26
ETH_P_ALL = 3


def compile_filter(expression: str) -> list[tuple[int, ...]]:
    """A classic BPF program, by tcpdump, which does not capture anything here."""
    _, *lines = run("tcpdump", "-y", "EN10MB", "-ddd", expression).splitlines()
    return [tuple(int(number) for number in line.split()) for line in lines]


class Tap:
    """Counts the packets that arrive at the Internet's ports and pass a filter."""

    def __init__(self, expression: str) -> None:
        program = compile_filter(expression)
        self.packets = 0
        with inside("internet"):
            self.sockets = [open_tap(device, program) for device in topology.PROVIDER_PORTS]

    def count(self) -> int:
        """The packets since the tap was made."""
        for tap in self.sockets:
            # The kernel forgets its count when it is asked for it.
            passed, _dropped = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self.packets += passed
        return self.packets


def open_tap(device: str, program: list[tuple[int, ...]]) -> socket.socket:
    """A socket that receives what arrives at a device and passes the filter, from the first packet on."""
    # Without a protocol it receives nothing before it is bound, and then it has its filter.
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    tap.bind((device, ETH_P_ALL))
    return tap


def clear_text() -> Tap:
    """Counts packets with one of the tunnel's inner addresses. Such have no business on the WAN."""
    return Tap(f"ip and net {topology.INNER_NETS}")


def encrypted() -> Tap:
    """Counts the tunnel's packets."""
    return Tap("ip proto 50")
