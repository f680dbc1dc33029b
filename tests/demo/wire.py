# SPDX-License-Identifier: GPL-2.0

"""Looks at the WAN: what arrives at the Internet's ports is what the router and the gateway sent.

The kernel counts, for a socket, the packets that pass the socket's filter. Nothing has to be read for
that, so it costs nothing while nothing passes, and counts also what there is no room for."""

import ctypes
import socket
import struct

import topology
from system import inside, run

# Names that Python does not have.
SO_ATTACH_FILTER = 26
SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_IGNORE_OUTGOING = 23
ETH_P_ALL = 3


class Tap:
    """Counts the packets that arrive at the Internet's ports and pass a filter in tcpdump's
    language."""

    def __init__(self, expression: str) -> None:
        program = compiled(expression)
        self.packets = 0
        with inside("internet"):
            self.sockets = [open_socket(device, program) for device in topology.PROVIDER_PORTS]

    def count(self) -> int:
        """The packets since the tap was made."""
        for tap in self.sockets:
            # The kernel forgets its count when it is asked for it.
            passed, _dropped = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            self.packets += passed
        return self.packets


def compiled(expression: str) -> bytes:
    """The filter as a classic BPF program. tcpdump prints it, and captures nothing."""
    _, *lines = run(f"tcpdump -y EN10MB -ddd '{expression}'").splitlines()
    return b"".join(struct.pack("HBBI", *map(int, line.split())) for line in lines)


def open_socket(device: str, program: bytes) -> socket.socket:
    """A socket that gets what arrives at a device and passes the filter, from the first packet on."""
    # Without a protocol it gets nothing until it is bound, and then it has its filter.
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    code = ctypes.create_string_buffer(program)
    filter_option = struct.pack("HP", len(program) // 8, ctypes.addressof(code))
    tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_option)
    tap.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    tap.bind((device, ETH_P_ALL))
    return tap


def clear_text() -> Tap:
    """Counts packets with one of the tunnel's inner addresses. They have no business on the WAN."""
    return Tap(f"ip and net {topology.INNER_NETS}")


def encrypted() -> Tap:
    """Counts the tunnel's packets."""
    return Tap("ip proto 50")
