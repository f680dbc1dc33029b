# SPDX-License-Identifier: GPL-2.0
"""Traffic between hosts: datagrams and streams that are checked, frames made by hand, captures."""

import contextlib
import os
import select
import socket
import struct
import subprocess
import time

ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86dd
SO_NO_CHECK = 11
UDP_SEGMENT, UDP_GRO = 103, 104
SOL_PACKET, PACKET_STATISTICS, PACKET_VNET_HDR = 263, 6, 15
UDP_NO_CHECK6_TX = 101
IPV6_UNICAST_HOPS = 16
IPV6_MTU_DISCOVER = 23
#: Types of ICMPv6 messages. The latter are behind options for every hop.
NEIGHBOUR_DISCOVERY = {b"\x85", b"\x86", b"\x87", b"\x88", b"\x89"}
MULTICAST_LISTENERS = {b"\x82", b"\x83", b"\x84", b"\x8f"}


def family_of(address):
    """The family of sockets for an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def hops_left(ip):
    """Of a packet, for scapy: its time to live, or hop limit."""
    return ip.hlim if ip.version == 6 else ip.ttl


def protocol_in(frame):
    """The number of the protocol in the IP packet of an Ethernet frame, which has no VLAN tag."""
    return frame[20 if frame[12:14] == b"\x86\xdd" else 23]


def is_whole(frame):
    """Whether the checksums of an Ethernet frame with TCP or UDP are right. What has not been summed because a device
    is to do it is not."""
    is_v6 = frame[12:14] == b"\x86\xdd"
    packet = frame[14:]
    header = 40 if is_v6 else 4 * (packet[0] & 15)
    addresses = packet[8:40] if is_v6 else packet[12:20]
    length = header + int.from_bytes(packet[4:6]) if is_v6 else int.from_bytes(packet[2:4])
    segment = packet[header:length]
    pseudo = addresses + struct.pack("!HH", protocol_in(frame), len(segment))
    return (is_v6 or _sums_up(packet[:header])) and _sums_up(pseudo + segment)


def _sums_up(octets):
    octets += bytes(len(octets) % 2)
    return sum(struct.unpack(f"!{len(octets) // 2}H", octets)) % 0xffff == 0


def anywhere(address, port):
    """Where a server listens that is to be reached by an address."""
    return ("::" if ":" in address else "0.0.0.0", port)


def _is_about_neighbours(frame):
    """Whether an Ethernet frame with IPv6 is one of neighbour discovery, or says who listens to what."""
    protocol, message, behind_options = (frame[at:at + 1] for at in (20, 54, 62))
    if protocol == b"\0":
        return behind_options in MULTICAST_LISTENERS
    return protocol == b"\x3a" and message in NEIGHBOUR_DISCOVERY


class Datagrams:
    """A UDP conversation between a client and a server that echoes."""

    def __init__(self, client, server, address, port=7, source=None, listen=None):
        family = family_of(address)
        self._is_v6 = family == socket.AF_INET6
        self._server = server.socket(family, socket.SOCK_DGRAM)
        self._server.bind(listen or anywhere(address, port))
        self._client = client.socket(family, socket.SOCK_DGRAM)
        if source:
            self._client.bind(source)
        self._client.connect((address, port))
        self._sent = 0
        #: Where the server sees the client's datagrams come from.
        self.seen_from = None

    @property
    def source(self):
        """The client's own address and port."""
        return self._client.getsockname()[:2]

    def send(self, size=32):
        """One datagram to the server, which may never arrive. Gives its payload."""
        payload = self._payload(size)
        self._client.send(payload)
        return payload

    def request(self, size=32, timeout=2.0):
        """One datagram to the server. Gives whether it arrived, unchanged."""
        payload = self.send(size)
        self._server.settimeout(timeout)
        try:
            received, sender = self._server.recvfrom(65536)
        except TimeoutError:
            return False
        self.seen_from = sender[:2]
        assert self._read(received) == payload
        return True

    def reply(self, size=32, timeout=2.0):
        """One datagram back to the client. Gives whether it arrived, unchanged."""
        payload = self._payload(size)
        self._server.sendto(payload, self.seen_from)
        self._client.settimeout(timeout)
        try:
            received = self._client.recv(65536)
        except TimeoutError:
            return False
        assert self._read(received) == payload
        return True

    def drain(self):
        """Throws away what has arrived and nobody has waited for."""
        for end in (self._server, self._client):
            end.settimeout(0)
            with contextlib.suppress(OSError):
                while True:
                    end.recv(65536)

    def _read(self, received):
        """The payload in what a socket gives."""
        return received

    def exchange(self, count=1, size=32):
        """`count` datagrams each way, all of which have to arrive."""
        for _ in range(count):
            assert self.request(size), "a request was lost"
            assert self.reply(size), "a reply was lost"

    def warm_up(self):
        """Lets both directions be learned and confirmed."""
        self.exchange(2)
        # The devices are attached after the first packets asked for it.
        for _ in range(4):
            time.sleep(0.15)
            self.exchange(1)

    @property
    def sent(self):
        """The number of the last datagram, either way: what its first four bytes say."""
        return self._sent

    def set_tos(self, tos, back=False):
        """The type of service of the client's datagrams from now on, or the server's."""
        end = self._server if back else self._client
        if self._is_v6:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        else:
            end.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)

    def set_ttl(self, ttl):
        """Their time to live."""
        if self._is_v6:
            self._client.setsockopt(socket.IPPROTO_IPV6, IPV6_UNICAST_HOPS, ttl)
        else:
            self._client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)

    def set_do_not_fragment(self, wanted=True):
        """Whether they must not be fragmented."""
        ip_mtu_discover, dont, do = 10, 0, 2
        if self._is_v6:
            self._client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, do if wanted else dont)
        else:
            self._client.setsockopt(socket.IPPROTO_IP, ip_mtu_discover, do if wanted else dont)

    def set_probing(self):
        """Has them sent whole, whatever is known of the path."""
        ip_mtu_discover, probe = 10, 3
        if self._is_v6:
            self._client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, probe)
        else:
            self._client.setsockopt(socket.IPPROTO_IP, ip_mtu_discover, probe)

    def probe(self, size):
        """One datagram to the server, though others were too large. Gives its payload."""
        # What the client has been told since would be the answer.
        self._client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return self.send(size)

    def send_in_one(self, count, size):
        """`count` datagrams of one size to the server, given to the kernel as one. Gives their payloads."""
        payloads = [self._payload(size) for _ in range(count)]
        self._client.sendmsg([b"".join(payloads)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size))])
        return payloads

    def receive(self, count, timeout=2.0):
        """Up to `count` datagrams at the server."""
        self._server.settimeout(timeout)
        received = []
        try:
            while len(received) < count:
                received.append(self._server.recv(65536))
        except TimeoutError:
            pass
        return received

    def receive_in_one(self, timeout=2.0):
        """Datagrams at the server, as many as the kernel has in one piece. Gives their bytes, and the size
        of each."""
        self._server.settimeout(timeout)
        data, extra, _, _ = self._server.recvmsg(65536, socket.CMSG_SPACE(4))
        for level, kind, value in extra:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO):
                return data, struct.unpack("i", value)[0]
        return data, len(data)

    def accept_in_one(self):
        """Has the server's kernel keep together what arrives together."""
        self._server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)

    def set_checksum(self, wanted):
        """Whether they have a UDP checksum."""
        if self._is_v6:
            self._client.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, 0 if wanted else 1)
            self._server.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX + 1, 0 if wanted else 1)
        else:
            self._client.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 0 if wanted else 1)

    def close(self):
        """Ends it."""
        self._client.close()
        self._server.close()

    def _payload(self, size):
        self._sent += 1
        return struct.pack("!I", self._sent).ljust(size, b"\xa5")


