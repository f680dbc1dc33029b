# SPDX-License-Identifier: GPL-2.0
"""What fasttrack is to reach, and whether it does. Nothing depends on it but what is printed."""

from dataclasses import dataclass

import report

# Instructions a packet that are fasttrack's own: without conntrack's counters, and with them.
OWN, OWN_ACCOUNTING = 250, 320
# And as a part of those of the flowtable.
PART = 0.25
# Instructions that the flowtable takes, with counters and masquerade, for small packets of one flow: what was
# measured at first. Another figure would mean that something else is measured now.
FLOWTABLE, FLOWTABLE_TOLERANCE = 1261, 0.05
# Bytes for a connection, in both directions, besides conntrack's.
MEMORY = 384
# What learning a connection that is soon over may cost, of what it costs anyway.
LEARNING = 0.03
# What a packet may cost more in the largest table, or with the most rules, than in the smallest or without
# any, as a part of all that it costs: nothing, but for what the instruction count scatters.
FLAT = 0.01
# How many times as long as fasttrack the others take for small packets: path, flows, factor.
FASTER = (
    ("flowtable", 1, 1.3), ("flowtable-counter", 1, 1.3), ("slow", 1, 3.3), ("flowtable", 1024, 1.25),
    ("flowtable-counter", 1024, 1.25), ("slow", 1024, 3.0), ("slow-3000", 1, 15.0),
)
SMALL = 64
# The fewest and the most flows of the matrix.
ONE, MANY = 1, 100_000


@dataclass(frozen=True)
class Row:
    """A target, in words, and what has become of it."""

    wanted: str
    found: str
    met: bool


def show(title, rows):
    """Prints targets."""
    if not rows:
        return
    print(f"{title}:")
    for row in rows:
        print(f"  {'met' if row.met else 'MISSED':8}{row.wanted}: {row.found}")
    print()


def bench(cells):
    """Of the instructions, cell by cell, and the flowtable's figure."""
    known = report.figures(cells)
    rows = []
    for accounting, ours, theirs, limit in ((False, "fasttrack", "flowtable", OWN),
                                            (True, "fasttrack-acct", "flowtable-counter", OWN_ACCOUNTING)):
        for at in known:
            own, other = report.net(known, at), report.net(known, (theirs, *at[1:]))
            if at[0] != ours or own is None:
                continue
            part = f", {own / other:.0%} of the flowtable's {other:.0f}" if other else ""
            rows.append(Row(f"{cell(at)}{', accounting' * accounting}: at most {limit}, and a quarter of the flowtable's",
                            f"{own:.0f}{part}", own <= limit and (not other or own <= PART * other)))
    stock = report.net(known, ("flowtable-counter", 4, True, SMALL, 1))
    if stock is not None:
        rows.append(Row(f"the flowtable's, masquerade, counter, 64 B, 1 flow: {FLOWTABLE} ± {FLOWTABLE_TOLERANCE:.0%}",
                        f"{stock:.0f} ({stock / FLOWTABLE - 1:+.1%})",
                        abs(stock / FLOWTABLE - 1) <= FLOWTABLE_TOLERANCE))
    return rows


def native(results):
    """Of the nanoseconds. Of the cells with as many flows, the worst one counts."""
    known = {report.key(found): found for found in results["cells"]}
    rows = []
    for path, flows, factor in FASTER:
        ratios = {at: found["ratio"] for at, found in known.items()
                  if (at[0], at[3], at[4]) == (path, SMALL, flows) and found["ratio"]}
        if ratios:
            worst = min(ratios, key=ratios.get)
            rows.append(Row(f"{path}, 64 B, {flows} flow{'s' * (flows > 1)}: at least {factor} times as long as fasttrack",
                            f"{ratios[worst]:.2f} ({cell(worst)}) to {max(ratios.values()):.2f}",
                            ratios[worst] >= factor))
    stock = {at: found["ratio"] for at, found in known.items() if at[0].startswith("flowtable") and found["ratio"]}
    if stock:
        worst = min(stock, key=stock.get)
        rows.append(Row("the flowtable nowhere faster than fasttrack", f"at least {stock[worst]:.2f} times as long "
                        f"({worst[0]}, {cell(worst)})", stock[worst] >= 1))
    return rows + growth_in_time(known)


def growth_in_time(known):
    """Of how much longer small packets take if they are of very many flows, cell by cell; as parts of what the bare
    redirect, which looks for no flow, took in the same rounds."""
    rows = []
    for family in (4, 6):
        for nat in (False, True):
            grown, words = {}, {}
            for path in ("fasttrack", "flowtable"):
                few, many = (known.get((path, family, nat, SMALL, flows), {}).get("redirects") for flows in (ONE, MANY))
                if few and many:
                    grown[path] = many[1] - few[1]
                    words[path] = f"{grown[path]:.2f} ({spread(few)} to {spread(many)})"
            if len(grown) == 2:
                rows.append(Row(f"IPv{family}, {'masquerade' if nat else 'no NAT'}, 64 B, from {ONE} to {MANY} flows: grows by "
                                "less than the flowtable's", f"by {words['fasttrack']} of a bare redirect, the flowtable's by "
                                f"{words['flowtable']}", grown["fasttrack"] < grown["flowtable"]))
    return rows


def spread(quartiles):
    """A median, and half of the distance between its quartiles."""
    low, middle, high = quartiles
    return f"{middle:.2f} ± {(high - low) / 2:.2f}"


def memory(bytes_):
    """Of the memory for a connection."""
    return Row(f"memory for a connection, both directions: at most {MEMORY} bytes", f"{bytes_:.0f}", bytes_ <= MEMORY)


def learning(without, with_it, title):
    """Of connections that are soon over: from packets to what such a connection costs."""
    return [Row(f"connections of {packets} packets, {title}: at most {LEARNING:.0%} more than the slow path",
                f"{with_it[packets] / without[packets] - 1:+.1%} ({with_it[packets] - without[packets]:+.0f} instructions)",
                with_it[packets] <= without[packets] * (1 + LEARNING)) for packets in without]


def scaling(ours, slow):
    """Of how many times as many packets two processors carry as one does: quartiles of fasttrack's figure and of the slow
    path's."""
    return [Row("two processors: at least as many times the packets of one as on the slow path", f"{spread(ours)}, the "
                f"slow path {spread(slow)}", ours[1] >= slow[1])]


def sharing(lines, same):
    """Of how many cache lines the module writes to for each packet on both processors: with connections of its own on each;
    or with the same ones, whose counters they have to share, so that it can be seen that such lines are seen."""
    if same:
        return [Row("the same connections on both: such lines are seen", f"{lines}", lines > 0)]
    return [Row("cache lines that both processors write to for each packet: none", f"{lines}", lines == 0)]


def growth(what, ours, others):
    """Of what a packet costs by the number of something: from numbers to fasttrack's figures, and the
    flowtable's."""
    grown, theirs = ours[max(ours)] - ours[min(ours)], others[max(others)] - others[min(others)]
    return [
        Row(f"flat from {min(ours)} to {max(ours)} {what}: at most {FLAT:.0%} more", f"{grown:+.0f} instructions "
            f"({grown / ours[min(ours)]:+.1%})", grown <= FLAT * ours[min(ours)]),
        Row(f"grows no more than the flowtable's from {min(ours)} to {max(ours)} {what}",
            f"{grown:+.0f}, the flowtable's {theirs:+.0f}", grown <= max(theirs, FLAT * ours[min(ours)])),
    ]


def cell(at):
    """All but the path, in words."""
    return report.where(dict(zip(("family", "nat", "bytes", "flows"), at[1:], strict=True)))
