# SPDX-License-Identifier: GPL-2.0
"""The selftests, in the guest. See `run`."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

SHARE = Path("/mnt/share")
WORK = Path("/tmp/selftests")
COUNTS = Path("/tmp/fast-packets")


@dataclass(frozen=True)
class Script:
    """A selftest."""

    path: str
    arguments: tuple = ()
    #: Whether it transfers data over TCP, so that packets have to be fast.
    transfers: bool = False


SCRIPTS = (
    Script("net/netfilter/nft_flowtable.sh", transfers=True),
    Script("net/netfilter/nft_nat.sh"),
    Script("net/netfilter/nft_nat_zones.sh"),
    Script("net/netfilter/conntrack_icmp_related.sh"),
    Script("net/netfilter/conntrack_tcp_unreplied.sh"),
    Script("net/netfilter/nft_conntrack_helper.sh"),
    Script("net/netfilter/nft_synproxy.sh"),
    Script("net/netfilter/nft_tproxy_tcp.sh"),
    Script("net/netfilter/nft_queue.sh"),
    Script("net/netfilter/rpath.sh"),
    Script("net/netfilter/vxlan_mtu_frag.sh"),
    Script("net/pmtu.sh", ("pmtu_ipv4_exception", "pmtu_ipv6_exception", "pmtu_ipv4_vxlan4_exception",
                           "pmtu_ipv4_geneve4_exception", "pmtu_ipv4_br_vxlan4_exception",
                           "cleanup_ipv4_exception")),
)

TIMEOUT_S = 1500

# What the scripts say about a case: "PASS: text", "ok 1 text", "TEST: text [ OK ]".
SAID = (
    re.compile(r"^\s*(?P<word>PASS|OK|FAIL|ERROR|SKIP|XFAIL)\b:?\s*(?P<case>.*)"),
    re.compile(r"^(?P<word>ok|not ok)\s+\d+\s*(?P<case>.*)"),
    re.compile(r"^TEST:\s*(?P<case>.*?)\s*\[\s*(?P<word>OK|FAIL|SKIP|XFAIL)\s*\]"),
)
GOOD = {"PASS", "OK", "ok"}
BAD = {"FAIL", "ERROR", "not ok"}


@dataclass
class Outcome:
    """What came of a run."""

    status: int
    passed: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    fast: int = 0

    @property
    def text(self):
        """For the table."""
        words = {0: "pass", 4: "skip", 124: "timeout"}.get(self.status, f"fail ({self.status})")
        return f"{words}, {len(self.passed)} passed, {len(self.failed)} failed"


def without_flowtable(text):
    """nft_flowtable.sh without flowtables: what they forwarded is accepted."""
    text = re.sub(r"\bflow add @\w+ ?", "", text)
    return re.sub(r"^\s*flowtable \w+ \{.*?^\s*\}\n", "", text, flags=re.DOTALL | re.MULTILINE)


def prepare():
    """Makes copies that can be written to."""
    shutil.copytree(SHARE / "selftests", WORK, symlinks=True)
    flowtable = WORK / "net/netfilter/nft_flowtable.sh"
    flowtable.write_text(without_flowtable(flowtable.read_text()))
    bin_dir = WORK / "bin"
    bin_dir.mkdir()
    shutil.copy(SHARE / "ip", bin_dir / "ip")
    (bin_dir / "ip").chmod(0o755)


def run(script, with_fasttrack):
    """Runs a script."""
    environment = dict(os.environ)
    COUNTS.write_text("")
    if with_fasttrack:
        environment |= {
            "FASTTRACK_REAL_IP": shutil.which("ip"),
            "FASTTRACK_COUNTS": str(COUNTS),
            "PATH": f"{WORK}/bin:{environment['PATH']}",
        }
    path = WORK / script.path
    try:
        done = subprocess.run([f"./{path.name}", *script.arguments], cwd=path.parent, env=environment, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                              timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, output = 124, (expired.stdout or b"").decode(errors="replace")
    outcome = Outcome(status)
    for line in output.splitlines():
        for said in SAID:
            if found := said.match(line):
                word, case = found["word"], normal(found["case"])
                if word in GOOD:
                    outcome.passed.append(case)
                elif word in BAD:
                    outcome.failed.append(case)
                break
    outcome.fast = sum(int(count) for count in COUNTS.read_text().split())
    for namespace in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split("\n"):
        if namespace.strip():
            subprocess.run(["ip", "netns", "del", namespace.split()[0]], check=False)
    if status not in (0, 4):
        print("\n".join(f"    {line}" for line in output.splitlines()[-25:]), flush=True)
    return outcome


def normal(case):
    """A case's name without what differs from run to run: numbers, and names of namespaces."""
    case = re.sub(r"-[A-Za-z0-9]{6}\b", "", case)
    return re.sub(r"\d+", "N", case).strip()


def main():
    wanted = sys.argv[1:]
    scripts = [script for script in SCRIPTS if not wanted or Path(script.path).name in wanted]
    prepare()
    subprocess.run(["modprobe", "fasttrack"], check=True)
    rows, worse = [], []
    for script in scripts:
        name = Path(script.path).name
        print(f"selftests: {name}", flush=True)
        without = run(script, False)
        with_it = run(script, True)
        rows.append((name, without, with_it))
        if without.status == 0 and with_it.status != 0:
            worse.append(f"{name}: {with_it.text}")
        for case in set(without.passed) & set(with_it.failed) - set(without.failed):
            worse.append(f"{name}: {case}")
        if script.transfers and not with_it.fast:
            worse.append(f"{name}: no packet was fast")
    print(f"\n{'':32}{'without':34}{'with fasttrack':34}{'packets fast':>12}")
    for name, without, with_it in rows:
        print(f"{name:32}{without.text:34}{with_it.text:34}{with_it.fast:12}")
    print()
    for line in worse:
        print(f"worse with fasttrack: {line}")
    print("selftests:", "NOT as without fasttrack" if worse else "as without fasttrack")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
