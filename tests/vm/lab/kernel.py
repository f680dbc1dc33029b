# SPDX-License-Identifier: GPL-2.0
"""The kernel that the tests run on: its log, its modules, what it holds on to."""

import contextlib
import os
import re
import subprocess
import time
from pathlib import Path

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
    subprocess.run(["ip", "netns", "add", "last"], check=True)
    subprocess.run(["ip", "netns", "del", "last"], check=True)
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