class Stream:
    """A TCP connection between a client and a server, both of which the test plays."""

    #: What kind of socket it takes, and the option that has it send at once.
    TYPE = (socket.SOCK_STREAM,)
    NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def __init__(self, client, server, address, port=80, listen=None):
        family = family_of(address)
        self._listener = server.socket(family, *self.TYPE)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(listen or anywhere(address, port))
        self._listener.listen()
        self.client = client.socket(family, *self.TYPE)
        self.client.settimeout(5)
        try:
            self.client.connect((address, port))
        except OSError:
            # Else the namespaces would not go.
            self.client.close()
            self._listener.close()
            raise
        self._listener.settimeout(5)
        self.server, sender = self._listener.accept()
        self.seen_from = sender[:2]
        self.server.settimeout(5)
        for end in (self.client, self.server):
            end.setsockopt(*self.NODELAY, 1)

    def send(self, data=b"x" * 100, back=False):
        """Data one way, which has to arrive."""
        source, sink = (self.server, self.client) if back else (self.client, self.server)
        source.setblocking(False)
        sink.setblocking(False)
        sent, received = 0, bytearray()
        deadline = time.monotonic() + 30
        while len(received) < len(data):
            assert time.monotonic() < deadline, f"only {len(received)} of {len(data)} bytes arrived"
            writing = [source] if sent < len(data) else []
            readable, writable, _ = select.select([sink], writing, [], 1)
            if writable:
                sent += source.send(data[sent:sent + 262144])
            if readable:
                received += sink.recv(262144)
        assert bytes(received) == data, "the data arrived changed"

    def exchange(self, count=1, size=100):
        """`count` messages each way."""
        for n in range(count):
            self.send(bytes([n % 251]) * size)
            self.send(bytes([n % 241]) * size, back=True)

    def warm_up(self):
        """Lets both directions be learned and confirmed."""
        self.exchange(2)
        for _ in range(4):
            time.sleep(0.15)
            self.exchange(1)

    def close(self):
        """Ends it in an orderly way."""
        self.client.close()
        self.server.close()
        self._listener.close()

    def reset(self):
        """Has the client reset it."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()


class Generator:
    """The kernel's packet generator, for a device of a namespace: UDP packets of one address to another."""

    def __init__(self, namespace, device, source, destination, hardware, way="start_xmit"):
        subprocess.run(["modprobe", "pktgen"], check=True)
        self._namespace, self._device = namespace, device
        version, header = ("6", 40) if ":" in source else ("", 20)
        addresses = (f"src6 {source}", f"dst6 {destination}") if version else (
            f"src_min {source}", f"src_max {source}", f"dst {destination}")
        self._tell("kpktgend_0", f"add_device {device}")
        self._tell(device, "clone_skb 0", f"pkt_size {40 + header}", "delay 0", f"xmit_mode {way}", *addresses,
                   "flag UDPCSUM", *(f"{name}_mac {mac}" for name, mac in zip(("src", "dst"), hardware)))

    def send(self, count, source_ports, destination_ports):
        """`count` packets, of which the ports come from the given ranges, one after the other and over again;
        the second of each range first."""
        for name, ports in ("src", source_ports), ("dst", destination_ports):
            self._tell(self._device, f"udp_{name}_min {ports.start}", f"udp_{name}_max {ports.stop}")
        self._tell(self._device, f"count {count}")
        self._tell("pgctrl", "start")

    def close(self):
        """Takes it off the device."""
        self._tell("kpktgend_0", "rem_device_all")

    def _tell(self, file, *lines):
        with self._namespace.inside():
            end = os.open(f"/proc/thread-self/net/pktgen/{file}", os.O_WRONLY)
            try:
                for line in lines:
                    os.write(end, f"{line}\n".encode())
            finally:
                os.close(end)


