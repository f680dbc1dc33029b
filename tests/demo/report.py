# SPDX-License-Identifier: GPL-2.0

"""From the measurements to the table, the numbers as JSON, and the verdict."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import sampling
from measure import Measurement
from modes import COMPARED, FLOWTABLE, OFF, ON, Mode
from traffic import KINDS, PLAIN, Kind

JSON_LINE = "demo.json:"

# What has to hold.
LEAST_GAIN = 1.3
LEAST_FAST_SHARE = 0.95
MOST_FIREWALL_LEFT = 0.5

# The reasons that keep a packet slow because of IPsec.
IPSEC_REASONS = ("ipsec", "marked", "secpath-mismatch")


@dataclass(frozen=True)
class TunnelState:
    """How the tunnel's connections look while fasttrack is on."""

    measurement: Measurement
    marks: list[int]
    flows: int

    @property
    def slow_packets(self) -> int:
        """Packets that were kept off the fast path because of IPsec."""
        return sum(self.measurement.slow_packets.get(why, 0) for why in IPSEC_REASONS)

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
    """Packets seen on the WAN; and in clear, where nothing exempts them from masquerading."""

    clear_text: int
    encrypted: int
    clear_text_if_careless: int


@dataclass(frozen=True)
class Results:
    """All that was found. The profiles go by the names of kind and mode."""

    measurements: list[Measurement]
    profiles: dict[tuple[str, str], Counter[str]]
    tunnel: TunnelState
    wan: Wan

    def of(self, kind: Kind, mode: Mode) -> list[Measurement]:
        """The measurements of a kind in a mode, one a round."""
        return [m for m in self.measurements if (m.kind, m.mode) == (kind.name, mode.name)]

    def median(self, kind: Kind, mode: Mode, what: Callable[[Measurement], float]) -> float:
        """The median over the rounds."""
        return statistics.median(map(what, self.of(kind, mode)))

    def gain(self, kind: Kind, mode: Mode, over: Mode) -> float:
        """How many times more goes through than in another mode: the median of the rounds' ratios.
        What else the machine has to do changes slowly, so what is of one round can be compared."""
        pairs = zip(self.of(kind, mode), self.of(kind, over), strict=True)
        return statistics.median(one.bits_per_s / other.bits_per_s for one, other in pairs)

    def fast_share(self, kind: Kind) -> float:
        """The share of the packets that took the fast path, with fasttrack."""
        measured = self.of(kind, ON)
        return sum(m.fast_packets for m in measured) / sum(m.packets for m in measured)

    def slow_packets(self, kinds: Iterable[Kind]) -> Counter[str]:
        """Why packets did not take it."""
        total = Counter[str]()
        for kind in kinds:
            for measurement in self.of(kind, ON):
                total.update(measurement.slow_packets)
        return total

    def cpu_share(self, kind: Kind, mode: Mode, belongs_to: str) -> float:
        """The share of the router's CPU time that something takes."""
        profile = self.profiles[kind.name, mode.name]
        samples = sum(profile.values()) - profile[sampling.INTERRUPT]
        return profile[belongs_to] / samples if samples else float("nan")


@dataclass(frozen=True)
class Check:
    """One thing that is claimed."""

    claim: str
    held: bool
    found: str


def check(results: Results) -> list[Check]:
    """Whether what is claimed is so."""
    tunnel, wan = results.tunnel, results.wan
    careless = wan.clear_text_if_careless
    return [
        *(one for kind in PLAIN for one in check_kind(results, kind)),
        Check("the tunnel's connections marked", tunnel.is_marked, f"marks {tunnel.marks}"),
        Check("the tunnel's packets slow", tunnel.is_slow, tunnel_found(tunnel)),
        Check("the tunnel used", wan.encrypted > 0, f"{wan.encrypted} packets encrypted"),
        Check("nothing of the tunnel in clear", wan.clear_text == 0, f"{wan.clear_text} packets"),
        Check("clear text would have been seen", careless > 0, f"{careless} packets"),
    ]


def check_kind(results: Results, kind: Kind) -> list[Check]:
    """Whether what is claimed of a kind of traffic is so."""
    gain = results.gain(kind, ON, OFF)
    over_flowtable = results.gain(kind, ON, FLOWTABLE)
    fast_share = results.fast_share(kind)
    before, after = (results.cpu_share(kind, mode, sampling.FIREWALL) for mode in (OFF, ON))
    return [
        Check(
            f"{kind.title}: more than {LEAST_GAIN} times the throughput",
            gain > LEAST_GAIN,
            f"x{gain:.2f}",
        ),
        Check(
            f"{kind.title}: no less than with the flowtable",
            over_flowtable >= 1,
            f"x{over_flowtable:.2f}",
        ),
        Check(
            f"{kind.title}: at least {LEAST_FAST_SHARE:.0%} of the packets on the fast path",
            fast_share >= LEAST_FAST_SHARE,
            f"{fast_share:.1%}",
        ),
        Check(
            f"{kind.title}: the firewall's share of the CPU time at least halved",
            after <= before * MOST_FIREWALL_LEFT,
            f"{before:.0%} to {after:.0%}",
        ),
    ]


def verdict(checks: list[Check]) -> str:
    """The last line."""
    failed = [f"{check.claim} ({check.found})" for check in checks if not check.held]
    return "demo: NOT all held: " + "; ".join(failed) if failed else "demo: all held"


