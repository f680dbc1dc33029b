# SPDX-License-Identifier: GPL-2.0

"""What the router spends its time on: a sampling profile of its two threads, with call stacks.

perf samples the processor by its clock, so that every sample of these threads stands for the same CPU
time of the router. What a sample belongs to is decided by the innermost of its stack's functions that
tells:

* **firewall**: netfilter's hooks and what they call: conntrack, NAT, the evaluation of the rules, and
  so on. `nf_hook_slow` calls these, and nothing else but what follows. Also their functions where
  they are called from elsewhere, by the prefix of their names; so what fasttrack has conntrack do
  is firewall.
* **fasttrack**: the module's own functions. Such a hook calls the module, but it is no part of the
  firewall.
* **forwarding**: all the rest: the ports, the IP layer, routing, and sending. The module and the
  flowtable send from within a hook; a function that sends is forwarding, whoever calls it.

Interrupts, and what the kernel does after them, are not the router's work and are left out."""

import bisect
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from system import Failure, complaint, run

RATE_HZ = 1999

FIREWALL = "firewall"
FASTTRACK = "fasttrack"
FORWARDING = "forwarding"
INTERRUPT = "interrupt"

# Wherever it is in the stack.
INTERRUPT_SIGN = re.compile(r"handle_softirqs|__irq_exit_rcu|asm_sysvec_")
# In this order for one function. Rust's names carry the crate's, after its length.
SIGNS = (
    (FASTTRACK, re.compile(r"_R.*9fasttrack|ft_|fasttrack_")),
    (
        FORWARDING,
        re.compile(r"__dev_queue_xmit|dev_hard_start_xmit|neigh_\w*output|ip_finish_output2"),
    ),
    (FIREWALL, re.compile(r"_*(nf|nft|nfnl)_")),
)

# The line that a sample of `perf script` begins with: "  100.123456789:".
TIME = re.compile(r"\s*(\d+)\.(\d{9}):")


class Sampler:
    """Takes a profile of the processor, from when it is made until it is stopped."""

    def __init__(self, data: Path) -> None:
        self.data = data
        # Not fewer samples because they are slow to take, which they are on an emulated processor.
        run("sysctl -qw kernel.perf_cpu_time_max_percent=0")
        command, command_end = os.pipe()
        answer_end, answer = os.pipe()
        options = f"--quiet --all-cpus -g --event cpu-clock --freq {RATE_HZ} --output {data}"
        # The clock that the windows' times are taken from.
        options += f" --clockid monotonic --control fd:{command},{answer}"
        try:
            self.perf = subprocess.Popen(
                ["perf", "record", *options.split()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=(command, answer),
            )
        except FileNotFoundError:
            raise Failure("perf is missing") from None
        os.close(command)
        os.close(answer)
        # It answers when it has begun, and if it ends before that, so does the pipe.
        os.write(command_end, b"ping\n")
        os.read(answer_end, 16)
        self.control = command_end, answer_end

    def stop(self) -> None:
        """Ends it. The profile is complete then."""
        self.perf.send_signal(signal.SIGINT)
        _, errors = self.perf.communicate(timeout=60)
        for end in self.control:
            os.close(end)
        if not self.data.exists() or not self.data.stat().st_size:
            raise Failure(f"perf record: {complaint(errors)}")

    def samples(self, threads: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The time in nanoseconds, and what it belongs to, of each sample of some threads."""
        options = f"--input {self.data} --tid {','.join(map(str, threads))}"
        options += " --fields time,ip,sym --ns --no-inline"
        with subprocess.Popen(
            ["perf", "script", *options.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        ) as script:
            assert script.stdout
            yield from classified(script.stdout)


def classified(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Reads what `perf script` prints: the time, then the stack from the innermost function on, one a
    line after its address, then an empty line."""
    at_ns = 0
    belongs_to = None
    for line in lines:
        if time := TIME.match(line):
            at_ns = int(time[1] + time[2])
            belongs_to = None
        elif not line.strip():
            yield at_ns, belongs_to or FORWARDING
        else:
            _, _, function = line.strip().partition(" ")
            if INTERRUPT_SIGN.match(function):
                belongs_to = INTERRUPT
            elif belongs_to is None:
                belongs_to = next((what for what, sign in SIGNS if sign.match(function)), None)


def attribute(
    samples: Iterable[tuple[int, str]], windows: list[tuple[int, int]]
) -> list[Counter[str]]:
    """Counts the samples of each window of time by what they belong to. The windows follow each
    other."""
    counts = [Counter[str]() for _ in windows]
    begins = [begin for begin, _ in windows]
    for at_ns, belongs_to in samples:
        index = bisect.bisect_right(begins, at_ns) - 1
        if index >= 0 and at_ns <= windows[index][1]:
            counts[index][belongs_to] += 1
    return counts
