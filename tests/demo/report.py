# SPDX-License-Identifier: GPL-2.0

"""From the measurements to the table, the numbers as JSON, and the verdict."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import sampling
import traffic
from measure import Measurement
from modes import COMPARED, FLOWTABLE, OFF, ON, Mode
from traffic import Kind

JSON_LINE = "demo.json:"

# What has to hold.
LEAST_GAIN = 1.3
LEAST_FAST_SHARE = 0.95
MOST_FIREWALL_LEFT = 0.5

KINDS = (*traffic.PLAIN, traffic.TUNNEL)


@dataclass(frozen=True)
class TunnelState:
    """How the tunnel's connections look while fasttrack is on."""

    measurement: Measurement
    marks: list[int]
    flows: int

    @property
    def slow_packets(self) -> int:
        """Packets that were kept off the fast path because of IPsec."""
        slow = self.measurement.slow_packets
        return sum(slow.get(why, 0) for why in ("ipsec", "marked", "secpath-mismatch"))

    @property
    def is_marked(self) -> bool:
        """Whether there were connections, and all have a mark."""
        return bool(self.marks) and all(self.marks)

    @property
    def is_slow(self) -> bool:
        """Whether none of its packets was fast, and fasttrack says why."""
        return self.flows == 0 and self.measurement.fast_packets == 0 and self.slow_packets > 0


@dataclass(frozen=True)
class Wan:
    """Packets seen on the WAN: in the whole demo, and in clear without an exemption from masquerading."""

    clear_text: int
    encrypted: int
    clear_text_if_careless: int


@dataclass(frozen=True)
class Results:
    """All that was found. There is a profile for each measurement."""

    measurements: list[Measurement]
    profiles: list[Counter[str]]
    tunnel: TunnelState
    wan: Wan

    def of(self, kind: Kind, mode: Mode) -> list[Measurement]:
        """The measurements of a kind in a mode, a round each."""
        return [m for m in self.measurements if (m.kind, m.mode) == (kind.name, mode.name)]

    def median(self, kind: Kind, mode: Mode, what: Callable[[Measurement], float]) -> float:
        """The median over the rounds."""
        return statistics.median(map(what, self.of(kind, mode)))

    def gain(self, kind: Kind, mode: Mode, over: Mode) -> float:
        """How much more goes through than in another mode: the median of the rounds' ratios. What else the
        machine has to do changes slowly, so the measurements of one round can be compared."""
        pairs = zip(self.of(kind, mode), self.of(kind, over), strict=True)
        return statistics.median(one.bits_per_s / other.bits_per_s for one, other in pairs)

    def fast_share(self, kind: Kind) -> float:
        """The share of the packets that took the fast path, with fasttrack."""
        measured = self.of(kind, ON)
        return sum(m.fast_packets for m in measured) / sum(m.packets for m in measured)

    def cpu_share(self, kind: Kind, mode: Mode, belongs_to: str) -> float:
        """The share of the router's CPU time that something takes."""
        total = Counter[str]()
        for measurement, profile in zip(self.measurements, self.profiles, strict=True):
            if (measurement.kind, measurement.mode) == (kind.name, mode.name):
                total += profile
        samples = sum(total.values()) - total[sampling.INTERRUPT]
        return total[belongs_to] / samples if samples else float("nan")


@dataclass(frozen=True)
class Check:
    """One thing that is claimed."""

    claim: str
    held: bool
    found: str


def check(results: Results) -> list[Check]:
    """Whether what is claimed is so."""
    checks = []
    for kind in traffic.PLAIN:
        gain = results.gain(kind, ON, OFF)
        over_flowtable = results.gain(kind, ON, FLOWTABLE)
        fast_share = results.fast_share(kind)
        firewall = [results.cpu_share(kind, mode, sampling.FIREWALL) for mode in (OFF, ON)]
        checks += [
            Check(f"{kind.title}: more than {LEAST_GAIN} times the throughput", gain > LEAST_GAIN, f"x{gain:.2f}"),
            Check(f"{kind.title}: no less than the flowtable", over_flowtable >= 1, f"x{over_flowtable:.2f}"),
            Check(
                f"{kind.title}: at least {LEAST_FAST_SHARE:.0%} of the packets on the fast path",
                fast_share >= LEAST_FAST_SHARE,
                f"{fast_share:.1%}",
            ),
            Check(
                f"{kind.title}: the firewall's share of the CPU at least halved",
                firewall[1] <= firewall[0] * MOST_FIREWALL_LEFT,
                f"{firewall[0]:.0%} to {firewall[1]:.0%}",
            ),
        ]
    tunnel, wan = results.tunnel, results.wan
    checks += [
        Check("the tunnel's connections marked", tunnel.is_marked, f"marks {tunnel.marks}"),
        Check("the tunnel's packets on the slow path", tunnel.is_slow, f"{tunnel.measurement.fast_packets} were fast"),
        Check("the tunnel used", wan.encrypted > 0, f"{wan.encrypted} ESP packets"),
        Check("nothing of the tunnel in clear on the WAN", wan.clear_text == 0, f"{wan.clear_text} packets"),
        Check(
            "clear text would have been seen",
            wan.clear_text_if_careless > 0,
            f"{wan.clear_text_if_careless} packets without the exemption",
        ),
    ]
    return checks


def verdict(checks: list[Check]) -> str:
    """The last line."""
    failed = [f"{check.claim} ({check.found})" for check in checks if not check.held]
    return "demo: NOT all held: " + "; ".join(failed) if failed else "demo: all held"


