# SPDX-License-Identifier: GPL-2.0
"""Makes a table of what touched.c has written: see `profile`."""

import bisect
import json
import statistics
import sys
from array import array
from collections import Counter, defaultdict
from pathlib import Path

from profile import plain

#: What touched.c writes: see there.
PACKET, PAGE, WRITTEN = (1 << 64) - 1, (1 << 64) - 2, 2
LINE, PAGE_SIZE, FLAGS = 64, 4096, 63
#: Where the kernel has its linear map (Documentation/arch/x86/x86_64/mm.rst).
LINEAR = range(0xFFFF888000000000, 0xFFFFC88000000000)
#: What is meant where caches of the same size are one, under several names.
MEANT = {"fasttrack_flow", "flow_offload", "nf_conntrack"}
#: A line is a flow's own if each packet of the flow touches it, and those of no more flows than this: a bucket may be
#: that of a few, by chance.
FEW = 16
#: Names of the ways, and of the columns of the second table.
WAYS = {"floor": "bare redirect", "fasttrack": "fasttrack", "flowtable": "nft flowtable", "slow": "slow path, 30 rules"}
#: A line that fewer packets than this share have is not shown.
SHOWN = 0.02


class Names:
    """What is where in the kernel's memory: functions, and the slab allocator's objects."""

    def __init__(self, symbols, caches):
        found = sorted((int(words[0], 16), " ".join(words[2:])) for words in map(str.split, symbols.splitlines())
                       if len(words) > 2 and words[1] in "tTwW" and not words[2].startswith("__pfx_"))
        self._starts, self._functions = [at for at, _ in found], [plain(name) for _, name in found]
        # Names of caches that are one, by any of them.
        known = defaultdict(list)
        for cache in caches:
            known[cache["is"]].append(cache["name"])
        self._alike = {cache["name"]: known[cache["is"]] for cache in caches}
        self._sizes = {cache["name"]: cache["size"] for cache in caches}
        # From pages to where their slab begins, and the name of the cache.
        self.slabs = {}

    def function(self, at):
        """The function that an instruction is of."""
        return self._functions[bisect.bisect(self._starts, at) - 1]

    def memory(self, line):
        """What a line is of."""
        page = line // PAGE_SIZE * PAGE_SIZE
        if page in self.slabs:
            begin, cache = self.slabs[page]
            size = self._sizes.get(cache, PAGE_SIZE)
            name = next((name for name in self._alike.get(cache, []) if name in MEANT), cache)
            return f"{name} ({size} bytes), line {(line - begin) % size // LINE + 1}"
        return "the linear map" if line in LINEAR else "elsewhere"


class Section:
    """What packets of all flows have touched, on one way."""

    def __init__(self, flows, rounds):
        self._flows, self._rounds = flows, rounds
        # For each packet from lines to whether they were written, and for each line the packets, and who was the first.
        self.packets, self.touched, self.first = [], defaultdict(list), defaultdict(Counter)

    def add(self, words):
        """Adds a packet."""
        lines = {}
        for word, at in zip(words[::2], words[1::2], strict=True):
            line = word & ~FLAGS
            lines[line] = word & WRITTEN
            self.touched[line].append(len(self.packets))
            self.first[line][at] += 1
        self.packets.append(lines)

    def own(self):
        """From flows to the lines that are theirs."""
        found = defaultdict(set)
        for line, packets in self.touched.items():
            if len(packets) > FEW * self._rounds:
                continue
            for flow, times in Counter(number % self._flows for number in packets).items():
                if times == self._rounds:
                    found[flow].add(line)
        return [found[flow] for flow in range(self._flows)]


def read(data, names, flows, rounds):
    """The sections, by number, from what touched.c has written."""
    sections, at = defaultdict(lambda: Section(flows, rounds)), 0
    while at < len(data):
        if data[at] == PAGE:
            page, begin = data[at + 1:at + 3]
            names.slabs[page] = begin, data[at + 3:at + 7].tobytes().rstrip(b"\0").decode()
            at += 7
            continue
        number, at = data[at + 1], at + 2
        begin = at
        while at < len(data) and data[at] < PAGE:
            at += 2
        sections[number].add(data[begin:at])
    return sections


