# SPDX-License-Identifier: GPL-2.0

"""What the router does with established connections: nothing special, fasttrack, or the flowtable.

Somebody has to exempt the tunnel's traffic from masquerading. The fasttrack command brings the rules for
that. In the other modes it is done as an administrator would do it, and these rules are taken away for
fasttrack: so what is said about clear text then is said about fasttrack's rules."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from system import Failure, run
from topology import HERE

Json = dict[str, Any]


def fasttrack(*arguments: str) -> str:
    """Runs the command for the router's namespace."""
    return run("fasttrack", "-N", "router", *arguments)


def listing(kind: str) -> list[Json]:
    """What `fasttrack list` shows, without what says about itself."""
    objects = json.loads(fasttrack("-j", "list", kind))["fasttrack"]
    return [item for item in objects if "metainfo" not in item]


def stats() -> Json:
    """The module's counters for the router."""
    return listing("stats")[0]["stats"]


def load_rules(name: str) -> None:
    """Adds one of the files of rules to the router's."""
    run("nft", "-f", str(HERE / name), namespace="router")


def drop_rules(*table: str) -> None:
    """Removes a table from the router's rules."""
    run("nft", "delete", "table", *table, namespace="router")


def enter_flowtable() -> None:
    load_rules("exemption.nft")
    load_rules("flowtable.nft")


def leave_flowtable() -> None:
    drop_rules("inet", "stock")
    drop_rules("ip", "exemption")


@dataclass(frozen=True)
class Mode:
    """A mode, with what switches it on and off again."""

    name: str
    title: str
    enter: Callable[[], object]
    leave: Callable[[], object]


OFF = Mode("off", "without", lambda: load_rules("exemption.nft"), lambda: drop_rules("ip", "exemption"))
ON = Mode("on", "with fasttrack", lambda: fasttrack("enable"), lambda: fasttrack("disable"))
FLOWTABLE = Mode("flowtable", "with nft's flowtable", enter_flowtable, leave_flowtable)
# Neither fasttrack nor an exemption: what must not be done.
CARELESS = Mode("careless", "masquerade, no exemption", lambda: None, lambda: None)

COMPARED = (OFF, ON, FLOWTABLE)


class Switch:
    """Keeps the router in one mode at a time. Each begins without connections."""

    def __init__(self) -> None:
        self.mode = CARELESS

    def to(self, mode: Mode) -> None:
        """Leaves the present mode for another."""
        if mode is self.mode:
            return
        self.mode.leave()
        run("conntrack", "-F", namespace="router")
        mode.enter()
        self.mode = mode


def load_module() -> None:
    """Loads it, and finds out whether the command can talk to it."""
    try:
        run("modprobe", "fasttrack")
    except Failure as failure:
        raise Failure(f"the module cannot be loaded: {failure}") from None
    try:
        stats()
    except (KeyError, IndexError, ValueError):
        raise Failure("`fasttrack -j list stats` does not print what it should") from None