def progress(number: str, kind: Kind, measured: dict[Mode, Measurement]) -> str:
    """What is said when a kind of traffic has been measured in all modes."""
    found = ", ".join(
        f"{mode.title} {in_unit(kind, measured[mode].bits_per_s, measured[mode].packets_per_s)}"
        for mode in COMPARED
    )
    return f"{number:>5}  {kind.title:18} {found}"


def in_unit(kind: Kind, bits_per_s: float, packets_per_s: float) -> str:
    """A throughput in the unit that is usual for the kind."""
    if kind.frame_bytes is None:
        return f"{bits_per_s / 1e6:.1f} Mbit/s"
    return f"{packets_per_s / 1e3:.2f} kpps"


class Table:
    """Text in columns, one for each kind of traffic."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.add("", lambda kind: kind.title)

    def head(self, text: str) -> None:
        """Adds what the next rows are about."""
        self.lines.append(text)

    def add(self, title: str, cell: Callable[[Kind], str]) -> None:
        """Adds a row, with what the function gives for each kind."""
        self.lines.append(f"  {title:24}" + "".join(f"{cell(kind):>19}" for kind in KINDS))


def table(results: Results) -> str:
    """The table, and what is said below it."""

    def throughput(mode: Mode) -> Callable[[Kind], str]:
        return lambda kind: in_unit(
            kind,
            results.median(kind, mode, lambda m: m.bits_per_s),
            results.median(kind, mode, lambda m: m.packets_per_s),
        )

    def gain(mode: Mode, over: Mode) -> Callable[[Kind], str]:
        return lambda kind: f"x{results.gain(kind, mode, over):.2f}"

    def cpu_time(mode: Mode) -> Callable[[Kind], str]:
        return lambda kind: (
            f"{results.median(kind, mode, lambda m: m.cpu_ns_per_packet) / 1e3:.1f} us"
        )

    def load(mode: Mode) -> Callable[[Kind], str]:
        return lambda kind: f"{min(results.median(kind, mode, lambda m: m.load), 1):.0%}"

    def cpu_share(mode: Mode, belongs_to: str) -> Callable[[Kind], str]:
        return lambda kind: f"{results.cpu_share(kind, mode, belongs_to):.0%}"

    rows = Table()
    rows.head("throughput")
    for mode in COMPARED:
        rows.add(mode.title, throughput(mode))
    rows.add("fasttrack / without", gain(ON, OFF))
    rows.add("flowtable / without", gain(FLOWTABLE, OFF))
    rows.add("fasttrack / flowtable", gain(ON, FLOWTABLE))
    rows.head("router's CPU time for a packet")
    for mode in COMPARED:
        rows.add(mode.title, cpu_time(mode))
    rows.head("router's load")
    for mode in COMPARED:
        rows.add(mode.title, load(mode))
    rows.head("packets on the fast path")
    rows.add(ON.title, lambda kind: f"{results.fast_share(kind):.1%}")
    rows.head("firewall's share of the router's CPU time")
    rows.add(OFF.title, cpu_share(OFF, sampling.FIREWALL))
    rows.add(ON.title, cpu_share(ON, sampling.FIREWALL))
    rows.add("(fasttrack's own)", cpu_share(ON, sampling.FASTTRACK))
    return "\n".join(["", *rows.lines, "", *remarks(results), ""])


def remarks(results: Results) -> list[str]:
    """What is said below the table."""
    slow = [f"{why} {count}" for why, count in results.slow_packets(PLAIN).most_common() if count]
    tunnel, wan = results.tunnel, results.wan
    marks = ", ".join(f"{mark:#x}" for mark in sorted(set(tunnel.marks)))
    return [
        f"packets that were slow, outside the tunnel, and why: {', '.join(slow)}",
        f"connections in the tunnel: {'marked' if tunnel.is_marked else 'NOT marked'} ({marks}), "
        f"{'slow' if tunnel.is_slow else 'NOT slow'} ({tunnel_found(tunnel)})",
        f"seen on the WAN: {wan.encrypted} packets of the tunnel encrypted, {wan.clear_text} in clear",
        f"warning: with masquerade, and nothing to exempt them, {wan.clear_text_if_careless} packets "
        "for the tunnel left in clear; fasttrack's rules exempt them",
    ]


def tunnel_found(tunnel: TunnelState) -> str:
    """The tunnel's numbers."""
    return (
        f"{tunnel.flows} flows, {tunnel.measurement.fast_packets} packets fast, "
        f"{tunnel.slow_packets} slow because of IPsec"
    )


def as_json(results: Results, checks: list[Check]) -> dict[str, Any]:
    """All numbers."""
    tunnel = results.tunnel
    return {
        "held": all(check.held for check in checks),
        "checks": [asdict(check) for check in checks],
        "kinds": {kind.name: kind_as_json(results, kind) for kind in KINDS},
        "tunnel": {
            "marks": tunnel.marks,
            "flows": tunnel.flows,
            "fast_packets": tunnel.measurement.fast_packets,
            "slow_packets": tunnel.slow_packets,
        },
        "wan": asdict(results.wan),
        "measurements": [asdict(measurement) for measurement in results.measurements],
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
                "bits_per_s": results.median(kind, mode, lambda m: m.bits_per_s),
                "packets_per_s": results.median(kind, mode, lambda m: m.packets_per_s),
                "cpu_ns_per_packet": results.median(kind, mode, lambda m: m.cpu_ns_per_packet),
                "load": results.median(kind, mode, lambda m: m.load),
            }
            for mode in COMPARED
        },
        # In samples.
        "profile": {mode.name: dict(results.profiles[kind.name, mode.name]) for mode in (OFF, ON)},
    }
