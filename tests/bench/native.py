# SPDX-License-Identifier: GPL-2.0
"""How long a packet takes, in nanoseconds, on a kernel that runs at this machine's speed.

A machine has other things to do, and what a nanosecond is worth changes from one moment to the next. So
each path has a network of its own, with everything ready, and all take turns, many times: in each round
every path gets some batches of packets, within the same fraction of a second, of which the least
interrupted one counts. What is compared is what the paths took in the same round. Of the rounds' ratios the
median counts; the quartiles say how much they scatter.

The generator of each network is a thread of the kernel; it leaves out of its time whatever else ran meanwhile
on its processor. All are started at once, and there is one processor, so they run one after the other.
"""

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import matrix
import paths
import picture
import report
import targets
from generator import Generator
from measure import SMALL, WARM_UP, establish, measure
from network import IPV4, Network

# Packets of a batch: long enough for the clock of the generator, microseconds, and short enough that most
# are not interrupted on a busy machine. Of 100 000 flows more, so that there are those of many.
BATCH, LARGE_BATCH = 1024, 4096
# In a round each path has so many in a row. The first one fetches what the other paths have thrown out of the
# caches; of the others the one counts that was least interrupted.
IN_A_ROW = 5
# Of a path on which a packet takes long.
FEW = 128
# A packet of each flow in each sampling interval takes the slow path; more than this share must not. Where there are very
# many flows one has as many packets as there are rounds, and they last for more than an interval.
SAMPLED = 0.05


class ManyRules(paths.Slow):
    """What a router with a large firewall does."""

    name, title = "slow-3000", "slow path, 3 000 rules"
    rules = 3000
    batch = FEW


# Measured for a single connection of small packets only.
MANY = ManyRules()
PATHS = (*paths.UNTRACKED, *paths.TRACKED, MANY)
SHOWN = (*paths.ALL, MANY)
# What others are compared with: what counts what they count.
OURS = {path.accounting: path.name for path in paths.TRACKED if path.name.startswith(paths.Fasttrack.name)}
TITLES = {path.name: path.title for path in PATHS}


@dataclass(frozen=True)
class Cell:
    """What was measured."""

    path: str
    family: int
    nat: bool
    bytes: int
    flows: int
    # Medians, of the nanoseconds for a packet, and of how many times as long as fasttrack it took in the same
    # round, with its quartiles. fasttrack is the one that counts what this path counts.
    ns: float
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    # The quartiles of how many times as long as the bare redirect it took in the same round.
    redirects: list[float] | None = None


class Lane:
    """A path, with the network that is all its own."""

    def __init__(self, path):
        self.path = path
        self.network = Network(name=f"-{path.name}")
        self.batch = BATCH
        self.row = None

    def enter(self, family, flows, nat):
        """Has packets of these flows take the path."""
        generator = Generator(self.network, family)
        if self.path.tracked:
            establish(self.network, generator, family, flows, nat, self.path.accounting)
        self.path.enter(self.network, family)
        self.path.learn(lambda: generator.send(flows, SMALL, flows.count))
        if self.path.tracked:
            self.network.add_rules(getattr(self.path, "rules", 30))

    def leave(self):
        """Undoes that."""
        if self.path.tracked:
            self.network.remove_rules()
        self.path.leave(self.network)
        if self.path.tracked:
            self.network.clear()

    def ready(self, family, flows, size, nat):
        """Makes sure that packets take the path, and has the generator ready for `start`. Gives whether
        they do."""
        generator = Generator(self.network, family)
        self.batch = getattr(self.path, "batch", BATCH if flows.count <= BATCH else LARGE_BATCH)
        rows = self._rows(flows)
        # All flows that there will be packets of are confirmed then.
        for some in set(rows):
            generator.batches(some, size, self.batch, WARM_UP)
        try:
            measure(self.network, self.path, generator, family, flows, size, family.wan if nat else family.host, 1)
        except paths.NotTaken:
            return False
        except AssertionError as error:
            raise AssertionError(f"{self.path.title}, {family}, {size} bytes, {flows.count} flows: {error}") from error
        self.row = generator.row(rows, size, self.batch)
        self._before = self.path.counters(self.network, family)
        return True

    @staticmethod
    def _rows(flows):
        """What the batches of a row are of: of very many flows, each has some of its own, so that none has been met since
        the last round."""
        return flows.parts(IN_A_ROW) if flows.count > BATCH else [flows] * IN_A_ROW

    def finish(self, family, rounds):
        """Makes sure that all packets since `ready` took the path."""
        self.row.close()
        grown = self.path.counters(self.network, family)
        grown = {name: grown[name] - self._before[name] for name in grown}
        sent = rounds * self.batch * IN_A_ROW
        wanted = self.path.expected(sent)
        sampled = grown.get("sampled", 0)
        if sampled:
            if sampled > SAMPLED * sent:
                raise AssertionError(f"{sampled} of {sent} packets of {self.path.title} were sampled")
            wanted |= {"fast": sent - sampled, "slow": sampled, "sampled": sampled, "forwarded": sampled,
                       "met rules": sampled}
        if grown != wanted:
            raise AssertionError(f"{self.path.title}: counters grew by {grown} instead of {wanted}")


