# SPDX-License-Identifier: GPL-2.0

"""The demo, in the guest. It prints what it does and what it finds, and the numbers as JSON, whose
lines begin with a word of their own, so that `run` can take them apart.

Exit status: 0 if all that is claimed held, 1 if not."""

import json
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import modes
import report
import topology
import traffic
import wire
from measure import Measurement, measure
from modes import CARELESS, COMPARED, OFF, ON, Switch
from sampling import Sampler, attribute
from system import Failure, inside, run

ROUNDS = 15
SECONDS = 2
# What goes through the tunnel takes the slow path in every mode. That shows in fewer rounds.
TUNNEL_ROUNDS = 6
WARM_UP_SECONDS = 1
PROFILE_SECONDS = 3

CARELESS_PACKETS = 20


def main() -> int:
    begin = time.monotonic()
    topology.build()
    modes.load_module()
    traffic.start_servers()
    clear_text, encrypted = wire.clear_text(), wire.encrypted()
    switch = Switch()

    warm_up(switch)
    say(f"{ROUNDS} rounds of {SECONDS} seconds for each kind of traffic in each mode")
    measurements, tunnel = measure_all(switch)
    say("taking a profile, apart from the measurements, so that it does not slow them down")
    profiles = take_profiles(switch)
    seen_in_clear, seen_encrypted = clear_text.count(), encrypted.count()
    wan = report.Wan(seen_in_clear, seen_encrypted, be_careless(switch, clear_text))

    results = report.Results(measurements, profiles, tunnel, wan)
    checks = report.check(results)
    print(report.table(results))
    for line in json.dumps(report.as_json(results, checks), indent=2).splitlines():
        print(report.JSON_LINE, line)
    say(f"took {time.monotonic() - begin:.0f} seconds")
    print(report.verdict(checks))
    return 0 if all(check.held for check in checks) else 1


def say(text: str) -> None:
    """Tells the person who waits what is going on."""
    print(f"demo: {text}", flush=True)


def warm_up(switch: Switch) -> None:
    """Makes sure that everything works, and that nothing happens for the first time later on: an
    emulated processor translates code when it meets it."""
    for mode in COMPARED:
        switch.to(mode)
        for kind in traffic.KINDS:
            kind.send(WARM_UP_SECONDS)


def measure_all(switch: Switch) -> tuple[list[Measurement], report.TunnelState]:
    """Measures in rounds. What is to be compared is measured shortly one after another, in another
    order in each round, so that no mode is always the first."""
    measurements: list[Measurement] = []
    tunnel = None
    for number in range(1, ROUNDS + 1):
        turn = number % len(COMPARED)
        for kind in traffic.KINDS if number <= TUNNEL_ROUNDS else traffic.PLAIN:
            measured = {}
            for mode in COMPARED[turn:] + COMPARED[:turn]:
                switch.to(mode)
                measured[mode] = measure(kind, mode, number, SECONDS)
                if (kind, mode) == (traffic.TUNNEL, ON):
                    tunnel = report.TunnelState(measured[mode], tunnel_marks(), tunnel_flows())
            say(report.progress(f"{number}/{ROUNDS}", kind, measured))
            measurements += measured.values()
    assert tunnel
    return measurements, tunnel


def tunnel_marks() -> list[int]:
    """The marks of the router's connections to the branch."""
    lines = run(f"conntrack -L -p tcp -d {topology.BRANCH_HOST}", "router").splitlines()
    entries = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    return [int(entry["mark"]) for entry in entries]


def tunnel_flows() -> int:
    """How many of the module's flows are about the branch."""
    flows = [item["flow"] for item in modes.listing("flows")]
    return sum(topology.BRANCH_HOST in (flow["saddr"], flow["daddr"]) for flow in flows)


def take_profiles(switch: Switch) -> dict[tuple[str, str], Counter[str]]:
    """What the router's CPU time goes to, for each kind of traffic, without and with fasttrack."""
    names, windows = [], []
    sampler = Sampler(Path("/tmp/perf.data"))
    for mode in (OFF, ON):
        switch.to(mode)
        for kind in traffic.KINDS:
            begin_ns = time.monotonic_ns()
            kind.send(PROFILE_SECONDS)
            names.append((kind.name, mode.name))
            windows.append((begin_ns, time.monotonic_ns()))
    sampler.stop()
    samples = sampler.samples(topology.router_threads())
    return dict(zip(names, attribute(samples, windows), strict=True))


def be_careless(switch: Switch, clear_text: wire.Tap) -> int:
    """Sends to the branch without an exemption from masquerading. Gives how many packets left in
    clear."""
    switch.to(CARELESS)
    before = clear_text.count()
    with inside("lan"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(CARELESS_PACKETS):
            sender.sendto(b"for the branch only", (topology.BRANCH_HOST, traffic.UDP_PORT))
            time.sleep(0.02)
    time.sleep(0.5)
    return clear_text.count() - before


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(f"demo: {failure}")
