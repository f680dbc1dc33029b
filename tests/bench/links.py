# SPDX-License-Identifier: GPL-2.0
"""What a packet costs if the router's devices lie on others: VLANs, bridges, PPPoE."""

import json
import subprocess
from dataclasses import dataclass

import paths
import report
from generator import Flows, Generator
from measure import SMALL, establish, measure
from network import ETHERNET, IPV4, KINDS, PPPOE, Kind, Network

UPPER_FLOOR = paths.UpperFloor()


@dataclass(frozen=True)
class Link:
    """The kinds of the two devices."""

    name: str
    lan: Kind = ETHERNET
    wan: Kind = ETHERNET


LINKS = (Link("ethernet"),) + tuple(
    link for kind in KINDS
    for link in (Link(f"{kind.name}-in", lan=kind), Link(f"{kind.name}-out", wan=kind), Link(kind.name, kind, kind))
) + (Link("pppoe-out", wan=PPPOE),)

UNTRACKED = (paths.Floor(), UPPER_FLOOR, paths.Plain())
TRACKED = (paths.Fasttrack(), paths.Slow(), paths.Flowtable())
# In the order in which they are shown.
SHOWN = (UNTRACKED[0], UPPER_FLOOR, TRACKED[0], TRACKED[2], UNTRACKED[2], TRACKED[1])


def main(selection, say):
    """Measures and reports. Gives the exit status."""
    found = {}
    for link in LINKS:
        if selection.link and link.name not in selection.link:
            continue
        if PPPOE in (link.lan, link.wan) and not has_pppoe():
            say(f"{link.name}: this kernel has no PPPoE; see FLAVOUR in the Makefile")
            continue
        network = Network(link.lan, link.wan)
        network.settle()
        found[link.name] = figures(network, selection.path)
        for name, figure in found[link.name].items():
            say(f"{link.name}, {report.TITLES.get(name, UPPER_FLOOR.title)}: {figure:.0f}")
        network.remove()
    show(found)
    report.write("links.json", json.dumps(found, indent=1))
    return 0


def has_pppoe():
    """Whether the kernel has it; loads it."""
    return subprocess.run(["modprobe", "--all", "ppp_generic", "pppoe"], capture_output=True, check=False).returncode == 0


def figures(network, wanted):
    """What a small packet of a single connection costs on each path, with masquerade where there are
    connections."""
    generator, flows = Generator(network, IPV4), Flows()
    figure = {}
    for tracked, ways in ((False, UNTRACKED), (True, TRACKED)):
        if tracked:
            establish(network, generator, IPV4, flows, True, False)
        for path in ways:
            if wanted and path.name not in wanted:
                continue
            path.enter(network, IPV4)
            path.learn(lambda: generator.send(flows, SMALL, flows.count))
            if tracked:
                network.add_rules()
            figure[path.name] = measure(network, path, generator, IPV4, flows, SMALL,
                                        IPV4.wan if tracked else IPV4.host)
            if tracked:
                network.remove_rules()
            path.leave(network)
    return figure


def show(found):
    """Prints a table."""
    print("\nInstructions a packet, and how many of them are more than the bare redirect takes\n")
    print(f"{'':18}" + "".join(f"{path.name:>18}" for path in SHOWN))
    for link, figure in found.items():
        floor = figure.get("floor")
        row = [(figure.get(path.name), None if floor is None or path.name not in figure
                else figure[path.name] - floor) for path in SHOWN]
        print(f"  {link:16}" + "".join(report.entry(*pair) for pair in row))
