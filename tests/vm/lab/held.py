# SPDX-License-Identifier: GPL-2.0
"""A program that rules hand packets to (`nft … queue`), and that lets all of them go on, at once or later."""

import contextlib
import os
import select
import socket
import struct
import threading

NETLINK_NETFILTER = 12
REQUEST = 1
PACKET, VERDICT, CONFIG = (3 << 8 | message for message in range(3))
CONFIG_COMMAND, CONFIG_PARAMETERS, PACKET_HEADER, VERDICT_HEADER = 1, 2, 1, 2
BIND, COPY_META, ACCEPT = 1, 1, 1


class Queue:
    """Listens to a queue of a namespace, from its own thread."""

    def __init__(self, namespace, number):
        self._number = number
        self._socket = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._send(CONFIG, CONFIG_COMMAND, struct.pack("!BxH", BIND, 0))
        self._send(CONFIG, CONFIG_PARAMETERS, struct.pack("!IB", 0, COPY_META))
        #: How many packets came by.
        self.seen = 0
        self._going = threading.Event()
        self._going.set()
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _send(self, message, attribute, value):
        body = struct.pack("=BB", 0, 0) + struct.pack("!H", self._number)
        body += struct.pack("=HH", 4 + len(value), attribute) + value.ljust(-(-len(value) // 4) * 4, b"\0")
        self._socket.send(struct.pack("=IHHII", 16 + len(body), message, REQUEST, 0, 0) + body)

    def _accept(self):
        while self._stop not in select.select([self._socket, self._stop], [], [])[0]:
            self._going.wait()
            data = self._socket.recv(65536)
            while len(data) >= 16:
                length, message = struct.unpack_from("=IH", data)
                if message == PACKET:
                    self._accept_packet(data[20:length])
                data = data[-(-length // 4) * 4:]

    def _accept_packet(self, attributes):
        while len(attributes) >= 4:
            length, kind = struct.unpack_from("=HH", attributes)
            if kind == PACKET_HEADER:
                self.seen += 1
                self._send(VERDICT, VERDICT_HEADER, struct.pack("!I", ACCEPT) + attributes[4:8])
            attributes = attributes[-(-length // 4) * 4:]

    @contextlib.contextmanager
    def held(self):
        """Has packets wait, until the end of the block."""
        self._going.clear()
        yield
        self._going.set()

    def close(self):
        """Ends it; what is in the queue is dropped."""
        os.write(self._stopping, b"x")
        self._thread.join()
        for end in (self._stop, self._stopping):
            os.close(end)
        with contextlib.suppress(OSError):
            self._socket.close()
