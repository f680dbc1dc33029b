# SPDX-License-Identifier: GPL-2.0
"""The kernel's simulated network cards (netdevsim), which encrypt nothing but are told to, and count it."""

import contextlib
import re
import socket
import subprocess
from pathlib import Path

MODULE = Path("/mnt/share/netdevsim.ko")
BUS = Path("/sys/bus/netdevsim")


class Cards:
    """Two of them, connected: one in each of two namespaces."""

    FIRST, SECOND = 71, 72

    def __init__(self, a, device_a, b, device_b):
        subprocess.run(["modprobe", "psample"], check=True)
        subprocess.run(["insmod", str(MODULE)], check=True)
        made = []
        for number, namespace, device in ((self.FIRST, a, device_a), (self.SECOND, b, device_b)):
            with namespace.inside():
                before = socket.if_nameindex()
                (BUS / "new_device").write_text(f"{number} 1", encoding="ascii")
                (_, name), = set(socket.if_nameindex()) - set(before)
            namespace.ip("link", "set", name, "name", device)
            # Where ESP is offloaded merging decrypts it, before a capture sees it.
            namespace.run("ethtool", "-K", device, "gro", "off")
            namespace.ip("link", "set", device, "up")
            made.append((namespace, device))
        with contextlib.ExitStack() as stack:
            ends = [f"{stack.enter_context(open(f'/run/netns/{namespace.name}', encoding='ascii')).fileno()}"
                    f":{namespace.index(device)}" for namespace, device in made]
            (BUS / "link_device").write_text(" ".join(ends), encoding="ascii")

    def encrypted(self):
        """Of the second one: how many states it holds, and how many packets it was to encrypt by them."""
        text = Path(f"/sys/kernel/debug/netdevsim/netdevsim{self.SECOND}/ports/0/ipsec").read_text(encoding="ascii")
        return tuple(map(int, re.match(r"SA count=(\d+) tx=(\d+)", text).groups()))

    def close(self):
        """Unplugs them."""
        for number in (self.FIRST, self.SECOND):
            (BUS / "del_device").write_text(str(number), encoding="ascii")
        subprocess.run(["rmmod", "netdevsim"], check=True)
