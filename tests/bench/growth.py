# SPDX-License-Identifier: GPL-2.0
"""How the cost grows: with the number of connections, with the number of rules, and what it costs to learn
connections that are over soon.
"""

import json

import paths
import report
from generator import Flows, Generator
from measure import BATCH, SMALL, establish, measure
from network import IPV4

ENTRIES = (Flows(), Flows(125, 8), Flows(625, 16), Flows(3125, 32), Flows(15625, 64))
RULES = (0, 30, 300, 3000)
PACKETS = (2, 4, 8, 16, 32)


class LargeFasttrack(paths.Fasttrack):
    """fasttrack, with room for all of them."""

    table_size = 2_000_000


GROWING = (LargeFasttrack(), paths.Slow(), paths.Flowtable())


def main(network, say):
    """Measures and reports. Gives the exit status."""
    generator = Generator(network, IPV4)
    results = {
        "entries": by_entries(network, generator, say),
        "rules": by_rules(network, generator, say),
        "learning": by_packets(network, generator, say),
    }
    show("Instructions a packet, by connections", results["entries"])
    show("Instructions a packet, by rules", results["rules"])
    show("Instructions a connection, by its packets", results["learning"])
    report.write("growth.json", json.dumps(results, indent=1))
    return 0


def by_entries(network, generator, say):
    """What a packet costs while there are so many connections."""
    found = {name_of(path): {} for path in GROWING}
    for flows in ENTRIES:
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
    path.learn(lambda: generator.send(flows, SMALL, flows.count))
    network.add_rules(rules)
    figure = measure(network, path, generator, IPV4, flows, SMALL, IPV4.host)
    network.remove_rules()
    path.leave(network)
    return figure


def by_packets(network, generator, say):
    """What a connection costs, with NAT, from its first packet on, if each side sends half of its packets in
    turn. The connections come in a batch, so that some of them are under way at once."""
    flows = Flows(BATCH)
    found = {"without": {}, "with fasttrack": {}, "with nft flowtable": {}}
    ways = zip(found, (paths.Slow(), paths.Fasttrack(), paths.Flowtable()), strict=True)
    for title, path in ways:
        establish(network, generator, IPV4, Flows(), True, False)
        path.enter(network, IPV4)
        network.add_rules()
        for packets in PACKETS:
            # The first round is not counted: memory is got in it.
            for _ in range(2):
                network.run("conntrack", "-F")
                spent = sum(generator.send(flows, SMALL, flows.count) + generator.answer(flows, IPV4.wan, SMALL)
                            for _ in range(packets // 2))
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
