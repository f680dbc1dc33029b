# SPDX-License-Identifier: GPL-2.0
"""What packets and connections are measured: the matrix, and what of it was asked for."""

from types import SimpleNamespace

from generator import Flows
from measure import SMALL
from network import FAMILIES

SIZES = (SMALL, 1400)
FLOWS = (Flows(), Flows(1024), Flows(3125, 32))

#: Small packets, on every path.
FEWEST = SimpleNamespace(path=None, family=None, nat=None, bytes=[str(SMALL)], flows=None, symbols=None)


def chosen(selection, name, values, key):
    """Those of the values that were asked for, all unless any was."""
    wanted = getattr(selection, name)
    return [value for value in values if not wanted or str(key(value)) in wanted]


def families(selection):
    """IP versions."""
    return chosen(selection, "family", FAMILIES, lambda family: family.version)


def flows(selection):
    """Numbers of connections."""
    return chosen(selection, "flows", FLOWS, lambda some: some.count)


def nats(selection):
    """Whether with masquerade."""
    return chosen(selection, "nat", (False, True), lambda nat: "masquerade" if nat else "none")


def sizes(selection):
    """Lengths of packets."""
    return chosen(selection, "bytes", SIZES, int)


def ways(selection, values):
    """Paths."""
    return chosen(selection, "path", values, lambda path: path.name)
