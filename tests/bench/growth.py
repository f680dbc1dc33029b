# SPDX-License-Identifier: GPL-2.0
"""How the cost grows: with the number of connections, with the number of rules, and what it costs to learn
connections that are over soon. And what a connection takes of memory.
"""

import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import paths
import report
import targets
from generator import Flows, Generator
from measure import BATCH, SMALL, establish, measure
from network import IPV4

HERE = Path(__file__).parent
ENTRIES = (Flows(), Flows(125, 8), Flows(625, 16), Flows(3125, 32), Flows(15625, 64))
RULES = (0, 30, 300, 3000)
PACKETS = (2, 4, 6, 8, 16)
ROUNDS = 4


class LargeFasttrack(paths.Fasttrack):
    """fasttrack, with room for all of them."""

    table_size = 2_000_000


class CarefulFasttrack(paths.Fasttrack):
    """fasttrack, as it is by default: it learns nothing that is over soon."""

    learn_after = 3


class BareFasttrack(CarefulFasttrack):
    """The module alone, without the rules that mark what IPsec handles."""

    def enter(self, network, family):
        super().enter(network, family)
        network.run("nft", "delete", "table", "inet", "fasttrack")


class EagerFasttrack(BareFasttrack):
    """The same, which learns with the first packet that can be."""

    learn_after = 1


GROWING = (LargeFasttrack(), paths.Slow(), paths.Flowtable())

# Of how many source ports, at each end of those of all connections and in their middle, packets are looked at: with
# all destination ports. It has no factor in common with their numbers.
PROBED = 9

# As many as fill a table of the default size, a flow for each direction.
REMEMBERED = Flows(2048, 31)
# How many times as large as that a table can be.
LARGER = 32


def main(network, most, say):
    """Measures and reports, with `most` connections at most. Gives 1 if anything has become dearer, else 0."""
    generator = Generator(network, IPV4)
    results = {
        "memory": memory(network, generator, say),
        "learning": by_packets(network, generator, say),
        "rules": by_rules(network, generator, say),
        "entries": by_entries(network, generator, most, say),
    }
    show("Instructions a packet, by connections", results["entries"])
    show("Instructions a packet, by rules", results["rules"])
    show_learning(results["learning"])
    print()
    ours, stock = paths.Fasttrack.title, paths.Flowtable.title
    rows = [
        targets.memory(results["memory"]["bytes"]),
        *wanted_of_learning(results["learning"]),
        *(row for what in ("entries", "rules") for row in targets.growth(
            {"entries": "connections"}.get(what, what), results[what][ours], results[what][stock])),
    ]
    targets.show("What is wanted of it", rows)
    report.write("growth.json", json.dumps(results, indent=1))
    return compare(results, say)


def learning(network, say):
    """Measures and reports what short connections cost, and nothing else. Gives the same."""
    figures = by_packets(network, Generator(network, IPV4), say)
    show_learning(figures)
    print()
    targets.show("What is wanted of it", wanted_of_learning(figures))
    return compare({"learning": figures}, say)


def compare(results, say):
    """Says what has become dearer than the baseline says. Gives 1 if anything has, else 0."""
    baseline = HERE / "growth.json"
    if not baseline.exists():
        say("there is no baseline to compare with")
        return 0
    return report.compare_growth(results, baseline, HERE / "baseline.json")


def show_learning(figures):
    """Prints what connections cost, and how many a second that would be."""
    show("Instructions a connection, by its packets", figures)
    show("Connections a second, by their packets, of a thousand million instructions a second",
         {title: {packets: 1e9 / spent for packets, spent in row.items()} for title, row in figures.items()})


def wanted_of_learning(figures):
    """The targets: of the module, and of all of fasttrack with the rules that mark what IPsec handles."""
    return [row for title in ("its module alone", "with fasttrack")
            for row in targets.learning(figures["without"], figures[title], title)]


def memory(network, generator, say):
    """What a connection takes in both directions, besides conntrack's entry: the flows' cache of the kernel's
    allocator, and the index, which is as large as the table may become."""
    path, flows = paths.Fasttrack(), REMEMBERED
    establish(network, generator, IPV4, flows, False, False)
    path.enter(network, IPV4)
    index = index_bytes(network, path.table_size)
    # What is empty of it, from whatever was measured before.
    Path("/sys/kernel/slab/fasttrack_flow/shrink").write_text("1\n", encoding="ascii")
    before = flow_bytes()
    for _ in range(2):
        generator.send(flows, SMALL, flows.count)
        generator.answer(flows, IPV4.host, SMALL)
    learned = paths.statistics(network)["flows"]
    if learned != 2 * flows.count:
        raise AssertionError(f"{learned} flows instead of {2 * flows.count}")
    taken = (flow_bytes() - before) / flows.count
    path.leave(network)
    network.clear()
    say(f"memory for a connection: {taken:.0f} bytes of flows, {2 * index:.0f} of the index")
    return {"connections": flows.count, "flows": round(taken, 1), "index": round(2 * index, 1),
            "bytes": round(taken + 2 * index, 1)}


def flow_bytes():
    """What the flows' cache takes of memory; as others may share it, only differences count."""
    cache = Path("/sys/kernel/slab/fasttrack_flow")
    order, slabs = (int((cache / name).read_text(encoding="ascii").split()[0]) for name in ("order", "slabs"))
    return (4096 << order) * slabs


