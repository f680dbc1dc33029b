# SPDX-License-Identifier: GPL-2.0
"""How long the router takes for a packet of an IPsec tunnel, and so how many it carries in a second, on a kernel that
runs at this machine's speed.

As in native.py each path has a network of its own, with everything ready, and in each round all take turns, the
router whose ingress hook drops everything among them: what that takes has to do with making the packets, of which
the other gateway encrypts those that come in; what the others took more in the same round is the router's own. There
is one processor, which does nothing else meanwhile, so the time is its own as well.
"""

import statistics
from concurrent.futures import ThreadPoolExecutor

import ipsec
import report
from generator import Distant, Flows, Generator, Row
from ipsec import CIPHERS, IN, MASQUERADE, OUT, SIZES, Dropped, Tunnelled
from measure import BATCH, SMALL
from network import IPV4, TRACK
from paths import Flowtable, NotTaken

#: In a round each path has so many batches in a row, of which the least interrupted one counts.
IN_A_ROW = 5
#: A packet of each flow in each sampling interval takes the slow path; more than this share must not.
STRAY = 0.02
OURS = "accelerate"


class Lane:
    """A path, with a tunnel that is all its own."""

    def __init__(self, path, name, ways=(OUT, IN)):
        self.path, self.name, self.ways = path, name, ways
        self.network = Tunnelled(f"-{name}")
        self.generators = {OUT: Generator(self.network, IPV4), IN: Distant(self.network, IPV4)}

    def begin(self, cipher):
        """Has packets take the path, encrypted by the cipher."""
        self.network.use(cipher)
        if self.path.tracked:
            self.network.router.nft(TRACK)
            self.network.router.nft(MASQUERADE)
        self.path.enter(self.network, IPV4)
        for _ in range(3):
            for generator in self.generators.values():
                generator.send(Flows(), SMALL, 1)
        if self.path.tracked:
            self.network.add_rules()

    def is_taken(self, way, size):
        """Whether packets do."""
        if way not in self.ways:
            return False
        try:
            if self.path.tracked:
                ipsec.measure(self.network, self.generators[way], self.path, way, size)
        except NotTaken:
            return False
        return True

    def counters(self, way):
        """Numbers that tell which way packets took."""
        return ipsec.counters(self.network, self.path, way) if self.path.tracked else {}

    def check(self, before, way, sent):
        """Makes sure that they all did, since the counters were as they were before."""
        grown = {name: value - before[name] for name, value in self.counters(way).items()}
        if not grown:
            return
        expected = self.path.expected(sent) | {"reached": sent, "transformed": sent}
        wrong = {name: value for name, value in grown.items() if abs(value - expected[name]) > STRAY * sent}
        if wrong or (grown["reached"], grown["transformed"]) != (sent, sent):
            raise AssertionError(f"{self.path.title}, {way}: counters grew by {grown} instead of {expected}")

    def end(self):
        """Undoes `begin`."""
        if self.path.tracked:
            self.network.remove_rules()
        self.path.leave(self.network)
        self.network.clear()


def main(selection, say):
    """Measures and reports. Gives the exit status."""
    lanes = [Lane(path, path.name) for path in ipsec.PATHS]
    lanes += [Lane(Dropped("lan0"), "drop-out", (OUT,)), Lane(Dropped("wan0"), "drop-in", (IN,))]
    cells = []
    for cipher in CIPHERS:
        for lane in lanes:
            lane.begin(cipher)
        for way in (OUT, IN):
            for size in SIZES:
                for cell in race([lane for lane in lanes if lane.is_taken(way, size)], way, size, selection.rounds):
                    cells.append({"path": cell.pop("path"), "cipher": cipher, "way": way, "bytes": size} | cell)
                    say(line(cells[-1]))
        for lane in lanes:
            lane.end()
    show(cells, selection.rounds)
    report.write("native-ipsec.json", report.lines({"rounds": selection.rounds, "cells": cells}))
    return judge(cells)


def race(lanes, way, size, rounds):
    """What packets took on each path: the median of what is the router's own, and how many times as long as with
    fasttrack all of it took in the same round, with its quartiles."""
    rows = {lane.name: lane.generators[way].row([Flows()] * IN_A_ROW, size, BATCH) for lane in lanes}
    before = {lane.name: lane.counters(way) for lane in lanes}
    with ThreadPoolExecutor(len(rows)) as threads:
        times = [one_round(rows, threads) for _ in range(rounds)]
    for lane in lanes:
        rows[lane.name].close()
        lane.check(before[lane.name], way, rounds * IN_A_ROW * BATCH)
    for name in times[0].keys() - {f"drop-{way}"}:
        low, middle, high = statistics.quantiles((figures[name] / figures[OURS] for figures in times), n=4)
        own = statistics.median(figures[name] - figures[f"drop-{way}"] for figures in times)
        yield {"path": name, "ns": round(own, 1), "ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def one_round(rows, threads):
    """Has all send. Gives what a packet of each took."""
    list(threads.map(Row.start, rows.values()))
    return {name: row.took() for name, row in rows.items()}


def place(cell):
    """What a cell is about, but for the path."""
    return f"{cell['cipher']}, {cell['way']}, {cell['bytes']} B"


def line(cell):
    """A cell, as soon as it has been measured."""
    title = next(path.title for path in ipsec.PATHS if path.name == cell["path"])
    return (f"{title}, {place(cell)}: {cell['ns']:.0f} ns; with what makes the packet {cell['ratio']:.2f} times fasttrack's "
            f"({cell['low']:.2f} to {cell['high']:.2f})")


def show(cells, rounds):
    """Prints a table."""
    print("\nPackets of a tunnel that the router carries in a second; in brackets the nanoseconds for one, and how many times "
          f"as long it takes as with fasttrack: medians of {rounds} rounds\n")
    print(f"{'':26}" + "".join(f"{path.title:>26}" for path in ipsec.SHOWN))
    for where in dict.fromkeys(map(place, cells)):
        row = {cell["path"]: cell for cell in cells if place(cell) == where}
        own = row[OURS]["ns"]
        entries = [f"{1e9 / row[path.name]['ns']:.0f} ({row[path.name]['ns']:.0f}, {row[path.name]['ns'] / own:.2f})"
                   if path.name in row else "-" for path in ipsec.SHOWN]
        print(f"  {where:24}" + "".join(f"{entry:>26}" for entry in entries))
    print()


def judge(cells):
    """Whether it is worth anything: faster than the slow path everywhere. Gives the exit status. What the flowtable takes
    differs from that by less than rounds do; instructions tell them apart, see ipsec.py."""
    others = [cell for cell in cells if cell["path"] != OURS and cell["ratio"] <= 1]
    for cell in others:
        print(f"no faster than this: {line(cell)}")
    return int(any(cell["path"] != Flowtable.name for cell in others))
