# SPDX-License-Identifier: GPL-2.0

"""What the router spends its time on: a sampling profile of its two threads, with call stacks.

perf samples the threads while they run, by their own clock, so that every sample stands for the same CPU
time of the router. What a sample belongs to is decided by the innermost of its stack's functions that
tells:

* **firewall**: netfilter's hooks, and what they call: conntrack, NAT, the evaluation of the rules, and so
  on. `nf_hook_slow` calls all of these and nothing else. Also functions of theirs that are called from
  elsewhere, by their names' prefix. That includes what fasttrack has conntrack do.
* **fasttrack**: the module's own functions. The module is called by such a hook, too, but is no part of
  the firewall.
* **forwarding**: all the rest: the ports, the IP layer, routing, and sending. The module and the flowtable
  send from within a hook; a function that sends is forwarding, whoever calls it.

Interrupts and what the kernel does after them are not the router's work, and are left out."""

import bisect
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from system import Failure, complaint

RATE_HZ = 499

FIREWALL = "firewall"
FASTTRACK = "fasttrack"
FORWARDING = "forwarding"
INTERRUPT = "interrupt"

# Wherever it is in the stack.
INTERRUPT_SIGN = re.compile(r"handle_softirqs|__irq_exit_rcu|asm_sysvec_")
# In this order for one function. Rust's names carry the crate's, after its length.
SIGNS = (
    (FASTTRACK, re.compile(r"_R.*9fasttrack|fasttrack_")),
    (FORWARDING, re.compile(r"__dev_queue_xmit|dev_hard_start_xmit|neigh_\w*output|ip_finish_output2")),
    (FIREWALL, re.compile(r"_*(nf|nft|nfnl|conntrack)_")),
)

# "  100.123456:", then a line a function, "  ffffffff81000000 function+0x10".
TIME = re.compile(r"\s*(\d+)\.(\d+):")


class Sampler:
    """Takes the profile of some threads, from when it is made until it is stopped."""

    def __init__(self, threads: Iterable[int], data: Path) -> None:
        self.data = data
        command = ["perf", "record", "--quiet", "--event", "cpu-clock", "--freq", str(RATE_HZ), "-g"]
        # The clock that measurements take their times from.
        command += ["--clockid", "monotonic", "--output", str(data), "--tid", ",".join(map(str, threads))]
        try:
            self.perf = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError:
            raise Failure("perf is missing") from None

    def stop(self) -> None:
        """Ends it. The profile is complete then."""
        self.perf.send_signal(signal.SIGINT)
        _, errors = self.perf.communicate(timeout=60)
        if not self.data.exists() or not os.path.getsize(self.data):
            raise Failure(f"perf record: {complaint(errors)}")

    def samples(self) -> Iterator[tuple[int, str]]:
        """The time in nanoseconds, and what the sample belongs to, of each sample, in order."""
        command = ["perf", "script", "--input", str(self.data), "--no-inline", "--ns", "--fields", "time,ip,sym"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        ) as script:
            assert script.stdout
            yield from classified(script.stdout)


def classified(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Reads what `perf script` prints: the time, then a stack from the innermost function on, then an empty
    line."""
    at_ns = 0
    belongs_to: str | None = None
    for line in lines:
        if time := TIME.match(line):
            at_ns = int(time[1]) * 10**9 + int(time[2].ljust(9, "0"))
            belongs_to = None
        elif not line.strip():
            yield at_ns, belongs_to or FORWARDING
        else:
            _, _, function = line.strip().partition(" ")
            if INTERRUPT_SIGN.match(function):
                belongs_to = INTERRUPT
            elif belongs_to is None:
                belongs_to = next((what for what, sign in SIGNS if sign.match(function)), None)


def attribute(samples: Iterable[tuple[int, str]], windows: list[tuple[int, int]]) -> list[Counter[str]]:
    """Counts the samples of each window of time. The windows follow each other, with gaps."""
    counts = [Counter[str]() for _ in windows]
    begins = [begin for begin, _ in windows]
    for at_ns, belongs_to in samples:
        index = bisect.bisect_right(begins, at_ns) - 1
        if index >= 0 and at_ns <= windows[index][1]:
            counts[index][belongs_to] += 1
    return counts
