# SPDX-License-Identifier: GPL-2.0
"""Makes a table of what sharing.c has written: see `cpus`."""

import bisect
import sys
from collections import Counter, defaultdict
from pathlib import Path

import targets

MODULE = "[fasttrack]"
#: Where the kernel has its stacks (Documentation/arch/x86/x86_64/mm.rst), and a part of the names of what a worker
#: runs, which has one stack on any processor.
STACKS, JOB = "ffffc9", "4work3Job"
#: What both processors have written less often than this, was not written for each packet: of a connection there are
#: about 140 on each, of which two words of a line are counted, and all are learned by one of them.
OFTEN = 200
#: How many lines are shown one by one.
SHOWN = 5


def functions(text):
    """Addresses of the functions of all modules, in order, and the names of those that are the module's."""
    found = sorted((int(words[0], 16), words[2], words[3]) for words in map(str.split, text.splitlines())
                   if len(words) > 3 and words[1] in "tTwW")
    return [at for at, _, _ in found], [name if module == MODULE else None for _, name, module in found]


def main():
    """Prints how many lines there are, and those that both processors write to, and what is wanted of them."""
    written, symbols, *same = sys.argv[1:]
    starts, names = functions(Path(symbols).read_text(encoding="ascii"))
    lines, by = defaultdict(Counter), defaultdict(set)
    for at, line, *times in map(str.split, Path(written).read_text(encoding="ascii").splitlines()):
        place = bisect.bisect(starts, int(at, 16)) - 1
        if place >= 0 and names[place]:
            for cpu, count in enumerate(map(int, times)):
                lines[line][cpu] += count
            by[line].add(names[place])
    workers = [line for line in lines if line.startswith(STACKS) and any(JOB in name for name in by[line])]
    for line in workers:
        del lines[line]
    totals = [sum(line[cpu] for line in lines.values()) for cpu in (0, 1)]
    shared = {line: counts for line, counts in lines.items() if min(counts[0], counts[1]) >= OFTEN}
    print(f"{totals[0]} and {totals[1]} writes by the module, to {len(lines)} cache lines; {len(shared)} of them written "
          f"by both processors {OFTEN} times or more")
    for line, counts in sorted(shared.items(), key=lambda item: -sum(item[1].values()))[:SHOWN]:
        print(f"  {line}: {counts[0]} and {counts[1]} times, by {', '.join(sorted(by[line]))}")
    print()
    targets.show("What is wanted of them", targets.sharing(len(shared), bool(same)))


if __name__ == "__main__":
    main()
