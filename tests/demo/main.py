# SPDX-License-Identifier: GPL-2.0

"""The demo, in the guest. It prints what it does and finds, and the numbers as JSON, the lines of which
begin with a word of their own, for `run` to take them apart.

Exit status: 0 if all that is claimed held, 1 if not."""

import json
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import modes
import report
import topology
import traffic
import wire
from measure import Measurement, measure
from modes import CARELESS, COMPARED, OFF, ON
from sampling import Sampler, attribute
from system import Failure, inside, run

ROUNDS = 5
SECONDS = 3
# What goes through the tunnel takes the slow path in every mode. That shows in fewer rounds.
TUNNEL_ROUNDS = 2

CARELESS_PACKETS = 20


def main() -> int:
    begin = time.monotonic()
    topology.build()
    modes.load_module()
    traffic.start_servers()
    clear_text, encrypted = wire.clear_text(), wire.encrypted()
    switch = modes.Switch()
    switch.to(OFF)
    await_connectivity()
    say(f"{ROUNDS} rounds of {SECONDS} seconds for each kind of traffic and each mode")

    sampler = Sampler(topology.router_threads(), Path("/tmp/perf.data"))
    measurements = []
    tunnel = None
    for number in range(1, ROUNDS + 1):
        for mode in turned(COMPARED, number):
            switch.to(mode)
            measurements += measure_kinds(traffic.PLAIN, mode, number)
            if number <= TUNNEL_ROUNDS:
                measurements += measure_kinds((traffic.TUNNEL,), mode, number)
                if mode is ON:
                    tunnel = report.TunnelState(measurements[-1], connection_marks(), tunnel_flows())
    sampler.stop()
    assert tunnel

    switch.to(OFF)
    wan = report.Wan(clear_text.count(), encrypted.count(), careless(switch, clear_text))
    say("evaluating the profile")
    windows = [(measurement.begin_ns, measurement.end_ns) for measurement in measurements]
    profiles = attribute(sampler.samples(), windows)

    results = report.Results(measurements, profiles, tunnel, wan)
    print(report.table(results))
    checks = report.check(results)
    for line in json.dumps(report.as_json(results, checks), indent=2).splitlines():
        print(report.JSON_LINE, line)
    say(f"took {time.monotonic() - begin:.0f} seconds")
    print(report.verdict(checks))
    return 0 if all(check.held for check in checks) else 1


def say(text: str) -> None:
    """Tells the person who waits what is going on."""
    print(f"demo: {text}", flush=True)


def turned(compared: tuple[modes.Mode, ...], number: int) -> tuple[modes.Mode, ...]:
    """The modes in another order in each round, so that none is always the first."""
    first = number % len(compared)
    return compared[first:] + compared[:first]


def measure_kinds(kinds: tuple[traffic.Kind, ...], mode: modes.Mode, number: int) -> list[Measurement]:
    """Measures some kinds in a mode, and says what was found."""
    measured = []
    for kind in kinds:
        measurement = measure(kind, mode, number, SECONDS)
        say(report.progress(kind, mode, measurement))
        measured.append(measurement)
    return measured


def await_connectivity() -> None:
    """Makes sure that both ways work before anything is measured."""
    for address in (topology.INTERNET_HOST, topology.BRANCH_HOST):
        run("ping", "-q", "-c", "2", "-i", "0.2", "-W", "5", address, namespace="lan")


def connection_marks() -> list[int]:
    """The marks of the router's connections to the branch."""
    lines = run("conntrack", "-L", "-p", "tcp", "-d", topology.BRANCH_HOST, namespace="router").splitlines()
    fields = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return [int(field["mark"]) for field in fields]


def tunnel_flows() -> int:
    """How many of the module's flows are about the branch."""
    flows = [item["flow"] for item in modes.listing("flows")]
    return sum(topology.BRANCH_HOST in (flow["saddr"], flow["daddr"]) for flow in flows)


def careless(switch: modes.Switch, clear_text: wire.Tap) -> int:
    """What happens to packets to the branch if they are masqueraded: how many leave in clear."""
    switch.to(CARELESS)
    before = clear_text.count()
    with inside("lan"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(CARELESS_PACKETS):
            sender.sendto(b"for the branch's eyes only", (topology.BRANCH_HOST, traffic.UDP_PORT))
            time.sleep(0.02)
    time.sleep(0.5)
    return clear_text.count() - before


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        sys.exit(1)
