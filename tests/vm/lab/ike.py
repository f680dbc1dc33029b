# SPDX-License-Identifier: GPL-2.0
"""Gateways whose IPsec strongSwan's IKE daemon negotiates, configured as the examples say."""

import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

from .control import SHARE
from .kernel import wait_until
from .site import SIGN, Conversation, Site
from .traffic import ETH_P_ALL

EXAMPLES = SHARE / "checkout" / "userspace-tool" / "examples"

#: What the examples say of gateway A, its LAN and its name, and of those of gateway B.
EXAMPLE = {"192.0.2.{}": "wan", "10.{}.0.0/24": "net"}
NAMES = {1: "a.example.org", 2: "b.example.org"}

#: It needs no systemd.
DAEMON = "/usr/sbin/charon-systemd"


def example(name, own, peer):
    """The text of an example, for the gateway of `own`."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    words = {NAMES[1]: NAMES[own.number], NAMES[2]: NAMES[peer.number]}
    for number, end in ((1, own), (2, peer)):
        words |= {wording.format(number): getattr(end, what) for wording, what in EXAMPLE.items()}
    if ":" in peer.net:
        words |= {"ip saddr": "ip6 saddr", "ip daddr": "ip6 daddr"}
    longest_first = sorted(words, key=len, reverse=True)
    found = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<![\w.])(?:{found})(?!\w)", lambda match: words[match[0]], text)


#: What the examples say that the other gateway has.
WAITS = """
connections {
    site {
        children {
            lans {
                start_action = trap
            }
        }
    }
}
"""
#: Of what A's LAN host sends, in the gateway's name.
TRANSPORT = """
connections {
    site {
        children {
            lans {
                mode = transport
                local_ts = dynamic[udp]
                remote_ts = dynamic[udp]
            }
        }
    }
}
"""
#: What takes the place of the example with the rules: it is about LANs.
NOT_IN_CLEAR = f"""
table inet never-in-clear {{
    chain prerouting {{
        type filter hook prerouting priority mangle;
        iifname "wan*" udp sport {Conversation.PORT} meta ipsec missing counter drop
        iifname "wan*" udp dport {Conversation.PORT} meta ipsec missing counter drop
    }}
    chain postrouting {{
        type filter hook postrouting priority srcnat + 50;
        oifname "wan*" udp sport {Conversation.PORT} rt ipsec missing counter drop
        oifname "wan*" udp dport {Conversation.PORT} rt ipsec missing counter drop
    }}
}}
"""
ENCAPSULATED = """
connections {
    site {
        encap = yes
    }
}
"""


class Daemon:
    """The IKE daemon of a gateway, which can be stopped and started again."""

    def __init__(self, own, configuration, settings=""):
        self._gateway = own.gateway
        self._directory = Path(tempfile.mkdtemp(prefix=f"ike-{own.number}-"))
        self._socket = self._directory / "vici"
        self._log = self._directory / "log"
        self._log.touch()
        self._configuration = self._directory / "swanctl.conf"
        self._configuration.write_text(configuration, encoding="utf-8")
        (self._directory / "strongswan.conf").write_text(f"""
            include /etc/strongswan.conf
            charon-systemd {{
                plugins {{
                    vici {{
                        socket = unix://{self._socket}
                    }}
                    # In seconds. The policies that a daemon leaves when it dies name the SPI of its state; of what the
                    # kernel asks for by those no state that is negotiated later takes the place, and as long as it
                    # waits for that it does not ask again.
                    kernel-netlink {{
                        xfrm_acq_expires = 20
                    }}
                }}
                filelog {{
                    daemon {{
                        path = {self._log}
                        append = yes
                        flush_line = yes
                        default = 1
                    }}
                }}
                {settings}
            }}
        """, encoding="utf-8")
        self._job = None

    def start(self):
        """Starts it, and has it do what it is configured to."""
        self._job = self._gateway.start("env", f"STRONGSWAN_CONF={self._directory}/strongswan.conf", DAEMON)
        wait_until(self._answers, 30, "the IKE daemon")
        self.swanctl("--load-all", "--noprompt", "--file", self._configuration)

    def _answers(self):
        with socket.socket(socket.AF_UNIX) as end:
            return end.connect_ex(str(self._socket)) == 0

    def swanctl(self, *words):
        """`swanctl` for this daemon."""
        return self._gateway.run("env", f"SWANCTL_DIR={self._directory}", "swanctl", *words, "--uri",
                                 f"unix://{self._socket}")

    def hold(self, kind, name, content):
        """Gives it a key or a certificate, before it starts."""
        (self._directory / kind).mkdir(exist_ok=True)
        (self._directory / kind / f"{name}.pem").write_bytes(content)

    def stop(self):
        """As an administrator does: it takes leave of its peer, and takes its policies and states with it."""
        self._job.terminate()
        self._job.wait(30)

    def kill(self):
        """Its policies and states stay."""
        self._job.kill()
        self._job.wait()
        self._socket.unlink()

    def said(self, pattern):
        """How often it has said something in its log."""
        return len(re.findall(pattern, self.log()))

    def log(self):
        """All that it has said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self):
        """Removes what it has left."""
        shutil.rmtree(self._directory)


