# SPDX-License-Identifier: GPL-2.0
"""What is asked of network devices by system calls: a process for each would take longer than all the rest."""

import ctypes
import fcntl
import socket
import struct

# <linux/sockios.h>
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFHWADDR, _SIOCETHTOOL = 0x8913, 0x8914, 0x8927, 0x8946
_IFF_UP = 1
# <linux/ethtool.h>: summing what is sent, and segmenting it, by TCP and whatever it is; and merging what arrives.
_ETHTOOL_STXCSUM, _ETHTOOL_STSO, _ETHTOOL_SGSO, _ETHTOOL_SGRO = 0x17, 0x1f, 0x24, 0x2c


def up(device):
    """Brings a device of this namespace up."""
    with socket.socket() as end:
        flags, = struct.unpack_from("16xh", _ask(end, _SIOCGIFFLAGS, device))
        _ask(end, _SIOCSIFFLAGS, device, struct.pack("h", flags | _IFF_UP))


def hardware_address(device):
    """The link-layer address of a device of this namespace."""
    with socket.socket() as end:
        return _ask(end, _SIOCGIFHWADDR, device)[18:24].hex(":")


def without_offloads(device):
    """Has a device of this namespace take and give packets as they are on a cable."""
    with socket.socket() as end:
        for command in (_ETHTOOL_STXCSUM, _ETHTOOL_STSO, _ETHTOOL_SGSO, _ETHTOOL_SGRO):
            value = (ctypes.c_uint32 * 2)(command, 0)
            _ask(end, _SIOCETHTOOL, device, struct.pack("P", ctypes.addressof(value)))


def _ask(end, request, device, value=b""):
    return fcntl.ioctl(end, request, struct.pack("16s24s", device.encode(), value))
