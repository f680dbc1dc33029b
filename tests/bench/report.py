# SPDX-License-Identifier: GPL-2.0
"""What the benchmark says: a table, JSON, and what has become dearer than the baseline."""

import json

import paths

# A figure may differ by this much of what the path costs more than the bare redirect, or by this many
# instructions, whichever is more: another build of the same source moves things a little.
TOLERANCE = 0.02
LEAST = 8

# What results hold, and what is said of it beside a cell.
MATRICES = {"cells": "", "queued": ", with a queue"}

# What is said of figures that grow, beside their number; and what a connection takes of memory.
GROWTH = {"memory": "bytes of memory for a connection, {}", "learning": "connections of {} packets",
          "rules": "{} rules", "entries": "{} connections"}
MEMORY = ("flows", "index")

# The bare redirect's cell, of the packets by which growth is measured.
REDIRECT = ("floor", 4, False, 64, 1)

TITLES = {path.name: path.title for path in paths.ALL}


def write(name, text):
    """Prints a file, so that `run` can write it."""
    for line in text.splitlines():
        print(f"{name}: {line}")


def where(cell):
    """All but the path, in words."""
    nat = "masquerade" if cell["nat"] else "no NAT"
    return f"IPv{cell['family']}, {nat}, {cell['bytes']} B, {cell['flows']} flow{'s' * (cell['flows'] > 1)}"


def line(cell):
    """A cell, as soon as it has been measured."""
    figure = "no packet took this path" if cell.instructions is None else f"{cell.instructions:.0f}"
    return f"{TITLES[cell.path]}, {where(vars(cell))}: {figure}"


def key(cell):
    """What tells cells apart."""
    return tuple(cell[name] for name in ("path", "family", "nat", "bytes", "flows"))


def figures(cells):
    """From keys to instructions."""
    return {key(cell): cell["instructions"] for cell in cells}


def net(known, at):
    """What a cell costs more than the bare redirect, if both are known."""
    _, family, _, size, flows = at
    floor = known.get(("floor", family, False, size, flows))
    if floor is None or known.get(at) is None:
        return None
    return known[at] - floor


def as_json(results):
    """The results, with a cell on a line."""
    return lines(results | {what: with_net(results[what]) for what in MATRICES})


def with_net(cells):
    """The cells, and what each costs more than the bare redirect."""
    known = figures(cells)
    mores = [net(known, key(cell)) for cell in cells]
    return [cell | {"net": None if more is None else round(more, 1)} for cell, more in zip(cells, mores, strict=True)]


def lines(results):
    """The results as JSON, with a cell on a line."""
    parts = [f" {json.dumps(name)}: {listed(value) if isinstance(value, list) else json.dumps(value)}"
             for name, value in results.items()]
    return "{\n" + ",\n".join(parts) + "\n}"


def listed(cells):
    """Cells, each on a line."""
    return "[\n  " + ",\n  ".join(map(json.dumps, cells)) + "\n ]" if cells else "[]"


def heads(family, nat, columns, width):
    """The lines above the figures of a family, with or without NAT."""
    return [f"{f'IPv{family}, ' + ('masquerade' if nat else 'no NAT'):26}"
            + "".join(f"{f'{size} B':>{width}}" for size, _ in columns),
            " " * 26 + "".join(f"{f'{flows:,} flow'.replace(',', ' ') + 's' * (flows > 1):>{width}}"
                               for _, flows in columns)]


def table(cells, between):
    """The results for people."""
    known = figures(cells)
    columns = sorted({(size, flows) for _, _, _, size, flows in known})
    shown = ["", f"Instructions a packet {between}, and how many of them are more than the bare redirect takes"]
    for family, nat in sorted({at[1:3] for at in known}):
        shown += ["", *heads(family, nat, columns, 18)]
        for path in paths.ALL:
            row = [known.get((path.name, family, nat and path.tracked, *column)) for column in columns]
            mores = [net(known, (path.name, family, nat and path.tracked, *column)) for column in columns]
            if any(figure is not None for figure in row):
                shown.append(f"  {path.title:24}" + "".join(map(entry, row, mores)))
            elif any((path.name, family, nat and path.tracked, *column) in known for column in columns):
                shown.append(f"  {path.title:24}" + f"{'no packet took this path':>{18 * len(columns)}}")
    return "\n".join([*shown, ""])