class Race:
    """All lanes, and what was measured."""

    def __init__(self, rounds, say):
        self._lanes = []
        self._rounds = rounds
        self._say = say
        self._threads = ThreadPoolExecutor(len(PATHS))
        self.cells = []

    def prepare(self, chosen):
        """Makes the networks of these paths."""
        self._lanes = [Lane(path) for path in chosen]
        Network.settle(15)

    def setting(self, family, flows, nat, sizes):
        """Measures what is to be measured with the same connections."""
        lanes = [lane for lane in self._lanes if lane.path is not MANY or is_chosen(family, flows, nat)]
        for lane in lanes:
            lane.enter(family, flows, nat)
        for size in sizes:
            self._size(lanes if size == SMALL else [lane for lane in lanes if lane.path is not MANY],
                       family, flows, nat, size)
        for lane in lanes:
            lane.leave()

    def _size(self, lanes, family, flows, nat, size):
        # All at once: most of it is to wait for generators, and nothing of it is measured.
        are_ready = self._threads.map(lambda lane: lane.ready(family, flows, size, nat), lanes)
        running = [lane for lane, is_ready in zip(lanes, are_ready, strict=True) if is_ready]
        rounds = [self._round(running) for _ in range(self._rounds)]
        for lane in running:
            lane.finish(family, self._rounds)
        for lane in running:
            name = lane.path.name
            cell = Cell(name, family.version, nat, size, flows.count,
                        round(statistics.median(times[name] for times in rounds), 1))
            if OURS[lane.path.accounting] in rounds[0]:
                low, middle, high = quartiles(rounds, name, OURS[lane.path.accounting])
                cell = replace(cell, ratio=middle, low=low, high=high)
            if paths.Floor.name in rounds[0]:
                cell = replace(cell, redirects=quartiles(rounds, name, paths.Floor.name))
            self.cells.append(cell)
            self._say(line(cell))

    def _round(self, lanes):
        list(self._threads.map(lambda lane: lane.row.start(), lanes))
        return {lane.path.name: lane.row.took() for lane in lanes}


def quartiles(rounds, name, other):
    """Of how many times as long as another path one took in the same round."""
    return [round(ratio, 3) for ratio in statistics.quantiles((times[name] / times[other] for times in rounds), n=4)]


def is_chosen(family, flows, nat):
    """Whether these are the connections that are measured with many rules, too."""
    return family is IPV4 and flows.count == 1 and nat


def line(cell):
    """A cell, as soon as it has been measured."""
    words = f"{TITLES[cell.path]}, {report.where(vars(cell))}: {cell.ns:.0f} ns"
    return words if cell.ratio is None else f"{words}, {cell.ratio:.2f} times fasttrack's ({cell.low:.2f} to {cell.high:.2f})"


def main(selection, say):
    """Measures and reports. Gives the exit status."""
    race = Race(selection.rounds, say)
    race.prepare(matrix.ways(selection, PATHS))
    for family in matrix.families(selection):
        for flows in matrix.flows(selection):
            for nat in matrix.nats(selection):
                race.setting(family, flows, nat, matrix.sizes(selection))
    results = {"rounds": selection.rounds, "cells": [asdict(cell) for cell in race.cells]}
    print(table(results))
    targets.show("How fast it is to be", targets.native(results))
    report.write("native.json", report.lines(results))
    report.write("native.svg", picture.draw(drawn(results), "Nanoseconds"))
    return 0


def drawn(results):
    """What is drawn: the bare redirect's figures, and the others' as many times as large as they were in the same
    rounds."""
    redirect = {report.key(cell)[1:]: cell["ns"] for cell in results["cells"] if cell["path"] == paths.Floor.name}
    return {report.key(cell): redirect[report.key(cell)[1:]] * cell["redirects"][1]
            for cell in results["cells"] if cell["redirects"]}


def table(results):
    """The results for people: the time, and how many times that of fasttrack it is."""
    known = {report.key(cell): cell for cell in results["cells"]}
    columns = sorted({key[3:] for key in known})
    lines = ["", "Nanoseconds a packet, and how many times as long as fasttrack's it took in the same round:",
             f"medians of {results['rounds']} rounds; in brackets half of the distance between the quartiles"]
    for family, nat in sorted({key[1:3] for key in known}):
        lines += ["", *report.heads(family, nat, columns, 22)]
        for path in SHOWN:
            row = [known.get((path.name, family, nat, *column)) for column in columns]
            if any(row):
                lines.append(f"  {path.title:24}" + "".join(map(entry, row)))
    return "\n".join([*lines, ""])


def entry(cell):
    """A figure in the table."""
    if cell is None:
        return f"{'-':>22}"
    if cell["ratio"] is None:
        return f"{cell['ns']:8.0f}" + " " * 14
    return f"{cell['ns']:8.0f} {cell['ratio']:6.2f} ({(cell['high'] - cell['low']) / 2:.2f})"
