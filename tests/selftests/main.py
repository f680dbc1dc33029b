# SPDX-License-Identifier: GPL-2.0

"""The selftests, in the guest. See `run`."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from scripts import Script, patient, scripts, tainted

SHARE = Path("/mnt/share")
WORK = Path("/tmp/selftests")
NAMESPACES = Path("/run/netns")

# What is random is the same in every run, unless another seed is asked for.
SEED = 1

# Only scripts that hang come to this.
LIMIT_S = 3000
SKIPPED = 4

# What the scripts say about a case: "PASS: text", "ok 1 text", "TEST: text [ OK ]".
SAID = (
    re.compile(r"^\s*(?P<word>PASS|FAIL|ERROR|SKIP)\b[:!]?\s*(?P<case>.*)"),
    re.compile(r"^TEST:\s*(?P<case>.*?)\s*\[\s*(?P<word>OK|FAIL|SKIP)\s*\]"),
)
RESULTS = {"PASS": "pass", "OK": "pass", "FAIL": "fail", "ERROR": "fail", "SKIP": "skip"}

# What differs from run to run: the ends of the namespaces' names, durations, and what was counted.
NAMESPACE = re.compile(r"\b(ns\w*|cl\d+|gw|srv)-\w{6}\b")
CHANGING = re.compile(r"\s*\(duration: .*\)|: (?:original|reply) counter .*")
# nft_flowtable.sh says this in other words when it fails.
DSCP = re.compile(r"^pmtu \d: (\w+) counters do not match.*")


@dataclass
class Case:
    """What a script said about a case."""

    name: str
    result: str
    fast: int
    said: str


@dataclass
class Outcome:
    """What came of a run."""

    status: int
    seconds: float
    cases: list[Case]
    output: list[str]

    @property
    def passed(self) -> Counter[str]:
        """The names of the cases that passed. Some scripts say a name more than once."""
        return Counter(case.name for case in self.cases if case.result == "pass")

    @property
    def failed(self) -> Counter[str]:
        """The names of those that failed."""
        return Counter(case.name for case in self.cases if case.result == "fail")

    @property
    def summary(self) -> str:
        """For the table."""
        ended = {0: "", SKIPPED: "skipped: ", -signal.SIGKILL: "too slow: "}.get(self.status, f"status {self.status}: ")
        counts = Counter(case.result for case in self.cases)
        if counts["excepted"] and not counts["fail"]:
            ended = ""
        words = ("pass", "fail", "excepted", "skip")
        return ended + (", ".join(f"{counts[word]} {word}" for word in words if counts[word]) or "-")


@dataclass
class Fast:
    """Counts the fast packets of the namespaces whose names begin like this."""

    routers: tuple[str, ...]
    #: What `ip` noted of namespaces when they were removed.
    noted: Path = Path("/tmp/fast-packets")
    seen: int = field(default=0, init=False)

    def since(self) -> int:
        """How many there were since the last call."""
        told = self.noted.read_text().splitlines() if self.noted.exists() else []
        for namespace in NAMESPACES.glob("*"):
            if namespace.name.startswith(self.routers):
                command = ["fasttrack", "-N", namespace.name, "-j", "list", "stats"]
                told += subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        stats = [json.loads(line)["fasttrack"][1]["stats"] for line in told]
        packets = sum(direction["packets"] for each in stats for direction in each["fast"].values())
        since = max(packets - self.seen, 0)
        self.seen += since
        return since


def run(script: Script, with_fasttrack: bool, shown: bool) -> Outcome:
    """Runs a script. What it prints is shown at once, or not at all."""
    tree = WORK / ("with" if with_fasttrack else "without")
    path = tree / script.path
    environment = os.environ | {"KSFT_MACHINE_SLOW": "yes", "WAIT_TIMEOUT": "60"}
    fast = Fast(script.routers)
    fast.noted.unlink(missing_ok=True)
    if with_fasttrack:
        environment |= {
            "FASTTRACK_REAL_IP": shutil.which("ip") or "",
            "FASTTRACK_COUNTS": str(fast.noted),
            "FASTTRACK_ROUTERS": " ".join(script.routers),
            "FASTTRACK_IPSEC": script.ipsec,
            "PATH": f"{SHARE}/bin:{environment['PATH']}",
        }
    begin = time.monotonic()
    process = subprocess.Popen(
        [f"./{path.name}", *script.arguments],
        cwd=path.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    timer = threading.Timer(LIMIT_S, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    cases, output = [], []
    for line in process.stdout:
        output.append(line.rstrip())
        if shown:
            print(f"    {time.monotonic() - begin:6.1f} {line.rstrip()}", flush=True)
        if (said := understand(line)) is not None:
            name, result = said
            if with_fasttrack and result == "fail" and name in script.excepted and script.excepted[name].said.search(line):
                result = "excepted"
            # It may be said for each direction.
            if not (cases and result in ("fail", "excepted") and (cases[-1].name, cases[-1].result) == (name, result)):
                cases.append(Case(name, result, fast.since() if with_fasttrack else 0, line.strip()))
    status = process.wait()
    timer.cancel()
    for namespace in NAMESPACES.glob("*"):
        subprocess.run(["ip", "netns", "del", namespace.name], check=False)
    return Outcome(status, time.monotonic() - begin, cases, output)


def understand(line: str) -> tuple[str, str] | None:
    """What a line says about a case: its name, without what differs from run to run, and its result."""
    for said in SAID:
        if found := said.match(line):
            name = CHANGING.sub("", NAMESPACE.sub(r"\1", found["case"])).strip()
            name = DSCP.sub(r"\1: dscp packet counters match", name)
            return name or "(all)", RESULTS[found["word"]]
    return None


def worse(script: Script, without: Outcome, with_it: Outcome) -> list[str]:
    """What is worse with fasttrack than without."""
    found = []
    excepted = Counter(case.name for case in with_it.cases if case.result == "excepted")
    for case in (without.passed - with_it.passed - excepted) | (with_it.failed - without.failed):
        said = [other.said for other in with_it.cases if other.name == case] or ["nothing was said about it"]
        found.append(f"{case} ({said[-1]})")
    if without.status == 0 and with_it.status != 0 and not excepted:
        found.append(f"ended with status {with_it.status}")
    wanted = [case for case in with_it.cases if case.result == "pass" and script.fast and script.fast.search(case.name)]
    slow = [case.name for case in wanted if not case.fast]
    return [f"{script.label}: {text}" for text in [*found, *(f"{name}: no packet was fast" for name in slow)]]


def table(script: Script, without: Outcome, with_it: Outcome) -> list[str]:
    """A script's lines of the table: all cases of both runs, in their order."""
    times = f"{without.seconds:.0f} s, {with_it.seconds:.0f} s"
    lines = [f"{script.label}  ({times})", *row("  in all", without.summary, with_it.summary, sum(case.fast for case in with_it.cases))]
    left = [(case.name, case.result) for case in without.cases]
    for case in with_it.cases:
        before = next((result for name, result in left if name == case.name), "-")
        if before != "-":
            left.remove((case.name, before))
        lines += row(f"    {case.name}", before, case.result, case.fast)
        if case.result == "excepted":
            lines.append(f"      {script.excepted[case.name].why}")
    for name, result in left:
        lines += row(f"    {name}", result, "-", 0)
    return lines


