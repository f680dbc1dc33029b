# SPDX-License-Identifier: GPL-2.0
"""Makes a table of what trace.c has written: see `profile`."""

import bisect
import sys
from collections import Counter
from pathlib import Path


def symbols(text):
    """Addresses, in order, and the names of the functions that begin there."""
    found = sorted((int(words[0], 16), words[2]) for words in map(str.split, text.splitlines())
                   if len(words) > 2 and words[1] in "tTwW" and not words[2].startswith("__pfx_"))
    return [at for at, _ in found], [name for _, name in found]


def ways(text):
    """How often each way was taken, and the addresses of its instructions."""
    for part in text.split("trace ")[1:]:
        head, *lines = part.splitlines()
        yield int(head.split()[0]), [int(line.split(maxsplit=1)[0], 16) for line in lines]


def main():
    """Prints the tables, that of the way that was taken most often first."""
    trace, names = sys.argv[1:]
    starts, functions = symbols(Path(names).read_text(encoding="ascii"))
    for times, addresses in sorted(ways(Path(trace).read_text(encoding="ascii")), reverse=True):
        met = Counter(functions[bisect.bisect(starts, at) - 1] for at in addresses)
        print(f"\n{len(addresses)} instructions, {times} times")
        for function, count in met.items():
            print(f"{count:8} {function}")


if __name__ == "__main__":
    main()
