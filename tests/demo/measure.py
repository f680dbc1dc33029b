# SPDX-License-Identifier: GPL-2.0

"""One measurement: a kind of traffic in a mode, with the router's counters from before and after."""

from dataclasses import dataclass
from pathlib import Path

import modes
import system
import topology
from modes import Mode
from system import Failure, inside
from traffic import Kind


@dataclass(frozen=True)
class Counters:
    """What the router has done so far."""

    sent_to_wan: int
    sent_to_lan: int
    fast: int
    slow: dict[str, int]
    cpu_ns: tuple[int, ...]

    @staticmethod
    def read() -> "Counters":
        """Reads them now."""
        stats = modes.stats()
        sent = read_sent()
        return Counters(
            sent_to_wan=sent["wan0"],
            sent_to_lan=sent["lan0"],
            fast=sum(direction["packets"] for direction in stats["fast"].values()),
            slow=stats["slow"],
            cpu_ns=tuple(system.cpu_time_ns(thread) for thread in topology.router_threads()),
        )


def read_sent() -> dict[str, int]:
    """How many packets have left each of the router's ports. Those that found no room on the other
    side are not among them."""
    with inside("router"):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    rows = [line.replace(":", " ").split() for line in lines]
    return {row[0]: int(row[10]) for row in rows if row[0] in ("lan0", "wan0")}


@dataclass(frozen=True)
class Measurement:
    """A measurement's numbers."""

    kind: str
    mode: str
    round: int
    # Of the direction that carries the data: payload for TCP, whole frames for UDP.
    bits_per_s: float
    packets_per_s: float
    # What the router sent, in both directions; the packets that were fast; why others were not.
    packets: int
    fast_packets: int
    slow_packets: dict[str, int]
    cpu_ns: int
    # Of the busier of the router's threads: which part it used of the time that it was given.
    load: float

    @property
    def cpu_ns_per_packet(self) -> float:
        """CPU time of the router for a packet."""
        return self.cpu_ns / self.packets


def measure(kind: Kind, mode: Mode, number: int, seconds: float) -> Measurement:
    """Sends, and gives what came of it. The router is in the mode already."""
    before = Counters.read()
    sent = kind.send(seconds)
    after = Counters.read()
    data_packets = after.sent_to_wan - before.sent_to_wan
    packets = data_packets + after.sent_to_lan - before.sent_to_lan
    if not packets:
        raise Failure(f"{kind.title} {mode.title}: the router has not forwarded a packet")
    packets_per_s = data_packets / sent.seconds
    bits_per_s = sent.bits_per_s or packets_per_s * (kind.frame_bytes or 0) * 8
    cpu_ns = [end - begin for begin, end in zip(before.cpu_ns, after.cpu_ns, strict=True)]
    share = topology.ROUTER_RUNTIME_US / topology.ROUTER_PERIOD_US
    return Measurement(
        kind=kind.name,
        mode=mode.name,
        round=number,
        bits_per_s=bits_per_s,
        packets_per_s=packets_per_s,
        packets=packets,
        fast_packets=after.fast - before.fast,
        slow_packets={why: count - before.slow.get(why, 0) for why, count in after.slow.items()},
        cpu_ns=sum(cpu_ns),
        load=max(cpu_ns) / (sent.seconds * 1e9 * share),
    )
