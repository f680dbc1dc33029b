# SPDX-License-Identifier: GPL-2.0
"""The benchmark, in the guest. See `run`."""

import argparse
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path as File

HERE = File(__file__).parent
sys.path.insert(0, str(HERE.parent))

import growth  # noqa: E402  (found through the path above, as are those below)
import links  # noqa: E402
import paths  # noqa: E402
import picture  # noqa: E402
import report  # noqa: E402
from generator import Flows, Generator  # noqa: E402
from measure import SMALL, establish, measure  # noqa: E402
from network import FAMILIES, Network  # noqa: E402
from paths import NotTaken  # noqa: E402

SIZES = (SMALL, 1400)
FLOWS = (Flows(), Flows(1024), Flows(3125, 32))


@dataclass(frozen=True)
class Cell:
    """What was measured."""

    path: str
    family: int
    nat: bool
    bytes: int
    flows: int
    # Instructions a packet; `None` if no packet took the path.
    instructions: float | None


class Bench:
    """Measures, and remembers."""

    def __init__(self, network, selection):
        self.network = network
        self.selection = selection
        self.cells = []
        self._missing = set()

    def matrix(self):
        """All that was selected."""
        for family in self._selected("family", FAMILIES, lambda family: family.version):
            for flows in self._selected("flows", FLOWS, lambda flows: flows.count):
                self._untracked(family, flows)
                for nat in self._selected("nat", (False, True), lambda nat: "masquerade" if nat else "none"):
                    for accounting in (False, True):
                        self._tracked(family, flows, nat, accounting)

    def _selected(self, name, values, key):
        wanted = getattr(self.selection, name)
        return [value for value in values if not wanted or str(key(value)) in wanted]

    def _untracked(self, family, flows):
        generator = Generator(self.network, family)
        for path in self._selected("path", paths.UNTRACKED, lambda path: path.name):
            path.enter(self.network, family)
            self._sizes(path, generator, family, flows, False)
            path.leave(self.network)

    def _tracked(self, family, flows, nat, accounting):
        chosen = [path for path in self._selected("path", paths.TRACKED, lambda path: path.name)
                  if path.accounting == accounting and (path.name, family) not in self._missing]
        if not chosen:
            return
        generator = Generator(self.network, family)
        establish(self.network, generator, family, flows, nat, accounting)
        for path in chosen:
            path.enter(self.network, family)
            path.learn(lambda: generator.send(flows, SMALL, flows.count))
            self.network.add_rules()
            self._sizes(path, generator, family, flows, nat)
            self.network.remove_rules()
            path.leave(self.network)
        self.network.clear()

    def _sizes(self, path, generator, family, flows, nat):
        for size in self._selected("bytes", SIZES, int):
            source = family.wan if nat else family.host
            try:
                figure = measure(self.network, path, generator, family, flows, size, source)
            except NotTaken:
                self._missing.add((path.name, family))
                figure = None
            except AssertionError as error:
                raise AssertionError(f"{path.title}, {family}, {size} bytes, {flows.count} flows, "
                                     f"{'masquerade' if nat else 'no NAT'}: {error}") from error
            cell = Cell(path.name, family.version, nat, size, flows.count, figure)
            self.cells.append(cell)
            say(report.line(cell))


def say(text):
    """Tells the person who waits what is going on."""
    print(f"bench: {text}", flush=True)


def arguments():
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…")
    parser.add_argument("what", nargs="?", choices=("matrix", "growth", "links"), default="matrix")
    parser.add_argument("--path", action="append",
                        choices=[path.name for path in (*paths.ALL, links.UPPER_FLOOR)])
    parser.add_argument("--family", action="append", choices=("4", "6"))
    parser.add_argument("--nat", action="append", choices=("none", "masquerade"))
    parser.add_argument("--bytes", action="append", choices=[str(size) for size in SIZES])
    parser.add_argument("--flows", action="append", choices=[str(flows.count) for flows in FLOWS])
    parser.add_argument("--link", action="append", choices=[link.name for link in links.LINKS],
                        help="with `links`: what the router's devices are")
    return parser.parse_args()


def prepare():
    """Loads what is needed, and has room for all flows."""
    subprocess.run(["modprobe", "--all", "pktgen", "nf_conntrack", "nf_flow_table", "fasttrack"], check=True)
    # Also the limit, which is for all namespaces together.
    File("/sys/module/nf_conntrack/parameters/hashsize").write_text("262144\n", encoding="ascii")
    File("/proc/sys/net/netfilter/nf_conntrack_max").write_text("2000000\n", encoding="ascii")


def main():
    """Measures and reports. Gives the exit status."""
    selection = arguments()
    begin = time.monotonic()
    prepare()
    if selection.what == "links":
        return links.main(selection, say)
    network = Network()
    if selection.what == "growth":
        return growth.main(network, say)
    bench = Bench(network, selection)
    bench.matrix()
    results = {"kernel": platform.release(), "cells": [asdict(cell) for cell in bench.cells]}
    print(report.table(results))
    report.write("bench.json", report.as_json(results))
    report.write("bench.svg", picture.draw(results))
    say(f"took {time.monotonic() - begin:.0f} seconds of the guest's time")
    baseline = HERE / "baseline.json"
    if not baseline.exists():
        say("there is no baseline to compare with")
        return 0
    return report.compare(results, baseline)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AssertionError as error:
        sys.exit(f"bench: {error}")