def progress(kind: Kind, mode: Mode, measurement: Measurement) -> str:
    """What is said after a measurement."""
    return (
        f"{measurement.round}  {kind.title:18}{mode.title:22}{throughput(kind, measurement):>20}"
        f"{measurement.cpu_ns_per_packet / 1000:8.1f} us CPU a packet, router's load {measurement.load:.0%}"
    )


def throughput(kind: Kind, measurement: Measurement) -> str:
    """The throughput in the unit that is usual for the kind."""
    return in_unit(kind, measurement.bits_per_s, measurement.packets_per_s)


def in_unit(kind: Kind, bits_per_s: float, packets_per_s: float) -> str:
    """Bits for TCP, packets for UDP."""
    if kind.frame_bytes is None:
        return f"{bits_per_s / 1e6:.1f} Mbit/s"
    return f"{packets_per_s / 1e3:.2f} kpps"


def table(results: Results) -> str:
    """The table, a column for each kind of traffic."""

    def median_throughput(mode: Mode) -> Callable[[Kind], str]:
        return lambda kind: in_unit(
            kind,
            results.median(kind, mode, lambda m: m.bits_per_s),
            results.median(kind, mode, lambda m: m.packets_per_s),
        )

    def median_cpu(mode: Mode) -> Callable[[Kind], str]:
        return lambda kind: f"{results.median(kind, mode, lambda m: m.cpu_ns_per_packet) / 1000:.1f} us"

    def gain(mode: Mode, over: Mode) -> Callable[[Kind], str]:
        return lambda kind: f"x{results.gain(kind, mode, over):.2f}"

    def cpu_share(mode: Mode, belongs_to: str) -> Callable[[Kind], str]:
        return lambda kind: f"{results.cpu_share(kind, mode, belongs_to):.0%}"

    lines = [
        "",
        row("", (kind.title for kind in KINDS)),
        "throughput",
        *(cells(mode.title, median_throughput(mode)) for mode in COMPARED),
        cells("fasttrack / without", gain(ON, OFF)),
        cells("flowtable / without", gain(FLOWTABLE, OFF)),
        cells("fasttrack / flowtable", gain(ON, FLOWTABLE)),
        "router's CPU time for a packet",
        *(cells(mode.title, median_cpu(mode)) for mode in COMPARED),
        "packets on the fast path",
        cells(ON.title, lambda kind: f"{results.fast_share(kind):.1%}"),
        "firewall's share of the router's CPU time",
        *(cells(mode.title, cpu_share(mode, sampling.FIREWALL)) for mode in (OFF, ON)),
        cells("fasttrack itself", cpu_share(ON, sampling.FASTTRACK)),
        "",
        *tunnel_lines(results.tunnel),
        *wan_lines(results.wan),
        "",
    ]
    return "\n".join(lines)


def cells(title: str, cell: Callable[[Kind], str]) -> str:
    """A row below a heading, with what the function gives for each kind."""
    return row(f"  {title}", map(cell, KINDS))


def row(title: str, columns: Iterable[str]) -> str:
    """A row of the table."""
    return f"{title:26}" + "".join(f"{column:>19}" for column in columns)


def tunnel_lines(tunnel: TunnelState) -> list[str]:
    """What is said about the tunnel's connections."""
    marks = ", ".join(f"{mark:#x}" for mark in sorted(set(tunnel.marks)))
    return [
        f"connections in the tunnel: {'marked' if tunnel.is_marked else 'NOT all marked'} ({marks}), "
        f"{'slow' if tunnel.is_slow else 'NOT slow'}: {tunnel.flows} flows, "
        f"{tunnel.measurement.fast_packets} packets fast, {tunnel.slow_packets} kept slow because of IPsec",
    ]


def wan_lines(wan: Wan) -> list[str]:
    """What is said about what was seen on the WAN."""
    return [
        f"on the WAN: {wan.encrypted} packets of the tunnel encrypted, {wan.clear_text} in clear",
        f"warning: with masquerade and without an exemption from it, {wan.clear_text_if_careless} of "
        "the tunnel's packets leave in clear; fasttrack's rules exempt them",
    ]


def as_json(results: Results, checks: list[Check]) -> dict[str, Any]:
    """All numbers."""
    return {
        "kinds": {kind.name: kind_as_json(results, kind) for kind in KINDS},
        "tunnel": {
            "marks": results.tunnel.marks,
            "flows": results.tunnel.flows,
            "fast_packets": results.tunnel.measurement.fast_packets,
            "slow_packets": results.tunnel.slow_packets,
        },
        "wan": asdict(results.wan),
        "checks": [asdict(check) for check in checks],
        "held": all(check.held for check in checks),
        "measurements": [
            asdict(measurement) | {"samples": dict(profile)}
            for measurement, profile in zip(results.measurements, results.profiles, strict=True)
        ],
    }


def kind_as_json(results: Results, kind: Kind) -> dict[str, Any]:
    """What the table says about a kind."""
    return {
        "title": kind.title,
        "frame_bytes": kind.frame_bytes,
        "ratio_fasttrack_off": results.gain(kind, ON, OFF),
        "ratio_flowtable_off": results.gain(kind, FLOWTABLE, OFF),
        "ratio_fasttrack_flowtable": results.gain(kind, ON, FLOWTABLE),
        "fast_share": results.fast_share(kind),
        "modes": {
            mode.name: {
                "median_bits_per_s": results.median(kind, mode, lambda m: m.bits_per_s),
                "median_packets_per_s": results.median(kind, mode, lambda m: m.packets_per_s),
                "median_cpu_ns_per_packet": results.median(kind, mode, lambda m: m.cpu_ns_per_packet),
                "firewall_share": results.cpu_share(kind, mode, sampling.FIREWALL),
                "fasttrack_share": results.cpu_share(kind, mode, sampling.FASTTRACK),
            }
            for mode in COMPARED
        },
    }
