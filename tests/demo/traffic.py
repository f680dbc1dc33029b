# SPDX-License-Identifier: GPL-2.0

"""What goes through the router.

TCP is iperf3's. Its UDP sender spends more on a datagram of 64 bytes, with a system call and a look
at the clock for each, than the router does, and would be what is measured. Here one system call
hands over a train of equal datagrams, which the kernel takes apart before they enter the link
(UDP_SEGMENT): on the wire they are what iperf3's are. More of them are sent than the router can
forward; those that it has no room for are lost at its port, as they are on a network card."""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import topology
from system import Failure, inside, run

IPERF_PORT = 5201
# As much as fits in the queue of the router's port: TCP has no losses then, and no scatter from them.
TCP_WINDOW = "192K"

UDP_PORT = 5001
UDP_SOURCE_PORT = 40000
# The kernel takes no more of either at a time.
TRAIN_DATAGRAMS = 64
TRAIN_BYTES = 65000
# Ethernet, with the checksum that follows a frame; IP; UDP.
HEADERS_BYTES = 14 + 4 + 20 + 8
# More than can be on the way: the sender never waits for the router.
SEND_BUFFER_BYTES = 16 << 20

# Socket options that Python has no names for.
UDP_SEGMENT = 103
SO_SNDBUFFORCE = 32


@dataclass(frozen=True)
class Sent:
    """What came of it, as the sender sees it."""

    seconds: float
    # What the receiver got, where it is known.
    bits_per_s: float | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of traffic. Its function sends for a number of seconds."""

    name: str
    title: str
    send: Callable[[float], Sent]
    # None if that is TCP's affair.
    frame_bytes: int | None = None


def start_servers() -> None:
    """Starts the other ends of the TCP connections. They end with the guest."""
    hosts = {"internet": topology.INTERNET_HOST, "branch": topology.BRANCH_HOST}
    for namespace, address in hosts.items():
        subprocess.Popen(
            ["ip", "netns", "exec", namespace, "iperf3", "--server", "--bind", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    for namespace in hosts:
        wait_for_server(namespace)


def wait_for_server(namespace: str) -> None:
    """Returns when an iperf3 server listens in a namespace."""
    for _ in range(100):
        if run(f"ss -Hltn 'sport = {IPERF_PORT}'", namespace):
            return
        time.sleep(0.1)
    raise Failure(f"iperf3 does not start in {namespace}")


def send_tcp(address: str, seconds: float) -> Sent:
    """Sends to an iperf3 server."""
    output = run(
        f"iperf3 --client {address} --time {seconds:.0f} --window {TCP_WINDOW} --json"
        " --connect-timeout 5000",
        namespace="lan",
        timeout_s=seconds + 30,
    )
    received = json.loads(output)["end"]["sum_received"]
    return Sent(received["seconds"], received["bits_per_second"])


def send_udp(frame_bytes: int, seconds: float) -> Sent:
    """Sends frames of one size, as fast as possible. What does not fit in the receiver's socket, which
    nobody reads, is dropped there."""
    payload_bytes = frame_bytes - HEADERS_BYTES
    datagrams = min(TRAIN_DATAGRAMS, TRAIN_BYTES // payload_bytes)
    with (
        udp_socket("lan", topology.LAN_HOST, UDP_SOURCE_PORT) as sender,
        udp_socket("internet", topology.INTERNET_HOST, UDP_PORT) as receiver,
    ):
        sender.connect((topology.INTERNET_HOST, UDP_PORT))
        establish(sender, receiver, bytes(payload_bytes))
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, payload_bytes)
        sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        train = bytes(payload_bytes * datagrams)
        begin = time.monotonic()
        end = begin + seconds
        while time.monotonic() < end:
            for _ in range(8):
                sender.send(train)
        return Sent(time.monotonic() - begin)


def udp_socket(namespace: str, address: str, port: int) -> socket.socket:
    """A socket of one of the machines."""
    with inside(namespace):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(10)
    return made


def establish(sender: socket.socket, receiver: socket.socket, datagram: bytes) -> None:
    """Has one datagram go each way, so that the connection is established."""
    try:
        sender.send(datagram)
        _, masqueraded = receiver.recvfrom(2048)
        receiver.sendto(datagram, masqueraded)
        sender.recv(2048)
    except OSError as error:
        raise Failure(f"no UDP between the LAN and the Internet: {error}") from None


def tcp(name: str, title: str, address: str) -> Kind:
    """The kind for one destination."""
    return Kind(name, title, lambda seconds: send_tcp(address, seconds))


def udp(frame_bytes: int) -> Kind:
    """The kind for one size of frames."""
    return Kind(
        name=f"udp{frame_bytes}",
        title=f"UDP {frame_bytes} B",
        send=lambda seconds: send_udp(frame_bytes, seconds),
        frame_bytes=frame_bytes,
    )


PLAIN = (tcp("tcp", "TCP", topology.INTERNET_HOST), udp(64), udp(1400))
TUNNEL = tcp("tunnel", "TCP in the tunnel", topology.BRANCH_HOST)
KINDS = (*PLAIN, TUNNEL)
