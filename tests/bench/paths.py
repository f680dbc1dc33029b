# SPDX-License-Identifier: GPL-2.0
"""The ways that a packet can take through the router, and how to know which one it took."""

import json
from pathlib import Path as File

FLOOR = File("/mnt/share/floor.ko")


class NotTaken(Exception):
    """No packet at all took the path: there is nothing to measure."""


class Path:
    """A way through the router. The packets of a measurement all have to take it."""

    name = ""
    title = ""
    # Whether packets get to the sink, how many hops the router takes off them, whether its IP layer
    # forwards them, and whether they meet the firewall's rules.
    arrives = True
    hops = 1
    forwarded = False
    meets_rules = False
    # Whether it is about connections, and whether conntrack counts their packets.
    tracked = False
    accounting = False

    def enter(self, network, family):
        """Has packets take it."""

    def learn(self, send_all):
        """Lets it see packets of all flows."""

    def leave(self, network):
        """Undoes `enter`."""

    def counters(self, network, family):
        """Numbers that tell, afterwards, which way packets took."""
        found = {"arrived": network.arrived(), "forwarded": network.forwarded(family)}
        if self.tracked:
            found["met rules"] = network.met_rules()
        return found

    def expected(self, packets):
        """What `counters` have to grow by."""
        wanted = {"arrived": packets * self.arrives, "forwarded": packets * self.forwarded}
        if self.tracked:
            wanted["met rules"] = packets * self.meets_rules
        return wanted

    def link_addresses(self, network):
        """What packets that reach the sink are for, and from, on the last cable."""
        return network.sink.mac("eth0"), network.router.mac("wan0p" if network.wan.is_point_to_point else "wan0")

    def is_taken(self, network, flows):
        """What else has to be true while it is taken."""
        return True


class Drop(Path):
    """What it costs to receive a packet, and to drop it at the first opportunity."""

    name, title = "drop", "receive and drop"
    arrives = False

    def enter(self, network, family):
        network.router.nft("table netdev dropping {\nchain lan {\n"
                           f"type filter hook ingress device {network.lan_port} priority 0; policy accept\n"
                           "drop\n}\n}\n")

    def leave(self, network):
        network.clear()


class Floor(Path):
    """A bare redirect, see floor/: from port to port, whatever lies on them."""

    name, title = "floor", "bare redirect (floor)"
    hops = 0

    def enter(self, network, family):
        tag = [f"tag={network.wan.tag}"] if network.lan.tag or network.wan.tag else []
        self._redirect(network, network.lan_port, network.wan_port, *tag)

    def link_addresses(self, network):
        """It sends as the device does that it sends by."""
        return network.sink.mac("eth0"), network.router.mac(network.wan_port)

    def _redirect(self, network, come_from, to, *more):
        network.run("insmod", FLOOR, f"from={come_from}", f"to={to}", f"destination={network.sink.mac('eth0')}",
                    *more)

    def leave(self, network):
        network.run("rmmod", "floor")


class UpperFloor(Floor):
    """A bare redirect between the devices that have the addresses. What it takes more is what receiving and
    sending costs on the devices that lie on the ports."""

    name, title = "upper-floor", "redirect, upper devices"

    def enter(self, network, family):
        self._redirect(network, "lan0", "wan0")


class Plain(Path):
    """Forwarding, without a single netfilter hook."""

    name, title = "plain", "plain forwarding"
    forwarded = True


class Slow(Path):
    """What a router with a firewall does without a fast path."""

    name, title = "slow", "slow path, 30 rules"
    tracked = forwarded = meets_rules = True


class Flowtable(Path):
    """The kernel's own fast path."""

    name, title = "flowtable", "nft flowtable"
    tracked = True
    options = ""

    def enter(self, network, family):
        network.router.nft(
            "table inet stock {\nflowtable fast {\nhook ingress priority 0\n"
            f"devices = {{ {network.lan_port}, {network.wan_port} }}\n"
            f"{self.options}\n}}\nchain forward {{\ntype filter hook forward priority filter - 1; policy accept\n"
            "ct state established flow add @fast\n}\n}\n")

    def learn(self, send_all):
        send_all()

    def leave(self, network):
        network.run("nft", "delete", "table", "inet", "stock")

    def is_taken(self, network, flows):
        # Listing many connections takes longer than everything else together; the counters have to do
        # then.
        if flows.count > 1024:
            return True
        listed = network.run("conntrack", "-L", "-f", "ipv4") + network.run("conntrack", "-L", "-f", "ipv6")
        return listed.count("[OFFLOAD]") == flows.count


class FlowtableCounter(Flowtable):
    """The same, with conntrack's counters kept right."""

    name, title = "flowtable-counter", "nft flowtable, counter"
    accounting = True
    options = "counter"


class Fasttrack(Path):
    """fasttrack."""

    name, title = "fasttrack", "fasttrack"
    tracked = True

    # Once in this time a packet of each flow takes the slow path. The longest that can be had: such
    # packets are not to be among those that are measured; where one is, it is measured again.
    SAMPLE_INTERVAL = "60s"

    # With the first packet, so that many connections at once are learned as fast as they come.
    learn_after = 1

    # The default. All of a table is looked through once a second.
    table_size = 131072

    def enter(self, network, family):
        control(network, "enable")
        control(network, f"set sample-interval {self.SAMPLE_INTERVAL} udp-timeout 1d table-size {self.table_size} "
                         f"learn-after {self.learn_after}")

    def learn(self, send_all):
        send_all()

    def leave(self, network):
        control(network, "disable")

    def counters(self, network, family):
        found = super().counters(network, family)
        stats = statistics(network)
        found["fast"] = stats["fast"]["original"]["packets"]
        found["slow"] = sum(stats["slow"].values())
        found["sampled"] = stats["slow"]["sampled"]
        return found

    def expected(self, packets):
        return super().expected(packets) | {"fast": packets, "slow": 0, "sampled": 0}


class FasttrackAccounting(Fasttrack):
    """fasttrack, with conntrack's counters kept right."""

    name, title = "fasttrack-acct", "fasttrack, acct"
    accounting = True


UNTRACKED = (Drop(), Floor(), Plain())
# In the order in which they are measured with the same connections: what offloads a connection would not
# give it back.
TRACKED = (Fasttrack(), FasttrackAccounting(), Slow(), Flowtable(), FlowtableCounter())
# In the order in which they are shown.
ALL = UNTRACKED[:2] + (TRACKED[0], TRACKED[1], TRACKED[3], TRACKED[4], UNTRACKED[2], TRACKED[2])


def control(network, command):
    """Runs a fasttrack command on the router."""
    return network.run("fasttrack", command)


def statistics(network):
    """fasttrack's counters."""
    listed = json.loads(network.run("fasttrack", "-j", "list", "stats"))["fasttrack"]
    return next(item["stats"] for item in listed if "stats" in item)
