# SPDX-License-Identifier: GPL-2.0

"""The networks of the demo, each machine a network namespace:

    lan ---- router ------ internet ------ gateway ---- branch
    10.1.0.2   203.0.113.2   198.51.100.10   192.0.2.2    10.2.0.2
             '============ ESP tunnel ============'

The router masquerades for 10.1.0.0/24, except into the tunnel between its LAN and the branch's.
The Internet is one machine, which is the router's and the gateway's provider and also the host that
the LAN talks to.

**Packets are as on a wire.** Segmentation and checksums are done before a packet enters a link, and
nothing puts packets together again. The hosts verify the checksums of what the router forwarded.

**The router is the slow machine.** All machines share one processor here, and what the hosts do for
a packet costs several times what the router does; without further ado one would measure the hosts.
So the router gets what a small router has: each of its two ports has its packets taken in,
forwarded and sent by a kernel thread of its own (threaded NAPI), and each thread may run for a
fixed part of the time only (SCHED_DEADLINE, which the kernel enforces for its own threads, too).
Then the router is what limits the throughput, whatever the hosts' packets cost, and the threads'
CPU time is the router's. The hosts' ports next to the router have threads, too: else their packets
would be taken in on the router's time.

A thread whose time is up still finishes its batch of at most 64 packets, and the kernel does not
charge it for that. The period is long, so that this is little; and it favours what is slow, so the
ratios that come of it are smaller than the true ones, if anything.
"""

from dataclasses import dataclass
from pathlib import Path

import system
from system import run

LAN_HOST = "10.1.0.2"
INTERNET_HOST = "198.51.100.10"
BRANCH_HOST = "10.2.0.2"
ROUTER_WAN = "203.0.113.2"
GATEWAY_WAN = "192.0.2.2"
LAN_NET = "10.1.0.0/24"
BRANCH_NET = "10.2.0.0/24"
# All addresses that must not be seen on the WAN.
INNER_NETS = "10.0.0.0/8"

# The ports of the Internet's machine: what arrives there is what leaves the router and the gateway.
PROVIDER_PORTS = ("isp0", "isp1")

# What each of the router's two threads gets.
ROUTER_RUNTIME_US = 7_500
ROUTER_PERIOD_US = 50_000
# Above everything but the router.
HOST_THREAD_PRIORITY = 10

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Port:
    """One end of a link."""

    namespace: str
    device: str
    address: str
    mac: str


LINKS = (
    (
        Port("lan", "pc0", f"{LAN_HOST}/24", "02:00:00:00:01:02"),
        Port("router", "lan0", "10.1.0.1/24", "02:00:00:00:01:01"),
    ),
    (
        Port("router", "wan0", f"{ROUTER_WAN}/30", "02:00:00:00:02:02"),
        Port("internet", "isp0", "203.0.113.1/30", "02:00:00:00:02:01"),
    ),
    (
        Port("internet", "isp1", "192.0.2.1/30", "02:00:00:00:03:01"),
        Port("gateway", "gwan0", f"{GATEWAY_WAN}/30", "02:00:00:00:03:02"),
    ),
    (
        Port("gateway", "glan0", "10.2.0.1/24", "02:00:00:00:04:01"),
        Port("branch", "srv0", f"{BRANCH_HOST}/24", "02:00:00:00:04:02"),
    ),
)

DEFAULT_ROUTES = {
    # For the window see keep_senders_out_of_the_router().
    "lan": "10.1.0.1 initcwnd 1000",
    "router": "203.0.113.1",
    "gateway": "192.0.2.1",
    "branch": "10.2.0.1",
}


def build() -> None:
    """Makes all of it, but for what depends on the mode."""
    for namespace in ("lan", "router", "internet", "gateway", "branch"):
        run(f"ip netns add {namespace}")
        run(f"ip -n {namespace} link set lo up")
        run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1", namespace)
    for one, other in LINKS:
        connect(one, other)
    run(f"ip -n internet address add {INTERNET_HOST}/32 dev lo")
    for namespace, route in DEFAULT_ROUTES.items():
        run(f"ip -n {namespace} route add default via {route}")
    schedule_threads()
    keep_senders_out_of_the_router()
    build_tunnel()
    run(f"nft -f {HERE}/router.nft", "router")


