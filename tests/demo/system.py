# SPDX-License-Identifier: GPL-2.0

"""What the demo asks of the operating system: commands, network namespaces, files of numbers."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class Failure(Exception):
    """Something without which there is no demo. Its text is one line for the person who runs it."""


def run(*command: str, namespace: str | None = None, stdin: str | None = None, timeout_s: float = 60) -> str:
    """Runs a command to its end and gives what it printed."""
    if namespace:
        command = ("ip", "netns", "exec", namespace, *command)
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError:
        raise Failure(f"{command[0]} is missing") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{describe(command)}: not done after {timeout_s:.0f} seconds") from None
    if done.returncode != 0:
        raise Failure(f"{describe(command)}: {last_line(done.stderr) or last_line(done.stdout)}")
    return done.stdout


def describe(command: Sequence[str]) -> str:
    """The command as far as a person wants to read it."""
    words = command[3:] if command[:3] == ("ip", "netns", "exec") else command
    return " ".join(words[:6])


def last_line(text: str) -> str:
    """The last line that says something, without blanks around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Lets this process work in a network namespace. Its sockets stay there when it has left."""
    with open("/proc/self/ns/net", "rb") as home, open(f"/run/netns/{namespace}", "rb") as there:
        os.setns(there.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(home.fileno(), os.CLONE_NEWNET)


@contextlib.contextmanager
def child(namespace: str, work: Callable[[], None]) -> Iterator[int]:
    """Runs a function in a process of its own in a namespace, until it returns or this context ends.

    A fork costs an emulated processor a hundredth of what another Python costs."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            with inside(namespace):
                work()
            status = 0
        finally:
            os._exit(status)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, 15)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)


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
