# SPDX-License-Identifier: GPL-2.0
"""Network namespaces that stand for hosts."""

import contextlib
import ctypes
import os
import socket
import subprocess
from pathlib import Path

from . import interface

_HOME = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

#: Where `ip` looks for them.
_NAMED = Path("/run/netns")
_LIBC = ctypes.CDLL(None, use_errno=True)
# <sys/mount.h>
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 0x100000, 2


def name_namespace(name):
    """Makes a network namespace, as `ip netns add` does but without a process."""
    if not _NAMED.exists():
        # Who sees it without being in our mount namespace also sees it go.
        _NAMED.mkdir()
        _mount(_NAMED, _NAMED, _MS_BIND | _MS_REC)
        _mount("none", _NAMED, _MS_SHARED | _MS_REC)
    (_NAMED / name).touch(mode=0, exist_ok=False)
    os.unshare(os.CLONE_NEWNET)
    try:
        _mount("/proc/thread-self/ns/net", _NAMED / name, _MS_BIND)
    finally:
        os.setns(_HOME, os.CLONE_NEWNET)


def forget_namespace(name):
    """Removes its name: it ends when nobody uses it any more."""
    _checked(_LIBC.umount2(os.fsencode(_NAMED / name), _MNT_DETACH))
    (_NAMED / name).unlink()


def _mount(source, target, flags):
    _checked(_LIBC.mount(os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None))


def _checked(status):
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A host: a network namespace with a name.

    Sockets are made inside it and used from outside: a socket stays in the namespace that it was
    made in, so one test can play every host of a topology without starting a process for each.
    """

    def __init__(self, name, dialect=None):
        self.name = name
        # What makes rules that are written for IPv4 ones for another family.
        self._dialect = dialect or (lambda text: text)
        self._jobs = []
        # What `ip` has still to do, while it is collected.
        self._pending = None
        name_namespace(name)
        self._fd = os.open(_NAMED / name, os.O_RDONLY | os.O_CLOEXEC)
        self.up("lo")
        # Chatter of the stack's own would be counted with the test's packets.
        self.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        # A socket that waits for somebody to acknowledge its end holds on to its namespace for minutes.
        self.sysctl("net.ipv4.tcp_orphan_retries", 1)

    @contextlib.contextmanager
    def inside(self):
        """Everything that is opened in this context belongs to the namespace."""
        self._catch_up()
        os.setns(self._fd, os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(_HOME, os.CLONE_NEWNET)

    def run(self, *command, check=True, stdin=None):
        """Runs a command; gives what it printed. Fails with its complaint if it fails. What it sees of /sys is the
        guest's own: to give it the namespace's, as `ip netns exec` does, takes longer than most commands."""
        with self.inside():
            return _run([*map(str, command)], check, stdin)

    def status(self, *command):
        """Runs a command; gives the finished process, whatever its status."""
        with self.inside():
            return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)

    def start(self, *command, **options):
        """Starts a command that goes on until the namespace is removed."""
        options.setdefault("stdout", subprocess.DEVNULL)
        options.setdefault("stderr", subprocess.DEVNULL)
        with self.inside():
            job = subprocess.Popen([*map(str, command)], **options)
        self._jobs.append(job)
        return job

    def ip(self, *arguments):
        """`ip` with the given arguments."""
        if self._pending is None:
            return self.run("ip", *arguments)
        self._pending.append(" ".join(map(str, arguments)))
        return None

    def ip_batch(self, lines):
        """What several calls of `ip` would do, in less time."""
        if self._pending is None:
            self._batch(lines)
        else:
            self._pending += lines

    def _batch(self, lines):
        self.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))

    @contextlib.contextmanager
    def collecting(self):
        """What `ip` is to do in this context it does at once, at the end or before anything else is done in the
        namespace. It must not depend on what is done in other ones meanwhile, nor does it print anything."""
        if self._pending is not None:
            yield
            return
        self._pending = []
        try:
            yield
            self._catch_up()
        finally:
            self._pending = None

    def _catch_up(self):
        if self._pending:
            lines, self._pending = self._pending, []
            self._batch(lines)

    def up(self, *devices):
        """Brings devices up."""
        with self.inside():
            for device in devices:
                interface.up(device)

    def without_offloads(self, device):
        """Has a device take and give packets as they are on a cable."""
        with self.inside():
            interface.without_offloads(device)

    def nft(self, rules):
        """Loads an nft script."""
        return self.run("nft", "-f", "-", stdin=self._dialect(rules))

    def sysctl(self, name, value):
        """Sets a sysctl of the namespace."""
        with self.inside():
            Path("/proc/sys", *name.split(".")).write_text(f"{value}\n", encoding="ascii")

    def enable_ipv6(self):
        """Has devices that are made from now on speak IPv6, as quietly as they can."""
        for scope in ("all", "default"):
            self.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 0)
            self.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
            self.sysctl(f"net.ipv6.conf.{scope}.router_solicitations", 0)
            # In milliseconds: what groups they listen to is told once, and not again in between.
            self.sysctl(f"net.ipv6.conf.{scope}.mldv2_unsolicited_report_interval", 3_600_000)
            # As addresses of IPv4 are.
            self.sysctl(f"net.ipv6.conf.{scope}.keep_addr_on_down", 1)

    def socket(self, *arguments):
        """A socket in the namespace."""
        with self.inside():
            return socket.socket(*arguments)

    def mac(self, device):
        """The link-layer address of a device."""
        with self.inside():
            return interface.hardware_address(device)

    def index(self, device):
        """The number of a device."""
        with self.inside():
            return socket.if_nametoindex(device)

    def counter(self, table, name):
        """Packets that a named nft counter has counted."""
        text = self.run("nft", "list", "counter", *self._dialect(f"{table} ").split(), name)
        words = text.split()
        return int(words[words.index("packets") + 1])

    def remove(self):
        """Ends what was started, and removes the namespace."""
        for job in self._jobs:
            job.kill()
            job.wait()
        os.close(self._fd)
        forget_namespace(self.name)


def collecting(*namespaces):
    """See `Namespace.collecting`."""
    stack = contextlib.ExitStack()
    for namespace in namespaces:
        stack.enter_context(namespace.collecting())
    return stack


def _run(command, check=True, stdin=None):
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120,
                          check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