def index_bytes(network, size):
    """What a flow takes of the index, by how the free memory differs between a table of this size and a much
    larger one."""
    free = []
    for factor in (LARGER, 1, LARGER, 1):
        paths.control(network, f"set table-size {size * factor}")
        # Until the old one has been freed.
        time.sleep(2)
        words = Path("/proc/meminfo").read_text(encoding="ascii").split()
        free.append(int(words[words.index("MemFree:") + 1]) * 1024)
    return (free[3] - free[2]) / ((LARGER - 1) * size)


def by_entries(network, generator, most, say):
    """What a packet costs while there are so many connections."""
    found = {name_of(path): {} for path in GROWING}
    for flows in (some for some in ENTRIES if some.count <= most):
        establish(network, generator, IPV4, flows, False, False)
        for path in GROWING:
            found[name_of(path)][flows.count] = one(network, generator, path, flows, 30)
            say(f"{flows.count} connections, {name_of(path)}: {found[name_of(path)][flows.count]:.0f}")
        network.clear()
    return found


def by_rules(network, generator, say):
    """What a packet of a single connection costs if there are so many rules."""
    found = {name_of(path): {} for path in GROWING}
    for count in RULES:
        establish(network, generator, IPV4, Flows(), False, False)
        for path in GROWING:
            found[name_of(path)][count] = one(network, generator, path, Flows(), count)
            say(f"{count} rules, {name_of(path)}: {found[name_of(path)][count]:.0f}")
        network.clear()
    return found


def one(network, generator, path, flows, rules):
    """A figure."""
    path.enter(network, IPV4)
    if isinstance(path, paths.Fasttrack):
        # The first packet of a device shows that there is one; until somebody has seen to that, none is learned.
        generator.send(Flows(), SMALL, 1)
        time.sleep(1)
    path.learn(lambda: generator.send(flows, SMALL, flows.count))
    if isinstance(path, paths.Fasttrack):
        are_learned(network, flows)
    network.add_rules(rules)
    figure = measure(network, path, generator, IPV4, flows, SMALL, IPV4.host)
    if isinstance(path, paths.Fasttrack):
        are_fast(network, path, generator, flows)
    network.remove_rules()
    path.leave(network)
    return figure


def are_learned(network, flows):
    """Makes sure that there is a flow for each connection."""
    learned = paths.statistics(network)["flows"]
    if learned < flows.count:
        raise AssertionError(f"{learned} flows of {flows.count} connections")


def are_fast(network, path, generator, flows):
    """Makes sure that packets of connections from all of them are fast, and have not been learned for that."""
    learned = paths.statistics(network)["flows"]
    for part in probed(flows):
        # The first packet of each confirms what was learned.
        generator.send(part, SMALL, part.count)
        before = path.counters(network, IPV4)
        generator.send(part, SMALL, part.count)
        grown = {name: value - before[name] for name, value in path.counters(network, IPV4).items()}
        sampled = grown["sampled"]
        if (grown["arrived"], grown["fast"], grown["slow"]) != (part.count, part.count - sampled, sampled):
            raise AssertionError(f"{part.count} packets of {flows.count} connections, with source ports from "
                                 f"{part.first_source} on: counters grew by {grown}")
    found = paths.statistics(network)["flows"]
    if found != learned:
        raise AssertionError(f"{found} flows instead of {learned} after packets of connections that are known")


def probed(flows):
    """Some of the connections: those of the first, the middle and the last source ports, which are spread over all of
    the order in which they were learned, and have the first and the last of it among them."""
    number = min(PROBED, flows.sources)
    return [replace(flows, sources=number, first_source=flows.first_source + skipped)
            for skipped in sorted({0, (flows.sources - number) // 2, flows.sources - number})]


def by_packets(network, generator, say):
    """What a connection costs, with NAT, from its first packet on, if each side sends half of its packets in
    turn. The connections come in a batch, so that many of them are new at once."""
    batches = (Flows(BATCH, first_source=10_000 + number * BATCH) for number in itertools.count())
    ways = {"without": paths.Slow(), "with fasttrack": CarefulFasttrack(), "its module alone": BareFasttrack(),
            "that, learning at once": EagerFasttrack(), "with nft flowtable": paths.Flowtable()}
    found = {title: {} for title in ways}
    for title, path in ways.items():
        establish(network, generator, IPV4, Flows(), True, False)
        path.enter(network, IPV4)
        network.add_rules()
        for packets in PACKETS:
            rounds = []
            for _ in range(ROUNDS):
                network.run("conntrack", "-F")
                # Until the flows of the last round have been collected. Its ports are not used again: who knows
                # the one connection would know the next.
                time.sleep(3)
                flows = next(batches)
                rounds.append(sum(generator.send(flows, SMALL, flows.count)
                                  + generator.answer(flows, IPV4.wan, SMALL) for _ in range(packets // 2)))
            # The first round is not counted: memory is got in it.
            spent = statistics.median(rounds[1:])
            found[title][packets] = round(spent)
            say(f"connections of {packets} packets, {title}: {spent:.0f}")
        network.remove_rules()
        path.leave(network)
        network.clear()
    return found


def name_of(path):
    """What it is called where the number of rules is another one."""
    return path.title.partition(",")[0]


def show(title, figures):
    """Prints a table."""
    columns = list(next(iter(figures.values())))
    print(f"\n{title}\n\n{'':26}" + "".join(f"{f'{column:,}'.replace(',', ' '):>12}" for column in columns))
    for name, row in figures.items():
        print(f"  {name:24}" + "".join(f"{row[column]:12.0f}" for column in columns))