def numbers(section, flows):
    """What is said of a section in the first table: medians of all packets, means of what is the flow's own."""
    own = section.own()
    lines = statistics.median(map(len, section.packets))
    written = statistics.median(sum(map(bool, packet.values())) for packet in section.packets)
    pages = statistics.median(len({line // PAGE_SIZE for line in packet}) for packet in section.packets)
    mine = statistics.mean(map(len, own))
    mine_written = statistics.mean(sum(bool(section.packets[flow][line]) for line in own[flow])
                                   for flow in range(flows))
    own_pages = statistics.mean(len({line // PAGE_SIZE for line in lines}) for lines in own)
    distinct = set().union(*own)
    return (f"{lines:8.0f}{written:9.0f}{pages:8.0f}{mine:10.2f}{mine_written:9.2f}{own_pages:8.2f}"
            f"{len(distinct) * LINE / 1024:8.0f}{len({line // PAGE_SIZE for line in distinct}):8}")


def kinds(section, names, flows):
    """How many lines of each kind are a flow's own, by what they are of and who is the first to touch them."""
    found = Counter()
    for lines in section.own():
        for line in lines:
            found[names.memory(line), names.function(section.first[line].most_common(1)[0][0])] += 1 / flows
    return found


def main():
    """Prints the tables."""
    trace, symbols, described = sys.argv[1:]
    told = json.loads(Path(described).read_text(encoding="utf-8"))
    names = Names(Path(symbols).read_text(encoding="utf-8"), told["caches"])
    data = array("Q")
    data.frombytes(Path(trace).read_bytes())
    sections = read(data, names, told["flows"], told["rounds"])
    # Sections are counted from 0, in order; what was not on the way was tried again.
    told["sections"] = [said | {"section": sections[number]}
                        for number, said in enumerate(told["sections"]) if said["taken"]]
    for said in told["sections"]:
        packets, wanted = len(said["section"].packets), told["flows"] * told["rounds"]
        if packets != wanted:
            sys.exit(f"{WAYS[said['path']]}: {packets} packets seen instead of {wanted}")
    print(f"{told['flows']} flows, 64 bytes, devices with a queue\n\n"
          f"{'':26}{'what a packet touches':>25}{'its flow' + chr(39) + 's own of it':>27}{'of all flows':>16}\n"
          f"{'':26}{'lines':>8}{'written':>9}{'pages':>8}{'lines':>10}{'written':>9}{'pages':>8}{'KiB':>8}{'pages':>8}")
    cases = sorted({(said["family"], said["nat"]) for said in told["sections"]})
    for family, nat in cases:
        print(f"\nIPv{family}, {'masquerade' if nat else 'no NAT'}")
        for way, title in WAYS.items():
            for said in told["sections"]:
                # The redirect knows of no NAT.
                if (said["path"], said["family"], said["nat"]) == (way, family, nat and way != "floor"):
                    print(f"  {title:24}" + numbers(said["section"], told["flows"]))
    for way, title in WAYS.items():
        columns = {(said["family"], said["nat"]): kinds(said["section"], names, told["flows"])
                   for said in told["sections"] if said["path"] == way}
        rows = sorted({kind for column in columns.values() for kind, share in column.items() if share >= SHOWN})
        if not rows:
            continue
        print(f"\nA flow's own lines, {title}\n")
        print("".join(f"{f'IPv{family}' + ', NAT' * nat:>12}" for family, nat in columns))
        for kind in rows:
            print("".join(f"{column[kind]:12.2f}" if column[kind] else f"{'':12}" for column in columns.values())
                  + f"  {kind[0]}, by {kind[1]}")


if __name__ == "__main__":
    main()