class Wire:
    """Frames as they are on a device: put there, and seen there."""

    def __init__(self, namespace, device, incoming=True, outgoing=True):
        self._wanted = (incoming, outgoing)
        self._place = (namespace, device)
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind((device, ETH_P_ALL))

    def put(self, frame):
        """Sends a frame."""
        self._socket.send(bytes(frame))

    def put_in_pieces(self, frame):
        """Sends a frame of more than a page, of which the Ethernet header alone is in one piece."""
        namespace, device = self._place
        with contextlib.closing(namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as sender:
            sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sender.bind((device, 0))
            # In it: how much the first piece is to have.
            sender.send(struct.pack("<BBHHHH", 0, 0, 14, 0, 0, 0) + bytes(frame))

    def frames(self, seconds=0.3):
        """The IP frames that were seen since the last call, and in the next moment. What IPv6 asks its
        neighbours is none of them, as ARP is none."""
        incoming, outgoing = self._wanted
        found = []
        deadline = time.monotonic() + seconds
        # However long it takes to read those that are there already; but some conversations never end.
        while (left := deadline - time.monotonic()) > -5:
            if not select.select([self._socket], [], [], max(left, 0))[0]:
                break
            frame, address = self._socket.recvfrom(65536)
            is_outgoing = address[2] == socket.PACKET_OUTGOING
            is_ip = address[1] == ETH_P_IP or address[1] == ETH_P_IPV6 and not _is_about_neighbours(frame)
            if is_ip and (outgoing if is_outgoing else incoming):
                found.append(frame)
        return found

    def missed(self):
        """How many frames there was no room for since the last call."""
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return struct.unpack("II", statistics)[1]

    def packets(self, source=None, destination=None, protocol=None, seconds=0.3):
        """The same, as scapy packets, of those with the given addresses and protocol number."""
        # These say what is in the frames.
        from scapy.layers import inet, inet6  # noqa: F401
        from scapy.layers.l2 import Ether
        found = []
        for packet in map(Ether, self.frames(seconds)):
            ip = packet.payload
            number = ip.nh if ip.version == 6 else ip.proto
            if source in (None, ip.src) and destination in (None, ip.dst) and protocol in (None, number):
                found.append(packet)
        return found

    def close(self):
        """Gives the socket back."""
        self._socket.close()
