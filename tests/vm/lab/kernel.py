# SPDX-License-Identifier: GPL-2.0
"""The kernel that the tests run on: its log, its modules, what it holds on to."""

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path

from .namespace import forget_namespace, name_namespace

_COMPLAINT = re.compile(
    r"WARNING:|BUG:|Oops|general protection|RIP:|refcount_t|unregister_netdevice: waiting|"
    r"Objects remaining|still has objects|rcu_.*stall|soft lockup|hung_task|scheduling while atomic|"
    r"UBSAN|KASAN|leaked|invalid opcode|Call Trace")

PREFERENCE = Path("/etc/modprobe.d/fasttrack-test.conf")


class Log:
    """The kernel's log from now on."""

    def __init__(self):
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)

    def complaints(self):
        """Lines since the last call that say that something is wrong."""
        found = []
        while True:
            try:
                line = os.read(self._fd, 8192).decode(errors="replace").partition(";")[2]
            except BlockingIOError:
                return found
            if _COMPLAINT.search(line):
                found.append(line.splitlines()[0])

    def close(self):
        """Gives the file back."""
        os.close(self._fd)


def load():
    """Loads the module."""
    subprocess.run(["modprobe", "fasttrack"], check=True)


def unload():
    """Unloads the module, which has to be possible at once."""
    subprocess.run(["rmmod", "fasttrack"], check=True, timeout=30)


@contextlib.contextmanager
def not_loading_by_itself():
    """The module is not loaded because someone asks for its netlink family."""
    PREFERENCE.write_text("alias net-pf-16-proto-16-family-fasttrack off\n", encoding="ascii")
    try:
        yield
    finally:
        PREFERENCE.unlink()


def loaded():
    """Whether the module is loaded."""
    return Path("/sys/module/fasttrack").exists()


def namespaces():
    """Network namespaces that the kernel still holds memory for."""
    # The memory of those that were removed is kept until others have been.
    name_namespace("last")
    forget_namespace("last")
    cache = Path("/sys/kernel/slab/net_namespace")
    # Objects that are free but kept by a CPU are not told apart from those in use before this.
    (cache / "shrink").write_text("1", encoding="ascii")
    return max(int((cache / "objects").read_text(encoding="ascii").split()[0]) - 1, 0)


def wait_until(condition, seconds=5.0, what="the condition", pause=0.02):
    """Waits until a condition holds; gives its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {seconds} s")
        time.sleep(pause)


class _Tracing:
    """The kernel's tracing."""

    _TRACING = Path("/sys/kernel/tracing")

    def __init__(self):
        if not (self._TRACING / "trace").exists():
            subprocess.run(["mount", "-t", "tracefs", "tracefs", str(self._TRACING)], check=True)

    def _read(self, file):
        return (self._TRACING / file).read_text(encoding="ascii")

    def _write(self, file, text):
        # To truncate the list of events is to remove all of them; and the files can't be sought in.
        end = os.open(self._TRACING / file, os.O_WRONLY | (os.O_TRUNC if file == "trace" else 0))
        try:
            os.write(end, text.encode())
        finally:
            os.close(end)


class Checksums(_Tracing):
    """Who has summed the packets that devices of a given name receive, as protocols get to see them:
    counts by name."""

    NAMES = ["none", "unnecessary", "complete", "partial"]

    def __init__(self, device, is_v6=False):
        super().__init__()
        self._write("dynamic_events", "t:fasttrack/received netif_receive_skb summed=skb->ip_summed "
                    "protocol=skb->protocol device=skb->dev->name:string\n")
        # As it is in memory.
        protocol = 0xdd86 if is_v6 else 0x0008
        self._write("events/fasttrack/received/filter", f'device == "{device}" && protocol == {protocol}')
        self._write("trace", "")
        self._write("events/fasttrack/received/enable", "1")

    def counts(self):
        """The counts so far."""
        found = re.findall(r"summed=(\d+)", self._read("trace"))
        return {self.NAMES[int(number)]: found.count(number) for number in set(found)}

    def close(self):
        """Stops looking."""
        self._write("events/fasttrack/received/enable", "0")
        self._write("dynamic_events", "-:fasttrack/received\n")


class _Seen(_Tracing):
    """Packets that the stack has to do with, by device."""

    EVENT = ""

    def __init__(self):
        super().__init__()
        self._write(f"events/net/{self.EVENT}/filter", "0")
        self._write("trace", "")
        self._write(f"events/net/{self.EVENT}/enable", "1")

    def count(self, device):
        """How many there were so far for devices of a name."""
        return len(re.findall(rf"{self.EVENT}: dev={device} ", self._read("trace")))

    def close(self):
        """Stops looking."""
        self._write(f"events/net/{self.EVENT}/enable", "0")


class Queued(_Seen):
    """Packets that the stack is given for devices to send: whatever is to be sent by way of their queues, even
    if these are none."""

    EVENT = "net_dev_queue"


class Received(_Seen):
    """Packets that the stack is given by devices, be it those below or those above: so by a bridge what it has let
    in."""

    EVENT = "netif_receive_skb"
