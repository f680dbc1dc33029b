# SPDX-License-Identifier: GPL-2.0
"""What somebody on the WAN sends into an established flow that IPsec protects: none of it arrives, and it is
counted as without fasttrack. Beside that, what the kernel's own flowtable makes of it."""

import pytest

from lab import findings, leaks
from lab.control import Control
from lab.injection import Injector
from lab.site import Site, offloading
from test_proof import FAMILIES, KINDS, SERIAL

COUNT = 10

TITLE = f"injected from the WAN, {COUNT} packets each: how many reached the LAN, and what IPsec counted"

FLOWTABLE = """
table inet offloading {{
    flowtable offloaded {{
        hook ingress priority 0;
        devices = {{ {devices} }};
    }}
    chain forward {{
        type filter hook forward priority 0;
        meta l4proto udp ct state established flow add @offloaded
    }}
}}
"""

#: For which kinds packets find a flow of another secpath, in mode `accelerate`. What was decrypted in transport
#: mode does not pass a device again; what arrives beside an interface finds no flow of the interface's.
MISMATCHES = {
    "clear_text_twin": {"policy", "encapsulated"},
    "by_a_state_no_policy_names": {"policy", "encapsulated", "interface"},
    "by_a_state_for_other_addresses": {"policy", "encapsulated", "interface"},
}


class Slow:
    """The slow path alone."""

    #: Directions of the conversation that are fast.
    fast = 0
    #: Kinds for which injected packets find a flow of another secpath.
    mismatches = {}

    def __init__(self, site, control, conversation):
        self.site, self.control, self.conversation = site, control, conversation
        self.begin()
        conversation.warm_up()

    def begin(self):
        """Switches on what is tried."""

    def end(self):
        """Switches it off."""

    def check(self):
        """The conversation goes on as fast as it is to."""
        before = self.control.stats()
        self.conversation.exchange(COUNT)
        after = self.control.stats() - before
        assert sum(packets == COUNT for packets in after.packets) == self.fast, (after.packets, after.reasons())

    def inject(self, injector, injection):
        """Gives what becomes of an injection."""
        frames = injection(injector, COUNT)
        # Not what was under way before, nor a sample.
        self.check()
        before = self.control.stats()
        found = injector.inject(frames)
        after = self.control.stats() - before
        mismatches = COUNT if self.site.kind in self.mismatches.get(injection.__name__, ()) else 0
        assert after.slow["secpath-mismatch"] == mismatches, after.reasons()
        assert after.fast == 0
        self.check()
        return found


class Exclude(Slow):
    """fasttrack as it is after `enable`, without any rule."""

    ipsec = "exclude"

    def begin(self):
        self.fast = {"exclude": 0, "accelerate": 1 if self.site.kind == "transport" else 2}[self.ipsec]
        # No packet is a sample while something is injected.
        self.control.enable(ipsec=self.ipsec, sample_interval=60_000)

    def end(self):
        self.control.disable()


class Accelerate(Exclude):
    """The same with IPsec on the fast path."""

    ipsec = "accelerate"
    mismatches = MISMATCHES


class Flowtable(Slow):
    """The kernel's own flowtable. Nothing is expected of it."""

    def __init__(self, site, control, conversation):
        self.site, self.control, self.conversation = site, control, conversation
        devices = ["lan0", "wan0", "wan1"] + ["xfrm0"] * (site.kind == "interface")
        site.a.gateway.nft(FLOWTABLE.format(devices=", ".join(devices)))
        self.check()

    def check(self):
        # What source NAT moves into a policy it sends in clear, and then that is not let in by B.
        for _ in range(4):
            if self.conversation.request(timeout=0.3):
                self.conversation.reply(timeout=0.3)
        assert "OFFLOAD" in self.site.a.gateway.run("conntrack", "-L", "-f", self.site.family)
        self.conversation.drain()

    def inject(self, injector, injection):
        frames = injection(injector, COUNT)
        self.check()
        found = injector.inject(frames)
        self.conversation.drain()
        return found

    def end(self):
        self.site.a.gateway.run("nft", "delete", "table", "inet", "offloading")


WAYS = {"slow path": Slow, "exclude": Exclude, "accelerate": Accelerate, "flowtable": Flowtable}


def in_words(found):
    arrived, counted = found
    return " ".join([str(arrived), *(f"{name} {count}" for name, count in counted.items())])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_injected_arrives(kind, family):
    inject_all(kind, family)


@pytest.mark.parametrize(("kind", "family"), [("policy", "ipv6"), ("transport", "ipv4")])
def test_nothing_injected_arrives_where_esp_is_offloaded(kind, family):
    """As `test_proof` has it."""
    with offloading():
        inject_all(kind, family, ", offload")


def inject_all(kind, family, how=""):
    """Every injection into every way of forwarding."""
    site = Site(kind, family, next(SERIAL), conversing=False)
    try:
        if how:
            site.merge()
        control = site.until_closed(Control(site.a.gateway))
        conversation = site.datagrams()
        injector = site.until_closed(Injector(site, conversation))
        found = {}
        for name, way in WAYS.items():
            site.a.gateway.run("conntrack", "-F", check=False)
            this = way(site, control, conversation)
            for injection in Injector.KINDS:
                result = this.inject(injector, injection)
                found[injection.__name__, name] = result
                findings.note(TITLE + how, f"{kind:13}{family:5}{injection.__name__}", name, in_words(result), result[0])
                if name != "flowtable":
                    leaks.none(result[0], name, injection.__name__, result)
            this.end()
        for injection in Injector.KINDS:
            arrived, counted = found[injection.__name__, "slow path"]
            assert arrived == 0 and list(counted.values()) == [COUNT], found
            for name in ("exclude", "accelerate"):
                assert found[injection.__name__, name] == (arrived, counted), found
    finally:
        site.close()
