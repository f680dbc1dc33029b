# SPDX-License-Identifier: GPL-2.0

"""Which of the kernel's selftests are run, how, and why."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def as_it_is(text: str) -> str:
    """No change."""
    return text


def without_flowtable(text: str) -> str:
    """nft_flowtable.sh without flowtables: its rules accept what they would have handed to them."""
    text = re.sub(r"\bflow add @\w+ ?", "", text)
    return re.sub(r"^\s*flowtable \w+ \{.*?^\s*\}\n", "", text, flags=re.DOTALL | re.MULTILINE)


def patient(text: str) -> str:
    """Gives a script more time, as an emulated processor needs it, where it ends what takes too long, and less to
    transfer where it would not come to an end."""
    text = re.sub(r"^(SOCAT|SCTP_TEST)_TIMEOUT=\d+", r"\1_TIMEOUT=400", text, flags=re.MULTILINE)
    # nft_flowtable.sh's socat gives up half a second after one direction has ended, whether the other has or not.
    text = text.replace("socat -${proto} ", "socat -t 60 -${proto} ")
    # nft_queue.sh: how long its listeners wait for a packet, and what it transfers, in megabytes; an eighth of it on
    # a slow machine.
    text = re.sub(r"^timeout=5$", "timeout=20", text, flags=re.MULTILINE)
    text = re.sub(r"^COUNT=200$", "COUNT=40", text, flags=re.MULTILINE)
    # And how many milliseconds it holds a packet back for, within which another program has to send the next one.
    text = text.replace("nf_queue -q 12 -d 1000 ", "nf_queue -q 12 -d 3000 ")
    # nft_nat.sh waits for all of the time in which its receivers listen.
    text = re.sub(r"\btimeout 3 (?=socat)", "timeout 20 ", text)
    return re.sub(r"\btimeout (?:5|10) (?=ip netns exec|socat|iperf3)", "timeout 60 ", text)


def tainted(text: str) -> str:
    """Lets nft_queue.sh judge what it would not on a kernel that is tainted already, as it is by a module that is not
    its own: whether it is more so afterwards."""
    text = text.replace('if [ "$tainted_then" -ne 0 ];then', "if false;then")
    return text.replace('if [ "$tainted_now" -eq 0 ];then', 'if [ "$tainted_now" -eq "$tainted_then" ];then')


@dataclass(frozen=True)
class Excepted:
    """A case that passes without fasttrack and cannot with it."""

    why: str
    #: What the script says about it then.
    said: re.Pattern[str]


@dataclass(frozen=True)
class Script:
    """A selftest, and how it is run."""

    path: str
    #: The namespaces that forward: what their names begin with.
    routers: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    #: What is changed in it when fasttrack is on.
    with_fasttrack: Callable[[str], str] = as_it_is
    #: The cases in which packets have to be fast.
    fast: re.Pattern[str] | None = None
    #: Cases that pass without fasttrack and cannot with it, by name.
    excepted: dict[str, Excepted] = field(default_factory=dict)
    #: What fasttrack does with IPsec.
    ipsec: str = "exclude"

    @property
    def name(self) -> str:
        """What it is called."""
        return Path(self.path).name

    @property
    def label(self) -> str:
        """Its name, with what arguments it is run if they are not many, and in which mode of IPsec if not the usual one."""
        many = len(self.arguments) > 8
        arguments = [f"({len(self.arguments)} of its tests)"] if many else self.arguments
        mode = [] if self.ipsec == "exclude" else [f"({self.ipsec})"]
        return " ".join([self.name, *arguments, *mode])


#: A case of nft_flowtable.sh.
IPSEC = "ipsec tunnel mode for ns1/ns2"


def flowtable(*mtus_and_size: int, ipsec: str = "exclude") -> Script:
    """nft_flowtable.sh. Without fasttrack it is as the kernel has it, with its flowtable; with fasttrack
    there is none. It finds out that packets took the fast path from what rules counted."""
    arguments = [word for pair in zip(("-o", "-l", "-r", "-s"), map(str, mtus_and_size), strict=True) for word in pair]
    excepted = {
        "dscp_fwd: dscp packet counters match": Excepted(
            "it wants packets without the DSCP that a rule sets, as the flowtable sends them; fasttrack sets it in all",
            re.compile(r"but got\s+[1-9]\d*\s*,\s*0\b"),
        ),
    }
    if ipsec == "exclude":
        excepted[IPSEC] = Excepted("IPsec stays slow, so that rules count all of it", re.compile("counter .* exceeds"))
    return Script(
        "net/netfilter/nft_flowtable.sh",
        ("nsr1",),
        tuple(arguments),
        without_flowtable,
        re.compile("flow offload|bridge|ipsec" if ipsec == "accelerate" else "flow offload|bridge|IPv6 ipsec"),
        excepted,
        ipsec,
    )


def scripts(seed: int) -> list[Script]:
    """All of them. What is random about them follows from the seed, and so is the same in both runs."""
    return [
        flowtable(9000, 1500, 2000, 2 << 20),
        flowtable(9000, 1500, 2000, 2 << 20, ipsec="accelerate"),
        *random_flowtables(seed),
        Script("net/netfilter/nft_nat.sh", ("ns0",)),
        Script("net/netfilter/nft_nat_zones.sh", ("gw",)),
        Script("net/netfilter/conntrack_icmp_related.sh", ("nsrouter",)),
        Script("net/netfilter/conntrack_tcp_unreplied.sh", ("ns2",)),
        Script("net/netfilter/nft_conntrack_helper.sh", ("ns1", "ns2")),
        Script("net/netfilter/nft_synproxy.sh", ("nsr",)),
        Script("net/netfilter/nft_tproxy_tcp.sh", ("nsrouter",)),
        Script("net/netfilter/nft_queue.sh", ("nsrouter",), fast=re.compile("(?:tcp|sctp) and nfqueue in forward chain")),
        Script("net/netfilter/rpath.sh", ("ns2",)),
        Script("net/netfilter/vxlan_mtu_frag.sh", ("router", "vtep")),
        Script("net/pmtu.sh", ("ns_r",), PMTU),
    ]


def random_flowtables(seed: int) -> list[Script]:
    """nft_flowtable.sh with random MTUs and sizes, which it otherwise draws itself. It goes up to 64 MB;
    an emulated processor would take too long for that."""
    draw = random.Random(seed)
    return [flowtable(*(draw.randrange(1280, 65536) for _ in range(3)), draw.randrange(2 << 20, 4 << 20)) for _ in range(2)]


# Of pmtu.sh, what is forwarded by R1 and R2, whose flows have to follow the MTU, the route and the
# device: plain, and in tunnels that pass through. Of the 39 such cases these are one of each kind, since each
# takes a while: of VXLAN, GENEVE, and a bridge with VXLAN those with the same version of IP inside and outside, one
# of FOU and of GUE, and all of IP in IP; whether a bridge has VXLAN or GENEVE below it makes no difference to the
# routers.
# Not the cases that want Open vSwitch, which the image does not have, nor those of two hosts without a router, nor
# those that only list and flush the sender's cache.
PMTU = (
    "pmtu_ipv4_exception",
    "pmtu_ipv6_exception",
    "pmtu_ipv4_dscp_icmp_exception",
    "pmtu_ipv4_dscp_udp_exception",
    "pmtu_ipv4_vxlan4_exception",
    "pmtu_ipv6_vxlan6_exception",
    "pmtu_ipv4_geneve4_exception",
    "pmtu_ipv6_geneve6_exception",
    "pmtu_ipv4_br_vxlan4_exception",
    "pmtu_ipv6_br_vxlan6_exception",
    "pmtu_ipv4_fou4_exception",
    "pmtu_ipv6_gue6_exception",
    "pmtu_ipv4_ipv4_exception",
    "pmtu_ipv6_ipv4_exception",
    "pmtu_ipv4_ipv6_exception",
    "pmtu_ipv6_ipv6_exception",
    "pmtu_vti6_udp_routed_exception",
    "pmtu_vti4_udp_routed_exception",
    "cleanup_ipv4_exception",
    "cleanup_ipv6_exception",
    "pmtu_ipv4_route_change",
    "pmtu_ipv6_route_change",
    "pmtu_ipv4_mp_exceptions",
)