def row(case: str, without: str, with_it: str, fast: int) -> list[str]:
    """A line of the table."""
    return [f"{case[:74]:76}{without:24}{with_it:24}{fast:>8}"]


def prepare() -> None:
    """Makes copies of the selftests, one for each kind of run, that can be changed."""
    for kind in ("without", "with"):
        shutil.copytree(SHARE / "selftests", WORK / kind, symlinks=True)
    for script in scripts(0):
        for kind in ("without", "with"):
            path = WORK / kind / script.path
            text = tainted(patient((SHARE / "selftests" / script.path).read_text()))
            path.write_text(script.with_fasttrack(text) if kind == "with" else text)


def chosen(all_of_them: list[Script], wanted: list[str]) -> list[Script]:
    """Those that are named: as in the table, or all of a name, or with the arguments that are given with the name."""
    found = []
    for words in wanted:
        name, *arguments = words.split()
        exactly = [script for script in all_of_them if script.label == words]
        of_that_name = exactly or [script for script in all_of_them if script.name == name]
        if not of_that_name:
            sys.exit(f"selftests: {name} is not among them")
        found += [replace(of_that_name[0], arguments=tuple(arguments))] if arguments and not exactly else of_that_name
    return found if wanted else all_of_them


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--output", action="store_true")
    arguments.add_argument("script", nargs="*")
    wanted = arguments.parse_args()
    prepare()
    # In both runs, so that the kernel is as tainted in the one as in the other.
    subprocess.run(["modprobe", "fasttrack"], check=True)
    lines, complaints = [], []
    for script in chosen(scripts(wanted.seed), wanted.script):
        outcomes = []
        for with_fasttrack in (False, True):
            outcome = run(script, with_fasttrack, wanted.output)
            outcomes.append(outcome)
            kind = "with" if with_fasttrack else "without"
            fast = f", {sum(case.fast for case in outcome.cases)} packets fast" if with_fasttrack else ""
            summary = f"{outcome.summary}{fast} ({outcome.seconds:.0f} s)"
            print(f"selftests: {script.label} {kind} fasttrack: {summary}", flush=True)
            if outcome.status != 0 and not wanted.output:
                print("\n".join(f"    {line}" for line in outcome.output[-300:]), flush=True)
        lines += table(script, *outcomes)
        complaints += worse(script, *outcomes)
    print()
    print(*row("", "without", "with", "fast"), *lines, sep="\n")
    print()
    for complaint in complaints:
        print(f"worse with fasttrack: {complaint}")
    print(f"selftests: {'NOT ' if complaints else ''}as without fasttrack (--seed {wanted.seed})")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
