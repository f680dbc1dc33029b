# SPDX-License-Identifier: GPL-2.0

"""What the demo asks of the operating system: commands, network namespaces, kernel threads."""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path


class Failure(Exception):
    """Something without which there is no demo. Its text is one line for the person who runs it."""


def run(command: str, namespace: str | None = None, timeout_s: float = 60) -> str:
    """Runs a command to its end, in a network namespace if one is given; gives what it printed."""
    words = shlex.split(command)
    prefix = ["ip", "netns", "exec", namespace] if namespace else []
    try:
        done = subprocess.run(
            prefix + words, check=False, capture_output=True, text=True, timeout=timeout_s
        )
    except FileNotFoundError:
        raise Failure(f"{words[0]} is missing") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{command}: not done after {timeout_s:.0f} seconds") from None
    if done.returncode != 0:
        raise Failure(f"{command}: {complaint(done.stderr or done.stdout)}")
    return done.stdout


def complaint(text: str) -> str:
    """The line of a command's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines[-1:] or ["it failed"])[0]


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Lets this process work in a network namespace. Its sockets stay there when it has left."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    os.setns(there, os.CLONE_NEWNET)
    try:
        yield
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(there)
        os.close(home)


def thread_named(prefix: str) -> int:
    """The process id of the kernel thread whose name begins like this."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if comm.read_text().startswith(prefix):
                return int(comm.parent.name)
    raise Failure(f"there is no kernel thread {prefix}…")


def cpu_time_ns(process: int) -> int:
    """How long a process has run."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0])
