# SPDX-License-Identifier: GPL-2.0
"""Prints the README's table of what was measured: baseline.json and native.json, small packets over IPv4 with
masquerade. usage: scripts/in-toolchain -- python3 -B tests/bench/summary.py
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
# What `paths` is made of.
sys.path.insert(0, str(HERE.parent / "vm"))

import paths  # noqa: E402  (found through the path above, as are those below)
import report  # noqa: E402

SIZE = 64
FLOWS = (1, 1024, 100_000)


def main():
    """Prints it."""
    counted, timed = (json.loads((HERE / name).read_text(encoding="utf-8")) for name in ("baseline.json", "native.json"))
    known = report.figures(counted)
    native = {report.key(cell): cell for cell in timed["cells"]}
    heads = ["instructions", "its own", *(f"ns, {flows} flow{'s' * (flows > 1)}" for flows in FLOWS)]
    print(f"| 64 B, IPv4, masquerade | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 1) + "|")
    many = ("slow-3000", "slow path, 3 000 rules")
    for name, title, tracked in (*((path.name, path.title, path.tracked) for path in paths.ALL), (*many, True)):
        at = (name, 4, tracked, SIZE, 1)
        figure, own = known.get(at), report.net(known, at)
        row = ["" if figure is None else f"{figure:.0f}", "" if own is None or own <= 0 else f"{own:.0f}"]
        for flows in FLOWS:
            cell = native.get((name, 4, True, SIZE, flows))
            row.append("" if cell is None else f"{cell['ns']:.0f}" if cell["ratio"] in (None, 1)
                       else f"{cell['ns']:.0f} (x{cell['ratio']:.2f})")
        print(f"| {title} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
