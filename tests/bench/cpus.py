# SPDX-License-Identifier: GPL-2.0
"""Two processors: how many packets each way through the router carries with one of them, and with both; and, for
`sharing`, packets on both while a plugin of QEMU looks at what they write.

Each processor has connections of its own, as the queues of a network card give them to it.
"""

import json
import statistics

import paths
import report
import targets
from generator import Flows, Generator, timed
from measure import SMALL, establish
from network import IPV4, Network

CPUS = 2
#: Packets of one processor in a run.
COUNT = 15_000
ROUNDS = 15
WAYS = (paths.Fasttrack(), paths.FasttrackAccounting(), paths.Flowtable(), paths.Slow())


#: The connections of all, and of one.
ALL = Flows(7 * CPUS, 15)


def flows_of(cpu):
    """The connections of a processor."""
    return Flows(7, 15, ALL.first_source + 7 * cpu)


class Senders:
    """The generators of all processors."""

    def __init__(self, network, same=False):
        self._network = network
        self._generator = Generator(network, IPV4)
        self._flows = [flows_of(0 if same else cpu) for cpu in range(CPUS)]

    def learn(self):
        """A few packets of every connection, each by its own processor."""
        for _ in range(4):
            for cpu in range(CPUS):
                self.send([cpu], self._flows[cpu].count)

    def send(self, cpus, count=COUNT):
        """`count` packets by each of some processors at once. Gives packets a second, by all of them."""
        for cpu in range(CPUS):
            self._generator.prepare(self._flows[cpu], SMALL, count if cpu in cpus else 1, cpu)
        self._generator.start()
        times = []
        for cpu in cpus:
            name = self._generator.device(self._network.lan_port, cpu)
            elapsed, idle = timed(lambda name=name: self._generator.said(name), count)
            times.append(elapsed - idle)
        return sum(count / (elapsed / 1e6) for elapsed in times)


def main(selection, say):
    """Measures and reports, or only sends for somebody who looks on."""
    if selection.what == "sharing":
        network = Network()
        network.settle(1)
        send_for_the_plugin(network, selection.same)
        return 0
    found = scaling(say)
    print(f"\nTimes as many packets with two processors as with one, medians of {ROUNDS} rounds, and quartiles\n")
    for title, (low, middle, high) in found.items():
        print(f"  {title:24}{middle:8.2f}   ({low:.2f} to {high:.2f})")
    print()
    targets.show("What is wanted of a second processor",
                 targets.scaling(found[paths.Fasttrack.title], found[paths.Slow.title]))
    report.write("cpus.json", json.dumps({"rounds": ROUNDS, "quartiles": found}, indent=1))
    return 0


def enter(network, way, same=False):
    """Has connections of all processors, which take the way. Gives the senders."""
    senders = Senders(network, same)
    establish(network, Generator(network, IPV4), IPV4, ALL, False, way.accounting)
    way.enter(network, IPV4)
    senders.learn()
    network.add_rules()
    return senders


def leave(network, way):
    """Undoes it."""
    network.remove_rules()
    way.leave(network)
    network.clear()


def scaling(say):
    """How many times as many packets both processors carry as one does: quartiles. In each round all ways have their
    turn, each in a network of its own."""
    senders = {}
    for way in WAYS:
        network = Network(name=f"-{way.name}")
        network.settle(1)
        senders[way.title] = enter(network, way)
    ratios = {title: [] for title in senders}
    for _ in range(ROUNDS):
        for title, sender in senders.items():
            one = statistics.mean(sender.send([cpu]) for cpu in range(CPUS))
            ratios[title].append(sender.send(range(CPUS)) / one)
        say(", ".join(f"{title} {some[-1]:.2f}" for title, some in ratios.items()))
    return {title: [round(ratio, 3) for ratio in statistics.quantiles(some, n=4)] for title, some in ratios.items()}


def send_for_the_plugin(network, same):
    """Packets on all processors, fast ones; with `same`, of the same connections."""
    way = paths.FasttrackAccounting()
    senders = enter(network, way, same)
    before = paths.statistics(network)["fast"]["original"]["packets"]
    senders.send(range(CPUS))
    print(f"{paths.statistics(network)['fast']['original']['packets'] - before} packets were fast")
    leave(network, way)