class Ike(Site):
    """A site whose gateways run IKE daemons."""

    #: The example for each kind.
    EXAMPLES = {"policy": "policy.conf", "encapsulated": "policy.conf", "transport": "policy.conf",
                "interface": "interface.conf"}
    #: What else is configured.
    MORE = {"encapsulated": ENCAPSULATED, "transport": TRANSPORT}

    def __init__(self, kind, family, serial, outer=None, *, guarded=True, more_of_a="", more_of_b="", settings=""):
        self._guarded, self._settings = guarded, settings
        self._more = {1: more_of_a, 2: WAITS + more_of_b}
        #: Gateway A's, and the other one's.
        self.daemons = []
        super().__init__(kind, family, serial, outer=outer)

    def protect(self):
        for own, peer in self.ends():
            self.lead(own, peer)
            if self.kind == "transport":
                own.gateway.nft(NOT_IN_CLEAR)
            elif self._guarded:
                own.gateway.nft(example("never-in-clear.nft", own, peer))
            text = example(f"strongswan/{self.EXAMPLES[self.kind]}", own, peer)
            more = self.MORE.get(self.kind, "") + self._more[own.number]
            daemon = Daemon(own, text + more, self._settings)
            self.until_closed(daemon)
            self.daemons.append(daemon)
        if self.kind == "interface":
            certify(self.daemons)
        if self.kind == "transport":
            self.translate()
        # The one that waits first.
        for daemon in reversed(self.daemons):
            daemon.start()

    def goes_on(self, least=20):
        """Waits until so many more messages have arrived both ways; if they do not, says what the daemons say."""
        try:
            self.conversation.goes_on(60, least)
        except AssertionError as error:
            said = "\n".join(daemon.log() for daemon in self.daemons)
            states = self.a.gateway.ip("-s", "xfrm", "state")
            raise AssertionError(f"{error}\n{said}\n{states}") from None

    def watch(self):
        """Looks for clear text on both links from now on."""
        return self.until_closed(ClearText(self))


def certify(daemons):
    """Gives each of two daemons a certificate."""
    def pki(*words, given=None):
        return subprocess.run(["pki", *words, "--outform", "pem"], input=given, check=True, capture_output=True).stdout

    authority = pki("--gen", "--type", "ed25519")
    with tempfile.TemporaryDirectory() as directory:
        key, root = Path(directory, "key"), Path(directory, "root")
        key.write_bytes(authority)
        root.write_bytes(pki("--self", "--ca", "--dn", "CN=Example CA", "--in", str(key), "--type", "ed25519"))
        for number, daemon in enumerate(daemons, 1):
            name = NAMES[number]
            private = pki("--gen", "--type", "ed25519")
            public = pki("--pub", "--type", "priv", given=private)
            certificate = pki("--issue", "--cacert", str(root), "--cakey", str(key), "--type", "pub", "--dn",
                              f"CN={name}", "--san", name, given=public)
            for kind, content in (("private", private), ("x509", certificate), ("x509ca", root.read_bytes())):
                daemon.hold(kind, name, content)


class ClearText:
    """Reads all that passes the links between the gateways, where nobody decrypts anything, all the time."""

    _SOL_PACKET, _PACKET_STATISTICS, _SO_RCVBUFFORCE = 263, 6, 33

    def __init__(self, site):
        self._sockets = []
        for number in (0, 1):
            made = site.wan.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.setsockopt(socket.SOL_SOCKET, self._SO_RCVBUFFORCE, 16 << 20)
            made.bind((f"a{number}", ETH_P_ALL))
            made.setblocking(False)
            self._sockets.append(made)
        #: Frames so far, and those of them that are a protected message in clear.
        self.frames = self.clear = 0
        self._over = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        while True:
            # What has been sent before the end is read.
            over = self._over
            ready, _, _ = select.select(self._sockets, [], [], 0.05)
            for end in ready:
                while True:
                    try:
                        frame = end.recv(65536)
                    except BlockingIOError:
                        break
                    self.frames += 1
                    self.clear += SIGN in frame
            if over:
                return

    def end(self):
        """Ends it. Gives how many frames there were, and how many in clear."""
        self._over = True
        self._thread.join()
        missed = sum(struct.unpack("II", end.getsockopt(self._SOL_PACKET, self._PACKET_STATISTICS, 8))[1]
                     for end in self._sockets)
        assert not missed, f"{missed} frames have not been looked at"
        return self.frames, self.clear

    def close(self):
        """Gives the sockets back."""
        self._over = True
        self._thread.join()
        for end in self._sockets:
            end.close()
