# SPDX-License-Identifier: GPL-2.0
"""Makes a table of what trace.c has written: see `profile`."""

import bisect
import re
import sys
from collections import Counter
from pathlib import Path

#: Ways that were taken less often, compared with that which was taken most often, are left out.
SHARE = 1 / 8

#: By which function a way is known, and what it is called.
KNOWN_BY = {"redirect": "redirect", "nf_flow_offload": "flowtable", "fasttrack::": "fasttrack", "ip_forward": "slow",
            "ip6_forward": "slow"}


def symbols(text):
    """Addresses, in order, and the names of the functions that begin there."""
    found = sorted((int(words[0], 16), " ".join(words[2:])) for words in map(str.split, text.splitlines())
                   if len(words) > 2 and words[1] in "tTwW" and not words[2].startswith("__pfx_"))
    return [at for at, _ in found], [plain(name) for _, name in found]


def plain(name):
    """The name of a function without what tells a crate from others of its name, or where a module is from."""
    return re.sub(r"\[[0-9a-f]{8,}\]|\s*\[\w+\]$", "", name)


def ways(text):
    """How often each way was taken, and the addresses of its instructions."""
    for part in text.split("trace ")[1:]:
        head, *lines = part.splitlines()
        yield int(head.split()[0]), [int(line.split(maxsplit=1)[0], 16) for line in lines]


def merged(columns):
    """The functions of all columns, each where it is met first in one of them."""
    order = []
    for column in columns:
        at = 0
        for function in column:
            if function in order:
                at = order.index(function) + 1
            else:
                order.insert(at, function)
                at += 1
    return order


def title(functions):
    """What a way is called."""
    return next((name for mark, name in KNOWN_BY.items() if any(mark in function for function in functions)), "")


def main():
    """Prints a table with a column for each way that was taken often."""
    trace, names = sys.argv[1:]
    starts, functions = symbols(Path(names).read_text(encoding="utf-8"))
    taken = sorted(ways(Path(trace).read_text(encoding="ascii")), key=lambda way: way[0], reverse=True)
    # The dearest is shown last.
    often = sorted((way for way in taken if way[0] >= SHARE * taken[0][0]), key=lambda way: len(way[1]))
    columns = [Counter(functions[bisect.bisect(starts, at) - 1] for at in addresses) for _, addresses in often]
    print("".join(f"{title(column):>10}" for column in columns))
    print("".join(f"{times:10}" for times, _ in often) + "  times taken")
    print("".join(f"{len(addresses):10}" for _, addresses in often) + "  instructions, of which in\n")
    for function in merged(columns):
        print("".join(f"{column[function] or '':>10}" for column in columns) + f"  {function}")


if __name__ == "__main__":
    main()
