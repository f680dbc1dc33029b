# SPDX-License-Identifier: GPL-2.0
"""Network namespaces that stand for hosts."""

import contextlib
import ctypes
import os
import socket
import subprocess
from pathlib import Path

_HOME = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


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
        _run(["ip", "netns", "add", name])
        self._fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link", "set", "lo", "up")
        # Chatter of the stack's own would be counted with the test's packets.
        self.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        self.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
        # A socket that waits for somebody to acknowledge its end holds on to its namespace for minutes.
        self.sysctl("net.ipv4.tcp_orphan_retries", 1)

    @contextlib.contextmanager
    def inside(self):
        """Everything that is opened in this context belongs to the namespace."""
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
        return self.run("ip", *arguments)

    def ip_batch(self, lines):
        """What several calls of `ip` would do, in less time."""
        self.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))

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
        with self.inside(), socket.socket() as any_socket:
            return _hardware_address(any_socket, device)

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
        _run(["ip", "netns", "del", self.name])


def _run(command, check=True, stdin=None):
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120,
                          check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _hardware_address(any_socket, device):
    import fcntl
    siocgifhwaddr = 0x8927
    request = ctypes.create_string_buffer(device.encode(), 40)
    fcntl.ioctl(any_socket, siocgifhwaddr, request)
    return request.raw[18:24].hex(":")