def connect(one: Port, other: Port) -> None:
    """Makes a link, with its addresses, its fixed neighbours, and packets as on a wire."""
    run(
        f"ip -n {one.namespace} link add {one.device} address {one.mac} type veth"
        f" peer name {other.device} address {other.mac} netns {other.namespace}"
    )
    for port in (one, other):
        # A veth has NAPI, which the threads need, only with GRO on. But what GRO puts together must
        # not become longer than its limit, so it puts nothing together.
        offloads = "gro on gso off tso off tx off"
        # A router's port verifies checksums in hardware, nearly whatever it costs. The hosts verify
        # them by themselves: nothing that the router gets wrong is counted as received.
        offloads += " rx on" if port.namespace == "router" else " rx off"
        run(f"ethtool -K {port.device} {offloads}", port.namespace)
        run(f"ip -n {port.namespace} link set dev {port.device} gro_ipv4_max_size 64 up")
        run(f"ip -n {port.namespace} address add {port.address} dev {port.device}")
    for port, peer in ((one, other), (other, one)):
        run(
            f"ip -n {port.namespace} neighbour replace {peer.address.split('/')[0]}"
            f" lladdr {peer.mac} dev {port.device} nud permanent"
        )


def schedule_threads() -> None:
    """Gives the router's ports, and those next to them, a thread each."""
    for port in LINKS[0] + LINKS[1]:
        run(f"sh -c 'echo 1 >/sys/class/net/{port.device}/threaded'", port.namespace)
        policy = f"--fifo --pid {HOST_THREAD_PRIORITY}"
        if port.namespace == "router":
            # In nanoseconds.
            times = f"--sched-runtime {ROUTER_RUNTIME_US}000 --sched-period {ROUTER_PERIOD_US}000"
            policy = f"--deadline {times} --pid 0"
        run(f"chrt {policy} {port_thread(port.device)}")


def port_thread(device: str) -> int:
    """The thread that takes in a device's packets."""
    return system.thread_named(f"napi/{device}-")


def router_threads() -> tuple[int, int]:
    """All that the router does, it does in these."""
    return port_thread("lan0"), port_thread("wan0")


def keep_senders_out_of_the_router() -> None:
    """Has TCP never wait for its packets to leave the host.

    A packet leaves its host where the router takes it in, for all that the kernel knows, and a sender
    that waits for that (TCP small queues) would go on sending right there, on the router's time. It
    waits if more is on the way than what the pacing rate gives in a millisecond; so that rate is
    made high: by these factors, and by a large congestion window, which the receiver's window keeps
    from being used."""
    run("sysctl -qw net.ipv4.tcp_pacing_ss_ratio=1000 net.ipv4.tcp_pacing_ca_ratio=1000", "lan")


def build_tunnel() -> None:
    """Sets up ESP with AES-GCM between the router and the gateway."""
    ends = (("router", ROUTER_WAN, LAN_NET), ("gateway", GATEWAY_WAN, BRANCH_NET))
    for spi, (sender, receiver) in ((0x101, ends), (0x102, ends[::-1])):
        (_, source, source_net), (_, destination, destination_net) = sender, receiver
        outer = f"src {source} dst {destination} proto esp"
        form = "mode tunnel reqid 1"
        key = "0x" + f"{spi & 0xFF:02x}" * 20
        for namespace, *_ in ends:
            run(
                f"ip -n {namespace} xfrm state add {outer} spi {spi} {form}"
                f" aead 'rfc4106(gcm(aes))' {key} 128"
            )
            for direction in ("out",) if namespace == sender[0] else ("in", "fwd"):
                run(
                    f"ip -n {namespace} xfrm policy add src {source_net} dst {destination_net}"
                    f" dir {direction} tmpl {outer} {form}"
                )
