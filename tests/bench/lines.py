# SPDX-License-Identifier: GPL-2.0
"""Sends packets of many flows on each way through the router, for a plugin that looks on: see `profile`."""

import json
import os
from pathlib import Path as File

import matrix
import paths
import report
from generator import Flows, Generator
from measure import SMALL, TRIES, WARM_UP, establish, measure

FLOWS = Flows(1024)
#: Packets of each flow that the plugin looks at: what they all touch, and those of others do not, is the flow's own.
ROUNDS = 3
UNTRACKED = (paths.Floor(),)
TRACKED = (paths.Fasttrack(), paths.Slow(), paths.Flowtable())
#: What the kernel says of its slab allocator.
CACHES = File("/sys/kernel/slab")


class Marked:
    """The sections that the plugin tells apart."""

    def __init__(self, network, selection, say):
        self._network, self._symbols, self._say = network, File(selection.symbols), say
        self.sections = []

    def send(self, path, generator, family, nat):
        """Sends packets in a section of their own; having made sure that they take the path."""
        source = family.wan if nat else family.host
        measure(self._network, path, generator, family, FLOWS, SMALL, source, batches=1)
        # Of all flows, not only of those that a batch is of.
        generator.batches(FLOWS, SMALL, FLOWS.count, WARM_UP)
        for _ in range(TRIES):
            before = path.counters(self._network, family)
            _mark()
            generator.send(FLOWS, SMALL, ROUNDS * FLOWS.count)
            _mark()
            grown = {name: value - before[name] for name, value in path.counters(self._network, family).items()}
            taken = grown == path.expected(ROUNDS * FLOWS.count)
            self.sections.append({"path": path.name, "family": family.version, "nat": nat, "taken": taken})
            if taken or not grown.get("sampled"):
                break
        if not taken:
            raise AssertionError(f"{path.title}, {family}: counters grew by {grown}")
        with self._symbols.open("ab") as symbols:
            symbols.write(File("/proc/kallsyms").read_bytes())
        cell = {"family": family.version, "nat": nat, "bytes": SMALL, "flows": FLOWS.count}
        self._say(f"{path.title}, {report.where(cell)}")


def _mark():
    """Does what the plugin sees, and what nobody else does: asks how long a process of a real-time class may run."""
    os.sched_rr_get_interval(0)


def main(network, selection, say):
    """Sends them, and says which sections they are in, and how large objects are."""
    network.queue()
    marked = Marked(network, selection, say)
    for family in matrix.families(selection):
        generator = Generator(network, family)
        for path in matrix.ways(selection, UNTRACKED):
            path.enter(network, family)
            marked.send(path, generator, family, False)
            path.leave(network)
        for nat in matrix.nats(selection):
            establish(network, generator, family, FLOWS, nat, False)
            for path in matrix.ways(selection, TRACKED):
                path.enter(network, family)
                path.learn(lambda: generator.send(FLOWS, SMALL, FLOWS.count))
                network.add_rules()
                marked.send(path, generator, family, nat)
                network.remove_rules()
                path.leave(network)
            network.clear()
    caches = list(map(described, CACHES.iterdir()))
    report.write("lines.json", json.dumps({"flows": FLOWS.count, "rounds": ROUNDS, "sections": marked.sections,
                                           "caches": caches}))
    return 0


def described(cache):
    """A cache of the slab allocator. Some are one, under several names."""
    size = int((cache / "slab_size").read_text(encoding="ascii"))
    return {"name": cache.name, "is": cache.resolve().name, "size": size}
