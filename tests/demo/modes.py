# SPDX-License-Identifier: GPL-2.0

"""What the router does with established connections: nothing special, fasttrack, or the flowtable.

Somebody has to exempt the tunnel's traffic from masquerading. The fasttrack command brings the rules
for that. In the other modes it is done as an administrator would do it, and these rules are taken
away for fasttrack: so what is said about clear text is said about fasttrack's rules."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from system import Failure, run
from topology import HERE

Json = dict[str, Any]


def fasttrack(arguments: str) -> str:
    """Runs the command for the router's namespace."""
    return run(f"fasttrack -N router {arguments}")


def listing(kind: str) -> list[Json]:
    """What `fasttrack list` shows, without what it says about itself."""
    objects: list[Json] = json.loads(fasttrack(f"-j list {kind}"))["fasttrack"]
    return [item for item in objects if "metainfo" not in item]


def stats() -> Json:
    """The module's counters for the router."""
    found: Json = listing("stats")[0]["stats"]
    return found


def add_rules(*names: str) -> None:
    """Adds some of the files of rules to the router's."""
    for name in names:
        run(f"nft -f {HERE}/{name}.nft", "router")


def remove_tables(*tables: str) -> None:
    """Removes tables from the router's rules."""
    for table in tables:
        run(f"nft delete table {table}", "router")


@dataclass(frozen=True)
class Mode:
    """A mode, with what switches it on and off again."""

    name: str
    title: str
    enter: Callable[[], object]
    leave: Callable[[], object]


OFF = Mode(
    name="off",
    title="without",
    enter=lambda: add_rules("exemption"),
    leave=lambda: remove_tables("ip exemption"),
)
ON = Mode(
    name="on",
    title="with fasttrack",
    enter=lambda: fasttrack("enable"),
    leave=lambda: fasttrack("disable"),
)
FLOWTABLE = Mode(
    name="flowtable",
    title="with nft's flowtable",
    enter=lambda: add_rules("exemption", "flowtable"),
    leave=lambda: remove_tables("inet stock", "ip exemption"),
)
# Neither fasttrack nor an exemption: what must not be done.
CARELESS = Mode(name="careless", title="without exemption", enter=lambda: None, leave=lambda: None)

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
        run("conntrack -F", "router")
        mode.enter()
        self.mode = mode


def load_module() -> None:
    """Loads it, and finds out whether the command can talk to it."""
    try:
        run("modprobe fasttrack")
    except Failure as failure:
        raise Failure(f"the module cannot be loaded: {failure}") from None
    try:
        stats()
    except (KeyError, IndexError, ValueError):
        raise Failure("`fasttrack -j list stats` does not print what it should") from None
