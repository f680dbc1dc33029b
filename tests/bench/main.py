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

import cpus  # noqa: E402  (found through the path above, as are those below)
import growth  # noqa: E402
import ipsec  # noqa: E402
import lines  # noqa: E402
import links  # noqa: E402
import matrix  # noqa: E402
import merged  # noqa: E402
import native  # noqa: E402
import paths  # noqa: E402
import picture  # noqa: E402
import report  # noqa: E402
import targets  # noqa: E402
import tunnel_race  # noqa: E402
from generator import Generator  # noqa: E402
from measure import SMALL, establish, measure  # noqa: E402
from network import Network  # noqa: E402
from paths import NotTaken  # noqa: E402

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
        for family in matrix.families(self.selection):
            for flows in matrix.flows(self.selection):
                self._untracked(family, flows)
                for nat in matrix.nats(self.selection):
                    for accounting in (False, True):
                        self._tracked(family, flows, nat, accounting)

    def _untracked(self, family, flows):
        generator = Generator(self.network, family)
        for path in matrix.ways(self.selection, paths.UNTRACKED):
            path.enter(self.network, family)
            self._sizes(path, generator, family, flows, False)
            self._leave(path)

    def _tracked(self, family, flows, nat, accounting):
        chosen = [path for path in matrix.ways(self.selection, paths.TRACKED)
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
            self._leave(path)
        self.network.clear()

    def _leave(self, path):
        if self.selection.symbols:
            with File(self.selection.symbols).open("ab") as symbols:
                symbols.write(File("/proc/kallsyms").read_bytes())
        path.leave(self.network)

    def _sizes(self, path, generator, family, flows, nat):
        for size in matrix.sizes(self.selection):
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
    parser.add_argument("what", nargs="?", choices=("all", "matrix", "growth", "learning", "links", "ipsec", "merged", "native", "cpus",
                                                          "sharing", "lines"),
                        help="`all` is `matrix` and `growth`, and what is done unless only some cells are chosen")
    parser.add_argument("--no-growth", action="store_true", help="with `all`: leave `growth` to somebody else")
    parser.add_argument("--path", action="append",
                        choices=[path.name for path in (*paths.ALL, links.UPPER_FLOOR, native.MANY, *ipsec.ONLY_HERE)],
                        help="which cells, as the next four say, too")
    parser.add_argument("--family", action="append", choices=("4", "6"))
    parser.add_argument("--nat", action="append", choices=("none", "masquerade"))
    parser.add_argument("--bytes", action="append", choices=[str(size) for size in matrix.SIZES])
    parser.add_argument("--flows", action="append", choices=[str(flows.count) for flows in matrix.FLOWS])
    parser.add_argument("--link", action="append", choices=[link.name for link in links.LINKS],
                        help="with `links`: what the router's devices are")
    parser.add_argument("--same", action="store_true", help="with `sharing`: packets of the same connections on both")
    parser.add_argument("--most", type=int, default=1_000_000,
                        help="with `growth`: how many connections at most")
    parser.add_argument("--tunnel", action="store_true", help="with `native`: packets of an IPsec tunnel instead")
    parser.add_argument("--rounds", type=int, default=48,
                        help="with `native`: how often each path has its turn")
    parser.add_argument("--queue", action="store_true", help="give the router's devices a queue, as a network card has")
    parser.add_argument("--symbols", help="to which file to add the kernel's symbols, before a path's modules go")
    selection = parser.parse_args()
    if not selection.what:
        chosen = any((selection.path, selection.family, selection.nat, selection.bytes, selection.flows))
        selection.what = "matrix" if chosen else "all"
    return selection


def prepare(buckets=262_144):
    """Loads what is needed, and has room for all flows."""
    module = HERE.parent / "fasttrack.ko"
    if module.exists():
        subprocess.run(["insmod", module], check=True)
    else:
        subprocess.run(["modprobe", "--all", "pktgen", "nf_conntrack", "nf_flow_table", "fasttrack"], check=True)
    # Also the limit, which is for all namespaces together.
    File("/sys/module/nf_conntrack/parameters/hashsize").write_text(f"{buckets}\n", encoding="ascii")
    File("/proc/sys/net/netfilter/nf_conntrack_max").write_text("2000000\n", encoding="ascii")


def main():
    """Measures and reports. Gives the exit status."""
    selection = arguments()
    begin = time.monotonic()
    if selection.what == "native":
        # Every path has connections of its own here.
        prepare(len(paths.TRACKED) * 262_144)
        return (tunnel_race if selection.tunnel else native).main(selection, say)
    prepare()
    if selection.what == "links":
        return links.main(selection, say)
    if selection.what in ("cpus", "sharing"):
        return cpus.main(selection, say)
    if selection.what == "ipsec":
        return ipsec.main(selection, say)
    if selection.what == "merged":
        return merged.main(selection, say)
    network = Network()
    network.settle()
    status = 0
    if selection.what == "lines":
        return lines.main(network, selection, say)
    if selection.what == "learning":
        return growth.learning(network, say)
    if selection.what != "growth":
        status = measure_matrix(network, selection)
    if selection.what != "matrix" and not selection.no_growth:
        status |= growth.main(network, selection.most, say)
    say(f"took {time.monotonic() - begin:.0f} seconds of the guest's time")
    return status


def measure_matrix(network, selection):
    """Measures and reports the matrix, and some of it with queues. Gives the exit status."""
    results = {"kernel": platform.release(), "cells": [], "queued": []}
    if not selection.queue:
        results["cells"] = cells(network, selection)
        print(report.table(results["cells"], "between devices without a queue"))
    if selection.queue or selection.what == "all":
        network.queue()
        say("the router's devices have a queue now")
        results["queued"] = cells(network, selection if selection.queue else matrix.FEWEST)
        network.unqueue()
        print(report.table(results["queued"], "between devices that have a queue, as network cards do"))
    report.write("bench.json", report.as_json(results))
    # fasttrack passes a queue that is not there, the redirect does not: they are to be compared where it is.
    report.write("bench.svg", picture.draw(report.figures(results["queued"] or results["cells"]), "Instructions"))
    for what, title in (("cells", "without a queue"), ("queued", "with a queue")):
        targets.show(f"What is wanted of the instructions that are more than the bare redirect takes, {title}",
                     targets.bench(results[what]))
    baseline = HERE / "baseline.json"
    if not baseline.exists():
        say("there is no baseline to compare with")
        return 0
    return report.compare(results, baseline)


def cells(network, selection):
    """Measures the matrix, as far as it is selected."""
    bench = Bench(network, selection)
    bench.matrix()
    return [asdict(cell) for cell in bench.cells]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AssertionError as error:
        sys.exit(f"bench: {error}")