def entry(figure, more):
    """A figure in the table."""
    if figure is None:
        return f"{'-':>18}"
    return f"{figure:11.0f}" + (f" {more:6.0f}" if more is not None and more > 0 else " " * 7)


def compare(results, baseline):
    """Says what has become dearer, or cheaper. Gives 1 if anything has become dearer, else 0."""
    old = json.loads(baseline.read_text(encoding="utf-8"))
    changes = Changes()
    for what, words in MATRICES.items():
        compare_cells(figures(results[what]), figures(old.get(what, [])), words, changes)
    if results["kernel"] != old["kernel"]:
        print(f"The baseline is that of another kernel, {old['kernel']}.")
    return changes.tell()


def compare_cells(known, before, words, changes):
    """The same of one matrix."""
    for at, was in before.items():
        if at not in known or was is None:
            continue
        name = f"{TITLES[at[0]]}, {where(dict(zip(('family', 'nat', 'bytes', 'flows'), at[1:], strict=True)))}{words}"
        if known[at] is None:
            changes.dearer.append(f"{name}: no packet takes this path any more")
        else:
            # What the redirect takes is what all others are compared with.
            changes.add(name, known[at], was, 0 if at[0] == paths.Floor.name else abs(net(before, at) or was))


def compare_growth(results, baseline, matrix):
    """The same of how the cost grows, what a connection takes of memory, and what learning costs: of those parts that
    were measured. `matrix`: the baseline of the matrix, which has the bare redirect."""
    old = json.loads(baseline.read_text(encoding="utf-8"))
    redirect = 0
    if matrix.exists():
        redirect = figures(json.loads(matrix.read_text(encoding="utf-8"))["cells"]).get(REDIRECT, 0)
    changes = Changes()
    # As they are in the file: there every key is a word.
    known, before = growth_figures(json.loads(json.dumps(results))), growth_figures(old)
    for at, was in before.items():
        what, row, column = at
        if at in known:
            # Of a packet, what counts is what it costs more than the redirect; a connection's costs are its own.
            base = abs(was - redirect) if what in ("rules", "entries") else was
            changes.add(GROWTH[what].format(column) + (f", {row}" if row else ""), known[at], was, base)
    return changes.tell()


def growth_figures(results):
    """From what is counted, the title of a path if there is one, and of how many it is, to figures."""
    found = {("memory", "", name): results["memory"][name] for name in MEMORY if "memory" in results}
    for what in results:
        if what != "memory":
            found |= {(what, row, column): figure
                      for row, cells in results[what].items() for column, figure in cells.items()}
    return found


class Changes:
    """What differs from the baseline by more than it may."""

    def __init__(self):
        self.dearer, self.cheaper = [], []

    def add(self, name, now, was, base):
        """Compares a figure; `base` is what it may differ by a part of."""
        tolerance = max(LEAST, TOLERANCE * base)
        change = f"{name}: {now:.0f} instead of {was:.0f} ({now - was:+.0f})"
        if now > was + tolerance:
            self.dearer.append(change)
        elif now < was - tolerance:
            self.cheaper.append(change)

    def tell(self):
        """Prints them. Gives 1 if anything has become dearer, else 0."""
        for title, changes in (("Cheaper than the baseline", self.cheaper), ("DEARER than the baseline", self.dearer)):
            if changes:
                print(f"{title}:", *changes, sep="\n  ")
        if not self.dearer and not self.cheaper:
            print("As the baseline.")
        return 1 if self.dearer else 0
