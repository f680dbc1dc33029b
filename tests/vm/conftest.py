# SPDX-License-Identifier: GPL-2.0
"""What every test begins and ends with."""

import sys
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

sys.path.insert(0, str(Path(__file__).parent))

from lab import findings, kernel  # noqa: E402
from lab.leaks import Leak  # noqa: E402
from lab.topology import Tunnel, Router  # noqa: E402
from lab.traffic import Datagrams, Wire  # noqa: E402


def pytest_addoption(parser):
    """Of several guests that share the tests, each runs some."""
    parser.addoption("--share", default="1/1", metavar="N/COUNT", help="run every COUNTth test, beginning with the Nth")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leaves the tests that are this guest's."""
    number, count = map(int, config.getoption("--share").split("/"))
    items[:] = items[number - 1::count]


#: How many tests of a run may be tried again.
SECOND_TRIES = 4
#: What the tests that were tried again had failed with.
tried_again = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Notes in a report whether the test may be tried again."""
    report = yield
    report.is_final = report.when == "teardown" or call.excinfo is not None and call.excinfo.errisinstance(Leak)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Tries a test a second time that has failed, unless many have, or it is the kernel that complained, something was
    left behind, or was seen that must not be seen even once. The guest is slow and shares its processors with others:
    now and then a packet, an answer or a timer comes later than any test can wait for. What it had failed with is told
    at the end all the same."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    failed = [report for report in reports if report.failed]
    if failed and not any(report.is_final for report in failed) and len(tried_again) < SECOND_TRIES:
        tried_again.append((item.nodeid, failed[0].longreprtext))
        item._initrequest()  # pylint: disable=protected-access
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter):
    """Prints what tests have found out."""
    for title, lines in findings.tables():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
    for nodeid, why in tried_again:
        terminalreporter.section(f"failed at first: {nodeid}")
        terminalreporter.write_line(why)


@pytest.fixture(scope="session", autouse=True)
def warm_kernel():
    """Has the kernel load and allocate what it keeps for ever, once."""
    for family in ("ipv4", "ipv6"):
        Router(controlled=False, family=family).remove()
    kernel.wait_until(lambda: kernel.namespaces() <= 1, 15, pause=0.3)


@pytest.fixture(autouse=True)
def clean_kernel(warm_kernel):
    """The module is there during the test. After it the module can be unloaded, nothing is left of
    what the test made, and the kernel has not complained."""
    log = kernel.Log()
    spaces = kernel.namespaces()
    kernel.load()
    yield
    if kernel.loaded():
        kernel.unload()
    complaints = log.complaints()
    log.close()
    assert not complaints, complaints
    kernel.wait_until(lambda: kernel.namespaces() <= spaces, 15,
                      "the removal of the test's namespaces", pause=0.3)


@pytest.fixture
def family(request):
    """The version of IP: IPv4 unless a test is for both."""
    return getattr(request, "param", "ipv4")


@pytest.fixture
def router(family):
    """A router between a LAN and a WAN."""
    topology = Router(family=family)
    yield topology
    topology.remove()


@pytest.fixture
def tunnel():
    """Two gateways with an ESP tunnel between their LANs, and a stranger on the WAN."""
    topology = Tunnel()
    yield topology
    topology.remove()


@pytest.fixture
def wan(tunnel):
    """Everything that passes the tunnel's WAN."""
    tunnel.wan.run("ethtool", "-K", "porta", "gro", "off", check=False)
    wire = Wire(tunnel.wan, "porta")
    yield wire
    wire.close()


@pytest.fixture
def tunnelled(tunnel):
    """A conversation between the tunnel's LANs."""
    conversation = Datagrams(tunnel.lan_a, tunnel.lan_b, tunnel.LAN_B)
    yield conversation
    conversation.close()
